package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
)

// TestHistory: a job's events are shown as the log has them, and the job as it was after each.
func TestHistory(t *testing.T) {
	p := run(t, embeddedEnv(t))
	broken := jpegOf(t, picture(300, 200))
	id := p.submit(file("a.jpg", "image/jpeg", broken[:len(broken)/2]), field("operations", `["webp"]`))
	p.ended(id)
	require.Equal(t, http.StatusAccepted, p.ask(http.MethodPost, "/api/jobs/"+id+"/retry", nil, &api.Retried{}))
	last := p.endedIn(id, 2)

	var history api.JobHistory
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/"+id+"/events", nil, &history))
	var types []string
	known := map[string]bool{}
	for _, e := range history.Events {
		types = append(types, e.Type)
		if e.CausedBy != nil {
			require.True(t, known[*e.CausedBy], "%s is caused by what is not before it", e.Type)
			require.NotNil(t, e.DelaySeconds)
		}
		known[e.ID] = true
		require.True(t, e.Effect, e.Type)
		require.Contains(t, string(e.Event), "{")
	}
	require.Equal(t, "JobRequested OperationStarted OperationFailed JobFinalized OperationRetryRequested OperationStarted OperationFailed JobFinalized",
		strings.Join(types, " "))
	require.Equal(t, "PENDING", history.Events[0].Job.Status)
	require.Equal(t, "PROCESSING", history.Events[1].Job.Status)
	require.Equal(t, "FAILED", history.Events[3].Job.Status)
	require.Equal(t, "PENDING", history.Events[4].Job.Status)
	require.EqualValues(t, 2, history.Events[7].Job.Revision)

	// The job as it was: by position, by time, before its time.
	var job api.Job
	for _, e := range history.Events {
		for _, at := range []string{e.Position, e.Time.Format(time.RFC3339Nano)} {
			require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/"+id+"?at="+url.QueryEscape(at), nil, &job), at)
			if at == e.Position {
				require.Equal(t, *e.Job, unsigned(job))
			}
		}
	}
	require.Equal(t, unsigned(last), unsigned(job))
	var problem api.Problem
	before := last.CreatedAt.Add(-time.Nanosecond).Format(time.RFC3339Nano)
	require.Equal(t, http.StatusNotFound, p.ask(http.MethodGet, "/api/jobs/"+id+"?at="+before, nil, &problem))
	require.Contains(t, problem.Detail, "did not exist then")
	for _, query := range []string{"at=yesterday", "at=" + history.Events[0].Position + "x", "wait=1&at=" + history.Events[0].Position} {
		require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/jobs/"+id+"?"+query, nil, &problem), query)
		require.Equal(t, "at", problem.Errors[0].Field)
	}
	require.Equal(t, http.StatusNotFound, p.ask(http.MethodGet, "/api/jobs/"+uuid.NewString()+"/events", nil, &problem))
	require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/jobs/x/events", nil, &problem))

	out, err := p.tool("job", "history", id)
	require.NoError(t, err, out)
	require.Equal(t, 9, strings.Count(out, "\n"), out)
	require.Contains(t, out, "revision 2 FAILED")
	out, err = p.tool("job", "history", id, "--json")
	require.NoError(t, err, out)
	require.Equal(t, 8, strings.Count(out, "\n"), out)
}

// unsigned is the job without what is no part of its events: its source's name and link.
func unsigned(job api.Job) api.Job {
	job.Source.Name, job.Source.URL, job.Source.LinkExpiresAt, job.Source.ExpiresAt = "", "", nil, nil
	return job
}
