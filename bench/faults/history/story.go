package history

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pixtools/pixtools/events"
)

// Ranks of an operation's state: a later read never shows a lower one in one revision.
const (
	pending = iota
	running
	settled // completed, failed or cancelled
)

// story is a job as its records tell it, by the rules in docs/kafka.md: the first
// JobRequested, the first outcome of an operation in a revision, the first JobFinalized of
// a revision.
type story struct {
	id      string
	records []*Record
	// requests are all JobRequested, the first of which counts.
	requests []*Record
	now      chapter
	// past are the revisions that ended, as they were then.
	past map[int32]chapter
	// told is the state after each record that changed it.
	told []moment
	// finals are all JobFinalized by revision, outcomes all outcomes by attempt, starts how
	// often each operation was begun, by revision.
	finals   map[int32][]*Record
	outcomes map[attempt][]*Record
	starts   map[attempt]int
	// artifacts are those of all OperationCompleted.
	artifacts []*Record
	// gone are the operations whose artifacts have expired, and "" where the source has; all of
	// them where the job was deleted.
	gone map[string]bool
	// cancelled says that a cancellation took effect in some revision.
	cancelled bool
	faults    []Violation
}

// attempt names one; with number 0 all of an operation in a revision.
type attempt struct {
	revision  int32
	operation string
	number    int32
}

// chapter is a revision as far as it has come.
type chapter struct {
	revision   int32
	outcome    string // empty while it is open
	operations map[string]operation
}

type operation struct {
	state   string
	rank    int
	attempt int32
	sha256  string
	kind    events.FailureKind
	code    string
}

// moment is the state from an offset on.
type moment struct {
	offset int64
	chapter
}

func (c chapter) clone() chapter {
	c.operations = maps.Clone(c.operations)
	return c
}

func (c chapter) settled() bool {
	for _, op := range c.operations {
		if op.rank < settled {
			return false
		}
	}
	return true
}

// waits says whether an outcome of the operation in that revision would count.
func (c chapter) waits(revision int32, name string) bool {
	op, ok := c.operations[name]
	return ok && c.outcome == "" && revision == c.revision && op.rank < settled
}

// stories are told from the whole log, by job.
func stories(log []Record) map[string]*story {
	all := map[string]*story{}
	for i := range log {
		r := &log[i]
		if r.Event.Message == nil {
			continue
		}
		s := all[r.Event.JobID]
		if s == nil {
			s = &story{id: r.Event.JobID, past: map[int32]chapter{}, finals: map[int32][]*Record{},
				outcomes: map[attempt][]*Record{}, starts: map[attempt]int{}}
			all[r.Event.JobID] = s
		}
		s.tell(r)
	}
	return all
}

func (s *story) fault(p Property, format string, args ...any) {
	s.faults = append(s.faults, Violation{p, s.id, fmt.Sprintf(format, args...)})
}

func (s *story) tell(r *Record) {
	s.records = append(s.records, r)
	if s.turn(r) {
		s.told = append(s.told, moment{r.Offset, s.now.clone()})
	}
}

// turn says whether the record changed the state.
func (s *story) turn(r *Record) bool {
	switch m := r.Event.Message.(type) {
	case *events.JobRequested:
		return s.request(r, m)
	case *events.OperationStarted:
		return s.start(m)
	case *events.OperationCompleted:
		s.artifacts = append(s.artifacts, r)
		return s.outcome(r, m.GetRevision(), m.GetOperation(), m.GetAttempt(),
			operation{state: "COMPLETED", sha256: m.GetArtifact().GetSha256()})
	case *events.OperationFailed:
		return s.outcome(r, m.GetRevision(), m.GetOperation(), m.GetAttempt(),
			operation{state: "FAILED", kind: m.GetKind(), code: m.GetCode()})
	case *events.JobCancelRequested:
		return s.cancel(m)
	case *events.OperationRetryRequested:
		return s.retry(m)
	case *events.JobFinalized:
		return s.final(r, m)
	case *events.ArtifactsExpired:
		s.expire(m)
	case *events.JobDeleted:
		s.let("")
		for name := range s.now.operations {
			s.let(name)
		}
	}
	return false
}

// expire excuses objects from being there. That of an open job, or of a revision before the
// present one, changes nothing.
func (s *story) expire(m *events.ArtifactsExpired) {
	if s.now.outcome == "" || m.GetRevision() != s.now.revision {
		return
	}
	if m.GetSource() {
		s.let("")
	}
	for i, name := range m.GetOperations() {
		if i < len(m.GetSha256()) && s.now.operations[name].sha256 == m.GetSha256()[i] {
			s.let(name)
		}
	}
}

func (s *story) let(what string) {
	if s.gone == nil {
		s.gone = map[string]bool{}
	}
	s.gone[what] = true
}

func (s *story) request(r *Record, m *events.JobRequested) bool {
	s.requests = append(s.requests, r)
	if len(s.requests) > 1 {
		return false
	}
	s.now = chapter{revision: 1, operations: map[string]operation{}}
	for _, op := range m.GetOperations() {
		s.now.operations[op.GetName()] = operation{state: "PENDING"}
	}
	return true
}

func (s *story) start(m *events.OperationStarted) bool {
	a := attempt{m.GetRevision(), m.GetOperation(), m.GetAttempt()}
	s.starts[a]++
	s.starts[attempt{a.revision, a.operation, 0}]++
	if _, ok := s.now.operations[a.operation]; !ok {
		s.fault(Outcomes, "%s was begun, and the job does not ask for it", a.operation)
	}
	op := s.now.operations[a.operation]
	if !s.now.waits(a.revision, a.operation) || a.number <= op.attempt {
		return false
	}
	op.state, op.rank, op.attempt = "RUNNING", running, a.number
	s.now.operations[a.operation] = op
	return true
}

func (s *story) outcome(r *Record, revision int32, name string, number int32, came operation) bool {
	a := attempt{revision, name, number}
	s.outcomes[a] = append(s.outcomes[a], r)
	if came.state == "COMPLETED" && s.starts[a] == 0 {
		s.fault(Outcomes, "attempt %d at %s completed (offset %d) and was never begun before", number, name, r.Offset)
	}
	if !s.now.waits(revision, name) {
		return false
	}
	came.rank, came.attempt = settled, number
	s.now.operations[name] = came
	return true
}

func (s *story) cancel(m *events.JobCancelRequested) bool {
	if len(s.requests) == 0 || s.now.outcome != "" || m.GetRevision() != s.now.revision || s.now.settled() {
		return false
	}
	s.cancelled = true
	for name, op := range s.now.operations {
		if op.rank < settled {
			op.state, op.rank = "CANCELLED", settled
			s.now.operations[name] = op
		}
	}
	return true
}

func (s *story) retry(m *events.OperationRetryRequested) bool {
	if s.now.outcome == "" || m.GetRevision() != s.now.revision+1 {
		return false
	}
	next := chapter{revision: m.GetRevision(), operations: maps.Clone(s.now.operations)}
	for name, op := range next.operations {
		if op.state != "COMPLETED" && slices.Contains(m.GetOperations(), name) {
			next.operations[name] = operation{state: "PENDING"}
		}
	}
	if next.settled() {
		return false // of what was named nothing is to be done again
	}
	s.now = next
	return true
}

func (s *story) final(r *Record, m *events.JobFinalized) bool {
	s.finals[m.GetRevision()] = append(s.finals[m.GetRevision()], r)
	said := strings.TrimPrefix(m.GetOutcome().String(), "OUTCOME_")
	switch {
	case len(s.requests) == 0 || m.GetRevision() > s.now.revision:
		s.fault(Finals, "JobFinalized (offset %d) of revision %d, which had not begun", r.Offset, m.GetRevision())
		return false
	case m.GetRevision() < s.now.revision || s.now.outcome != "":
		return false // a duplicate, which the count of finals tells of
	case !s.now.settled():
		s.fault(Finals, "JobFinalized (offset %d) while operations were open: %s", r.Offset, s.now)
		return false
	case said != s.now.counted():
		s.fault(Finals, "JobFinalized (offset %d) says %s, the outcomes before it say %s: %s", r.Offset, said, s.now.counted(), s.now)
	}
	s.now.outcome = said
	s.past[s.now.revision] = s.now.clone()
	return true
}

// counted is the outcome that follows from those of the operations.
func (c chapter) counted() string {
	n := map[string]int{}
	for _, op := range c.operations {
		n[op.state]++
	}
	switch {
	case n["COMPLETED"] == len(c.operations):
		return "SUCCEEDED"
	case n["COMPLETED"] > 0:
		return "PARTIAL"
	case n["FAILED"] > 0:
		return "FAILED"
	}
	return "CANCELLED"
}

func (c chapter) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(c.operations)) {
		op := c.operations[name]
		parts = append(parts, fmt.Sprintf("%s %s (attempt %d)", name, op.state, op.attempt))
	}
	return fmt.Sprintf("revision %d: %s", c.revision, strings.Join(parts, ", "))
}

// at is the state when everything up to offset was applied; false: there was none yet.
func (s *story) at(offset int64) (chapter, bool) {
	i, _ := slices.BinarySearchFunc(s.told, offset+1, func(m moment, o int64) int { return int(m.offset - o) })
	if i == 0 {
		return chapter{}, false
	}
	return s.told[i-1].chapter, true
}
