package kafka

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestConformance is watermill's own suite. With keys it holds us to order, which
// means per key, over ten members of a group; the suite's notion of an order is "per
// payload", so the payload is the key. Without keys it holds us to nothing but
// delivery, with every record going its own way.
func TestConformance(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		t.Run("keyed", func(t *testing.T) { conformance(t, brokers, true) })
		t.Run("unkeyed", func(t *testing.T) { conformance(t, brokers, false) })
	})
}

func conformance(t *testing.T, brokers []string, keys bool) {
	t.Parallel()
	construct := func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
		cfg := testSubscriberConfig()
		cfg.Group = group
		cfg.DrainTimeout, cfg.CloseTimeout = 100*time.Millisecond, 100*time.Millisecond // the suite leaves messages unanswered
		s, err := NewSubscriber(DefaultConfig(brokers...), cfg, logger())
		require.NoError(t, err)
		client, err := NewProducerClient(DefaultConfig(brokers...), logger())
		require.NoError(t, err)
		return suitePublisher{NewPublisher(client, deadline), client, keys}, suiteSubscriber{s, t, brokers}
	}
	// One group per run of the suite; its topics are all different.
	group := "group-" + uuid.NewString()
	tests.TestPubSub(t,
		tests.Features{
			ConsumerGroups:  true,
			GuaranteedOrder: keys,
			Persistent:      true,
		},
		func(t *testing.T) (message.Publisher, message.Subscriber) { return construct(t, group) },
		construct,
	)
}

type suitePublisher struct {
	*Publisher
	client *kgo.Client
	keys   bool
}

func (p suitePublisher) Publish(topic string, msgs ...*message.Message) error {
	if p.keys {
		for _, msg := range msgs {
			msg.Metadata.Set(MetadataKey, string(msg.Payload))
		}
	}
	return p.Publisher.Publish(topic, msgs...)
}

func (p suitePublisher) Close() error {
	defer p.client.Close()
	return p.Publisher.Close()
}

// suiteSubscriber creates topics when the suite asks for it.
type suiteSubscriber struct {
	*Subscriber
	t       *testing.T
	brokers []string
}

func (s suiteSubscriber) SubscribeInitialize(topic string) error {
	client, err := NewClient(DefaultConfig(s.brokers...), logger())
	if err != nil {
		return err
	}
	defer client.Close()
	return EnsureTopic(s.t.Context(), client, Topic{Name: topic, Partitions: 6, Replication: 1})
}
