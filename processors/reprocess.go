package processors

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/processors/engine"
)

// ReprocessConfig keeps reprocessing behind live work.
type ReprocessConfig struct {
	// Rate is how many results are made, or replaced, a second at most.
	// Beyond it: the next waits.
	Rate float64 `env:"REPROCESS_RATE" envDefault:"20" range:"0.01 to 10000" unit:"results a second"`
	// LookInterval is how long it waits, while live work waits, before it looks again.
	LookInterval time.Duration `env:"REPROCESS_LOOK_INTERVAL" envDefault:"1s" range:"10ms to 1m"`
}

// Validate names every value out of range.
func (c ReprocessConfig) Validate() error {
	var faults []error
	if !(c.Rate >= 0.01 && c.Rate <= 10_000) { // and no NaN
		faults = append(faults, fmt.Errorf("REPROCESS_RATE is %g: it must be from 0.01 to 10000 results a second", c.Rate))
	}
	if c.LookInterval < 10*time.Millisecond || c.LookInterval > time.Minute {
		faults = append(faults, fmt.Errorf("REPROCESS_LOOK_INTERVAL is %s: it must be from 10ms to 1m", c.LookInterval))
	}
	return errors.Join(faults...)
}

// Run is one reprocessing: an operation done again over results of the past.
//
// What is known of it lies in the store, below reprocess/ and its id, so that it goes on
// after a kill, also on another machine: the plan, in parts of PartItems results; for each
// part that is done what came of it; run.json, written when the plan is whole; and
// rolled-back.json. Each of these objects is written once. A part that a kill cut off is
// done once more, and comes to the same: results are named by their bytes.
type Run struct {
	ID        string    `json:"run"`
	Operation string    `json:"operation"`
	Where     string    `json:"where,omitempty"`
	Made      time.Time `json:"made"`
	Items     int       `json:"items"`
	Parts     int       `json:"parts"`
}

// PartItems is how many results a part of a run has.
const PartItems = 50

// Item is a result that a run is about.
type Item struct {
	JobID  string  `json:"job_id"`
	Tenant string  `json:"tenant"`
	Before Version `json:"before"`
}

// Version is an artifact, and what made it.
type Version struct {
	Key    string `json:"key"`
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
	Width  int32  `json:"width"`
	Height int32  `json:"height"`
	Format string `json:"format"`
	Engine string `json:"engine"`
	Model  string `json:"model_sha256,omitempty"`
}

func (v Version) artifact() *events.Artifact {
	return &events.Artifact{Key: v.Key, Sha256: v.SHA256, Bytes: v.Bytes, Width: v.Width, Height: v.Height, Format: v.Format}
}

func versionOf(a *events.Artifact, engine, model string) Version {
	return Version{a.GetKey(), a.GetSha256(), a.GetBytes(), a.GetWidth(), a.GetHeight(), a.GetFormat(), engine, model}
}

// Fate is what came of an item.
type Fate string

// The fates of a run's items.
const (
	// FateMade: there is another result beside the present one.
	FateMade Fate = "made"
	// FateEqual: the same bytes were made; there is nothing to replace.
	FateEqual Fate = "equal"
	// FateSkipped: it could not be done, or not compared.
	FateSkipped Fate = "skipped"
	// FateFailed: the picture is refused now.
	FateFailed Fate = "failed"
)

// Remade is an item, and what came of it.
type Remade struct {
	Item
	Fate Fate `json:"fate"`
	// Why is the reason of a fate other than made and equal.
	Why   string   `json:"why,omitempty"`
	After *Version `json:"after,omitempty"`
	// PSNR, in decibels, is how like the two results are; absent where every pixel is equal.
	PSNR *float64 `json:"psnr_db,omitempty"`
}

// Reprocess makes runs, and does what they are for.
type Reprocess struct {
	Again
	// State is a job as it is now; nil: there is none.
	State func(ctx context.Context, tenant, jobID string) (*events.Job, error)
	// Turn waits until the next result may be made or replaced.
	Turn func(ctx context.Context) error
}

// Errors of runs.
var (
	// ErrNoRun: there is no such run, or its plan was cut off.
	ErrNoRun = errors.New("there is no such run, or it was ended while it was planned: begin a new one")
	// ErrRunOpen: not all of its results are made.
	ErrRunOpen = errors.New("the run is not done yet")
	// ErrRolledBack: it was rolled back.
	ErrRolledBack = errors.New("the run was rolled back: make a new one, its results are there already")
)

// Plan makes a run of the results of an operation that are meant.
func (r Reprocess) Plan(ctx context.Context, operation, where string, limit int, jobs func(each func(*events.Job) error) error) (Run, error) {
	run := Run{Operation: operation, Where: where, Made: r.Now().UTC().Truncate(time.Second)}
	meant, err := commands.ParseWhere(where)
	if err != nil {
		return run, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return run, err
	}
	run.ID = id.String()
	var part []Item
	flush := func() error {
		if len(part) == 0 {
			return nil
		}
		err := r.write(ctx, run.place("plan", run.Parts), part)
		run.Items, run.Parts, part = run.Items+len(part), run.Parts+1, nil
		return err
	}
	err = jobs(func(job *events.Job) error {
		for _, op := range job.GetOperations() {
			if op.GetName() != operation || op.GetArtifact() == nil || op.GetArtifactExpired() || !meant.Match(op) {
				continue
			}
			if limit > 0 && run.Items+len(part) == limit {
				return errEnough
			}
			part = append(part, Item{JobID: job.GetId(), Tenant: job.GetTenant(), Before: versionOf(op.GetArtifact(), op.GetEngine(), op.GetModelSha256())})
			if len(part) == PartItems {
				return flush()
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err := errors.Join(err, flush()); err != nil {
		return run, err
	}
	return run, r.write(ctx, run.key("run.json"), run)
}

// errEnough ends a selection.
var errEnough = errors.New("enough")

// Find is the run of that id; ErrNoRun where there is none.
func (r Reprocess) Find(ctx context.Context, id string) (Run, error) {
	run := Run{ID: id}
	if !events.IsJobID(id) { // a UUID, too
		return run, fmt.Errorf("%w: %q is no run's id", ErrNoRun, id)
	}
	there, err := r.read(ctx, run.key("run.json"), &run)
	if err == nil && !there {
		err = fmt.Errorf("%w: %s", ErrNoRun, id)
	}
	return run, err
}

// Work makes what is not made yet, and tells of everything, what was made before included.
// The results are stored where a worker would store them, and no event names them.
func (r Reprocess) Work(ctx context.Context, run Run, told func(Remade) error) error {
	for part := range run.Parts {
		var done []Remade
		there, err := r.read(ctx, run.place("results", part), &done)
		if err != nil {
			return err
		}
		if !there {
			if done, err = r.work(ctx, run, part, told); err != nil {
				return err
			}
			if err := r.write(ctx, run.place("results", part), done); err != nil {
				return err
			}
			continue
		}
		for _, m := range done {
			if err := told(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// work makes the results of one part.
func (r Reprocess) work(ctx context.Context, run Run, part int, told func(Remade) error) (done []Remade, err error) {
	var items []Item
	there, err := r.read(ctx, run.place("plan", part), &items)
	if err != nil || !there {
		return nil, errOr(err, fmt.Errorf("a part of the plan is gone: %s", run.place("plan", part)))
	}
	for _, item := range items {
		if err := r.Turn(ctx); err != nil {
			return nil, err
		}
		m, err := r.one(ctx, run, item)
		if err != nil {
			return nil, fmt.Errorf("%s of job %s: %w", run.Operation, item.JobID, err)
		}
		done = append(done, m)
		if err := told(m); err != nil {
			return nil, err
		}
	}
	return done, nil
}

func (r Reprocess) one(ctx context.Context, run Run, item Item) (Remade, error) {
	m := Remade{Item: item}
	job, err := r.State(ctx, item.Tenant, item.JobID)
	if err != nil {
		return m, err
	}
	if now := artifactOf(job, run.Operation); now.GetSha256() != item.Before.SHA256 {
		m.Fate, m.Why = FateSkipped, "the job has gone on"
		return m, nil
	}
	made, err := r.Make(ctx, job, run.Operation)
	if err != nil {
		return m.ended(err)
	}
	defer made.Remove()
	after := versionOf(made.Artifact, made.Engine, made.ModelSHA256)
	if after.SHA256 == item.Before.SHA256 {
		m.Fate = FateEqual
		return m, nil
	}
	// What cannot be compared could not be put back either.
	decibels, err := r.Compare(ctx, made, item.Before.artifact(), job.GetFinalizedAt().AsTime(), run.Operation)
	if err != nil {
		return m.ended(err)
	}
	if !math.IsInf(decibels, 1) {
		m.PSNR = &decibels
	}
	m.Fate, m.After = FateMade, &after
	return m, r.Keep(ctx, made, run.Operation)
}

// ended sorts the error of an item that has no new result; the world's stays one.
func (m Remade) ended(err error) (Remade, error) {
	var skip Skip
	var refused *engine.InputError
	switch {
	case errors.As(err, &skip):
		m.Fate, m.Why = FateSkipped, string(skip)
	case errors.As(err, &refused):
		m.Fate, m.Why = FateFailed, refused.Message
	default:
		return m, err
	}
	return m, nil
}

// Replaced is what came of putting one result in another's place.
type Replaced struct {
	JobID string `json:"job_id"`
	// Done says that an event was written. Why is why not: the job has gone on, say, or
	// the result is there already, as after a kill.
	Done bool   `json:"done"`
	Why  string `json:"why,omitempty"`
}

// Replace puts all new results of a run in the place of the old ones, or, back, the old
// ones in that of the new. It can be repeated: what is in its place already is left. What
// was rolled back is not promoted again, since the same event twice would be a repeat.
func (r Reprocess) Replace(ctx context.Context, run Run, back bool, write func(context.Context, events.Event) error, told func(Replaced) error) error {
	var rolledBack time.Time
	there, err := r.read(ctx, run.key("rolled-back.json"), &rolledBack)
	switch {
	case err != nil:
		return err
	case there && !back:
		return ErrRolledBack
	case back && !there:
		// First: a promotion that begins later must see it.
		if err := r.write(ctx, run.key("rolled-back.json"), r.Now().UTC()); err != nil {
			return err
		}
	}
	for part := range run.Parts {
		var done []Remade
		there, err := r.read(ctx, run.place("results", part), &done)
		if err != nil {
			return err
		}
		if !there && !back {
			return fmt.Errorf("%w: pixtools reprocess --run %s", ErrRunOpen, run.ID)
		}
		for _, m := range done {
			if m.Fate != FateMade {
				continue
			}
			if err := r.Turn(ctx); err != nil {
				return err
			}
			came, err := r.replace(ctx, run, m, back, write)
			if err != nil {
				return fmt.Errorf("%s of job %s: %w", run.Operation, m.JobID, err)
			}
			if err := told(came); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r Reprocess) replace(ctx context.Context, run Run, m Remade, back bool, write func(context.Context, events.Event) error) (Replaced, error) {
	came := Replaced{JobID: m.JobID}
	from, to, how := m.Before, *m.After, "promote"
	if back {
		from, to, how = *m.After, m.Before, "rollback"
	}
	job, err := r.State(ctx, m.Tenant, m.JobID)
	if err != nil {
		return came, err
	}
	decided, err := commands.Replace{Operation: run.Operation, Replaced: from.SHA256, Artifact: to.artifact(), Engine: to.Engine, ModelSHA256: to.Model,
		Campaign: run.ID + "/" + how, At: r.Now()}.Decide(job)
	var conflict *commands.Conflict
	switch {
	case errors.As(err, &conflict):
		came.Why = conflict.Message
		return came, nil
	case err != nil:
		return came, err
	case len(decided) == 0:
		came.Why = "it is there already"
		return came, nil
	}
	// Stored anew: the store deletes by age, and the log says from now on that it is here.
	err = r.refresh(ctx, to, run.Operation)
	var skip Skip
	if errors.As(err, &skip) {
		came.Why = string(skip)
		return came, nil
	}
	if err != nil {
		return came, err
	}
	came.Done = true
	return came, write(ctx, decided[0])
}

// refresh stores a result once more, as it is.
func (r Reprocess) refresh(ctx context.Context, v Version, operation string) error {
	path, err := r.fetch(ctx, v.Key, v.SHA256, false, ResultExpired, ResultMissing, ResultDamaged)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	target, _ := operations.Find(operation)
	_, sum, err := describe("", target, file, engine.Result{})
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	return r.Store.Put(ctx, v.Key, file, v.Bytes, sum, target.ContentType)
}

// Shadows gives what runs have made, and what that is to replace or has replaced: the keys of
// results, and, of parts that are not done, the folders in which they are about to lie.
func Shadows(ctx context.Context, store *blob.Store, each func(prefix string)) error {
	r := Reprocess{Again: Again{Store: store}}
	done := map[string]bool{} // the parts of the run that is listed
	current := ""
	var plans []string
	flush := func() error {
		for _, plan := range plans {
			if done[strings.Replace(plan, "/plan-", "/results-", 1)] {
				continue
			}
			var items []Item
			if there, err := r.read(ctx, plan, &items); err != nil || !there {
				return err
			}
			for _, item := range items {
				folder, _ := path.Split(item.Before.Key)
				each(folder)
			}
		}
		plans = plans[:0]
		clear(done)
		return nil
	}
	err := store.List(ctx, blob.ReprocessPrefix, func(o blob.Object) error {
		folder, name := path.Split(o.Key)
		if folder != current {
			if err := flush(); err != nil {
				return err
			}
			current = folder
		}
		switch {
		case strings.HasPrefix(name, "plan-"):
			plans = append(plans, o.Key)
		case strings.HasPrefix(name, "results-"):
			done[o.Key] = true
			var all []Remade
			if there, err := r.read(ctx, o.Key, &all); err != nil || !there {
				return err
			}
			for _, m := range all {
				if m.After != nil {
					each(m.After.Key)
					each(m.Before.Key)
				}
			}
		}
		return nil
	})
	return errors.Join(err, flush())
}

func artifactOf(job *events.Job, operation string) *events.Artifact {
	for _, op := range job.GetOperations() {
		if op.GetName() == operation {
			return op.GetArtifact()
		}
	}
	return nil
}

func (run Run) key(name string) string { return blob.ReprocessPrefix + run.ID + "/" + name }

func (run Run) place(kind string, part int) string {
	return run.key(fmt.Sprintf("%s-%06d.json", kind, part))
}

func (r Reprocess) write(ctx context.Context, key string, note any) error {
	content, err := json.Marshal(note)
	if err != nil {
		return err
	}
	return r.Store.Put(ctx, key, bytes.NewReader(content), int64(len(content)), sha256.Sum256(content), "application/json")
}

// mostNoteBytes is far above any note of a run.
const mostNoteBytes = 4 << 20

// read reads a note; false: it is not there.
func (r Reprocess) read(ctx context.Context, key string, note any) (there bool, err error) {
	body, err := r.Store.Get(ctx, key)
	if errors.Is(err, blob.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer body.Close()
	content, err := io.ReadAll(io.LimitReader(body, mostNoteBytes+1))
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(content, note); err != nil {
		return false, fmt.Errorf("%s is no note of a run: %w", key, err)
	}
	return true, nil
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
