package api

import (
	"context"
	"encoding/json"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// Webhook is what became of posting the job's outcome. It never holds the address.
type Webhook struct {
	State    string     `json:"state" description:"NONE before the job's end, SCHEDULED, DELIVERED or FAILED"`
	Revision int32      `json:"revision" description:"Whose outcome is posted"`
	Attempts int32      `json:"attempts" description:"The last attempt that was scheduled or made"`
	NextDue  *time.Time `json:"next_due" description:"When the next attempt is due"`
	LastCode string     `json:"last_error_code,omitempty" description:"Of the last attempt that failed: timeout, unreachable, name_not_resolved, address_refused, redirect, status, gone, ..."`
}

// webhookOf is nil for a job without an address.
func webhookOf(state *events.Job) *Webhook {
	if state.GetWebhookUrl() == nil {
		return nil
	}
	hook := state.GetWebhook()
	w := &Webhook{State: "NONE", Revision: hook.GetRevision(), Attempts: hook.GetAttempt(), LastCode: hook.GetFailureCode()}
	switch {
	case hook.GetDelivered():
		w.State = "DELIVERED"
	case hook.GetFailed():
		w.State = "FAILED"
	case hook != nil:
		w.State = "SCHEDULED"
		if hook.GetDue() != nil {
			due := hook.GetDue().AsTime()
			w.NextDue = &due
		}
	}
	return w
}

// Outcome is the body that a webhook posts: the first three members are those of the Python
// service.
type Outcome struct {
	JobID      string            `json:"job_id"`
	Status     string            `json:"status"`
	ResultURLs map[string]string `json:"result_urls"`

	Outcome          string            `json:"outcome"`
	OperationResults map[string]Result `json:"operation_results"`
	Revision         int32             `json:"revision"`
	EventID          string            `json:"event_id"`
}

// OutcomeBody is the outcome of a job's revision that has ended, with links signed now. The
// event is that of its end.
func OutcomeBody(ctx context.Context, store *blob.Store, keys *secrets.Keyring, kept commands.Retention, state *events.Job, eventID string) ([]byte, error) {
	name, err := keys.Open(ctx, state.GetId(), state.GetFileName())
	if err != nil {
		name = "" // links go without it
	}
	job := jobOf(state)
	keptUntil(kept, &job, state)
	if err := linkResults(ctx, store, &job, state, name); err != nil {
		return nil, err
	}
	status := "FAILED" // what became of posting it is not told by it
	if outcome := state.GetOutcome(); outcome == events.Outcome_OUTCOME_SUCCEEDED || outcome == events.Outcome_OUTCOME_PARTIAL {
		status = "COMPLETED"
	}
	return json.Marshal(Outcome{JobID: job.JobID, Status: status, ResultURLs: job.ResultURLs, Outcome: *job.Outcome,
		OperationResults: job.OperationResults, Revision: job.Revision, EventID: eventID})
}

// Redelivered answers a redelivery.
type Redelivered struct {
	JobID    string `json:"job_id" format:"uuid"`
	Revision int32  `json:"revision" description:"Whose outcome is posted"`
	Attempt  int32  `json:"attempt" description:"The attempt that is due now"`
}

// redeliver answers POST /api/jobs/{job_id}/webhook.
func (s *Server) redeliver(c fuego.ContextNoBody) (Redelivered, error) {
	id, err := jobID(c.PathParam("job_id"))
	if err != nil {
		return Redelivered{}, err
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	state, err := s.findLatest(ctx, id)
	if err != nil {
		return Redelivered{}, err
	}
	decided, err := commands.RedeliverWebhook{TraceParent: telemetry.TraceParent(c.Context()), At: time.Now()}.Decide(state)
	if err != nil {
		return Redelivered{}, stateConflict(err)
	}
	if err := s.accept(c, decided[0]); err != nil {
		return Redelivered{}, err
	}
	m := decided[0].Message.(*events.WebhookScheduled)
	s.Log.InfoContext(ctx, "webhook redelivery requested", "revision", m.GetRevision(), "attempt", m.GetAttempt())
	return Redelivered{JobID: id, Revision: m.GetRevision(), Attempt: m.GetAttempt()}, nil
}

// WatchAddresses keeps the tenants' default addresses in memory, so that a submission need
// not ask, until ctx is done.
func (s *Server) WatchAddresses(ctx context.Context) error {
	look := time.NewTicker(s.cfg.AddressRefresh)
	defer look.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		err := s.Webhooks.ReadAddresses(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			s.Log.Warn("the tenants' webhook addresses cannot be read; the last ones count", "error", err)
		}
		failing = err != nil
	}
}

// webhookAddress is where the outcome goes: to the job's own address, or its tenant's.
func (s *Server) webhookAddress(tenant, own string) string {
	if own != "" {
		return own
	}
	return s.Webhooks.Address(tenant)
}
