package processors

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/disk"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/telemetry"
	"github.com/pixtools/pixtools/processors/engine"
)

// WorkerConfig bounds a worker.
type WorkerConfig struct {
	// MaxAttempts bounds the attempts at an operation that this process saw fail: a child that
	// crashed, stalled or took too long over the picture.
	// Beyond it: OperationFailed, `attempts_used_up`, kind INTERNAL.
	MaxAttempts int32 `env:"PROCESS_MAX_ATTEMPTS" envDefault:"3" range:"1 to 100" unit:"attempts"`
	// MaxStarts bounds all attempts in the log, per operation and revision, those included that ended
	// with their process. A process that is killed or stopped says little against the picture, since
	// that is worked on in a child; so this is the more generous bound.
	// Beyond it: as with MaxAttempts.
	MaxStarts int32 `env:"PROCESS_MAX_STARTS" envDefault:"20" range:"PROCESS_MAX_ATTEMPTS to 1000" unit:"attempts"`
	// Timeout bounds one conversion, from when a child is free.
	// Beyond it: the child is killed; the attempt counts.
	Timeout time.Duration `env:"PROCESS_TIMEOUT" envDefault:"5m" range:"1s to 24h"`
	// GiveUpAfter bounds how long storage is waited for, from the first failure, where a source cannot
	// be fetched or a result cannot be stored.
	// Beyond it: OperationFailed, `source_unavailable`, `disk_full` or `artifact_not_stored`, kind WORLD.
	GiveUpAfter time.Duration `env:"PROCESS_GIVE_UP_AFTER" envDefault:"1h" range:"1s or more"`
	// KnownJobs is how many jobs' states the worker keeps in memory, per operation.
	// Beyond it: the least recently used is forgotten; its work may be repeated, its outcome is not
	// lost.
	KnownJobs int `env:"PROCESS_KNOWN_JOBS" envDefault:"50000" range:"1000 or more" unit:"jobs"`
	// SpoolBytes bounds what the sources at hand take on disk: those of one operation in this process.
	// Beyond it: the next one waits; one that is larger than all of it is taken alone.
	SpoolBytes int64 `env:"PROCESS_SPOOL_BYTES" envDefault:"1073741824" range:"1048576 to 1125899906842624" unit:"bytes"`
}

// Validate names every value out of range.
func (c WorkerConfig) Validate() error {
	var faults []error
	if c.MaxAttempts < 1 || c.MaxAttempts > 100 {
		faults = append(faults, fmt.Errorf("PROCESS_MAX_ATTEMPTS is %d: it must be from 1 to 100 attempts", c.MaxAttempts))
	}
	if c.MaxStarts < c.MaxAttempts || c.MaxStarts > 1000 {
		faults = append(faults, fmt.Errorf("PROCESS_MAX_STARTS is %d: it must be from PROCESS_MAX_ATTEMPTS, %d, to 1000 attempts", c.MaxStarts, c.MaxAttempts))
	}
	if c.Timeout < time.Second || c.Timeout > 24*time.Hour {
		faults = append(faults, fmt.Errorf("PROCESS_TIMEOUT is %s: it must be from 1s to 24h", c.Timeout))
	}
	if c.GiveUpAfter < time.Second {
		faults = append(faults, fmt.Errorf("PROCESS_GIVE_UP_AFTER is %s: it must be 1s or more", c.GiveUpAfter))
	}
	if c.KnownJobs < 1000 {
		faults = append(faults, fmt.Errorf("PROCESS_KNOWN_JOBS is %d: it must be 1000 jobs or more", c.KnownJobs))
	}
	if c.SpoolBytes < 1<<20 || c.SpoolBytes > 1<<50 {
		faults = append(faults, fmt.Errorf("PROCESS_SPOOL_BYTES is %d: it must be from %d to %d bytes", c.SpoolBytes, 1<<20, int64(1)<<50))
	}
	return errors.Join(faults...)
}

// Report begins to tell how far an attempt is. What it returns is called with the parts
// that are done, and with all; it must not block for long.
type Report func(ctx context.Context, jobID, operation string, attempt int32) func(done, total int)

// Worker takes one operation's requests from the log and answers each with an
// outcome. It is at-least-once: artifacts and events have derived names, so a
// repeat makes the same ones, and the first in the log counts.
type Worker struct {
	cfg       WorkerConfig
	operation Operation
	target    operations.Operation
	pool      *engine.Pool
	store     *blob.Store
	log       *slog.Logger
	publisher *kafka.Publisher
	// report is nil where nobody waits to hear.
	report Report
	// spool is a directory for files that are being worked on; name tells
	// this process from others, for diagnosis.
	spool, name string
	// room is what is left of SpoolBytes.
	room *semaphore.Weighted

	// mu guards the read-fold-write of jobs: the subscriber's poll loop (Notice),
	// its partitions' goroutines (CatchUp) and the handlers all fold into it. It guards
	// working too.
	mu   sync.Mutex
	jobs *lru.Cache[string, *events.Job]
	// working has, by job, what stops the handler that is at it.
	working map[string]context.CancelCauseFunc
	// away holds since when a job's source could not be read.
	away *lru.Cache[string, time.Time]
	// group names the consumer group; self is a context about the operation.
	group string
	self  context.Context
	// failed counts the attempts at a job that failed before our eyes.
	failed *lru.Cache[string, int32]
}

// NewWorker makes the worker of one operation.
func NewWorker(cfg WorkerConfig, op Operation, pool *engine.Pool, store *blob.Store, publisher *kafka.Publisher,
	report Report, spool, name string, log *slog.Logger) (*Worker, error) {
	target, ok := operations.Find(op.Name)
	if !ok {
		return nil, fmt.Errorf("operation %q has a processor but is not listed in commands/operations", op.Name)
	}
	jobs, err := lru.New[string, *events.Job](cfg.KnownJobs)
	if err != nil {
		return nil, err
	}
	away, err := lru.New[string, time.Time](cfg.KnownJobs)
	if err != nil {
		return nil, err
	}
	failed, err := lru.New[string, int32](cfg.KnownJobs)
	if err != nil {
		return nil, err
	}
	countFrom0(op.Name)
	return &Worker{cfg: cfg, operation: op, target: target, pool: pool, store: store, publisher: publisher,
		report: report, spool: spool, name: name, jobs: jobs, away: away, failed: failed, room: semaphore.NewWeighted(cfg.SpoolBytes),
		working: map[string]context.CancelCauseFunc{}, log: log,
		group: events.OperationGroup + op.Name, self: telemetry.With(context.Background(), telemetry.About{Operation: op.Name})}, nil
}

// Notice sees every record of the log in order, before those that the worker is to
// handle are delivered, and says whether this is one of them. So a worker knows of
// an outcome or a cancellation as soon as it is read, however long its queue is.
//
// It runs where a panic would take everybody's work along. A record that makes it panic
// is the saga's to tell of, which folds the same; it is not handled here.
func (w *Worker) Notice(r *kgo.Record) (wanted bool) {
	defer func() {
		if p := recover(); p != nil {
			w.log.ErrorContext(telemetry.OfKey(w.self, string(r.Key)), "passing over a record that panics", "partition", r.Partition, "offset", r.Offset, "error", p, "stack", string(debug.Stack()))
			wanted = false
		}
	}()
	e, err := events.Decode(r)
	if err != nil {
		if !errors.Is(err, events.ErrUnknownType) {
			w.log.ErrorContext(telemetry.OfKey(w.self, string(r.Key)), "passing over a record that is no event", "partition", r.Partition, "offset", r.Offset, "error", err)
		}
		return false
	}
	w.fold(e)
	return w.wanted(e)
}

// CatchUp folds what lies between the committed offset and the log's end, so that
// work which a dead worker finished is skipped and its attempts count. Notice may
// fold the same records at the same time: both go in log order, so each event is
// first folded in its turn, and Fold makes nothing of a repeat.
func (w *Worker) CatchUp(_ context.Context, _ string, _ int32, records iter.Seq2[*kgo.Record, error]) error {
	for r, err := range records {
		if err != nil {
			return err
		}
		if e, err := events.Decode(r); err == nil {
			w.fold(e)
		}
	}
	return nil
}

// wanted says whether an event asks for our operation.
func (w *Worker) wanted(e events.Event) bool {
	switch m := e.Message.(type) {
	case *events.JobRequested:
		return !e.Imported() && slices.ContainsFunc(m.GetOperations(), func(op *events.Operation) bool { return op.GetName() == w.operation.Name })
	case *events.OperationRetryRequested:
		return slices.Contains(m.GetOperations(), w.operation.Name)
	}
	return false
}

// underKey says whether e requests a job whose id follows from an idempotency key. Then
// another request for it may follow, which does not count.
func underKey(e events.Event) bool {
	_, request := e.Message.(*events.JobRequested)
	id, err := uuid.Parse(e.JobID)
	return request && err == nil && id.Version() == 5 // others are of version 7
}

// fold keeps the states of jobs that ask for our operation, and of those whose next
// request might.
func (w *Worker) fold(e events.Event) *events.Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, known := w.jobs.Get(e.JobID)
	if !known && !w.wanted(e) && !underKey(e) {
		return nil
	}
	after := events.Fold(before, e)
	if after != before {
		w.jobs.Add(e.JobID, after)
	}
	if stop := w.working[e.JobID]; stop != nil && !waits(after, w.operation.Name) {
		stop(errNoAttempt)
	}
	return after
}

// work gives a handler a context that ends, with errNoAttempt, when its operation is
// cancelled or has an outcome. A key has one handler at a time. Should the end have been
// noticed before this, begin finds it in the state.
func (w *Worker) work(ctx context.Context, jobID string) (context.Context, func()) {
	ctx, stop := context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.working[jobID] = stop
	return ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.working, jobID)
		stop(nil)
	}
}

// Handle works on one request. An error makes the subscriber deliver it again
// after a pause, with other jobs going on.
func (w *Worker) Handle(msg *message.Message) (err error) {
	ctx := msg.Context()
	r, ok := kafka.RecordFrom(ctx)
	if !ok {
		return errors.New("message without its record")
	}
	request, err := events.Decode(r)
	if err != nil {
		return err
	}
	ctx = telemetry.With(ctx, telemetry.About{Operation: w.operation.Name})
	ctx, span := telemetry.Process(ctx, "process "+w.operation.Name, w.group, request, r, time.Now())
	defer func() {
		if err != nil {
			w.log.WarnContext(ctx, "a request is to be delivered again", "error", err)
		}
		telemetry.End(span, err)
	}()
	defer func() {
		if p := recover(); p != nil {
			err = w.panicked(ctx, task{request, r}, p, string(debug.Stack()))
		}
	}()
	return w.handle(ctx, task{request, r})
}

// task is an event that asks for our operation, and its record.
type task struct {
	events.Event
	record *kgo.Record
}

// run names a job's revision in this process's memory.
func run(state *events.Job) string { return fmt.Sprintf("%s/%d", state.GetId(), state.GetRevision()) }

func (w *Worker) handle(ctx context.Context, request task) error {
	state := w.fold(request.Event)
	if !waits(state, w.operation.Name) {
		return nil // done, or cancelled, as the log already tells
	}
	leave, err := w.takeRoom(ctx, state.GetSource().GetBytes())
	if err != nil {
		return err
	}
	defer leave()
	// Before anything is written: what a full disk cuts off would be an attempt.
	if err := disk.Check(w.spool, leastFree+state.GetSource().GetBytes()); err != nil {
		return w.withoutSource(ctx, request, state, err)
	}
	source, err := fetch(ctx, w.store, w.spool, state.GetSource().GetKey(), state.GetSource().GetSha256())
	if err != nil {
		return w.withoutSource(ctx, request, state, err)
	}
	defer os.Remove(source)
	w.away.Remove(run(state))
	working, done := w.work(ctx, request.JobID)
	defer done()
	err = w.attempt(working, request, state, source)
	if errors.Is(context.Cause(working), errNoAttempt) {
		return nil // however far it came: nobody waits for it any more
	}
	return err
}

// leastFree is what must be free in the spool beside a source, in bytes: for its result.
const leastFree = 16 << 20

// takeRoom waits until the disk may take a source of that size. Who came first goes first, so that a large
// source gets its room in the end. Whoever has room goes on by itself, whatever waits.
func (w *Worker) takeRoom(ctx context.Context, bytes int64) (leave func(), err error) {
	bytes = min(max(bytes, 0), w.cfg.SpoolBytes)
	if err := w.room.Acquire(ctx, bytes); err != nil {
		return nil, err
	}
	return func() { w.room.Release(bytes) }, nil
}

// errNoAttempt ends a conversion whose turn has come when nobody waits for it any more.
var errNoAttempt = errors.New("no attempt is to be made")

// begun is an attempt whose OperationStarted is on its way into the log.
type begun struct {
	request task
	started events.Event
	// state is the job's, with the attempt in it.
	state *events.Job
	// acknowledged waits until OperationStarted is in the log.
	acknowledged func() error
	report       func(done, total int)
}

// attempt makes the artifact and reports what came of it.
//
// It counts from the moment that a child is free for it, and not while it waits: a
// process that dies takes with it one attempt at what its children did, and none at
// what was queued. OperationStarted is appended then and its acknowledgement awaited
// beside the work, before the outcome is told. Should the process die in between, at
// worst one attempt is not counted.
func (w *Worker) attempt(ctx context.Context, request task, state *events.Job, source string) error {
	var a *begun
	outcome := outcomeAgain
	defer func() { w.count(ctx, a, outcome) }()
	var converting trace.Span
	target := source + ".out"
	defer os.Remove(target)
	conversion := w.operation.Request(source, target, parametersOf(state, w.operation.Name))
	conversion.Timeout = w.cfg.Timeout
	conversion.OnTurn = func() (err error) {
		if a, err = w.begin(ctx, request); err == nil {
			inProgress.WithLabelValues(w.operation.Name).Inc()
			_, converting = telemetry.Start(ctx, "convert "+w.operation.Name)
			bug.Panic(state.GetSource().GetWidth())
			err = bug.Slow(ctx)
		}
		return err
	}
	conversion.OnProgress = func(done, total int) { a.report(done, total) }
	result, err := w.pool.Convert(ctx, conversion)
	if converting != nil {
		telemetry.End(converting, err)
	}
	if errors.Is(err, errNoAttempt) {
		return nil
	}
	if a == nil {
		return err // its turn did not come
	}
	log := w.log.With("attempt", a.started.Message.(*events.OperationStarted).GetAttempt())
	// What Kafka did not take is no attempt, and none of the picture's: however long Kafka is
	// away, it uses up nothing. Should it be in the log all the same, Notice will fold it.
	unheard := a.acknowledged()
	if unheard == nil {
		w.fold(a.started)
	}
	failed := err != nil
	if err := errors.Join(err, unheard); err != nil {
		var refused *engine.InputError
		if errors.As(err, &refused) {
			log.InfoContext(ctx, "operation failed", "code", refused.Code, "error", refused.Message)
			outcome = outcomeFailed
			return w.fail(ctx, a, events.FailureKind_FAILURE_KIND_INPUT, refused.Code, refused.Message)
		}
		log.WarnContext(ctx, "attempt ended without a result", "error", err)
		if ctx.Err() == nil && failed {
			w.countFailure(state)
		}
		return err
	}
	artifact, err := w.keep(ctx, request.JobID, target, result)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		log.ErrorContext(ctx, "the artifact could not be stored in time", "error", err)
		outcome = outcomeFailed
		return w.fail(ctx, a, events.FailureKind_FAILURE_KIND_WORLD, "artifact_not_stored", "the result could not be stored in time")
	}
	decided, err := commands.Complete{Started: a.started, Artifact: artifact, CPUTime: result.CPUTime, Engine: result.Engine,
		ModelSHA256: result.ModelSHA256, At: time.Now()}.Decide(w.latest(a))
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "operation completed", "bytes", artifact.GetBytes())
	if err = w.emit(ctx, decided); err == nil {
		outcome = outcomeCompleted
	}
	return err
}

// count counts an attempt that is over; failures for good are counted where they are told.
func (w *Worker) count(ctx context.Context, a *begun, outcome string) {
	if a == nil {
		return
	}
	inProgress.WithLabelValues(w.operation.Name).Dec()
	if outcome == outcomeAgain && errors.Is(context.Cause(ctx), errNoAttempt) {
		outcome = outcomeStopped
	}
	if outcome != outcomeFailed {
		attempts.WithLabelValues(w.operation.Name, outcome, "").Inc()
	}
	if outcome == outcomeCompleted || outcome == outcomeFailed {
		attemptDuration.WithLabelValues(w.operation.Name).Observe(time.Since(a.started.Time).Seconds())
	}
}

// begin puts an attempt into the log. It is errNoAttempt where none is to be made, as
// the log tells by now, or where they are used up, which it then puts into the log.
func (w *Worker) begin(ctx context.Context, request task) (*begun, error) {
	state := w.fold(request.Event) // with what was noticed since
	limit := w.cfg.MaxStarts
	if failures, _ := w.failed.Get(run(state)); failures >= w.cfg.MaxAttempts {
		limit = 0 // no more
	}
	decided, err := commands.Start{Cause: request.Event, Operation: w.operation.Name, MaxAttempts: limit,
		Worker: w.name, At: time.Now()}.Decide(state)
	if err != nil {
		return nil, err
	}
	if len(decided) == 0 {
		return nil, errNoAttempt
	}
	started, ok := decided[0].Message.(*events.OperationStarted)
	if !ok {
		if err := w.giveUp(ctx, request, decided[0], ""); err != nil {
			return nil, err
		}
		return nil, errNoAttempt
	}
	record, err := decided[0].Record()
	if err != nil {
		return nil, err
	}
	if started.GetAttempt() == 1 {
		// Beside our own span, which begins when the record is handled: the wait is before that.
		telemetry.Span(telemetry.OfEvent(ctx, request.Event), "queue "+w.operation.Name, request.Time, decided[0].Time)
		queueAge.WithLabelValues(w.operation.Name).Observe(max(decided[0].Time.Sub(request.Time), 0).Seconds())
	}
	a := &begun{request: request, started: decided[0], state: events.Fold(state, decided[0]), acknowledged: w.publisher.Begin(ctx, record),
		report: func(int, int) {}}
	if w.report != nil {
		a.report = w.report(ctx, request.JobID, w.operation.Name, started.GetAttempt())
	}
	return a, nil
}

// countFailure is called by the job's one handler.
func (w *Worker) countFailure(state *events.Job) int32 {
	failures, _ := w.failed.Get(run(state))
	w.failed.Add(run(state), failures+1)
	return failures + 1
}

// panicked answers a handler that did. It is tried again, since what it met may have
// passed, as often as an attempt that failed.
func (w *Worker) panicked(ctx context.Context, request task, value any, stack string) error {
	w.log.ErrorContext(ctx, "the handler panicked", "error", value, "stack", stack)
	w.mu.Lock()
	state, _ := w.jobs.Get(request.JobID)
	w.mu.Unlock()
	if state == nil {
		return nil // it cannot even be folded: the saga, which cannot either, ends it
	}
	failures := w.countFailure(state)
	if failures < w.cfg.MaxAttempts {
		return fmt.Errorf("panic: %v", value)
	}
	decided, err := commands.GiveUp{Cause: request.Event, Operation: w.operation.Name, Kind: events.FailureKind_FAILURE_KIND_INTERNAL,
		Code: events.CodePanic, Message: fmt.Sprintf("given up after %d attempts at which the program failed", failures),
		Source: "pixtools/" + w.operation.Name, At: time.Now()}.Decide(state)
	if err != nil || len(decided) == 0 {
		return err
	}
	return w.giveUp(ctx, request, decided[0], fmt.Sprintf("panic: %v\n\n%s", value, stack))
}

// giveUp puts an OperationFailed into the log, and before it, unless the picture is to
// blame, a dead letter. A process that dies between the two tells the letter again.
func (w *Worker) giveUp(ctx context.Context, request task, decided events.Event, stack string) error {
	failed := decided.Message.(*events.OperationFailed)
	if failed.GetKind() != events.FailureKind_FAILURE_KIND_INPUT {
		letter, err := events.NewDeadLetter(decided.Time, decided.Source, decided.CorrelationID, &events.DeadLettered{
			Group:  events.OperationGroup + w.operation.Name,
			Origin: &events.Origin{Topic: request.record.Topic, Partition: request.record.Partition, Offset: request.record.Offset},
			Type:   request.Type(), JobId: request.JobID, Operation: failed.GetOperation(), Revision: failed.GetRevision(),
			Attempts: failed.GetAttempt(), Kind: failed.GetKind(), Code: failed.GetCode(), Message: failed.GetMessage(), Stack: stack,
		}).Record()
		if err != nil {
			return err
		}
		w.log.ErrorContext(ctx, "operation given up: to the dead letters", "code", failed.GetCode(), "error", failed.GetMessage())
		if err := w.publisher.Append(ctx, letter); err != nil {
			return fmt.Errorf("append the dead letter of job %s: %w", request.JobID, err)
		}
	}
	if err := w.emit(ctx, []events.Event{decided}); err != nil {
		return err
	}
	attempts.WithLabelValues(w.operation.Name, outcomeFailed, kindName(failed.GetKind())).Inc()
	return nil
}

// latest is the job's state as far as it is known, of which the attempt is a part: the
// memory is bounded and may have let it go.
func (w *Worker) latest(a *begun) *events.Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	if state, ok := w.jobs.Get(a.started.JobID); ok {
		return state
	}
	return a.state
}

func (w *Worker) fail(ctx context.Context, a *begun, kind events.FailureKind, code, text string) error {
	decided, err := commands.Fail{Started: a.started, Kind: kind, Code: code, Message: text, At: time.Now()}.Decide(w.latest(a))
	if err != nil || len(decided) == 0 {
		return err
	}
	return w.giveUp(ctx, a.request, decided[0], "")
}

// withoutSource waits for storage that is away, up to a limit, and fails where the
// source is gone or damaged. Waiting uses up no attempts.
func (w *Worker) withoutSource(ctx context.Context, request task, state *events.Job, cause error) error {
	since, known, _ := w.away.PeekOrAdd(run(state), time.Now())
	code, text := "source_unavailable", "the stored source could not be read in time"
	switch {
	case errors.Is(cause, blob.ErrNotFound):
		code, text = "source_missing", "the stored source is gone: expired or deleted"
	case errors.Is(cause, blob.ErrChecksum):
		code, text = "source_damaged", "the stored source is not what was uploaded"
	case !known || time.Since(since) < w.cfg.GiveUpAfter:
		return fmt.Errorf("fetch the source of job %s: %w", request.JobID, cause)
	case disk.IsFull(cause):
		code, text = "disk_full", "the worker's disk had no room for the source in time"
	}
	a, err := w.begin(ctx, request)
	if errors.Is(err, errNoAttempt) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.acknowledged(); err != nil {
		return err
	}
	return w.fail(ctx, a, events.FailureKind_FAILURE_KIND_WORLD, code, text)
}

// keep stores an artifact under a name that its bytes decide.
func (w *Worker) keep(ctx context.Context, jobID, path string, result engine.Result) (*events.Artifact, error) {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	artifact, sum, err := describe(jobID, w.target, file, result)
	if err != nil {
		return nil, err
	}
	// The work is done: storage that is away is waited for, not worked for again.
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return struct{}{}, backoff.Permanent(err) // our own disk's fault
		}
		if bug.On("artifact-not-stored") {
			return struct{}{}, nil
		}
		return struct{}{}, w.store.Put(ctx, artifact.GetKey(), file, artifact.GetBytes(), sum, w.target.ContentType)
	}, backoff.WithMaxElapsedTime(w.cfg.GiveUpAfter), backoff.WithNotify(func(err error, pause time.Duration) {
		w.log.WarnContext(ctx, "cannot store the artifact, trying again", "after", pause.String(), "error", err)
	}))
	if err != nil {
		return nil, err
	}
	if bug.On("artifact-wrong-hash") {
		sum[0]++
		artifact.Sha256 = hex.EncodeToString(sum[:])
	}
	return artifact, nil
}

// emit puts events into the log and folds them.
func (w *Worker) emit(ctx context.Context, decided []events.Event) error {
	for _, e := range decided {
		if bug.On("event-ids-drawn") {
			e.ID = uuid.NewString()
		}
		r, err := e.Record()
		if err != nil {
			return err
		}
		if bug.On("worker-acks-early") {
			time.AfterFunc(time.Second, func() { w.publisher.Begin(context.WithoutCancel(ctx), r) })
			continue
		}
		if err := w.publisher.Append(ctx, r); err != nil {
			return fmt.Errorf("append %s of job %s: %w", e.Type(), e.JobID, err)
		}
		w.fold(e)
	}
	return nil
}

func waits(state *events.Job, name string) bool {
	if state.GetPhase() != events.Phase_PHASE_OPEN {
		return false
	}
	for _, op := range state.GetOperations() {
		if op.GetName() == name {
			return !op.Ended()
		}
	}
	return false
}

func parametersOf(state *events.Job, name string) map[string]any {
	for _, op := range state.GetOperations() {
		if op.GetName() == name {
			return op.GetParameters().AsMap()
		}
	}
	return nil
}
