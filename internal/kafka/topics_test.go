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
				return EnsureTopic(ctx, newClient(t, brokers), name, 3, 1, map[string]string{"retention.ms": "-1"})
			})
		}
		require.NoError(t, callers.Wait())
		for _, other := range []int32{2, 4} {
			err := EnsureTopic(ctx, client, name, other, 1, nil)
			require.ErrorIs(t, err, ErrPartitionCount)
			require.ErrorContains(t, err, "set the configuration to 3")
		}
		require.NoError(t, EnsureTopic(ctx, client, name, 3, 1, nil))

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
			if err := EnsureTopic(ctx, client, name, 1, 1, nil); err != nil {
				return false // while it is being deleted
			}
			after, err := TopicID(ctx, client, name)
			return err == nil && after != before
		}, "the id did not change")
	})
}
