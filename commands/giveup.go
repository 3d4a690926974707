package commands

import (
	"time"

	"github.com/pixtools/pixtools/events"
)

// GiveUp fails, for good, operations whose outcome cannot be waited for any longer.
type GiveUp struct {
	// Cause is the event that cannot be handled; none where time is the cause.
	Cause events.Event
	// Operation to give up; empty: all that have no outcome.
	Operation string
	Kind      events.FailureKind
	// Code is a stable word, Message a sentence that holds nothing personal.
	Code, Message string
	// Source names the part of PixTools that gives up.
	Source string
	At     time.Time
}

// Decide gives an OperationFailed for each of them, and nothing where none is open.
func (c GiveUp) Decide(state *events.Job) ([]events.Event, error) {
	var all []events.Event
	for _, op := range state.GetOperations() {
		if waiting(state, op.GetName()) == nil || c.Operation != "" && c.Operation != op.GetName() {
			continue
		}
		e := events.New(state.GetId(), c.At, c.Source, state.GetCorrelationId(), &events.OperationFailed{
			Revision: state.GetRevision(), Operation: op.GetName(), Attempt: op.GetAttempt(), Kind: c.Kind, Code: c.Code, Message: c.Message,
		})
		e.CausationID, e.TraceParent = c.Cause.ID, c.Cause.TraceParent
		all = append(all, e)
	}
	return all, nil
}
