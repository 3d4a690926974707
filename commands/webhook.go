package commands

import (
	"encoding/binary"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/events"
)

const webhooksSource = "pixtools/webhooks"

// WebhookPolicy bounds the attempts at posting an outcome.
type WebhookPolicy struct {
	// MaxAttempts of a revision's outcome; after the last there is none by itself.
	MaxAttempts int32
	// BackoffMin is the wait after the first failure; each further one is twice as long,
	// up to BackoffMax. A wait is shorter than that by up to a quarter.
	BackoffMin, BackoffMax time.Duration
	// MaxAge: an outcome that was never posted is not posted when it is older.
	MaxAge time.Duration
}

// wait is for how long to wait after a failed attempt. What it varies by follows from the
// failure's event id: whoever decides decides the same.
func (p WebhookPolicy) wait(attempt int32, failureID string) time.Duration {
	wait := p.BackoffMin
	for ; attempt > 1 && wait < p.BackoffMax; attempt-- {
		wait *= 2
	}
	wait = min(wait, p.BackoffMax)
	id, err := uuid.Parse(failureID)
	if err != nil {
		return wait
	}
	share := float64(binary.BigEndian.Uint32(id[:4])) / (1 << 32)
	return wait - time.Duration(share*float64(wait)/4)
}

// ScheduleWebhook says when the outcome of an ended revision is to be posted, or posted
// again.
type ScheduleWebhook struct {
	WebhookPolicy
	// Full: as many outcomes wait as may. Another is given up at once.
	Full bool
	// TraceParent is that of the event which ended the revision.
	TraceParent string
	At          time.Time
}

// Decide gives WebhookScheduled where an attempt is due and none is scheduled, or
// WebhookFailed where there is no room for it; otherwise nothing.
func (c ScheduleWebhook) Decide(state *events.Job) ([]events.Event, error) {
	hook, revision := state.GetWebhook(), state.GetRevision()
	if state.GetPhase() != events.Phase_PHASE_ENDED || state.GetWebhookUrl() == nil {
		return nil, nil
	}
	if hook.GetRevision() < revision {
		ended := &events.JobFinalized{Revision: revision}
		switch {
		case c.At.Sub(state.GetFinalizedAt().AsTime()) > c.MaxAge:
			return nil, nil
		case c.Full:
			return because(state, ended, c.TraceParent, c.At, &events.WebhookFailed{Revision: revision, Attempt: 1, Code: "too_many_waiting",
				Message: "not attempted: as many webhooks wait as may (WEBHOOK_MAX_PENDING)", Final: true}), nil
		}
		return because(state, ended, c.TraceParent, c.At, &events.WebhookScheduled{Revision: revision, Attempt: 1, Due: state.GetFinalizedAt()}), nil
	}
	if hook.GetDelivered() || hook.GetFailed() || hook.GetDue() != nil {
		return nil, nil
	}
	failed := &events.WebhookFailed{Revision: revision, Attempt: hook.GetAttempt()}
	id := events.New(state.GetId(), c.At, webhooksSource, "", failed).ID
	due := state.GetUpdatedAt().AsTime().Add(c.wait(hook.GetAttempt(), id))
	return because(state, failed, c.TraceParent, c.At, &events.WebhookScheduled{Revision: revision, Attempt: hook.GetAttempt() + 1, Due: timestamppb.New(due)}), nil
}

// because is one event about a job, caused by one of which only the identity is known.
func because(state *events.Job, cause proto.Message, traceParent string, at time.Time, m proto.Message) []events.Event {
	of := events.New(state.GetId(), at, webhooksSource, state.GetCorrelationId(), cause)
	of.TraceParent = traceParent
	return []events.Event{events.Because(of, at, webhooksSource, m)}
}

// WebhookAttempted tells what an attempt came to.
type WebhookAttempted struct {
	WebhookPolicy
	Revision, Attempt int32
	// HTTPStatus is what the receiver answered; 0 if it did not answer.
	HTTPStatus int32
	// Code is a stable word for the failure, empty if the receiver accepted; Message is a
	// sentence without the address.
	Code, Message string
	// Final: a further attempt would be of no use.
	Final bool
	// RetryAfter is for how long the receiver asks to be left alone.
	RetryAfter  time.Duration
	TraceParent string
	At          time.Time
}

// Decide gives WebhookDelivered; or WebhookFailed, and unless that is final the next
// attempt, which only here can heed what the receiver asked for.
func (c WebhookAttempted) Decide(state *events.Job) ([]events.Event, error) {
	scheduled := &events.WebhookScheduled{Revision: c.Revision, Attempt: c.Attempt}
	if c.Code == "" {
		return because(state, scheduled, c.TraceParent, c.At, &events.WebhookDelivered{Revision: c.Revision, Attempt: c.Attempt, HttpStatus: c.HTTPStatus}), nil
	}
	m := &events.WebhookFailed{Revision: c.Revision, Attempt: c.Attempt, HttpStatus: c.HTTPStatus, Code: c.Code, Message: c.Message,
		Final: c.Final || c.Attempt >= c.MaxAttempts}
	told := because(state, scheduled, c.TraceParent, c.At, m)
	if m.GetFinal() {
		return told, nil
	}
	wait := max(c.wait(c.Attempt, told[0].ID), min(c.RetryAfter, c.BackoffMax))
	next := &events.WebhookScheduled{Revision: c.Revision, Attempt: c.Attempt + 1, Due: timestamppb.New(c.At.Add(wait))}
	return append(told, events.Because(told[0], c.At, webhooksSource, next)), nil
}

// RedeliverWebhook asks for the outcome to be posted once more.
type RedeliverWebhook struct {
	TraceParent string
	At          time.Time
}

// Decide gives WebhookScheduled, which tells the whole job: who posts it may have forgotten
// it. *Conflict where there is nothing to post.
func (c RedeliverWebhook) Decide(state *events.Job) ([]events.Event, error) {
	revision := state.GetRevision()
	hook := state.GetWebhook()
	if hook.GetRevision() < revision {
		hook = nil
	}
	switch {
	case state.GetPhase() == events.Phase_PHASE_OPEN:
		return nil, &Conflict{Field: "job_id", Message: "the job has not ended yet; its webhook is called when it has"}
	case state.GetPhase() != events.Phase_PHASE_ENDED:
		return nil, &Conflict{Field: "job_id", Message: "the job was deleted"}
	case state.GetWebhookUrl() == nil:
		return nil, &Conflict{Field: "job_id", Message: "the job has no webhook address: submit the picture again with webhook_url, or set an address with `pixtools webhooks address set` before you do"}
	case hook.GetDelivered():
		return nil, &Conflict{Field: "job_id", Message: "the webhook was delivered; there is nothing to deliver again"}
	}
	m := &events.WebhookScheduled{Revision: revision, Attempt: hook.GetAttempt() + 1, Due: timestamppb.New(c.At),
		Request: requestOf(state), RequestedAt: state.GetRequestedAt(), Outcome: state.GetOutcome(), FinalizedAt: state.GetFinalizedAt()}
	for _, op := range state.GetOperations() {
		switch op.GetPhase() {
		case events.OperationPhase_OPERATION_PHASE_COMPLETED:
			m.Completed = append(m.Completed, completionOf(revision, op))
		case events.OperationPhase_OPERATION_PHASE_FAILED:
			m.Failed = append(m.Failed, failureOf(revision, op))
		case events.OperationPhase_OPERATION_PHASE_CANCELLED:
			m.Cancelled = append(m.Cancelled, op.GetName())
		}
	}
	e := events.New(state.GetId(), c.At, "pixtools/api", state.GetCorrelationId(), m)
	e.TraceParent = c.TraceParent
	return []events.Event{e}, nil
}
