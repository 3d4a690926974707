package commands

import (
	"time"

	"github.com/pixtools/pixtools/events"
)

// Adopt brings in a job that another service did, or left undone, under the id that it had
// there.
type Adopt struct {
	JobID, Tenant string
	// Operations in the order of the request.
	Operations []string
	Source     *events.Source
	// SourceGone: its bytes are no more.
	SourceGone bool
	// FileName and WebhookURL are sealed already.
	FileName, WebhookURL *events.Sealed
	// WebhookFailed: the outcome could not be posted.
	WebhookFailed bool
	// Fingerprint is that of the request, or empty where nobody knows all of it.
	Fingerprint []byte
	// IdempotencyJobID is the id of jobs under its idempotency key here; empty: it has no key.
	IdempotencyJobID string
	// Results by operation, and of which of them the bytes are no more.
	Results map[string]*events.Artifact
	Gone    map[string]bool
	// Attempt is the last one at each operation, counted from 1.
	Attempt int32
	// Code, a stable word, and Message, a sentence that holds nothing personal, say why the
	// other operations have no result.
	Code, Message string
	// RequestedAt and EndedAt are the other service's times, At is ours.
	RequestedAt, EndedAt, At time.Time
}

// Decide gives all events of the job, from its request to its end and what is gone of it:
// they belong into the log together. It gives nothing where the job is there, and Invalid
// where it asks for what there is not.
func (c Adopt) Decide(state *events.Job) ([]events.Event, error) {
	if state != nil {
		return nil, nil
	}
	if faults := CheckOperations(c.Operations, nil, ""); faults != nil {
		return nil, faults
	}
	m := &events.JobRequested{Tenant: c.Tenant, Source: c.Source, FileName: c.FileName, WebhookUrl: c.WebhookURL,
		IdempotencyFingerprint: c.Fingerprint, IdempotencyJobId: c.IdempotencyJobID}
	for _, name := range c.Operations {
		m.Operations = append(m.Operations, &events.Operation{Name: name})
	}
	requested := events.New(c.JobID, c.RequestedAt, events.ImportSource, c.JobID, m)
	all := []events.Event{requested}
	state = events.Fold(nil, requested)
	tell := func(e events.Event) {
		e.Source = events.ImportSource
		all, state = append(all, e), events.Fold(state, e)
	}
	expired := &events.ArtifactsExpired{Source: c.SourceGone}
	for _, name := range c.Operations {
		made := c.Results[name]
		if made == nil {
			tell(events.Because(requested, c.EndedAt, events.ImportSource, &events.OperationFailed{Revision: 1, Operation: name, Attempt: c.Attempt,
				Kind: events.FailureKind_FAILURE_KIND_INTERNAL, Code: c.Code, Message: c.Message}))
			continue
		}
		if c.Gone[name] {
			expired.Operations = append(expired.Operations, name)
		}
		tell(events.Because(requested, c.EndedAt, events.ImportSource, &events.OperationCompleted{Revision: 1, Operation: name, Attempt: c.Attempt, Artifact: made}))
	}
	ends, err := Finalize{Cause: all[len(all)-1], At: c.EndedAt}.Decide(state)
	if err != nil {
		return nil, err
	}
	for _, end := range ends {
		tell(end)
	}
	final := all[len(all)-1]
	if c.WebhookFailed && c.WebhookURL != nil {
		tell(events.Because(final, c.EndedAt, events.ImportSource, &events.WebhookFailed{Revision: 1, Attempt: 1,
			Code: "legacy_webhook_failed", Message: "the service that the job came from could not deliver it", Final: true}))
	}
	if expired.GetSource() || len(expired.GetOperations()) > 0 {
		tell(events.Because(final, c.At, events.ImportSource, expired))
	}
	return all, nil
}
