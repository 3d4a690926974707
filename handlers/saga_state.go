package handlers

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/trace"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
)

// openSince are the jobs whose revision was open at t already, in the order of their ids.
func (m *memory) openSince(t time.Time) []string {
	var late []string
	for id := range m.open {
		if !m.jobs[id].Opened().After(t) {
			late = append(late, id)
		}
	}
	slices.Sort(late)
	return late
}

// order lists the jobs after a restore, the ended ones by the time of their end.
func (m *memory) order() {
	m.ended = m.ended[:0]
	clear(m.open)
	for id, job := range m.jobs {
		if job.GetPhase() == events.Phase_PHASE_OPEN {
			m.open[id] = struct{}{}
		} else {
			m.ended = append(m.ended, id)
		}
	}
	slices.SortFunc(m.ended, func(a, b string) int {
		if c := m.jobs[a].GetUpdatedAt().AsTime().Compare(m.jobs[b].GetUpdatedAt().AsTime()); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
}

// changeSet is what a batch changes in one partition's memory; nothing of it is in
// the memory before the transaction is committed.
type changeSet struct {
	memory *memory
	// jobs are the new states; nil is a job to forget.
	jobs    map[string]*events.Job
	emitted []events.Event
	letters []events.LetterEvent
	// missed is what is new in the memory's.
	missed map[string]int32
	// newest is the time of the newest event folded: the clock of expiry.
	newest time.Time
	// expired counts the entries of memory.ended that this batch looked at.
	expired int
	// spans are those of the ends that were told, outcomes what those were.
	spans    []trace.Span
	outcomes []events.Outcome
	// next is the offset after the last record read.
	next int64
}

func newChangeSet(m *memory) *changeSet {
	return &changeSet{memory: m, jobs: map[string]*events.Job{}, missed: map[string]int32{}}
}

func (c *changeSet) state(id string) *events.Job {
	if job, ok := c.jobs[id]; ok {
		return job
	}
	return c.memory.jobs[id]
}

// take folds an event and, if that settles its job, ends the job.
func (c *changeSet) take(e events.Event) (ends []events.Event, err error) {
	before := c.state(e.JobID)
	state := c.fold(e)
	if state != before {
		c.bury(e)
	}
	// The event's own time, not a clock's: another run of the same log decides the same.
	decided, err := commands.Finalize{Cause: e, At: e.Time}.Decide(state)
	for _, end := range decided {
		if c.memory.known.has(end.ID) {
			continue // it is folded when it comes, in its place
		}
		c.emit(end)
		ends = append(ends, end)
		if bug.On("saga-emits-twice") {
			c.emitted = append(c.emitted, end)
		}
	}
	return ends, err
}

// refuse makes a dead letter of a record, and fails what its job still waits for.
func (c *changeSet) refuse(r *kgo.Record, code, message, stack string) error {
	if c.memory.known.hasRefused(r.Offset) {
		return nil // what became of it stands further on
	}
	job := c.state(string(r.Key))
	letter := &events.DeadLettered{Group: events.SagaGroup, Origin: &events.Origin{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset},
		Type: events.TypeOf(r), JobId: string(r.Key), Revision: job.GetRevision(), Attempts: 1,
		Kind: events.FailureKind_FAILURE_KIND_INTERNAL, Code: code, Message: message, Stack: stack}
	told := events.NewDeadLetter(r.Timestamp, source, job.GetCorrelationId(), letter)
	letter = told.Message.(*events.DeadLettered)
	c.write(told)
	return c.giveUp(job, commands.GiveUp{Kind: letter.GetKind(), Code: code, Source: source, At: r.Timestamp,
		Message: "an event of the job could not be handled: " + letter.GetMessage()})
}

// miss fails what a job still waits for after its deadline.
func (c *changeSet) miss(id string, now time.Time, deadline time.Duration) error {
	job := c.state(id)
	if job.GetPhase() != events.Phase_PHASE_OPEN {
		return nil // by what came meanwhile
	}
	if c.missed[id] == job.GetRevision() || c.memory.missed[id] == job.GetRevision() {
		return nil // what was told of it has not come round yet
	}
	c.missed[id] = job.GetRevision()
	return c.giveUp(job, commands.GiveUp{Kind: events.FailureKind_FAILURE_KIND_INTERNAL, Code: events.CodeDeadline, Source: source, At: now,
		Message: fmt.Sprintf("no outcome within %s (JOB_DEADLINE)", deadline)})
}

// bury makes a dead letter of an operation that failed at its deadline. It is told when the
// failure counts, not when it is decided: an outcome may have come first.
func (c *changeSet) bury(e events.Event) {
	m, ok := e.Message.(*events.OperationFailed)
	if !ok || e.Source != source || m.GetCode() != events.CodeDeadline {
		return
	}
	c.write(events.NewDeadLetter(e.Time, source, e.CorrelationID, &events.DeadLettered{Group: events.SagaGroup,
		JobId: e.JobID, Operation: m.GetOperation(), Revision: m.GetRevision(), Attempts: m.GetAttempt(), Kind: m.GetKind(), Code: m.GetCode(), Message: m.GetMessage()}))
}

func (c *changeSet) write(letter events.LetterEvent) {
	if !c.memory.known.has(letter.ID) {
		c.letters = append(c.letters, letter)
	}
}

// giveUp fails operations. It does not fold what it tells: an outcome may have come first
// into the log that was not read yet. All see it at its place there, we too, and the job
// ends then.
func (c *changeSet) giveUp(job *events.Job, give commands.GiveUp) error {
	failures, err := give.Decide(job)
	for _, failed := range failures {
		if !c.memory.known.has(failed.ID) {
			c.emitted = append(c.emitted, failed)
		}
	}
	return err
}

// source names the saga in what it tells.
const source = "pixtools/saga"

func (c *changeSet) emit(e events.Event) {
	c.emitted = append(c.emitted, e)
	c.fold(e)
}

// fold is the job's state after e.
func (c *changeSet) fold(e events.Event) *events.Job {
	if e.Time.After(c.newest) {
		c.newest = e.Time
	}
	before := c.state(e.JobID)
	after := events.Fold(before, e)
	if after != before {
		c.jobs[e.JobID] = after
	}
	return after
}

// expire forgets jobs that ended longer than remember before the newest event.
func (c *changeSet) expire(remember time.Duration) {
	for _, id := range c.memory.ended {
		job := c.state(id)
		// An entry is stale where the job was retried: it is listed again when it ends.
		if job != nil && job.GetPhase() != events.Phase_PHASE_OPEN {
			if c.newest.Sub(job.GetUpdatedAt().AsTime()) <= remember {
				return
			}
			c.jobs[id] = nil
		}
		c.expired++
	}
}

// records are the events to emit and the changelog's new states.
func (c *changeSet) records(partition int32) ([]*kgo.Record, error) {
	records, err := events.Records(c.emitted)
	if err != nil {
		return nil, err
	}
	for _, letter := range c.letters {
		r, err := letter.Record()
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	states, err := stateRecords(c.jobs, events.SagaTopic, partition)
	return append(records, states...), err
}

// commit brings the changes into the memory.
func (c *changeSet) commit() {
	if k := c.memory.known; k != nil && c.next >= k.until {
		c.memory.known = nil
	}
	c.memory.ended = c.memory.ended[c.expired:]
	maps.Copy(c.memory.missed, c.missed)
	for id, job := range c.jobs {
		if job == nil {
			delete(c.memory.jobs, id)
			delete(c.memory.open, id) // where the batch that ended it is as long as it is remembered
			delete(c.memory.missed, id)
			continue
		}
		before := c.memory.jobs[id]
		c.memory.jobs[id] = job
		if job.GetPhase() == events.Phase_PHASE_OPEN {
			c.memory.open[id] = struct{}{}
		} else {
			delete(c.memory.open, id)
			delete(c.memory.missed, id)
		}
		if job.GetPhase() != events.Phase_PHASE_OPEN && (before == nil || before.GetPhase() == events.Phase_PHASE_OPEN) {
			c.memory.ended = append(c.memory.ended, id)
		}
	}
}
