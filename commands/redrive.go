package commands

import (
	"errors"
	"slices"
	"time"

	"github.com/pixtools/pixtools/events"
)

// Redrive asks for the work of a dead letter again, once its cause is mended.
type Redrive struct {
	Letter *events.DeadLetter
	// Origin is the letter's record as the log has it, where this version can read it;
	// OriginFault says why not.
	Origin      *events.Event
	OriginFault string
	// Together are operations of the same job whose dead letters are redriven with this
	// one: a revision has one request.
	Together     []string
	MaxRevisions int32
	TraceParent  string
	At           time.Time
}

// Actions of a redrive.
const (
	// RedriveRetry: operations run again, as a new revision of the job.
	RedriveRetry = "retry"
	// RedriveAppend: the record is appended again, since nobody has taken it in.
	RedriveAppend = "append"
)

// Decide gives what to append to the log, and what that is called; *Conflict where nothing
// is to be done, or can be.
func (c Redrive) Decide(state *events.Job) (events.Event, string, error) {
	if !c.Letter.ClosedAt.IsZero() {
		what := "redriven"
		if c.Letter.Discarded {
			what = "discarded"
		}
		return events.Event{}, "", &Conflict{Field: "id", Message: "it was " + what + " already"}
	}
	if c.Letter.GetOperation() == "" && c.Origin != nil && events.Fold(state, *c.Origin) != state {
		return *c.Origin, RedriveAppend, nil
	}
	retry := Retry{Operations: c.operations(state), MaxRevisions: c.MaxRevisions, TraceParent: c.TraceParent, At: c.At}
	if c.Letter.GetOperation() == "" && len(retry.Operations) == 0 {
		if c.OriginFault != "" {
			return events.Event{}, "", &Conflict{Field: "id", Message: "its record still cannot be read by this version (" + c.OriginFault + "), and its job needs nothing; discard it, or redrive it with a version that can"}
		}
		return events.Event{}, "", &Conflict{Field: "id", Message: "its record was taken in meanwhile; there is nothing to do: discard it"}
	}
	for _, op := range state.GetOperations() {
		if slices.Contains(c.Together, op.GetName()) && !slices.Contains(retry.Operations, op.GetName()) && op.GetPhase() == events.OperationPhase_OPERATION_PHASE_FAILED {
			retry.Operations = append(retry.Operations, op.GetName())
		}
	}
	if state == nil {
		return events.Event{}, "", &Conflict{Field: "id", Message: "the read model has no such job; discard it"}
	}
	decided, err := retry.Decide(state)
	var faults Invalid
	if errors.As(err, &faults) {
		return events.Event{}, "", &Conflict{Field: "id", Message: faults.Error()}
	}
	if err != nil {
		return events.Event{}, "", err
	}
	return decided[0], RedriveRetry, nil
}

// operations are those that the letter is about: its own, or those that were given up
// because of its record.
func (c Redrive) operations(state *events.Job) []string {
	if c.Letter.GetOperation() != "" {
		return []string{c.Letter.GetOperation()}
	}
	var all []string
	for _, op := range state.GetOperations() {
		if op.GetPhase() == events.OperationPhase_OPERATION_PHASE_FAILED && op.GetFailureCode() == c.Letter.GetCode() {
			all = append(all, op.GetName())
		}
	}
	return all
}
