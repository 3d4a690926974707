package projections_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

// count keeps what was used: of an operation that had no outcome in the state before and
// has one now.
func (w *world) count(before, after *events.Job, e events.Event) {
	for i, op := range after.GetOperations() {
		if len(before.GetOperations()) != len(after.GetOperations()) || before.GetOperations()[i].Ended() || !op.Ended() {
			continue
		}
		used := projections.Used{Operations: 1, InputBytes: after.GetSource().GetBytes()}
		switch m := e.Message.(type) {
		case *events.OperationCompleted:
			used.OutputBytes, used.CPU = m.GetArtifact().GetBytes(), m.GetCpuTime().AsDuration()
		case *events.OperationFailed:
			used.Failures = 1
		default:
			continue
		}
		row := fmt.Sprintf("%s %s %s", after.GetTenant(), e.Time.UTC().Format(time.DateOnly), op.GetName())
		w.used[row] = w.used[row].Add(used)
	}
}

func (w *world) usageOf(schema string) map[string]projections.Used {
	rows, err := w.pool.Query(w.ctx(), "SELECT tenant || ' ' || day || ' ' || operation, operations, failures, input_bytes, output_bytes, cpu_nanos FROM "+schema+".usage")
	require.NoError(w.t, err)
	defer rows.Close()
	all := map[string]projections.Used{}
	for rows.Next() {
		var row string
		var u projections.Used
		require.NoError(w.t, rows.Scan(&row, &u.Operations, &u.Failures, &u.InputBytes, &u.OutputBytes, &u.CPU))
		all[row] = u
	}
	require.NoError(w.t, rows.Err())
	return all
}

// Each outcome counts once, on its day, whoever projects it and however often, and a count
// of the whole log says the same.
func TestUsage(t *testing.T) {
	w := newWorld(t)
	w.cfg.BatchRecords = 20
	stop := w.mutedProjector()
	w.mutedProjector() // at the same rows
	w.lives(400, 0, 40, 3*time.Hour, rand.New(rand.NewPCG(30, 1)))
	w.caughtUp()
	stop()
	w.lives(400, 40, 80, 3*time.Hour, rand.New(rand.NewPCG(31, 1)))
	require.NoError(t, w.postgres.Kill())
	w.lives(200, 0, 80, 3*time.Hour, rand.New(rand.NewPCG(32, 1)))
	require.NoError(t, w.postgres.Restart())
	w.caughtUp()
	require.Greater(t, len(w.used), 20)

	// The day's bounds, in another time zone than UTC; and what no program of ours tells.
	last := time.Date(2027, 3, 1, 0, 59, 59, 999_999_999, time.FixedZone("", 3600))
	id := func(n int) string { return events.JobID("test", fmt.Sprint("bounds", n)) }
	for i, at := range []time.Time{last, last.Add(time.Nanosecond), time.Unix(-1, 0), time.Unix(0, 0)} {
		w.tell(id(i), at, &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, Source: &events.Source{Bytes: 7}})
		w.tell(id(i), at, &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &events.Artifact{Bytes: 5}, CpuTime: durationpb.New(time.Second)})
	}
	w.caughtUp()
	for day, rows := range map[string]int64{"2027-02-28": 1, "2027-03-01": 1, "1969-12-31": 1, "1970-01-01": 1} {
		require.Equal(t, rows, w.used["test "+day+" webp"].Operations, day)
	}
	for i := range 3 {
		w.tell(id(i+10), testDay.AddDate(2, 0, 0), &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "avif"}}, Source: &events.Source{Bytes: -1}})
		for _, op := range []string{"webp", "avif"} {
			w.tell(id(i+10), testDay.AddDate(2, 0, 0), &events.OperationCompleted{Revision: 1, Operation: op, Attempt: 1, Artifact: &events.Artifact{Bytes: 1<<63 - 1}, CpuTime: &durationpb.Duration{Seconds: -5}})
		}
	}
	for _, op := range []string{"webp", "avif"} {
		w.used["test 2028-11-24 "+op] = projections.Used{Operations: 3, OutputBytes: 3 << 40}
	}
	w.caughtUp()

	// Asked for.
	ask := func(f projections.UsageFilter) []projections.UsageRow {
		f.Tenant = "test"
		rows, err := w.reader.Usage(w.ctx(), f)
		require.NoError(t, err)
		return rows
	}
	first, end := testDay.Truncate(24*time.Hour), testDay.Truncate(24*time.Hour).AddDate(0, 0, 9)
	var want, webp projections.Used
	days := map[string]projections.Used{}
	for i := range 10 {
		day := first.AddDate(0, 0, i)
		for _, op := range []string{"avif", "jpg", "webp"} {
			used := w.used["test "+day.Format(time.DateOnly)+" "+op]
			want = want.Add(used)
			days[day.Format(time.DateOnly)] = days[day.Format(time.DateOnly)].Add(used)
			if op == "webp" {
				webp = webp.Add(used)
			}
		}
	}
	require.Positive(t, want.Failures)
	require.Equal(t, []projections.UsageRow{{Used: want}}, ask(projections.UsageFilter{First: first, Last: end}))
	require.Equal(t, []projections.UsageRow{{Used: webp, Operation: "webp"}}, ask(projections.UsageFilter{First: first, Last: end, Operation: "webp", ByOperation: true}))
	for _, row := range ask(projections.UsageFilter{First: first, Last: end, ByDay: true}) {
		require.Equal(t, days[row.Day.Format(time.DateOnly)], row.Used)
	}
	for _, row := range ask(projections.UsageFilter{First: first, Last: end, ByDay: true, ByOperation: true}) {
		require.Equal(t, w.used["test "+row.Day.Format(time.DateOnly)+" "+row.Operation], row.Used)
	}
	require.Empty(t, ask(projections.UsageFilter{First: end.AddDate(-9, 0, 0), Last: end.AddDate(-8, 0, 0), ByDay: true}))

	// Counted anew, with little memory, it is the same; and what is not is found.
	r := w.replayer(func(c *projections.ReplayConfig) { c.HeldJobs = 10 })
	w.begin(r)
	audit := func() (found []projections.Change, d projections.Difference) {
		_, d, err := r.Audit(w.ctx(), silent, func(c projections.Change) error {
			found = append(found, c)
			return nil
		})
		require.NoError(t, err)
		require.NotContains(t, w.schemas(r), projections.Schema+"_1", "what it made is removed")
		return found, d
	}
	found, d := audit()
	require.Empty(t, found)
	require.Zero(t, d)
	w.exec("UPDATE usage SET cpu_nanos = cpu_nanos + 1 WHERE day = '1970-01-01'")
	w.exec("DELETE FROM usage WHERE day = '1969-12-31'")
	w.exec("INSERT INTO usage VALUES ('test', '2027-03-02', 'webp', 1, 0, 0, 0, 0)")
	found, d = audit()
	require.Equal(t, projections.Difference{Usage: 3}, d)
	require.Equal(t, []projections.Change{
		{Usage: "1969-12-31 webp of test", Kind: projections.Added, Fields: []projections.FieldChange{{Field: "operations", Live: "-", Other: "1"},
			{Field: "failures", Live: "-", Other: "0"}, {Field: "input_bytes", Live: "-", Other: "7"}, {Field: "output_bytes", Live: "-", Other: "5"}, {Field: "cpu_nanos", Live: "-", Other: "1000000000"}}},
		{Usage: "1970-01-01 webp of test", Kind: projections.Changed, Fields: []projections.FieldChange{{Field: "cpu_nanos", Live: "1000000001", Other: "1000000000"}}},
		{Usage: "2027-03-02 webp of test", Kind: projections.Missing, Fields: []projections.FieldChange{{Field: "operations", Live: "1", Other: "-"},
			{Field: "failures", Live: "0", Other: "-"}, {Field: "input_bytes", Live: "0", Other: "-"}, {Field: "output_bytes", Live: "0", Other: "-"}, {Field: "cpu_nanos", Live: "0", Other: "-"}}},
	}, found)
	built, err := r.Build(w.ctx(), projections.Until{}, silent)
	require.NoError(t, err)
	_, err = r.Promote(w.ctx(), built.Name, silent)
	require.NoError(t, err)
	w.caughtUp()
	w.lives(200, 0, 80, 3*time.Hour, rand.New(rand.NewPCG(33, 1)))
	w.caughtUp()
	_, err = r.Rollback(w.ctx(), silent) // with what was changed by hand
	require.NoError(t, err)
	_, d = audit()
	require.EqualValues(t, 3, d.Usage)
}
