package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/go-fuego/fuego"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/progress"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/projections"
)

// Job is a job as clients see it. The first six members are those of the Python
// service.
type Job struct {
	JobID        string            `json:"job_id" format:"uuid"`
	Status       string            `json:"status" description:"PENDING, PROCESSING, COMPLETED, FAILED or COMPLETED_WEBHOOK_FAILED"`
	Operations   []string          `json:"operations"`
	ResultURLs   map[string]string `json:"result_urls" description:"Operation to signed link"`
	ErrorMessage *string           `json:"error_message"`
	CreatedAt    time.Time         `json:"created_at"`

	Outcome          *string           `json:"outcome" description:"null while open, then SUCCEEDED, PARTIAL, FAILED or CANCELLED"`
	Revision         int32             `json:"revision"`
	UpdatedAt        time.Time         `json:"updated_at"`
	FinalizedAt      *time.Time        `json:"finalized_at"`
	Source           Source            `json:"source"`
	OperationResults map[string]Result `json:"operation_results"`
	Webhook          *Webhook          `json:"webhook" description:"null where the job names no address, and its tenant had none"`
}

// Source is the picture that was uploaded.
type Source struct {
	Name string `json:"name,omitempty" description:"The file's name, where it can be opened"`
	// NameErased tells a name that was erased from one that cannot be read now.
	NameErased    bool       `json:"name_erased,omitempty" description:"The file's name was erased, with the tenant's key"`
	Bytes         int64      `json:"bytes"`
	Width         int32      `json:"width"`
	Height        int32      `json:"height"`
	Format        string     `json:"format"`
	SHA256        string     `json:"sha256"`
	URL           string     `json:"url,omitempty" description:"Signed link; absent where the picture has expired"`
	LinkExpiresAt *time.Time `json:"link_expires_at,omitempty" description:"When the link ends; a later read gives a new one"`
	ExpiresAt     *time.Time `json:"expires_at,omitempty" description:"Until when the picture is kept, and longer while the job is open"`
	Expired       bool       `json:"expired" description:"The picture is not kept any more"`
}

// Result is one operation of a job.
type Result struct {
	State    string       `json:"state" description:"PENDING, RUNNING, COMPLETED, FAILED or CANCELLED"`
	Attempt  int32        `json:"attempt"`
	Progress float64      `json:"progress" description:"0 to 1"`
	Error    *ResultError `json:"error"`
	Artifact *Artifact    `json:"artifact"`
}

// ResultError says why an operation failed.
type ResultError struct {
	Kind    string `json:"kind" description:"INPUT, WORLD or INTERNAL"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Artifact is a stored result.
type Artifact struct {
	Bytes  int64  `json:"bytes"`
	Width  int32  `json:"width"`
	Height int32  `json:"height"`
	Format string `json:"format"`
	SHA256 string `json:"sha256"`
	// LinkExpiresAt is that of the link in result_urls.
	LinkExpiresAt *time.Time `json:"link_expires_at,omitempty" description:"When the link ends; a later read gives a new one"`
	ExpiresAt     *time.Time `json:"expires_at" description:"Until when the picture is kept, and longer while the job is open"`
	Expired       bool       `json:"expired" description:"The picture is not kept any more"`
}

// job answers GET /api/jobs/{job_id}.
func (s *Server) job(c fuego.ContextNoBody) (Job, error) {
	id, err := jobID(c.PathParam("job_id"))
	if err != nil {
		return Job{}, err
	}
	patience, err := s.patience(c.QueryParam("wait"))
	if err != nil {
		return Job{}, err
	}
	if at := c.QueryParam("at"); at != "" {
		return s.jobAt(c, id, at)
	}
	var ended <-chan struct{}
	if patience > 0 {
		leave, err := take(s.waits, waitsOpen, fmt.Sprintf("%d queries wait for a job's end, the limit MAX_WAITING_READS; ask without wait, or try again shortly", s.cfg.MaxWaits))
		if err != nil {
			return Job{}, err
		}
		defer leave()
		var stop func()
		ended, stop = s.Reader.Watch(id) // before reading the job
		defer stop()
	}
	ctx, cancel := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer cancel()
	if after := c.QueryParam("after"); after != "" && !bug.On("read-ignores-after") {
		if err := s.waitFor(ctx, after); err != nil {
			return Job{}, err
		}
	}
	state, err := s.find(ctx, id)
	if err != nil {
		return Job{}, err
	}
	if patience > 0 && state.GetPhase() == events.Phase_PHASE_OPEN {
		state = s.untilEnded(c.Context(), state, ended, patience)
	}
	return s.render(c.Context(), state)
}

// jobID reads a job's id from a path.
func jobID(asked string) (string, error) {
	id, err := uuid.Parse(asked)
	if err != nil || len(asked) != 36 {
		return "", invalid("job_id", "job_id is not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
	}
	return id.String(), nil
}

// find reads a job, also one that was submitted just now; a *Problem where there is none.
func (s *Server) find(ctx context.Context, id string) (*events.Job, error) {
	state, err := s.Reader.Job(ctx, tenantOf(ctx), id)
	if errors.Is(err, projections.ErrNotFound) {
		state, err = s.lookAgain(ctx, id)
	}
	return s.found(id, state, err)
}

func (s *Server) found(id string, state *events.Job, err error) (*events.Job, error) {
	switch {
	case errors.Is(err, projections.ErrNotFound) || err == nil && state.GetPhase() == events.Phase_PHASE_DELETED:
		return nil, problem(http.StatusNotFound, fmt.Sprintf("Job %s not found", id))
	case errors.Is(err, projections.ErrUnavailable):
		return nil, unavailable("The database is unreachable.", err)
	}
	return state, err
}

// patience is how long the client would have us wait for the job's end.
func (s *Server) patience(wait string) (time.Duration, error) {
	if wait == "" {
		return 0, nil
	}
	seconds, err := strconv.ParseFloat(wait, 64)
	if most := s.cfg.LongestWait.Seconds(); err != nil || !(seconds >= 0 && seconds <= most) {
		return 0, invalid("wait", fmt.Sprintf("wait must be a number of seconds from 0 to %g", most))
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// untilEnded is the job as it is at its end, or when the patience is over.
func (s *Server) untilEnded(ctx context.Context, state *events.Job, ended <-chan struct{}, patience time.Duration) *events.Job {
	over := time.NewTimer(patience)
	defer over.Stop()
	for last := false; !last && state.GetPhase() == events.Phase_PHASE_OPEN; {
		select {
		case <-ended:
		case <-over.C:
			last = true // with one more look, for what came since
		case <-s.Stopping:
			return state
		case <-ctx.Done():
			return state
		}
		next, err := s.Reader.Job(ctx, state.GetTenant(), state.GetId())
		if err != nil {
			return state
		}
		state = next
	}
	return state
}

func (s *Server) waitFor(ctx context.Context, token string) error {
	position, err := events.ParsePosition(token)
	if err != nil {
		return invalid("after", "after is "+err.Error())
	}
	if position.Log != s.LogID {
		return invalid("after", "after is a position in another log than this service's")
	}
	if int(position.Partition) >= s.Partitions {
		return invalid("after", fmt.Sprintf("after is a position in partition %d, and the log has the partitions 0 to %d", position.Partition, s.Partitions-1))
	}
	if err := s.Reader.Wait(ctx, position.Partition, position.Offset); err != nil {
		return unavailable("The read model has not reached that position yet.", err)
	}
	return nil
}

// findLatest reads a job as the log has it now; a *Problem where there is none. It is for
// commands that are asked for one after another, each of which must see the last.
func (s *Server) findLatest(ctx context.Context, id string) (*events.Job, error) {
	state, err := s.lookAgain(ctx, id)
	return s.found(id, state, err)
}

// findOfAnyTenant is findLatest for operators.
func (s *Server) findOfAnyTenant(ctx context.Context, id string) (*events.Job, error) {
	if err := s.passEnd(ctx, s.partitionOf(id)); err != nil {
		return nil, err
	}
	state, err := s.Reader.JobOfAnyTenant(ctx, id)
	return s.found(id, state, err)
}

// lookAgain waits until the projection has passed the end that the job's partition has
// now, and then reads the job. So a job that the read model does not know is found as soon
// as its submission was answered, with no token at all. Another tenant's job is looked for
// just as long as one that nobody has.
func (s *Server) lookAgain(ctx context.Context, id string) (*events.Job, error) {
	if err := s.passEnd(ctx, s.partitionOf(id)); err != nil {
		return nil, err
	}
	return s.Reader.Job(ctx, tenantOf(ctx), id)
}

// passEnd waits until the projection has passed the end that a partition has now.
func (s *Server) passEnd(ctx context.Context, partition int32) error {
	ends, err := s.ends(ctx)
	if err != nil {
		return unavailable("Kafka does not tell how long the log is.", err)
	}
	end, ok := ends.Lookup(events.Topic, partition)
	if !ok || end.Err != nil {
		return unavailable("Kafka does not tell how long the log is.", end.Err)
	}
	if end.Offset > 0 {
		if err := s.Reader.Wait(ctx, partition, end.Offset-1); err != nil {
			return unavailable("The read model has not caught up with the log yet.", err)
		}
	}
	return nil
}

// ends is where the log ends now: the high watermarks, not the last stable offsets, since
// a request may lie behind an open transaction of the saga's.
//
// It is asked for beside the caller, since the client has been seen to wait seconds past
// its context for a broker that takes connections and says nothing.
func (s *Server) ends(ctx context.Context) (kadm.ListedOffsets, error) {
	type answer struct {
		ends kadm.ListedOffsets
		err  error
	}
	told := make(chan answer, 1)
	go func() {
		ends, err := kadm.NewClient(s.Kafka).ListEndOffsets(ctx, events.Topic)
		told <- answer{ends, err}
	}()
	select {
	case a := <-told:
		return a.ends, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// partitionOf is where a job's events lie.
func (s *Server) partitionOf(jobID string) int32 {
	return kafka.PartitionOf([]byte(jobID), s.Partitions)
}

// render is the state with links signed anew.
func (s *Server) render(ctx context.Context, state *events.Job) (Job, error) {
	name, err := s.Keys.Open(ctx, state.GetId(), state.GetFileName())
	erased := errors.Is(err, secrets.ErrForgotten)
	if err != nil && !erased {
		s.Log.WarnContext(ctx, "file name cannot be opened; links go without it", "error", err)
	}
	job, told := jobOf(state), s.progress(ctx, state)
	job.Source.Name, job.Source.NameErased = name, erased
	keptUntil(s.Retention, &job, state)
	if !state.GetSourceExpired() {
		link, expires, err := s.Store.PresignGet(ctx, state.GetSource().GetKey(), sourceName(name, job.Source.Format))
		if err != nil {
			return Job{}, err
		}
		job.Source.URL, job.Source.LinkExpiresAt = link, &expires
	}
	for _, op := range state.GetOperations() {
		// An earlier attempt's progress is none: the work began anew.
		if p, ok := told[op.GetName()]; ok && p.Attempt == op.GetAttempt() {
			result := job.OperationResults[op.GetName()]
			result.Progress = p.Share()
			job.OperationResults[op.GetName()] = result
		}
	}
	if err := linkResults(ctx, s.Store, &job, state, name); err != nil {
		return Job{}, err
	}
	return job, nil
}

// keptUntil says until when the job's pictures are kept.
func keptUntil(kept commands.Retention, job *Job, state *events.Job) {
	until := kept.SourceUntil(state)
	job.Source.ExpiresAt = &until
	for _, op := range state.GetOperations() {
		if a := job.OperationResults[op.GetName()].Artifact; a != nil {
			until := kept.ResultUntil(op)
			a.ExpiresAt = &until
		}
	}
}

// linkResults signs links to the results that are there.
func linkResults(ctx context.Context, store *blob.Store, job *Job, state *events.Job, fileName string) error {
	for _, op := range state.GetOperations() {
		if op.GetArtifact() == nil || op.GetArtifactExpired() {
			continue
		}
		result := job.OperationResults[op.GetName()]
		link, expires, err := store.PresignGet(ctx, op.GetArtifact().GetKey(), downloadName(op.GetName(), fileName))
		if err != nil {
			return err
		}
		job.ResultURLs[op.GetName()], result.Artifact.LinkExpiresAt = link, &expires
		job.OperationResults[op.GetName()] = result
	}
	return nil
}

// jobOf is the state without what lies outside it: links and progress.
func jobOf(state *events.Job) Job {
	job := Job{
		JobID: state.GetId(), Status: words[projections.StandingOf(state)].status, ErrorMessage: errorMessageOf(state),
		ResultURLs: map[string]string{}, OperationResults: map[string]Result{}, Revision: state.GetRevision(),
		CreatedAt: state.GetRequestedAt().AsTime(), UpdatedAt: state.GetUpdatedAt().AsTime(), Webhook: webhookOf(state),
	}
	if from := state.GetSource(); from != nil {
		job.Source = Source{Bytes: from.GetBytes(), Width: from.GetWidth(), Height: from.GetHeight(), Format: from.GetFormat(), SHA256: from.GetSha256(), Expired: state.GetSourceExpired()}
	}
	if state.GetPhase() == events.Phase_PHASE_ENDED {
		outcome, at := word(state.GetOutcome().String(), "OUTCOME_"), state.GetFinalizedAt().AsTime()
		job.Outcome, job.FinalizedAt = &outcome, &at
	}
	for _, op := range state.GetOperations() {
		job.Operations = append(job.Operations, op.GetName())
		job.OperationResults[op.GetName()] = resultOf(op)
	}
	return job
}

// progress is how far the operations are that run, as far as Redis tells.
func (s *Server) progress(ctx context.Context, state *events.Job) map[string]progress.State {
	var running []string
	for _, op := range state.GetOperations() {
		if op.GetPhase() == events.OperationPhase_OPERATION_PHASE_RUNNING {
			running = append(running, op.GetName())
		}
	}
	return progress.Read(ctx, s.Redis, state.GetId(), running...)
}

func word(name, prefix string) string { return strings.TrimPrefix(name, prefix) }

func resultOf(op *events.OperationState) Result {
	result := Result{State: word(op.GetPhase().String(), "OPERATION_PHASE_"), Attempt: op.GetAttempt()}
	switch op.GetPhase() {
	case events.OperationPhase_OPERATION_PHASE_COMPLETED:
		a := op.GetArtifact()
		result.Progress = 1
		result.Artifact = &Artifact{Bytes: a.GetBytes(), Width: a.GetWidth(), Height: a.GetHeight(), Format: a.GetFormat(), SHA256: a.GetSha256(), Expired: op.GetArtifactExpired()}
	case events.OperationPhase_OPERATION_PHASE_FAILED:
		result.Error = &ResultError{Kind: word(op.GetFailureKind().String(), "FAILURE_KIND_"), Code: op.GetFailureCode(), Message: op.GetFailureMessage()}
	case events.OperationPhase_OPERATION_PHASE_CANCELLED:
		result.Error = &ResultError{Kind: "INPUT", Code: "cancelled", Message: "cancelled before it had a result"}
	}
	return result
}

func errorMessageOf(state *events.Job) *string {
	var all []string
	for _, op := range state.GetOperations() {
		switch op.GetPhase() {
		case events.OperationPhase_OPERATION_PHASE_FAILED:
			all = append(all, op.GetName()+": "+op.GetFailureMessage())
		case events.OperationPhase_OPERATION_PHASE_CANCELLED:
			all = append(all, op.GetName()+": cancelled")
		}
	}
	if len(all) == 0 {
		return nil
	}
	text := strings.Join(all, "; ")
	return &text
}

// sourceName is the original name, or one that says what it is.
func sourceName(original, format string) string {
	if original == "" {
		return "image." + format
	}
	return original
}

// downloadName is pixtools_{op}_{original base name}.{ext}.
func downloadName(op, original string) string {
	base := strings.TrimSuffix(original, path.Ext(original))
	if base == "" {
		base = "image"
	}
	extension := op
	if target, ok := operations.Find(op); ok {
		extension = target.Extension
	}
	return "pixtools_" + op + "_" + base + "." + extension
}
