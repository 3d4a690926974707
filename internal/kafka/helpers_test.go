package kafka

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/internal/testenv"
)

// deadline is for what must happen; nothing is asserted about how soon.
const deadline = time.Minute

// eachBroker runs a test on Apache Kafka and on the broker of embedded mode, which
// must not differ.
func eachBroker(t *testing.T, test func(t *testing.T, brokers []string)) {
	t.Parallel()
	t.Run("apache", func(t *testing.T) {
		t.Parallel()
		test(t, testenv.Kafka(t))
	})
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, embedded(t).ListenAddrs())
	})
}

func embedded(t *testing.T) *kfake.Cluster {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(500*time.Millisecond),
		kfake.BrokerConfigs(map[string]string{"group.consumer.heartbeat.interval.ms": "200"}))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	return cluster
}

func logger() *slog.Logger {
	if os.Getenv("KAFKA_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func within1(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func newClient(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	client, err := NewClient(DefaultConfig(brokers...), logger(), opts...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// newTopic makes a topic with a name of its own.
func newTopic(t *testing.T, brokers []string, partitions int32) string {
	name := "topic-" + uuid.NewString()
	require.NoError(t, EnsureTopic(within1(t), newClient(t, brokers), Topic{Name: name, Partitions: partitions, Replication: 1}))
	return name
}

// testSubscriberConfig has short times, and a group of its own.
func testSubscriberConfig() SubscriberConfig {
	c := DefaultSubscriberConfig("group-" + uuid.NewString())
	// Nobody dies here without leaving its group, so a session may outlast a busy machine.
	c.SessionTimeout, c.HeartbeatInterval = 20*time.Second, 200*time.Millisecond
	c.DrainTimeout, c.CloseTimeout, c.RebalanceTimeout = 2*time.Second, 2*time.Second, 10*time.Second
	c.CommitInterval = 100 * time.Millisecond
	c.RedeliveryMin, c.RedeliveryMax = time.Millisecond, 20*time.Millisecond
	return c
}

func newSubscriber(t *testing.T, brokers []string, cfg SubscriberConfig) *Subscriber {
	s, err := NewSubscriber(DefaultConfig(brokers...), cfg, logger())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func subscribe(t *testing.T, brokers []string, cfg SubscriberConfig, topic string) (<-chan *message.Message, *Subscriber) {
	s := newSubscriber(t, brokers, cfg)
	messages, err := s.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	return messages, s
}

// keyed makes records whose values count from 0 per key, going round the keys, and the
// keys round the partitions.
func keyed(topic string, partitions, keys, each int) []*kgo.Record {
	var records []*kgo.Record
	for i := range each {
		for k := range keys {
			records = append(records, &kgo.Record{Topic: topic, Partition: int32(k % partitions),
				Key: fmt.Appendf(nil, "key-%d", k), Value: strconv.AppendInt(nil, int64(i), 10)})
		}
	}
	return records
}

// produce writes records to the partitions they name.
func produce(t *testing.T, brokers []string, records ...*kgo.Record) {
	t.Helper()
	client := newClient(t, brokers, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, client.ProduceSync(within1(t), records...).FirstErr())
}

func receive(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, open := <-messages:
		require.True(t, open, "the channel was closed")
		return msg
	case <-time.After(deadline):
		t.Fatal("no message")
		return nil
	}
}

// awaitCancelled waits until the handler is told to end.
func awaitCancelled(t *testing.T, msg *message.Message) {
	t.Helper()
	select {
	case <-msg.Context().Done():
	case <-time.After(deadline):
		t.Fatal("the handler was not told")
	}
}

func value(msg *message.Message) string { return msg.Metadata[MetadataKey] + "/" + string(msg.Payload) }

func record(t *testing.T, msg *message.Message) *kgo.Record {
	t.Helper()
	r, ok := RecordFrom(msg.Context())
	require.True(t, ok)
	return r
}

// committed is where the group would resume; -1: nothing committed.
func committed(t *testing.T, brokers []string, group, topic string, partition int32) int64 {
	t.Helper()
	client, err := NewClient(DefaultConfig(brokers...), logger())
	require.NoError(t, err)
	defer client.Close()
	offsets, err := kadm.NewClient(client).FetchOffsets(within1(t), group)
	require.NoError(t, err)
	offset, ok := offsets.Lookup(topic, partition)
	if !ok {
		return -1
	}
	return offset.At
}

func awaitCommitted(t *testing.T, brokers []string, group, topic string, partition int32, want int64) {
	t.Helper()
	eventually(t, func() bool { return committed(t, brokers, group, topic, partition) == want },
		"partition %d is not committed up to %d", partition, want)
}

// clientHook catches the client of a subscription, to see and to disturb what it does.
type clientHook struct{ client atomic.Pointer[kgo.Client] }

func (h *clientHook) OnNewClient(client *kgo.Client) { h.client.Store(client) }

func (h *clientHook) paused() bool {
	return len(h.client.Load().PauseFetchPartitions(nil)) > 0
}

func eventually(t *testing.T, condition func() bool, what string, args ...any) {
	t.Helper()
	require.Eventuallyf(t, condition, deadline, 5*time.Millisecond, what, args...)
}
