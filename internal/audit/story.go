package audit

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
)

// story is a job as its records tell it. It is pure.
type story struct {
	id    string
	state *events.Job
	// seen has, by event id, what that event said: a repeat says the same.
	seen map[uuid.UUID]digest
	// first and last are the places of its first and last record.
	first, last where
	// home is the partition that the job belongs into; negative: nobody has asked.
	home int32
	// orphaned: it was told that nobody requested the job.
	orphaned bool
	// imported: it came from elsewhere, and keeps what it had there under the names of there.
	imported bool
}

// digest is of what a repeat of an event must say, too; 0 where that is nothing.
type digest [8]byte

// verdict is what one record was.
type verdict struct {
	// repeat: its id is known. counts: it changed the job's state.
	repeat, counts bool
	faults         []fault
}

type fault struct {
	kind               Kind
	operation, message string
}

func (v *verdict) fault(kind Kind, operation, format string, args ...any) {
	v.faults = append(v.faults, fault{kind, operation, fmt.Sprintf(format, args...)})
}

func newStory(id string) *story { return &story{id: id, home: -1, seen: map[uuid.UUID]digest{}} }

func (s *story) tell(e events.Event, at where) verdict {
	var v verdict
	if len(s.seen) == 0 {
		s.first = at
	}
	s.last = at
	id, said := idOf(e.ID), digestOf(e.Message)
	if want := events.New(e.JobID, e.Time, e.Source, "", e.Message).ID; e.ID != want {
		v.fault(WrongID, "", "%s has the id %s; derived is %s", e.Name(), e.ID, want)
	}
	if first, known := s.seen[id]; known {
		v.repeat = true
		if first != said {
			v.fault(RepeatDiffers, operationOf(e.Message), "%s has the id of an earlier record, %s, and says something else", e.Name(), e.ID)
		}
		// Fold makes nothing of it, whatever it is, as long as the state remembers: so it is
		// folded here, too, as the read model does.
		s.state = events.Fold(s.state, e)
		return v
	}
	if e.CausationID != "" {
		if _, known := s.seen[idOf(e.CausationID)]; !known {
			v.fault(UnknownCause, operationOf(e.Message), "%s answers the event %s, which is not before it in the job", e.Name(), e.CausationID)
		}
	}
	s.seen[id] = said
	before := s.state
	if before.GetPhase() != events.Phase_PHASE_DELETED { // of a deleted job nothing is known that could be asked
		s.ask(&v, e)
	}
	s.state = events.Fold(before, e)
	v.counts = s.state != before
	return v
}

// ask judges an event that is new, by the state before it. What is legal and comes too
// late, as the outcome of another attempt, is no fault.
func (s *story) ask(v *verdict, e events.Event) {
	if _, is := e.Message.(*events.JobRequested); is && s.state == nil {
		s.imported = e.Imported()
	}
	for _, o := range e.Objects() {
		if prefix := s.prefixOf(o.Operation); !strings.HasPrefix(o.Key, prefix) {
			v.fault(Illegal, o.Operation, "%s names the object %s, which is not below %s", e.Name(), o.Key, prefix)
		}
	}
	switch m := e.Message.(type) {
	case *events.JobRequested:
		return
	case *events.OperationRetryRequested:
		switch {
		case s.state == nil:
			s.orphan(v, e)
		case m.GetRevision() != s.state.GetRevision()+1:
			v.fault(Revision, "", "it asks for revision %d after revision %d", m.GetRevision(), s.state.GetRevision())
		case s.state.GetPhase() == events.Phase_PHASE_OPEN:
			v.fault(Illegal, "", "it asks for revision %d while revision %d has no end", m.GetRevision(), s.state.GetRevision())
		}
		return
	}
	if s.state == nil {
		s.orphan(v, e)
		return
	}
	operation := operationOf(e.Message)
	if operation != "" && !slices.ContainsFunc(s.state.GetOperations(), func(op *events.OperationState) bool { return op.GetName() == operation }) {
		v.fault(Illegal, operation, "%s is about %s, which the job does not ask for", e.Name(), operation)
	}
	if r, of := revisionOf(e.Message); of && r > s.state.GetRevision() {
		v.fault(Revision, operation, "%s is of revision %d, and the job is at %d", e.Name(), r, s.state.GetRevision())
		return
	}
	if m, is := e.Message.(*events.JobFinalized); is {
		s.final(v, m)
	}
}

// final judges the first end of a revision.
func (s *story) final(v *verdict, m *events.JobFinalized) {
	if m.GetRevision() < s.state.GetRevision() {
		v.fault(Revision, "", "revision %d ends when revision %d has begun", m.GetRevision(), s.state.GetRevision())
		return
	}
	if !s.state.Settled() {
		v.fault(Illegal, "", "revision %d ends while operations have no outcome", m.GetRevision())
		return
	}
	n := map[events.OperationPhase]int32{}
	size := int64(0)
	for _, op := range s.state.GetOperations() {
		n[op.GetPhase()]++
		if op.GetPhase() == events.OperationPhase_OPERATION_PHASE_COMPLETED {
			size += op.GetArtifact().GetBytes()
		}
	}
	completed, failed, cancelled := n[events.OperationPhase_OPERATION_PHASE_COMPLETED], n[events.OperationPhase_OPERATION_PHASE_FAILED], n[events.OperationPhase_OPERATION_PHASE_CANCELLED]
	outcome := events.Outcome_OUTCOME_CANCELLED
	switch {
	case failed+cancelled == 0:
		outcome = events.Outcome_OUTCOME_SUCCEEDED
	case completed > 0:
		outcome = events.Outcome_OUTCOME_PARTIAL
	case failed > 0:
		outcome = events.Outcome_OUTCOME_FAILED
	}
	if t := m.GetTotals(); m.GetOutcome() != outcome || t.GetCompleted() != completed || t.GetFailed() != failed || t.GetCancelled() != cancelled || t.GetArtifactBytes() != size {
		v.fault(FinalDiffers, "", "revision %d ends as %s with %v; its operations say %s: %d completed, %d failed, %d cancelled, %d bytes",
			m.GetRevision(), m.GetOutcome(), t, outcome, completed, failed, cancelled, size)
	}
}

// orphan tells once of a job that nobody requested.
func (s *story) orphan(v *verdict, e events.Event) {
	if !s.orphaned {
		v.fault(Orphan, operationOf(e.Message), "%s, and the log has no JobRequested before it", e.Name())
	}
	s.orphaned = true
}

// idOf takes an event's id as 16 bytes: all of a UUID, or the beginning of its hash.
func idOf(text string) uuid.UUID {
	if id, err := uuid.Parse(text); err == nil {
		return id
	}
	sum := sha256.Sum256([]byte(text))
	return uuid.UUID(sum[:16])
}

// digestOf is of what tells two facts apart that have one id. Times do not: a repeat may
// have its own. Of two requests under one key the first counts, and the other is refused.
func digestOf(m proto.Message) (d digest) {
	var said string
	switch m := m.(type) {
	case *events.OperationCompleted:
		said = m.GetArtifact().GetSha256()
	case *events.OperationFailed:
		said = m.GetCode()
	case *events.JobFinalized:
		said = m.GetOutcome().String()
	case *events.ArtifactReplaced:
		said = m.GetArtifact().GetKey()
	default:
		return d
	}
	sum := sha256.Sum256([]byte(said))
	copy(d[:], sum[:])
	return d
}

func operationOf(m proto.Message) string {
	if about, ok := m.(interface{ GetOperation() string }); ok {
		return about.GetOperation()
	}
	return ""
}

func revisionOf(m proto.Message) (int32, bool) {
	of, ok := m.(interface{ GetRevision() int32 })
	if !ok {
		return 0, false
	}
	return of.GetRevision(), true
}

// prefixOf is where an object must lie.
func (s *story) prefixOf(operation string) string {
	switch {
	case operation == "":
		return blob.RawPrefix + s.id + "/"
	case s.imported:
		return blob.ProcessedPrefix + s.id + "/"
	}
	return blob.ProcessedPrefix + s.id + "/" + operation + "/"
}
