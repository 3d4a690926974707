package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// pollRecords is how many records one poll takes at most, and so how far the
	// limits of a partition may be overshot.
	pollRecords = 256

	// leaveTimeout bounds telling the group that a member goes. If it fails the group
	// finds out after the session timeout.
	leaveTimeout = 5 * time.Second

	// cancelGrace is how long handlers are waited for after they were cancelled.
	cancelGrace = 2 * time.Second
)

// Subscriber reads topics as a consumer group. See the package's documentation.
type Subscriber struct {
	cfg    Config
	subCfg SubscriberConfig
	log    *slog.Logger

	ctx   context.Context // ends when closing begins
	close context.CancelFunc

	mu            sync.Mutex // guards closed, and subscriptions against its Wait
	closed        bool
	subscriptions sync.WaitGroup
	members       []*kgo.Client // of the subscriptions
}

// NewSubscriber connects to nothing yet.
func NewSubscriber(cfg Config, sub SubscriberConfig, log *slog.Logger) (*Subscriber, error) {
	if err := errors.Join(cfg.Validate(), sub.Validate()); err != nil {
		return nil, err
	}
	s := &Subscriber{cfg: cfg, subCfg: sub, log: log.With("group", sub.Group)}
	s.ctx, s.close = context.WithCancel(context.Background())
	return s, nil
}

// Subscribe joins the group as one more member, for this topic. A partition without a
// committed offset is read from its start.
//
// When ctx ends, the messages' contexts end at once and the subscription closes its
// channel when handlers have answered, or after CloseTimeout and a little. Close is gentler: it lets handlers finish first.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	sub := &subscription{
		cfg: s.subCfg, shared: s.cfg, topic: topic, log: s.log.With("topic", topic), ctx: ctx,
		out:        make(chan *message.Message),
		slots:      make(chan struct{}, s.subCfg.MaxInFlight),
		gone:       make(chan struct{}),
		partitions: map[int32]*partition{}, overdue: map[int32]<-chan struct{}{},
	}
	var err error
	if sub.client, err = NewClient(s.cfg, s.log, sub.options()...); err != nil {
		return nil, err
	}
	s.members = append(s.members, sub.client)
	s.subscriptions.Go(func() { sub.run(s.ctx) })
	return sub.out, nil
}

// Close stops reading, lets handlers finish within CloseTimeout, cancels those that
// did not, commits what is done and leaves the group. It returns when every channel
// is closed; a second call waits for the same.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.close()
	s.subscriptions.Wait()
	return nil
}

// subscription is one member of the group.
type subscription struct {
	cfg    SubscriberConfig
	shared Config
	topic  string
	log    *slog.Logger
	ctx    context.Context // the subscriber's user's; parent of all messages' contexts
	client *kgo.Client

	out     chan *message.Message
	slots   chan struct{} // one per message in a handler
	gone    chan struct{} // closed when nobody waits for handlers any more
	workers sync.WaitGroup

	mu         sync.Mutex
	closing    bool
	partitions map[int32]*partition
	overdue    map[int32]<-chan struct{} // idle channels of partitions given up with handlers still busy
}

// options: kgo runs the rebalance callbacks only between AllowRebalance and the next
// poll that returns something. So they never interleave with add: a record is added
// to the partition it was fetched for, or, if that was revoked meanwhile, never polled.
func (s *subscription) options() []kgo.Opt {
	c := &s.cfg
	return append([]kgo.Opt{
		kgo.ConsumerGroup(c.Group),
		kgo.ConsumeTopics(s.topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(c.Isolation),
		kgo.SessionTimeout(c.SessionTimeout),
		kgo.HeartbeatInterval(c.HeartbeatInterval),
		kgo.RebalanceTimeout(c.RebalanceTimeout),
		kgo.BlockRebalanceOnPoll(),
		kgo.AutoCommitMarks(),
		kgo.AutoCommitInterval(c.CommitInterval),
		kgo.AutoCommitCallback(s.committed),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.lost),
	}, c.ClientOpts...)
}

// run polls until closing, or until the user's context ends.
func (s *subscription) run(closing context.Context) {
	polling, stop := context.WithCancel(closing)
	defer stop()
	defer context.AfterFunc(s.ctx, stop)()
	for polling.Err() == nil {
		fetches := s.client.PollRecords(polling, pollRecords)
		if polling.Err() == nil {
			s.take(fetches)
		}
		s.client.AllowRebalance()
	}
	s.shutdown()
}

func (s *subscription) take(fetches kgo.Fetches) {
	fetches.EachError(func(_ string, partition int32, err error) {
		// The client goes on by itself; what it cannot mend is for an operator.
		s.log.Error("reading failed, trying again", "partition", partition, "err", err)
	})
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		if len(f.Records) == 0 {
			return
		}
		if p := s.of(f.Partition, f.Records); p.isStarted() || !s.rewind(f.Partition, f.Records[0].Offset) {
			p.add(f.Records)
		}
	})
}

// of finds the partition, or begins a new life of it if the log was cut back: what is
// in work then belongs to records that no longer exist.
func (s *subscription) of(number int32, records []*kgo.Record) *partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.partitions[number]
	if p == nil {
		panic(fmt.Sprintf("kafka: records of %s-%d, which is not assigned", s.topic, number))
	}
	if p.behind(records) {
		s.log.Error("the log was cut back: records were lost or the topic was made anew",
			"partition", number, "offset", records[0].Offset)
		p.stopTaking()
		p.seal()
		s.forget(p)
		p = s.begin(number)
	}
	return p
}

// rewind takes the group's position back to the first record of a life, if the log was
// cut back below it. Marks only move forward: kgo would ignore those of all records up
// to the old position, and whoever starts there would never see what is open of them.
// The records are dropped then; they come again, and are looked at again, as a commit
// that was under way may have restored the old position.
func (s *subscription) rewind(number int32, first int64) bool {
	position := max(s.client.CommittedOffsets()[s.topic][number].Offset, s.client.MarkedOffsets()[s.topic][number].Offset)
	if position <= first {
		return false
	}
	s.log.Error("the group's position is past records that were just read: it goes back",
		"partition", number, "position", position, "offset", first)
	back := map[string]map[int32]kgo.EpochOffset{s.topic: {number: {Epoch: -1, Offset: first}}}
	s.client.SetOffsets(back)
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	s.client.CommitOffsetsSync(ctx, back, s.committed)
	return true
}

// begin and forget keep the book of partitions. s.mu is held.
func (s *subscription) begin(number int32) *partition {
	p := newPartition(s, number, s.overdue[number])
	delete(s.overdue, number)
	if s.closing {
		p.stopTaking()
	}
	s.partitions[number] = p
	return p
}

func (s *subscription) forget(p *partition) {
	delete(s.partitions, p.number)
	select {
	case <-p.idle:
	default:
		s.overdue[p.number] = p.idle
	}
}

func (s *subscription) assigned(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, number := range topics[s.topic] {
		s.begin(number)
	}
}

func (s *subscription) revoked(ctx context.Context, _ *kgo.Client, topics map[string][]int32) {
	released := s.release(topics[s.topic], s.cfg.DrainTimeout)
	if len(released) == 0 {
		return
	}
	s.commit(ctx)
	s.tellReleased(released)
}

func (s *subscription) lost(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
	s.tellReleased(s.release(topics[s.topic], 0)) // somebody else has them already
}

// release ends the given partitions: no delivery, handlers may finish within drain,
// those that did not are cancelled and may answer within cancelGrace, then no ack
// counts. Meanwhile the group waits for us, and other partitions go on with what was
// read of them.
func (s *subscription) release(numbers []int32, drain time.Duration) []*partition {
	var leaving []*partition
	s.mu.Lock()
	for _, number := range numbers {
		if p := s.partitions[number]; p != nil {
			leaving = append(leaving, p)
		}
	}
	s.mu.Unlock()
	for _, p := range leaving {
		p.stopTaking()
	}
	s.end(leaving, drain)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range leaving {
		p.seal()
		s.forget(p)
	}
	return leaving
}

// end lets handlers finish, then cancels them.
func (s *subscription) end(partitions []*partition, drain time.Duration) {
	if drain > 0 && s.wait(partitions, drain) {
		return
	}
	for _, p := range partitions {
		p.cancel()
	}
	s.wait(partitions, cancelGrace)
}

// wait says whether all partitions fell idle in time. What is sealed was waited for.
func (s *subscription) wait(partitions []*partition, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, p := range partitions {
		if p.isSealed() {
			continue
		}
		select {
		case <-p.idle:
		case <-timer.C:
			s.log.Warn("handlers did not end in time", "partition", p.number, "waited", limit)
			return false
		}
	}
	return true
}

func (s *subscription) commit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := s.client.CommitMarkedOffsets(ctx); err != nil {
		s.log.Warn("last commit before a hand-over failed, records will be delivered again", "err", err)
	}
}

func (s *subscription) committed(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, _ *kmsg.OffsetCommitResponse, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Warn("commit failed, the next one includes it", "err", err)
	}
}

func (s *subscription) tellReleased(partitions []*partition) {
	if s.cfg.Released == nil {
		return
	}
	for _, p := range partitions {
		s.cfg.Released(s.topic, p.number)
	}
}

// shutdown runs after the last poll. A rebalance may still take partitions away
// beside it; then release finds them halted already and commits them.
func (s *subscription) shutdown() {
	s.mu.Lock()
	s.closing = true
	var all []*partition
	for _, p := range s.partitions {
		all = append(all, p)
	}
	s.mu.Unlock()
	for _, p := range all {
		p.stopTaking()
	}
	s.end(all, s.cfg.CloseTimeout)
	for _, p := range all {
		p.seal()
	}
	s.commit(context.Background())
	s.leave()
	close(s.gone)
	s.workers.Wait()
	close(s.out)
}

// leave runs the revoke callback for all partitions, which are idle or sealed.
func (s *subscription) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := s.client.LeaveGroupContext(ctx); err != nil {
		s.log.Warn("could not tell the group that this member leaves", "err", err)
	}
	s.client.CloseAllowingRebalance()
}

// deliver hands a record to a handler and waits for its answer.
func (s *subscription) deliver(p *partition, r *kgo.Record, attempt int) outcome {
	ctx, cancel := context.WithCancel(p.handling)
	defer cancel()
	msg := newMessage(ctx, r, attempt)
	select {
	case s.out <- msg:
	case <-p.taking.Done():
		return abandoned
	}
	select {
	case <-msg.Acked():
		return acked
	case <-msg.Nacked():
		return nacked
	case <-s.gone:
		return abandoned
	}
}
