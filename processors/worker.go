package processors

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/processors/engine"
)

// WorkerConfig bounds a worker.
type WorkerConfig struct {
	// MaxAttempts bounds the attempts at an operation, those of workers that died
	// included.
	MaxAttempts int32 `env:"PROCESS_MAX_ATTEMPTS" envDefault:"3"`
	// Timeout bounds one attempt.
	Timeout time.Duration `env:"PROCESS_TIMEOUT" envDefault:"5m"`
	// GiveUpAfter bounds, from the request, how long storage that is away is waited for.
	GiveUpAfter time.Duration `env:"PROCESS_GIVE_UP_AFTER" envDefault:"1h"`
	// KnownJobs is how many jobs' states the worker keeps in memory.
	KnownJobs int `env:"PROCESS_KNOWN_JOBS" envDefault:"50000"`
}

// Validate names every value out of range.
func (c WorkerConfig) Validate() error {
	var faults []error
	if c.MaxAttempts < 1 || c.MaxAttempts > 100 {
		faults = append(faults, fmt.Errorf("PROCESS_MAX_ATTEMPTS is %d: it must be from 1 to 100 attempts", c.MaxAttempts))
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
	return errors.Join(faults...)
}

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
	// spool is a directory for files that are being worked on; name tells
	// this process from others, for diagnosis.
	spool, name string

	// mu guards the read-fold-write of jobs: the subscriber's poll loop (Notice),
	// its partitions' goroutines (CatchUp) and the handlers all fold into it.
	mu   sync.Mutex
	jobs *lru.Cache[string, *events.Job]
}

// NewWorker makes the worker of one operation.
func NewWorker(cfg WorkerConfig, op Operation, pool *engine.Pool, store *blob.Store, publisher *kafka.Publisher,
	spool, name string, log *slog.Logger) (*Worker, error) {
	target, ok := operations.Find(op.Name)
	if !ok {
		return nil, fmt.Errorf("operation %q has a processor but is not listed in commands/operations", op.Name)
	}
	jobs, err := lru.New[string, *events.Job](cfg.KnownJobs)
	if err != nil {
		return nil, err
	}
	return &Worker{cfg: cfg, operation: op, target: target, pool: pool, store: store, publisher: publisher,
		spool: spool, name: name, jobs: jobs, log: log.With("operation", op.Name)}, nil
}

// Notice sees every record of the log in order, before those that the worker is to
// handle are delivered, and says whether this is one of them. So a worker knows of
// an outcome or a cancellation as soon as it is read, however long its queue is.
func (w *Worker) Notice(r *kgo.Record) bool {
	e, err := events.Decode(r)
	if err != nil {
		if !errors.Is(err, events.ErrUnknownType) {
			w.log.Error("passing over a record that is no event", "partition", r.Partition, "offset", r.Offset, "error", err)
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

func (w *Worker) wanted(e events.Event) bool {
	request, ok := e.Message.(*events.JobRequested)
	if !ok {
		return false
	}
	for _, op := range request.GetOperations() {
		if op.GetName() == w.operation.Name {
			return true
		}
	}
	return false
}

// fold keeps the states of jobs that ask for our operation.
func (w *Worker) fold(e events.Event) *events.Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, known := w.jobs.Get(e.JobID)
	if !known && !w.wanted(e) {
		return nil
	}
	after := events.Fold(before, e)
	if after != before {
		w.jobs.Add(e.JobID, after)
	}
	return after
}

// Handle works on one request. An error makes the subscriber deliver it again
// after a pause, with other jobs going on.
func (w *Worker) Handle(msg *message.Message) error {
	ctx := msg.Context()
	r, ok := kafka.RecordFrom(ctx)
	if !ok {
		return errors.New("message without its record")
	}
	request, err := events.Decode(r)
	if err != nil {
		return err
	}
	state := w.fold(request)
	if !waits(state, w.operation.Name) {
		return nil // done, or cancelled, as the log already tells
	}
	source, err := w.fetch(ctx, state)
	if err != nil {
		return w.withoutSource(ctx, request, state, err)
	}
	defer os.Remove(source)
	started, err := w.start(ctx, request, state)
	if started == nil || err != nil {
		return err
	}
	return w.attempt(ctx, *started, w.fold(*started), source)
}

// start puts an attempt into the log before it is made: if this process dies of it,
// the next one counts it. It is nil where the attempts are used up.
func (w *Worker) start(ctx context.Context, request events.Event, state *events.Job) (*events.Event, error) {
	decided, err := commands.Start{Cause: request, Operation: w.operation.Name, MaxAttempts: w.cfg.MaxAttempts,
		Worker: w.name, At: time.Now()}.Decide(state)
	if err != nil || len(decided) == 0 {
		return nil, err
	}
	if err := w.emit(ctx, decided); err != nil {
		return nil, err
	}
	if _, ok := decided[0].Message.(*events.OperationStarted); !ok {
		return nil, nil
	}
	return &decided[0], nil
}

// attempt makes the artifact and reports what came of it.
func (w *Worker) attempt(ctx context.Context, started events.Event, state *events.Job, source string) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	log := w.log.With("job", started.JobID, "request", started.CorrelationID,
		"attempt", started.Message.(*events.OperationStarted).GetAttempt())
	target := source + ".out"
	defer os.Remove(target)
	result, err := w.pool.Convert(ctx, w.operation.Request(source, target, parametersOf(state, w.operation.Name)))
	var refused *engine.InputError
	if errors.As(err, &refused) {
		log.Info("operation failed", "code", refused.Code, "error", refused.Message)
		return w.fail(ctx, started, state, events.FailureKind_FAILURE_KIND_INPUT, refused.Code, refused.Message)
	}
	if err != nil {
		log.Warn("attempt ended without a result", "error", err)
		return err
	}
	artifact, err := w.keep(ctx, started.JobID, target, result)
	if err != nil {
		log.Warn("cannot store the artifact", "error", err)
		return err
	}
	decided, err := commands.Complete{Started: started, Artifact: artifact, CPUTime: result.CPUTime, Engine: result.Engine,
		At: time.Now()}.Decide(state)
	if err != nil {
		return err
	}
	log.Info("operation completed", "bytes", artifact.GetBytes())
	return w.emit(ctx, decided)
}

func (w *Worker) fail(ctx context.Context, started events.Event, state *events.Job, kind events.FailureKind, code, text string) error {
	decided, err := commands.Fail{Started: started, Kind: kind, Code: code, Message: text, At: time.Now()}.Decide(state)
	if err != nil {
		return err
	}
	return w.emit(ctx, decided)
}

// withoutSource waits for storage that is away, up to a limit, and fails where the
// source is gone or damaged. Waiting uses up no attempts.
func (w *Worker) withoutSource(ctx context.Context, request events.Event, state *events.Job, cause error) error {
	code, text := "source_unavailable", "the stored source could not be read in time"
	switch {
	case errors.Is(cause, blob.ErrNotFound):
		code, text = "source_missing", "the stored source is gone: expired or deleted"
	case errors.Is(cause, blob.ErrChecksum):
		code, text = "source_damaged", "the stored source is not what was uploaded"
	case time.Since(state.GetRequestedAt().AsTime()) < w.cfg.GiveUpAfter:
		return fmt.Errorf("fetch the source of job %s: %w", request.JobID, cause)
	}
	started, err := w.start(ctx, request, state)
	if started == nil || err != nil {
		return err
	}
	return w.fail(ctx, *started, w.fold(*started), events.FailureKind_FAILURE_KIND_WORLD, code, text)
}

// fetch copies the source into the spool.
func (w *Worker) fetch(ctx context.Context, state *events.Job) (string, error) {
	var want [sha256.Size]byte
	if n, err := hex.Decode(want[:], []byte(state.GetSource().GetSha256())); err != nil || n != len(want) {
		return "", fmt.Errorf("%w: no SHA-256 of the source in the log", blob.ErrChecksum)
	}
	file, err := os.CreateTemp(w.spool, w.operation.Name+"-*")
	if err != nil {
		return "", err
	}
	_, err = w.store.Download(ctx, state.GetSource().GetKey(), file, want)
	if err := errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return file.Name(), nil
}

// keep stores an artifact under a name that its bytes decide.
func (w *Worker) keep(ctx context.Context, jobID, path string, result engine.Result) (*events.Artifact, error) {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	if err != nil {
		return nil, err
	}
	sum := [sha256.Size]byte(hash.Sum(nil))
	key := fmt.Sprintf("%s%s/%s/%x.%s", blob.ProcessedPrefix, jobID, w.operation.Name, sum, w.target.Extension)
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if err := w.store.Put(ctx, key, file, size, sum, w.target.ContentType); err != nil {
		return nil, err
	}
	return &events.Artifact{Key: key, Sha256: hex.EncodeToString(sum[:]), Bytes: size,
		Width: int32(result.Width), Height: int32(result.Height), Format: w.target.Format}, nil
}

// emit puts events into the log and folds them.
func (w *Worker) emit(ctx context.Context, decided []events.Event) error {
	for _, e := range decided {
		r, err := e.Record()
		if err != nil {
			return err
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
