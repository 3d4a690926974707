package commands

import (
	"fmt"
	"slices"
	"time"

	"github.com/pixtools/pixtools/events"
)

// Retry asks for operations again that did not complete, as a new revision of the job.
type Retry struct {
	// Operations to run again; empty: all that did not complete.
	Operations []string
	// MaxRevisions bounds the revisions of a job.
	MaxRevisions int32
	TraceParent  string
	At           time.Time
}

// Decide gives OperationRetryRequested; Invalid where an operation is not the job's, and
// *Conflict where the job cannot be retried.
func (c Retry) Decide(state *events.Job) ([]events.Event, error) {
	switch {
	case state.GetPhase() == events.Phase_PHASE_OPEN:
		return nil, &Conflict{Field: "job_id", Message: "the job has not ended yet; wait for its end, or cancel it"}
	case state.GetPhase() != events.Phase_PHASE_ENDED:
		return nil, &Conflict{Field: "job_id", Message: "the job was deleted"}
	case state.GetSourceExpired():
		return nil, &Conflict{Field: "job_id", Message: "the job's source has expired; submit the picture again"}
	case state.GetRevision() >= c.MaxRevisions:
		return nil, &Conflict{Field: "job_id", Message: fmt.Sprintf("the job has had %d revisions, the limit (JOB_MAX_REVISIONS); submit the picture again", state.GetRevision())}
	}
	m := &events.OperationRetryRequested{Revision: state.GetRevision() + 1, Request: requestOf(state), RequestedAt: state.GetRequestedAt()}
	named := map[string]bool{}
	var faults Invalid
	for _, name := range c.Operations {
		if !slices.ContainsFunc(state.GetOperations(), func(op *events.OperationState) bool { return op.GetName() == name }) {
			faults = append(faults, Fault{"operations", fmt.Sprintf("Invalid operations: %q is no operation of this job", clip(name))})
		}
		if named[name] {
			faults = append(faults, Fault{"operations", fmt.Sprintf("Invalid operations: %q is named more than once", clip(name))})
		}
		named[name] = true
	}
	if faults != nil {
		return nil, faults
	}
	for _, op := range state.GetOperations() {
		wanted := len(named) == 0 || named[op.GetName()]
		switch {
		case op.GetPhase() == events.OperationPhase_OPERATION_PHASE_COMPLETED && named[op.GetName()]:
			return nil, &Conflict{Field: "operations", Message: fmt.Sprintf("%s has completed; there is nothing to retry", op.GetName())}
		case op.GetPhase() == events.OperationPhase_OPERATION_PHASE_COMPLETED:
			m.Completed = append(m.Completed, completionOf(state.GetRevision(), op))
		case wanted:
			m.Operations = append(m.Operations, op.GetName())
		case op.GetPhase() == events.OperationPhase_OPERATION_PHASE_CANCELLED:
			m.Cancelled = append(m.Cancelled, op.GetName())
		default:
			m.Failed = append(m.Failed, failureOf(state.GetRevision(), op))
		}
	}
	if len(m.GetOperations()) == 0 {
		return nil, &Conflict{Field: "job_id", Message: "every operation of the job has completed; there is nothing to retry"}
	}
	e := events.New(state.GetId(), c.At, "pixtools/api", state.GetCorrelationId(), m)
	e.TraceParent = c.TraceParent
	return []events.Event{e}, nil
}

// requestOf is the job's JobRequested, once more.
func requestOf(state *events.Job) *events.JobRequested {
	m := &events.JobRequested{Tenant: state.GetTenant(), Source: state.GetSource(), FileName: state.GetFileName(),
		WebhookUrl: state.GetWebhookUrl(), IdempotencyFingerprint: state.GetIdempotencyFingerprint(), IdempotencyJobId: state.GetIdempotencyJobId()}
	for _, op := range state.GetOperations() {
		m.Operations = append(m.Operations, &events.Operation{Name: op.GetName(), Parameters: op.GetParameters()})
	}
	return m
}

// completionOf and failureOf are the events that ended an operation, as far as its state
// tells.
func completionOf(revision int32, op *events.OperationState) *events.OperationCompleted {
	return &events.OperationCompleted{Revision: revision, Operation: op.GetName(), Attempt: op.GetAttempt(),
		Artifact: op.GetArtifact(), CpuTime: op.GetCpuTime(), Engine: op.GetEngine(), ModelSha256: op.GetModelSha256()}
}

func failureOf(revision int32, op *events.OperationState) *events.OperationFailed {
	return &events.OperationFailed{Revision: revision, Operation: op.GetName(), Attempt: op.GetAttempt(),
		Kind: op.GetFailureKind(), Code: op.GetFailureCode(), Message: op.GetFailureMessage()}
}
