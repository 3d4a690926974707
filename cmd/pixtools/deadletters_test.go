package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/testenv"
)

// ask sends JSON and reads what comes back.
func (p *program) ask(method, path string, body, into any) int {
	p.t.Helper()
	var sent bytes.Buffer
	if text, ok := body.(string); ok {
		sent.WriteString(text)
	} else if body != nil {
		require.NoError(p.t, json.NewEncoder(&sent).Encode(body))
	}
	request, err := http.NewRequestWithContext(p.t.Context(), method, p.base+path, &sent)
	require.NoError(p.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(p.t, err)
	defer response.Body.Close()
	require.NoError(p.t, json.NewDecoder(response.Body).Decode(into))
	return response.StatusCode
}

// tool runs one of pixtools' tools against the program.
func (p *program) tool(args ...string) (string, error) {
	p.t.Helper()
	self, err := os.Executable()
	require.NoError(p.t, err)
	cmd := exec.Command(self, append(args, "--server", p.base)...)
	cmd.Env = []string{mainVariable + "=1", "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestRetry: what did not complete runs again as a new revision, and what completed stays.
func TestRetry(t *testing.T) {
	p := run(t, embeddedEnv(t))
	broken := jpegOf(t, picture(300, 200))
	broken = broken[:len(broken)/2]
	id := p.submit(file("a.jpg", "image/jpeg", broken), field("operations", `["webp","png"]`))
	require.Equal(t, "FAILED", *p.ended(id).Outcome)

	var problem api.Problem
	for body, says := range map[string]string{
		`{"operations":["avif"]}`:      "no operation of this job",
		`{"operations":["png","png"]}`: "more than once",
		`{"operations":5}`:             "operations",
		`{"ops":["png"]}`:              `"ops" is nothing that this request takes`,
		`{"operations":["png"]} {}`:    "after its JSON object",
		`[]`:                           "the body must be a JSON object", `5`: "the body must be a JSON object", ` null`: "the body must be a JSON object", " ": "the body must be a JSON object",
		`{"` + strings.Repeat("o", 1000) + `":1}`:              "is nothing that",
		`{"operations":["` + strings.Repeat("x", 1000) + `"]}`: "no operation of this job",
	} {
		require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodPost, "/api/jobs/"+id+"/retry", body, &problem), body)
		require.Contains(t, problem.Detail, says)
		require.NotContains(t, problem.Detail, "api.", "no type of the program")
		require.Less(t, len(problem.Detail), 300)
	}
	require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodPost, "/api/jobs/"+id+"/retry", `{"ops":["png"]}`, &problem))
	require.Equal(t, "ops", problem.Errors[0].Field)
	require.Equal(t, http.StatusRequestEntityTooLarge, p.ask(http.MethodPost, "/api/jobs/"+id+"/retry", strings.Repeat(" ", 64<<10+1), &problem))

	var retried api.Retried
	require.Equal(t, http.StatusAccepted, p.ask(http.MethodPost, "/api/jobs/"+id+"/retry", `{"operations":["webp"]}`, &retried))
	require.Equal(t, api.Retried{JobID: id, Status: "PENDING", Revision: 2, Operations: []string{"webp"}}, retried)
	job := p.endedIn(id, 2)
	require.Equal(t, "FAILED", *job.Outcome)
	require.Equal(t, "truncated", job.OperationResults["png"].Error.Code, "what was not asked for stays as it was")

	// All of what failed, by the tool; and there is a bound.
	out, err := p.tool("job", "retry", id)
	require.NoError(t, err, out)
	require.Contains(t, out, "revision 3 begins: webp, png")
	p.endedIn(id, 3)

	whole := p.submit(file("a.png", "image/png", pngOf(t, picture(30, 20))), field("operations", `["webp"]`))
	p.ended(whole)
	require.Equal(t, http.StatusConflict, p.ask(http.MethodPost, "/api/jobs/"+whole+"/retry", nil, &problem))
	require.Contains(t, problem.Detail, "nothing to retry")
	require.Equal(t, http.StatusConflict, p.ask(http.MethodPost, "/api/jobs/"+whole+"/retry", `{"operations":["webp"]}`, &problem))
	require.Equal(t, http.StatusNotFound, p.ask(http.MethodPost, "/api/jobs/"+uuid.NewString()+"/retry", nil, &problem))

	// Dead letters are what is not the picture's fault.
	out, err = p.tool("dlq", "list")
	require.NoError(t, err, out)
	require.Equal(t, "no dead letters\n", out)
}

// endedIn is the job at the end of a revision.
func (p *program) endedIn(id string, revision int32) (job api.Job) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("the end of revision %d", revision), func() (err error) {
		if job, err = p.now(id); err == nil && (job.Outcome == nil || job.Revision != revision) {
			err = fmt.Errorf("%+v", job)
		}
		return err
	})
	return job
}

// TestDeadLetters: work that fails for another reason than the picture is a dead letter, and
// is done once its cause is mended; a record that nobody can read ends its own job only.
func TestDeadLetters(t *testing.T) {
	variables := realEnv(t)
	cluster, err := testenv.StartKafka("", 1) // of its own: these are all dead letters that there are
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	variables["KAFKA_BROKERS"], variables["INSTANCE_ID"] = strings.Join(cluster.Brokers(), ","), "one"
	p := run(t, variables, "--roles=api,saga,projector")
	var cfg blob.Config
	require.NoError(t, env.ParseWithOptions(&cfg, env.Options{Environment: variables}))
	store, err := blob.New(t.Context(), cfg)
	require.NoError(t, err)
	broker, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(variables["KAFKA_BROKERS"], ",")...))
	require.NoError(t, err)
	defer broker.Close()

	content := pngOf(t, picture(40, 30))
	other := p.submit(file("b.png", "image/png", content), field("operations", `["webp"]`))
	lost := p.submit(file("a.png", "image/png", content), field("operations", `["webp","jpg"]`))
	poisoned := p.submit(file("c.png", "image/png", content), field("operations", `["webp"]`))
	source := fmt.Sprintf("%s%s/%x", blob.RawPrefix, lost, sha256.Sum256(content))
	require.NoError(t, store.Delete(t.Context(), source))

	// Records that are no events: under a job's key, and under one of nobody's.
	stranger := uuid.NewString()
	for _, key := range []string{poisoned, stranger, "no-id\xff"} {
		r := &kgo.Record{Topic: events.Topic, Key: []byte(key), Value: []byte{0xff, 0xff}, Headers: []kgo.RecordHeader{{Key: "ce_type", Value: []byte("x\xff")}}}
		require.NoError(t, broker.ProduceSync(t.Context(), r).FirstErr())
	}
	job := p.ended(poisoned)
	require.Equal(t, "FAILED", *job.Outcome)
	require.Equal(t, "undecodable", job.OperationResults["webp"].Error.Code)
	require.Equal(t, "INTERNAL", job.OperationResults["webp"].Error.Kind)

	workers := variables
	workers["PORT"] = freePort(t)
	prepare(t, workers, "--roles=convert").start()
	require.Equal(t, "SUCCEEDED", *p.ended(other).Outcome, "its neighbours go on")
	job = p.ended(lost)
	require.Equal(t, "FAILED", *job.Outcome)
	require.Equal(t, "source_missing", job.OperationResults["jpg"].Error.Code)

	list := func(query string) (page api.DeadLetterPage) {
		require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/dead-letters?"+query, nil, &page))
		return page
	}
	require.Len(t, list("").DeadLetters, 5)
	require.Len(t, list("job_id="+lost).DeadLetters, 2)
	letter := list("operation=jpg").DeadLetters[0]
	require.Equal(t, lost, letter.JobID)
	require.Equal(t, "source_missing", letter.Code)
	require.Equal(t, "pixtools.op.jpg", letter.Group)
	require.Equal(t, "pixtools.events.v1.JobRequested", letter.Type)
	require.EqualValues(t, 1, letter.Attempts)
	page := list("limit=2")
	require.Len(t, page.DeadLetters, 2)
	require.Equal(t, 3, page.More)
	require.Len(t, list("limit=1000&after="+*page.Next).DeadLetters, 3)
	require.Empty(t, list("since=2999-01-01T00:00:00Z").DeadLetters)

	var detail api.DeadLetterDetail
	require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/dead-letters/"+letter.ID, nil, &detail))
	require.Equal(t, lost, detail.Record.Key)
	require.Contains(t, string(detail.Record.Event), source)
	out, err := p.tool("dlq", "show", list("job_id=" + poisoned).DeadLetters[0].ID)
	require.NoError(t, err, out)
	require.Contains(t, out, `"value_hex": "ffff"`)
	require.Contains(t, out, "ce_specversion")

	// The preview does nothing; neither does a redrive that nobody agreed to.
	out, err = p.tool("dlq", "redrive", "--job", lost, "--dry-run")
	require.NoError(t, err, out)
	require.Equal(t, 2, strings.Count(out, "would retry"), out)
	require.Contains(t, out, "revision 2 begins: webp, jpg")
	out, err = p.tool("dlq", "redrive", "--job", lost)
	require.Error(t, err)
	require.Contains(t, out, "--yes")
	out, err = p.tool("dlq", "redrive", "--yes")
	require.Error(t, err, "nothing was named")
	require.Contains(t, out, "--all")
	require.Len(t, list("").DeadLetters, 5)

	require.NoError(t, store.Put(t.Context(), source, bytes.NewReader(content), int64(len(content)), sha256.Sum256(content), "image/png"))
	out, err = p.tool("dlq", "redrive", "--job", lost, "--yes")
	require.NoError(t, err, out)
	require.Contains(t, out, "done: 2")
	job = p.endedIn(lost, 2)
	require.Equal(t, "SUCCEEDED", *job.Outcome)
	require.Len(t, job.ResultURLs, 2)

	out, err = p.tool("dlq", "redrive", "--code", "undecodable", "--yes")
	require.NoError(t, err, out)
	require.Contains(t, out, "done: 1")
	require.Equal(t, 2, strings.Count(out, "still cannot be read"), out)
	require.Equal(t, "SUCCEEDED", *p.endedIn(poisoned, 2).Outcome)

	out, err = p.tool("dlq", "discard", "--all", "--yes", "--reason", "not ours")
	require.NoError(t, err, out)
	require.Contains(t, out, "done: 2")
	require.Empty(t, list("").DeadLetters)
	closed := list("state=all").DeadLetters
	require.Len(t, closed, 5)
	for _, l := range closed {
		require.NotNil(t, l.ClosedAt)
	}
	out, err = p.tool("dlq", "redrive", letter.ID, uuid.NewString(), "--yes")
	require.Error(t, err, out)
	require.Contains(t, out, "there was nothing to do")
	require.Contains(t, out, "it was redriven already")
	require.Contains(t, out, "there is no such dead letter")

	var problem api.Problem
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "state=closed", "since=yesterday", "after=" + uuid.NewString(), "job_id=x", "status=all", "operation=foo", "type=foo"} {
		require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/dead-letters?"+query, nil, &problem), query)
		require.Equal(t, strings.Split(query, "=")[0], problem.Errors[0].Field)
	}
	for field, known := range map[string]string{"operation": "jpg, png, webp, avif, denoise", "type": "pixtools.events.v1.JobRequested, pixtools.events.v1.OperationStarted"} {
		require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodPost, "/api/dead-letters/redrive", `{"`+field+`":"foo"}`, &problem), field)
		require.Equal(t, field, problem.Errors[0].Field)
		require.Contains(t, problem.Detail, known)
	}
	require.Empty(t, list("type=pixtools.events.v1.JobDeleted&operation=jpg").DeadLetters)
	require.NotEmpty(t, list("type=x%3F&state=all").DeadLetters, "a broken record's type, which is no event's")
	require.Equal(t, http.StatusNotFound, p.ask(http.MethodGet, "/api/dead-letters/"+uuid.NewString(), nil, &problem))
	require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, "/api/dead-letters/x", nil, &problem))
	require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodPost, "/api/dead-letters/redrive", nil, &problem), "nothing was named")
	require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodPost, "/api/dead-letters/discard", `{"all":true}`, &problem), "no reason")
}
