package testenv

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestKafkaKeepsWhatItAcknowledged is about the harness: fault tests trust Kill to be
// a crash and Restart to bring the same broker back.
func TestKafkaKeepsWhatItAcknowledged(t *testing.T) {
	cluster, err := StartKafka(t.TempDir(), 1)
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.Brokers()...), kgo.AllowAutoTopicCreation(),
		kgo.ConsumeTopics("kept"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	require.NoError(t, client.ProduceSync(ctx, &kgo.Record{Topic: "kept", Value: []byte("x")}).FirstErr())

	require.NoError(t, cluster.Kill(0))
	require.Error(t, cluster.Kill(0), "a broker that is down is not killed twice")
	require.NoError(t, cluster.Restart(0))

	fetches := client.PollFetches(ctx)
	require.NoError(t, fetches.Err())
	require.Equal(t, 1, fetches.NumRecords())
}
