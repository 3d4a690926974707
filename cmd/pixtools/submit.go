package main

import (
	"bytes"
	"context"
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
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/api"
)

// submission is what the submit command was told.
type submission struct {
	server, ops, params, key, webhook string
	wait, quiet                       bool
	timeout                           time.Duration
	out                               string
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
	flags.StringVar(&s.server, "server", "http://127.0.0.1:8000", "where PixTools is")
	flags.BoolVar(&s.wait, "wait", false, "wait until the job has ended")
	flags.DurationVar(&s.timeout, "timeout", 10*time.Minute, "how long to wait")
	flags.StringVar(&s.out, "out", "", "with --wait: download the results into this directory")
	flags.BoolVar(&s.quiet, "quiet", false, "no progress on standard error")
	_ = cmd.MarkFlagRequired("ops")
	return cmd
}

func (s submission) run(ctx context.Context, file string, out io.Writer) error {
	server, err := url.Parse(s.server)
	if err != nil || server.Host == "" || server.Scheme != "http" && server.Scheme != "https" {
		return fmt.Errorf("--server is %q: use an address such as http://127.0.0.1:8000", s.server)
	}
	s.server = strings.TrimRight(s.server, "/")
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
	for {
		accepted, position, again, err := s.send(ctx, file)
		if err == nil || !again {
			return accepted, position, err
		}
		s.tell("%v; trying again", err)
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

func (s submission) send(ctx context.Context, file string) (accepted api.Accepted, position string, again bool, err error) {
	source, err := os.Open(filepath.Clean(file))
	if err != nil {
		return accepted, "", false, err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return accepted, "", false, err
	}
	head, tail, contentType, err := s.form(source, info.Name())
	if err != nil {
		return accepted, "", false, err
	}
	bar := s.bar(info.Size(), "uploading")
	body := io.MultiReader(head, io.TeeReader(source, bar), tail)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.server+"/api/process", body)
	if err != nil {
		return accepted, "", false, err
	}
	request.ContentLength = int64(head.Len()) + info.Size() + int64(tail.Len())
	request.Header.Set("Content-Type", contentType)
	response, err := sendWithKey(request)
	if err != nil {
		return accepted, "", ctx.Err() == nil, fmt.Errorf("cannot reach %s: %w", s.server, errors.Unwrap(err))
	}
	defer response.Body.Close()
	_ = bar.Finish()
	if response.StatusCode != http.StatusAccepted {
		busy := response.StatusCode == http.StatusServiceUnavailable || response.StatusCode == http.StatusTooManyRequests
		return accepted, "", busy, refusal(response)
	}
	err = json.NewDecoder(response.Body).Decode(&accepted)
	return accepted, response.Header.Get(api.PositionHeader), false, err
}

// form is what stands before and after the file, so that the file itself streams.
func (s submission) form(file io.ReadSeeker, name string) (head, tail *bytes.Buffer, contentType string, err error) {
	var start [512]byte
	n, err := io.ReadFull(file, start[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, nil, "", err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, nil, "", err
	}
	kind := http.DetectContentType(start[:n])
	if n >= 12 && string(start[4:8]) == "ftyp" {
		kind = "image/avif"
	}
	ops, err := json.Marshal(strings.Split(s.ops, ","))
	if err != nil {
		return nil, nil, "", err
	}
	head = &bytes.Buffer{}
	w := multipart.NewWriter(head)
	for field, value := range map[string]string{"operations": string(ops), "idempotency_key": s.key, "webhook_url": s.webhook, "operation_params": s.params} {
		if value == "" {
			continue
		}
		if err := w.WriteField(field, value); err != nil {
			return nil, nil, "", err
		}
	}
	h := textproto.MIMEHeader{}
	h.Set("Content-Disposition", multipart.FileContentDisposition("file", name))
	h.Set("Content-Type", kind)
	if _, err := w.CreatePart(h); err != nil {
		return nil, nil, "", err
	}
	return head, bytes.NewBufferString("\r\n--" + w.Boundary() + "--\r\n"), w.FormDataContentType(), nil
}

func (s submission) bar(size int64, what string) *progressbar.ProgressBar {
	out := io.Writer(os.Stderr)
	if s.quiet {
		out = io.Discard
	}
	return progressbar.NewOptions64(size, progressbar.OptionSetWriter(out), progressbar.OptionShowBytes(true),
		progressbar.OptionSetDescription(what), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
}

// follow asks until the job has ended.
func (s submission) follow(ctx context.Context, id, position string) (api.Job, error) {
	const patience, pause = "?wait=1", 500 * time.Millisecond
	query, bar := patience, (*progressbar.ProgressBar)(nil)
	if position != "" {
		query += "&after=" + url.QueryEscape(position)
	}
	for {
		job, err := s.read(ctx, id, query)
		if err == nil {
			query = patience
			if bar == nil {
				bar = s.bar(int64(len(job.Operations)), "working")
			}
			done := 0
			for _, r := range job.OperationResults {
				if r.State != "PENDING" && r.State != "RUNNING" {
					done++
				}
			}
			_ = bar.Set(done)
			if job.Outcome != nil {
				_ = bar.Finish()
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
