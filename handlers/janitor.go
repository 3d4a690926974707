package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/bits-and-blooms/bloom/v3"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/time/rate"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/kafka"
)

// JanitorConfig bounds what the janitor does, and how fast.
type JanitorConfig struct {
	// Interval is the pause between two looks for what is past its retention.
	Interval time.Duration `env:"JANITOR_INTERVAL" envDefault:"10m" range:"1s to 24h"`
	// SweepInterval is the time between two passes over all stored objects.
	SweepInterval time.Duration `env:"JANITOR_SWEEP_INTERVAL" envDefault:"24h" range:"1m to 8760h"`
	// OrphanGrace is how old an object must be that a pass removes: far older than any submission
	// that is under way, at least ten times what UPLOAD_TIMEOUT, S3_TRANSFER_TIMEOUT and
	// KAFKA_SUBMIT_TIMEOUT allow together.
	OrphanGrace time.Duration `env:"JANITOR_ORPHAN_GRACE" envDefault:"48h" range:"2h to 8760h"`
	// MaxOrphans is how many objects that no event names one pass removes. With more it is likelier
	// that this is another log's bucket, or that the log has lost its end.
	// Beyond it: the pass removes nothing, and says what to do.
	MaxOrphans int `env:"JANITOR_MAX_ORPHANS" envDefault:"10000" range:"1 to 1000000000" unit:"objects"`
	// Rate is how many events are written and objects removed a second at most, together.
	// Beyond it: they wait.
	Rate float64 `env:"JANITOR_RATE" envDefault:"100" range:"0.1 to 10000" unit:"a second"`
	// Batch is how many jobs, or objects, are looked at together.
	// Beyond it: the rest comes next.
	Batch int `env:"JANITOR_BATCH" envDefault:"500" range:"1 to 10000" unit:"jobs or objects"`
}

// Validate names every value out of range.
func (c JanitorConfig) Validate() error {
	var faults []error
	for _, d := range []struct {
		name            string
		value, from, to time.Duration
	}{
		{"JANITOR_INTERVAL", c.Interval, time.Second, 24 * time.Hour},
		{"JANITOR_SWEEP_INTERVAL", c.SweepInterval, time.Minute, 365 * 24 * time.Hour},
		{"JANITOR_ORPHAN_GRACE", c.OrphanGrace, 2 * time.Hour, 365 * 24 * time.Hour},
	} {
		if d.value < d.from || d.value > d.to {
			faults = append(faults, fmt.Errorf("%s is %s: it must be from %s to %s", d.name, d.value, d.from, d.to))
		}
	}
	if !(c.Rate >= 0.1 && c.Rate <= 10_000) { // and no NaN
		faults = append(faults, fmt.Errorf("JANITOR_RATE is %g: it must be from 0.1 to 10000 a second", c.Rate))
	}
	for name, n := range map[string]int{"JANITOR_BATCH": c.Batch, "JANITOR_MAX_ORPHANS": c.MaxOrphans} {
		if low, high := 1, map[string]int{"JANITOR_BATCH": 10_000, "JANITOR_MAX_ORPHANS": 1_000_000_000}[name]; n < low || n > high {
			faults = append(faults, fmt.Errorf("%s is %d: it must be from %d to %d objects", name, n, low, high))
		}
	}
	return errors.Join(faults...)
}

// Janitor lets go of what is past its retention, and removes the objects of what the log
// says is gone, and those of which it says nothing.
//
// What expires is said in the log first (Expire); what the log says is gone is removed as
// its event comes (Handle). A pass over all objects (Sweep) removes what neither reached:
// what was stored for an event that never came, what a killed process has left, what was
// replaced long ago. Nothing of it is remembered: each step looks at the log and the
// store as they are, and a step done twice changes nothing.
type Janitor struct {
	JanitorConfig
	commands.Retention
	// Uploads is how long is kept what clients stored themselves.
	Uploads time.Duration
	Store   *blob.Store
	Log     *slog.Logger
	Now     func() time.Time
	// Due gives ended jobs that have a source (or else a result) from a time or before it.
	Due func(ctx context.Context, source bool, until time.Time, each func(*events.Job) error) error
	// Jobs reads jobs as the log has them, no earlier than at the call. One that is not in the
	// answer is not in the log.
	Jobs func(ctx context.Context, ids []string) (map[string]*events.Job, error)
	// Told reads a job's events from the log. events.ErrUnknownType: this version does not know all
	// that they tell.
	Told func(ctx context.Context, id string) ([]events.Event, error)
	// Shadows gives the keys, or the beginnings of keys up to a slash, of results that
	// reprocessing has made and may put in place, and of those that it may put back.
	Shadows func(ctx context.Context, each func(prefix string)) error
	// Write appends an event.
	Write func(context.Context, events.Event) error

	pace *rate.Limiter
}

// Begin makes the janitor ready; call it once.
func (j *Janitor) Begin() *Janitor {
	j.pace = rate.NewLimiter(rate.Limit(j.Rate), 1)
	return j
}

// Run does passes until ctx is done. There may be others, as while a process that has lost
// its lock goes on: what they do is the same.
func (j *Janitor) Run(ctx context.Context) error {
	var swept time.Time
	for step, every := range map[string]time.Duration{stepExpire: j.Interval, stepUploads: j.Interval, stepSweep: j.SweepInterval} {
		passInterval.WithLabelValues(step).Set(every.Seconds())
		lastPass.WithLabelValues(step).SetToCurrentTime() // from here on it is ours to do
	}
	defer handOn()
	for {
		due, err := j.Expire(ctx, false)
		j.passed(ctx, stepExpire, due, err)
		due, err = j.ClearUploads(ctx, false)
		j.passed(ctx, stepUploads, due, err)
		if now := j.Now(); now.Sub(swept) >= j.SweepInterval {
			due, err := j.Sweep(ctx, false, false)
			j.passed(ctx, stepSweep, due, err)
			if err == nil {
				swept = now
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(j.Interval):
		}
	}
}

// handOn says that the passes are another's from here on.
func handOn() {
	for _, step := range janitorSteps {
		lastPass.WithLabelValues(step).Set(0)
		passInterval.WithLabelValues(step).Set(0)
	}
}

// The janitor's steps.
const (
	stepExpire  = "expire"
	stepUploads = "uploads"
	stepSweep   = "sweep"
)

var janitorSteps = []string{stepExpire, stepUploads, stepSweep}

// passed tells of a pass that has ended; one that the stop cut off is none.
func (j *Janitor) passed(ctx context.Context, step string, tally Tally, err error) {
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		passes.WithLabelValues(step, "failed").Inc()
		j.Log.Warn("the janitor could not finish, and begins again at its next turn", "step", step, "error", err)
		return
	case len(tally) > 0:
		j.Log.Info("the janitor has let go", "step", step, "what", tally)
	}
	passes.WithLabelValues(step, "complete").Inc()
	lastPass.WithLabelValues(step).SetToCurrentTime()
}

// Why says for what reason something is let go.
type Why string

// The reasons.
const (
	// WhySource and WhyResult: past its retention, and said so in the log now.
	WhySource Why = "source past its retention"
	WhyResult Why = "result past its retention"
	// WhyExpired and WhyDeleted: the log said so before.
	WhyExpired Why = "object of what has expired"
	WhyDeleted Why = "object of a deleted job"
	// WhyOrphan: no event names it.
	WhyOrphan Why = "orphan"
	// WhyReplaced: another result took its place, and its own retention is over.
	WhyReplaced Why = "result that was replaced"
	// WhyNote: a note of a reprocessing run, past its retention.
	WhyNote Why = "note of reprocessing"
	// WhyUpload: what a client stored itself, past its retention. A job has a copy of its own.
	WhyUpload Why = "direct upload past its retention"
	// WhyForeign: under no key of ours, and named by no event; it is left.
	WhyForeign Why = "not ours, left"
)

// Count is how many there are, and of how many bytes.
type Count struct {
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// Tally counts by reason.
type Tally map[Why]Count

func (t Tally) add(why Why, bytes int64) {
	c := t[why]
	t[why] = Count{c.Objects + 1, c.Bytes + bytes}
}

// Expire writes ArtifactsExpired for what is past its retention; dry, it only counts. Of the
// read model it asks what is due, and it may be behind: what is written twice, or too late,
// changes nothing (events.Fold).
func (j *Janitor) Expire(ctx context.Context, dry bool) (Tally, error) {
	tally, now := Tally{}, j.Now()
	for _, source := range []bool{true, false} {
		until := now.Add(-j.Results)
		if source {
			until = now.Add(-j.Sources)
		}
		err := j.Due(ctx, source, until, func(job *events.Job) error {
			for _, e := range (commands.Expire{Retention: j.Retention, At: now}).Decide(job) {
				m := e.Message.(*events.ArtifactsExpired)
				if m.GetSource() && !source {
					continue // with its source, a moment ago
				}
				if err := j.expire(ctx, dry, e); err != nil {
					return err
				}
				if m.GetSource() {
					tally.add(WhySource, job.GetSource().GetBytes())
				}
				for _, op := range job.GetOperations() {
					if slices.Contains(m.GetOperations(), op.GetName()) {
						tally.add(WhyResult, op.GetArtifact().GetBytes())
					}
				}
			}
			return nil
		})
		if err != nil {
			return tally, err
		}
	}
	return tally, nil
}

func (j *Janitor) expire(ctx context.Context, dry bool, e events.Event) error {
	if dry {
		return nil
	}
	if err := j.pace.Wait(ctx); err != nil {
		return err
	}
	return j.Write(ctx, e)
}

// The types of events that tell of something that is gone.
var (
	expiredType = events.Event{Message: &events.ArtifactsExpired{}}.Type()
	deletedType = events.Event{Message: &events.JobDeleted{}}.Type()
)

// Concerns says whether a record tells of something that is gone. It is the group's filter.
func (j *Janitor) Concerns(r *kgo.Record) bool {
	kind := events.TypeOf(r)
	return kind == expiredType || kind == deletedType
}

// Handle removes what an event says is gone. An error makes the record come again: so it is
// done at least once, whatever is killed meanwhile.
func (j *Janitor) Handle(msg *message.Message) error {
	ctx := msg.Context()
	r, ok := kafka.RecordFrom(ctx)
	if !ok {
		return errors.New("message without its record")
	}
	e, err := events.Decode(r)
	if err != nil {
		j.Log.Error("the janitor passes over a record that is no event", "partition", r.Partition, "offset", r.Offset, "error", err)
		return nil
	}
	// Not as the event says: as the log has the job. The event may have come too late to count.
	jobs, err := j.Jobs(ctx, []string{e.JobID})
	if err != nil {
		return err
	}
	return j.clear(ctx, jobs[e.JobID])
}

// clear removes what of a job the log says is gone.
func (j *Janitor) clear(ctx context.Context, job *events.Job) error {
	switch job.GetPhase() {
	case events.Phase_PHASE_DELETED:
		for _, prefix := range []string{blob.RawPrefix, blob.ProcessedPrefix} {
			if err := j.Store.List(ctx, prefix+job.GetId()+"/", func(o blob.Object) error { return j.remove(ctx, WhyDeleted, o) }); err != nil {
				return err
			}
		}
	case events.Phase_PHASE_ENDED:
		for _, o := range objectsOf(job) {
			if o.gone {
				if err := j.remove(ctx, WhyExpired, o.Object); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (j *Janitor) remove(ctx context.Context, why Why, o blob.Object) error {
	if err := j.pace.Wait(ctx); err != nil {
		return err
	}
	if err := j.Store.Delete(ctx, o.Key); err != nil {
		return err
	}
	countRemoved(why, o.Size)
	return nil
}

// held is an object that a job's state names, and whether it has expired.
type held struct {
	blob.Object
	gone bool
}

func objectsOf(job *events.Job) []held {
	source := job.GetSource()
	all := []held{{blob.Object{Key: source.GetKey(), Size: source.GetBytes()}, job.GetSourceExpired()}}
	for _, op := range job.GetOperations() {
		if a := op.GetArtifact(); a != nil {
			all = append(all, held{blob.Object{Key: a.GetKey(), Size: a.GetBytes()}, op.GetArtifactExpired()})
		}
	}
	return all
}

// ErrManyOrphans ends a pass before it removes anything.
var ErrManyOrphans = errors.New("too many objects are named by no event")

// filterBytes is the memory in which a pass keeps what reprocessing has made; with very much
// of it, some orphans are taken for such results and stay.
const filterBytes = 16 << 20

// dayMargin is left to servers that expire objects by themselves, which do so at midnight.
const dayMargin = 24 * time.Hour

// Sweep goes over all objects and removes what nothing needs; dry, it only counts. Memory is
// that of Batch objects and a filter.
//
// It looks first and removes then, in two passes, so that a bucket that is not this log's
// is told before anything of it is gone. allOrphans leaves that out.
func (j *Janitor) Sweep(ctx context.Context, dry, allOrphans bool) (Tally, error) {
	made := bloom.New(filterBytes*8, 7)
	if err := j.Shadows(ctx, func(prefix string) { made.AddString(prefix) }); err != nil {
		return nil, fmt.Errorf("read what reprocessing has made: %w", err)
	}
	found, err := j.sweep(ctx, made, true)
	if err != nil || dry {
		return found, err
	}
	if n := found[WhyOrphan].Objects; n > int64(j.MaxOrphans) && !allOrphans {
		return nil, fmt.Errorf("%w: %d, more than JANITOR_MAX_ORPHANS, %d; nothing was removed. See that the bucket is this log's and that the log is whole (pixtools verify), look at them (pixtools janitor --dry-run), and remove them with pixtools janitor --all-orphans", ErrManyOrphans, n, j.MaxOrphans)
	}
	unneeded := maps.Clone(found)
	if delete(unneeded, WhyForeign); len(unneeded) == 0 {
		return found, nil
	}
	return j.sweep(ctx, made, false)
}

func (j *Janitor) sweep(ctx context.Context, made *bloom.BloomFilter, dry bool) (Tally, error) {
	tally, now := Tally{}, j.Now()
	for _, prefix := range []string{blob.RawPrefix, blob.ProcessedPrefix} {
		var batch []blob.Object
		flush := func() error {
			err := j.judge(ctx, batch, made, now, dry, tally)
			batch = batch[:0]
			return err
		}
		err := j.Store.List(ctx, prefix, func(o blob.Object) error {
			switch {
			case !events.IsJobID(jobOf(o.Key)):
				tally.add(WhyForeign, o.Size)
				return nil
			case now.Sub(o.ModifiedAt) < j.OrphanGrace && !bug.On("janitor-ignores-grace"):
				return nil
			}
			if batch = append(batch, o); len(batch) == j.Batch {
				return flush()
			}
			return nil
		})
		if err == nil {
			err = flush()
		}
		if err != nil {
			return tally, err
		}
	}
	return tally, j.Store.List(ctx, blob.ReprocessPrefix, func(o blob.Object) error {
		if now.Sub(o.ModifiedAt) < j.Results+dayMargin {
			return nil
		}
		tally.add(WhyNote, o.Size)
		if dry {
			return nil
		}
		return j.remove(ctx, WhyNote, o)
	})
}

// ClearUploads removes what clients stored themselves, once no job may be made of it any more;
// dry, it only counts. An object is younger than the request that was signed for it, so what is
// removed here is past what was promised. Servers with lifecycle rules do the same, some time
// later.
func (j *Janitor) ClearUploads(ctx context.Context, dry bool) (Tally, error) {
	tally, now := Tally{}, j.Now()
	return tally, j.Store.List(ctx, blob.UploadsPrefix, func(o blob.Object) error {
		if now.Sub(o.ModifiedAt) <= j.Uploads {
			return nil
		}
		tally.add(WhyUpload, o.Size)
		if dry {
			return nil
		}
		return j.remove(ctx, WhyUpload, o)
	})
}

// jobOf is the job that a key is of: its second part.
func jobOf(key string) string {
	_, rest, _ := strings.Cut(key, "/")
	id, _, _ := strings.Cut(rest, "/")
	return id
}

// judge removes what of some objects nothing needs.
func (j *Janitor) judge(ctx context.Context, batch []blob.Object, made *bloom.BloomFilter, now time.Time, dry bool, tally Tally) error {
	if len(batch) == 0 {
		return nil
	}
	var ids []string
	for _, o := range batch {
		if id := jobOf(o.Key); len(ids) == 0 || ids[len(ids)-1] != id {
			ids = append(ids, id)
		}
	}
	jobs, err := j.Jobs(ctx, ids) // after the listing: what an event names by now is known to be named
	if err != nil {
		return err
	}
	named, whole := map[string]bool{}, true // by the events of the job that is looked at; whether those are known
	read := ""
	for _, o := range batch {
		id := jobOf(o.Key)
		why, certain := reason(jobs[id], o.Key)
		if !certain && !spared(o.Key, made) {
			if read != id {
				if named, err = j.namedBy(ctx, id); err != nil && !errors.Is(err, events.ErrUnknownType) {
					return err
				}
				read, whole = id, err == nil
			}
			switch {
			case !whole: // a newer version's event may name it, and its janitor will know
			case !named[o.Key]:
				why = WhyOrphan
			case jobs[id] == nil: // it is named, and its job not shown yet
			case now.Sub(o.ModifiedAt) > j.Results+dayMargin:
				why = WhyReplaced
			}
		}
		if why == WhyOrphan && !ours.MatchString(o.Key) {
			why = WhyForeign
		}
		if why == "" {
			continue
		}
		tally.add(why, o.Size)
		if dry || why == WhyForeign {
			continue
		}
		if err := j.removeIfSame(ctx, why, o); err != nil {
			return err
		}
	}
	return nil
}

// ours are the keys under which the API and the workers store. What lies under others, though
// no event names it, is somebody else's: of a service before this one, in the same bucket.
var ours = regexp.MustCompile(`^(raw/[0-9a-f-]{36}|processed/[0-9a-f-]{36}/[a-z0-9]+)/[0-9a-f]{64}(\.[a-z0-9]+)?$`)

// reason is why an object of a job may go, or "" where it may not; without certain, the
// job's events must be asked.
func reason(job *events.Job, key string) (why Why, certain bool) {
	switch job.GetPhase() {
	case events.Phase_PHASE_OPEN: // somebody may be about to name it
		return "", true
	case events.Phase_PHASE_DELETED:
		return WhyDeleted, true
	case events.Phase_PHASE_ENDED:
		for _, o := range objectsOf(job) {
			if o.Key != key {
				continue
			}
			if o.gone {
				return WhyExpired, true
			}
			return "", true
		}
		return "", false
	}
	return "", false // there is no such job, as far as this version knows
}

// spared says whether reprocessing may still need an object, or lists it among what it has
// replaced.
func spared(key string, made *bloom.BloomFilter) bool {
	return made.TestString(key) || made.TestString(key[:strings.LastIndexByte(key, '/')+1])
}

// namedBy are the keys of all objects that a job's events name.
func (j *Janitor) namedBy(ctx context.Context, id string) (map[string]bool, error) {
	told, err := j.Told(ctx, id)
	if err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	for _, e := range told {
		for _, o := range e.Objects() {
			keys[o.Key] = true
		}
	}
	return keys, nil
}

// removeIfSame removes an object unless it was stored anew since it was listed. A client that
// repeats a keyed submission which failed before the grace, or a retry that makes the very
// bytes that an attempt has left, stores under the same key. Between the look and the
// removal are some milliseconds in which that would be lost.
func (j *Janitor) removeIfSame(ctx context.Context, why Why, o blob.Object) error {
	if err := j.pace.Wait(ctx); err != nil {
		return err
	}
	now, err := j.Store.Head(ctx, o.Key)
	if errors.Is(err, blob.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if now.ModifiedAt.Sub(o.ModifiedAt).Abs() > time.Second { // HEAD tells whole seconds
		return nil
	}
	if err := j.Store.Delete(ctx, o.Key); err != nil {
		return err
	}
	countRemoved(why, o.Size)
	return nil
}
