package api

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-fuego/fuego"
	"github.com/google/uuid"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/secrets"
)

// UploadRequest asks to store a file without its passing through here.
type UploadRequest struct {
	ContentType string `json:"content_type" description:"image/avif, image/jpeg, image/png or image/webp"`
	Bytes       int64  `json:"bytes" description:"The file's exact size, at most MAX_DIRECT_UPLOAD_BYTES"`
	SHA256      string `json:"sha256,omitempty" description:"Of the file, in hexadecimal; the storage server then takes no other bytes, and a job is accepted sooner"`
	FileName    string `json:"file_name,omitempty" description:"Results are named after it"`
}

// Upload is how to store it, and what to name in its place.
type Upload struct {
	Upload  string            `json:"upload" description:"What to send as upload to POST /api/process, once the file is stored"`
	Method  string            `json:"method" description:"Always PUT"`
	URL     string            `json:"url" description:"Where to send the file's bytes, as the body"`
	Headers map[string]string `json:"headers" description:"To be sent as they are, beside a Content-Length of the announced bytes"`
	// ExpiresAt is when the address does; UploadExpiresAt, when jobs are not made of it any more.
	ExpiresAt       time.Time `json:"expires_at" description:"Until then the sending must have begun"`
	UploadExpiresAt time.Time `json:"upload_expires_at" description:"Until then jobs can be made of it, one or many"`
}

// ticket is what an upload's token says. It is sealed with the tenant's key, so that nobody but us makes or
// reads one, and nothing of an upload need be kept here: any process with the role api opens it.
type ticket struct {
	Tenant string    `json:"t"`
	Key    string    `json:"k"`
	Bytes  int64     `json:"b"`
	SHA256 string    `json:"s,omitempty"`
	Name   string    `json:"n,omitempty"`
	Until  time.Time `json:"u"`
}

// ticketScope is what a ticket is bound to in place of a job's id: nothing else that is sealed passes for one.
const ticketScope = "upload"

// upload signs a request to the storage server. Nothing is stored, and nothing is counted as in progress.
func (s *Server) upload(c fuego.ContextNoBody) (Upload, error) {
	var in UploadRequest
	if err := s.room(); err != nil {
		return Upload{}, err
	}
	if err := readBody(c.Response(), c.Request(), &in); err != nil {
		var p *Problem
		if errors.As(err, &p) && len(p.Errors) > 0 && p.Errors[0].Field == "bytes" {
			err = invalid("bytes", s.sizes())
		}
		return Upload{}, err
	}
	sum, err := s.checkUpload(in)
	if err != nil {
		return Upload{}, err
	}
	ctx := c.Request().Context()
	id, err := uuid.NewV7()
	if err != nil {
		return Upload{}, err
	}
	mine := ticket{Tenant: tenantOf(ctx), Key: blob.UploadsPrefix + id.String(), Bytes: in.Bytes, SHA256: strings.ToLower(in.SHA256), Name: baseName(in.FileName)}
	signed, err := s.Store.PresignPut(ctx, mine.Key, in.Bytes, in.ContentType, sum)
	if err != nil {
		return Upload{}, err
	}
	mine.Until = signed.KeptUntil
	token, err := s.seal(ctx, mine)
	if err != nil {
		return Upload{}, unavailable("The key that protects uploads cannot be read from the database.", err)
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return Upload{Upload: token, Method: http.MethodPut, URL: signed.URL, Headers: signed.Headers,
		ExpiresAt: signed.ExpiresAt.UTC(), UploadExpiresAt: mine.Until.UTC()}, nil
}

// checkUpload names everything that is wrong with a request for an upload. The sum is nil where none is announced.
func (s *Server) checkUpload(in UploadRequest) (sum *[sha256.Size]byte, err error) {
	var faults commands.Invalid
	fault := func(field, message string) { faults = append(faults, commands.Fault{Field: field, Message: message}) }
	switch {
	case in.ContentType == "":
		fault("content_type", "content_type is missing: one of "+strings.Join(acceptedTypes, ", "))
	case !slices.Contains(acceptedTypes, in.ContentType):
		return nil, unaccepted("content_type", in.ContentType)
	}
	if in.Bytes < 1 {
		fault("bytes", s.sizes())
	}
	if in.SHA256 != "" {
		raw, err := hex.DecodeString(in.SHA256)
		if err != nil || len(raw) != sha256.Size {
			fault("sha256", "sha256 must be the file's SHA-256 as 64 hexadecimal digits")
		} else {
			sum = (*[sha256.Size]byte)(raw)
		}
	}
	switch {
	case len(faults) > 0:
		return nil, faults
	case in.Bytes > s.cfg.MaxDirectUploadBytes:
		return nil, s.tooLargeDirect("bytes", in.Bytes)
	}
	return sum, nil
}

func (s *Server) sizes() string {
	return fmt.Sprintf("bytes must be the file's size: a whole number of bytes from 1 to %d (MAX_DIRECT_UPLOAD_BYTES)", s.cfg.MaxDirectUploadBytes)
}

func (s *Server) tooLargeDirect(field string, bytes int64) *Problem {
	return wrong(http.StatusRequestEntityTooLarge, field, fmt.Sprintf("The file has %d bytes; MAX_DIRECT_UPLOAD_BYTES allows %d", bytes, s.cfg.MaxDirectUploadBytes))
}

// seal writes a ticket as a token: the id of the key, and what is sealed with it.
func (s *Server) seal(ctx context.Context, t ticket) (string, error) {
	text, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	sealed, err := s.Keys.Seal(ctx, t.Tenant, ticketScope, string(text))
	if err != nil {
		return "", err
	}
	id, err := uuid.Parse(sealed.GetKeyId())
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(append(id[:], sealed.GetCiphertext()...)), nil
}

// noUpload answers for a token that is not ours, or not this tenant's: which of them is nobody's business.
func noUpload(message string) *Problem {
	return wrong(http.StatusNotFound, "upload", message)
}

// open reads a token.
func (s *Server) open(ctx context.Context, tenant, token string) (ticket, error) {
	unknown := noUpload("upload is not known: send what POST /api/uploads gave as upload, unchanged")
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) <= len(uuid.UUID{}) {
		return ticket{}, unknown
	}
	id, rest := uuid.UUID(raw[:len(uuid.UUID{})]), raw[len(uuid.UUID{}):]
	text, err := s.Keys.Open(ctx, ticketScope, &events.Sealed{KeyId: id.String(), Ciphertext: rest})
	switch {
	case errors.Is(err, secrets.ErrForgotten), errors.Is(err, secrets.ErrDamaged):
		return ticket{}, unknown
	case err != nil:
		return ticket{}, unavailable("The key that protects uploads cannot be read from the database.", err)
	}
	var t ticket
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return ticket{}, fmt.Errorf("a ticket of our own cannot be read: %w", err)
	}
	switch {
	case t.Tenant != tenant:
		return ticket{}, unknown
	case time.Now().After(t.Until):
		return ticket{}, noUpload(fmt.Sprintf("upload expired at %s (UPLOAD_RETENTION_DAYS); ask POST /api/uploads for another", t.Until.UTC().Format(time.RFC3339)))
	}
	return t, nil
}

// headerReads bounds how often an object is asked for a piece of it while its header is read.
const headerReads = 64

// stored finds the picture that a client stored itself. From here on the request is about the version of it
// that is there now: if it is overwritten or deleted, the request fails, and no job is made of either.
func (s *Server) stored(ctx context.Context, u *upload) (*source, error) {
	t, err := s.open(ctx, tenantOf(ctx), u.token)
	if err != nil {
		return nil, err
	}
	u.name = t.Name
	version, err := s.Store.Version(ctx, t.Key)
	switch {
	case errors.Is(err, blob.ErrNotFound):
		return nil, noUpload("nothing is stored for upload: send the file to its url first, with its method and headers")
	case err != nil:
		return nil, unavailable("The upload cannot be read from the object storage.", err)
	case version.Size > s.cfg.MaxDirectUploadBytes:
		return nil, s.tooLargeDirect("upload", version.Size)
	case version.Size != t.Bytes: // the server was to see to it; a lax one may not have
		return nil, invalid("upload", fmt.Sprintf("upload has %d bytes, but %d were announced as bytes; send the file again", version.Size, t.Bytes))
	}
	return &source{
		field: "upload", size: version.Size, ReaderAt: version.Window(ctx, headerReads),
		hash: func(ctx context.Context) (sum [sha256.Size]byte, err error) {
			if sum, err = version.SHA256(ctx); err != nil {
				return sum, changed(err, "The upload cannot be read from the object storage.")
			}
			if got := hex.EncodeToString(sum[:]); t.SHA256 != "" && got != t.SHA256 {
				return sum, invalid("upload", fmt.Sprintf("upload has the SHA-256 %s, but %s was announced as sha256; send the file again", got, t.SHA256))
			}
			return sum, nil
		},
		keep: func(ctx context.Context, key string, sum [sha256.Size]byte, contentType string) error {
			return changed(version.CopyTo(ctx, key, sum, contentType), "The file could not be stored.")
		},
	}, nil
}

// changed is the answer to an error of an object that a client may overwrite.
func changed(err error, otherwise string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, blob.ErrChanged):
		p := wrong(http.StatusConflict, "upload", "upload was overwritten or deleted while it was taken in. No job was made of it; send the same request again once nobody writes to it.")
		p.cause = err
		return p
	}
	return unavailable(otherwise, err)
}
