package commands

import (
	"time"

	"github.com/pixtools/pixtools/events"
)

// Retention is how long stored pictures are kept.
type Retention struct {
	// Sources counts from the request, Results from when each was made or put in another's
	// place.
	Sources, Results time.Duration
}

// SourceUntil is when a job's source expires.
func (r Retention) SourceUntil(state *events.Job) time.Time {
	return state.GetRequestedAt().AsTime().Add(r.Sources)
}

// ResultUntil is when the artifact of an operation expires.
func (r Retention) ResultUntil(op *events.OperationState) time.Time {
	return op.MadeAt().Add(r.Results)
}

// Expire lets go of what a job has stored for longer than its retention.
type Expire struct {
	Retention
	At time.Time
}

// Decide gives ArtifactsExpired, or nothing where nothing is due. Nothing of an open job is:
// it needs its source, and ends soon.
func (c Expire) Decide(state *events.Job) []events.Event {
	if state.GetPhase() != events.Phase_PHASE_ENDED {
		return nil
	}
	m := &events.ArtifactsExpired{Revision: state.GetRevision(),
		Source: !state.GetSourceExpired() && !c.SourceUntil(state).After(c.At)}
	for _, op := range state.GetOperations() {
		if op.GetArtifact() != nil && !op.GetArtifactExpired() && !c.ResultUntil(op).After(c.At) {
			m.Operations, m.Sha256 = append(m.Operations, op.GetName()), append(m.Sha256, op.GetArtifact().GetSha256())
		}
	}
	if !m.GetSource() && len(m.GetOperations()) == 0 {
		return nil
	}
	return []events.Event{events.New(state.GetId(), c.At, "pixtools/janitor", state.GetCorrelationId(), m)}
}
