package commands

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/events"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func submit(ops ...string) Submit {
	return Submit{JobID: "018f0000-0000-7000-8000-000000000001", Tenant: "default", RequestID: "req",
		Operations: ops, Source: &events.Source{Sha256: "aa", Format: "png"},
		Fingerprint: Fingerprint("aa", ops, nil, ""), At: noon}
}

func open(t *testing.T, ops ...string) (events.Event, *events.Job) {
	decided, err := submit(ops...).Decide(nil)
	require.NoError(t, err)
	require.Len(t, decided, 1)
	return decided[0], events.Fold(nil, decided[0])
}

func TestSubmitNamesEveryFault(t *testing.T) {
	for _, c := range []struct {
		ops    []string
		params map[string]map[string]any
		says   []string
	}{
		{nil, nil, []string{"At least one operation is required"}},
		{[]string{"png"}, nil, []string{"Cannot convert png to png — source and target formats are the same"}},
		{[]string{"webp", "webp"}, nil, []string{`Invalid operations: "webp" is named more than once`}},
		{[]string{"gif"}, nil, []string{`Invalid operations: unknown operation "gif"; known are jpg, png, webp, avif, denoise`}},
		{[]string{"webp", "gif", "png"}, map[string]map[string]any{"webp": {"quality": 101.0}, "avif": {}}, []string{
			"Invalid operation_params: webp.quality must be a whole number from 1 to 100",
			`Invalid operations: unknown operation "gif"; known are jpg, png, webp, avif, denoise`,
			"Cannot convert png to png — source and target formats are the same",
			`Invalid operation_params: "avif" is not among the operations of this request`}},
	} {
		command := submit(c.ops...)
		command.Parameters = c.params
		_, err := command.Decide(nil)
		var invalid Invalid
		require.ErrorAs(t, err, &invalid)
		var says []string
		for _, f := range invalid {
			require.NotEmpty(t, f.Field)
			says = append(says, f.Message)
		}
		require.Equal(t, c.says, says)
	}
	command := submit("denoise", "webp")
	command.Parameters = map[string]map[string]any{"webp": {"quality": 100.0}}
	_, err := command.Decide(nil)
	require.NoError(t, err)
}

func TestSubmitAgain(t *testing.T) {
	_, job := open(t, "webp")
	again, err := submit("webp").Decide(job)
	require.NoError(t, err)
	require.Empty(t, again)
	_, err = submit("avif").Decide(job)
	var conflict *Conflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, "idempotency_key", conflict.Field)
	require.Contains(t, conflict.Message, "used before")
}

func TestFingerprintTellsRequestsApart(t *testing.T) {
	base := Fingerprint("aa", []string{"webp"}, map[string]map[string]any{"webp": {"a": 1.0, "b": 2.0}}, "")
	require.Equal(t, base, Fingerprint("aa", []string{"webp"}, map[string]map[string]any{"webp": {"b": 2.0, "a": 1.0}}, ""))
	require.NotEqual(t, base, Fingerprint("ab", []string{"webp"}, map[string]map[string]any{"webp": {"a": 1.0, "b": 2.0}}, ""))
	require.NotEqual(t, base, Fingerprint("aa", []string{"webp"}, nil, ""))
	require.NotEqual(t, base, Fingerprint("aa", []string{"webp"}, map[string]map[string]any{"webp": {"a": 1.0, "b": 2.0}}, "x"))
}

func TestAttemptsAreBounded(t *testing.T) {
	cause, job := open(t, "webp")
	for n := int32(1); n <= 3; n++ {
		decided, err := Start{Cause: cause, Operation: "webp", MaxAttempts: 3, At: noon}.Decide(job)
		require.NoError(t, err)
		require.Equal(t, n, decided[0].Message.(*events.OperationStarted).GetAttempt())
		job = events.Fold(job, decided[0])
	}
	decided, err := Start{Cause: cause, Operation: "webp", MaxAttempts: 3, At: noon}.Decide(job)
	require.NoError(t, err)
	failed := decided[0].Message.(*events.OperationFailed)
	require.Equal(t, "attempts_used_up", failed.GetCode())
	job = events.Fold(job, decided[0])
	decided, err = Start{Cause: cause, Operation: "webp", MaxAttempts: 3, At: noon}.Decide(job)
	require.NoError(t, err)
	require.Empty(t, decided, "an operation with an outcome is not started again")
	require.True(t, job.Settled())
}

func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		ends string // per operation: c completes, f fails, x is cancelled
		want events.Outcome
	}{
		"all":            {"ccc", events.Outcome_OUTCOME_SUCCEEDED},
		"some fail":      {"cfc", events.Outcome_OUTCOME_PARTIAL},
		"some cancelled": {"cxx", events.Outcome_OUTCOME_PARTIAL},
		"none":           {"fff", events.Outcome_OUTCOME_FAILED},
		"failed and cut": {"fxx", events.Outcome_OUTCOME_FAILED},
		"cancelled":      {"xxx", events.Outcome_OUTCOME_CANCELLED},
	} {
		cause, job := open(t, "jpg", "webp", "avif")
		var last events.Event
		for i, op := range []string{"jpg", "webp", "avif"} {
			if c.ends[i] == 'x' {
				continue
			}
			started := apply(t, &job, Start{Cause: cause, Operation: op, MaxAttempts: 3, At: noon})
			if c.ends[i] == 'c' {
				last = apply(t, &job, Complete{Started: started, Artifact: &events.Artifact{Bytes: 5}, CPUTime: time.Second, At: noon.Add(time.Second)})
			} else {
				last = apply(t, &job, Fail{Started: started, Kind: events.FailureKind_FAILURE_KIND_INPUT, Code: "x", Message: "y", At: noon})
			}
		}
		if !job.Settled() {
			last = events.New(job.GetId(), noon, "pixtools/api", "req", &events.JobCancelRequested{Revision: 1})
			job = events.Fold(job, last)
		}
		final := apply(t, &job, Finalize{Cause: last, At: noon}).Message.(*events.JobFinalized)
		require.Equal(t, c.want, final.GetOutcome(), name)
		require.Equal(t, events.Phase_PHASE_ENDED, job.GetPhase(), name)
		again, err := Finalize{Cause: last, At: noon}.Decide(job)
		require.NoError(t, err)
		require.Empty(t, again)
	}
}

func apply(t *testing.T, job **events.Job, c interface {
	Decide(*events.Job) ([]events.Event, error)
}) events.Event {
	decided, err := c.Decide(*job)
	require.NoError(t, err)
	require.Len(t, decided, 1)
	*job = events.Fold(*job, decided[0])
	return decided[0]
}

// Workers of several operations race, die between any two steps, and are replaced
// by others that decide on an older state: every job ends, once.
func TestEveryJobEndsOnce(t *testing.T) {
	ops := []string{"jpg", "webp", "avif"}
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 1))
		request, job := open(t, ops...)
		stale, last, finals := job, request, 0
		for step := 0; job.GetPhase() != events.Phase_PHASE_ENDED; step++ {
			require.Less(t, step, 1000, "seed %d does not end", seed)
			seen := job
			if random.IntN(3) == 0 {
				seen = stale
			}
			decided, err := (Start{Cause: request, Operation: ops[random.IntN(3)], MaxAttempts: 3, At: noon}).Decide(seen)
			require.NoError(t, err)
			if len(decided) == 1 {
				if _, ok := decided[0].Message.(*events.OperationStarted); ok && random.IntN(2) == 0 {
					// The worker lived: its outcome follows, decided on what it saw.
					done, err := (Complete{Started: decided[0], Artifact: &events.Artifact{}, At: noon}).Decide(seen)
					require.NoError(t, err)
					decided = append(decided, done...)
				}
			}
			end, err := Finalize{Cause: last, At: noon}.Decide(job)
			require.NoError(t, err)
			for _, e := range append(end, decided...) {
				next := events.Fold(job, e)
				if _, ok := e.Message.(*events.JobFinalized); ok && next != job {
					finals++
				}
				stale, job, last = job, next, e
			}
		}
		require.Equal(t, 1, finals, "seed %d", seed)
	}
}

func TestCancel(t *testing.T) {
	cause, job := open(t, "webp", "avif")
	started := apply(t, &job, Start{Cause: cause, Operation: "webp", MaxAttempts: 3, At: noon})
	apply(t, &job, Complete{Started: started, Artifact: &events.Artifact{Bytes: 5}, At: noon})
	cancel := Cancel{Reason: "not wanted", At: noon}
	cancelled := apply(t, &job, cancel)
	require.Equal(t, int32(1), cancelled.Message.(*events.JobCancelRequested).GetRevision())
	require.Equal(t, job.GetCorrelationId(), cancelled.CorrelationID)
	require.True(t, job.Settled())
	_, err := cancel.Decide(job)
	var conflict *Conflict
	require.ErrorAs(t, err, &conflict, "nothing is left")
	apply(t, &job, Finalize{Cause: cancelled, At: noon})
	_, err = cancel.Decide(job)
	require.ErrorAs(t, err, &conflict, "it has ended")
}
