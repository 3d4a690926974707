package main

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
)

func (p *program) cancel(id string) *http.Response {
	response, err := http.Post(p.base+"/api/jobs/"+id+"/cancel", "", nil)
	require.NoError(p.t, err)
	response.Body.Close()
	return response
}

// TestCancel: what has completed stays, what is being worked on is stopped at once, what
// waits is never begun, and each job ends.
func TestCancel(t *testing.T) {
	variables := embeddedEnv(t)
	// A picture takes minutes: only a worker that is stopped comes to the last job in time.
	variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "216", "1"
	p := run(t, variables)
	slow := file("a.png", "image/png", pngOf(t, picture(3000, 2000)))
	running := p.submit(slow, field("operations", `["webp","denoise"]`))
	eventually(t, "webp's end, and denoising's beginning", func() error {
		job, err := p.now(running)
		if err == nil && (job.OperationResults["webp"].State != "COMPLETED" || job.OperationResults["denoise"].Progress == 0) {
			err = fmt.Errorf("%+v", job.OperationResults)
		}
		return err
	})
	// Only now: which of two that wait is taken first, nobody says.
	waiting := p.submit(slow, field("operations", `["denoise"]`))
	for _, id := range []string{waiting, running} {
		response := p.cancel(id)
		require.Equal(t, http.StatusAccepted, response.StatusCode)
		require.NotEmpty(t, response.Header.Get(api.PositionHeader))
	}
	job := p.ended(running)
	require.Equal(t, "PARTIAL", *job.Outcome)
	require.Equal(t, "COMPLETED", job.Status)
	require.Equal(t, "denoise: cancelled", *job.ErrorMessage)
	require.Equal(t, "CANCELLED", job.OperationResults["denoise"].State)
	made, _ := fetch(t, job.ResultURLs["webp"])
	require.NotEmpty(t, made)

	job = p.ended(waiting)
	require.Equal(t, "CANCELLED", *job.Outcome)
	require.Equal(t, "FAILED", job.Status)
	require.Zero(t, job.OperationResults["denoise"].Attempt)

	require.Equal(t, "COMPLETED", p.ended(p.submit(file("a.png", "image/png", pngOf(t, picture(20, 20))), field("operations", `["denoise"]`))).Status)

	require.Equal(t, http.StatusConflict, p.cancel(running).StatusCode, "it has ended")
	require.Equal(t, http.StatusNotFound, p.cancel(uuid.NewString()).StatusCode)
	require.Equal(t, http.StatusUnprocessableEntity, p.cancel("no-uuid").StatusCode)
	response, err := http.Get(p.base + "/api/jobs/" + running + "/cancel")
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusMethodNotAllowed, response.StatusCode)
}

// TestCancelRacesWithTheEnd: however they fall, each job ends once, and says what is true.
func TestCancelRacesWithTheEnd(t *testing.T) {
	p := run(t, embeddedEnv(t))
	content := pngOf(t, picture(64, 64))
	for range 30 {
		id := p.submit(file("a.png", "image/png", content), field("operations", `["webp","jpg"]`))
		status := p.cancel(id).StatusCode
		require.Contains(t, []int{http.StatusAccepted, http.StatusConflict}, status)
		job := p.ended(id)
		made := 0
		for _, result := range job.OperationResults {
			switch result.State {
			case "COMPLETED":
				made++
			case "CANCELLED":
				require.Equal(t, http.StatusAccepted, status)
			default:
				require.NoError(t, errors.New(result.State))
			}
		}
		require.Equal(t, map[int]string{0: "CANCELLED", 1: "PARTIAL", 2: "SUCCEEDED"}[made], *job.Outcome)
		require.Len(t, job.ResultURLs, made)
	}
}
