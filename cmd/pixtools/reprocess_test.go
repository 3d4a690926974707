package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/testenv"
	"github.com/pixtools/pixtools/models"
	"github.com/pixtools/pixtools/processors"
)

// reprocessed is what `pixtools reprocess --json` said.
type reprocessed struct {
	results  []processors.Remade
	replaced []processors.Replaced
	report   struct {
		report
		Replaced int64
		Left     map[string]int64
	}
}

func (p *program) reprocess(args ...string) reprocessed {
	p.t.Helper()
	out, complaints, status := p.command(append([]string{"reprocess", "--json"}, args...)...)
	require.Zero(p.t, status, "%s\n%s", out, complaints)
	var r reprocessed
	for line := range strings.Lines(out) {
		var l struct {
			Result   *processors.Remade
			Replaced *processors.Replaced
			Report   json.RawMessage
		}
		require.NoError(p.t, json.Unmarshal([]byte(line), &l), line)
		switch {
		case l.Result != nil:
			r.results = append(r.results, *l.Result)
		case l.Replaced != nil:
			r.replaced = append(r.replaced, *l.Replaced)
		default:
			require.NoError(p.t, json.Unmarshal(l.Report, &r.report), line)
		}
	}
	return r
}

// shows waits until the API links to a result of these bytes.
func (p *program) shows(id, operation, sum string) {
	p.t.Helper()
	eventually(p.t, operation+" is "+sum, func() error {
		job, err := p.now(id)
		if err == nil && !strings.Contains(job.ResultURLs[operation], sum) {
			err = errors.New(job.ResultURLs[operation])
		}
		return err
	})
	job, err := p.now(id)
	require.NoError(p.t, err)
	content, _ := fetch(p.t, job.ResultURLs[operation])
	require.EqualValues(p.t, job.OperationResults[operation].Artifact.Bytes, len(content))
}

// TestReprocess: another model over the history. Nothing changes for anybody until the run
// is promoted; then the API shows the new results, and after the rollback the old ones.
func TestReprocess(t *testing.T) {
	p := run(t, embeddedEnv(t))
	var ids []string
	for i := range 3 {
		ids = append(ids, p.submit(file("a.png", "image/png", pngOf(t, grainy(120+i, 90, 25))), field("operations", `["denoise","webp"]`)))
	}
	other := p.submit(file("b.png", "image/png", pngOf(t, picture(50, 50))), field("operations", `["webp"]`))
	for _, id := range append(ids, other) {
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
	present, err := models.Load("")
	require.NoError(t, err)
	require.Empty(t, p.reprocess("--operation=denoise", "--where", "model != "+present.SHA256).results)
	for _, m := range p.reprocess("--operation=denoise").results { // the same model
		require.Equal(t, processors.FateEqual, m.Fate)
	}

	model, hash := otherModel(t)
	newer := p.with("DENOISE_MODEL=" + model)
	made := newer.reprocess("--operation", "denoise", "--where", "model != "+hash+" and engine != x")
	require.Len(t, made.results, 3)
	require.EqualValues(t, 3, made.report.Fates[processors.FateMade])
	require.NotNil(t, made.report.LeastPSNR)
	require.Less(t, *made.report.LeastPSNR, 100.0)
	before, after := int64(0), int64(0)
	for _, m := range made.results {
		require.Contains(t, ids, m.JobID)
		require.Equal(t, present.SHA256, m.Before.Model)
		require.Equal(t, hash, m.After.Model)
		require.NotNil(t, m.PSNR)
		p.shows(m.JobID, "denoise", m.Before.SHA256)
		before, after = before+m.Before.Bytes, after+m.After.Bytes
	}
	require.Equal(t, []int64{before, after}, []int64{made.report.BytesBefore, made.report.BytesAfter})
	events := p.verify(0).summary.Events
	require.Equal(t, made.results, newer.reprocess("--run", made.report.ID).results, "the report once more")

	promoted := p.reprocess("--run", made.report.ID, "--promote")
	require.EqualValues(t, 3, promoted.report.Replaced)
	for _, m := range made.results {
		p.shows(m.JobID, "denoise", m.After.SHA256)
	}
	whole := p.verify(0)
	require.Equal(t, events+3, whole.summary.Events)
	require.EqualValues(t, 4+7+3, whole.summary.Objects.Intact, "sources, results, and those that took their place")
	require.Empty(t, newer.reprocess("--operation=denoise", "--where", "model != "+hash).results, "all have it by now")
	repeated := p.reprocess("--run", made.report.ID, "--promote")
	require.Equal(t, map[string]int64{"it is there already": 3}, repeated.report.Left)

	back := p.reprocess("--run", made.report.ID, "--rollback")
	require.EqualValues(t, 3, back.report.Replaced)
	for _, m := range made.results {
		p.shows(m.JobID, "denoise", m.Before.SHA256)
	}
	require.Equal(t, events+6, p.verify(0).summary.Events)
	require.Zero(t, p.reprocess("--run", made.report.ID, "--rollback").report.Replaced)
	_, complaints, status := p.command("reprocess", "--run", made.report.ID, "--promote")
	require.Equal(t, 1, status)
	require.Contains(t, complaints, "the run was rolled back")

	for want, args := range map[string][]string{
		`--operation is "sharpen": there are jpg`:                                  {"--operation=sharpen"},
		`--where is "model > x": at ">", at character 7: = or != must stand there`: {"--operation=denoise", "--where=model > x"},
		`no such run, or it was ended while it was planned: begin a new one: "x"`:  {"--run=x"},
		"[operation promote]": {"--operation=denoise", "--promote"},
		"--limit is -1":       {"--operation=denoise", "--limit=-1"},
	} {
		_, complaints, status := p.command(append([]string{"reprocess"}, args...)...)
		require.Equal(t, 1, status)
		require.Contains(t, complaints, want)
	}
	for _, bad := range []string{"REPROCESS_RATE=0.009", "REPROCESS_RATE=10001", "REPROCESS_LOOK_INTERVAL=9ms", "REPROCESS_LOOK_INTERVAL=61s"} {
		name, _, _ := strings.Cut(bad, "=")
		_, complaints, status := p.with(bad).command("reprocess", "--operation=denoise")
		require.Equal(t, 1, status)
		require.Contains(t, complaints, name)
	}
}

// TestReprocessGoesOn: a run waits while live work does, and after a kill does what it has
// not done, and that only.
func TestReprocessGoesOn(t *testing.T) {
	p := run(t, embeddedEnv(t))
	const jobs = processors.PartItems + 5
	var ids []string
	for i := range jobs {
		ids = append(ids, p.submit(file("a.png", "image/png", pngOf(t, picture(16+i, 16))), field("operations", `["webp"]`)))
	}
	for _, id := range ids {
		require.Equal(t, "SUCCEEDED", *p.ended(id).Outcome)
	}
	p.kill()
	p.args = []string{"serve", "--roles=api,saga,projector"} // nobody converts
	p.start()
	p.healthy()
	live := p.submit(file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`))
	eventually(t, "live work in the queue", func() error {
		response, err := http.Get(p.base + "/api/queues")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(response.Body); err != nil || !strings.Contains(body.String(), `"waiting":1`) {
			return fmt.Errorf("%w %s", err, body.String())
		}
		return nil
	})

	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(within(t), self, "reprocess", "--operation=webp")
	told := &testenv.Buffer{}
	cmd.Env, cmd.Stderr = append(slices.Clone(p.env), "REPROCESS_RATE=25", "REPROCESS_LOOK_INTERVAL=50ms"), told
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	eventually(t, "it waits", func() error {
		if !strings.Contains(told.String(), "waiting, for live work waits: 1 webp") {
			return errors.New(told.String())
		}
		return nil
	})
	store, err := blob.New(t.Context(), p.reach().Blob)
	require.NoError(t, err)
	notes := func() (found map[string]time.Time) {
		found = map[string]time.Time{}
		require.NoError(t, store.List(t.Context(), blob.ReprocessPrefix, func(o blob.Object) error {
			found[o.Key] = o.ModifiedAt
			return nil
		}))
		return found
	}
	_, id, _ := strings.Cut(told.String(), "--run ")
	id = id[:36]
	first := blob.ReprocessPrefix + id + "/results-000000.json"
	require.Contains(t, notes(), blob.ReprocessPrefix+id+"/run.json")
	require.NotContains(t, notes(), first)
	response, err := http.Post(p.base+"/api/jobs/"+live+"/cancel", "application/json", nil)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	eventually(t, "the first part", func() error {
		if _, there := notes()[first]; !there {
			return errors.New(told.String())
		}
		return nil
	})
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	before := notes()
	require.NotContains(t, before, blob.ReprocessPrefix+id+"/results-000001.json", "the kill came too late to say anything")
	_, complaints, status := p.command("reprocess", "--run", id, "--promote")
	require.Equal(t, 1, status)
	require.Contains(t, complaints, "the run is not done yet")

	rest := p.reprocess("--run", id)
	require.Len(t, rest.results, jobs)
	require.EqualValues(t, jobs, rest.report.Fates[processors.FateEqual])
	after := notes()
	require.Equal(t, before[first], after[first], "what was done is not done again")
	require.Contains(t, after, blob.ReprocessPrefix+id+"/results-000001.json")
	require.Len(t, p.reprocess("--operation=webp", "--limit=3").results, 3)
}
