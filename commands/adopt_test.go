package commands

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/events"
)

// TestAdopt: a job that came from elsewhere is whole, ended, and the Fold of its events.
func TestAdopt(t *testing.T) {
	const id = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
	began, ended, now := time.Unix(1000, 0).UTC(), time.Unix(1010, 0).UTC(), time.Unix(9000, 0).UTC()
	webp := &events.Artifact{Key: "processed/" + id + "/webp.webp", Sha256: "aa", Bytes: 7, Format: "webp"}
	c := Adopt{JobID: id, Tenant: "default", Operations: []string{"webp", "avif", "jpg"}, Source: &events.Source{Key: "raw/" + id + "/gone"}, SourceGone: true,
		WebhookURL: &events.Sealed{KeyId: "k"}, WebhookFailed: true, IdempotencyJobID: "0a1b2c3d-0000-5000-8000-000000000001",
		Results: map[string]*events.Artifact{"webp": webp, "avif": {Key: "processed/" + id + "/avif/gone", Format: "avif"}}, Gone: map[string]bool{"avif": true},
		Attempt: 3, Code: "legacy_unfinished", Message: "not finished", RequestedAt: began, EndedAt: ended, At: now}
	all, err := c.Decide(nil)
	require.NoError(t, err)
	var state *events.Job
	var names []string
	known := map[string]bool{"": true}
	for _, e := range all {
		require.True(t, e.Imported())
		require.True(t, known[e.CausationID], "what caused it is told before it")
		require.Equal(t, events.New(id, e.Time, "", "", e.Message).ID, e.ID, "derived")
		known[e.ID] = true
		before := state
		state = events.Fold(state, e)
		require.NotSame(t, before, state, "%s counts", e.Name())
		names = append(names, e.Name())
	}
	require.Equal(t, []string{"JobRequested", "OperationCompleted", "OperationCompleted", "OperationFailed", "JobFinalized", "WebhookFailed", "ArtifactsExpired"}, names)
	require.Equal(t, events.Outcome_OUTCOME_PARTIAL, state.GetOutcome())
	require.Equal(t, []time.Time{began, ended, now}, []time.Time{state.GetRequestedAt().AsTime(), state.GetFinalizedAt().AsTime(), state.GetUpdatedAt().AsTime()})
	require.True(t, state.GetSourceExpired() && state.GetWebhook().GetFailed() && state.GetOperations()[1].GetArtifactExpired())
	require.False(t, state.GetOperations()[0].GetArtifactExpired())
	require.Equal(t, c.IdempotencyJobID, state.GetIdempotencyJobId())
	deleted := events.Fold(state, events.New(id, now, "", "", &events.JobDeleted{}))
	require.Equal(t, c.IdempotencyJobID, deleted.GetIdempotencyJobId(), "its key stays used")

	// Nobody knows what was asked: any request under its key is a repeat.
	submit := Submit{JobID: c.IdempotencyJobID, Fingerprint: []byte{1}}
	repeat, err := submit.Decide(state)
	require.NoError(t, err)
	require.Empty(t, repeat)
	state.IdempotencyFingerprint = []byte{2}
	_, err = submit.Decide(state)
	require.ErrorAs(t, err, new(*Conflict))

	again, err := c.Decide(state)
	require.NoError(t, err)
	require.Empty(t, again)
	c.Operations = []string{"sharpen"}
	_, err = c.Decide(nil)
	require.ErrorAs(t, err, new(Invalid))
}

// TestAdoptedIsRetried: what an imported job lacks may be asked for, and it tells of its key.
func TestAdoptedIsRetried(t *testing.T) {
	const id = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
	c := Adopt{JobID: id, Tenant: "default", Operations: []string{"webp"}, Source: &events.Source{Key: "raw/" + id + "/aa", Sha256: "aa"}, IdempotencyJobID: "0a1b2c3d-0000-5000-8000-000000000001",
		Attempt: 1, Code: "legacy_unfinished", RequestedAt: time.Unix(1, 0), EndedAt: time.Unix(2, 0)}
	all, err := c.Decide(nil)
	require.NoError(t, err)
	var state *events.Job
	for _, e := range all {
		state = events.Fold(state, e)
	}
	again, err := Retry{MaxRevisions: 2, At: time.Unix(3, 0)}.Decide(state)
	require.NoError(t, err)
	for _, known := range []*events.Job{state, nil} { // who has forgotten it, too
		open := events.Fold(known, again[0])
		require.Equal(t, events.OperationPhase_OPERATION_PHASE_PENDING, open.GetOperations()[0].GetPhase())
		require.Equal(t, c.IdempotencyJobID, open.GetIdempotencyJobId())
	}
}
