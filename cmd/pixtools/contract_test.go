package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
)

// TestContract goes through the contract's tables where they concern submission.
func TestContract(t *testing.T) {
	env := embeddedEnv(t)
	env["MAX_UPLOAD_BYTES"] = "1048576"
	p := run(t, env)
	small := pngOf(t, picture(8, 8))
	image := file("a.png", "image/png", small)
	ops := field("operations", `["webp"]`)
	padded := func(size int) []byte { return append(append([]byte(nil), small...), make([]byte, size-len(small))...) }

	for _, c := range []struct {
		name   string
		parts  []part
		header http.Header
		status int
		detail string // what the detail holds; empty for 202
		field  string // what errors names
	}{
		{"file just below the limit", []part{file("a.png", "image/png", padded(1<<20-1)), ops}, nil, 202, "", ""},
		{"file at the limit", []part{file("a.png", "image/png", padded(1<<20)), ops}, nil, 202, "", ""},
		{"file over the limit", []part{file("a.png", "image/png", padded(1<<20+1)), ops}, nil, 413, "File exceeds 1MB limit", "file"},
		{"file far over the limit", []part{file("a.png", "image/png", padded(8<<20)), ops}, nil, 413, "File exceeds 1MB limit", "file"},
		{"text", []part{file("a.txt", "text/plain", []byte("hello")), ops}, nil, 400, "Unsupported file type: text/plain. Accepted: [", "file"},
		{"no content type", []part{file("a.png", "", small), ops}, nil, 400, "Unsupported file type: none", "file"},
		{"operations not JSON", []part{image, field("operations", "webp")}, nil, 422, "Invalid operations: ", "operations"},
		{"operations a number", []part{image, field("operations", "5")}, nil, 422, "Invalid operations: ", "operations"},
		{"operations an object", []part{image, field("operations", `{"webp":1}`)}, nil, 422, "Invalid operations: ", "operations"},
		{"operations null", []part{image, field("operations", `null`)}, nil, 422, "Invalid operations: ", "operations"},
		{"operations of numbers", []part{image, field("operations", `[1]`)}, nil, 422, "Invalid operations: ", "operations"},
		{"unknown operation", []part{image, field("operations", `["gif"]`)}, nil, 422, "Invalid operations: ", "operations"},
		{"repeated operation", []part{image, field("operations", `["webp","webp"]`)}, nil, 422, `"webp" is named more than once`, "operations"},
		{"no operation", []part{image, field("operations", `[]`)}, nil, 422, "At least one operation is required", "operations"},
		{"same format", []part{image, field("operations", `["png"]`)}, nil, 422, "Cannot convert png to png — source and target formats are the same", "operations"},
		{"the bytes decide", []part{file("a.jpg", "image/jpeg", small), field("operations", `["png"]`)}, nil, 422, "Cannot convert png to png", "operations"},
		{"file missing", []part{ops}, nil, 422, "file is missing", "file"},
		{"operations missing", []part{image}, nil, 422, "operations is missing", "operations"},
		{"file after the fields", []part{ops, image}, nil, 202, "", ""},
		{"file before the fields", []part{image, ops}, nil, 202, "", ""},
		{"not an image", []part{file("a.png", "image/png", []byte("not an image at all")), ops}, nil, 422, "", "file"},
		{"empty", []part{file("a.png", "image/png", nil), ops}, nil, 422, "", "file"},
		{"header cut off", []part{file("a.png", "image/png", small[:20]), ops}, nil, 422, "", "file"},
		{"bomb", []part{file("a.png", "image/png", bombPNG(20000, 20000)), ops}, nil, 422, "limit", "file"},
		{"long file name", []part{file(strings.Repeat("n", 300)+".png", "image/png", small), ops}, nil, 202, "", ""},
		{"unknown parameter", []part{image, ops, field("operation_params", `{"webp":{"speed":1}}`)}, nil, 422, `"speed"`, "operation_params"},
		{"quality 0", []part{image, ops, field("operation_params", `{"webp":{"quality":0}}`)}, nil, 422, "from 1 to 100", "operation_params"},
		{"quality 1", []part{image, ops, field("operation_params", `{"webp":{"quality":1}}`)}, nil, 202, "", ""},
		{"quality 100", []part{image, ops, field("operation_params", `{"webp":{"quality":100}}`)}, nil, 202, "", ""},
		{"quality 101", []part{image, ops, field("operation_params", `{"webp":{"quality":101}}`)}, nil, 422, "from 1 to 100", "operation_params"},
		{"parameters of another operation", []part{image, ops, field("operation_params", `{"avif":{"quality":1}}`)}, nil, 422, `"avif"`, "operation_params"},
		{"parameters that are none", []part{image, ops, field("operation_params", `{"webp":5}`)}, nil, 422, "webp is not a JSON object", "operation_params"},
		{"parameters cut off", []part{image, ops, field("operation_params", `{"webp":{}`)}, nil, 422, "not a JSON object of operation names", "operation_params"},
		{"parameters null", []part{image, ops, field("operation_params", `{"webp":null}`)}, nil, 202, "", ""},
		{"no parameters", []part{image, ops, field("operation_params", ` null `)}, nil, 202, "", ""},
		{"quality out of range", []part{image, ops, field("operation_params", `{"webp":{"quality":1e400}}`)}, nil, 422, "webp.quality is 1e400", "operation_params"},
		{"quality twice", []part{image, ops, field("operation_params", `{"webp":{"quality":1,"quality":2}}`)}, nil, 422, "webp.quality is there more than once", "operation_params"},
		{"parameters twice", []part{image, ops, field("operation_params", `{"webp":{},"webp":{}}`)}, nil, 422, "webp is there more than once", "operation_params"},
		{"parameters twice, written otherwise", []part{image, ops, field("operation_params", `{"webp":null,"\u0077ebp":{}}`)}, nil, 422, "webp is there more than once", "operation_params"},
		{"NUL in the file name", []part{file("a\x00b.png", "image/png", small), ops}, nil, 422, "The file name", "file"},
		{"keys that differ", []part{image, ops, field("idempotency_key", "a")}, http.Header{"Idempotency-Key": {"b"}}, 422, "differ", "idempotency_key"},
		{"keys that agree", []part{image, ops, field("idempotency_key", "agree")}, http.Header{"Idempotency-Key": {"agree"}}, 202, "", ""},
		{"two keys in headers", []part{image, ops}, http.Header{"Idempotency-Key": {"a", "a"}}, 422, "Idempotency-Key is sent more than once", "idempotency_key"},
		{"key of 255 bytes", []part{image, ops, field("idempotency_key", strings.Repeat("k", 255))}, nil, 202, "", ""},
		{"key of 256 bytes", []part{image, ops, field("idempotency_key", strings.Repeat("k", 256))}, nil, 422, "255 bytes", "idempotency_key"},
		{"webhook", []part{image, ops, field("webhook_url", "https://example.org/hook")}, nil, 202, "", ""},
		{"internal webhook", []part{image, ops, field("webhook_url", "internal://x")}, nil, 202, "", ""},
		{"webhook that is none", []part{image, ops, field("webhook_url", "ftp://x/y")}, nil, 422, "webhook_url", "webhook_url"},
		{"a field twice", []part{image, ops, ops}, nil, 422, "more than once", "operations"},
		{"a long field", []part{image, field("operations", `["webp"`+strings.Repeat(" ", 65536)+"]")}, nil, 422, "65536 bytes", "operations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			response, body, err := p.post(c.header, c.parts...)
			require.NoError(t, err)
			require.Equal(t, c.status, response.StatusCode, "%s", body)
			require.NotEmpty(t, response.Header.Get("X-Request-ID"))
			if c.status == http.StatusAccepted {
				require.Equal(t, "application/json", response.Header.Get("Content-Type"))
				require.NotEmpty(t, response.Header.Get(api.PositionHeader))
				return
			}
			require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
			var problem api.Problem
			require.NoError(t, json.Unmarshal(body, &problem))
			require.Contains(t, problem.Detail, c.detail)
			require.Equal(t, c.status, problem.Status)
			require.NotEmpty(t, problem.Title)
			require.NotEmpty(t, problem.Errors, "%s", body)
			require.Equal(t, c.field, problem.Errors[0].Field, "%s", body)
		})
	}
	t.Run("no form at all", func(t *testing.T) {
		response, err := http.Post(p.base+"/api/process", "application/json", strings.NewReader("{}"))
		require.NoError(t, err)
		response.Body.Close()
		require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode)
	})
	t.Run("request id", func(t *testing.T) {
		response, _, err := p.post(http.Header{"X-Request-Id": {"mine-1"}}, image, ops)
		require.NoError(t, err)
		require.Equal(t, "mine-1", response.Header.Get("X-Request-ID"))
	})
	t.Run("jobs", func(t *testing.T) { readsOf(t, p) })
	t.Run("keys", func(t *testing.T) { keysOf(t, p, small) })
	t.Run("broken pixels end the job with a reason", func(t *testing.T) {
		whole := pngOf(t, picture(200, 200))
		id := p.submit(file("cut.png", "image/png", whole[:len(whole)/2]), field("operations", `["webp","jpg"]`))
		job := p.ended(id)
		require.Equal(t, "FAILED", job.Status)
		require.Equal(t, "FAILED", *job.Outcome)
		require.NotNil(t, job.ErrorMessage)
		require.Equal(t, "INPUT", job.OperationResults["webp"].Error.Kind)
		require.Empty(t, job.ResultURLs)
	})
}

func readsOf(t *testing.T, p *program) {
	nobody := "/api/jobs/" + uuid.NewString()
	for _, path := range []string{"/api/jobs?limit=1&status=FAILED%", "/api/jobs?limit=1;status=FAILED", "/api/jobs/totals?%zz", "/api/usage?from=2026-11-01&to=%", nobody + "?wait=1%", nobody + "/events?after=%",
		"/api/dead-letters?limit=1&%"} {
		var problem api.Problem
		require.Equal(t, http.StatusUnprocessableEntity, p.ask(http.MethodGet, path, nil, &problem), path)
		require.Equal(t, "query", problem.Errors[0].Field, path)
		require.Contains(t, problem.Detail, "the query string cannot be read", path)
	}
	require.Equal(t, http.StatusOK, p.demand(http.MethodGet, "/api/livez?%").status, "it reads no query")
	for path, allowed := range map[string]string{"/api/jobs": "GET, HEAD", "/api/process": "POST", nobody: "GET, HEAD, DELETE", "/": "GET, HEAD", "/api/session": "GET, HEAD, POST, DELETE"} {
		refused := p.demand(http.MethodPatch, path)
		require.Equal(t, http.StatusMethodNotAllowed, refused.status, path)
		require.Equal(t, allowed, refused.header.Get("Allow"), path)
	}
	for path, want := range map[string]int{
		"/api/jobs/no-uuid": 422, "/api/jobs/" + uuid.NewString(): 404, "/api/jobs/" + uuid.NewString() + "?after=x": 422,
		"/api/jobs/" + uuid.NewString() + "?wait=61": 422, "/api/jobs/" + uuid.NewString() + "?wait=-1": 422, "/api/nothing": 404,
		"/api/process": 405, "/": 200, "/docs": 200, "/openapi.json": 200, "/app.js": 200, "/vendor/scalar.js": 200,
		"/api/livez": 200, "/api/readyz": 200, "/api/health": 200,
	} {
		response, err := http.Get(p.base + path)
		require.NoError(t, err)
		var problem api.Problem
		if want >= 400 {
			require.NoError(t, json.NewDecoder(response.Body).Decode(&problem), path)
			require.NotEmpty(t, problem.Detail, path)
		}
		if want == http.StatusNotFound && strings.HasPrefix(path, "/api/jobs/") {
			require.Equal(t, fmt.Sprintf("Job %s not found", strings.TrimPrefix(path, "/api/jobs/")), problem.Detail)
		}
		response.Body.Close()
		require.Equal(t, want, response.StatusCode, path)
	}
}

// keysOf: one key is one job, however it is used.
func keysOf(t *testing.T, p *program, picture1 []byte) {
	image, ops := file("a.png", "image/png", picture1), field("operations", `["webp"]`)
	key := field("idempotency_key", uuid.NewString())
	const requests = 20
	answers := make([]string, requests)
	var all sync.WaitGroup
	for i := range requests {
		all.Go(func() {
			response, body, err := p.post(nil, image, ops, key)
			if err == nil {
				answers[i] = response.Status + string(body)
			}
		})
	}
	all.Wait()
	for _, answer := range answers {
		require.Equal(t, answers[0], answer)
		require.Contains(t, answer, "202")
	}
	for name, parts := range map[string][]part{
		"operations": {image, field("operations", `["avif"]`), key},
		"file":       {file("a.png", "image/png", pngOf(t, picture(9, 9))), ops, key},
		"webhook":    {image, ops, key, field("webhook_url", "https://example.org/")},
	} {
		response, body, err := p.post(nil, parts...)
		require.NoError(t, err)
		require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode, name)
		require.Contains(t, string(body), "idempotency_key", name)
	}
}
