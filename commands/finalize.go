package commands

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pixtools/pixtools/events"
)

// Finalize ends a revision whose operations have all ended.
type Finalize struct {
	// Cause is the event after which nothing was open any more.
	Cause events.Event
	At    time.Time
}

// Decide gives JobFinalized for a settled job, otherwise nothing.
func (c Finalize) Decide(state *events.Job) ([]events.Event, error) {
	if !state.Settled() {
		return nil, nil
	}
	totals := totalsOf(state)
	return []events.Event{events.Because(c.Cause, c.At, "pixtools/saga", &events.JobFinalized{
		Revision: state.GetRevision(), Outcome: outcomeOf(totals), Totals: totals,
	})}, nil
}

func totalsOf(state *events.Job) *events.Totals {
	totals, cpu := &events.Totals{}, time.Duration(0)
	for _, op := range state.GetOperations() {
		switch op.GetPhase() {
		case events.OperationPhase_OPERATION_PHASE_COMPLETED:
			totals.Completed++
			totals.ArtifactBytes += op.GetArtifact().GetBytes()
			cpu += op.GetCpuTime().AsDuration()
		case events.OperationPhase_OPERATION_PHASE_FAILED:
			totals.Failed++
		case events.OperationPhase_OPERATION_PHASE_CANCELLED:
			totals.Cancelled++
		}
	}
	totals.CpuTime = durationpb.New(cpu)
	return totals
}

func outcomeOf(t *events.Totals) events.Outcome {
	switch {
	case t.GetFailed()+t.GetCancelled() == 0:
		return events.Outcome_OUTCOME_SUCCEEDED
	case t.GetCompleted() > 0:
		return events.Outcome_OUTCOME_PARTIAL
	case t.GetFailed() > 0:
		return events.Outcome_OUTCOME_FAILED
	}
	return events.Outcome_OUTCOME_CANCELLED
}
