package commands

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// ended is a job of which webp completed, avif and denoise failed, and jpg was cancelled.
func ended(t *testing.T) *events.Job {
	cause, job := open(t, "webp", "avif", "denoise", "jpg")
	started := apply(t, &job, Start{Cause: cause, Operation: "webp", MaxAttempts: 3, At: noon})
	apply(t, &job, Complete{Started: started, Artifact: &events.Artifact{Key: "k", Sha256: "aa", Bytes: 5}, CPUTime: time.Second, Engine: "e", At: noon})
	for _, op := range []string{"avif", "denoise"} {
		started = apply(t, &job, Start{Cause: cause, Operation: op, MaxAttempts: 3, At: noon})
		apply(t, &job, Fail{Started: started, Kind: events.FailureKind_FAILURE_KIND_WORLD, Code: "x", Message: "y", At: noon})
	}
	last := apply(t, &job, Cancel{At: noon})
	apply(t, &job, Finalize{Cause: last, At: noon})
	return job
}

func TestRetry(t *testing.T) {
	for name, c := range map[string]struct {
		ops  []string
		want []string
	}{
		"all that did not complete": {nil, []string{"avif", "denoise", "jpg"}},
		"some":                      {[]string{"denoise"}, []string{"denoise"}},
		"in the job's order":        {[]string{"jpg", "avif"}, []string{"avif", "jpg"}},
	} {
		job := ended(t)
		e := apply(t, &job, Retry{Operations: c.ops, MaxRevisions: 2, At: noon.Add(time.Hour)})
		require.Equal(t, c.want, e.Message.(*events.OperationRetryRequested).GetOperations(), name)
		require.Equal(t, int32(2), job.GetRevision())
		for _, op := range job.GetOperations() {
			asked := false
			for _, n := range c.want {
				asked = asked || n == op.GetName()
			}
			require.Equal(t, asked, op.GetPhase() == events.OperationPhase_OPERATION_PHASE_PENDING, "%s: %s", name, op.GetName())
		}
		// Who has forgotten the job goes on as if it had not.
		forgetful := events.Fold(nil, e)
		require.Equal(t, job.GetRequestedAt().AsTime(), forgetful.GetRequestedAt().AsTime())
		for _, s := range []*events.Job{job, forgetful} {
			for _, op := range s.GetOperations() {
				op.StartedAt, op.EndedAt = nil, nil
			}
		}
		require.True(t, proto.Equal(job, forgetful), "%s:\n%v\n%v", name, job, forgetful)
	}
}

func TestRetryIsRefused(t *testing.T) {
	var conflict *Conflict
	var invalid Invalid
	_, running := open(t, "webp")
	expired, deleted := ended(t), ended(t)
	expired = events.Fold(expired, events.New(expired.GetId(), noon, "t", "r", &events.ArtifactsExpired{Source: true}))
	deleted = events.Fold(deleted, events.New(deleted.GetId(), noon, "t", "r", &events.JobDeleted{}))
	for says, c := range map[string]struct {
		job *events.Job
		Retry
	}{
		"has not ended":          {running, Retry{MaxRevisions: 9}},
		"was deleted":            {deleted, Retry{MaxRevisions: 9}},
		"source has expired":     {expired, Retry{MaxRevisions: 9}},
		"1 revisions, the limit": {ended(t), Retry{MaxRevisions: 1}},
		"webp has completed":     {ended(t), Retry{MaxRevisions: 2, Operations: []string{"webp", "avif"}}},
	} {
		_, err := c.Decide(c.job)
		require.ErrorAs(t, err, &conflict, says)
		require.ErrorContains(t, err, says)
	}
	for says, ops := range map[string][]string{`"gif" is no operation of this job`: {"gif"}, `"avif" is named more than once`: {"avif", "avif"}} {
		_, err := Retry{MaxRevisions: 2, Operations: ops}.Decide(ended(t))
		require.ErrorAs(t, err, &invalid)
		require.ErrorContains(t, err, says)
	}
	_, err := Retry{MaxRevisions: 2}.Decide(ended(t))
	require.NoError(t, err, "at the limit")
}

func letter(m *events.DeadLettered) *events.DeadLetter {
	return events.FoldLetter(nil, events.NewDeadLetter(noon, "t", "r", m))
}

func TestRedrive(t *testing.T) {
	job := ended(t)
	retryOf := func(c Redrive) []string {
		c.MaxRevisions = 9
		e, action, err := c.Decide(job)
		require.NoError(t, err)
		require.Equal(t, RedriveRetry, action)
		return e.Message.(*events.OperationRetryRequested).GetOperations()
	}
	avif := &events.DeadLettered{JobId: job.GetId(), Operation: "avif", Revision: 1, Code: "x"}
	require.Equal(t, []string{"avif"}, retryOf(Redrive{Letter: letter(avif)}))
	require.Equal(t, []string{"avif", "denoise"}, retryOf(Redrive{Letter: letter(avif), Together: []*events.DeadLetter{
		letter(avif), letter(&events.DeadLettered{Operation: "webp"}), letter(&events.DeadLettered{Operation: "jpg"}), letter(&events.DeadLettered{Code: "x", Group: "g"})}}),
		"with what failed, and not what completed or was cancelled")
	// A record as a whole: what was given up because of it runs again.
	whole := &events.DeadLettered{JobId: job.GetId(), Origin: &events.Origin{Topic: events.Topic, Offset: 7}, Code: "x"}
	require.Equal(t, []string{"avif", "denoise"}, retryOf(Redrive{Letter: letter(whole), OriginFault: "broken"}))

	// A record that can be read by now, and that nobody has taken in: it is appended again.
	origin := events.New(events.JobID("t", "new"), noon, "t", "r", &events.JobRequested{Operations: []*events.Operation{{Name: "webp"}}})
	e, action, err := Redrive{Letter: letter(whole), Origin: &origin, MaxRevisions: 9}.Decide(nil)
	require.NoError(t, err)
	require.Equal(t, RedriveAppend, action)
	require.Equal(t, origin, e)

	closed := events.FoldLetter(letter(avif), events.Redriven(letter(avif).ID, "e", noon))
	discarded := events.FoldLetter(letter(avif), events.Discarded(letter(avif).ID, "e", noon))
	whole.Code = "y"
	known := events.New(job.GetId(), noon, "t", "r", &events.JobRequested{})
	_, running := open(t, "avif")
	for says, c := range map[string]struct {
		Redrive
		job *events.Job
	}{
		"was redriven already":                      {Redrive{Letter: closed}, job},
		"was discarded already":                     {Redrive{Letter: discarded}, job},
		"has not ended":                             {Redrive{Letter: letter(avif)}, running},
		"no such job":                               {Redrive{Letter: letter(avif)}, nil},
		"still cannot be read":                      {Redrive{Letter: letter(whole), OriginFault: "broken"}, job},
		"was taken in meanwhile":                    {Redrive{Letter: letter(whole), Origin: &known}, job},
		"webp has completed since":                  {Redrive{Letter: letter(&events.DeadLettered{JobId: job.GetId(), Operation: "webp"})}, job},
		"jpg has completed since, or was cancelled": {Redrive{Letter: letter(&events.DeadLettered{JobId: job.GetId(), Operation: "jpg"})}, job},
		"its job has not ended yet":                 {Redrive{Letter: letter(whole), OriginFault: "broken"}, running},
	} {
		c.MaxRevisions = 9
		_, _, err := c.Decide(c.job)
		var conflict *Conflict
		require.ErrorAs(t, err, &conflict, says)
		require.ErrorContains(t, err, says)
	}
}

func TestGiveUp(t *testing.T) {
	job := ended(t)
	none, err := GiveUp{Code: "x"}.Decide(job)
	require.NoError(t, err)
	require.Empty(t, none)
	_, job = open(t, "webp", "avif")
	one, err := GiveUp{Operation: "avif", Code: "x", At: noon}.Decide(job)
	require.NoError(t, err)
	require.Len(t, one, 1)
	all, err := GiveUp{Code: "x", At: noon}.Decide(job)
	require.NoError(t, err)
	require.Len(t, all, 2)
	for _, e := range all {
		job = events.Fold(job, e)
	}
	require.True(t, job.Settled())
}
