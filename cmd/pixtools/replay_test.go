package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
)

// replay runs the command with the program's configuration.
func (p *program) replay(args ...string) (string, error) {
	p.t.Helper()
	self, err := os.Executable()
	require.NoError(p.t, err)
	cmd := exec.Command(self, append([]string{"replay"}, args...)...)
	cmd.Env = append(slices.Clone(p.env), "LOG_LEVEL=warn", "REPLAY_SWAP_TIMEOUT=1500ms") // less than READ_WAIT_TIMEOUT
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (p *program) replayed(args ...string) string {
	p.t.Helper()
	out, err := p.replay(args...)
	require.NoError(p.t, err, "%s", out)
	return out
}

// traffic submits jobs and reads them, after= their position, until it is told to stop.
type traffic struct {
	p               *program
	picture         []byte
	stopped         atomic.Bool
	all             sync.WaitGroup
	mu              sync.Mutex
	ids             []string
	submitted, read int
	faults          []string
}

func (x *traffic) start(clients int) {
	for range clients {
		x.all.Go(func() {
			for !x.stopped.Load() {
				if err := x.one(); err != nil {
					x.mu.Lock()
					x.faults = append(x.faults, err.Error())
					x.mu.Unlock()
				}
			}
		})
	}
}

func (x *traffic) stop() {
	x.stopped.Store(true)
	x.all.Wait()
}

func (x *traffic) counts() (submitted, read int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.submitted, x.read
}

// rank orders what a job may be seen as: it never goes back.
var rank = map[string]int{"PENDING": 1, "PROCESSING": 2, "COMPLETED": 3, "FAILED": 3}

func (x *traffic) one() error {
	response, body, err := x.p.post(nil, file("a.png", "image/png", x.picture), field("operations", `["webp"]`))
	if err != nil || response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("submit: %w %s", err, body)
	}
	var accepted api.Accepted
	if err := json.Unmarshal(body, &accepted); err != nil {
		return err
	}
	x.mu.Lock()
	x.submitted++
	x.ids = append(x.ids, accepted.JobID)
	x.mu.Unlock()
	query := "?after=" + response.Header.Get("Pixtools-Position")
	for seen := 0; seen < 3; query = "" {
		var job api.Job
		response, err := http.Get(x.p.base + "/api/jobs/" + accepted.JobID + query)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK {
			return fmt.Errorf("job %s: %s: %w %s", accepted.JobID, response.Status, err, body)
		}
		if err := json.Unmarshal(body, &job); err != nil {
			return fmt.Errorf("job %s: %w: %s", accepted.JobID, err, body)
		}
		if now := rank[job.Status]; now < seen {
			return fmt.Errorf("job %s went back to %s", accepted.JobID, job.Status)
		}
		seen = rank[job.Status]
		x.mu.Lock()
		x.read++
		x.mu.Unlock()
	}
	return nil
}

// more waits until the traffic has gone on for a while.
func (x *traffic) more(submissions int) {
	before, _ := x.counts()
	eventually(x.p.t, "more traffic", func() error {
		if now, _ := x.counts(); now < before+submissions {
			return fmt.Errorf("%d submissions", now-before)
		}
		return nil
	})
}

// names are those of a list's rows.
func names(list string) (all []string) {
	for _, line := range strings.Split(strings.TrimSpace(list), "\n")[1:] {
		all = append(all, strings.Fields(line)[0])
	}
	return all
}

// A read model is promoted and rolled back under queries, and dropped under the running
// program: no query fails while it is swapped, submissions never do, and one command
// brings everything back.
func TestReplay(t *testing.T) {
	env := ownKafka(t) // all that is in the log has its objects in the bucket
	p := run(t, env)
	db, err := pgx.Connect(within(t), strings.Replace(env["DATABASE_URL"], "postgresql+asyncpg://", "postgres://", 1))
	require.NoError(t, err)
	defer db.Close(within(t))
	execute := func(sql string, args ...any) {
		t.Helper()
		_, err := db.Exec(within(t), sql, args...)
		require.NoError(t, err)
	}

	x := &traffic{p: p, picture: pngOf(t, picture(16, 16))}
	x.start(4)
	x.more(30)
	for range 2 {
		out := p.replayed("--promote")
		require.Contains(t, out, "is live now")
		t.Logf("%s", out)
		x.more(30)
		t.Logf("%s", p.replayed("--rollback"))
		x.more(30)
	}
	x.stop()
	// What is kept leaves no place for another, but for those that a comparison makes and removes.
	listed := p.replayed("--list")
	kept := p.with("REPLAY_SCHEMAS=1")
	out, err := kept.replay()
	require.Error(t, err, "%s", out)
	require.Contains(t, out, "pixtools replay --drop NAME")
	out = kept.replayed("--diff")
	require.Contains(t, out, "0 changed (~), 0 added (+), 0 missing (-)")
	require.Contains(t, out, "removed pixtools_read_")
	require.Empty(t, kept.verify(0).findings)
	_, complaints, code := kept.command("usage", "--audit")
	require.Zero(t, code, complaints)
	require.Equal(t, names(listed), names(p.replayed("--list")))
	p.replayed() // it stays, as pixtools_read_1
	submitted, read := x.counts()
	t.Logf("%d submissions, %d reads", submitted, read)
	require.Empty(t, x.faults)

	// A row changed by hand is found, and what is wrong with it.
	execute("UPDATE pixtools_read.jobs SET revision = 9 WHERE job_id = $1", x.ids[0])
	out, err = p.replay("--schema", "pixtools_read_1", "--diff")
	var status *exec.ExitError
	require.ErrorAs(t, err, &status, "%s", out)
	require.Contains(t, out, "~ "+x.ids[0]+"\n    revision: 9 -> 1\n")
	require.Contains(t, out, "1 changed (~), 0 added (+), 0 missing (-)")

	// Dropped: reads say so, submissions go on, one command brings it back.
	before := p.ended(x.ids[1])
	execute("DROP SCHEMA pixtools_read CASCADE")
	var problem api.Problem
	require.Equal(t, http.StatusServiceUnavailable, p.ask(http.MethodGet, "/api/jobs/"+x.ids[1], nil, &problem))
	meanwhile := p.submit(file("a.png", "image/png", x.picture), field("operations", `["webp"]`))
	t.Logf("%s", p.replayed("--promote"))
	require.Equal(t, "SUCCEEDED", *p.ended(meanwhile).Outcome)
	after := p.ended(x.ids[1])
	after.ResultURLs, before.ResultURLs = nil, nil // signed anew
	for _, job := range []*api.Job{&before, &after} {
		job.Source.URL, job.Source.LinkExpiresAt = "", nil
		for op, result := range job.OperationResults {
			result.Artifact.LinkExpiresAt = nil
			job.OperationResults[op] = result
		}
	}
	require.Equal(t, before, after)
	for _, id := range x.ids {
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
	require.Contains(t, p.replayed("--diff"), "0 changed (~), 0 added (+), 0 missing (-)")

	// A past state is built, and is not promoted.
	var history api.JobHistory
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/"+x.ids[0]+"/events", nil, &history))
	out = p.replayed("--until", history.Events[1].Position)
	require.Contains(t, out, "cannot be promoted")
	_, built, _ := strings.Cut(out, "built ")
	past, _, _ := strings.Cut(built, ":")
	var phase int16
	require.NoError(t, db.QueryRow(within(t), "SELECT phase FROM "+past+".jobs WHERE job_id = $1", x.ids[0]).Scan(&phase))
	require.EqualValues(t, 1, phase)
	out, err = p.replay("--schema", past, "--promote")
	require.Error(t, err)
	require.Contains(t, out, "this read model is not for that")
	require.Regexp(t, past+" +past ", p.replayed("--list"))
	p.replayed("--drop", past)
	require.NotContains(t, p.replayed("--list"), past)

	for _, wrong := range []struct{ args, says string }{
		{"--drop pixtools_read", "is the live one"}, {"--drop nothing", "no such read model"},
		{"--schema nothing --promote", "no such read model"}, {"--until yesterday", "--until is"},
		{"--until 2h --promote", "none of the others can be"}, {"--show -1", "--show is -1"},
	} {
		out, err := p.replay(strings.Fields(wrong.args)...)
		require.Error(t, err, wrong.args)
		require.Contains(t, out, wrong.says)
	}
}

// The command finds the parts of a PixTools that runs embedded, and starts its own where
// none runs.
func TestReplayEmbedded(t *testing.T) {
	p := run(t, embeddedEnv(t))
	id := p.submit(file("a.png", "image/png", pngOf(t, picture(16, 16))), field("operations", `["webp"]`))
	require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	require.Contains(t, p.replayed("--promote"), "is live now")
	require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	p.kill()
	require.Contains(t, p.replayed("--promote"), "is live now")
	p.start()
	p.healthy()
	require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)

	p.kill()
	for i, variable := range p.env {
		if strings.HasPrefix(variable, "PIXTOOLS_DATA_DIR=") {
			p.env[i] = "PIXTOOLS_DATA_DIR=" + t.TempDir()
		}
	}
	out, err := p.replay()
	require.Error(t, err)
	require.Contains(t, out, "has no embedded log")
}
