package commands

import (
	"time"

	"github.com/pixtools/pixtools/events"
)

// Delete removes a job and what it has stored, for good.
type Delete struct {
	// Reason is shown to whoever reads the log; it holds nothing personal.
	Reason string
	// Source is the part of PixTools that asks, for instance "pixtools/api".
	Source      string
	TraceParent string
	At          time.Time
}

// Decide gives JobDeleted, or *Conflict where the job is open: who works on it would go on
// for a while, and its end is what clients wait for. A job that is deleted, or was never
// there, has nothing to delete: that is for the caller to say, as for a query.
func (c Delete) Decide(state *events.Job) ([]events.Event, error) {
	switch state.GetPhase() {
	case events.Phase_PHASE_OPEN:
		return nil, &Conflict{Field: "job_id", Message: "the job has not ended yet: cancel it, wait for its end, and delete it then"}
	case events.Phase_PHASE_ENDED:
	default:
		return nil, nil
	}
	e := events.New(state.GetId(), c.At, c.Source, state.GetCorrelationId(), &events.JobDeleted{Reason: c.Reason})
	e.TraceParent = c.TraceParent
	return []events.Event{e}, nil
}
