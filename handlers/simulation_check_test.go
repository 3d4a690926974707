package handlers

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// check says what must hold once all have come to rest.
func (w *world) check() {
	states, effective := w.rebuild()
	want := hashOf(states)
	live := map[string]*events.Job{}
	for id := range w.view.table {
		live[id] = w.view.job(id)
	}
	if hashOf(live) != want {
		violated(differing(states, live), "the live read model is not the fold of the log")
	}
	if moved := w.rebuildElsewhere(); hashOf(moved) != want {
		violated(differing(states, moved), "the read model of the log in other partitions, with repeats, is another")
	}
	lives := w.lives()
	for _, id := range slices.Sorted(maps.Keys(states)) {
		w.checkJob(id, states[id], lives[id], effective)
	}
	w.checkSagas(lives)
	w.checkLetters(lives)
	w.checkWebhooks(states)
}

// checkWebhooks: every outcome that somebody wants was posted or given up, and whoever folds
// the log for that, with restarts in between, knows it.
func (w *world) checkWebhooks(states map[string]*events.Job) {
	for _, id := range slices.Sorted(maps.Keys(states)) {
		if awaits(states[id]) {
			violated(id, "the outcome of revision %d is neither posted nor given up: %v", states[id].GetRevision(), states[id].GetWebhook())
		}
	}
	for _, p := range w.log.used {
		found, _ := w.log.read(p, 0, len(w.log.partitions[p]))
		h := &hooks{jobs: map[string]*events.PendingWebhook{}, next: -1}
		// A redelivery that comes when the job is delivered already, or anything that tells a job
		// when that is deleted, is taken by who has forgotten it. A job that a saga has forgotten
		// may end twice.
		late := maps.Clone(w.forgot)
		for _, e := range found {
			state := states[e.event.JobID]
			if _, redelivery := e.event.Message.(*events.WebhookScheduled); e.known() && begins(e.event) &&
				(state.GetPhase() == events.Phase_PHASE_DELETED || redelivery && state.GetWebhook().GetDelivered()) {
				late[e.event.JobID] = true
			}
		}
		for len(found) > 0 {
			batch := found[:1+w.IntN(len(found))]
			c := newHookChanges(h)
			for _, e := range batch {
				if e.known() {
					c.take(e.event)
				}
			}
			records, err := c.records(p)
			if err != nil {
				panic(err)
			}
			if w.IntN(3) == 0 {
				continue // it died before the transaction's end, and reads this again
			}
			found = found[len(batch):]
			before := h
			h = &hooks{jobs: maps.Clone(before.jobs), next: -1} // another process
			for _, r := range records {
				if err := putState(h.jobs, r, events.WebhooksGroup); err != nil {
					panic(err)
				}
			}
		}
		c := newHookChanges(h)
		c.everything()
		if err := c.schedule(webhookPolicy, false, w.now); err != nil {
			panic(err)
		}
		for _, e := range c.emitted {
			if late[e.JobID] {
				continue
			}
			violated(e.JobID, "a new process of the role webhooks would tell %s, of what is over", e.Name())
		}
		for id, pending := range h.jobs {
			if !late[id] && states[id].GetPhase() != events.Phase_PHASE_OPEN && pending.GetJob().GetPhase() != events.Phase_PHASE_OPEN {
				violated(id, "the role webhooks still keeps what is over: %v", pending)
			}
		}
	}
}

// rebuild folds the log in one pass, and counts which facts of which there is one changed
// a state.
func (w *world) rebuild() (states map[string]*events.Job, effective map[string]int) {
	states, effective = map[string]*events.Job{}, map[string]int{}
	for _, p := range w.log.used {
		found, _ := w.log.read(p, 0, len(w.log.partitions[p]))
		for _, e := range found {
			if !e.known() {
				continue
			}
			before := states[e.event.JobID]
			after := events.Fold(before, e.event)
			if after == before {
				continue
			}
			states[e.event.JobID] = after
			switch m := e.event.Message.(type) {
			case *events.OperationCompleted:
				effective[fmt.Sprintf("%s/%d/%s", e.event.JobID, m.GetRevision(), m.GetOperation())]++
			case *events.OperationFailed:
				effective[fmt.Sprintf("%s/%d/%s", e.event.JobID, m.GetRevision(), m.GetOperation())]++
			case *events.JobFinalized:
				effective[fmt.Sprintf("%s/%d", e.event.JobID, m.GetRevision())]++
			}
		}
	}
	return states, effective
}

// rebuildElsewhere brings the log into another number of partitions, in one of the orders
// that the old ones allow, and folds those in one of the orders that the new ones allow.
// What was told is told again at later places.
func (w *world) rebuildElsewhere() map[string]*events.Job {
	old := map[int][]events.Event{}
	for i, p := range w.log.used {
		found, _ := w.log.read(p, 0, len(w.log.partitions[p]))
		for _, e := range found {
			if e.known() {
				old[i] = append(old[i], e.event)
			}
		}
	}
	partitions := 1 + w.IntN(48)
	moved := map[int][]events.Event{}
	var told []events.Event
	put := func(e events.Event) {
		r, err := e.Record()
		if err != nil {
			panic(err)
		}
		p := int(w.log.partitionOf(r, partitions))
		moved[p] = append(moved[p], e)
	}
	w.interleave(old, func(e events.Event) {
		put(e)
		for told = append(told, e); w.IntN(3) == 0; {
			put(pick(w, told))
		}
	})
	states := map[string]*events.Job{}
	w.interleave(moved, func(e events.Event) {
		if after := events.Fold(states[e.JobID], e); after != nil {
			states[e.JobID] = after
		}
	})
	return states
}

// interleave visits all in one of the orders that keep each partition's.
func (w *world) interleave(partitions map[int][]events.Event, visit func(events.Event)) {
	left := slices.Sorted(maps.Keys(partitions))
	for len(left) > 0 {
		i := w.IntN(len(left))
		p := left[i]
		visit(partitions[p][0])
		if partitions[p] = partitions[p][1:]; len(partitions[p]) == 0 {
			left = slices.Delete(left, i, i+1)
		}
	}
}

// hashOf is that of a read model: of all states, and of no positions.
func hashOf(states map[string]*events.Job) [sha256.Size]byte {
	sum := sha256.New()
	for _, id := range slices.Sorted(maps.Keys(states)) {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(states[id])
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(sum, "%s %d ", id, len(raw))
		_, _ = sum.Write(raw)
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

func differing(a, b map[string]*events.Job) string {
	for _, id := range slices.Sorted(maps.Keys(a)) {
		if !proto.Equal(a[id], b[id]) {
			return id
		}
	}
	return ""
}

// life is a job's committed events in the order of the log, from its first request to its
// deletion.
type life []events.Event

func (w *world) lives() map[string]life {
	all, deleted := map[string]life{}, map[string]bool{}
	for _, p := range w.log.used {
		found, _ := w.log.read(p, 0, len(w.log.partitions[p]))
		for _, e := range found {
			id := e.event.JobID
			_, request := e.event.Message.(*events.JobRequested)
			if !e.known() || deleted[id] || all[id] == nil && !request {
				continue
			}
			all[id] = append(all[id], e.event)
			_, deleted[id] = e.event.Message.(*events.JobDeleted)
		}
	}
	return all
}

// first finds the first event after place i.
func (l life) first(i int, is func(proto.Message) bool) int {
	for i++; i < len(l); i++ {
		if is(l[i].Message) {
			return i
		}
	}
	return -1
}

func (l life) deleted() bool {
	_, deleted := l[len(l)-1].Message.(*events.JobDeleted)
	return deleted
}

// run is a revision as the log tells it: by looking for the first event of each kind that
// it waits for, which is another way than Fold's.
type run struct {
	// results are those of all operations of the job, at the revision's end.
	results map[string]proto.Message
	// waits are the operations without a result.
	waits []string
	final *events.JobFinalized
}

func (l life) runs() (all []run) {
	request := l[0].Message.(*events.JobRequested)
	var operations []string
	for _, op := range request.GetOperations() {
		operations = append(operations, op.GetName())
	}
	begin, asked, results := 0, operations, map[string]proto.Message{}
	expired := l.first(0, func(m proto.Message) bool {
		e, ok := m.(*events.ArtifactsExpired)
		return ok && e.GetSource()
	})
	for revision := int32(1); ; revision++ {
		r, settled := run{results: maps.Clone(results)}, begin
		for _, op := range asked {
			i := l.first(begin, func(m proto.Message) bool { return ends(m, revision, op) })
			if i < 0 {
				r.waits = append(r.waits, op)
				continue
			}
			r.results[op], settled = l[i].Message, max(settled, i)
		}
		if results = r.results; len(r.waits) > 0 {
			return append(all, r)
		}
		end := l.first(settled, func(m proto.Message) bool {
			f, ok := m.(*events.JobFinalized)
			return ok && f.GetRevision() == revision
		})
		if end < 0 {
			return append(all, r)
		}
		r.final = l[end].Message.(*events.JobFinalized)
		all = append(all, r)
		begin = l.first(end, func(m proto.Message) bool {
			q, ok := m.(*events.OperationRetryRequested)
			asked = slices.DeleteFunc(slices.Clone(q.GetOperations()), func(op string) bool {
				_, completed := results[op].(*events.OperationCompleted)
				return completed || !slices.Contains(operations, op)
			})
			return ok && q.GetRevision() == revision+1 && len(asked) > 0
		})
		if begin < 0 || expired >= 0 && expired < begin {
			return all
		}
	}
}

// ends says whether an event is a result of an operation.
func ends(m proto.Message, revision int32, operation string) bool {
	switch m := m.(type) {
	case *events.OperationCompleted:
		return m.GetRevision() == revision && m.GetOperation() == operation
	case *events.OperationFailed:
		return m.GetRevision() == revision && m.GetOperation() == operation
	case *events.JobCancelRequested:
		return m.GetRevision() == revision
	}
	return false
}

// totals are what a JobFinalized should say.
func (r run) totals() (t *events.Totals, cpu time.Duration, outcome events.Outcome) {
	t = &events.Totals{}
	for _, m := range r.results {
		switch m := m.(type) {
		case *events.OperationCompleted:
			t.Completed++
			t.ArtifactBytes += m.GetArtifact().GetBytes()
			cpu += m.GetCpuTime().AsDuration()
		case *events.OperationFailed:
			t.Failed++
		default:
			t.Cancelled++
		}
	}
	switch int(0) {
	case int(t.Failed + t.Cancelled):
		outcome = events.Outcome_OUTCOME_SUCCEEDED
	case int(t.Completed + t.Failed):
		outcome = events.Outcome_OUTCOME_CANCELLED
	case int(t.Completed):
		outcome = events.Outcome_OUTCOME_FAILED
	default:
		outcome = events.Outcome_OUTCOME_PARTIAL
	}
	return t, cpu, outcome
}

func (w *world) checkJob(id string, state *events.Job, l life, effective map[string]int) {
	runs := l.runs()
	last := runs[len(runs)-1]
	if last.final == nil && !l.deleted() {
		violated(id, "revision %d does not end; it waits for %v, and then for JobFinalized", len(runs), last.waits)
	}
	for i, r := range runs {
		revision := i + 1
		if n := effective[fmt.Sprintf("%s/%d", id, revision)]; r.final != nil && n != 1 {
			violated(id, "%d JobFinalized of revision %d took effect", n, revision)
		}
		for op := range r.results {
			if n := effective[fmt.Sprintf("%s/%d/%s", id, revision, op)]; n > 1 {
				violated(id, "%d outcomes of %s in revision %d took effect", n, op, revision)
			}
		}
		if r.final == nil {
			continue
		}
		t, cpu, outcome := r.totals()
		got := r.final.GetTotals()
		if r.final.GetOutcome() != outcome || got.GetCompleted() != t.Completed || got.GetFailed() != t.Failed || got.GetCancelled() != t.Cancelled {
			violated(id, "revision %d ended as %s with %v; the log has %s, %d completed, %d failed, %d cancelled", revision,
				r.final.GetOutcome(), got, outcome, t.Completed, t.Failed, t.Cancelled)
		}
		if w.touched[id] != "replaced" && (got.GetArtifactBytes() != t.ArtifactBytes || got.GetCpuTime().AsDuration() != cpu) {
			violated(id, "revision %d ended with %v; the log has %d bytes, %s", revision, got, t.ArtifactBytes, cpu)
		}
	}
	w.checkFinals(id, l)
	if l.deleted() {
		return
	}
	if state.GetPhase() != events.Phase_PHASE_ENDED || int(state.GetRevision()) != len(runs) || state.GetOutcome() != last.final.GetOutcome() {
		violated(id, "the read model has %s, revision %d, %s", state.GetPhase(), state.GetRevision(), state.GetOutcome())
	}
	for _, op := range state.GetOperations() {
		w.checkOperation(id, op, last.results[op.GetName()])
	}
}

func (w *world) checkOperation(id string, op *events.OperationState, result proto.Message) {
	same := false
	switch m := result.(type) {
	case *events.OperationCompleted:
		same = op.GetPhase() == events.OperationPhase_OPERATION_PHASE_COMPLETED && (w.touched[id] == "replaced" || op.GetArtifact().GetSha256() == m.GetArtifact().GetSha256())
	case *events.OperationFailed:
		same = op.GetPhase() == events.OperationPhase_OPERATION_PHASE_FAILED && op.GetFailureCode() == m.GetCode()
	case *events.JobCancelRequested:
		same = op.GetPhase() == events.OperationPhase_OPERATION_PHASE_CANCELLED
	}
	if !same {
		violated(id, "the read model has %v; the log %v", op, result)
	}
}

// checkFinals: a saga that remembers a job ends each revision once, in all that a
// read_committed consumer sees.
func (w *world) checkFinals(id string, l life) {
	finals := map[int32]int{}
	for _, e := range l {
		if f, ok := e.Message.(*events.JobFinalized); ok {
			finals[f.GetRevision()]++
		}
	}
	for revision, n := range finals {
		if n > 1 && !w.forgot[id] {
			violated(id, "%d JobFinalized of revision %d are committed", n, revision)
		}
	}
}

// checkSagas: what they remember is the fold of the log, and what a restart would find.
func (w *world) checkSagas(lives map[string]life) {
	for p, owner := range w.sagaOf {
		m := w.sagas[owner].partitions[int32(p)]
		if m == nil {
			continue
		}
		for id, job := range m.jobs {
			if _, open := m.open[id]; open != (job.GetPhase() == events.Phase_PHASE_OPEN) {
				violated(id, "the saga's list of open jobs is wrong")
			}
		}
		for id := range m.open {
			if m.jobs[id] == nil {
				violated(id, "the saga lists a job as open that it has forgotten")
			}
		}
		again := w.restore(int32(p))
		if hashOf(again.jobs) != hashOf(m.jobs) {
			violated(differing(m.jobs, again.jobs), "a restart of the saga would find other states")
		}
	}
	for id, l := range lives {
		var want *events.Job
		for _, e := range l {
			if _, ok := e.Message.(*events.OperationStarted); !ok { // as Saga.apply
				want = events.Fold(want, e)
			}
		}
		r, err := l[0].Record()
		if err != nil {
			panic(err)
		}
		p := w.log.partitionOf(r, len(w.log.partitions))
		got := w.sagas[w.sagaOf[p]].partitions[p].jobs[id]
		if w.forgot[id] {
			continue
		}
		if got == nil {
			violated(id, "the saga does not know the job")
		}
		got, want = proto.Clone(got).(*events.Job), proto.Clone(want).(*events.Job)
		got.UpdatedAt, want.UpdatedAt = nil, nil // its own JobFinalized came to it before what the log has in between
		if !proto.Equal(got, want) {
			violated(id, "the saga remembers\n%v\nthe log says\n%v", got, want)
		}
	}
}

// checkLetters: of each record that is no event, a saga tells once; and of each operation
// that failed at its deadline, and of no other.
func (w *world) checkLetters(lives map[string]life) {
	for _, p := range w.log.used {
		found, _ := w.log.read(p, 0, len(w.log.partitions[p]))
		for _, e := range found {
			if !e.broken() {
				continue
			}
			id := events.NewDeadLetter(e.record.Timestamp, source, "", &events.DeadLettered{Group: events.SagaGroup,
				Origin: &events.Origin{Topic: events.Topic, Partition: p, Offset: e.record.Offset}}).LetterID
			if n := w.log.told[id]; n != 1 {
				violated(string(e.record.Key), "a record that is no event was told of %d times", n)
			}
		}
	}
	missed := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(lives)) {
		for i, r := range lives[id].runs() {
			for op, m := range r.results {
				if f, ok := m.(*events.OperationFailed); ok && f.GetCode() == events.CodeDeadline && int(f.GetRevision()) == i+1 {
					letter := events.NewDeadLetter(began, source, "", &events.DeadLettered{JobId: id, Operation: op, Revision: f.GetRevision()}).LetterID
					if missed[letter] = true; w.log.letters[letter] == nil {
						violated(id, "no dead letter tells of %s, which failed at its deadline in revision %d", op, i+1)
					}
				}
			}
		}
	}
	for _, letter := range w.log.letterOrder {
		if l := w.log.letters[letter]; l.GetCode() == events.CodeDeadline && !missed[letter] && !w.forgot[l.GetJobId()] && !lives[l.GetJobId()].deleted() {
			violated(l.GetJobId(), "a dead letter tells of %s in revision %d, which did not fail at its deadline", l.GetOperation(), l.GetRevision())
		}
	}
}

// tell is a job's part of the log, to read.
func (w *world) tell(id string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d partitions, %d sagas that remember %s, deadline %s, odds %+v\n", len(w.log.partitions), len(w.sagas), w.cfg.Remember, w.cfg.JobDeadline, w.odds)
	if id == "" {
		return b.String()
	}
	fmt.Fprintf(&b, "job %s, forgotten: %t\n", id, w.forgot[id])
	for _, p := range w.log.used {
		for _, e := range w.log.partitions[p] {
			if string(e.record.Key) != id {
				continue
			}
			seen := ""
			if e.txn != nil && !e.txn.committed {
				seen = " (not committed)"
			}
			fmt.Fprintf(&b, "%2d/%-4d %s%s ", p, e.record.Offset, e.record.Timestamp.Format(time.TimeOnly), seen)
			if !e.known() {
				fmt.Fprintf(&b, "no event: %v\n", e.fault)
				continue
			}
			name := e.event.Message.ProtoReflect().Descriptor().Name()
			fmt.Fprintf(&b, "%s at %s from %s: %.400v\n", name, e.event.Time.Format(time.TimeOnly), e.event.Source, e.event.Message)
		}
	}
	return b.String()
}
