package processors

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/processors/engine"
)

// AgainConfig says what counts as the same picture.
type AgainConfig struct {
	// MinPSNR is how like the recorded result a picture must be that another engine or model makes.
	// From about 40 on, people see no difference.
	// Beyond it: less is a finding.
	MinPSNR float64 `env:"REEXECUTE_MIN_PSNR" envDefault:"40" range:"10 to 100" unit:"decibels"`
}

// Bounds of MinPSNR.
const (
	leastPSNR = 10
	mostPSNR  = 100
)

// Validate names every value out of range.
func (c AgainConfig) Validate() error {
	if !(c.MinPSNR >= leastPSNR && c.MinPSNR <= mostPSNR) { // and no NaN
		return fmt.Errorf("REEXECUTE_MIN_PSNR is %g: it must be from %d to %d decibels", c.MinPSNR, leastPSNR, mostPSNR)
	}
	return nil
}

// Again does operations that completed once more, outside of any job: it writes no event.
// Errors are the world's: storage that does not answer, a child that crashes.
type Again struct {
	AgainConfig
	Store *blob.Store
	// Spool is a directory for files that are being worked on.
	Spool string
	// Pool is the engine for an operation, Timeout how long one may take there.
	Pool    func(operation string) *engine.Pool
	Timeout func(operation string) time.Duration
	// Retention is how long Store keeps pictures, as of Now.
	commands.Retention
	Now func() time.Time
}

// Made is a result in the spool. Remove it.
type Made struct {
	*events.Artifact
	engine.Result
	Path string
	sum  [sha256.Size]byte
}

// Remove deletes the file.
func (m Made) Remove() { _ = os.Remove(m.Path) }

// Skip says why an operation cannot be done again, in words that can be counted.
type Skip string

// Error is the reason.
func (s Skip) Error() string { return string(s) }

// Reasons.
const (
	SourceExpired    Skip = "source expired"
	SourceMissing    Skip = "source missing"
	SourceDamaged    Skip = "source damaged"
	ResultExpired    Skip = "result expired"
	ResultMissing    Skip = "result missing"
	ResultDamaged    Skip = "result damaged"
	UnknownOperation Skip = "operation unknown to this version"
)

// Make does one of a job's operations. The error is a Skip, an *engine.InputError or the
// world's.
func (a Again) Make(ctx context.Context, job *events.Job, operation string) (Made, error) {
	op, known := find(operation)
	target, listed := operations.Find(operation)
	if !known || !listed {
		return Made{}, UnknownOperation
	}
	if job.GetSourceExpired() {
		return Made{}, SourceExpired
	}
	source, err := a.fetch(ctx, job.GetSource().GetKey(), job.GetSource().GetSha256(), a.Now().After(a.SourceUntil(job)), SourceExpired, SourceMissing, SourceDamaged)
	if err != nil {
		return Made{}, err
	}
	defer os.Remove(source)
	made := Made{Path: source + ".out"}
	request := op.Request(source, made.Path, parametersOf(job, operation))
	request.Timeout = a.Timeout(operation)
	if made.Result, err = a.Pool(operation).Convert(ctx, request); err != nil {
		return Made{}, err
	}
	file, err := os.Open(made.Path)
	if err != nil {
		return Made{}, err
	}
	defer file.Close()
	if made.Artifact, made.sum, err = describe(job.GetId(), target, file, made.Result); err != nil {
		made.Remove()
	}
	return made, err
}

// Keep stores a result under a name that its bytes decide, as a worker would.
func (a Again) Keep(ctx context.Context, made Made, operation string) error {
	target, _ := operations.Find(operation)
	file, err := os.Open(made.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	return a.Store.Put(ctx, made.GetKey(), file, made.GetBytes(), made.sum, target.ContentType)
}

// Compare says how like a stored artifact, of some time, a result is, in decibels. The
// error is a Skip, an *engine.InputError or the world's.
func (a Again) Compare(ctx context.Context, made Made, recorded *events.Artifact, at time.Time, operation string) (float64, error) {
	stored, err := a.fetch(ctx, recorded.GetKey(), recorded.GetSha256(), a.Now().Sub(at) > a.Results, ResultExpired, ResultMissing, ResultDamaged)
	if err != nil {
		return 0, err
	}
	defer os.Remove(stored)
	return a.Pool(operation).Compare(ctx, stored, made.Path, a.Timeout(operation))
}

// fetch copies an object into the spool; old says that it may have expired.
func (a Again) fetch(ctx context.Context, key, sum string, old bool, expired, missing, damaged Skip) (string, error) {
	path, err := fetch(ctx, a.Store, a.Spool, key, sum)
	switch {
	case errors.Is(err, blob.ErrNotFound) && old:
		return "", expired
	case errors.Is(err, blob.ErrNotFound):
		return "", missing
	case errors.Is(err, blob.ErrChecksum):
		return "", damaged
	}
	return path, err
}

// Verdict is what came of doing an operation again.
type Verdict string

// The verdicts.
const (
	// Equal: the same bytes.
	Equal Verdict = "equal"
	// Within: other bytes, of another engine or model, and as like as REEXECUTE_MIN_PSNR asks.
	Within Verdict = "within bound"
	// Different: less like, or other bytes of the very same engine and model.
	Different Verdict = "different"
	// Skipped: it could not be done, or not compared.
	Skipped Verdict = "skipped"
)

// Check does an operation again that completed at some time, and compares. why is a
// sentence, or the reason of a Skip.
func (a Again) Check(ctx context.Context, job *events.Job, done *events.OperationCompleted, at time.Time) (v Verdict, why string, err error) {
	made, err := a.Make(ctx, job, done.GetOperation())
	if err != nil {
		return verdictOf(err, "now it fails: ")
	}
	defer made.Remove()
	if made.GetSha256() == done.GetArtifact().GetSha256() {
		return Equal, "", nil
	}
	decibels, err := a.Compare(ctx, made, done.GetArtifact(), at, done.GetOperation())
	same := made.Engine == done.GetEngine() && made.ModelSHA256 == done.GetModelSha256()
	var skip Skip
	switch {
	case same && errors.As(err, &skip):
		return Different, fmt.Sprintf("the same engine (%s) makes other bytes: %d, SHA-256 %s, where %d, %s are recorded; %s", made.Engine,
			made.GetBytes(), made.GetSha256(), done.GetArtifact().GetBytes(), done.GetArtifact().GetSha256(), skip), nil
	case err != nil:
		return verdictOf(err, "it cannot be compared: ")
	case same:
		return Different, fmt.Sprintf("the same engine (%s) makes other bytes: %d, SHA-256 %s, where %d, %s are recorded; they are alike by %s", made.Engine,
			made.GetBytes(), made.GetSha256(), done.GetArtifact().GetBytes(), done.GetArtifact().GetSha256(), Decibels(decibels)), nil
	case decibels < a.MinPSNR:
		return Different, fmt.Sprintf("alike by %s, less than REEXECUTE_MIN_PSNR, %s; recorded by %s, now %s", Decibels(decibels), Decibels(a.MinPSNR), done.GetEngine(), made.Engine), nil
	}
	return Within, "", nil
}

// verdictOf sorts an error: what cannot be done, what the picture is to blame for, and what
// is the world's.
func verdictOf(err error, what string) (Verdict, string, error) {
	var skip Skip
	var refused *engine.InputError
	switch {
	case errors.As(err, &skip):
		return Skipped, string(skip), nil
	case errors.As(err, &refused):
		return Different, what + refused.Message, nil
	}
	return Skipped, "", err
}

// Decibels is a likeness as text.
func Decibels(value float64) string {
	if math.IsInf(value, 1) {
		return "every pixel"
	}
	return fmt.Sprintf("%.2f dB", value)
}

// find is the operation of that name.
func find(name string) (Operation, bool) {
	for _, op := range append(Conversions(), Denoise) {
		if op.Name == name {
			return op, true
		}
	}
	return Operation{}, false
}

// fetch copies an object into the spool. It is blob.ErrChecksum where the log does not say
// what it should be, too.
func fetch(ctx context.Context, store *blob.Store, spool, key, sum string) (string, error) {
	var want [sha256.Size]byte
	if n, err := hex.Decode(want[:], []byte(sum)); err != nil || n != len(want) {
		return "", fmt.Errorf("%w: no SHA-256 of %s in the log", blob.ErrChecksum, key)
	}
	file, err := os.CreateTemp(spool, "fetched-*")
	if err != nil {
		return "", err
	}
	_, err = store.Download(ctx, key, file, want)
	if err := errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return file.Name(), nil
}

// describe hashes a result, and names it by its bytes.
func describe(jobID string, target operations.Operation, content io.Reader, result engine.Result) (*events.Artifact, [sha256.Size]byte, error) {
	hash := sha256.New()
	size, err := io.Copy(hash, content)
	if err != nil {
		return nil, [sha256.Size]byte{}, err
	}
	sum := [sha256.Size]byte(hash.Sum(nil))
	return &events.Artifact{Key: fmt.Sprintf("%s%s/%s/%x.%s", blob.ProcessedPrefix, jobID, target.Name, sum, target.Extension),
		Sha256: hex.EncodeToString(sum[:]), Bytes: size, Width: int32(result.Width), Height: int32(result.Height), Format: target.Format}, sum, nil
}
