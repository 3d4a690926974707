package kafka

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// commitTo sets where a group begins.
func commitTo(t *testing.T, brokers []string, group, topic string, offset int64) {
	t.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, offset, 0)
	require.NoError(t, kadm.NewClient(newClient(t, brokers)).CommitAllOffsets(within1(t), group, offsets))
}

// log notes values in the order in which they come.
type log struct {
	mu     sync.Mutex
	values []string
}

func (l *log) add(value []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values = append(l.values, string(value))
}

func (l *log) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.values...)
}

func numbers(from, to int) []string {
	var values []string
	for i := from; i < to; i++ {
		values = append(values, strconv.Itoa(i))
	}
	return values
}

func TestFilter(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 1, 9)...)
		var saw log
		cfg := testSubscriberConfig()
		cfg.Filter = func(r *kgo.Record) bool {
			saw.add(r.Value)
			return string(r.Value) == "1" || string(r.Value) == "4"
		}
		messages, _ := subscribe(t, brokers, cfg, topic)
		one := receive(t, messages)
		require.Equal(t, "key-0/1", value(one))
		eventually(t, func() bool { return len(saw.all()) == 9 }, "not all records, or not before their key's turn")
		require.Equal(t, numbers(0, 9), saw.all())
		awaitCommitted(t, brokers, cfg.Group, topic, 0, 1) // 0 is done without a delivery
		one.Ack()
		four := receive(t, messages)
		require.Equal(t, "key-0/4", value(four))
		awaitCommitted(t, brokers, cfg.Group, topic, 0, 4)
		four.Ack()
		awaitCommitted(t, brokers, cfg.Group, topic, 0, 9)
	})
}

// TestCatchUp: from the group's position to the end, with what Filter drops and what a
// transaction did not commit, and without the record that ends the transaction; again
// after an error; and only then a delivery.
func TestCatchUp(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 1, 8)...)
		aborted(t, brokers, keyed(topic, 1, 1, 10)[8:]...)
		cfg := testSubscriberConfig()
		commitTo(t, brokers, cfg.Group, topic, 3)
		cfg.Isolation = kgo.ReadCommitted()
		cfg.Filter = func(r *kgo.Record) bool { return string(r.Value) != "5" }
		var (
			calls  atomic.Int32
			caught [3]log
			done   atomic.Bool
		)
		carryOn := make(chan struct{})
		cfg.CatchUp = func(ctx context.Context, name string, partition int32, records iter.Seq2[*kgo.Record, error]) error {
			if name != topic || partition != 0 {
				return errors.New("the wrong partition")
			}
			call := calls.Add(1)
			for r, err := range records {
				if err != nil {
					return err
				}
				caught[call-1].add(r.Value)
				if call == 1 && string(r.Value) == "4" {
					return errors.New("again")
				}
			}
			select {
			case <-carryOn:
			case <-ctx.Done():
			}
			done.Store(true)
			return nil
		}
		messages, _ := subscribe(t, brokers, cfg, topic)
		eventually(t, func() bool { return len(caught[1].all()) == 7 }, "did not catch up")
		select {
		case <-messages:
			t.Fatal("a delivery before the catch-up ended")
		default:
		}
		close(carryOn)
		for _, want := range []string{"3", "4", "6", "7"} {
			msg := receive(t, messages)
			require.True(t, done.Load(), "a delivery before the catch-up ended")
			require.Equal(t, want, string(msg.Payload))
			msg.Ack()
		}
		awaitCommitted(t, brokers, cfg.Group, topic, 0, 8)
		require.Equal(t, numbers(3, 5), caught[0].all())
		require.Equal(t, numbers(3, 10), caught[1].all())
		require.Equal(t, int32(2), calls.Load(), "once per assignment")
	})
}

// aborted writes records in a transaction that is aborted.
func aborted(t *testing.T, brokers []string, records ...*kgo.Record) {
	t.Helper()
	client := newClient(t, brokers, kgo.TransactionalID("transaction-"+uuid.NewString()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, client.BeginTransaction())
	require.NoError(t, client.ProduceSync(within1(t), records...).FirstErr())
	require.NoError(t, client.EndTransaction(within1(t), kgo.TryAbort))
}

// TestCatchUpEndsWithItsPartition: Close does not wait for it.
func TestCatchUpEndsWithItsPartition(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 1, 1)...)
		cfg := testSubscriberConfig()
		cfg.CloseTimeout = time.Minute
		begun := make(chan struct{})
		cfg.CatchUp = func(ctx context.Context, _ string, _ int32, _ iter.Seq2[*kgo.Record, error]) error {
			close(begun)
			<-ctx.Done()
			return nil // as if it had caught up
		}
		messages, s := subscribe(t, brokers, cfg, topic)
		<-begun
		require.NoError(t, answer(t, s.Close))
		_, open := <-messages
		require.False(t, open, "a delivery without a catch-up")
		require.Equal(t, int64(-1), committed(t, brokers, cfg.Group, topic, 0))
	})
}

// TestPositionPastTheEnd: the log was cut back while nobody read it. The client goes on
// where the log ends when it comes, and the group's position goes back there: else new
// records up to the old position would never be delivered after the next restart.
func TestPositionPastTheEnd(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		records := keyed(topic, 1, 1, 3)
		produce(t, brokers, records...)
		cfg := testSubscriberConfig()
		commitTo(t, brokers, cfg.Group, topic, 1_000_000)
		messages, _ := subscribe(t, brokers, cfg, topic)
		// What is written before the client has looked for the end is not delivered.
		end := int64(len(records))
		var msg *message.Message
		eventually(t, func() bool {
			select {
			case msg = <-messages:
				return true
			default:
				produce(t, brokers, keyed(topic, 1, 1, 1)...)
				end++
				return false
			}
		}, "nothing was delivered")
		for ; record(t, msg).Offset < end-1; msg = receive(t, messages) {
			msg.Ack()
		}
		msg.Ack()
		awaitCommitted(t, brokers, cfg.Group, topic, 0, end)
	})
}

// TestLogCutBackUnderAReader: what is in work belongs to records that are gone; its
// handler keeps the key until it ends, and its answer does not count. Only the embedded
// broker can be made to say that an offset is past the end.
func TestLogCutBackUnderAReader(t *testing.T) {
	t.Parallel()
	cluster := embedded(t)
	brokers := cluster.ListenAddrs()
	topic := newTopic(t, brokers, 1)
	produce(t, brokers, keyed(topic, 1, 1, 3)...)
	cfg := testSubscriberConfig()
	messages, _ := subscribe(t, brokers, cfg, topic)
	receive(t, messages).Ack()
	stale := receive(t, messages)
	require.Equal(t, "key-0/1", value(stale))
	awaitCommitted(t, brokers, cfg.Group, topic, 0, 1)

	cut := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.OffsetOutOfRange})
	require.NoError(t, cut.Wait(within1(t), 1))
	awaitCancelled(t, stale)
	stale.Ack()
	for i := range 3 {
		msg := receive(t, messages)
		require.Equal(t, "key-0/"+strconv.Itoa(i), value(msg))
		if i == 0 {
			awaitCommitted(t, brokers, cfg.Group, topic, 0, 0)
		}
		msg.Ack()
		awaitCommitted(t, brokers, cfg.Group, topic, 0, int64(i)+1)
	}
}
