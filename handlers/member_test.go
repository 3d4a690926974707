package handlers

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/internal/testenv"
)

// TestStopEndsTheTransaction: what is being written when the process is asked to stop is
// committed, and not left open for others to wait for.
func TestStopEndsTheTransaction(t *testing.T) {
	t.Parallel()
	const patience = time.Minute
	name := "stop-" + uuid.NewString()
	brokers := []kgo.Opt{kgo.SeedBrokers(testenv.Kafka(t)...)}
	m := &groupMember{name: "test", group: name, id: name, transactionTimeout: 10 * time.Second, logPartitions: 1, changelogPartitions: 1, opts: brokers, log: slog.New(slog.DiscardHandler)}
	nothing := func(context.Context, *kgo.Client, map[string][]int32) {}
	session, leave, err := m.join(nothing, nothing)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err = kadm.NewClient(session.Client()).CreateTopic(ctx, 1, 1, nil, name)
	require.NoError(t, err)

	stopping, stop := context.WithCancel(ctx)
	stop()
	committed, err := m.transact(stopping, session, []*kgo.Record{{Topic: name, Value: []byte("it is there")}})
	require.NoError(t, err)
	require.True(t, committed)
	leave()

	reader, err := kgo.NewClient(append(brokers, kgo.ConsumeTopics(name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	require.NoError(t, err)
	defer reader.Close()
	fetches := reader.PollFetches(ctx)
	require.NoError(t, fetches.Err())
	require.Equal(t, "it is there", string(fetches.Records()[0].Value))
}
