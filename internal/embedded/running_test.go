package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A broker that was started to be read from, and stopped, leaves the log as it was.
func TestReadingLeavesTheLogAlone(t *testing.T) {
	cfg := testConfig(t)
	log := slog.New(slog.DiscardHandler)
	ends := func(write int) int64 {
		p, err := Start(t.Context(), cfg, Needs{Kafka: true}, log)
		require.NoError(t, err)
		defer func() { require.NoError(t, p.Stop(context.Background())) }()
		client, err := kgo.NewClient(kgo.SeedBrokers(p.Brokers...))
		require.NoError(t, err)
		defer client.Close()
		admin := kadm.NewClient(client)
		if write > 0 {
			_, err := admin.CreateTopic(t.Context(), 1, 1, nil, "t")
			require.NoError(t, err)
		}
		for range write {
			require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Value: []byte("x")}).FirstErr())
		}
		found, err := admin.ListEndOffsets(t.Context(), "t")
		require.NoError(t, err)
		end, _ := found.Lookup("t", 0)
		return end.Offset
	}
	require.EqualValues(t, 3, ends(3))
	require.EqualValues(t, 3, ends(0))
	require.EqualValues(t, 3, ends(0))
}

// Who wants to join a PixTools is told its addresses, and who alone is there is told that.
func TestRunning(t *testing.T) {
	cfg := testConfig(t)
	_, _, err := Running(cfg, Needs{Kafka: true})
	require.ErrorIs(t, err, ErrNotRunning)
	require.False(t, Exists(cfg))
	p, err := Start(t.Context(), cfg, Needs{Kafka: true}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	joined, holder, err := Running(cfg, Needs{Kafka: true, Postgres: true, S3: true})
	require.NoError(t, err)
	require.Equal(t, p.Brokers, joined.Brokers)
	require.NotEmpty(t, joined.DatabaseURL)
	require.NotEmpty(t, joined.S3SecretKey)
	require.Contains(t, holder, fmt.Sprintf("process %d ", os.Getpid()))
	require.True(t, Exists(cfg))
	require.NoError(t, p.Stop(context.Background()))
	_, _, err = Running(cfg, Needs{Kafka: true})
	require.ErrorIs(t, err, ErrNotRunning)
}
