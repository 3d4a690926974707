package kafka

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestKeysInOrderAndSideBySide handles each message in a goroutine of its own, as
// watermill's Router does.
func TestKeysInOrderAndSideBySide(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		const keys, each = 8, 20
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, keys, each)...)
		cfg := testSubscriberConfig()
		cfg.WorkersPerPartition = keys
		messages, _ := subscribe(t, brokers, cfg, topic)

		// Nobody answers before all keys of the one partition are in work.
		first := map[string]*message.Message{}
		for range keys {
			msg := receive(t, messages)
			require.NotContains(t, first, msg.Metadata[MetadataKey], "a key is in work twice")
			first[msg.Metadata[MetadataKey]] = msg
		}
		var (
			mu    sync.Mutex
			busy  = map[string]bool{}
			order = map[string][]string{}
			wrong []string
			ended sync.WaitGroup
		)
		handle := func(msg *message.Message) {
			key := msg.Metadata[MetadataKey]
			mu.Lock()
			if busy[key] {
				wrong = append(wrong, value(msg))
			}
			busy[key] = true
			mu.Unlock()
			runtime.Gosched() // somebody else may come
			mu.Lock()
			busy[key] = false
			order[key] = append(order[key], string(msg.Payload))
			mu.Unlock()
			msg.Ack()
		}
		for _, msg := range first {
			ended.Go(func() { handle(msg) })
		}
		for range keys * (each - 1) {
			msg := receive(t, messages)
			ended.Go(func() { handle(msg) })
		}
		ended.Wait()
		require.Empty(t, wrong, "were delivered while their key was in work")
		var want []string
		for i := range each {
			want = append(want, strconv.Itoa(i))
		}
		require.Len(t, order, keys)
		for key, values := range order {
			require.Equal(t, want, values, key)
		}
		awaitCommitted(t, brokers, cfg.Group, topic, 0, keys*each)
	})
}

// TestRecordsWithoutKeyHaveNoOrder: they are all in work at once.
func TestRecordsWithoutKeyHaveNoOrder(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		cfg := testSubscriberConfig()
		for range cfg.WorkersPerPartition {
			produce(t, brokers, &kgo.Record{Topic: topic, Value: []byte("0")})
		}
		messages, _ := subscribe(t, brokers, cfg, topic)
		var held []*message.Message
		for range cfg.WorkersPerPartition {
			held = append(held, receive(t, messages))
		}
		for _, msg := range held {
			msg.Ack()
		}
	})
}

func TestSlowKeyHoldsTheCommitAndNobodyElse(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 3, 4)...) // offset 1 is key-1/0
		cfg := testSubscriberConfig()
		cfg.DrainTimeout, cfg.CloseTimeout = 10*time.Millisecond, 10*time.Millisecond // the slow one will not end in time
		messages, s := subscribe(t, brokers, cfg, topic)

		for done := 0; done < 8; { // all of key-0 and key-2
			msg := receive(t, messages)
			if msg.Metadata[MetadataKey] != "key-1" {
				msg.Ack()
				done++
				continue
			}
			require.Equal(t, "key-1/0", value(msg), "the next of a key before the answer to the one before")
			go func() {
				<-msg.Context().Done()
				msg.Nack()
			}()
		}
		awaitCommitted(t, brokers, cfg.Group, topic, 0, 1)
		require.NoError(t, s.Close())
		require.Equal(t, int64(1), committed(t, brokers, cfg.Group, topic, 0), "the last commit went past the slow one")

		messages, _ = subscribe(t, brokers, cfg, topic)
		var again []int64
		for range 11 {
			msg := receive(t, messages)
			again = append(again, record(t, msg).Offset)
			msg.Ack()
		}
		slices.Sort(again)
		require.Equal(t, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, again)
		awaitCommitted(t, brokers, cfg.Group, topic, 0, 12)
	})
}

func TestNackedRecordComesAgainBeforeTheNextOfItsKey(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 1, 2)...)
		cfg := testSubscriberConfig()
		messages, _ := subscribe(t, brokers, cfg, topic)
		first := receive(t, messages)
		require.Equal(t, 1, Attempt(first.Context()))
		first.Nack()
		for attempt := 2; attempt <= 4; attempt++ {
			again := receive(t, messages)
			require.Equal(t, "key-0/0", value(again))
			require.Equal(t, attempt, Attempt(again.Context()))
			require.Equal(t, first.UUID, again.UUID, "the id of a redelivery")
			if attempt < 4 {
				again.Nack()
			} else {
				again.Ack()
			}
		}
		next := receive(t, messages)
		require.Equal(t, "key-0/1", value(next))
		require.Equal(t, 1, Attempt(next.Context()), "the count is of the record")
		next.Ack()
	})
}

// TestBackoffHoldsTheKeyAndNoWorker: the backoff outlasts the test, and the only
// worker goes on with another key.
func TestBackoffHoldsTheKeyAndNoWorker(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 2, 3)...)
		cfg := testSubscriberConfig()
		cfg.WorkersPerPartition, cfg.MaxInFlight = 1, 1
		cfg.RedeliveryMin, cfg.RedeliveryMax = time.Hour, time.Hour
		messages, _ := subscribe(t, brokers, cfg, topic)
		failing := receive(t, messages)
		require.Equal(t, "key-0/0", value(failing))
		failing.Nack()
		for i := range 3 {
			msg := receive(t, messages)
			require.Equal(t, "key-1/"+strconv.Itoa(i), value(msg))
			msg.Ack()
		}
		// key-0/1 would be before this one, if it could come.
		produce(t, brokers, &kgo.Record{Topic: topic, Key: []byte("key-1"), Value: []byte("3")})
		msg := receive(t, messages)
		require.Equal(t, "key-1/3", value(msg))
		msg.Ack()
		require.Equal(t, int64(-1), committed(t, brokers, cfg.Group, topic, 0))
	})
}

func TestBackoffStaysInItsBounds(t *testing.T) {
	t.Parallel()
	const low, high = 10 * time.Millisecond, 70 * time.Millisecond
	for failures, ceiling := range []time.Duration{1: 20, 2: 40, 3: 70, 4: 70, 1000: 70} {
		if ceiling == 0 {
			continue
		}
		ceiling *= time.Millisecond
		longest := time.Duration(0)
		for range 2000 {
			pause := backoff(low, high, failures)
			require.GreaterOrEqual(t, pause, low)
			require.LessOrEqual(t, pause, ceiling, "after %d failures", failures)
			longest = max(longest, pause)
		}
		require.Greater(t, longest, low+(ceiling-low)/2, "after %d failures", failures)
	}
}

func TestRecordIsGivenUpAtItsLimit(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 1, 2)...)
		cfg := testSubscriberConfig()
		cfg.MaxDeliveries = 2
		given := make(chan int, 10)
		cfg.GiveUp = func(_ context.Context, r *kgo.Record, deliveries int) error {
			if string(r.Value) != "0" {
				return errors.New("the wrong record")
			}
			given <- deliveries
			if deliveries == 2 {
				return errors.New("nowhere to put it")
			}
			return nil
		}
		messages, _ := subscribe(t, brokers, cfg, topic)
		for attempt := 1; attempt <= 3; attempt++ {
			msg := receive(t, messages)
			require.Equal(t, "key-0/0", value(msg))
			require.Equal(t, attempt, Attempt(msg.Context()))
			require.Len(t, given, max(0, attempt-2), "given up before its limit")
			msg.Nack()
		}
		msg := receive(t, messages)
		require.Equal(t, "key-0/1", value(msg), "what was given up is done")
		require.Equal(t, 2, <-given)
		require.Equal(t, 3, <-given)
		require.Empty(t, given)
		msg.Ack()
		awaitCommitted(t, brokers, cfg.Group, topic, 0, 2)
	})
}
