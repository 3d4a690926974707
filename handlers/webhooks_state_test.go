package handlers

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
)

func hookEvent(m proto.Message) events.Event {
	e := events.New(events.JobID("test", "hook"), hooksNow, "test", "req", m)
	e.TraceParent = "trace of " + e.Name()
	return e
}

var (
	hookRequest   = hookEvent(&events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, WebhookUrl: &events.Sealed{KeyId: "k"}})
	hookEnd       = hookEvent(&events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_FAILED})
	hookDue       = hookEvent(&events.WebhookScheduled{Revision: 1, Attempt: 1, Due: timestamppb.New(hooksNow)})
	hookDelivered = hookEvent(&events.WebhookDelivered{Revision: 1, Attempt: 1})
	hookRetry     = hookEvent(&events.OperationRetryRequested{Revision: 2, Operations: []string{"webp"}})
)

func opFailed(revision int32) events.Event {
	return hookEvent(&events.OperationFailed{Revision: revision, Operation: "webp"})
}

func hookLife(all ...events.Event) (p *events.PendingWebhook) {
	for _, e := range all {
		before := proto.Clone(p)
		next := takeIn(p, e)
		if !proto.Equal(before, p) {
			panic("what was given was changed")
		}
		p = next
	}
	return p
}

// What is kept of a job, and until when.
func TestPendingWebhooks(t *testing.T) {
	ended := []events.Event{hookRequest, opFailed(1), hookEnd}
	require.Nil(t, hookLife(hookEvent(&events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}})), "nothing without an address")
	require.Nil(t, hookLife(ended[1:]...), "nor of a job whose request we do not know")
	require.NotNil(t, hookLife(hookRequest))
	p := hookLife(ended...)
	require.True(t, awaits(subject(p)))
	require.Equal(t, hookEnd.TraceParent, p.GetTraceParent())
	require.Same(t, p, takeIn(p, hookEnd), "a repeat")
	require.Nil(t, hookLife(append(ended, hookDelivered)...))
	require.Nil(t, hookLife(append(ended, hookDue, hookEvent(&events.WebhookFailed{Revision: 1, Attempt: 1, Final: true}))...))
	require.NotNil(t, hookLife(append(ended, hookDue, hookEvent(&events.WebhookFailed{Revision: 1, Attempt: 1}))...))
	require.Nil(t, hookLife(append(ended, hookEvent(&events.JobDeleted{}))...))

	// A retry does not lose the outcome that is not posted yet.
	p = hookLife(append(ended, hookDue, hookRetry, opFailed(2))...)
	require.EqualValues(t, 1, subject(p).GetRevision())
	require.Equal(t, hooksNow, subject(p).GetWebhook().GetDue().AsTime())
	require.EqualValues(t, 2, p.GetJob().GetRevision())
	after := takeIn(p, hookDelivered)
	require.Nil(t, after.GetEnded())
	require.Equal(t, events.Phase_PHASE_OPEN, subject(after).GetPhase(), "and then waits for the next")
	// The next outcome takes its place.
	next := takeIn(p, hookEvent(&events.JobFinalized{Revision: 2, Outcome: events.Outcome_OUTCOME_FAILED}))
	require.Nil(t, next.GetEnded())
	require.EqualValues(t, 2, subject(next).GetRevision())
	require.True(t, awaits(subject(next)))
	// One that was posted is nothing to keep.
	require.Nil(t, hookLife(append(ended, hookDue, hookRetry, hookDelivered)...).GetEnded())

	// Who has forgotten the job posts a redelivery.
	redelivery := hookEvent(&events.WebhookScheduled{Revision: 1, Attempt: 4, Due: timestamppb.New(hooksNow), Outcome: events.Outcome_OUTCOME_FAILED,
		Request: hookRequest.Message.(*events.JobRequested), Failed: []*events.OperationFailed{{Revision: 1, Operation: "webp"}}})
	require.True(t, begins(redelivery))
	require.True(t, begins(hookRequest))
	require.False(t, begins(hookDue))
	require.True(t, awaits(subject(hookLife(redelivery))))
	require.True(t, awaits(subject(hookLife(hookRequest, redelivery))), "also after a late repeat of its beginning")
}

// What follows is decided once for what was read together, and after a restart again.
func TestPendingWebhooksAreScheduled(t *testing.T) {
	policy := commands.WebhookPolicy{MaxAttempts: 3, BackoffMin: time.Second, BackoffMax: time.Minute, MaxAge: time.Hour}
	h := &hooks{jobs: map[string]*events.PendingWebhook{}, next: -1}
	c := newHookChanges(h)
	for _, e := range []events.Event{hookRequest, opFailed(1), hookEnd, hookDue, hookEvent(&events.WebhookFailed{Revision: 1, Attempt: 1}),
		hookEvent(&events.WebhookScheduled{Revision: 1, Attempt: 2, Due: timestamppb.New(hooksNow.Add(time.Minute))})} {
		c.take(e)
	}
	require.NoError(t, c.schedule(policy, false, hooksNow))
	require.Empty(t, c.emitted, "all is scheduled in what was read")
	c.take(hookEvent(&events.WebhookFailed{Revision: 1, Attempt: 2}))
	require.NoError(t, c.schedule(policy, false, hooksNow))
	require.Len(t, c.emitted, 1)
	require.EqualValues(t, 3, c.emitted[0].Message.(*events.WebhookScheduled).GetAttempt())
	require.NoError(t, c.schedule(policy, false, hooksNow))
	require.Len(t, c.emitted, 1, "once")
	c.live = true
	require.Len(t, c.commit(), 1)

	// A job that never ends is let go of, one that has ended is not.
	open := events.New(events.JobID("test", "other"), hooksNow, "test", "", hookRequest.Message)
	c = newHookChanges(h)
	c.take(open)
	c.commit()
	require.Len(t, h.jobs, 2)
	for t0, left := range map[time.Time]int{hooksNow: 2, hooksNow.Add(1): 1} {
		c = newHookChanges(h)
		c.forget(t0)
		require.Len(t, c.jobs, 2-left)
	}

	// An outcome too old for a first attempt is let go of, too.
	c = newHookChanges(&hooks{jobs: map[string]*events.PendingWebhook{}})
	for _, e := range []events.Event{hookRequest, opFailed(1), hookEnd} {
		c.take(e)
	}
	require.NoError(t, c.schedule(policy, false, hooksNow.Add(time.Hour+1)))
	require.Empty(t, c.emitted)
	require.Empty(t, c.jobs)
}
