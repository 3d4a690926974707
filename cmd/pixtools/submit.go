package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/api"
)

// submission is what the submit command was told.
type submission struct {
	remote
	ops, params, key, webhook string
	wait, quiet, direct       bool
	timeout                   time.Duration
	out                       string
}

func submitCommand() *cobra.Command {
	var s submission
	cmd := &cobra.Command{
		Use:     "submit FILE",
		Short:   "Upload a picture and, with --wait, print the links to its results",
		Example: "  pixtools submit photo.jpg --ops webp,avif --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.run(cmd.Context(), args[0], cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&s.ops, "ops", "", "operations, separated by commas: jpg, png, webp, avif, denoise (required)")
	flags.StringVar(&s.params, "params", "", `parameters as JSON, for instance {"webp":{"quality":80}}`)
	flags.StringVar(&s.key, "key", "", "idempotency key; without it every run is a new job")
	flags.StringVar(&s.webhook, "webhook", "", "address to post the outcome to")
	s.flag(flags)
	flags.BoolVar(&s.wait, "wait", false, "wait until the job has ended")
	flags.DurationVar(&s.timeout, "timeout", 10*time.Minute, "how long to wait for the server, and with --wait for the job's end")
	flags.StringVar(&s.out, "out", "", "download the results into this directory; needs --wait")
	flags.BoolVar(&s.direct, "direct", false, "store the file in the object storage itself, and not through the API: for large files")
	flags.BoolVar(&s.quiet, "quiet", false, "nothing on standard error but what fails; progress is shown on a terminal only")
	_ = cmd.MarkFlagRequired("ops")
	return cmd
}

func (s *submission) run(ctx context.Context, file string, out io.Writer) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := s.checkFiles(file); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if s.key == "" {
		s.key = uuid.NewString() // so that sending again after a fault makes no second job
	}
	accepted, position, err := s.upload(ctx, file)
	if err != nil {
		return err
	}
	if !s.wait {
		fmt.Fprintln(out, accepted.JobID)
		return nil
	}
	job, err := s.follow(ctx, accepted.JobID, position)
	if err != nil {
		return fmt.Errorf("job %s: %w", accepted.JobID, err)
	}
	fmt.Fprintf(out, "%s %s\n", job.JobID, *job.Outcome)
	names := append([]string(nil), job.Operations...)
	sort.Strings(names)
	for _, op := range names {
		if err := s.report(ctx, out, op, job); err != nil {
			return err
		}
	}
	if job.Status == "FAILED" {
		return errors.New("no operation succeeded")
	}
	return nil
}

// checkFiles finds before anything is sent what would be in vain.
func (s submission) checkFiles(file string) error {
	if s.out != "" && !s.wait {
		return errors.New("--out is for the results, which are there only at the job's end: it needs --wait")
	}
	if s.out != "" {
		if there, err := os.Stat(s.out); err == nil && !there.IsDir() {
			return fmt.Errorf("--out is %q: that is a file, and it must be a directory, which is made where it is not there", s.out)
		}
	}
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory: name a picture", file)
	case info.Mode().IsRegular() && info.Size() == 0:
		return fmt.Errorf("%s is empty", file)
	}
	return nil
}

func (s submission) report(ctx context.Context, out io.Writer, op string, job api.Job) error {
	result, link := job.OperationResults[op], job.ResultURLs[op]
	switch {
	case result.Error != nil:
		fmt.Fprintf(out, "  %-8s failed: %s\n", op, result.Error.Message)
		return nil
	case s.out == "":
		fmt.Fprintf(out, "  %-8s %d bytes, %dx%d  %s\n", op, result.Artifact.Bytes, result.Artifact.Width, result.Artifact.Height, link)
		return nil
	}
	path, err := download(ctx, link, s.out)
	if err == nil {
		fmt.Fprintf(out, "  %-8s %d bytes, %dx%d  %s\n", op, result.Artifact.Bytes, result.Artifact.Width, result.Artifact.Height, path)
	}
	return err
}

// upload sends the form, and again under the same key while the server is away.
func (s submission) upload(ctx context.Context, file string) (api.Accepted, string, error) {
	var stored string // what was stored for it, by --direct
	for told := ""; ; {
		accepted, position, again, err := s.send(ctx, file, &stored)
		if err == nil || !again {
			return accepted, position, err
		}
		if why := err.Error(); why != told {
			s.tell("%s; trying again, for %s in all (--timeout)", why, s.timeout)
			told = why
		}
		select {
		case <-ctx.Done():
			return accepted, "", err
		case <-time.After(2 * time.Second):
		}
	}
}

func (s submission) tell(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

func (s submission) send(ctx context.Context, file string, stored *string) (accepted api.Accepted, position string, again bool, err error) {
	source, err := os.Open(filepath.Clean(file))
	if err != nil {
		return accepted, "", false, err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return accepted, "", false, err
	}
	kind, err := kindOf(source)
	if err != nil {
		return accepted, "", false, err
	}
	if s.direct && *stored == "" {
		if *stored, again, err = s.store(ctx, source, info, kind); err != nil {
			return accepted, "", again, err
		}
	}
	head, tail, contentType, err := s.form(info.Name(), kind, *stored)
	if err != nil {
		return accepted, "", false, err
	}
	body, size := io.MultiReader(head, tail), int64(head.Len()+tail.Len())
	if *stored == "" {
		content, done := s.counted(source, info.Size())
		defer done()
		body, size = io.MultiReader(head, content, tail), size+info.Size()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.server+"/api/process", body)
	if err != nil {
		return accepted, "", false, err
	}
	request.ContentLength = size
	request.Header.Set("Content-Type", contentType)
	response, err := sendWithKey(request)
	if err != nil {
		return accepted, "", ctx.Err() == nil, s.unreachable(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		return accepted, "", busy(response), refusal(response)
	}
	err = json.NewDecoder(response.Body).Decode(&accepted)
	return accepted, response.Header.Get(api.PositionHeader), false, err
}

// busy says whether the same request may be answered otherwise later.
func busy(response *http.Response) bool {
	return response.StatusCode == http.StatusServiceUnavailable || response.StatusCode == http.StatusTooManyRequests
}

// store sends the file to the object storage and returns what the API knows it by. The file is read twice:
// with its hash announced, the storage takes these bytes and no others, and the API need not read them.
func (s submission) store(ctx context.Context, source io.ReadSeeker, info os.FileInfo, kind string) (token string, again bool, err error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, source); err != nil {
		return "", false, err
	}
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return "", false, err
	}
	wish, err := json.Marshal(api.UploadRequest{ContentType: kind, Bytes: info.Size(), SHA256: hex.EncodeToString(hash.Sum(nil)), FileName: info.Name()})
	if err != nil {
		return "", false, err
	}
	ask, err := http.NewRequestWithContext(ctx, http.MethodPost, s.server+"/api/uploads", bytes.NewReader(wish))
	if err != nil {
		return "", false, err
	}
	ask.Header.Set("Content-Type", "application/json")
	answer, err := sendWithKey(ask)
	if err != nil {
		return "", ctx.Err() == nil, s.unreachable(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", busy(answer), refusal(answer)
	}
	var signed api.Upload
	if err := json.NewDecoder(answer.Body).Decode(&signed); err != nil {
		return "", false, err
	}
	content, done := s.counted(source, info.Size())
	defer done()
	put, err := http.NewRequestWithContext(ctx, signed.Method, signed.URL, content)
	if err != nil {
		return "", false, err
	}
	put.ContentLength = info.Size()
	for name, value := range signed.Headers {
		put.Header.Set(name, value)
	}
	kept, err := http.DefaultClient.Do(put)
	if err != nil {
		return "", ctx.Err() == nil, fmt.Errorf("cannot reach the object storage at %s: %w", put.URL.Host, errors.Unwrap(err))
	}
	defer kept.Body.Close()
	if kept.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(kept.Body, 1<<10))
		return "", kept.StatusCode >= http.StatusInternalServerError, fmt.Errorf("the object storage answered %s to the file: %s", kept.Status, why)
	}
	return signed.Upload, false, nil
}

// kindOf is the content type that the file's first bytes show; the file then stands at its beginning.
func kindOf(file io.ReadSeeker) (string, error) {
	var start [512]byte
	n, err := io.ReadFull(file, start[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	if n >= 12 && string(start[4:8]) == "ftyp" {
		return "image/avif", nil
	}
	return http.DetectContentType(start[:n]), nil
}

// form is what stands before and after the file, so that the file itself streams. Where it is stored
// already, there is none in the form.
func (s submission) form(name, kind, stored string) (head, tail *bytes.Buffer, contentType string, err error) {
	ops, err := json.Marshal(strings.Split(s.ops, ","))
	if err != nil {
		return nil, nil, "", err
	}
	head = &bytes.Buffer{}
	w := multipart.NewWriter(head)
	for field, value := range map[string]string{"operations": string(ops), "idempotency_key": s.key, "webhook_url": s.webhook, "operation_params": s.params, "upload": stored} {
		if value == "" {
			continue
		}
		if err := w.WriteField(field, value); err != nil {
			return nil, nil, "", err
		}
	}
	end := "\r\n--" + w.Boundary() + "--\r\n"
	if stored != "" {
		return head, bytes.NewBufferString(end), w.FormDataContentType(), nil
	}
	h := textproto.MIMEHeader{}
	h.Set("Content-Disposition", multipart.FileContentDisposition("file", name))
	h.Set("Content-Type", kind)
	if _, err := w.CreatePart(h); err != nil {
		return nil, nil, "", err
	}
	return head, bytes.NewBufferString(end), w.FormDataContentType(), nil
}

// counted shows how far source, of a size, was read.
func (s submission) counted(source io.Reader, size int64) (content io.Reader, done func()) {
	m, read := newMeter("uploading", !s.quiet), int64(0)
	m.bytes = true
	var mu sync.Mutex // a request that was answered early may still be read
	look := writerFunc(func(p []byte) {
		mu.Lock()
		defer mu.Unlock()
		read += int64(len(p))
		m.to(read, size)
	})
	return io.TeeReader(source, look), func() {
		mu.Lock()
		defer mu.Unlock()
		m.finish()
		m.shown = false
	}
}

// writerFunc looks at what is written.
type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

// follow asks until the job has ended.
func (s submission) follow(ctx context.Context, id, position string) (api.Job, error) {
	const patience, pause = "?wait=1", 500 * time.Millisecond
	query, m := patience, newMeter("working", !s.quiet)
	defer m.finish()
	if position != "" {
		query += "&after=" + url.QueryEscape(position)
	}
	for {
		job, err := s.read(ctx, id, query)
		if err == nil {
			query = patience
			done := int64(0)
			for _, r := range job.OperationResults {
				if r.State != "PENDING" && r.State != "RUNNING" {
					done++
				}
			}
			m.to(done, int64(len(job.Operations)))
			if job.Outcome != nil {
				return job, nil
			}
			continue
		}
		var final *finalError
		if errors.As(err, &final) {
			return job, err
		}
		select {
		case <-ctx.Done():
			return job, errors.Join(errors.New("it has not ended yet; it goes on by itself"), err)
		case <-time.After(pause):
		}
	}
}

// finalError is an answer that asking again will not change.
type finalError struct{ error }

func (s submission) read(ctx context.Context, id, query string) (job api.Job, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.server+"/api/jobs/"+id+query, nil)
	if err != nil {
		return job, &finalError{err}
	}
	response, err := sendWithKey(request)
	if err != nil {
		return job, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		err := refusal(response)
		if response.StatusCode < http.StatusInternalServerError {
			err = &finalError{err}
		}
		return job, err
	}
	err = json.NewDecoder(response.Body).Decode(&job)
	return job, err
}

// refusal is an answer that is not what was asked for, in its own words.
func refusal(response *http.Response) error {
	var p api.Problem
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&p); err != nil || p.Detail == "" {
		return fmt.Errorf("the server answered %s", response.Status)
	}
	if response.StatusCode == http.StatusUnauthorized {
		p.Detail += " Set " + keyVariable + " to it."
	}
	return fmt.Errorf("%s (%s)", p.Detail, response.Status)
}

// download keeps a result under the name that its link gives it, as a browser would.
func download(ctx context.Context, link, dir string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the store answered %s to a download", response.Status)
	}
	_, disposition, err := mime.ParseMediaType(response.Header.Get("Content-Disposition"))
	if err != nil {
		return "", fmt.Errorf("the store gives the result no name: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, filepath.Base(disposition["filename"]))
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(file, response.Body)
	return path, errors.Join(err, file.Close())
}
