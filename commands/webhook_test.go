package commands

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/events"
)

var hookPolicy = WebhookPolicy{MaxAttempts: 4, BackoffMin: 10 * time.Second, BackoffMax: time.Minute, MaxAge: time.Hour}

// hooked is a job with an address that has ended.
func hooked(t *testing.T, more ...proto.Message) *events.Job {
	id := events.JobID("test", "hook")
	var state *events.Job
	for i, m := range append([]proto.Message{
		&events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "avif"}, {Name: "jpg"}},
			Source: &events.Source{Sha256: "aa"}, WebhookUrl: &events.Sealed{KeyId: "k", Ciphertext: []byte{1}}, FileName: &events.Sealed{KeyId: "k"}},
		&events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 2, Artifact: &events.Artifact{Key: "processed/x", Bytes: 3}},
		&events.OperationFailed{Revision: 1, Operation: "avif", Attempt: 1, Kind: events.FailureKind_FAILURE_KIND_INPUT, Code: "corrupt", Message: "m"},
		&events.JobCancelRequested{Revision: 1},
		&events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_PARTIAL},
	}, more...) {
		next := events.Fold(state, events.New(id, hookTime.Add(time.Duration(i)*time.Second), "test", "req", m))
		require.NotSame(t, state, next, "%T does not count", m)
		state = next
	}
	return state
}

var hookTime = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// A revision's outcome is posted at its end, then with growing pauses, a bounded number of
// times; who decides twice decides the same.
func TestScheduleWebhook(t *testing.T) {
	state, at := hooked(t), hookTime.Add(time.Minute)
	schedule := func() []events.Event {
		decided, err := ScheduleWebhook{WebhookPolicy: hookPolicy, At: at}.Decide(state)
		require.NoError(t, err)
		again, err := ScheduleWebhook{WebhookPolicy: hookPolicy, At: at}.Decide(state)
		require.NoError(t, err)
		require.Equal(t, decided, again)
		return decided
	}
	for attempt := int32(1); ; attempt++ {
		decided := schedule()
		require.Len(t, decided, 1)
		m := decided[0].Message.(*events.WebhookScheduled)
		require.Equal(t, attempt, m.GetAttempt())
		wait := m.GetDue().AsTime().Sub(state.GetUpdatedAt().AsTime())
		if most := min(10*time.Second<<max(attempt-2, 0), time.Minute); attempt > 1 {
			require.LessOrEqual(t, wait, most)
			require.GreaterOrEqual(t, wait, most-most/4)
		} else {
			require.Zero(t, wait)
		}
		state = events.Fold(state, decided[0])
		require.Empty(t, schedule(), "an attempt is due already")
		at = m.GetDue().AsTime().Add(time.Minute)
		told, err := WebhookAttempted{WebhookPolicy: hookPolicy, Revision: 1, Attempt: attempt, Code: "timeout", At: at}.Decide(state)
		require.NoError(t, err)
		require.Equal(t, decided[0].ID, told[0].CausationID)
		state = events.Fold(state, told[0])
		if attempt == hookPolicy.MaxAttempts {
			require.True(t, told[0].Message.(*events.WebhookFailed).GetFinal())
			require.Len(t, told, 1)
			break
		}
		require.Len(t, told, 2)
		// Who finds the failure without what follows it schedules the same attempt.
		require.Equal(t, schedule()[0].ID, told[1].ID)
		require.Equal(t, schedule()[0].Message, told[1].Message)
	}
	require.True(t, state.GetWebhook().GetFailed())
	require.Empty(t, schedule())
}

func TestScheduleWebhookDoesNot(t *testing.T) {
	ended := hooked(t)
	at := ended.GetFinalizedAt().AsTime()
	decide := func(c ScheduleWebhook, state *events.Job) []events.Event {
		c.WebhookPolicy = hookPolicy
		decided, err := c.Decide(state)
		require.NoError(t, err)
		return decided
	}
	require.Len(t, decide(ScheduleWebhook{At: at.Add(time.Hour)}, ended), 1)
	require.Empty(t, decide(ScheduleWebhook{At: at.Add(time.Hour + 1)}, ended), "older than MaxAge")
	require.Empty(t, decide(ScheduleWebhook{At: at}, hooked(t, &events.OperationRetryRequested{Revision: 2, Operations: []string{"avif"}})), "open")
	require.Empty(t, decide(ScheduleWebhook{At: at}, hooked(t, &events.WebhookDelivered{Revision: 1, Attempt: 1})))
	bare := proto.Clone(ended).(*events.Job)
	bare.WebhookUrl = nil
	require.Empty(t, decide(ScheduleWebhook{At: at}, bare))
	full := decide(ScheduleWebhook{At: at, Full: true}, ended)[0]
	require.True(t, events.Fold(ended, full).GetWebhook().GetFailed())
}

func TestWebhookAttempted(t *testing.T) {
	state := hooked(t, &events.WebhookScheduled{Revision: 1, Attempt: 1, Due: timestamppb.New(hookTime)})
	c := WebhookAttempted{WebhookPolicy: hookPolicy, Revision: 1, Attempt: 1, HTTPStatus: 204, At: hookTime}
	told, err := c.Decide(state)
	require.NoError(t, err)
	require.Len(t, told, 1)
	require.True(t, events.Fold(state, told[0]).GetWebhook().GetDelivered())

	c.Code, c.Final = "gone", true
	told, err = c.Decide(state)
	require.NoError(t, err)
	require.Len(t, told, 1)
	require.True(t, events.Fold(state, told[0]).GetWebhook().GetFailed())

	// What the receiver asks for counts within bounds.
	c.Final = false
	for asked, want := range map[time.Duration]time.Duration{30 * time.Second: 30 * time.Second, time.Hour: time.Minute, time.Minute: time.Minute} {
		c.RetryAfter = asked
		told, err = c.Decide(state)
		require.NoError(t, err)
		require.Equal(t, hookTime.Add(want), told[1].Message.(*events.WebhookScheduled).GetDue().AsTime(), "%s", asked)
	}
}

// A redelivery is one more attempt, and tells who has forgotten the job all that is posted.
func TestRedeliverWebhook(t *testing.T) {
	failed := hooked(t, &events.WebhookFailed{Revision: 1, Attempt: 4, Code: "timeout", Final: true})
	decided, err := RedeliverWebhook{At: hookTime}.Decide(failed)
	require.NoError(t, err)
	after := events.Fold(failed, decided[0])
	require.EqualValues(t, 5, after.GetWebhook().GetAttempt())
	require.False(t, after.GetWebhook().GetFailed())
	told := events.Fold(nil, decided[0])
	for _, op := range after.GetOperations() {
		op.EndedAt = nil
	}
	told.UpdatedAt, told.CancelReason, told.Webhook.FailureCode, told.Totals, told.OpenedAt = after.UpdatedAt, after.CancelReason, after.Webhook.FailureCode, after.Totals, after.OpenedAt
	require.True(t, proto.Equal(after, told), "%v\n%v", after, told)

	for name, state := range map[string]*events.Job{
		"open":      hooked(t, &events.OperationRetryRequested{Revision: 2, Operations: []string{"avif"}}),
		"delivered": hooked(t, &events.WebhookDelivered{Revision: 1, Attempt: 1}),
		"deleted":   hooked(t, &events.JobDeleted{}),
		"no address": func() *events.Job {
			s := proto.Clone(failed).(*events.Job)
			s.WebhookUrl = nil
			return s
		}(),
	} {
		_, err := RedeliverWebhook{At: hookTime}.Decide(state)
		var conflict *Conflict
		require.True(t, errors.As(err, &conflict), name)
	}
}

func TestWebhookWaitIsBounded(t *testing.T) {
	for attempt := int32(1); attempt < 200; attempt++ {
		id := events.New("x", hookTime, "", "", &events.WebhookFailed{Attempt: attempt}).ID
		wait := hookPolicy.wait(attempt, id)
		require.Positive(t, wait)
		require.LessOrEqual(t, wait, hookPolicy.BackoffMax, fmt.Sprint(attempt))
	}
}
