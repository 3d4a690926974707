package commands

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pixtools/pixtools/events"
)

// Complete reports a stored artifact.
type Complete struct {
	// Started is the attempt's OperationStarted.
	Started     events.Event
	Artifact    *events.Artifact
	CPUTime     time.Duration
	Engine      string
	ModelSHA256 string
	At          time.Time
}

// Decide gives OperationCompleted, or nothing where another outcome came first.
func (c Complete) Decide(state *events.Job) ([]events.Event, error) {
	attempt := c.Started.Message.(*events.OperationStarted)
	if waiting(state, attempt.GetOperation()) == nil || state.GetRevision() != attempt.GetRevision() {
		return nil, nil
	}
	return []events.Event{events.Because(c.Started, c.At, source(attempt.GetOperation()), &events.OperationCompleted{
		Revision: attempt.GetRevision(), Operation: attempt.GetOperation(), Attempt: attempt.GetAttempt(),
		Artifact: c.Artifact, Duration: durationpb.New(c.At.Sub(c.Started.Time)), CpuTime: durationpb.New(c.CPUTime),
		Engine: c.Engine, ModelSha256: c.ModelSHA256,
	})}, nil
}
