package commands

import (
	"time"

	"github.com/pixtools/pixtools/events"
)

// Fail reports that an operation failed for good.
type Fail struct {
	// Started is the attempt's OperationStarted.
	Started events.Event
	Kind    events.FailureKind
	// Code is a stable word, Message a sentence that holds nothing personal.
	Code, Message string
	At            time.Time
}

// Decide gives OperationFailed, or nothing where another outcome came first.
func (c Fail) Decide(state *events.Job) ([]events.Event, error) {
	attempt := c.Started.Message.(*events.OperationStarted)
	if waiting(state, attempt.GetOperation()) == nil || state.GetRevision() != attempt.GetRevision() {
		return nil, nil
	}
	return []events.Event{events.Because(c.Started, c.At, source(attempt.GetOperation()), &events.OperationFailed{
		Revision: attempt.GetRevision(), Operation: attempt.GetOperation(), Attempt: attempt.GetAttempt(),
		Kind: c.Kind, Code: c.Code, Message: c.Message,
	})}, nil
}
