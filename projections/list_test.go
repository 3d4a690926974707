package projections_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

// lives tells what becomes of jobs from the one number to the other, as it may: with clocks that differ by some
// seconds, repeats, outcomes that come too late, cancellations, retries, webhooks that fail
// and deletions. It gives the times of all events.
func (w *world) lives(steps, from, to int, random *rand.Rand) (times []time.Time) {
	skew := map[string]time.Duration{"pixtools/api": 2 * time.Second, "pixtools/op": -3 * time.Second, "pixtools/saga": 0}
	at := testDay
	var told []events.Event
	tell := func(id, source string, m proto.Message) {
		e := events.New(id, at.Add(skew[source]), source, "req", m)
		r, err := e.Record()
		require.NoError(w.t, err)
		w.tellRecord(r)
		told, times = append(told, e), append(times, e.Time)
	}
	for range steps {
		at = at.Add(time.Duration(random.Int64N(int64(3 * time.Hour))))
		id := events.JobID("test", fmt.Sprint(from+random.IntN(to-from)))
		job := w.folded[id]
		if len(told) > 0 && random.IntN(10) == 0 { // told again, however late
			r, err := told[random.IntN(len(told))].Record()
			require.NoError(w.t, err)
			w.tellRecord(r)
			continue
		}
		switch {
		case job == nil:
			m := &events.JobRequested{Tenant: "test", Source: &events.Source{Sha256: "aa", Bytes: 1000 + random.Int64N(1000)}, WebhookUrl: &events.Sealed{KeyId: "k"}}
			for _, op := range [][]string{{"webp"}, {"avif", "webp"}, {"jpg", "avif", "webp"}}[random.IntN(3)] {
				m.Operations = append(m.Operations, &events.Operation{Name: op})
			}
			tell(id, "pixtools/api", m)
		case job.Settled():
			ended, err := commands.Finalize{Cause: events.Event{JobID: id}, At: at}.Decide(job)
			require.NoError(w.t, err)
			tell(id, "pixtools/saga", ended[0].Message)
		case job.GetPhase() == events.Phase_PHASE_OPEN:
			if random.IntN(10) == 0 {
				tell(id, "pixtools/api", &events.JobCancelRequested{Revision: job.GetRevision()})
				continue
			}
			op, revision := job.GetOperations()[random.IntN(len(job.GetOperations()))], job.GetRevision()
			switch random.IntN(5) { // of one that has ended it is late, and means nothing
			case 0, 1:
				tell(id, "pixtools/op", &events.OperationStarted{Revision: revision, Operation: op.GetName(), Attempt: op.GetAttempt() + 1})
			case 2:
				tell(id, "pixtools/op", &events.OperationFailed{Revision: revision, Operation: op.GetName(), Attempt: max(op.GetAttempt(), 1), Code: "corrupt"})
			default:
				tell(id, "pixtools/op", &events.OperationCompleted{Revision: revision, Operation: op.GetName(), Attempt: max(op.GetAttempt(), 1),
					Artifact: &events.Artifact{Bytes: random.Int64N(1000), Sha256: "bb"}, CpuTime: durationpb.New(time.Duration(random.Int64N(int64(time.Second))))})
			}
		case random.IntN(4) == 0:
			again, err := commands.Retry{MaxRevisions: 3, At: at}.Decide(job)
			if err == nil { // it has what is to be retried
				tell(id, "pixtools/api", again[0].Message)
			}
		case random.IntN(3) == 0:
			tell(id, "pixtools/op", &events.WebhookScheduled{Revision: job.GetRevision(), Attempt: job.GetWebhook().GetAttempt() + 1, Due: timestamppb.New(at)})
			tell(id, "pixtools/op", &events.WebhookFailed{Revision: job.GetRevision(), Attempt: job.GetWebhook().GetAttempt() + 1, Final: random.IntN(2) == 0})
		case random.IntN(20) == 0:
			tell(id, "pixtools/api", &events.JobDeleted{})
		}
	}
	return times
}

// all pages through a list.
func (w *world) all(reader *projections.Reader, f projections.JobFilter, limit int) (all []projections.ListedJob) {
	w.t.Helper()
	f.Tenant = "test"
	var behind *projections.JobPlace
	for {
		page, more, err := reader.Jobs(w.ctx(), f, behind, limit)
		require.NoError(w.t, err)
		require.LessOrEqual(w.t, len(page), limit)
		all = append(all, page...)
		require.LessOrEqual(w.t, len(all), len(w.folded), "a page brings what another has brought")
		if !more {
			return all
		}
		behind = &projections.JobPlace{CreatedAt: page[len(page)-1].CreatedAt, ID: page[len(page)-1].ID}
	}
}

// The list and its totals are what is picked of the fold of the log, in its order.
func TestListsOfJobs(t *testing.T) {
	w := newWorld(t)
	w.mutedProjector()
	w.lives(1500, 0, 150, rand.New(rand.NewPCG(20, 1)))
	w.caughtUp()
	var jobs []*events.Job
	for _, job := range w.folded {
		if job.GetPhase() != events.Phase_PHASE_DELETED {
			jobs = append(jobs, job)
		}
	}
	require.Less(t, len(jobs), len(w.folded), "some are deleted")
	id := func(job *events.Job) uuid.UUID { return uuid.MustParse(job.GetId()) }
	slices.SortFunc(jobs, func(a, b *events.Job) int {
		if c := b.GetRequestedAt().AsTime().Compare(a.GetRequestedAt().AsTime()); c != 0 {
			return c
		}
		return cmp.Compare(b.GetId(), a.GetId())
	})
	middle := jobs[len(jobs)/2].GetRequestedAt().AsTime()
	prefix := id(jobs[3])
	last := prefix
	for i := 1; i < len(last); i++ {
		prefix[i], last[i] = 0, 0xff
	}
	seen := map[projections.Standing]bool{}
	for name, c := range map[string]struct {
		filter projections.JobFilter
		picked func(*events.Job) bool
	}{
		"all": {projections.JobFilter{}, func(*events.Job) bool { return true }},
		"failed": {projections.JobFilter{Standings: []projections.Standing{projections.Failed, projections.Cancelled}}, func(j *events.Job) bool {
			return slices.Contains([]projections.Standing{projections.Failed, projections.Cancelled}, projections.StandingOf(j))
		}},
		"succeeded": {projections.JobFilter{Standings: []projections.Standing{projections.Succeeded}}, func(j *events.Job) bool { return projections.StandingOf(j) == projections.Succeeded }},
		"operation": {projections.JobFilter{Operation: "avif"}, func(j *events.Job) bool {
			return slices.ContainsFunc(j.GetOperations(), func(op *events.OperationState) bool { return op.GetName() == "avif" })
		}},
		"since": {projections.JobFilter{Since: middle}, func(j *events.Job) bool { return !j.GetRequestedAt().AsTime().Before(middle) }},
		"until": {projections.JobFilter{Until: middle}, func(j *events.Job) bool { return j.GetRequestedAt().AsTime().Before(middle) }},
		"id":    {projections.JobFilter{From: prefix, To: last}, func(j *events.Job) bool { return id(j)[0] == last[0] }},
	} {
		var want []projections.ListedJob
		totals := projections.JobTotals{Jobs: map[projections.Standing]int64{}, ByOperation: map[string]map[projections.Standing]int64{}}
		for _, job := range jobs {
			if !c.picked(job) {
				continue
			}
			standing := projections.StandingOf(job)
			seen[standing] = true
			listed := projections.ListedJob{ID: id(job), CreatedAt: job.GetRequestedAt().AsTime(), Standing: standing, Revision: job.GetRevision()}
			totals.Jobs[standing]++
			for _, op := range job.GetOperations() {
				listed.Operations = append(listed.Operations, op.GetName())
				if totals.ByOperation[op.GetName()] == nil {
					totals.ByOperation[op.GetName()] = map[projections.Standing]int64{}
				}
				totals.ByOperation[op.GetName()][standing]++
			}
			want = append(want, listed)
		}
		require.NotEmpty(t, want, name)
		for _, limit := range []int{1, 7, len(want), 1000} {
			have := w.all(w.reader, c.filter, limit)
			for i := range have {
				require.False(t, have[i].Since.Before(have[i].CreatedAt.Add(-time.Microsecond)), name)
				have[i].Since = time.Time{}
			}
			for i := range want {
				want[i].CreatedAt = want[i].CreatedAt.Truncate(time.Microsecond)
			}
			require.Equal(t, want, have, "%s, %d on a page", name, limit)
		}
		c.filter.Tenant = "test"
		have, err := w.reader.Totals(w.ctx(), c.filter)
		require.NoError(t, err)
		require.Equal(t, totals, have, name)
		c.filter.Tenant = "another"
		none, _, err := w.reader.Jobs(w.ctx(), c.filter, nil, 10)
		require.NoError(t, err)
		require.Empty(t, none)
	}
	require.GreaterOrEqual(t, len(seen), 7, "the log has jobs of all kinds: %v", seen)

	// What comes meanwhile moves no page.
	first, more, err := w.reader.Jobs(w.ctx(), projections.JobFilter{Tenant: "test"}, nil, 10)
	require.NoError(t, err)
	require.True(t, more)
	rest := w.all(w.reader, projections.JobFilter{}, 1000)[10:]
	w.tell(events.JobID("test", "newest"), testDay.AddDate(1, 0, 0), &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}})
	w.caughtUp()
	second, _, err := w.reader.Jobs(w.ctx(), projections.JobFilter{Tenant: "test"}, &projections.JobPlace{CreatedAt: first[9].CreatedAt, ID: first[9].ID}, 1000)
	require.NoError(t, err)
	require.Equal(t, rest, second)
}
