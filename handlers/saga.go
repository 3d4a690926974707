// Package handlers holds what reacts to events with events: the saga that ends
// jobs.
package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// SagaConfig bounds the saga.
type SagaConfig struct {
	// BatchRecords is how many records at most one poll, and one transaction, takes in.
	// Beyond it: the rest comes next.
	BatchRecords int `env:"SAGA_BATCH_RECORDS" envDefault:"2000" range:"1 to 100000" unit:"records"`
	// CommitInterval is how long what was read may stay uncommitted while no job ends.
	// Beyond it: what was read is committed.
	CommitInterval time.Duration `env:"SAGA_COMMIT_INTERVAL" envDefault:"1s" range:"10ms to 1m"`
	// Remember is how long an ended job's state is kept after its end, in event
	// time. A second request under the same idempotency key that raced with the
	// first must find it; later ones are answered from the read model.
	// Beyond it: the job is forgotten; a repeat of all of it counts as new.
	Remember time.Duration `env:"SAGA_REMEMBER" envDefault:"168h" range:"1m or more"`
	// TransactionTimeout is when the broker aborts a transaction whose saga died.
	// Until then read_committed consumers of those partitions wait.
	TransactionTimeout time.Duration `env:"SAGA_TRANSACTION_TIMEOUT" envDefault:"10s" range:"1s to 10s"`
	// RestoreTimeout bounds reading one partition of the changelog.
	// Beyond it: the session begins anew.
	RestoreTimeout time.Duration `env:"SAGA_RESTORE_TIMEOUT" envDefault:"2m" range:"1s or more"`
	// RetryAfter is the pause after the saga lost its brokers or its transactional id.
	RetryAfter time.Duration `env:"SAGA_RETRY_AFTER" envDefault:"500ms" range:"10ms to 1m"`
	// JobDeadline bounds a job's revision, from its request to its end, waiting included.
	// Beyond it: what has no outcome: a dead letter and OperationFailed, `deadline`, kind INTERNAL.
	JobDeadline time.Duration `env:"JOB_DEADLINE" envDefault:"24h" range:"1s to 8760h"`
	// TickInterval is how often the saga looks for jobs that are past their deadline.
	TickInterval time.Duration `env:"SAGA_TICK_INTERVAL" envDefault:"10s" range:"10ms to 1h"`
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
	if c.JobDeadline < time.Second || c.JobDeadline > 365*24*time.Hour {
		faults = append(faults, fmt.Errorf("JOB_DEADLINE is %s: it must be from 1s to 8760h", c.JobDeadline))
	}
	if c.TickInterval < 10*time.Millisecond || c.TickInterval > time.Hour {
		faults = append(faults, fmt.Errorf("SAGA_TICK_INTERVAL is %s: it must be from 10ms to 1h", c.TickInterval))
	}
	return errors.Join(faults...)
}

// Saga folds every job's events and ends jobs that are settled. Its offsets, its
// JobFinalized events and its state (the changelog, events.SagaTopic) go in one
// Kafka transaction per batch: a read_committed consumer sees one JobFinalized per
// revision, whatever was killed, and nothing but Kafka is needed.
//
// It is also who ends jobs that nothing else would: those of a record that cannot be
// read, or that panics, which goes to the dead letter topic in the same transaction,
// and those that are open for longer than JobDeadline.
type Saga struct {
	cfg SagaConfig
	groupMember

	// mu guards partitions: the client's rebalance callback forgets partitions
	// while the loop works. What the loop then still does with a forgotten
	// partition is thrown away, since the session aborts a transaction during
	// which partitions were revoked.
	mu         sync.Mutex
	partitions map[int32]*memory
	// owned are the partitions assigned to us, in memory or not.
	owned map[int32]bool
	// read is how far they are read, those of which something came.
	read map[int32]int64
	// losses counts calls of forget and own: what was read before one may be out of date after it.
	losses int
}

// memory is the state of one partition's jobs.
type memory struct {
	jobs map[string]*events.Job
	// ended lists the ids of ended jobs, the longest ended first; open are the others'.
	ended []string
	open  map[string]struct{}
	// missed has the revisions of open jobs of which we told already that their deadline is
	// over. It is not in the changelog: after a restart we tell again, which changes nothing.
	missed map[string]int32
	// known is what the log tells already of what is still to be folded; nil after that.
	known *known
}

func newMemory() *memory {
	return &memory{jobs: map[string]*events.Job{}, open: map[string]struct{}{}, missed: map[string]int32{}}
}

// NewSaga makes a saga; opts must name the brokers. transactionalID is stable per
// instance on Kafka and fresh per process start on the embedded broker. The changelog
// has as many partitions as the log, or fewer.
func NewSaga(cfg SagaConfig, transactionalID string, logPartitions, changelogPartitions int32, log *slog.Logger, opts ...kgo.Opt) *Saga {
	return &Saga{cfg: cfg, groupMember: groupMember{name: "saga", group: events.SagaGroup, id: transactionalID, changelog: events.SagaTopic,
		transactionTimeout: cfg.TransactionTimeout, logPartitions: logPartitions, changelogPartitions: changelogPartitions, opts: opts, log: log},
		partitions: map[int32]*memory{}, owned: map[int32]bool{}, read: map[int32]int64{}}
}

// Run works until ctx is done. It outlives brokers and lost sessions.
func (s *Saga) Run(ctx context.Context) error {
	return s.run(ctx, s.cfg.RetryAfter, s.session)
}

// session runs until the client can no longer be used.
func (s *Saga) session(ctx context.Context) error {
	session, leave, err := s.join(s.own, s.forget)
	if err != nil {
		return err
	}
	defer leave()
	p := newPending()
	defer func() { finish(p.changes, errAborted) }()
	nextTick := time.Now().Add(s.cfg.TickInterval)
	for {
		limit := time.Until(nextTick)
		if p.records > 0 {
			limit = min(limit, s.cfg.CommitInterval)
		}
		fetches := s.poll(ctx, session, limit, s.cfg.BatchRecords)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return ctx.Err()
		}
		s.note(fetches)
		if err := s.decide(ctx, fetches, p); err != nil {
			return err
		}
		if now := time.Now(); !now.Before(nextTick) {
			read := func(partition int32) (bool, error) { return s.atEnd(ctx, session.Client(), partition) }
			if err := s.tick(ctx, now, p, read); err != nil {
				return err
			}
			nextTick = now.Add(s.cfg.TickInterval)
		}
		if !p.due(s.cfg, fetches.NumRecords() == 0) {
			continue
		}
		if err := s.commit(ctx, session, p.changes); err != nil {
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
	for _, c := range p.changes {
		if len(c.emitted)+len(c.letters) > 0 {
			return true
		}
	}
	if p.records == 0 {
		return false
	}
	return idle || p.records >= cfg.BatchRecords || time.Since(p.since) >= cfg.CommitInterval
}

// own takes partitions over, and forgets what it knows of them. They may have been away
// without a word: of losses that follow one another before a transaction's end, the session
// passes on the first only. And records that were polled before a loss are decided after it,
// which reads the state once more.
func (s *Saga) own(_ context.Context, _ *kgo.Client, added map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.losses++
	for _, p := range added[events.Topic] {
		s.owned[p] = true
		delete(s.partitions, p)
		delete(s.read, p)
	}
}

// note keeps how far our partitions are read.
func (s *Saga) note(fetches kgo.Fetches) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fetches.EachRecord(func(r *kgo.Record) {
		if s.owned[r.Partition] {
			s.read[r.Partition] = r.Offset + 1
		}
	})
}

// forget drops partitions that another saga may own now; nil means all.
func (s *Saga) forget(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.losses++
	if lost == nil {
		clear(s.partitions)
		clear(s.owned)
		clear(s.read)
	}
	for _, p := range lost[events.Topic] {
		delete(s.partitions, p)
		delete(s.owned, p)
		delete(s.read, p)
	}
}

// decide folds records.
func (s *Saga) decide(ctx context.Context, fetches kgo.Fetches, p *pending) error {
	var broken error
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		if broken != nil || len(f.Records) == 0 {
			return
		}
		c, err := s.changesOf(ctx, p, f.Partition, f.Records[0].Offset)
		if err != nil {
			broken = err
			return
		}
		for _, r := range f.Records {
			c.next = r.Offset + 1
			if r.Attrs.IsControl() {
				continue // worth no transaction: it is read again
			}
			s.apply(c, r)
			if p.records == 0 {
				p.since = time.Now()
			}
			p.records++
		}
	})
	return broken
}

// changesOf is what is pending of a partition; next is the offset to fold next, or -1 where
// the partition is read to its end.
func (s *Saga) changesOf(ctx context.Context, p *pending, partition int32, next int64) (*changeSet, error) {
	if c := p.changes[partition]; c != nil {
		return c, nil
	}
	memory, err := s.memoryOf(ctx, partition, next)
	if err != nil {
		return nil, fmt.Errorf("restore the saga's state of partition %d: %w", partition, err)
	}
	c := newChangeSet(memory)
	p.changes[partition] = c
	return c, nil
}

// tick ends revisions that are open for longer than JobDeadline. It looks into every
// partition that is ours: one whose jobs wait for a worker that is not there may get no
// record that would have its state read.
//
// A saga that was away reads what is long past: of that, nothing is late until all of it
// is read, which read says of a partition.
func (s *Saga) tick(ctx context.Context, now time.Time, p *pending, read func(partition int32) (bool, error)) error {
	s.mu.Lock()
	owned := slices.Sorted(maps.Keys(s.owned))
	s.mu.Unlock()
	for _, partition := range owned {
		if err := ctx.Err(); err != nil {
			return err
		}
		// One that was not folded yet may have been answered by others: only at its end is
		// there nothing to look for.
		if !s.remembers(partition) {
			if end, err := read(partition); err != nil || !end {
				continue
			}
		}
		memory, err := s.memoryOf(ctx, partition, -1)
		if err != nil {
			return fmt.Errorf("restore the saga's state of partition %d: %w", partition, err)
		}
		late := memory.openSince(now.Add(-s.cfg.JobDeadline))
		if len(late) == 0 {
			continue
		}
		if end, err := read(partition); err != nil || !end {
			s.log.Warn("jobs are over their deadline, and the log is not read to its end yet", "partition", partition, "jobs", len(late), "error", err)
			continue
		}
		c, err := s.changesOf(ctx, p, partition, -1)
		if err != nil {
			return err
		}
		for _, id := range late {
			s.log.WarnContext(telemetry.With(ctx, telemetry.About{JobID: id}), "a job is over its deadline: what it waits for is given up", "deadline", s.cfg.JobDeadline.String())
			guard(s.log, id, func() error { return c.miss(id, now, s.cfg.JobDeadline) })
		}
	}
	return nil
}

// atEnd says whether all of a partition is read that is committed.
func (s *Saga) atEnd(ctx context.Context, client *kgo.Client, partition int32) (bool, error) {
	s.mu.Lock()
	next, ok := s.read[partition]
	s.mu.Unlock()
	if !ok {
		next = client.CommittedOffsets()[events.Topic][partition].Offset
	}
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, events.Topic)
	if err != nil {
		return false, err
	}
	end, ok := ends.Lookup(events.Topic, partition)
	if !ok {
		return false, nil
	}
	return next >= end.Offset, end.Err
}

// commit writes what was decided, and the offsets of all that was read.
func (s *Saga) commit(ctx context.Context, session *kgo.GroupTransactSession, changes map[int32]*changeSet) error {
	records, err := s.records(changes)
	if err != nil {
		return err
	}
	if bug.On("saga-outside-transaction") {
		records = s.produceOutside(ctx, records)
	}
	committed, err := s.transact(ctx, session, records)
	if err != nil {
		return err
	}
	s.settle(changes, committed)
	return nil
}

// records are all that a transaction writes.
func (s *Saga) records(changes map[int32]*changeSet) (all []*kgo.Record, err error) {
	for _, partition := range slices.Sorted(maps.Keys(changes)) {
		c := changes[partition]
		c.expire(s.cfg.Remember)
		records, err := c.records(partition % s.changelogPartitions)
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
	}
	return all, nil
}

// settle brings what a transaction committed into the memory.
func (s *Saga) settle(changes map[int32]*changeSet, committed bool) {
	if !committed {
		// Our memory was not changed yet.
		transactionsAborted.Inc()
		finish(changes, errAborted)
		return
	}
	finish(changes, nil)
	for _, c := range changes {
		for _, outcome := range c.outcomes {
			jobsEnded.WithLabelValues(outcomeName(outcome)).Inc()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		c.commit()
	}
}

// apply folds one record and, if that settles its job, ends the job. What cannot be read,
// or panics, is a dead letter, and its job ends without it.
func (s *Saga) apply(c *changeSet, r *kgo.Record) {
	e, err := events.Decode(r)
	if errors.Is(err, events.ErrUnknownType) {
		return
	}
	if err != nil {
		s.log.ErrorContext(telemetry.OfKey(context.Background(), string(r.Key)), "a record cannot be read: to the dead letters", "partition", r.Partition, "offset", r.Offset, "error", err)
		guard(s.log, string(r.Key), func() error { return c.refuse(r, events.CodeUndecodable, err.Error(), "") })
		return
	}
	if _, ok := e.Message.(*events.OperationStarted); ok {
		return // says nothing of a job's end: not worth a state to keep
	}
	if e.Imported() {
		return // the end is told beside it; a retry later on tells the whole job
	}
	if fault := guard(s.log, e.JobID, func() error { return s.end(c, e, r) }); fault != nil {
		guard(s.log, e.JobID, func() error { return c.refuse(r, events.CodePanic, fault.message, fault.stack) })
	}
}

// end takes an event in, and tells of the ends that it is the cause of. Their span lasts until
// the transaction's end, and what follows from an end, such as a webhook, hangs below it.
func (s *Saga) end(c *changeSet, e events.Event, r *kgo.Record) error {
	begun := time.Now()
	before := len(c.emitted)
	ends, err := c.take(e)
	for _, end := range ends {
		ctx, span := telemetry.Process(context.Background(), "finalize", events.SagaGroup, e, r, begun)
		c.spans = append(c.spans, span)
		for i := range c.emitted[before:] {
			if told := &c.emitted[before+i]; told.ID == end.ID {
				if carried := telemetry.TraceParent(ctx); carried != "" {
					told.TraceParent = carried
				}
			}
		}
		outcome := end.Message.(*events.JobFinalized).GetOutcome()
		c.outcomes = append(c.outcomes, outcome)
		s.log.InfoContext(ctx, "job ended", "outcome", outcome.String())
	}
	return err
}

// memoryOf is the partition's state, read from the changelog the first time. By then the
// group has told us the committed offset, and it does so only once no transaction on it is
// open: what an earlier owner committed is all in the changelog, and what it did not commit
// we will be given again. next is the first offset that we were given, from which on we look
// what is answered already; -1: none.
func (s *Saga) memoryOf(ctx context.Context, partition int32, next int64) (*memory, error) {
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
		m = newMemory()
	}
	if next >= 0 {
		if m.known, err = s.look(ctx, partition, next); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Should the partition have been taken from us while we read, or before that and after
	// its records were polled, another saga may have gone on with it. This batch is thrown away then, and so is what we read: the
	// partition may come back.
	if losses == s.losses && s.owned[partition] {
		s.partitions[partition] = m
	}
	return m, nil
}

// remembers says whether a partition's state is in memory.
func (s *Saga) remembers(partition int32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.partitions[partition] != nil
}

// restore reads a partition's state from the changelog.
func (s *Saga) restore(ctx context.Context, partition int32) (*memory, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RestoreTimeout)
	defer cancel()
	m := newMemory()
	err := s.readChangelog(ctx, []int32{partition}, func(_ int32, r *kgo.Record) error { return putState(m.jobs, r, s.group) })
	if err != nil {
		return nil, err
	}
	m.order()
	return m, nil
}
