package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/internal/disk"
	"github.com/pixtools/pixtools/internal/egress"
)

// acceptedTypes are the content types that a file may be sent as. What the file is,
// its bytes tell.
var acceptedTypes = []string{"image/avif", "image/jpeg", "image/png", "image/webp"}

const (
	// keptInMemory is up to how many bytes a file is not spooled to disk.
	keptInMemory = 256 << 10
	// formOverhead is what boundaries and part headers may take beside the fields.
	formOverhead = 64 << 10
	// formFields is how many fields besides the file count.
	formFields = 8
	// longestKey (bytes): a longer one is refused.
	longestKey = 255
	// longestName, in bytes: of a longer file name the end is kept.
	longestName = 255
)

// upload is a request to process a picture, as sent.
type upload struct {
	// file is nil until the part was seen. Its reader stands at the beginning.
	file *spooled
	// token is what stands in the place of a file that the client stored itself; else empty.
	token string
	// source is one or the other of them, once it was found.
	source *source
	// name is the base of the file's name.
	name       string
	operations []string
	parameters map[string]map[string]any
	key        string
	webhookURL string
}

func (u *upload) Close() {
	if u.file != nil {
		u.file.Close()
	}
}

// source is the picture of a submission, here or in the object storage.
type source struct {
	// field of the form that it came by.
	field string
	size  int64
	io.ReaderAt
	// sum is what hash gave.
	sum [sha256.Size]byte
	// hash may read all of it; keep stores it for good, at a key and as a type.
	hash func(ctx context.Context) ([sha256.Size]byte, error)
	keep func(ctx context.Context, key string, sum [sha256.Size]byte, contentType string) error
}

// received is the picture that came with the form.
func (s *Server) received(file *spooled) *source {
	return &source{
		field: "file", size: file.size, ReaderAt: file.ReaderAt,
		hash: func(context.Context) ([sha256.Size]byte, error) { return file.sha256, nil },
		keep: func(ctx context.Context, key string, sum [sha256.Size]byte, contentType string) error {
			if err := s.Store.Put(ctx, key, file, file.size, sum, contentType); err != nil {
				return unavailable("The file could not be stored.", err)
			}
			return nil
		},
	}
}

// spooled is a file that was received: in memory if small, else on disk.
type spooled struct {
	io.ReadSeeker
	io.ReaderAt
	size   int64
	sha256 [sha256.Size]byte
	close  func()
}

func (s *spooled) Close() {
	if s.close != nil {
		s.close()
	}
}

// readUpload takes the form in, in whatever order its fields come.
func (s *Server) readUpload(w http.ResponseWriter, r *http.Request) (*upload, error) {
	// The limit on the file is checked by itself; this one bounds all the rest.
	r.Body = http.MaxBytesReader(w, r.Body, s.cfg.MaxUploadBytes+formFields*s.cfg.MaxFieldBytes+formOverhead+1)
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "multipart/form-data" {
		return nil, invalid("file", "file is missing: send multipart/form-data with the fields file and operations")
	}
	form, err := r.MultipartReader()
	if err != nil {
		return nil, invalid("file", "the form cannot be read: "+err.Error())
	}
	u := &upload{}
	fields := map[string]string{}
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = s.readPart(u, fields, part)
		}
		if err != nil {
			u.Close()
			return nil, s.uploadError(err)
		}
	}
	if err := u.interpret(fields, r.Header.Values("Idempotency-Key"), s.Outside); err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

func (s *Server) uploadError(err error) error {
	var p *Problem
	var tooLarge *http.MaxBytesError
	var malformed textproto.ProtocolError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &tooLarge):
		return s.tooLarge()
	case errors.As(err, &malformed):
		return invalid("file", "the form cannot be read: a header of a part is malformed. The file name, as every other name in it, must be without NUL and other control characters")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return invalid("file", "the upload ended before its end was reached")
	}
	p = invalid("file", "the upload could not be read to its end")
	p.cause = err
	return p
}

// tooLarge speaks in the words of the Python service.
func (s *Server) tooLarge() *Problem {
	limit := fmt.Sprintf("%d bytes", s.cfg.MaxUploadBytes)
	if s.cfg.MaxUploadBytes%(1<<20) == 0 {
		limit = fmt.Sprintf("%dMB", s.cfg.MaxUploadBytes>>20)
	}
	return wrong(http.StatusRequestEntityTooLarge, "file", "File exceeds "+limit+" limit")
}

func (s *Server) readPart(u *upload, fields map[string]string, part *multipart.Part) error {
	name := part.FormName()
	if name == "file" {
		if u.file != nil {
			return invalid("file", "file is sent more than once; send one picture per request")
		}
		return s.readFile(u, part)
	}
	if !slices.Contains([]string{"upload", "operations", "idempotency_key", "webhook_url", "operation_params"}, name) {
		_, err := io.Copy(io.Discard, part) // as the Python service did
		return err
	}
	value, err := io.ReadAll(io.LimitReader(part, s.cfg.MaxFieldBytes+1))
	if err != nil {
		return err
	}
	if int64(len(value)) > s.cfg.MaxFieldBytes {
		return invalid(name, fmt.Sprintf("%s is longer than %d bytes", name, s.cfg.MaxFieldBytes))
	}
	if _, again := fields[name]; again {
		return invalid(name, name+" is sent more than once")
	}
	fields[name] = string(value)
	return nil
}

func (s *Server) readFile(u *upload, part *multipart.Part) error {
	sent := part.Header.Get("Content-Type")
	media, _, err := mime.ParseMediaType(sent)
	if err != nil || !slices.Contains(acceptedTypes, media) {
		return unaccepted("file", sent)
	}
	u.name = baseName(part.FileName())
	u.file, err = s.spool(part)
	return err
}

// unaccepted speaks in the words of the Python service.
func unaccepted(field, contentType string) *Problem {
	return wrong(http.StatusBadRequest, field, fmt.Sprintf("Unsupported file type: %s. Accepted: [%s]", cmp.Or(clipped(contentType), "none"), strings.Join(acceptedTypes, ", ")))
}

// clipped is what an answer repeats of what a client sent.
func clipped(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), 100)], "?")
}

// baseName keeps the name's last element, whatever separators its system has.
func baseName(name string) string {
	name = path.Base(strings.ReplaceAll(strings.ToValidUTF8(name, "_"), `\`, "/"))
	if name == "." || name == "/" {
		return ""
	}
	for len(name) > longestName {
		_, n := utf8.DecodeRuneInString(name)
		name = name[n:]
	}
	return name
}

// spool receives a file, hashing it while it arrives.
func (s *Server) spool(body io.Reader) (*spooled, error) {
	hash := sha256.New()
	limited := io.TeeReader(io.LimitReader(body, s.cfg.MaxUploadBytes+1), hash)
	var start bytes.Buffer
	n, err := io.CopyN(&start, limited, keptInMemory)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	out := &spooled{size: n}
	if n < keptInMemory {
		reader := bytes.NewReader(start.Bytes())
		out.ReadSeeker, out.ReaderAt = reader, reader
	} else if err := s.toDisk(out, &start, limited); err != nil {
		return nil, err
	}
	if out.size > s.cfg.MaxUploadBytes {
		out.Close()
		return nil, s.tooLarge()
	}
	hash.Sum(out.sha256[:0])
	return out, nil
}

func (s *Server) toDisk(to *spooled, start, rest io.Reader) error {
	file, err := os.CreateTemp(s.cfg.SpoolDir, "upload-*")
	if err != nil {
		return s.noRoom(err)
	}
	// Unlinked at once: whatever becomes of us, the disk space comes back.
	if err := os.Remove(file.Name()); err != nil {
		return s.noRoom(errors.Join(err, file.Close()))
	}
	room := &room{File: file, taken: &s.spooled, limit: s.cfg.MaxSpoolBytes}
	to.ReadSeeker, to.ReaderAt, to.close = file, file, room.leave
	if to.size, err = io.Copy(room, io.MultiReader(start, rest)); err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		to.Close()
	}
	var disk *fs.PathError // of the file, since the body has no path
	if errors.As(err, &disk) {
		return s.noRoom(err)
	}
	return err
}

// room is a file whose bytes count among those of all uploads in progress.
type room struct {
	*os.File
	taken *atomic.Int64
	mine  int64
	limit int64
}

// Write takes the room before the disk does: many uploads at once do not pass the limit together.
func (r *room) Write(b []byte) (int, error) {
	n := int64(len(b))
	if r.taken.Add(n) > r.limit {
		r.taken.Add(-n)
		return 0, busy(fmt.Sprintf("The uploads in progress take up SPOOL_MAX_BYTES, %d bytes; try again shortly", r.limit))
	}
	r.mine += n
	spoolBytes.Add(float64(n))
	return r.File.Write(b)
}

// ReadFrom would have io.Copy pass Write by.
func (r *room) ReadFrom(from io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{r}, from)
}

func (r *room) leave() {
	_ = r.Close()
	r.taken.Add(-r.mine)
	spoolBytes.Sub(float64(r.mine))
}

func (s *Server) noRoom(cause error) error {
	if !disk.IsFull(cause) {
		return unavailable("The file cannot be received.", cause)
	}
	return full(fmt.Sprintf("There is no room to receive the file: free %d bytes at %s (SPOOL_DIR).", s.cfg.MaxUploadBytes, s.cfg.SpoolDir), cause)
}

// interpret reads the fields, and names everything that is wrong with them.
func (u *upload) interpret(fields map[string]string, headerKeys []string, outside *egress.Guard) error {
	var faults commands.Invalid
	fault := func(field, message string) { faults = append(faults, commands.Fault{Field: field, Message: message}) }
	u.token = fields["upload"]
	switch {
	case u.file == nil && u.token == "":
		fault("file", "file is missing: send the picture, or in its place the field upload as POST /api/uploads gave it")
	case u.file != nil && u.token != "":
		fault("upload", "file and upload are both sent; send one of them")
	}
	if text, ok := fields["operations"]; !ok {
		fault("operations", "operations is missing: a JSON array of names, for instance [\"webp\"]")
	} else if err := strict(text, &u.operations); err != nil || u.operations == nil {
		fault("operations", "Invalid operations: not a JSON array of names, for instance [\"webp\"]")
	}
	if text, ok := fields["operation_params"]; ok {
		var says string
		if u.parameters, says = readParameters(text); says != "" {
			fault("operation_params", "Invalid operation_params: "+says)
		}
	}
	headerKey := strings.Join(headerKeys, "")
	u.key = fields["idempotency_key"]
	switch {
	case len(headerKeys) > 1:
		fault("idempotency_key", "the header Idempotency-Key is sent more than once")
	case u.key != "" && headerKey != "" && u.key != headerKey:
		fault("idempotency_key", "idempotency_key and the header Idempotency-Key differ; send one, or the same in both")
	case u.key == "":
		u.key = headerKey
	}
	if len(u.key) > longestKey {
		fault("idempotency_key", fmt.Sprintf("idempotency_key is longer than %d bytes", longestKey))
	}
	if u.webhookURL = fields["webhook_url"]; u.webhookURL != "" {
		if strings.HasPrefix(u.webhookURL, "internal://") {
			u.webhookURL = "" // a marker of the Python service's own page
		} else if err := outside.CheckURL(u.webhookURL); err != nil {
			fault("webhook_url", "webhook_url "+err.Error())
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// readParameters reads operation_params, or says what is wrong with it. Of a name that is there
// twice a decoder would take the last, and nobody would hear of the other.
func readParameters(text string) (parameters map[string]map[string]any, says string) {
	const form = `for instance {"webp":{"quality":80}}`
	given, twice, ok := members([]byte(text))
	switch {
	case !ok:
		return nil, "not a JSON object of operation names and their parameters, " + form
	case twice != "":
		return nil, clipped(twice) + " is there more than once"
	}
	for operation, raw := range given {
		values, twice, ok := members(raw)
		switch {
		case !ok:
			return nil, clipped(operation) + " is not a JSON object of parameters, " + form
		case twice != "":
			return nil, clipped(operation+"."+twice) + " is there more than once"
		}
		if parameters == nil {
			parameters = map[string]map[string]any{}
		}
		parameters[operation] = map[string]any{}
		for name, raw := range values {
			var value any
			if err := json.Unmarshal(raw, &value); err != nil { // it is JSON: a number that no float holds
				return nil, fmt.Sprintf("%s is %s, which is out of range", clipped(operation+"."+name), clipped(string(raw)))
			}
			parameters[operation][name] = value
		}
	}
	return parameters, ""
}

// members are those of a JSON object, or none of null; twice is a name that more than one has.
func members(raw []byte) (found map[string]json.RawMessage, twice string, ok bool) {
	if json.Unmarshal(raw, &found) != nil {
		return nil, "", false
	}
	decoder, seen := json.NewDecoder(bytes.NewReader(raw)), map[string]bool{}
	_, _ = decoder.Token() // it was read once, so that nothing here fails
	for decoder.More() {
		token, _ := decoder.Token()
		var value json.RawMessage
		_ = decoder.Decode(&value)
		name, _ := token.(string)
		if seen[name] {
			return nil, name, true
		}
		seen[name] = true
	}
	return found, "", true
}

// strict decodes one JSON value and nothing after it.
func strict(text string, into any) error { return json.Unmarshal([]byte(text), into) }
