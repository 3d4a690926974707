package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-fuego/fuego"
	"github.com/google/uuid"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/sniff"
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
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	default:
		p := problem(http.StatusTooManyRequests, fmt.Sprintf("%d uploads are in progress, the limit; try again shortly", s.cfg.MaxUploads))
		p.RetryAfter = retryAfter
		return Accepted{}, p
	}
	// Errors mean that the connection cannot have deadlines (a test's recorder).
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.cfg.UploadTimeout))
	u, err := s.readUpload(w, r)
	if err != nil {
		return Accepted{}, err
	}
	defer u.Close()
	header, err := s.sniff(u)
	if err != nil {
		return Accepted{}, err
	}
	if faults := commands.CheckOperations(u.operations, u.parameters, header.Format); faults != nil {
		return Accepted{}, faults
	}
	command := commands.Submit{
		Tenant: defaultTenant, RequestID: r.Header.Get(requestIDHeader), TraceParent: traceOf(r),
		Operations: u.operations, Parameters: u.parameters,
		Source: &events.Source{Sha256: hex.EncodeToString(u.file.sha256[:]), Bytes: u.file.size,
			Width: int32(header.Width), Height: int32(header.Height), Format: header.Format},
		At: time.Now(),
	}
	command.Fingerprint = commands.Fingerprint(command.Source.GetSha256(), u.operations, u.parameters, u.webhookURL)
	position, err := s.submit(r.Context(), u, command)
	if err != nil {
		return Accepted{}, err
	}
	if position.token != "" {
		w.Header().Set(PositionHeader, position.token)
	}
	w.Header().Set("Location", "/api/jobs/"+position.jobID)
	// Before the status: the framework would send its headers without it.
	w.Header().Set("Content-Type", "application/json")
	c.SetStatus(http.StatusAccepted)
	return Accepted{JobID: position.jobID, Status: "PENDING"}, nil
}

// sniff reads what the bytes say.
func (s *Server) sniff(u *upload) (sniff.Header, error) {
	header, err := sniff.Read(u.file.ReaderAt, u.file.size, s.cfg.Picture)
	var refused *sniff.Error
	if errors.As(err, &refused) {
		return header, invalid("file", refused.Message)
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
		token, err := s.write(ctx, u, command, nil)
		return submitted{command.JobID, token}, err
	}
	command.JobID = events.JobID(command.Tenant, u.key)
	return s.submitKeyed(ctx, u, command)
}

// submitKeyed writes a job whose id follows from its idempotency key. That the id
// is derived is the guarantee: however many requests write it, it is one job, and
// the first request in the log counts. The rest of this finds out early, and finds
// keys that were used for something else:
//
//   - The read model knows every job of the past but the latest moments'.
//   - Redis knows those: the first request to name a key leaves its fingerprint.
//   - Without Redis, two different requests under one key may both get into the
//     log; so each waits for the one that counts and compares.
func (s *Server) submitKeyed(ctx context.Context, u *upload, command commands.Submit) (submitted, error) {
	known, readErr := s.Reader.Job(ctx, command.Tenant, command.JobID)
	if readErr != nil && !errors.Is(readErr, projections.ErrNotFound) && !errors.Is(readErr, projections.ErrUnavailable) {
		return submitted{}, readErr
	}
	claim, redisErr := s.claim(ctx, command)
	switch {
	case redisErr != nil && errors.Is(readErr, projections.ErrUnavailable):
		return submitted{}, unavailable("Neither Redis nor the database can tell whether this idempotency key was used.", errors.Join(readErr, redisErr))
	case redisErr == nil && claim == claimedByOther:
		return submitted{}, commands.KeyConflict()
	case redisErr == nil && claim == claimedAndWritten && known == nil:
		return submitted{jobID: command.JobID}, nil
	}
	token, err := s.write(ctx, u, command, known)
	if err != nil {
		if claim == claimedNow && !errors.Is(err, kafka.ErrNotAcknowledged) {
			s.release(ctx, command) // nothing of it is in the log
		}
		return submitted{}, err
	}
	if redisErr == nil {
		s.confirm(ctx, command)
		return submitted{command.JobID, token}, nil
	}
	return submitted{command.JobID, token}, s.compareWithWinner(ctx, command, token)
}

// compareWithWinner waits until the projection has passed our own record; by then
// the job in it is the one that counts.
func (s *Server) compareWithWinner(ctx context.Context, command commands.Submit, token string) error {
	if token == "" {
		return nil // the read model had it, and it was compared
	}
	position, err := events.ParsePosition(token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitTimeout)
	defer cancel()
	if err := s.Reader.Wait(ctx, position.Partition, position.Offset); err != nil {
		return unavailable("Redis is away and the read model is behind: this idempotency key cannot be checked.", err)
	}
	winner, err := s.Reader.Job(ctx, command.Tenant, command.JobID)
	if err != nil {
		return unavailable("Redis is away and the read model does not answer: this idempotency key cannot be checked.", err)
	}
	_, err = command.Decide(winner)
	return err
}

// write decides, stores the blob and appends the event. The token is that of the
// event's position, empty where nothing needed to be written.
func (s *Server) write(ctx context.Context, u *upload, command commands.Submit, known *events.Job) (string, error) {
	command.Source.Key = blob.RawPrefix + command.JobID + "/" + command.Source.GetSha256()
	var err error
	if known == nil {
		if err := s.admit(command.Operations); err != nil {
			return "", err
		}
		if command.FileName, err = s.Keys.Seal(ctx, command.Tenant, command.JobID, u.name); err == nil {
			command.WebhookURL, err = s.Keys.Seal(ctx, command.Tenant, command.JobID, u.webhookURL)
		}
		if err != nil {
			return "", unavailable("The key that protects file names cannot be read from the database.", err)
		}
	}
	decided, err := command.Decide(known)
	if err != nil || len(decided) == 0 {
		return "", err
	}
	contentType := "image/" + command.Source.GetFormat()
	if op, ok := operations.Find(command.Source.GetFormat()); ok {
		contentType = op.ContentType
	}
	if err := s.Store.Put(ctx, command.Source.GetKey(), u.file, u.file.size, u.file.sha256, contentType); err != nil {
		return "", unavailable("The file could not be stored.", err)
	}
	token, err := s.append(ctx, decided[0])
	if err != nil {
		return "", err
	}
	s.Log.Info("job requested", "job", command.JobID, "request", command.RequestID, "operations", command.Operations,
		"bytes", command.Source.GetBytes(), "position", token)
	return token, nil
}

// What Redis says of a key.
const (
	claimedNow        = iota // by this request
	claimedBySame            // by an equal request, which may be under way still
	claimedAndWritten        // by an equal request, whose job is in the log
	claimedByOther           // by a different request
)

const writtenMark = ":written"

func claimKey(command commands.Submit) string { return "pixtools:idempotency:" + command.JobID }

// claim leaves our fingerprint under the key, or tells whose is there.
func (s *Server) claim(ctx context.Context, command commands.Submit) (int, error) {
	mine := hex.EncodeToString(command.Fingerprint)
	first, err := s.Redis.SetNX(ctx, claimKey(command), mine, s.cfg.IdempotencyTTL).Result()
	if err != nil || first {
		return claimedNow, err
	}
	there, err := s.Redis.Get(ctx, claimKey(command)).Result()
	switch {
	case err != nil: // gone in between, or Redis is: as if Redis knew nothing
		return claimedNow, err
	case there == mine:
		return claimedBySame, nil
	case there == mine+writtenMark:
		return claimedAndWritten, nil
	}
	return claimedByOther, nil
}

// confirm marks the key's job as written. Redis only saves work, so a failure is
// no reason to fail the request.
func (s *Server) confirm(ctx context.Context, command commands.Submit) {
	if err := s.Redis.Set(ctx, claimKey(command), hex.EncodeToString(command.Fingerprint)+writtenMark, s.cfg.IdempotencyTTL).Err(); err != nil {
		s.Log.Warn("cannot mark an idempotency key as written", "job", command.JobID, "error", err)
	}
}

func (s *Server) release(ctx context.Context, command commands.Submit) {
	if err := s.Redis.Del(context.WithoutCancel(ctx), claimKey(command)).Err(); err != nil {
		s.Log.Warn("cannot release an idempotency key: it is held by this fingerprint until it expires", "job", command.JobID,
			"ttl", s.cfg.IdempotencyTTL.String(), "error", err)
	}
}
