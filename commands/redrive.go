package commands

import (
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
	// Together are dead letters of the same job that are redriven with this one: a revision
	// has one request.
	Together     []*events.DeadLetter
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
	retry := Retry{Operations: operationsOf(c.Letter, state), MaxRevisions: c.MaxRevisions, TraceParent: c.TraceParent, At: c.At}
	if c.Letter.GetOperation() == "" && len(retry.Operations) == 0 {
		if state.GetPhase() == events.Phase_PHASE_OPEN {
			return events.Event{}, "", &Conflict{Field: "id", Message: "its job has not ended yet: wait for its end, and see then"}
		}
		if c.OriginFault != "" {
			return events.Event{}, "", &Conflict{Field: "id", Message: "its record still cannot be read by this version (" + c.OriginFault + "), and its job needs nothing; discard it, or redrive it with a version that can"}
		}
		return events.Event{}, "", &Conflict{Field: "id", Message: "its record was taken in meanwhile; there is nothing to do: discard it"}
	}
	for _, other := range c.Together {
		for _, name := range operationsOf(other, state) {
			if !slices.Contains(retry.Operations, name) && failed(state, name) {
				retry.Operations = append(retry.Operations, name)
			}
		}
	}
	if state == nil {
		return events.Event{}, "", &Conflict{Field: "id", Message: "the read model has no such job; discard it"}
	}
	if done := c.Letter.GetOperation(); done != "" && state.GetPhase() == events.Phase_PHASE_ENDED && !failed(state, done) {
		return events.Event{}, "", &Conflict{Field: "id", Message: done + " has completed since, or was cancelled; there is nothing to do: discard it"}
	}
	decided, err := retry.Decide(state)
	if err != nil {
		return events.Event{}, "", err
	}
	return decided[0], RedriveRetry, nil
}

// operationsOf are those that a letter is about: its own, or those that were given up
// because of its record.
func operationsOf(letter *events.DeadLetter, state *events.Job) []string {
	if letter.GetOperation() != "" {
		return []string{letter.GetOperation()}
	}
	var all []string
	for _, op := range state.GetOperations() {
		if failed(state, op.GetName()) && op.GetFailureCode() == letter.GetCode() {
			all = append(all, op.GetName())
		}
	}
	return all
}

func failed(state *events.Job, name string) bool {
	return slices.ContainsFunc(state.GetOperations(), func(op *events.OperationState) bool {
		return op.GetName() == name && op.GetPhase() == events.OperationPhase_OPERATION_PHASE_FAILED
	})
}
