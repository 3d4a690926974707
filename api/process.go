package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-fuego/fuego"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/internal/telemetry"
	"github.com/pixtools/pixtools/projections"
)

// Accepted answers a submission; equal submissions get equal answers.
type Accepted struct {
	JobID  string `json:"job_id" format:"uuid"`
	Status string `json:"status" description:"Always PENDING: the state at acceptance"`
}

// process accepts a job: the blob is stored, then the event is acknowledged by
// Kafka, then the client is told. What fails before leaves at most an orphan blob.
func (s *Server) process(c fuego.ContextNoBody) (Accepted, error) {
	r, w := c.Request(), c.Response()
	if err := s.room(); err != nil {
		return Accepted{}, err
	}
	leave, err := take(s.uploads, uploadsInProgress, fmt.Sprintf("%d uploads are in progress, the limit; try again shortly", s.cfg.MaxUploads))
	if err != nil {
		return Accepted{}, err
	}
	defer leave()
	// Errors mean that the connection cannot have deadlines (a test's recorder).
	_ = connectionOf(r).SetReadDeadline(time.Now().Add(s.cfg.UploadTimeout))
	u, err := s.readUpload(w, r)
	if err != nil {
		return Accepted{}, err
	}
	defer u.Close()
	if u.file != nil {
		u.source = s.received(u.file)
	} else if u.source, err = s.stored(r.Context(), u); err != nil {
		return Accepted{}, err
	}
	header, err := s.sniff(u.source)
	if err != nil {
		return Accepted{}, err
	}
	if faults := commands.CheckOperations(u.operations, u.parameters, header.Format); faults != nil {
		return Accepted{}, faults
	}
	s.OnSubmission(u.operations)
	if u.source.sum, err = u.source.hash(r.Context()); err != nil {
		return Accepted{}, err
	}
	command := commands.Submit{
		Tenant: tenantOf(r.Context()), RequestID: r.Header.Get(requestIDHeader), TraceParent: telemetry.TraceParent(r.Context()),
		Operations: u.operations, Parameters: u.parameters,
		Source: &events.Source{Sha256: hex.EncodeToString(u.source.sum[:]), Bytes: u.source.size,
			Width: int32(header.Width), Height: int32(header.Height), Format: header.Format},
		At: time.Now(),
	}
	command.Fingerprint = commands.Fingerprint(command.Source.GetSha256(), u.operations, u.parameters, u.webhookURL)
	position, err := s.submit(r.Context(), u, command)
	if err != nil {
		return Accepted{}, err
	}
	s.OnSubmission(u.operations)
	w.Header().Set("Location", "/api/jobs/"+position.jobID)
	accepted(c, position.token)
	return Accepted{JobID: position.jobID, Status: "PENDING"}, nil
}

// sniff reads what the bytes say.
func (s *Server) sniff(from *source) (sniff.Header, error) {
	header, err := sniff.Read(from, from.size, s.cfg.Picture)
	var refused *sniff.Error
	switch {
	case errors.As(err, &refused):
		return header, invalid(from.field, refused.Message)
	case errors.Is(err, blob.ErrTooManyReads):
		return header, invalid(from.field, fmt.Sprintf("the picture's header takes more than %d reads of %d bytes: too much stands before its size", headerReads, blob.WindowBytes))
	case from.field == "upload":
		return header, changed(err, "The upload cannot be read from the object storage.")
	}
	return header, err
}

type submitted struct {
	jobID string
	// token is empty where the job was in the log before.
	token string
}

// submit settles the job's identity and writes it, once.
func (s *Server) submit(ctx context.Context, u *upload, command commands.Submit) (submitted, error) {
	if u.key == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return submitted{}, err
		}
		command.JobID = id.String()
		token, err := s.write(made(ctx, command.JobID), u, command)
		return submitted{command.JobID, token}, err
	}
	command.JobID = events.JobID(command.Tenant, u.key)
	if bug.On("key-draws-id") {
		command.JobID = uuid.NewString()
	}
	return s.submitKeyed(made(ctx, command.JobID), u, command)
}

// submitKeyed writes a job whose id follows from its idempotency key. That the id
// is derived is the guarantee: however many requests write it, it is one job, and
// the first request in the log counts. The rest of this sees to it that only requests
// equal to that one are accepted:
//
//   - The read model knows every job of the past but the latest moments'.
//   - Redis knows those, if it remembers them: the first request to name a key leaves its
//     fingerprint.
//   - Without Redis, or with one that came up empty a moment ago, two different requests
//     under one key may both get into the log; so each waits for the one that counts and
//     compares.
//   - Without the read model, Redis alone tells, and so of the last IdempotencyTTL, if it has
//     been there for as long; else nobody can tell. An older key would be taken for a new one:
//     its job stays what it is.
func (s *Server) submitKeyed(ctx context.Context, u *upload, command commands.Submit) (submitted, error) {
	known, err := s.Reader.JobUnderKey(ctx, command.Tenant, command.JobID)
	switch {
	case err == nil:
		_, err = command.Decide(known)
		return submitted{jobID: known.GetId()}, err
	case !errors.Is(err, projections.ErrNotFound) && !errors.Is(err, projections.ErrUnavailable):
		return submitted{}, err
	}
	claim, jobID, age := s.claim(ctx, command)
	sure := age >= s.cfg.IdempotencySettle
	switch {
	case errors.Is(err, projections.ErrUnavailable) && claim != claimedAndWritten && age < s.cfg.IdempotencyTTL:
		if claim == claimedNow {
			s.release(ctx, command)
		}
		return submitted{}, unavailable("Neither Redis nor the database can tell whether this idempotency key was used.", err)
	case sure && claim == claimedByOther:
		return submitted{}, commands.KeyConflict()
	case claim == claimedAndWritten:
		return submitted{jobID: jobID}, nil
	}
	token, err := s.write(ctx, u, command)
	if err == nil && !sure {
		err = s.compareWithWinner(ctx, command, token)
	}
	var conflict *commands.Conflict
	switch {
	case err == nil && claim != claimedByOther:
		s.confirm(ctx, command)
	case claim == claimedNow && (errors.As(err, &conflict) || token == "" && !errors.Is(err, kafka.ErrNotAcknowledged)):
		s.release(ctx, command) // the key is another's, or nothing of this is in the log
	}
	if err != nil {
		return submitted{}, err
	}
	return submitted{command.JobID, token}, nil
}

// compareWithWinner waits until the projection has passed our own record; by then
// the job in it is the one that counts.
func (s *Server) compareWithWinner(ctx context.Context, command commands.Submit, token string) error {
	position, err := events.ParsePosition(token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitTimeout)
	defer cancel()
	if err := s.Reader.Wait(ctx, position.Partition, position.Offset); err != nil {
		return unavailable("The read model is behind: this idempotency key cannot be checked.", err)
	}
	winner, err := s.Reader.Job(ctx, command.Tenant, command.JobID) // our own is there: it comes before others under the key
	if err != nil {
		return unavailable("The read model does not answer: this idempotency key cannot be checked.", err)
	}
	_, err = command.Decide(winner)
	return err
}

// write decides, stores the blob and appends the event. The token is that of the
// event's position.
func (s *Server) write(ctx context.Context, u *upload, command commands.Submit) (string, error) {
	command.Source.Key = blob.RawPrefix + command.JobID + "/" + command.Source.GetSha256()
	var err error
	if err := s.admit(command.Operations); err != nil {
		return "", err
	}
	if command.FileName, err = s.Keys.Seal(ctx, command.Tenant, command.JobID, u.name); err == nil {
		// The tenant's address as it is now: it goes with the job, and folding stays pure.
		command.WebhookURL, err = s.Keys.Seal(ctx, command.Tenant, command.JobID, s.webhookAddress(command.Tenant, u.webhookURL))
	}
	if err != nil {
		return "", unavailable("The key that protects file names cannot be read from the database.", err)
	}
	decided, err := command.Decide(nil)
	if err != nil {
		return "", err
	}
	contentType := "image/" + command.Source.GetFormat()
	if op, ok := operations.Find(command.Source.GetFormat()); ok {
		contentType = op.ContentType
	}
	if err := u.source.keep(ctx, command.Source.GetKey(), u.source.sum, contentType); err != nil {
		return "", err
	}
	token, err := s.append(ctx, decided[0])
	if err != nil {
		return "", err
	}
	jobsAccepted.Inc()
	s.Log.InfoContext(ctx, "job requested", "operations", command.Operations,
		"bytes", command.Source.GetBytes(), "position", token)
	return token, nil
}

// What Redis says of a key.
const (
	claimUnknown      = iota // nothing: it is away
	claimedNow               // by this request
	claimedBySame            // by an equal request, which may be under way still
	claimedAndWritten        // by an equal request, whose job is in the log
	claimedByOther           // by a different request
)

const (
	// writtenMark follows the fingerprint. What follows it is the job's id, where that is not
	// the key's own.
	writtenMark = ":written"
	// bornKey holds since when Redis remembers: it is gone whenever the rest is.
	bornKey = "pixtools:idempotency-since"
)

func claimKey(id string) string { return "pixtools:idempotency:" + id }

// ClaimKey leaves under an idempotency key that it leads to a job in the log that came from
// another service. id is that of jobs under the key; without a fingerprint, any request is
// taken for a repeat. What is there already stays.
func ClaimKey(ctx context.Context, to redis.Cmdable, id, jobID string, fingerprint []byte, ttl time.Duration) error {
	return to.SetNX(ctx, claimKey(id), hex.EncodeToString(fingerprint)+writtenMark+jobID, ttl).Err()
}

// claim leaves our fingerprint under the key, or tells whose is there, of which job, and for how long
// Redis has remembered keys. After IdempotencySettle it is to be relied on beside the read
// model: what was written before it came up is known to that by then, and no request of that
// time is under way any more.
func (s *Server) claim(ctx context.Context, command commands.Submit) (claim int, jobID string, age time.Duration) {
	mine := hex.EncodeToString(command.Fingerprint)
	var born, there *redis.StringCmd
	var first *redis.BoolCmd
	_, err := s.Redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.SetNX(ctx, bornKey, time.Now().UnixMilli(), 0)
		born = p.Get(ctx, bornKey)
		first = p.SetNX(ctx, claimKey(command.JobID), mine, s.cfg.IdempotencyTTL)
		there = p.Get(ctx, claimKey(command.JobID))
		return nil
	})
	since, errSince := born.Int64()
	if err != nil || errSince != nil {
		return claimUnknown, "", 0
	}
	age = time.Since(time.UnixMilli(since))
	if first.Val() {
		return claimedNow, command.JobID, age
	}
	theirs, id, written := strings.Cut(there.Val(), writtenMark)
	if jobID = id; jobID == "" {
		jobID = command.JobID
	}
	switch {
	case written && (theirs == mine || theirs == "" && id != ""): // of some that came from elsewhere nobody knows what was asked
		return claimedAndWritten, jobID, age
	case theirs == mine:
		return claimedBySame, jobID, age
	}
	return claimedByOther, jobID, age
}

// confirm marks the key's job as written. Redis only saves work, so a failure is
// no reason to fail the request.
func (s *Server) confirm(ctx context.Context, command commands.Submit) {
	if err := s.Redis.Set(ctx, claimKey(command.JobID), hex.EncodeToString(command.Fingerprint)+writtenMark, s.cfg.IdempotencyTTL).Err(); err != nil {
		s.Log.WarnContext(ctx, "cannot mark an idempotency key as written", "error", err)
	}
}

func (s *Server) release(ctx context.Context, command commands.Submit) {
	if err := s.Redis.Del(context.WithoutCancel(ctx), claimKey(command.JobID)).Err(); err != nil {
		s.Log.WarnContext(ctx, "cannot release an idempotency key: it is held by this fingerprint until it expires",
			"ttl", s.cfg.IdempotencyTTL.String(), "error", err)
	}
}
