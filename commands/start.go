package commands

import (
	"fmt"
	"time"

	"github.com/pixtools/pixtools/events"
)

// Start begins an attempt at an operation.
type Start struct {
	// Cause is the event that asked for the work.
	Cause     events.Event
	Operation string
	// MaxAttempts bounds the attempts in a revision, those that a dead worker
	// began included.
	MaxAttempts int32
	Worker      string
	At          time.Time
}

// Decide gives OperationStarted with the next attempt; OperationFailed where the
// attempts are used up; nothing where the operation waits for no attempt.
func (c Start) Decide(state *events.Job) ([]events.Event, error) {
	op := waiting(state, c.Operation)
	if op == nil {
		return nil, nil
	}
	if op.GetAttempt() >= c.MaxAttempts {
		return []events.Event{events.Because(c.Cause, c.At, source(c.Operation), &events.OperationFailed{
			Revision: state.GetRevision(), Operation: c.Operation, Attempt: op.GetAttempt(),
			Kind: events.FailureKind_FAILURE_KIND_INTERNAL, Code: "attempts_used_up",
			Message: fmt.Sprintf("given up after %d attempts that ended without a result", op.GetAttempt()),
		})}, nil
	}
	return []events.Event{events.Because(c.Cause, c.At, source(c.Operation), &events.OperationStarted{
		Revision: state.GetRevision(), Operation: c.Operation, Attempt: op.GetAttempt() + 1, Worker: c.Worker,
	})}, nil
}

// waiting is the open job's operation that has no outcome yet, or nil.
func waiting(state *events.Job, name string) *events.OperationState {
	if state.GetPhase() != events.Phase_PHASE_OPEN {
		return nil
	}
	for _, op := range state.GetOperations() {
		if op.GetName() == name && !op.Ended() {
			return op
		}
	}
	return nil
}

func source(operation string) string { return "pixtools/" + operation }
