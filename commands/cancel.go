package commands

import (
	"time"

	"github.com/pixtools/pixtools/events"
)

// Cancel gives up the operations of a job that have no outcome yet. What has completed
// stays.
type Cancel struct {
	TraceParent string
	// Reason is shown to whoever reads the job's history; it holds nothing personal.
	Reason string
	At     time.Time
}

// Decide gives JobCancelRequested, or *Conflict where nothing is left to cancel.
func (c Cancel) Decide(state *events.Job) ([]events.Event, error) {
	if state.GetPhase() != events.Phase_PHASE_OPEN || state.Settled() {
		return nil, &Conflict{Field: "job_id", Message: "the job has ended; there is nothing left to cancel"}
	}
	e := events.New(state.GetId(), c.At, "pixtools/api", state.GetCorrelationId(), &events.JobCancelRequested{
		Revision: state.GetRevision(), Reason: c.Reason,
	})
	e.TraceParent = c.TraceParent
	return []events.Event{e}, nil
}
