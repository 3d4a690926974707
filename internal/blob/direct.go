package blob

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/pixtools/pixtools/internal/telemetry"
)

// ErrChanged means that the object is not the one that was looked at any more.
var ErrChanged = errors.New("the object was overwritten meanwhile")

// PutRequest is a request that stores an object, to be sent by whoever has it.
type PutRequest struct {
	URL string
	// Headers are signed and must be sent as they are. The body's length is signed, too.
	Headers map[string]string
	// ExpiresAt is when the server does not take the request any more, KeptUntil when it may delete the object.
	ExpiresAt, KeptUntil time.Time
}

// PresignPut makes a request with which anybody may store an object of that size and type: a server checks
// the signature over both headers. With sum it takes those bytes only. Like PresignGet it asks nobody.
func (s *Store) PresignPut(ctx context.Context, key string, size int64, contentType string, sum *[sha256.Size]byte) (PutRequest, error) {
	expiry := time.Duration(s.cfg.UploadExpirySeconds) * time.Second
	now := time.Now().Truncate(time.Second) // signatures know whole seconds
	in := &s3.PutObjectInput{Bucket: &s.cfg.Bucket, Key: &key, ContentLength: &size, ContentType: &contentType}
	if sum != nil {
		in.ChecksumSHA256 = aws.String(base64.StdEncoding.EncodeToString(sum[:]))
	}
	signed, err := s.presign.PresignPutObject(ctx, in, s3.WithPresignExpires(expiry))
	if err != nil {
		return PutRequest{}, fmt.Errorf("sign an upload to %s: %w", key, err)
	}
	out := PutRequest{URL: signed.URL, Headers: map[string]string{}, ExpiresAt: now.Add(expiry),
		KeptUntil: now.AddDate(0, 0, s.cfg.UploadRetentionDays)}
	for name := range signed.SignedHeader {
		if name != "Host" && name != "Content-Length" { // every client sends those by itself
			out.Headers[name] = signed.SignedHeader.Get(name)
		}
	}
	return out, nil
}

// Version is one content of an object that somebody else may overwrite. Its methods fail with ErrChanged
// once that has happened.
type Version struct {
	Object
	store *Store
	etag  string
	// attested is what the server knows to be the content's SHA-256; nil where it was never asked to look.
	attested *[sha256.Size]byte
}

// Version looks at what is under key now.
func (s *Store) Version(ctx context.Context, key string) (*Version, error) {
	call, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	out, err := s.client.HeadObject(call, &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return nil, classify(ctx, "head", key, err)
	}
	v := &Version{Object: Object{Key: key, Size: aws.ToInt64(out.ContentLength), ContentType: aws.ToString(out.ContentType),
		ModifiedAt: aws.ToTime(out.LastModified)}, store: s, etag: aws.ToString(out.ETag)}
	if v.etag == "" {
		return nil, fmt.Errorf("head %s: the server gives no ETag, without which an object cannot be held to what it was", key)
	}
	// Of an object that was uploaded in parts the checksum is one of checksums; it ends with their number.
	if out.ChecksumType != types.ChecksumTypeComposite {
		v.attested = digest(out.ChecksumSHA256)
	}
	return v, nil
}

// digest reads a SHA-256 as S3 writes it; nil if it is none.
func digest(text *string) *[sha256.Size]byte {
	raw, err := base64.StdEncoding.DecodeString(aws.ToString(text))
	if err != nil || len(raw) != sha256.Size {
		return nil
	}
	return (*[sha256.Size]byte)(raw)
}

// get opens the content from offset on, up to n bytes of it; with n 0, all.
func (v *Version) get(ctx context.Context, offset, n int64) (io.ReadCloser, error) {
	in := &s3.GetObjectInput{Bucket: &v.store.cfg.Bucket, Key: &v.Key, IfMatch: &v.etag}
	if n > 0 {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
	}
	ctx, span := startCall(ctx, "GetObject")
	t := v.store.watch(ctx)
	out, err := v.store.client.GetObject(t.ctx, in)
	if err != nil {
		defer t.stop()
		err = v.verdict(ctx, "get", t.verdict(err))
		telemetry.End(span, err)
		return nil, err
	}
	return &content{ctx: ctx, key: v.Key, body: out.Body, transfer: t, span: span}, nil
}

// verdict gives an error its kind. An object that is gone has changed, too.
func (v *Version) verdict(ctx context.Context, what string, err error) error {
	if err != nil && (httpStatus(err) == http.StatusPreconditionFailed || errors.Is(kindOf(err), ErrNotFound)) {
		return fmt.Errorf("%w: %s %s: %w", ErrChanged, what, v.Key, err)
	}
	return classify(ctx, what, v.Key, err)
}

// SHA256 is the content's. Where the server does not know it, the content is read once, and none of it kept.
func (v *Version) SHA256(ctx context.Context) ([sha256.Size]byte, error) {
	if v.attested != nil {
		return *v.attested, nil
	}
	body, err := v.get(ctx, 0, 0)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	defer func() { _ = body.Close() }()
	hash := sha256.New()
	n, err := io.Copy(hash, body)
	if err == nil && n != v.Size {
		err = fmt.Errorf("%w: read %s: %d bytes came, not %d", ErrUnavailable, v.Key, n, v.Size)
	}
	return [sha256.Size]byte(hash.Sum(nil)), err
}

// CopyTo has the server copy the content, which has the hash sum, to another key.
func (v *Version) CopyTo(ctx context.Context, key string, sum [sha256.Size]byte, contentType string) error {
	t := v.store.watch(ctx) // nothing of it moves here: it goes on for as long as the server answers
	defer t.stop()
	out, err := v.store.client.CopyObject(t.ctx, &s3.CopyObjectInput{
		Bucket: &v.store.cfg.Bucket, Key: &key, CopySource: aws.String(v.store.cfg.Bucket + "/" + v.Key), CopySourceIfMatch: &v.etag,
		ContentType: &contentType, MetadataDirective: types.MetadataDirectiveReplace, ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
	})
	if err != nil {
		return v.verdict(ctx, "copy", t.verdict(err))
	}
	// It was to compute the checksum of what it wrote. Amazon's answers with it, others only when asked.
	var copied *[sha256.Size]byte
	if out.CopyObjectResult != nil {
		copied = digest(out.CopyObjectResult.ChecksumSHA256)
	}
	if copied == nil {
		there, err := v.store.Version(ctx, key)
		if err != nil {
			return err
		}
		copied = there.attested
	}
	if copied != nil && *copied != sum {
		return fmt.Errorf("%w: copy %s to %s: its SHA-256 is %x, should be %x", ErrChanged, v.Key, key, *copied, sum)
	}
	return nil
}

// WindowBytes is read of an object at once. A picture's size stands in its first bytes, most often; behind
// large profiles and previews it takes a few more reads.
const WindowBytes = 256 << 10

// Window reads an object here and there, for those who look for a header: each ReadAt that is not in the
// last piece read asks the server for another, at most reads times.
type Window struct {
	ctx   context.Context
	of    *Version
	reads int
	from  int64
	held  []byte
}

// Window lets an object be looked at, in reads requests at most.
func (v *Version) Window(ctx context.Context, reads int) *Window {
	return &Window{ctx: ctx, of: v, reads: reads}
}

// ErrTooManyReads means that a reader wanted to look at more places of an object than it may.
var ErrTooManyReads = errors.New("the object's header is scattered over too many places")

// ReadAt is io.ReaderAt's.
func (w *Window) ReadAt(p []byte, offset int64) (int, error) {
	n := 0
	for n < len(p) {
		at := offset + int64(n)
		if at >= w.of.Size {
			return n, io.EOF
		}
		if at < w.from || at >= w.from+int64(len(w.held)) {
			if err := w.fill(at); err != nil {
				return n, err
			}
		}
		n += copy(p[n:], w.held[at-w.from:])
	}
	return n, nil
}

func (w *Window) fill(at int64) error {
	if w.reads == 0 {
		return ErrTooManyReads
	}
	w.reads--
	body, err := w.of.get(w.ctx, at, WindowBytes)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	want := min(WindowBytes, w.of.Size-at)
	held := make([]byte, want)
	if _, err := io.ReadFull(body, held); err != nil {
		return fmt.Errorf("read %d bytes at %d of %s: %w", want, at, w.of.Key, err)
	}
	w.from, w.held = at, held
	return nil
}
