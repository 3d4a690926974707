package kafka

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/sync/errgroup"
)

func TestEnsureTopic(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		client, ctx := newClient(t, brokers), within1(t)
		name := "topic-" + uuid.NewString()
		_, err := TopicID(ctx, client, name)
		require.ErrorIs(t, err, kerr.UnknownTopicOrPartition)

		var callers errgroup.Group
		for range 8 {
			callers.Go(func() error {
				return EnsureTopic(ctx, newClient(t, brokers), Topic{Name: name, Partitions: 3, Replication: 1, Must: map[string]string{"retention.ms": "-1"}})
			})
		}
		require.NoError(t, callers.Wait())
		for _, other := range []int32{2, 4} {
			err := EnsureTopic(ctx, client, Topic{Name: name, Partitions: other, Replication: 1})
			require.ErrorIs(t, err, ErrPartitionCount)
			require.ErrorContains(t, err, "set the configuration to 3")
		}
		require.NoError(t, EnsureTopic(ctx, client, Topic{Name: name, Partitions: 3, Replication: 1}))

		configs, err := kadm.NewClient(client).DescribeTopicConfigs(ctx, name)
		require.NoError(t, err)
		retention := ""
		for _, config := range configs[0].Configs {
			if config.Key == "retention.ms" {
				retention = config.MaybeValue()
			}
		}
		require.Equal(t, "-1", retention)
	})
}

// A topic that somebody made with a retention would lose the log.
func TestTopicWithOtherSettings(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		client, ctx := newClient(t, brokers), within1(t)
		topic := Topic{Name: "topic-" + uuid.NewString(), Partitions: 1, Replication: 1,
			Must:      map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
			Initially: map[string]string{"segment.bytes": "2000000"}}
		week, policy := "604800000", "delete"
		_, err := kadm.NewClient(client).CreateTopic(ctx, 1, 1, map[string]*string{"retention.ms": &week, "cleanup.policy": &policy}, topic.Name)
		require.NoError(t, err)
		err = EnsureTopic(ctx, client, topic)
		require.ErrorIs(t, err, ErrTopicSettings)
		require.ErrorContains(t, err, "retention.ms is 604800000; set them with kafka-configs.sh")
		require.ErrorContains(t, err, "--add-config retention.ms=-1")
		forever := "-1"
		_, err = kadm.NewClient(client).AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &forever}}, topic.Name)
		require.NoError(t, err)
		eventually(t, func() bool { return EnsureTopic(ctx, client, topic) == nil }, "the new settings did not come")
	})
}

func TestTopicMadeAnewHasAnotherID(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		client, ctx := newClient(t, brokers), within1(t)
		name := newTopic(t, brokers, 1)
		before, err := TopicID(ctx, client, name)
		require.NoError(t, err)
		require.NotZero(t, before)
		same, err := TopicID(ctx, client, name)
		require.NoError(t, err)
		require.Equal(t, before, same)

		_, err = kadm.NewClient(client).DeleteTopic(ctx, name)
		require.NoError(t, err)
		eventually(t, func() bool {
			if err := EnsureTopic(ctx, client, Topic{Name: name, Partitions: 1, Replication: 1}); err != nil {
				return false // while it is being deleted
			}
			after, err := TopicID(ctx, client, name)
			return err == nil && after != before
		}, "the id did not change")
	})
}
