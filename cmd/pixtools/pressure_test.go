package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
)

// queue is what GET /api/queues says of an operation.
func (p *program) queue(operation string) (api.Queue, error) {
	response, err := http.Get(p.base + "/api/queues")
	if err != nil {
		return api.Queue{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return api.Queue{}, errors.New(response.Status)
	}
	var all api.Queues
	err = json.NewDecoder(response.Body).Decode(&all)
	return all.Queues[operation], err
}

// TestOldWorkIsPressure: an operation that nobody works on takes no more once its work is old, the others do, and a
// repeat of what was accepted is no new work. When somebody works again, so does it.
func TestOldWorkIsPressure(t *testing.T) {
	variables := realEnv(t)
	variables["QUEUE_MAX_AGE"], variables["QUEUE_REFRESH_INTERVAL"] = "1s", "100ms"
	variables["IDEMPOTENCY_SETTLE"] = "100ms" // a key that the new Redis does not know is a new one
	p := run(t, variables, "--roles=api,convert,saga,projector")
	image := file("a.png", "image/png", pngOf(t, picture(8, 8)))
	// The groups may wait for members of the test before, which were killed.
	p.ended(p.submit(image, field("operations", `["webp"]`)))
	denoise, both, key := field("operations", `["denoise"]`), field("operations", `["webp","denoise"]`), field("idempotency_key", "before")
	first := p.submit(image, denoise, key)
	eventually(t, "a queue that is too old", func() error {
		q, err := p.queue("denoise")
		if err == nil && (q.Waiting != 1 || q.Running != 0 || *q.Oldest <= 1) {
			err = fmt.Errorf("%+v", q)
		}
		return err
	})
	for _, refused := range [][]part{{image, denoise}, {image, both}, {image, denoise, field("idempotency_key", "after")}} {
		response, body, err := p.post(nil, refused...)
		require.NoError(t, err)
		require.Equal(t, http.StatusTooManyRequests, response.StatusCode, "%s", body)
		require.NotEmpty(t, response.Header.Get("Retry-After"))
		var problem api.Problem
		require.NoError(t, json.Unmarshal(body, &problem))
		require.Len(t, problem.Errors, 1)
		require.Equal(t, "operations", problem.Errors[0].Field)
		require.Contains(t, problem.Detail, "denoise: the oldest work waits for ")
		require.Contains(t, problem.Detail, "QUEUE_MAX_AGE, 1s")
	}
	require.Equal(t, first, p.submit(image, denoise, key))
	require.Equal(t, "COMPLETED", p.ended(p.submit(image, field("operations", `["webp"]`))).Status)
	eventually(t, "an empty queue", func() error { // it is looked at now and then
		q, err := p.queue("webp")
		if err == nil && (q.Waiting+q.Running != 0 || q.Oldest != nil) {
			err = fmt.Errorf("%+v", q)
		}
		return err
	})

	worker := prepare(t, variables, "--roles=ml")
	worker.start()
	require.Equal(t, "COMPLETED", p.ended(first).Status)
	id, err := p.insist(within(t), image, both)
	require.NoError(t, err)
	require.Equal(t, "COMPLETED", p.ended(id).Status)
}

// slowUpload is a submission of which the file's begin is sent, and the rest when finish is called. By Expect it
// sends nothing before the server has taken it in.
func (p *program) slowUpload(content []byte, sent int) (finish func() (int, error)) {
	body, to := io.Pipe()
	form := multipart.NewWriter(to)
	status, failed := make(chan int, 1), make(chan error, 1)
	go func() {
		request, err := http.NewRequest(http.MethodPost, p.base+"/api/process", body)
		if err != nil {
			failed <- err
			return
		}
		request.Header.Set("Content-Type", form.FormDataContentType())
		request.Header.Set("Expect", "100-continue")
		response, err := (&http.Transport{ExpectContinueTimeout: patience}).RoundTrip(request)
		if err != nil {
			failed <- err
			return
		}
		response.Body.Close()
		status <- response.StatusCode
	}()
	write := func() (io.Writer, error) {
		if err := form.WriteField("operations", `["webp"]`); err != nil {
			return nil, err
		}
		header := map[string][]string{"Content-Disposition": {`form-data; name="file"; filename="a.png"`}, "Content-Type": {"image/png"}}
		file, err := form.CreatePart(header)
		if err == nil {
			_, err = file.Write(content[:sent])
		}
		return file, err
	}
	file, err := write()
	return func() (int, error) {
		if err == nil {
			_, err = file.Write(content[sent:])
		}
		if err := errors.Join(err, form.Close(), to.Close()); err != nil {
			return 0, err
		}
		select {
		case s := <-status:
			return s, nil
		case err := <-failed:
			return 0, err
		}
	}
}

// spooled is how many bytes of uploads the program has on disk; the files have no names any more.
func (p *program) spooled() int {
	open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.cmd.Process.Pid))
	sum := 0
	for _, fd := range open {
		if name, _ := os.Readlink(fd); strings.Contains(name, "/upload-") {
			if info, err := os.Stat(fd); err == nil {
				sum += int(info.Size())
			}
		}
	}
	return sum
}

// TestUploadsArePressure: more uploads at once than MAX_CONCURRENT_UPLOADS, or more of their bytes on disk than
// SPOOL_MAX_BYTES, are answered 429; as soon as there is room, they are taken.
func TestUploadsArePressure(t *testing.T) {
	// More than a client keeps back until it has more to send, and more than the server keeps in memory.
	content := append(pngOf(t, picture(8, 8)), make([]byte, 700<<10)...)
	for name, c := range map[string]struct {
		variables map[string]string
		limit     string // what the answer names
	}{
		"number": {map[string]string{"MAX_CONCURRENT_UPLOADS": "1"}, "1 uploads are in progress"},
		"bytes":  {map[string]string{"SPOOL_MAX_BYTES": "1048576", "MAX_UPLOAD_BYTES": "1048576"}, "SPOOL_MAX_BYTES, 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			variables := embeddedEnv(t)
			for variable, value := range c.variables {
				variables[variable] = value
			}
			p := run(t, variables)
			finish := p.slowUpload(content, len(content)-10)
			parts := []part{file("a.png", "image/png", content), field("operations", `["webp"]`)}
			eventually(t, "the upload on disk", func() error {
				if n := p.spooled(); n < len(content)/2 {
					return fmt.Errorf("%d bytes", n)
				}
				return nil
			})
			response, body, err := p.post(nil, parts...)
			require.NoError(t, err)
			require.Equal(t, http.StatusTooManyRequests, response.StatusCode, "%s", body)
			require.NotEmpty(t, response.Header.Get("Retry-After"))
			require.Contains(t, string(body), c.limit)
			status, err := finish()
			require.NoError(t, err)
			require.Equal(t, http.StatusAccepted, status)
			p.submit(parts...)
		})
	}
}

// TestWaitsArePressure: more queries at once that wait for a job's end than MAX_WAITING_READS are answered 429; those
// that do not wait are answered as ever.
func TestWaitsArePressure(t *testing.T) {
	variables := embeddedEnv(t)
	variables["MAX_WAITING_READS"] = "1"
	p := run(t, variables, "--roles=api,saga,projector")
	id := p.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`))
	get := func(wait string) (int, error) {
		response, err := http.Get(p.base + "/api/jobs/" + id + "?wait=" + wait)
		if err != nil {
			return 0, err
		}
		response.Body.Close()
		return response.StatusCode, nil
	}
	ended := make(chan int, 1)
	go func() {
		for { // one that comes while the test asks is refused itself
			if status, err := get("60"); err != nil || status != http.StatusTooManyRequests {
				ended <- status
				return
			}
		}
	}()
	eventually(t, "429", func() error {
		status, err := get("0.001")
		if err == nil && status != http.StatusTooManyRequests {
			err = fmt.Errorf("%d", status)
		}
		return err
	})
	status, err := get("0")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, http.StatusAccepted, p.cancel(id).StatusCode)
	select {
	case status := <-ended:
		require.Equal(t, http.StatusOK, status)
	case <-within(t).Done():
		t.Fatal("the query that waited was not answered")
	}
	eventually(t, "room again", func() error {
		status, err := get("1")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d", status)
		}
		return err
	})
}
