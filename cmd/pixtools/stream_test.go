package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/progress"
)

// news is one server-sent event.
type news struct{ event, id, data string }

// follow opens a job's stream; next reads its next event.
func (p *program) follow(id string) (next func() (news, error)) { return p.followAs("", id) }

// followAs is follow with an API key.
func (p *program) followAs(key, id string) (next func() (news, error)) {
	p.t.Helper()
	request, err := http.NewRequestWithContext(within(p.t), http.MethodGet, p.base+"/api/jobs/"+id+"/stream", nil)
	require.NoError(p.t, err)
	if key != "" {
		request.Header.Set("X-API-Key", key)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(p.t, err)
	p.t.Cleanup(func() { response.Body.Close() })
	require.Equal(p.t, http.StatusOK, response.StatusCode)
	require.Equal(p.t, "text/event-stream", response.Header.Get("Content-Type"))
	lines := bufio.NewScanner(response.Body)
	return func() (n news, err error) {
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "event":
				n.event = value
			case "id":
				n.id = value
			case "data":
				n.data = value
			case "":
				if n.event != "" {
					return n, nil
				}
			}
		}
		return n, fmt.Errorf("the stream ended: %w", cmp.Or(lines.Err(), io.EOF))
	}
}

// TestStream: who follows a job sees it whole, at once and after each change, to its end and
// beyond, and hears how far an operation is.
func TestStream(t *testing.T) {
	variables := embeddedEnv(t)
	variables["DENOISE_TILE"], variables["DENOISE_NICE"], variables["MAX_STREAMS"] = "216", "0", "2"
	p := run(t, variables)
	id := p.submit(file("a.png", "image/png", pngOf(t, picture(300, 220))), field("operations", `["webp","denoise"]`))
	next, states, heard, last := p.follow(id), map[string]bool{}, false, api.Job{}
	for last.Outcome == nil {
		n, err := next()
		require.NoError(t, err)
		switch n.event {
		case "progress":
			var s progress.State
			require.NoError(t, json.Unmarshal([]byte(n.data), &s))
			require.Equal(t, "denoise", s.Operation)
			require.Empty(t, n.id)
			heard = true
		case "job":
			last = api.Job{}
			require.NoError(t, json.Unmarshal([]byte(n.data), &last))
			for name, result := range last.OperationResults {
				states[name+" "+result.State] = true
			}
			// The id is a position: the job as it was then is what was told.
			var then api.Job
			require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/"+id+"?at="+n.id, nil, &then))
			require.Equal(t, last.Status, then.Status)
			require.Equal(t, last.UpdatedAt, then.UpdatedAt)
		}
	}
	require.True(t, heard)
	require.True(t, states["denoise RUNNING"] && states["denoise COMPLETED"] && states["webp COMPLETED"], states)
	require.Equal(t, "SUCCEEDED", *last.Outcome)

	// Its end is not the stream's: a retry is followed too.
	broken := jpegOf(t, picture(300, 200))
	id = p.submit(file("a.jpg", "image/jpeg", broken[:len(broken)/2]), field("operations", `["webp"]`))
	p.ended(id)
	next = p.follow(id)
	require.Equal(t, http.StatusAccepted, p.ask(http.MethodPost, "/api/jobs/"+id+"/retry", nil, &api.Retried{}))
	for revision := int32(1); ; {
		n, err := next()
		require.NoError(t, err)
		var job api.Job
		require.NoError(t, json.Unmarshal([]byte(n.data), &job))
		require.GreaterOrEqual(t, job.Revision, revision)
		if revision = job.Revision; revision == 2 && job.Outcome != nil {
			break
		}
	}

	var problem api.Problem
	require.Equal(t, http.StatusTooManyRequests, p.ask(http.MethodGet, "/api/jobs/"+id+"/stream", nil, &problem), "two are open")
	require.Contains(t, problem.Detail, "MAX_STREAMS")
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
	_, err := next()
	require.ErrorContains(t, err, "the stream ended", "the program does not wait for those who follow")
	require.NoError(t, p.cmd.Wait())
	p.start()
	p.healthy()
	require.Equal(t, http.StatusNotFound, p.ask(http.MethodGet, "/api/jobs/"+uuid.NewString()+"/stream", nil, &problem))
	require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/jobs/x/stream", nil, &problem))
	n, err := p.follow(id)()
	require.NoError(t, err)
	require.Contains(t, n.data, id, "and after a restart it goes on")
}

// TestStreamBehindTheLog: a stream does not begin with a job from a read model that has not what the
// process has read of the log already: nobody would tell it of that any more.
func TestStreamBehindTheLog(t *testing.T) {
	variables := realEnv(t)
	variables["READ_WAIT_TIMEOUT"] = "5s"
	p := run(t, variables, "--roles=api,saga")
	variables["PORT"] = freePort(t)
	projector := prepare(t, variables, "--roles=projector")
	projector.start()
	id := p.submit(file("a.png", "image/png", pngOf(t, picture(20, 20))), field("operations", `["webp"]`)) // nobody works on it
	eventually(t, "the read model has it", func() error { _, err := p.job(id); return err })
	next := p.follow(id)
	require.NoError(t, projector.cmd.Process.Signal(syscall.SIGSTOP))
	require.Equal(t, http.StatusAccepted, p.cancel(id).StatusCode)
	cancelled := func(next func() (news, error)) {
		var job api.Job
		for job.Outcome == nil {
			n, err := next()
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal([]byte(n.data), &job))
		}
		require.Equal(t, "CANCELLED", *job.Outcome)
	}
	cancelled(next) // who was there before hears of it
	var problem api.Problem
	require.Equal(t, http.StatusServiceUnavailable, p.ask(http.MethodGet, "/api/jobs/"+id+"/stream", nil, &problem))
	require.Contains(t, problem.Detail, "not caught up")
	require.NoError(t, projector.cmd.Process.Signal(syscall.SIGCONT))
	p.ended(id)
	cancelled(p.follow(id))
}
