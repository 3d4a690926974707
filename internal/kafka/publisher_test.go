package kafka

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func newPublisher(t *testing.T, brokers []string, timeout time.Duration) *Publisher {
	client, err := NewProducerClient(DefaultConfig(brokers...), logger())
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return NewPublisher(client, timeout)
}

// answer waits for a call that must come back.
func answer(t *testing.T, call func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-time.After(deadline):
		t.Fatal("no answer")
		return nil
	}
}

// TestKeysLieWhereEveryClientPutsThem: the hashes are those of Kafka's own test of its
// Java client (UtilsTest.testMurmur2).
func TestKeysLieWhereEveryClientPutsThem(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		const partitions = 12
		topic := newTopic(t, brokers, partitions)
		p := newPublisher(t, brokers, deadline)
		for key, hash := range map[string]int32{
			"21":                         -973932308,
			"foobar":                     -790332482,
			"a-little-bit-long-string":   -985981536,
			"a-little-bit-longer-string": -1486304829,
			"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
			"abc": 479470107,
		} {
			msg := message.NewMessage(uuid.NewString(), nil)
			msg.Metadata.Set(MetadataKey, key)
			r := newRecord(topic, msg)
			require.NoError(t, p.Append(t.Context(), r))
			require.Equal(t, hash&0x7fffffff%partitions, r.Partition, key)
		}
	})
}

func TestAppendTellsPlacesInOrder(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		p := newPublisher(t, brokers, deadline)
		records := keyed(topic, 1, 2, 10)
		require.NoError(t, p.Append(t.Context(), records...))
		for i, r := range records {
			require.Equal(t, int64(i), r.Offset)
		}
		require.NoError(t, p.Close())
		require.ErrorIs(t, p.Append(t.Context(), keyed(topic, 1, 1, 1)...), ErrClosed)
	})
}

// TestBegin: what is begun comes before what is appended meanwhile. Close waits for its fate, but not for
// somebody to ask: a caller may have found that it does not matter.
func TestBegin(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		p := newPublisher(t, brokers, deadline)
		records := keyed(topic, 1, 1, 3)
		first := p.Begin(t.Context(), records[0])
		p.Begin(t.Context(), records[1])
		require.NoError(t, p.Append(t.Context(), records[2]))
		require.NoError(t, answer(t, p.Close))
		require.ErrorIs(t, p.Begin(t.Context(), keyed(topic, 1, 1, 1)...)(), ErrClosed)
		require.NoError(t, first())
		for i, r := range records {
			require.Equal(t, int64(i), r.Offset)
		}
		require.ErrorIs(t, p.Begin(t.Context(), keyed(topic, 1, 1, 1)...)(), ErrClosed)
	})
}

func TestPublishEndsWithoutABroker(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	nobody := []string{listener.Addr().String()}
	msg := message.NewMessage(uuid.NewString(), nil)

	t.Run("at the limit", func(t *testing.T) {
		t.Parallel()
		err := answer(t, func() error { return newPublisher(t, nobody, 100*time.Millisecond).Publish("topic", msg) })
		require.ErrorIs(t, err, ErrNotAcknowledged)
	})
	t.Run("with its caller", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := answer(t, func() error { return newPublisher(t, nobody, time.Hour).PublishContext(ctx, "topic", msg) })
		require.ErrorIs(t, err, ErrNotAcknowledged)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// TestNothingAppearsOutOfADeadRequestsPast: what was not acknowledged in time is not
// written when the broker is back, though the client could not know whether it had been.
// Only the embedded broker goes away and comes back on demand.
func TestNothingAppearsOutOfADeadRequestsPast(t *testing.T) {
	t.Parallel()
	cluster := embedded(t)
	brokers := cluster.ListenAddrs()
	topic := newTopic(t, brokers, 1)
	client, err := NewProducerClient(DefaultConfig(brokers...), logger(), kgo.MetadataMinAge(50*time.Millisecond)) // else it gives up seconds later
	require.NoError(t, err)
	t.Cleanup(client.Close)

	var away atomic.Bool
	away.Store(true)
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, errors.New("the connection breaks"), away.Load()
	})
	dead := &kgo.Record{Topic: topic, Value: []byte("dead")}
	require.ErrorIs(t, answer(t, func() error {
		return NewPublisher(client, 500*time.Millisecond).Append(t.Context(), dead)
	}), ErrNotAcknowledged)
	// What joins it while the client still holds it fails with it.
	eventually(t, func() bool { return client.BufferedProduceRecords() == 0 }, "the record was not given up")
	away.Store(false)

	late := &kgo.Record{Topic: topic, Value: []byte("late")}
	require.NoError(t, NewPublisher(client, deadline).Append(t.Context(), late))
	require.Zero(t, late.Offset, "something was written before it")
}
