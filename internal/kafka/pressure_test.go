package kafka

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// reader is a subscription that tells what it has read.
type reader struct {
	clientHook
	read     atomic.Int64 // records, by Filter, which sees them all
	messages <-chan *message.Message
}

func newReader(t *testing.T, brokers []string, cfg SubscriberConfig, topic string) *reader {
	r := &reader{}
	cfg.DrainTimeout, cfg.CloseTimeout = 10*time.Millisecond, 10*time.Millisecond // handlers here do not answer
	cfg.Filter = func(*kgo.Record) bool {
		r.read.Add(1)
		return true
	}
	cfg.ClientOpts = []kgo.Opt{kgo.WithHooks(&r.clientHook)}
	r.messages, _ = subscribe(t, brokers, cfg, topic)
	return r
}

func (r *reader) awaitRead(t *testing.T, want int64) {
	t.Helper()
	eventually(t, func() bool { return r.read.Load() == want }, "%d records were not read", want)
}

func numbered(topic string, from, to, bytes int) []*kgo.Record {
	var records []*kgo.Record
	for i := from; i < to; i++ {
		key := fmt.Appendf(nil, "%04d", i)
		records = append(records, &kgo.Record{Topic: topic, Key: key, Value: make([]byte, bytes-len(key))})
	}
	return records
}

// TestFetchingPausesAtTheLimit: not one record before it, and it resumes at half of it.
func TestFetchingPausesAtTheLimit(t *testing.T) {
	const limit, size = 10, 128
	for name, set := range map[string]func(*SubscriberConfig){
		"records": func(c *SubscriberConfig) { c.MaxPendingRecords = limit },
		"bytes":   func(c *SubscriberConfig) { c.MaxPendingBytes = limit * size },
	} {
		t.Run(name, func(t *testing.T) {
			eachBroker(t, func(t *testing.T, brokers []string) {
				topic := newTopic(t, brokers, 1)
				cfg := testSubscriberConfig()
				cfg.WorkersPerPartition = 1
				set(&cfg)
				r := newReader(t, brokers, cfg, topic)

				produce(t, brokers, numbered(topic, 0, limit-1, size)...)
				msg := receive(t, r.messages)
				r.awaitRead(t, limit-1)
				produce(t, brokers, numbered(topic, limit-1, limit, size)...)
				r.awaitRead(t, limit) // so it had not paused
				eventually(t, r.paused, "fetching was not paused at the limit")
				const more = 1000
				produce(t, brokers, numbered(topic, limit, limit+more, size)...)

				// When the one worker comes with the next, it has booked the one before.
				for pending := limit; pending > limit/2; pending-- {
					require.True(t, r.paused(), "resumed with %d pending", pending)
					require.Equal(t, int64(limit), r.read.Load(), "read while paused")
					msg.Ack()
					msg = receive(t, r.messages)
				}
				require.True(t, r.paused(), "resumed at half of the limit, not below")
				msg.Ack()
				msg = receive(t, r.messages)
				eventually(t, func() bool { return r.read.Load() > limit }, "did not resume")
				eventually(t, r.paused, "fetching was not paused again")
				require.LessOrEqual(t, r.read.Load(), int64(limit+limit/2+1+pollRecords), "more was read than one poll beyond the limit")
				for range limit + more - limit/2 - 2 {
					msg.Ack()
					msg = receive(t, r.messages)
				}
				msg.Ack()
				awaitCommitted(t, brokers, cfg.Group, topic, 0, limit+more)
			})
		})
	}
}

// TestBytesCountToTheByte: of key and value.
func TestBytesCountToTheByte(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		cfg := testSubscriberConfig()
		cfg.MaxPendingBytes = 1024
		r := newReader(t, brokers, cfg, topic)
		produce(t, brokers, &kgo.Record{Topic: topic, Key: make([]byte, 500), Value: make([]byte, 523)})
		r.awaitRead(t, 1)
		produce(t, brokers, &kgo.Record{Topic: topic, Value: make([]byte, 1)})
		r.awaitRead(t, 2) // so it had not paused
		eventually(t, r.paused, "fetching was not paused at the limit")
	})
}

// TestFetchingPausesFarAheadOfASlowRecord: little is pending, but a restart would read
// all of it again.
func TestFetchingPausesFarAheadOfASlowRecord(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		const limit = 10
		topic := newTopic(t, brokers, 1)
		cfg := testSubscriberConfig()
		cfg.WorkersPerPartition, cfg.MaxPendingRecords, cfg.MaxUncommittedRecords = 2, 5, limit
		r := newReader(t, brokers, cfg, topic)
		produce(t, brokers, numbered(topic, 0, 1, 8)...)
		slow := receive(t, r.messages)
		for i := 1; i < limit; i++ {
			produce(t, brokers, numbered(topic, i, i+1, 8)...)
			receive(t, r.messages).Ack() // all but the last: not paused before the limit
		}
		eventually(t, r.paused, "fetching was not paused at the limit")
		slow.Ack()
		eventually(t, func() bool { return !r.paused() }, "fetching did not resume")
		produce(t, brokers, numbered(topic, limit, limit+1, 8)...)
		receive(t, r.messages).Ack()
	})
}

// TestHandlersHoldNoMoreThanTheLimit tries to take one more each time that as many as
// may be are held.
func TestHandlersHoldNoMoreThanTheLimit(t *testing.T) {
	for name, limits := range map[string]struct{ partitions, workers, inFlight, hold int }{
		"of a partition":    {1, 3, 32, 3},
		"of a subscription": {2, 8, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			eachBroker(t, func(t *testing.T, brokers []string) {
				const records = 200
				topic := newTopic(t, brokers, int32(limits.partitions))
				produce(t, brokers, keyed(topic, limits.partitions, records, 1)...)
				cfg := testSubscriberConfig()
				cfg.WorkersPerPartition, cfg.MaxInFlight = limits.workers, limits.inFlight
				r := newReader(t, brokers, cfg, topic)
				var held []*message.Message
				for taken := 0; taken < records; taken++ {
					held = append(held, receive(t, r.messages))
					if len(held) < limits.hold {
						continue
					}
					if taken < limits.hold {
						r.awaitRead(t, records) // so that there is something to take
					}
					for range 10 {
						runtime.Gosched() // to whoever would bring one more
					}
					select {
					case <-r.messages:
						t.Fatal("one more than the limit")
					default:
					}
					held[0].Ack()
					held = held[1:]
				}
				for _, msg := range held {
					msg.Ack()
				}
			})
		})
	}
}
