// Package handlers holds what reacts to events with events: the saga that ends
// jobs.
package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
)

// SagaConfig bounds the saga.
type SagaConfig struct {
	// BatchRecords is how many records at most one transaction takes in.
	BatchRecords int `env:"SAGA_BATCH_RECORDS" envDefault:"2000"`
	// CommitInterval is how long what was read may stay uncommitted while no job ends.
	CommitInterval time.Duration `env:"SAGA_COMMIT_INTERVAL" envDefault:"1s"`
	// Remember is how long an ended job's state is kept after its end, in event
	// time. A second request under the same idempotency key that raced with the
	// first must find it; later ones are answered from the read model.
	Remember time.Duration `env:"SAGA_REMEMBER" envDefault:"168h"`
	// TransactionTimeout is when the broker aborts a transaction whose saga died.
	// Until then read_committed consumers of those partitions wait.
	TransactionTimeout time.Duration `env:"SAGA_TRANSACTION_TIMEOUT" envDefault:"10s"`
	// RestoreTimeout bounds reading one partition of the changelog.
	RestoreTimeout time.Duration `env:"SAGA_RESTORE_TIMEOUT" envDefault:"2m"`
	// RetryAfter is the pause after the saga lost its brokers or its transactional id.
	RetryAfter time.Duration `env:"SAGA_RETRY_AFTER" envDefault:"500ms"`
}

// Validate names every value out of range.
func (c SagaConfig) Validate() error {
	var faults []error
	if c.BatchRecords < 1 || c.BatchRecords > 100_000 {
		faults = append(faults, fmt.Errorf("SAGA_BATCH_RECORDS is %d: it must be from 1 to 100000 records", c.BatchRecords))
	}
	if c.CommitInterval < 10*time.Millisecond || c.CommitInterval > time.Minute {
		faults = append(faults, fmt.Errorf("SAGA_COMMIT_INTERVAL is %s: it must be from 10ms to 1m", c.CommitInterval))
	}
	if c.Remember < time.Minute {
		faults = append(faults, fmt.Errorf("SAGA_REMEMBER is %s: it must be 1m or more", c.Remember))
	}
	if c.TransactionTimeout < time.Second || c.TransactionTimeout > 10*time.Second {
		faults = append(faults, fmt.Errorf("SAGA_TRANSACTION_TIMEOUT is %s: it must be from 1s to 10s", c.TransactionTimeout))
	}
	if c.RestoreTimeout < time.Second {
		faults = append(faults, fmt.Errorf("SAGA_RESTORE_TIMEOUT is %s: it must be 1s or more", c.RestoreTimeout))
	}
	if c.RetryAfter < 10*time.Millisecond || c.RetryAfter > time.Minute {
		faults = append(faults, fmt.Errorf("SAGA_RETRY_AFTER is %s: it must be from 10ms to 1m", c.RetryAfter))
	}
	return errors.Join(faults...)
}

// Saga folds every job's events and ends jobs that are settled. Its offsets, its
// JobFinalized events and its state (the changelog, events.SagaTopic) go in one
// Kafka transaction per batch: a read_committed consumer sees one JobFinalized per
// revision, whatever was killed, and nothing but Kafka is needed.
type Saga struct {
	cfg SagaConfig
	// opts reach the brokers; id is the transactional id.
	opts []kgo.Opt
	id   string
	// partitions of the log, and of the changelog: a partition of the log has its
	// state in the changelog's partition of that number, modulo.
	logPartitions, changelogPartitions int32
	log                                *slog.Logger

	// mu guards partitions: the client's rebalance callback forgets partitions
	// while the loop works. What the loop then still does with a forgotten
	// partition is thrown away, since the session aborts a transaction during
	// which partitions were revoked.
	mu         sync.Mutex
	partitions map[int32]*memory
	// losses counts calls of forget: what was read before one may be out of date after it.
	losses int
}

// memory is the state of one partition's jobs.
type memory struct {
	jobs map[string]*events.Job
	// ended lists the ids of ended jobs, the longest ended first.
	ended []string
}

// NewSaga makes a saga; opts must name the brokers. transactionalID is stable per
// instance on Kafka and fresh per process start on the embedded broker. The changelog
// has as many partitions as the log, or fewer.
func NewSaga(cfg SagaConfig, transactionalID string, logPartitions, changelogPartitions int32, log *slog.Logger, opts ...kgo.Opt) *Saga {
	return &Saga{cfg: cfg, opts: opts, id: transactionalID, logPartitions: logPartitions, changelogPartitions: changelogPartitions,
		log: log, partitions: map[int32]*memory{}}
}

// partitioner puts events where every Kafka client puts them, and the changelog's
// records where we say.
type partitioner struct{}

func (partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	if topic == events.SagaTopic {
		return kgo.ManualPartitioner().ForTopic(topic)
	}
	return kgo.StickyKeyPartitioner(nil).ForTopic(topic)
}

// Run works until ctx is done. It outlives brokers and lost sessions.
func (s *Saga) Run(ctx context.Context) error {
	for {
		err := s.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.log.Warn("saga session ended, beginning a new one", "error", err, "after", s.cfg.RetryAfter)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.cfg.RetryAfter):
		}
	}
}

// session runs until the client can no longer be used.
func (s *Saga) session(ctx context.Context) error {
	session, err := kgo.NewGroupTransactSession(append(slices.Clone(s.opts),
		kgo.TransactionalID(s.id),
		kgo.RecordPartitioner(partitioner{}),
		kgo.TransactionTimeout(s.cfg.TransactionTimeout),
		kgo.ConsumerGroup(events.SagaGroup),
		kgo.ConsumeTopics(events.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Without this, brokers of Kafka 4 were seen to stall a producer for five
		// seconds now and then just after a transaction's end.
		kgo.MetadataMinAge(250*time.Millisecond),
		kgo.OnPartitionsRevoked(s.forget),
		kgo.OnPartitionsLost(s.forget),
	)...)
	if err != nil {
		return err
	}
	defer session.Close()
	defer s.forget(ctx, nil, nil)
	p := newPending()
	for {
		fetches := s.poll(ctx, session, p.records > 0)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return ctx.Err()
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			if !errors.Is(err, context.DeadlineExceeded) { // poll's own
				s.log.Warn("saga cannot fetch", "topic", topic, "partition", partition, "error", err)
			}
		})
		if err := s.decide(ctx, fetches, p); err != nil {
			return err
		}
		if !p.due(s.cfg, fetches.NumRecords() == 0) {
			continue
		}
		if err := s.transact(ctx, session, p.changes); err != nil {
			return err
		}
		p = newPending()
	}
}

// pending is what was decided since the last transaction. A transaction costs more than
// all the rest, so it waits until a job ends: what only changes states, or nothing (starts,
// and our own ends come round), can be read again.
//
// Partitions may be taken away meanwhile. Then the session aborts the next transaction,
// and this is thrown away as a whole.
type pending struct {
	changes map[int32]*changeSet
	records int
	since   time.Time // when the first of them came
}

func newPending() *pending { return &pending{changes: map[int32]*changeSet{}} }

func (p *pending) due(cfg SagaConfig, idle bool) bool {
	if p.records == 0 {
		return false
	}
	for _, c := range p.changes {
		if len(c.emitted) > 0 {
			return true
		}
	}
	return idle || p.records >= cfg.BatchRecords || time.Since(p.since) >= cfg.CommitInterval
}

// poll waits for records, no longer than CommitInterval if there is something to commit.
func (s *Saga) poll(ctx context.Context, session *kgo.GroupTransactSession, bounded bool) kgo.Fetches {
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.CommitInterval)
		defer cancel()
	}
	return session.PollRecords(ctx, s.cfg.BatchRecords)
}

// forget drops partitions that another saga may own now; nil means all.
func (s *Saga) forget(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.losses++
	if lost == nil {
		clear(s.partitions)
	}
	for _, p := range lost[events.Topic] {
		delete(s.partitions, p)
	}
}

// decide folds records.
func (s *Saga) decide(ctx context.Context, fetches kgo.Fetches, p *pending) error {
	var broken error
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		if broken != nil || len(f.Records) == 0 {
			return
		}
		c := p.changes[f.Partition]
		if c == nil {
			memory, err := s.memoryOf(ctx, f.Partition)
			if err != nil {
				broken = fmt.Errorf("restore the saga's state of partition %d: %w", f.Partition, err)
				return
			}
			c = newChangeSet(memory)
			p.changes[f.Partition] = c
		}
		for _, r := range f.Records {
			s.apply(c, r)
		}
		if p.records == 0 {
			p.since = time.Now()
		}
		p.records += len(f.Records)
	})
	return broken
}

// transact writes what was decided, and the offsets of all that was read.
func (s *Saga) transact(ctx context.Context, session *kgo.GroupTransactSession, changes map[int32]*changeSet) error {
	if err := session.Begin(); err != nil {
		return fmt.Errorf("begin the saga's transaction: %w", err)
	}
	refused := make(chan error, 1)
	for partition, c := range changes {
		c.expire(s.cfg.Remember)
		records, err := c.records(partition % s.changelogPartitions)
		if err != nil {
			return err
		}
		for _, r := range records {
			if bug.On("saga-outside-transaction") && r.Topic == events.Topic {
				s.produceOutside(ctx, r)
				continue
			}
			session.Produce(ctx, r, func(_ *kgo.Record, err error) {
				if err != nil {
					select {
					case refused <- err:
					default:
					}
				}
			})
		}
	}
	// Before the end, since the end does not ask: it would commit the offsets without
	// what a broker refused.
	if err := session.Client().Flush(ctx); err != nil {
		return fmt.Errorf("produce in the saga's transaction: %w", err)
	}
	if len(refused) > 0 {
		_, err := session.End(ctx, kgo.TryAbort)
		return errors.Join(fmt.Errorf("produce in the saga's transaction: %w", <-refused), err)
	}
	committed, err := session.End(ctx, kgo.TryCommit)
	switch {
	case err != nil:
		return fmt.Errorf("end the saga's transaction: %w", err)
	case !committed:
		// A rebalance came first. The session goes back to the committed offsets;
		// our memory was not changed yet.
		s.log.Info("saga transaction aborted by a rebalance; its records will be read again")
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		c.commit()
	}
	return nil
}

// apply folds one record and, if that settles its job, ends the job.
func (s *Saga) apply(c *changeSet, r *kgo.Record) {
	e, err := events.Decode(r)
	if errors.Is(err, events.ErrUnknownType) {
		return
	}
	if err != nil {
		s.log.Error("saga passes over a record that is no event",
			"partition", r.Partition, "offset", r.Offset, "error", err)
		return
	}
	if _, ok := e.Message.(*events.OperationStarted); ok {
		return // says nothing of a job's end: not worth a state to keep
	}
	state := c.fold(e)
	// The event's own time, not a clock's: another run of the same log decides the same.
	ends, err := commands.Finalize{Cause: e, At: e.Time}.Decide(state)
	if err != nil {
		s.log.Error("saga cannot decide", "job", e.JobID, "error", err)
		return
	}
	for _, end := range ends {
		c.emitted = append(c.emitted, end)
		if bug.On("saga-emits-twice") {
			c.emitted = append(c.emitted, end)
		}
		c.fold(end)
		s.log.Info("job ended", "job", e.JobID, "request", e.CorrelationID,
			"outcome", end.Message.(*events.JobFinalized).GetOutcome().String())
	}
}

// memoryOf is the partition's state, read from the changelog the first time. By
// then the group has told us the committed offset, and it does so only once no
// transaction on it is open: what an earlier owner committed is all in the
// changelog, and what it did not commit we will be given again.
func (s *Saga) memoryOf(ctx context.Context, partition int32) (*memory, error) {
	s.mu.Lock()
	m, ok := s.partitions[partition]
	losses := s.losses
	s.mu.Unlock()
	if ok {
		return m, nil
	}
	m, err := s.restore(ctx, partition)
	if err != nil {
		return nil, err
	}
	if bug.On("saga-starts-empty") {
		m = &memory{jobs: map[string]*events.Job{}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Should the partition have been taken from us while we read, another saga may have
	// gone on with it. This batch is thrown away then, and so is what we read: the
	// partition may come back.
	if losses == s.losses {
		s.partitions[partition] = m
	}
	return m, nil
}

// fenceKey is the key of records that mark an end to read up to; they hold no state.
const fenceKey = "restored"

// restore reads a partition of the changelog to its end. Where that is, no offset
// tells: the last records may be aborted ones, which are never delivered, or have
// been compacted away. So we append a record and read until it comes.
func (s *Saga) restore(ctx context.Context, partition int32) (*memory, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RestoreTimeout)
	defer cancel()
	changelog := partition % s.changelogPartitions
	client, err := kgo.NewClient(append(slices.Clone(s.opts),
		kgo.RecordPartitioner(partitioner{}),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{events.SagaTopic: {changelog: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	fence := &kgo.Record{Topic: events.SagaTopic, Partition: changelog, Key: []byte(fenceKey), Value: []byte{}}
	if err := client.ProduceSync(ctx, fence).FirstErr(); err != nil {
		return nil, fmt.Errorf("append the fence: %w", err)
	}
	m := &memory{jobs: map[string]*events.Job{}}
	place := kgo.StickyKeyPartitioner(nil).ForTopic(events.Topic)
	for next := int64(0); next <= fence.Offset; {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			mine := int32(place.Partition(r, int(s.logPartitions))) == partition
			if err == nil && mine && string(r.Key) != fenceKey {
				err = m.put(r)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	m.order()
	return m, nil
}
