package kafka

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// book notes what the handlers of a whole group do.
type book struct {
	mu        sync.Mutex
	busy      map[string]string   // key: the member that has it in work
	delivered map[string][]string // value: to whom
	acked     map[string]int
	released  map[string]bool // member and partition
	wrong     []string
}

func newBook() *book {
	return &book{busy: map[string]string{}, delivered: map[string][]string{}, acked: map[string]int{}, released: map[string]bool{}}
}

func (b *book) begin(member string, msg *message.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := msg.Metadata[MetadataKey]
	if other := b.busy[key]; other != "" {
		b.wrong = append(b.wrong, fmt.Sprintf("%s came to %s while %s had its key", value(msg), member, other))
	}
	b.busy[key] = member
	b.delivered[value(msg)] = append(b.delivered[value(msg)], member)
}

// end is to be called before the answer, after which the key may be elsewhere.
func (b *book) end(msg *message.Message, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.busy, msg.Metadata[MetadataKey])
	if done {
		b.acked[value(msg)]++
	}
}

func (b *book) hasReleased(member string, partition int32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.released[fmt.Sprintf("%s %d", member, partition)]
}

func (b *book) ackedRecords() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.acked)
}

// release is the Released hook of a member: its handlers have ended by then, and nobody
// else has begun.
func (b *book) release(member string, partitions, keys int) func(string, int32) {
	return func(_ string, partition int32) {
		b.mu.Lock()
		defer b.mu.Unlock()
		for k := int(partition); k < keys; k += partitions {
			if who := b.busy["key-"+strconv.Itoa(k)]; who != "" {
				b.wrong = append(b.wrong, fmt.Sprintf("%s released %d with key-%d in work at %s", member, partition, k, who))
			}
		}
		place := fmt.Sprintf("%s %d", member, partition)
		if b.released[place] {
			b.wrong = append(b.wrong, place+" was released twice")
		}
		b.released[place] = true
	}
}

// TestHandOver: a second member joins while handlers of both partitions are at work.
// Those of the partition that goes are cancelled and either finish or do not; those
// of the one that stays notice nothing.
func TestHandOver(t *testing.T) {
	for name, finish := range map[string]bool{"handlers finish": true, "handlers stop": false} {
		t.Run(name, func(t *testing.T) {
			eachBroker(t, func(t *testing.T, brokers []string) { handOver(t, brokers, finish) })
		})
	}
}

func handOver(t *testing.T, brokers []string, finish bool) {
	const partitions, keys, each, holdAt = 2, 8, 6, "3"
	topic := newTopic(t, brokers, partitions)
	produce(t, brokers, keyed(topic, partitions, keys, each)...)
	var (
		b        = newBook()
		held     atomic.Int32
		moved    atomic.Int32
		carryOn  = make(chan struct{})
		handlers sync.WaitGroup
	)
	moved.Store(-1)
	first := func(msg *message.Message) {
		b.begin("first", msg)
		done := true
		if string(msg.Payload) == holdAt {
			partition := record(t, msg).Partition
			held.Add(1)
			select {
			case <-msg.Context().Done():
				moved.Store(partition)
				done = finish
			case <-carryOn:
			}
		}
		b.end(msg, done)
		if done {
			msg.Ack()
		} else {
			msg.Nack()
		}
	}
	var early atomic.Bool
	second := func(msg *message.Message) {
		b.begin("second", msg)
		if !b.hasReleased("first", record(t, msg).Partition) {
			early.Store(true)
		}
		b.end(msg, true)
		msg.Ack()
	}
	cfg := testSubscriberConfig()
	cfg.DrainTimeout = 50 * time.Millisecond // the held ones are not done by then
	member := func(name string, handle func(*message.Message)) *Subscriber {
		cfg := cfg
		cfg.Released = b.release(name, partitions, keys)
		messages, s := subscribe(t, brokers, cfg, topic)
		handlers.Go(func() {
			for msg := range messages {
				handlers.Go(func() { handle(msg) })
			}
		})
		return s
	}
	one := member("first", first)
	eventually(t, func() bool { return held.Load() == keys }, "not all keys are in work")
	two := member("second", second)

	// 4 of each key before the held ones, and all of the partition that moved.
	const before, all = keys * 3, keys * each
	want := before + keys/partitions*(each-3)
	eventually(t, func() bool { return b.ackedRecords() == want }, "the second member did not finish what it got")
	require.NotEqual(t, int32(-1), moved.Load())
	close(carryOn)
	eventually(t, func() bool { return b.ackedRecords() == all }, "the first member did not finish what it kept")
	require.NoError(t, one.Close())
	require.NoError(t, two.Close())
	handlers.Wait()

	require.Empty(t, b.wrong)
	require.False(t, early.Load(), "delivered to the second before the first released it")
	for r := range all {
		key, i := r%keys, r/keys
		name := fmt.Sprintf("key-%d/%d", key, i)
		require.Equal(t, 1, b.acked[name], name)
		to := []string{"first"}
		if int32(key%partitions) == moved.Load() {
			switch {
			case i == 3 && !finish:
				to = []string{"first", "second"}
			case i > 3:
				to = []string{"second"}
			}
		}
		require.Equal(t, to, b.delivered[name], name)
	}
	for partition := range int32(partitions) {
		require.Equal(t, int64(all/partitions), committed(t, brokers, cfg.Group, topic, partition))
	}
}

// TestHandOverLetsHandlersFinish: with time to spare nobody is cancelled, and nothing is
// done twice.
func TestHandOverLetsHandlersFinish(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 2)
		produce(t, brokers, keyed(topic, 2, 2, 2)...)
		cfg := testSubscriberConfig()
		cfg.DrainTimeout, cfg.RebalanceTimeout = 30*time.Second, time.Minute
		messages, _ := subscribe(t, brokers, cfg, topic)
		one, other := receive(t, messages), receive(t, messages)
		elsewhere, _ := subscribe(t, brokers, cfg, topic)
		eventually(t, func() bool { return members(t, brokers, cfg.Group) == 2 }, "the second member did not join")
		for _, msg := range []*message.Message{one, other} {
			require.NoError(t, msg.Context().Err())
			msg.Ack()
		}
		// Each goes on where it is now.
		rest := map[string]bool{}
		for range 2 {
			select {
			case msg := <-messages:
				rest[value(msg)] = true
				msg.Ack()
			case msg := <-elsewhere:
				rest[value(msg)] = true
				msg.Ack()
			case <-time.After(deadline):
				t.Fatal("no message")
			}
		}
		require.Equal(t, map[string]bool{one.Metadata[MetadataKey] + "/1": true, other.Metadata[MetadataKey] + "/1": true}, rest)
	})
}

// seen counts what a member reads, by Filter.
type seen struct {
	mu      sync.Mutex
	records map[string]int
}

func (s *seen) filter(r *kgo.Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == nil {
		s.records = map[string]int{}
	}
	s.records[string(r.Key)+"/"+string(r.Value)]++
	return true
}

func (s *seen) await(t *testing.T, value string, times int) {
	t.Helper()
	eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.records[value] == times
	}, "%s was not read %d times", value, times)
}

// TestLateAnswerToAPartitionThatCameBack: a handler ignores that its partition went,
// to another member and back. Its key is held until it answers, and its answer does
// not count.
func TestLateAnswerToAPartitionThatCameBack(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 2)
		produce(t, brokers, keyed(topic, 2, 2, 3)...)
		var read seen
		cfg := testSubscriberConfig()
		cfg.DrainTimeout = 20 * time.Millisecond
		cfg.Filter = read.filter
		messages, _ := subscribe(t, brokers, cfg, topic)
		stuck, other := receive(t, messages), receive(t, messages)

		cfg.Filter = nil
		elsewhere, second := subscribe(t, brokers, cfg, topic)
		msg := receive(t, elsewhere)
		if msg.Metadata[MetadataKey] == other.Metadata[MetadataKey] {
			stuck, other = other, stuck
		}
		require.Equal(t, value(stuck), value(msg))
		require.Error(t, stuck.Context().Err(), "the handler was not told")
		require.NoError(t, other.Context().Err(), "the partition that stayed was disturbed")
		msg.Nack()
		require.NoError(t, second.Close())

		read.await(t, value(stuck), 2)
		other.Ack()
		next := receive(t, messages) // the one of stuck would be before it
		require.Equal(t, other.Metadata[MetadataKey], next.Metadata[MetadataKey], "the key was in work twice")

		stuck.Ack()
		again := receive(t, messages)
		require.Equal(t, value(stuck), value(again))
		next.Ack()
		// The commit that has this one has all that counts.
		awaitCommitted(t, brokers, cfg.Group, topic, record(t, next).Partition, 2)
		require.Equal(t, int64(-1), committed(t, brokers, cfg.Group, topic, record(t, stuck).Partition), "the late answer counted")
		again.Ack()
		awaitCommitted(t, brokers, cfg.Group, topic, record(t, stuck).Partition, 1)
		receive(t, messages).Ack()
		receive(t, messages).Ack()
	})
}

// kick makes the group forget its only member, as if it had not been heard of.
func kick(t *testing.T, brokers []string, group string) {
	t.Helper()
	client := newClient(t, brokers)
	groups, err := kadm.NewClient(client).DescribeGroups(within1(t), group)
	require.NoError(t, err)
	require.Len(t, groups[group].Members, 1)
	member := kmsg.NewLeaveGroupRequestMember()
	member.MemberID = groups[group].Members[0].MemberID
	request := kmsg.NewPtrLeaveGroupRequest()
	request.Group, request.Members = group, append(request.Members, member)
	response, err := request.RequestWith(within1(t), client)
	require.NoError(t, err)
	require.Zero(t, response.ErrorCode)
	require.Zero(t, response.Members[0].ErrorCode)
}

// TestLostPartitions: the group threw the member out, so somebody else may have its
// partitions already. One handler answers when it is told, the other late; neither
// answer may be committed.
func TestLostPartitions(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 2)
		produce(t, brokers, keyed(topic, 2, 2, 3)...)
		var (
			read     seen
			released atomic.Int32
		)
		cfg := testSubscriberConfig()
		cfg.Filter = read.filter
		cfg.Released = func(string, int32) { released.Add(1) }
		cfg.DrainTimeout = 20 * time.Millisecond
		messages, _ := subscribe(t, brokers, cfg, topic)
		prompt, late := receive(t, messages), receive(t, messages)

		kick(t, brokers, cfg.Group)
		awaitCancelled(t, prompt)
		awaitCancelled(t, late)
		prompt.Ack()
		again := receive(t, messages) // the member joined again
		require.Equal(t, value(prompt), value(again))
		require.Equal(t, 1, Attempt(again.Context()))
		require.Equal(t, int32(2), released.Load())
		read.await(t, value(late), 2)

		late.Ack()
		lateAgain := receive(t, messages)
		require.Equal(t, value(late), value(lateAgain), "the key was in work twice")
		again.Ack()
		require.Equal(t, prompt.Metadata[MetadataKey]+"/1", value(receive(t, messages)))
		awaitCommitted(t, brokers, cfg.Group, topic, record(t, again).Partition, 1)
		require.Equal(t, int64(-1), committed(t, brokers, cfg.Group, topic, record(t, late).Partition), "the late answer counted")
		lateAgain.Ack()
		require.Equal(t, late.Metadata[MetadataKey]+"/1", value(receive(t, messages)))
		awaitCommitted(t, brokers, cfg.Group, topic, record(t, late).Partition, 1)
	})
}

func members(t *testing.T, brokers []string, group string) int {
	t.Helper()
	groups, err := kadm.NewClient(newClient(t, brokers)).DescribeGroups(within1(t), group)
	require.NoError(t, err)
	return len(groups[group].Members)
}

func TestCloseLetsHandlersFinish(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic, idle := newTopic(t, brokers, 1), newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 4, 1)...)
		cfg := testSubscriberConfig()
		cfg.CommitInterval = time.Minute // so it is Close that commits
		cfg.CloseTimeout = 20 * time.Second
		cfg.RebalanceTimeout = 30 * time.Second
		var released atomic.Int32
		cfg.Released = func(name string, _ int32) {
			if name == topic {
				released.Add(1)
			}
		}
		messages, s := subscribe(t, brokers, cfg, topic)
		nothing, err := s.Subscribe(t.Context(), idle)
		require.NoError(t, err)
		var held []*message.Message
		for range 4 {
			held = append(held, receive(t, messages))
		}

		var answered atomic.Bool
		closed := make(chan bool, 2)
		for range 2 {
			go func() {
				_ = s.Close()
				closed <- answered.Load()
			}()
		}
		// The other subscription, without handlers, is through: Close is well under way.
		select {
		case _, open := <-nothing:
			require.False(t, open)
		case <-time.After(deadline):
			t.Fatal("the idle subscription did not close")
		}
		_, err = s.Subscribe(t.Context(), idle)
		require.ErrorIs(t, err, ErrClosed)
		for _, msg := range held {
			require.NoError(t, msg.Context().Err(), "a handler was cancelled")
		}
		require.Zero(t, released.Load(), "released with handlers at work")
		answered.Store(true)
		for _, msg := range held {
			msg.Ack()
		}
		for range 2 {
			select {
			case afterwards := <-closed:
				require.True(t, afterwards, "Close did not wait for handlers")
			case <-time.After(deadline):
				t.Fatal("Close did not return")
			}
		}
		_, open := <-messages
		require.False(t, open)
		require.Equal(t, int32(1), released.Load())
		require.Zero(t, members(t, brokers, cfg.Group), "the member did not leave")
		require.Equal(t, int64(4), committed(t, brokers, cfg.Group, topic, 0))
	})
}

// TestCloseCancelsHandlersThatDoNotFinish, after CloseTimeout. An answer still counts
// then, but nothing more is delivered.
func TestCloseCancelsHandlersThatDoNotFinish(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		const keys = 16
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, keys, 2)...)
		cfg := testSubscriberConfig()
		cfg.WorkersPerPartition = keys
		cfg.CloseTimeout = 10 * time.Millisecond
		messages, s := subscribe(t, brokers, cfg, topic)
		var deaf *message.Message
		for range keys {
			msg := receive(t, messages)
			if record(t, msg).Offset == keys-1 {
				deaf = msg
				continue
			}
			go func() {
				<-msg.Context().Done()
				msg.Ack()
			}()
		}
		more := make(chan int, 1)
		go func() {
			n := 0
			for msg := range messages {
				msg.Nack()
				n++
			}
			more <- n
		}()
		require.NoError(t, answer(t, s.Close))
		require.Zero(t, <-more, "delivered after it stopped taking")
		require.Error(t, deaf.Context().Err())
		require.Equal(t, int64(keys-1), committed(t, brokers, cfg.Group, topic, 0))
		deaf.Ack() // nobody minds
	})
}

// TestSubscriptionEndsWithItsContext, while the subscriber goes on.
func TestSubscriptionEndsWithItsContext(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		produce(t, brokers, keyed(topic, 1, 1, 2)...)
		cfg := testSubscriberConfig()
		cfg.CloseTimeout = 20 * time.Second
		cfg.RebalanceTimeout = 30 * time.Second
		s := newSubscriber(t, brokers, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		messages, err := s.Subscribe(ctx, topic)
		require.NoError(t, err)
		msg := receive(t, messages)
		cancel()
		awaitCancelled(t, msg)
		msg.Ack()
		eventually(t, func() bool {
			select {
			case msg, open := <-messages:
				if open {
					msg.Nack() // it came with the Ack
				}
				return !open
			default:
				return false
			}
		}, "the channel did not close")
		next, err := s.Subscribe(t.Context(), topic)
		require.NoError(t, err)
		msg = receive(t, next)
		require.Equal(t, "key-0/1", value(msg), "the answer counted")
		msg.Ack()
	})
}
