package handlers

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
)

// simSaga is a process of the saga: the product's, and in place of its session with Kafka
// what that holds.
type simSaga struct {
	*Saga
	w *world
	p *pending
	// at is the offset that is fetched next, by partition that was begun.
	at map[int32]int64
	// doomed says that partitions were taken away since the last end of a transaction: the
	// session will abort the next one.
	doomed bool
	txn    *transaction
}

func (w *world) newSaga() *simSaga {
	return &simSaga{w: w, p: newPending(), at: map[int32]int64{},
		Saga: NewSaga(w.cfg, "saga", int32(len(w.log.partitions)), int32(len(w.log.changelog)), slog.New(slog.DiscardHandler))}
}

func oneOf(p int32) map[string][]int32 { return map[string][]int32{events.Topic: {p}} }

// take and lose are what a rebalance brings.
func (s *simSaga) take(p int32) { s.own(context.Background(), nil, oneOf(p)) }

func (s *simSaga) lose(p int32) {
	s.forget(context.Background(), nil, oneOf(p))
	delete(s.at, p)
	s.doomed = true
}

func (w *world) moveSagas() {
	p, to := w.IntN(len(w.sagaOf)), w.IntN(len(w.sagas))
	w.sagas[w.sagaOf[p]].lose(int32(p)) // at times it comes back at once
	w.sagas[to].take(int32(p))
	w.sagaOf[p] = to
}

// restart is that of the process, or of its session: all that is in memory is gone. An open
// transaction stays so until the broker aborts it.
func (s *simSaga) restart() {
	if s.txn != nil {
		s.w.orphans = append(s.w.orphans, s.txn)
	}
	owned := slices.Sorted(maps.Keys(s.owned))
	*s = *s.w.newSaga()
	for _, p := range owned {
		s.take(p)
	}
}

// finishOrphans has the broker abort what dead sagas left.
func (w *world) finishOrphans() bool {
	for _, t := range w.orphans {
		t.ended = true
	}
	defer func() { w.orphans = nil }()
	return len(w.orphans) > 0
}

func (w *world) stepSaga() { pick(w, w.sagas).step() }

// step is one step of Saga.session.
func (s *simSaga) step() {
	switch w := s.w; {
	case w.once(w.crash):
		s.restart()
	case s.txn != nil:
		s.end(!w.once(w.abort))
	default:
		if len(w.log.used) > 0 && w.IntN(8) > 0 {
			s.fetch(pick(w, w.log.used), 1+w.IntN(w.cfg.BatchRecords))
		} else {
			s.lookAtDeadlines()
		}
		if s.p.due(w.cfg, w.IntN(3) == 0) {
			s.begin()
		}
	}
}

// ready says whether the saga can go on with a partition of its own, and if it is a new
// one, restores its state, as memoryOf would.
func (s *simSaga) ready(p int32) bool {
	if !s.owned[p] {
		return false
	}
	if _, ok := s.at[p]; ok {
		return true
	}
	for _, other := range s.w.sagas {
		// The group tells no offset while a transaction on it is open that may be committed.
		if other.txn != nil && !other.doomed {
			if _, open := other.txn.offsets[p]; open {
				return false
			}
		}
	}
	if s.partitions[p] == nil {
		s.partitions[p] = s.w.restore(p)
	}
	s.at[p] = s.w.sagaAt[p]
	return true
}

// restore reads a partition's state from the changelog.
func (w *world) restore(p int32) *memory {
	m := newMemory()
	for _, r := range w.log.changelog[p%int32(len(w.log.changelog))] {
		if w.log.partitionOf(r, len(w.log.partitions)) != p {
			continue
		}
		if err := putState(m.jobs, r, events.SagaGroup); err != nil {
			violated("", "the saga's state cannot be restored: %v", err)
		}
	}
	m.order()
	return m
}

func (s *simSaga) fetch(p int32, n int) (moved bool) {
	if !s.ready(p) {
		return false
	}
	found, next := s.w.log.read(p, s.at[p], n)
	moved = next > s.at[p]
	s.at[p] = next
	if len(found) == 0 {
		return moved
	}
	var records []*kgo.Record
	for _, e := range found {
		records = append(records, e.record)
	}
	fetches := kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: events.Topic, Partitions: []kgo.FetchPartition{{Partition: p, Records: records}}}}}}
	if err := s.decide(context.Background(), fetches, s.p); err != nil {
		violated("", "the saga stops: %v", err)
	}
	return true
}

func (s *simSaga) lookAtDeadlines() {
	for _, p := range slices.Sorted(maps.Keys(s.owned)) {
		if !s.ready(p) {
			return
		}
	}
	read := func(p int32) (bool, error) {
		_, end := s.w.log.read(p, s.at[p], len(s.w.log.partitions[p]))
		return end == s.at[p] || s.w.once(0.5), nil // it may have grown since it was asked for
	}
	if err := s.tick(context.Background(), s.w.now, s.p, read); err != nil {
		violated("", "the saga stops: %v", err)
	}
}

// begin writes a transaction, and end ends it.
func (s *simSaga) begin() {
	records, err := s.records(s.p.changes)
	if err != nil {
		violated("", "the saga stops: %v", err)
	}
	t := &transaction{offsets: maps.Clone(s.at), changes: s.p.changes}
	for _, r := range records {
		switch r.Topic {
		case events.Topic:
			s.w.log.append(r, s.w.now, t)
		case events.SagaTopic:
			t.changelog = append(t.changelog, r)
		default:
			letter, err := events.DecodeLetter(r)
			if err != nil {
				panic(err)
			}
			t.letters = append(t.letters, letter)
		}
	}
	byKey(t.changelog)
	s.txn = t
}

func (s *simSaga) end(commit bool) {
	t := s.txn
	if commit && !s.doomed {
		s.w.log.commit(t)
		for p, next := range t.offsets {
			s.w.sagaAt[p] = next
		}
		for _, c := range t.changes {
			for id, job := range c.jobs {
				if job == nil {
					s.w.forgot[id] = true
				}
			}
		}
	}
	t.ended = true
	s.settle(t.changes, t.committed)
	if !t.committed {
		clear(s.at) // back to the committed offsets
	}
	s.p, s.txn, s.doomed = newPending(), nil, false
	if !commit {
		s.restart() // a broker refused: the session begins anew
	}
}

// finish does all there is to do.
func (s *simSaga) finish() (busy bool) {
	if s.txn != nil {
		s.end(true)
		busy = true
	}
	for _, p := range s.w.log.used {
		busy = s.fetch(p, 1000) || busy
	}
	if s.p.due(s.w.cfg, true) {
		s.begin()
		s.end(true)
		busy = true
	}
	return busy
}

// group is a consumer group of one operation, group.at its consumers by partition.
type group struct {
	operation string
	members   []*member
	at        []*consumer
}

// member is a process; what it knows of jobs is bounded, and lost with it.
type member struct {
	*group
	skew time.Duration
	jobs map[string]*events.Job
}

// consumer is a member's work at a partition.
type consumer struct {
	*member
	partition       int32
	next, committed int64
	tasks           []*task
}

// task is a request that waits for its outcome.
type task struct {
	*member
	entry
	started *events.Event
	// state is the job's, with the attempt in it.
	state *events.Job
}

func (w *world) newGroup(operation string, partitions int) *group {
	g := &group{operation: operation}
	for range 1 + w.IntN(3) {
		g.members = append(g.members, &member{group: g, skew: w.skew(), jobs: map[string]*events.Job{}})
	}
	for p := range partitions {
		g.at = append(g.at, &consumer{member: pick(w, g.members), partition: int32(p)})
	}
	return g
}

func wanted(e events.Event, operation string) bool {
	switch m := e.Message.(type) {
	case *events.JobRequested:
		return slices.ContainsFunc(m.GetOperations(), func(op *events.Operation) bool { return op.GetName() == operation })
	case *events.OperationRetryRequested:
		return slices.Contains(m.GetOperations(), operation)
	}
	return false
}

// fold keeps the states of jobs that ask for the operation.
func (m *member) fold(e events.Event) *events.Job {
	before, known := m.jobs[e.JobID]
	if !known && !wanted(e, m.operation) {
		return nil
	}
	after := events.Fold(before, e)
	m.jobs[e.JobID] = after
	return after
}

// work is a step of some worker.
func (w *world) work() {
	if len(w.zombies) > 0 && w.IntN(5) == 0 {
		i := w.IntN(len(w.zombies))
		if w.attempt(w.zombies[i]) || w.IntN(4) == 0 {
			w.zombies = slices.Delete(w.zombies, i, i+1)
		}
		return
	}
	if len(w.groups) == 0 || len(w.log.used) == 0 {
		return
	}
	g := pick(w, w.groups)
	c := g.at[pick(w, w.log.used)]
	switch {
	case w.once(w.crash):
		w.die(c.member)
	case w.once(w.rebalance):
		w.begone(c, true)
		c.member = pick(w, g.members)
	case w.once(w.forget) && len(c.jobs) > 0:
		delete(c.jobs, pick(w, w.wishes).id)
	case len(c.tasks) == 0 || w.IntN(3) == 0:
		w.notice(c, 1+w.IntN(10))
	default:
		w.workOne(c)
	}
	if w.IntN(4) == 0 {
		c.commit()
	}
}

// die ends a process: it knows nothing afterwards, and begins at what was committed.
func (w *world) die(m *member) {
	for _, c := range m.at {
		if c.member == m {
			w.begone(c, false)
		}
	}
	m.jobs = map[string]*events.Job{}
}

// begone takes a consumer's place from it. What it works at may go on beside its
// successor.
func (w *world) begone(c *consumer, alive bool) {
	for _, t := range c.tasks {
		if alive && t.started != nil {
			w.zombies = append(w.zombies, t)
		}
	}
	c.next, c.tasks = c.committed, nil
}

// notice reads ahead, of work and of all that is known of it.
func (w *world) notice(c *consumer, n int) (moved bool) {
	found, next := w.log.read(c.partition, c.next, n)
	moved, c.next = next > c.next, next
	for _, e := range found {
		if !e.known() {
			continue
		}
		c.fold(e.event)
		if wanted(e.event, c.operation) {
			c.tasks = append(c.tasks, &task{member: c.member, entry: e})
		}
	}
	return moved
}

// workOne works at one of the tasks: of a job, the first.
func (w *world) workOne(c *consumer) {
	i := w.IntN(len(c.tasks))
	t := c.tasks[slices.IndexFunc(c.tasks, func(t *task) bool { return t.event.JobID == c.tasks[i].event.JobID })]
	if w.attempt(t) { // unless the member died of it, and has no tasks
		c.tasks = slices.DeleteFunc(c.tasks, func(other *task) bool { return other == t })
	}
}

func (c *consumer) commit() {
	c.committed = c.next
	for _, t := range c.tasks {
		c.committed = min(c.committed, t.record.Offset)
	}
}

// attempt is a step of work: the begin of an attempt, or its end. It says whether the
// request is answered.
func (w *world) attempt(t *task) (done bool) {
	now := w.now.Add(t.skew)
	if t.started == nil {
		state := t.fold(t.event)
		decided, err := commands.Start{Cause: t.event, Operation: t.operation, MaxAttempts: w.maxStarts, Worker: "w", At: now}.Decide(state)
		if err != nil {
			violated(t.event.JobID, "a worker cannot begin: %v", err)
		}
		if len(decided) == 0 {
			return true
		}
		if _, ok := decided[0].Message.(*events.OperationStarted); !ok {
			return w.outcome(t, decided)
		}
		w.log.appendEvent(decided[0], w.now, nil)
		t.started, t.state = &decided[0], events.Fold(state, decided[0])
		t.fold(decided[0])
		return false
	}
	state, known := t.jobs[t.event.JobID]
	if !known {
		state = t.state
	}
	started := *t.started
	if w.IntN(10) == 0 && w.faulty { // it ends without a result: the child died, say
		t.started = nil
		return false
	}
	fail := func(kind events.FailureKind, code string) ([]events.Event, error) {
		return commands.Fail{Started: started, Kind: kind, Code: code, Message: code, At: now}.Decide(state)
	}
	var decided []events.Event
	var err error
	switch luck := w.luckOf(t.event.JobID); {
	case w.IntN(10) < luck:
		decided, err = commands.Complete{Started: started, Artifact: w.artifact(), CPUTime: w.span(time.Second), Engine: "e", At: now}.Decide(state)
	case w.IntN(3) == 0:
		decided, err = fail(events.FailureKind_FAILURE_KIND_INPUT, "corrupt")
	case w.IntN(2) == 0:
		decided, err = fail(events.FailureKind_FAILURE_KIND_WORLD, "source_missing")
	default:
		decided, err = commands.GiveUp{Cause: t.event, Operation: t.operation, Kind: events.FailureKind_FAILURE_KIND_INTERNAL, Code: events.CodePanic,
			Message: "it panicked", Source: "pixtools/" + t.operation, At: now}.Decide(state)
	}
	if err != nil {
		violated(t.event.JobID, "a worker cannot end: %v", err)
	}
	return w.outcome(t, decided)
}

func (w *world) luckOf(id string) int {
	for _, j := range w.wishes {
		if j.id == id {
			return j.luck
		}
	}
	return 10
}

func (w *world) artifact() *events.Artifact {
	sha := fmt.Sprintf("%016x", w.Uint64())
	if w.IntN(4) == 0 {
		sha = "dd" // the one that the corpus replaces
	}
	return &events.Artifact{Key: "processed/" + sha, Sha256: sha, Bytes: 1 + w.Int64N(1000), Width: 4, Height: 3, Format: "webp"}
}

// outcome puts what was decided into the log, before it a dead letter where nobody's
// picture is to blame. The worker may die between the two, and after.
func (w *world) outcome(t *task, decided []events.Event) (done bool) {
	for _, e := range decided {
		if f, ok := e.Message.(*events.OperationFailed); ok && f.GetKind() != events.FailureKind_FAILURE_KIND_INPUT {
			w.log.tell(events.NewDeadLetter(e.Time, e.Source, e.CorrelationID, &events.DeadLettered{Group: events.OperationGroup + t.operation,
				Origin: &events.Origin{Topic: events.Topic, Partition: t.record.Partition, Offset: t.record.Offset}, Type: t.event.Type(),
				JobId: e.JobID, Operation: f.GetOperation(), Revision: f.GetRevision(), Attempts: f.GetAttempt(), Kind: f.GetKind(), Code: f.GetCode()}))
		}
		if w.once(w.crash) {
			w.die(t.member)
			return true
		}
		w.sendAgain(w.log.appendEvent(e, w.now, nil))
		t.fold(e)
	}
	return true
}

// finishWork does all the work that there is.
func (w *world) finishWork() (busy bool) {
	for _, t := range w.zombies {
		for !w.attempt(t) {
		}
		busy = true
	}
	w.zombies = nil
	for _, g := range w.groups {
		for _, p := range w.log.used {
			c := g.at[p]
			busy = w.notice(c, 1000) || busy
			for len(c.tasks) > 0 {
				w.workOne(c)
			}
			c.commit()
		}
	}
	return busy
}

// simProjector keeps the read model: a table of states and offsets, which change together,
// and a cache in front of it.
type simProjector struct {
	next  []int64
	table map[string][]byte
	cache map[string]*events.Job
}

func newSimProjector(partitions int) simProjector {
	return simProjector{next: make([]int64, partitions), table: map[string][]byte{}, cache: map[string]*events.Job{}}
}

func (v *simProjector) job(id string) *events.Job {
	raw, ok := v.table[id]
	if !ok {
		return nil
	}
	job := &events.Job{}
	if err := proto.Unmarshal(raw, job); err != nil {
		panic(err)
	}
	return job
}

// project applies a batch. It may be lost before its commit, and its offsets after it: then
// what the table has in it is read again.
func (w *world) project() (moved bool) {
	v := &w.view
	next, changed := slices.Clone(v.next), map[string]*events.Job{}
	for _, p := range w.log.used {
		n := 1000
		if w.faulty {
			n = w.IntN(20)
		}
		var found []entry
		found, next[p] = w.log.read(p, v.next[p], n)
		moved = moved || next[p] > v.next[p]
		for _, e := range found {
			if !e.known() {
				continue
			}
			id := e.event.JobID
			before, ok := changed[id]
			if !ok {
				if before, ok = v.cache[id]; !ok {
					before = v.job(id)
				}
			}
			if after := events.Fold(before, e.event); after != before {
				changed[id] = after
			}
		}
	}
	if w.once(w.crash) {
		clear(v.cache)
		return true
	}
	for id, job := range changed {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(job)
		if err != nil {
			panic(err)
		}
		v.table[id], v.cache[id] = raw, job
	}
	if v.next = next; w.once(w.repeat/4) && len(w.log.used) > 0 {
		p := pick(w, w.log.used)
		v.next[p] = w.Int64N(v.next[p] + 1)
		clear(v.cache)
	}
	return moved
}
