package audit

import (
	"fmt"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// written is a log of one partition.
type written struct {
	t       *testing.T
	records []*kgo.Record
}

func (w *written) add(all ...events.Event) {
	for _, e := range all {
		r, err := e.Record()
		require.NoError(w.t, err)
		w.raw(r)
	}
}

func (w *written) raw(r *kgo.Record) {
	r.Offset, r.Timestamp = int64(len(w.records)), noon
	w.records = append(w.records, r)
}

// audited goes through the log, holding few jobs.
func (w *written) audited(held int) (Tally, []Finding, []Open, int) {
	var found []Finding
	var open []Open
	passes := 0
	tally, err := Audit{Config: Config{HeldJobs: held, FilterBytes: 1 << 20, Downloads: 1}, Partitions: 1, Until: noon.Add(2 * time.Hour), Grace: time.Hour,
		Excused: func(r *kgo.Record) bool { return string(r.Value) == "told" },
		Found:   func(f Finding) error { found = append(found, f); return nil },
		Still:   func(o Open) error { open = append(open, o); return nil },
	}.Log(w.t.Context(), func(_ string, _ bool, each func(*kgo.Record) error) error {
		passes++
		for _, r := range w.records {
			if err := each(r); err != nil {
				return err
			}
		}
		return nil
	})
	require.NoError(w.t, err)
	return tally, found, open, passes
}

// life is a job's events, in which webp completes.
type life struct {
	id                           string
	request, start, done, finish events.Event
}

func newLife() life {
	l := life{id: uuid.NewString()}
	key := func(kind, name string) string { return kind + "/" + l.id + "/" + name }
	l.request = events.New(l.id, noon, "t", "", &events.JobRequested{Tenant: "default", Operations: []*events.Operation{{Name: "webp"}},
		Source: &events.Source{Key: key("raw", "aa"), Sha256: "aa", Bytes: 1}})
	l.start = events.Because(l.request, noon, "t", &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1})
	l.done = events.Because(l.start, noon, "t", &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1,
		Artifact: &events.Artifact{Key: key("processed", "webp/bb.webp"), Sha256: "bb", Bytes: 3}})
	l.finish = events.Because(l.done, noon, "t", &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED,
		Totals: &events.Totals{Completed: 1, ArtifactBytes: 3}})
	return l
}

func (l life) all() []events.Event { return []events.Event{l.request, l.start, l.done, l.finish} }

// What comes late for jobs that were let go comes to the same with any memory, and is
// counted once.
func TestMemoryChangesNothing(t *testing.T) {
	w := &written{t: t}
	var lives []life
	for range 20 {
		l := newLife()
		lives = append(lives, l)
		w.add(l.all()...)
	}
	late := events.Because(lives[0].request, noon, "t", &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 2})
	w.add(lives[3].all()...)                                                                              // a whole job once more
	w.add(late, lives[1].done)                                                                            // a late attempt, and a repeat
	w.add(events.New(lives[2].id, noon, "t", "", &events.ArtifactsExpired{Operations: []string{"webp"}})) // by its id alone
	cancelled := newLife()
	w.add(cancelled.request, events.New(cancelled.id, noon, "t", "", &events.JobCancelRequested{Revision: 1}))
	again := events.New(cancelled.id, noon, "t", "", &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_CANCELLED, Totals: &events.Totals{Cancelled: 1}})
	w.add(again)
	for range 5 {
		w.add(newLife().all()...)
	}
	w.add(events.New(cancelled.id, noon, "t", "", &events.OperationRetryRequested{Revision: 2, Operations: []string{"webp"}, Request: cancelled.request.Message.(*events.JobRequested)}),
		events.New(cancelled.id, noon, "t", "", &events.JobCancelRequested{Revision: 2}),
		events.New(cancelled.id, noon, "t", "", &events.JobFinalized{Revision: 2, Outcome: events.Outcome_OUTCOME_CANCELLED, Totals: &events.Totals{Cancelled: 1}}))
	want, found, open, passes := w.audited(1000)
	require.Empty(t, found)
	require.Empty(t, open)
	require.Equal(t, 1, passes)
	require.Equal(t, map[string]int64{"SUCCEEDED": 25, "CANCELLED": 2}, want.Finals)
	require.Equal(t, []int64{26, 5, 25*4 + 2 + 3 + 3}, []int64{want.Jobs, want.Repeats, want.Events})
	for _, held := range []int{1, 2, 3, 10} {
		got, found, open, passes := w.audited(held)
		require.Empty(t, found, held)
		require.Empty(t, open, held)
		require.Greater(t, passes, 1)
		require.Positive(t, got.Again)
		got.Again = 0
		require.Equal(t, want, got, held)
	}
}

func TestFindings(t *testing.T) {
	l := newLife()
	causeless := events.New(l.id, noon, "t", "", &events.OperationFailed{Revision: 1, Operation: "webp", Attempt: 3})
	causeless.CausationID = newLife().request.ID
	other := events.Because(l.start, noon, "t", &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1,
		Artifact: &events.Artifact{Key: "processed/" + l.id + "/webp/cc.webp", Sha256: "cc", Bytes: 3}})
	foreign := events.Because(l.start, noon, "t", &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1,
		Artifact: &events.Artifact{Key: "processed/other/webp/cc.webp", Sha256: "cc", Bytes: 3}})
	wrong := events.Because(l.done, noon, "t", &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_PARTIAL, Totals: &events.Totals{Completed: 1, ArtifactBytes: 3}})
	small := events.Because(l.done, noon, "t", &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED, Totals: &events.Totals{Completed: 1, ArtifactBytes: 2}})
	stranger := events.New(l.id, noon, "t", "", &events.OperationFailed{Revision: 1, Operation: "avif", Attempt: 1})
	for name, c := range map[string]struct {
		log  []events.Event
		want []Kind
	}{
		"whole":                              {l.all(), nil},
		"each twice":                         {append(l.all(), l.all()...), nil},
		"no end":                             {[]events.Event{l.request, l.start, l.done}, []Kind{NoEnd}},
		"no outcome":                         {[]events.Event{l.request}, []Kind{NoEnd}},
		"nobody requested it":                {[]events.Event{l.start, l.done, l.finish}, []Kind{UnknownCause, Orphan}},
		"an unknown cause":                   {[]events.Event{l.request, l.start, causeless, l.done, l.finish}, []Kind{UnknownCause, FinalDiffers}},
		"a repeat that says otherwise":       {[]events.Event{l.request, l.start, l.done, other, l.finish}, []Kind{RepeatDiffers}},
		"another job's object":               {[]events.Event{l.request, l.start, foreign, l.finish}, []Kind{Illegal}},
		"another outcome":                    {[]events.Event{l.request, l.start, l.done, wrong}, []Kind{FinalDiffers}},
		"other totals":                       {[]events.Event{l.request, l.start, l.done, small}, []Kind{FinalDiffers}},
		"another operation":                  {[]events.Event{l.request, l.start, stranger, l.done, l.finish}, []Kind{Illegal}},
		"the end before its time, and after": {[]events.Event{l.request, l.start, l.finish, l.done, l.finish}, []Kind{UnknownCause, Illegal}},
		"a revision too far": {append(l.all(), events.New(l.id, noon, "t", "", &events.OperationRetryRequested{Revision: 3, Operations: []string{"webp"}})),
			[]Kind{Revision}},
		"a deleted job": {append(l.all(), events.New(l.id, noon, "t", "", &events.JobDeleted{})), nil},
	} {
		w := &written{t: t}
		w.add(c.log...)
		_, found, _, _ := w.audited(10)
		var kinds []Kind
		for _, f := range found {
			kinds = append(kinds, f.Kind)
			require.NotEmpty(t, f.Next, f.Kind)
			require.NotContains(t, f.Next, "JOB ", f.Kind)
		}
		require.Equal(t, c.want, kinds, "%s: %v", name, found)
	}
	w := &written{t: t}
	w.add(l.all()...)
	w.records[2].Partition = 1 // of one that there is
	_, found, _, _ := w.audited(10)
	require.Len(t, found, 1)
	require.Equal(t, WrongPlace, found[0].Kind)
	w = &written{t: t}
	w.raw(&kgo.Record{Key: []byte("x"), Value: []byte("told")})
	w.raw(&kgo.Record{Key: []byte("x"), Value: []byte("untold")})
	var tally Tally
	tally, found, _, _ = w.audited(1)
	require.EqualValues(t, 2, tally.Broken)
	require.Len(t, found, 1)
	require.Equal(t, Unreadable, found[0].Kind)
	require.EqualValues(t, 1, found[0].Offset)
}

// A job is a finding when it is older than the grace, and not before.
func TestGrace(t *testing.T) {
	for age, overdue := range map[time.Duration]bool{time.Hour - time.Second: false, time.Hour: false, time.Hour + time.Second: true} {
		w, l := &written{t: t}, newLife()
		l.request.Time = noon.Add(2*time.Hour - age)
		w.add(l.request)
		tally, found, open, _ := w.audited(1)
		require.Equal(t, overdue, len(found) == 1, age)
		require.Equal(t, overdue, len(open) == 0, age)
		require.EqualValues(t, len(open), tally.Open)
	}
}

func TestSample(t *testing.T) {
	draw := func(n int, seed string, from, to int) (all []int) {
		s := NewSample[int](n, seed)
		left := 0
		for i := from; i != to; i += (to - from) / max(to-from, from-to) {
			if s.Offer(fmt.Sprint(i), i) {
				left++
			}
		}
		require.Equal(t, max(max(to-from, from-to)-n, 0), left)
		return s.All()
	}
	require.Equal(t, draw(5, "", 0, 100), draw(5, "", 99, -1), "whatever the order")
	require.NotEqual(t, draw(5, "", 0, 100), draw(5, "x", 0, 100))
	require.Len(t, draw(5, "", 0, 3), 3)
	require.Empty(t, draw(0, "", 0, 3))
}

func TestConfig(t *testing.T) {
	c, err := env.ParseAs[Config]()
	require.NoError(t, err)
	require.NoError(t, c.Validate())
	for name, set := range map[string]struct {
		of        func(*Config) *int
		good, bad []int
	}{
		"VERIFY_HELD_JOBS":    {func(c *Config) *int { return &c.HeldJobs }, []int{1, 10_000_000}, []int{0, 10_000_001}},
		"VERIFY_FILTER_BYTES": {func(c *Config) *int { return &c.FilterBytes }, []int{1024, 1 << 30}, []int{1023, 1<<30 + 1}},
		"VERIFY_DOWNLOADS":    {func(c *Config) *int { return &c.Downloads }, []int{1, 256}, []int{0, 257}},
	} {
		for _, n := range set.good {
			other := c
			*set.of(&other) = n
			require.NoError(t, other.Validate(), name)
		}
		for _, n := range set.bad {
			other := c
			*set.of(&other) = n
			require.ErrorContains(t, other.Validate(), name)
		}
	}
}
