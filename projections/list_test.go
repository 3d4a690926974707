package projections_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

// lives tells what becomes of jobs from the one number to the other, as it may: with clocks
// that differ by some seconds, pauses of up to some time, repeats, outcomes that come too
// late, cancellations, retries, webhooks that fail and deletions. It gives the times of all
// events, and of those that are earlier than what their job was told before.
func (w *world) lives(steps, from, to int, pause time.Duration, random *rand.Rand) (times, backwards []time.Time) {
	skew := map[string]time.Duration{"api": 2 * time.Second, "webp": -3 * time.Second, "avif": 5 * time.Second}
	at := testDay
	var told []events.Event
	tell := func(id, source string, m proto.Message) {
		e := events.New(id, at.Add(skew[source]), "pixtools/"+source, "req", m)
		if e.Time.Before(w.folded[id].GetUpdatedAt().AsTime()) {
			backwards = append(backwards, e.Time)
		}
		r, err := e.Record()
		require.NoError(w.t, err)
		w.tellRecord(r)
		told, times = append(told, e), append(times, e.Time)
	}
	for range steps {
		at = at.Add(time.Duration(random.Int64N(int64(pause))))
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
			tell(id, "api", m)
		case job.Settled():
			ended, err := commands.Finalize{Cause: events.Event{JobID: id}, At: at}.Decide(job)
			require.NoError(w.t, err)
			tell(id, "saga", ended[0].Message)
		case job.GetPhase() == events.Phase_PHASE_OPEN:
			if random.IntN(10) == 0 {
				tell(id, "api", &events.JobCancelRequested{Revision: job.GetRevision()})
				continue
			}
			op, revision := job.GetOperations()[random.IntN(len(job.GetOperations()))], job.GetRevision()
			switch random.IntN(5) { // of one that has ended it is late, and means nothing
			case 0, 1:
				tell(id, op.GetName(), &events.OperationStarted{Revision: revision, Operation: op.GetName(), Attempt: op.GetAttempt() + 1})
			case 2:
				tell(id, op.GetName(), &events.OperationFailed{Revision: revision, Operation: op.GetName(), Attempt: max(op.GetAttempt(), 1), Code: "corrupt"})
			default:
				tell(id, op.GetName(), &events.OperationCompleted{Revision: revision, Operation: op.GetName(), Attempt: max(op.GetAttempt(), 1),
					Artifact: &events.Artifact{Bytes: random.Int64N(1000), Sha256: "bb"}, CpuTime: durationpb.New(time.Duration(random.Int64N(int64(time.Second))))})
			}
		case random.IntN(4) == 0:
			again, err := commands.Retry{MaxRevisions: 3, At: at}.Decide(job)
			if err == nil { // it has what is to be retried
				tell(id, "api", again[0].Message)
			}
		case random.IntN(3) == 0:
			tell(id, "webhooks", &events.WebhookScheduled{Revision: job.GetRevision(), Attempt: job.GetWebhook().GetAttempt() + 1, Due: timestamppb.New(at)})
			tell(id, "webhooks", &events.WebhookFailed{Revision: job.GetRevision(), Attempt: job.GetWebhook().GetAttempt() + 1, Final: random.IntN(2) == 0})
		case random.IntN(20) == 0:
			tell(id, "api", &events.JobDeleted{})
		}
	}
	return times, backwards
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
	w.lives(1500, 0, 150, 3*time.Hour, rand.New(rand.NewPCG(20, 1)))
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

// A list of a past time, and its totals, are those of a read model that was built up to that time.
func TestPastLists(t *testing.T) {
	w := newWorld(t)
	w.cfg.BatchRecords = 5 // so that a rebuild lets jobs go that come back
	w.mutedProjector()
	random := rand.New(rand.NewPCG(21, 1))
	// A clock that is an hour ahead, and then, when the job was let go, one that is right.
	began, ahead := testDay.Add(-2*time.Hour), events.JobID("test", "ahead")
	request := &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "avif"}}}
	w.tell(ahead, began, request)
	w.tell(ahead, began.Add(time.Hour), &events.OperationStarted{Revision: 1, Operation: "avif", Attempt: 1})
	for i := range 60 {
		w.tell(events.JobID("test", fmt.Sprint("other", i)), began, request)
	}
	w.tell(ahead, began.Add(time.Second), &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1})
	var times, backwards []time.Time
	for group := range 12 { // of few jobs each, so that clocks that differ bring their events out of order
		t, b := w.lives(100, group*5, group*5+5, 2*time.Second, random)
		times, backwards = append(times, t...), append(backwards, b...)
	}
	w.caughtUp()
	slices.SortFunc(times, time.Time.Compare)
	r := w.replayer(func(c *projections.ReplayConfig) { c.HeldJobs, c.Workers = 2, 1 })
	w.begin(r)
	// At an event, where clocks differ, and a moment later; before all and after all.
	require.Greater(t, len(backwards), 50)
	asked := []time.Time{began.Add(-time.Hour).Truncate(time.Microsecond), times[len(times)-1].Truncate(time.Second).Add(time.Hour), began.Add(time.Minute), began.Add(time.Hour)}
	for range 6 {
		at := backwards[random.IntN(len(backwards))].Truncate(time.Microsecond)
		asked = append(asked, at, at.Add(time.Microsecond))
	}
	seen, changed := map[projections.Standing]bool{}, 0
	for _, at := range asked {
		built, err := r.Build(w.ctx(), projections.Until{Text: at.Format(time.RFC3339Nano), Time: at}, silent)
		require.NoError(t, err)
		pool, err := projections.Open(w.cfg, built.Name)
		require.NoError(t, err)
		past := projections.NewReader(w.cfg, pool, w.logID, quiet)
		middle := at.Add(-30 * time.Second)
		for _, filter := range []projections.JobFilter{
			{}, {Standings: []projections.Standing{projections.Processing}}, {Standings: []projections.Standing{projections.Failed, projections.Cancelled}},
			{Operation: "avif", Until: middle}, {Since: middle},
		} {
			filter.Tenant = "test"
			want := w.all(past, filter, 1000)
			wantTotals, err := past.Totals(w.ctx(), filter)
			require.NoError(t, err)
			filter.At = at
			require.Equal(t, want, w.all(w.reader, filter, 7), "at %s: %+v", at, filter)
			have, err := w.reader.Totals(w.ctx(), filter)
			require.NoError(t, err)
			require.Equal(t, wantTotals, have)
			for _, job := range want {
				seen[job.Standing] = true
				if projections.StandingOf(w.folded[job.ID.String()]) != job.Standing {
					changed++
				}
			}
		}
		pool.Close()
		require.NoError(t, r.Drop(w.ctx(), built.Name))
	}
	require.GreaterOrEqual(t, len(seen), 6, "%v", seen)
	require.Positive(t, changed, "what was is not what is")
	require.Empty(t, w.all(w.reader, projections.JobFilter{At: asked[0]}, 10))
	require.Equal(t, w.all(w.reader, projections.JobFilter{}, 10), w.all(w.reader, projections.JobFilter{At: asked[1]}, 10))
}

// A read model of an older version, under a projector and a reader that run, is made anew by the
// migration, with what the older one did not have.
func TestOlderReadModel(t *testing.T) {
	w := newWorld(t)
	w.lives(200, 0, 20, time.Hour, rand.New(rand.NewPCG(22, 1)))
	w.exec("DROP SCHEMA pixtools_read CASCADE")
	w.exec("CREATE SCHEMA pixtools_read")
	db := stdlib.OpenDBFromPool(w.pool)
	defer db.Close()
	older, err := goose.NewProvider(goose.DialectPostgres, db, os.DirFS("migrations"))
	require.NoError(t, err)
	_, err = older.UpTo(w.ctx(), 3)
	require.NoError(t, err)
	w.exec("INSERT INTO jobs VALUES ($1, 'test', 1, 0, 1, now(), now(), '', '', '{}', '{}', now())", events.JobID("test", "old"))
	for partition := range partitions {
		w.exec("INSERT INTO positions VALUES ($1, $2, 3)", w.logID[:], partition)
	}
	w.mutedProjector()
	require.NoError(t, projections.Migrate(w.ctx(), w.pool, projections.Schema))
	w.caughtUp()
	require.NotEmpty(t, w.all(w.reader, projections.JobFilter{}, 10))
}
