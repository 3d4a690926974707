package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/apikeys"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
)

// newKey makes an API key with the program's configuration, and returns it with its id.
func (p *program) newKey(tenant, scopes string, more ...string) (key, id string) {
	p.t.Helper()
	out, about, status := p.command(append([]string{"keys", "create", "--tenant", tenant, "--scope", scopes, "--name", tenant + "'s"}, more...)...)
	require.Zero(p.t, status, about)
	key = strings.TrimSpace(out)
	shown, err := apikeys.ParseKey(key)
	require.NoError(p.t, err, "standard output has the key and nothing else: %s", out)
	require.Contains(p.t, about, shown.ID)
	require.NotContains(p.t, about, key)
	return key, shown.ID
}

// demand asks with headers, given as names and values in turn.
func (p *program) demand(method, path string, header ...string) answer {
	p.t.Helper()
	request, err := http.NewRequestWithContext(within(p.t), method, p.base+path, nil)
	require.NoError(p.t, err)
	return p.answered(request, header...)
}

func (p *program) answered(request *http.Request, header ...string) answer {
	p.t.Helper()
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(p.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(p.t, err)
	a := answer{status: response.StatusCode, header: response.Header, body: body}
	if a.status == http.StatusAccepted {
		var accepted api.Accepted
		require.NoError(p.t, json.Unmarshal(body, &accepted))
		a.accepted = accepted.JobID
	}
	return a
}

// submitAs posts a form with headers.
func (p *program) submitAs(key string, parts ...part) answer {
	p.t.Helper()
	request, err := p.form(parts...)
	require.NoError(p.t, err)
	return p.answered(request.WithContext(within(p.t)), "Authorization", "Bearer "+key)
}

// endedAs waits for the end of a job of a key's tenant.
func (p *program) endedAs(key, id string) {
	p.t.Helper()
	eventually(p.t, "end of job "+id, func() error {
		var job api.Job
		a := p.demand(http.MethodGet, "/api/jobs/"+id+"?wait=1", "X-API-Key", key)
		if a.status != http.StatusOK || json.Unmarshal(a.body, &job) != nil || job.Outcome == nil {
			return fmt.Errorf("%d: %s", a.status, a.body)
		}
		return nil
	})
}

const everyScope = "submit,read,operate"

// TestAPIKeys: one program that asks for keys, and what it lets whom do.
func TestAPIKeys(t *testing.T) {
	variables := embeddedEnv(t)
	variables["API_AUTH"], variables["CORS_ORIGINS"] = "keys", "https://shop.example,http://localhost:3000"
	variables["API_KEY_REFRESH_INTERVAL"] = "100ms"
	p := run(t, variables)
	require.Contains(t, p.log.String(), "it asks for API keys")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *program)
	}{
		{"commands", keyCommands}, {"who gets in", whoGetsIn}, {"sessions", sessions}, {"other tenants", otherTenants},
		{"limits", requestLimits}, {"cross origin", crossOrigins}, {"the page", signedInPage}, {"schemathesis", schemathesis},
	} {
		t.Run(test.name, func(t *testing.T) {
			own := *p
			own.t = t
			test.run(t, &own)
		})
	}
}

func keyCommands(t *testing.T, p *program) {
	key, id := p.newKey("commands", "submit,read", "--expires", "720h")
	again, other := p.newKey("commands", "read")
	require.NotEqual(t, key, again)
	out, _, status := p.command("keys", "list", "--tenant", "commands")
	require.Zero(t, status)
	require.Regexp(t, id+` +commands +commands's +submit,read +VALID`, out)
	require.NotContains(t, out, key[len("pixtools_")+len(id):], "the list has no secret")
	_, complaints, status := p.command("keys", "create", "--tenant", "no/slash", "--scope", "write", "--name", "")
	require.Equal(t, 1, status)
	for _, flag := range []string{"--tenant", "--scope", "--name"} {
		require.Contains(t, complaints, flag, "every fault at once")
	}
	require.Equal(t, http.StatusOK, p.demand(http.MethodGet, "/api/jobs", "X-API-Key", key).status, "a key that was made a moment ago")

	picture := saved(t, "a.png", pngOf(t, picture(8, 8)))
	submitted, complaints, status := p.with("PIXTOOLS_API_KEY="+key).command("submit", "--server", p.base, "--ops", "webp", "--wait", picture)
	require.Zero(t, status, complaints)
	require.NotEmpty(t, submitted)
	submitted, complaints, status = p.with("PIXTOOLS_API_KEY="+key).command("submit", "--server", p.base, "--ops", "webp", "--wait", "--direct", picture)
	require.Zero(t, status, complaints)
	require.Contains(t, submitted, "SUCCEEDED")
	_, complaints, status = p.command("submit", "--server", p.base, "--ops", "webp", picture)
	require.NotZero(t, status)
	require.Contains(t, complaints, "PIXTOOLS_API_KEY", "what to do")

	// By its id, or by the key that was found somewhere.
	for _, name := range []string{other, key} {
		out, complaints, status := p.command("keys", "revoke", name)
		require.Zero(t, status, complaints)
		require.NotContains(t, out, key)
	}
	for _, gone := range []string{key, again} {
		eventually(t, "the refusal of a revoked key", func() error {
			a := p.demand(http.MethodGet, "/api/jobs", "X-API-Key", gone)
			if a.status != http.StatusUnauthorized || !strings.Contains(string(a.body), "was revoked") {
				return fmt.Errorf("%d: %s", a.status, a.body)
			}
			return nil
		})
	}
	for _, name := range []string{"aaaaaaaaaaaaaaaa", "no-id"} {
		_, _, status := p.command("keys", "revoke", name)
		require.Equal(t, 1, status, name)
	}
	out, complaints, status = p.with("PIXTOOLS_API_KEY="+again).command("job", "history", uuid.NewString(), "--server", p.base)
	require.Equal(t, 1, status, out)
	require.Contains(t, complaints, "was revoked", "the tools send PIXTOOLS_API_KEY")
}

func whoGetsIn(t *testing.T, p *program) {
	reads, _ := p.newKey("in", "read")
	submits, _ := p.newKey("in", "submit")
	bearer, insufficient := `Bearer realm="PixTools"`, `Bearer realm="PixTools", error="insufficient_scope", scope="%s"`
	for _, c := range []struct {
		method, path string
		header       []string
		status       int
		challenge    string
	}{
		{"GET", "/api/jobs", nil, 401, bearer},
		{"GET", "/api/jobs", []string{"Authorization", "Basic YTpi"}, 401, bearer},
		{"GET", "/api/jobs", []string{"Authorization", "Bearer " + reads + "a"}, 401, bearer + `, error="invalid_token"`},
		{"GET", "/api/jobs", []string{"X-API-Key", strings.ToUpper(reads)}, 401, bearer + `, error="invalid_token"`},
		{"GET", "/api/jobs", []string{"Authorization", "Bearer " + reads, "X-API-Key", submits}, 401, bearer + `, error="invalid_request"`},
		{"GET", "/api/jobs", []string{"Authorization", "Bearer " + reads, "X-API-Key", reads}, 200, ""},
		{"GET", "/api/jobs", []string{"Authorization", "bearer " + reads}, 200, ""},
		{"HEAD", "/api/jobs", nil, 401, bearer},
		{"HEAD", "/api/jobs", []string{"X-API-Key", reads}, 200, ""},
		{"GET", "/api/jobs", []string{"X-API-Key", submits}, 403, fmt.Sprintf(insufficient, "read")},
		{"POST", "/api/process", []string{"X-API-Key", reads}, 403, fmt.Sprintf(insufficient, "submit")},
		{"GET", "/api/activity", []string{"X-API-Key", reads}, 403, fmt.Sprintf(insufficient, "operate")},
		{"GET", "/api/health", nil, 200, ""}, {"GET", "/api/livez", nil, 200, ""}, {"GET", "/api/readyz", nil, 200, ""},
		{"GET", "/", nil, 200, ""}, {"GET", "/docs", nil, 200, ""}, {"GET", "/openapi.json", nil, 200, ""}, {"GET", "/app.js", nil, 200, ""},
		{"GET", "/api/nothing", nil, 404, ""}, {"PUT", "/api/jobs", nil, 405, ""},
	} {
		a := p.demand(c.method, c.path, c.header...)
		require.Equal(t, c.status, a.status, "%s %s %v: %s", c.method, c.path, c.header, a.body)
		require.Equal(t, c.challenge, a.header.Get("WWW-Authenticate"), "%s %s %v", c.method, c.path, c.header)
		if a.status >= 400 && c.method != http.MethodHead {
			var problem api.Problem
			require.NoError(t, json.Unmarshal(a.body, &problem))
			require.NotEmpty(t, problem.Detail)
			require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
			require.NotContains(t, string(a.body), reads)
		}
	}
	require.Contains(t, string(p.demand(http.MethodGet, "/settings.json").body), `"authentication":"keys"`)
	image, ops := file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`)
	require.Equal(t, http.StatusAccepted, p.submitAs(submits, image, ops).status)
	require.Equal(t, http.StatusUnauthorized, p.submitAs("", image, ops).status)
}

func sessions(t *testing.T, p *program) {
	key, id := p.newKey("sessions", "submit,read")
	whoami := func(header ...string) (s api.Session) {
		a := p.demand(http.MethodGet, "/api/session", header...)
		require.Equal(t, http.StatusOK, a.status, "%s", a.body)
		require.NoError(t, json.Unmarshal(a.body, &s))
		return s
	}
	require.Equal(t, api.Session{Authentication: "keys", Scopes: []string{}}, whoami())
	want := api.Session{Authentication: "keys", SignedIn: true, KeyID: id, Name: "sessions's", Tenant: "sessions", Scopes: []string{"submit", "read"}}
	require.Equal(t, want, whoami("X-API-Key", key))
	require.Equal(t, http.StatusUnauthorized, p.demand(http.MethodPost, "/api/session").status)

	a := p.demand(http.MethodPost, "/api/session", "Authorization", "Bearer "+key)
	require.Equal(t, http.StatusOK, a.status, "%s", a.body)
	set := a.header.Get("Set-Cookie")
	require.Regexp(t, `^pixtools_session=\S+; Path=/api/; Max-Age=43200; HttpOnly; SameSite=Strict$`, set)
	cookie, _, _ := strings.Cut(set, ";")
	value := strings.TrimPrefix(cookie, "pixtools_session=")
	require.NotContains(t, value, key[len("pixtools_")+len(id)+1:], "the cookie holds no key")
	require.Equal(t, want, whoami("Cookie", cookie))
	require.Equal(t, http.StatusOK, p.demand(http.MethodGet, "/api/jobs", "Cookie", cookie).status)
	require.Equal(t, http.StatusUnauthorized, p.demand(http.MethodGet, "/api/jobs", "Authorization", "Bearer pixtools_"+value).status, "a session is no key")
	require.Equal(t, http.StatusUnauthorized, p.demand(http.MethodPost, "/api/session", "Cookie", cookie).status, "a session makes no session")
	require.Equal(t, http.StatusUnauthorized, p.demand(http.MethodGet, "/api/jobs", "Cookie", cookie+"a").status)

	// What changes something has to come from our own page, where a cookie is all it shows.
	path := "/api/jobs/" + uuid.NewString() + "/cancel"
	for _, c := range []struct {
		header []string
		status int
	}{
		{[]string{"Cookie", cookie, "Origin", p.base}, 404},
		{[]string{"Cookie", cookie, "Sec-Fetch-Site", "same-origin"}, 404},
		{[]string{"Cookie", cookie, "Origin", "https://evil.example"}, 403},
		{[]string{"Cookie", cookie, "Origin", "https://shop.example"}, 403}, // with a key only
		{[]string{"Cookie", cookie, "Sec-Fetch-Site", "cross-site"}, 403},
		{[]string{"X-API-Key", key, "Origin", "https://shop.example"}, 404},
	} {
		require.Equal(t, c.status, p.demand(http.MethodPost, path, c.header...).status, "%v", c.header)
	}
	require.Equal(t, http.StatusForbidden, p.demand(http.MethodDelete, "/api/session", "Cookie", cookie, "Origin", "https://evil.example").status)
	out := p.demand(http.MethodDelete, "/api/session", "Cookie", cookie, "Origin", p.base)
	require.Equal(t, http.StatusOK, out.status)
	require.Contains(t, out.header.Get("Set-Cookie"), "Max-Age=0")

	_, complaints, status := p.command("keys", "revoke", id)
	require.Zero(t, status, complaints)
	eventually(t, "the end of the session with its key", func() error {
		a := p.demand(http.MethodGet, "/api/session", "Cookie", cookie)
		if !strings.Contains(string(a.body), `"signed_in":false`) || !strings.Contains(a.header.Get("Set-Cookie"), "Max-Age=0") {
			return fmt.Errorf("%s", a.body)
		}
		return nil
	})
}

// otherTenants goes over every route of the OpenAPI document: another tenant's job is what a job
// is that nobody has.
func otherTenants(t *testing.T, p *program) {
	mine, _ := p.newKey("mine", "submit,read")
	others, _ := p.newKey("others", "submit,read")
	operator, _ := p.newKey("operators", "operate")
	thirds, _ := p.newKey("thirds", "submit,read")
	image := file("a.png", "image/png", pngOf(t, picture(8, 8)))
	submitted := p.submitAs(mine, image, field("operations", `["webp"]`), field("idempotency_key", "same"))
	require.Equal(t, http.StatusAccepted, submitted.status, "%s", submitted.body)
	id, position := submitted.accepted, submitted.header.Get("Pixtools-Position")
	p.endedAs(mine, id)
	second := p.submitAs(mine, image, field("operations", `["jpg"]`)).accepted
	p.endedAs(mine, second)
	// In the same partition, since a position is of one.
	nobodys := uuid.NewString()
	for kafka.PartitionOf([]byte(nobodys), 12) != kafka.PartitionOf([]byte(id), 12) {
		nobodys = uuid.NewString()
	}
	today, now := time.Now().UTC().Format(time.DateOnly), time.Now().UTC().Format(time.RFC3339Nano)
	get := func(key, path string, into any) {
		t.Helper()
		a := p.demand(http.MethodGet, path, "X-API-Key", key)
		require.Equal(t, http.StatusOK, a.status, "%s: %s", path, a.body)
		require.NoError(t, json.Unmarshal(a.body, into))
	}
	ofAJob := func(t *testing.T, method, path string) {
		queries := []string{""}
		if method == http.MethodGet {
			queries = []string{"", "?wait=1", "?after=" + position, "?at=" + position, "?at=" + now}
		}
		for _, query := range queries {
			told := map[string]answer{}
			for _, asked := range []string{id, nobodys} {
				a := p.demand(method, strings.Replace(path, "{job_id}", asked, 1)+query, "X-API-Key", others)
				require.Equal(t, http.StatusNotFound, a.status, "%s: %s", query, a.body)
				for _, own := range []string{"X-Request-Id", "Date", "Ratelimit"} {
					a.header.Del(own)
				}
				a.body = []byte(strings.ReplaceAll(string(a.body), asked, "ID"))
				a.header.Del("Content-Length")
				told[asked] = a
			}
			require.Equal(t, told[nobodys], told[id], query)
		}
	}
	listed := func(t *testing.T, _, _ string) {
		for _, query := range []string{"", "?q=" + id, "?after=" + position, "?at=" + now, "?since=2000-01-01T00:00:00Z"} {
			var page api.JobPage
			get(others, "/api/jobs"+query, &page)
			require.Empty(t, page.Jobs, query)
			var totals api.JobTotals
			get(others, "/api/jobs/totals"+query, &totals)
			require.Zero(t, totals.Jobs, query)
			require.Empty(t, totals.Operations, query)
		}
		var page api.JobPage
		get(mine, "/api/jobs?limit=1", &page)
		require.NotNil(t, page.Next)
		require.Equal(t, http.StatusUnprocessableEntity, p.demand(http.MethodGet, "/api/jobs?limit=1&cursor="+*page.Next, "X-API-Key", others).status, "another tenant's place in a list")
	}
	used := func(t *testing.T, _, _ string) {
		var usage api.Usage
		get(mine, "/api/usage?from="+today+"&to="+today, &usage)
		require.Positive(t, usage.Total.Operations)
		get(others, "/api/usage?from="+today+"&to="+today, &usage)
		require.Zero(t, usage.Total)
	}
	sameKey := func(t *testing.T, _, _ string) {
		conflict := p.submitAs(mine, image, field("operations", `["avif"]`), field("idempotency_key", "same"))
		require.Equal(t, http.StatusUnprocessableEntity, conflict.status, "the test's own assumption")
		a := p.submitAs(thirds, image, field("operations", `["avif"]`), field("idempotency_key", "same"))
		require.Equal(t, http.StatusAccepted, a.status, "%s", a.body)
		require.NotEqual(t, id, a.accepted)
		p.endedAs(thirds, a.accepted)
		require.Equal(t, http.StatusNotFound, p.demand(http.MethodGet, "/api/jobs/"+a.accepted, "X-API-Key", mine).status)
	}
	uploaded := func(t *testing.T, _, path string) {
		request, err := http.NewRequestWithContext(within(t), http.MethodPost, p.base+path, strings.NewReader(`{"content_type":"image/png","bytes":100}`))
		require.NoError(t, err)
		a := p.answered(request, "X-API-Key", mine)
		require.Equal(t, http.StatusOK, a.status, "%s", a.body)
		var signed api.Upload
		require.NoError(t, json.Unmarshal(a.body, &signed))
		told := map[string]string{}
		for _, token := range []string{signed.Upload, "aaaa"} {
			a := p.submitAs(thirds, field("upload", token), field("operations", `["webp"]`))
			require.Equal(t, http.StatusNotFound, a.status, "%s", a.body)
			told[token] = string(a.body)
		}
		require.Equal(t, told["aaaa"], told[signed.Upload])
		require.NotEqual(t, told["aaaa"], string(p.submitAs(mine, field("upload", signed.Upload), field("operations", `["webp"]`)).body), "the test's own assumption")
	}
	// Dead letters, queues and activity are the installation's, and say so.
	ofOperators := func(t *testing.T, method, path string) {
		path = strings.Replace(path, "{id}", nobodys, 1)
		for _, key := range []string{mine, others} {
			require.Equal(t, http.StatusForbidden, p.demand(method, path, "X-API-Key", key).status)
		}
		require.NotContains(t, []int{401, 403}, p.demand(method, path, "X-API-Key", operator).status)
	}
	nobodysBusiness := func(*testing.T, string, string) {} // it tells nothing of jobs
	routes := map[string]func(t *testing.T, method, path string){
		"GET /api/jobs/{job_id}": ofAJob, "GET /api/jobs/{job_id}/events": ofAJob, "GET /api/jobs/{job_id}/stream": ofAJob,
		"POST /api/jobs/{job_id}/cancel": ofAJob, "POST /api/jobs/{job_id}/retry": ofAJob,
		"DELETE /api/jobs/{job_id}": ofAJob, "POST /api/jobs/{job_id}/webhook": ofAJob,
		"GET /api/jobs": listed, "GET /api/jobs/totals": listed, "GET /api/usage": used, "POST /api/process": sameKey, "POST /api/uploads": uploaded,
		"GET /api/dead-letters": ofOperators, "GET /api/dead-letters/{id}": ofOperators, "POST /api/dead-letters/redrive": ofOperators,
		"POST /api/dead-letters/discard": ofOperators, "GET /api/queues": ofOperators, "GET /api/activity": ofOperators,
		"GET /api/lag": ofOperators, "GET /api/read-models": ofOperators,
		"GET /api/session": nobodysBusiness, "POST /api/session": nobodysBusiness, "DELETE /api/session": nobodysBusiness,
		"GET /api/health": nobodysBusiness, "GET /api/livez": nobodysBusiness, "GET /api/readyz": nobodysBusiness,
	}
	doc, err := openapi3.NewLoader().LoadFromData(p.demand(http.MethodGet, "/openapi.json").body)
	require.NoError(t, err)
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			test := routes[method+" "+path]
			require.NotNil(t, test, "%s %s is new: say here what it answers to another tenant", method, path)
			t.Run(method+" "+path, func(t *testing.T) { test(t, method, path) })
			delete(routes, method+" "+path)
		}
	}
	require.Empty(t, routes, "these are in the OpenAPI document no more")
	require.Equal(t, http.StatusForbidden, p.demand(http.MethodGet, "/api/jobs/"+id, "X-API-Key", operator).status, "operators read no tenant's jobs")
}

func requestLimits(t *testing.T, p *program) {
	key, id := p.newKey("limits", "submit,read", "--reads-per-minute", "2", "--submits-per-minute", "3")
	beside, _ := p.newKey("limits", "submit,read")
	allowed := 0
	var refused answer
	eventually(t, "a request too many", func() error {
		refused = p.demand(http.MethodGet, "/api/jobs", "X-API-Key", key)
		require.Equal(t, `"reads";q=2;w=60`, refused.header.Get("RateLimit-Policy"))
		require.Regexp(t, `^"reads";r=\d+;t=\d+$`, refused.header.Get("RateLimit"))
		if refused.status == http.StatusOK {
			allowed++
			return fmt.Errorf("%d were allowed", allowed)
		}
		return nil
	})
	require.GreaterOrEqual(t, allowed, 2)
	require.Equal(t, http.StatusTooManyRequests, refused.status)
	require.Regexp(t, `^[1-9]\d*$`, refused.header.Get("Retry-After"))
	require.Equal(t, `"reads";r=0;t=`+refused.header.Get("Retry-After"), refused.header.Get("RateLimit"))
	require.Contains(t, string(refused.body), id)

	other := p.demand(http.MethodGet, "/api/jobs", "X-API-Key", beside)
	require.Equal(t, http.StatusOK, other.status, "each key has its own")
	require.Equal(t, `"reads";q=12000;w=60`, other.header.Get("RateLimit-Policy"))
	image, ops, name := file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`), field("idempotency_key", "limits")
	first, again := p.submitAs(key, image, ops, name), p.submitAs(key, image, ops, name)
	require.Equal(t, http.StatusAccepted, first.status, "what changes something is counted apart: %s", first.body)
	require.Equal(t, string(first.body), string(again.body), "a repeat has an equal body")
	require.NotEqual(t, first.header.Get("RateLimit"), "")
	require.Equal(t, `"submits";q=3;w=60`, again.header.Get("RateLimit-Policy"))
	require.Equal(t, http.StatusOK, p.demand(http.MethodGet, "/api/session", "X-API-Key", key).status)
}

func crossOrigins(t *testing.T, p *program) {
	key, _ := p.newKey("origins", "read")
	for origin, allowed := range map[string]bool{"https://shop.example": true, "http://localhost:3000": true, "https://shop.example.evil": false, "http://shop.example": false, "null": false} {
		ask := p.demand(http.MethodOptions, "/api/process", "Origin", origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type,idempotency-key")
		got := p.demand(http.MethodGet, "/api/jobs", "Origin", origin, "X-API-Key", key)
		require.Equal(t, http.StatusOK, got.status)
		if !allowed {
			require.Empty(t, ask.header.Get("Access-Control-Allow-Origin"), origin)
			require.Empty(t, got.header.Get("Access-Control-Allow-Origin"), origin)
			continue
		}
		require.Equal(t, http.StatusNoContent, ask.status)
		require.Equal(t, origin, ask.header.Get("Access-Control-Allow-Origin"))
		require.Equal(t, "authorization,content-type,idempotency-key", strings.ToLower(ask.header.Get("Access-Control-Allow-Headers")))
		require.Equal(t, "600", ask.header.Get("Access-Control-Max-Age"))
		require.Equal(t, origin, got.header.Get("Access-Control-Allow-Origin"))
		require.Empty(t, got.header.Get("Access-Control-Allow-Credentials"), "cookies are for our own page")
		for _, name := range []string{"Pixtools-Position", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-ID"} {
			require.Contains(t, strings.ToLower(got.header.Get("Access-Control-Expose-Headers")), strings.ToLower(name))
		}
		refused := p.demand(http.MethodGet, "/api/jobs", "Origin", origin)
		require.Equal(t, http.StatusUnauthorized, refused.status)
		require.Equal(t, origin, refused.header.Get("Access-Control-Allow-Origin"), "a page can read why")
	}
}

// aRefusal are the browser's own lines about 401, 403 and 404, which the page takes as they are meant.
var aRefusal = regexp.MustCompile(`^Failed to load resource: the server responded with a status of 40[134]`)

// signedInPage: with a key, the page does what it does without; and no script can read the key.
func signedInPage(t *testing.T, p *program) {
	key, _ := p.newKey("paged", "submit,read")
	other, _ := p.newKey("neighbour", "read")
	b := openTab(t, p, "/")
	b.excused = aRefusal
	signIn := func(key string) {
		b.until(`document.getElementById("key")`)
		b.until(fmt.Sprintf(`(e => { e.value = %q; return true })(document.getElementById("key"))`, key))
		b.click(".sign-in button")
	}
	b.accessible("sign in")
	b.size(360, 740)
	b.fits("sign in")
	b.size(1280, 900)
	signIn(key + "a")
	b.shows("#message", "This API key is not valid")
	b.accessible("sign in, refused")
	signIn(key)
	b.shows("#session", "paged")
	b.shows("#session", "submit, read")
	require.Empty(t, evaluate[string](b, "document.cookie"))
	b.choose(saved(t, "a.png", pngOf(t, picture(90, 60))))
	b.want("webp")
	id := b.start()
	b.state("#status .badge", "SUCCEEDED")
	b.click("[data-operation=webp] .download")
	checkPicture(t, b.downloaded("pixtools_webp_a.webp"), "webp", 90, 60)
	b.mu.Lock()
	streamed := strings.Contains(strings.Join(b.requests, " "), "/api/jobs/"+id+"/stream")
	b.mu.Unlock()
	require.True(t, streamed, "a stream has the cookie, and needs no header")
	require.NotContains(t, evaluate[string](b, "JSON.stringify(localStorage) + JSON.stringify(sessionStorage)"), key)
	b.accessible("a job, signed in")
	require.False(t, evaluate[bool](b, `document.querySelector("a[href='#/operations']").checkVisibility()`), "operators' views are for operators")
	b.goTo("/operations")
	b.shows(".notice", "This needs the scope operate")
	b.size(360, 740)
	b.fits("signed in")
	b.size(1280, 900)

	b.click("#session button")
	signIn(other)
	b.shows("#session", "neighbour")
	b.goTo("/history")
	require.NotContains(t, b.text("main"), "a.png", "another tenant's jobs of this browser")
	b.goTo("/jobs/" + id)
	b.shows(".notice", "There is no such job")
	b.click("#session button")
	b.until(`document.getElementById("key")`)
	require.Equal(t, http.StatusUnauthorized, evaluate[int](b, `fetch("/api/jobs").then(r => r.status)`), "signed out")
}

// schemathesis sends what the OpenAPI document allows and what it does not: no answer is 5xx, and
// none is other than described, with a key and without.
func schemathesis(t *testing.T, p *program) {
	key, _ := p.newKey("fuzz", everyScope, "--reads-per-minute", "0", "--submits-per-minute", "0")
	id := p.submitAs(key, file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`)).accepted
	p.endedAs(key, id)
	dir := t.TempDir()
	settings := filepath.Join(dir, "schemathesis.toml")
	require.NoError(t, os.WriteFile(settings, fmt.Appendf(nil, "[parameters]\n\"path.job_id\" = %q\n", id), 0o600))
	// What is not asked: whether all that the document allows is accepted, and all else refused. It
	// says less than the checks do, of operations and times for instance.
	common := []string{"run", p.base + "/openapi.json", "--seed", "1", "--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink", "--warnings", "off",
		"--exclude-checks", "positive_data_acceptance,negative_data_rejection", "--request-timeout", "60", "--suppress-health-check", "all"}
	for name, more := range map[string][]string{
		// A stream of a job that is there has no end; "other tenants" has its refusals.
		"with a key":    {"--max-examples", "5", "-H", "Authorization: Bearer " + key, "--exclude-path", "/api/jobs/{job_id}/stream"},
		"without a key": {"--max-examples", "2"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(within(t), testenv.Schemathesis(t), append(append([]string{"--config-file", settings}, common...), more...)...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Contains(t, string(out), "generated", "%s", out)
		})
	}
}

// TestAPIKeysOfTwoProcesses: API processes share the limits and hear of revoked keys; and they go on
// without PostgreSQL and without Redis.
func TestAPIKeysOfTwoProcesses(t *testing.T) {
	redis, err := testenv.StartRedis()
	require.NoError(t, err)
	t.Cleanup(redis.Stop)
	postgres, err := testenv.StartPostgres()
	require.NoError(t, err)
	t.Cleanup(postgres.Stop)
	variables := realEnv(t)
	variables["REDIS_URL"], variables["DATABASE_URL"] = "redis://"+redis.Addr, postgres.URL
	variables["API_AUTH"], variables["HOST"] = "", "127.0.0.1" // real servers: keys are asked for by themselves
	variables["API_KEY_REFRESH_INTERVAL"] = "100ms"
	one := run(t, variables)
	two := run(t, variables, "--roles=api")
	status := func(p *program, key string) int {
		t.Helper()
		return p.demand(http.MethodGet, "/api/jobs", "X-API-Key", key).status
	}
	require.Equal(t, http.StatusUnauthorized, status(one, ""))

	limited, id := one.newKey("shared", "read", "--reads-per-minute", "1")
	require.Equal(t, http.StatusOK, status(one, limited))
	require.Equal(t, http.StatusTooManyRequests, status(two, limited))
	eventually(t, "when the key was used", func() error {
		if out, _, _ := one.command("keys", "list", "--json"); !regexp.MustCompile(`"id":"` + id + `"[^}]*"last_used_at":"\d{4}-\d\d-\d\dT\d\d:00:00`).MatchString(out) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})

	writing, _ := one.newKey("shared", "submit,read")
	cut := jpegOf(t, picture(300, 200))
	failing := two.submitAs(writing, file("a.jpg", "image/jpeg", cut[:len(cut)/2]), field("operations", `["webp"]`)).accepted
	gone, id := one.newKey("shared", "read")
	streams := map[string]func() (news, error){}
	for _, key := range []string{gone, writing} {
		next := two.followAs(key, failing)
		eventually(t, "the job's end on its stream", func() error {
			n, err := next()
			require.NoError(t, err)
			var job api.Job
			require.NoError(t, json.Unmarshal([]byte(n.data), &job))
			if job.Outcome == nil {
				return errors.New(n.data)
			}
			return nil
		})
		streams[key] = next
	}
	for _, p := range []*program{one, two} {
		require.Equal(t, http.StatusOK, status(p, gone))
	}
	_, complaints, failed := one.command("keys", "revoke", id)
	require.Zero(t, failed, complaints)
	for _, p := range []*program{one, two} {
		eventually(t, "the refusal of a revoked key", func() error {
			if got := status(p, gone); got != http.StatusUnauthorized {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
	}

	require.Equal(t, http.StatusAccepted, two.demand(http.MethodPost, "/api/jobs/"+failing+"/retry", "X-API-Key", writing).status)
	_, err = streams[writing]()
	require.NoError(t, err)
	_, err = streams[gone]()
	require.ErrorIs(t, err, io.EOF, "an open stream has no news for a revoked key")

	known, knownID := one.newKey("shared", "submit,read")
	unknown := strings.Replace(known, known[9:25], "aaaaaaaaaaaaaaaa", 1)
	image, ops := file("a.png", "image/png", pngOf(t, picture(8, 8))), field("operations", `["webp"]`)
	require.Equal(t, http.StatusAccepted, two.submitAs(known, image, ops).status)
	fresh, freshID := one.newKey("new-tenant", "submit") // of a tenant that has never sent anything
	eventually(t, "the new tenant's keys in memory", func() error {
		if a := two.submitAs(fresh, image, ops); a.status != http.StatusAccepted {
			return fmt.Errorf("%d: %s", a.status, a.body)
		}
		return nil
	})
	// A key that is asked for in PostgreSQL is not put into memory: the next reading does that.
	// A process tells of a key's use after it has read the keys. So when it has told of one key,
	// and then of another one that was made afterwards, it has read them with the first among them.
	told := func(id string) {
		eventually(t, "word of the key's use", func() error {
			if out, _, _ := one.command("keys", "list", "--json"); !regexp.MustCompile(`"id":"` + id + `"[^}]*"last_used_at":"\d`).MatchString(out) {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}
	told(knownID)
	told(freshID)
	last, lastID := one.newKey("new-tenant", "submit")
	require.Equal(t, http.StatusAccepted, two.submitAs(last, image, ops).status)
	told(lastID)
	require.NoError(t, postgres.Kill())
	require.NoError(t, redis.Kill())
	for _, key := range []string{known, fresh} {
		eventually(t, "a submission without PostgreSQL and Redis", func() error {
			a := two.submitAs(key, image, ops)
			if a.status != http.StatusAccepted || a.header.Get("RateLimit") != "" {
				return fmt.Errorf("%d: %s %s", a.status, a.body, a.header)
			}
			return nil
		})
	}
	a := two.submitAs(gone, image, ops)
	require.Equal(t, http.StatusServiceUnavailable, a.status, "nobody can tell what became of a key that is not in memory: %s", a.body)
	require.NotEmpty(t, a.header.Get("Retry-After"))
	require.Equal(t, http.StatusUnauthorized, two.submitAs(unknown, image, ops).status, "its checksum tells that it is none")
}

// TestAuthenticationByDefault: keys are asked for, but for on a machine where parts run embedded.
func TestAuthenticationByDefault(t *testing.T) {
	local, network := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv4zero}
	real := config{RedisURL: "redis://r"}
	real.Kafka.Brokers, real.Read.URL, real.Blob.Endpoint = []string{"k:9092"}, "postgres://p", "http://s"
	part := real
	part.RedisURL = ""
	for _, c := range []struct {
		cfg     config
		address net.Addr
		set     string
		want    string
	}{
		{config{}, local, "", "off"}, {config{}, &net.TCPAddr{IP: net.IPv6loopback}, "", "off"}, {part, local, "", "off"},
		{config{}, network, "", "keys"}, {real, local, "", "keys"}, {real, network, "", "keys"},
		{config{}, local, "keys", "keys"}, {real, network, "off", "off"},
	} {
		c.cfg.API.Auth.Mode = c.set
		require.Equal(t, c.want, authentication(c.cfg, c.address), "%+v", c)
	}
}

// TestNoKeysOnALaptop: the start, the page and its settings say that nobody is asked for a key.
func TestNoKeysOnALaptop(t *testing.T) {
	variables := embeddedEnv(t)
	variables["API_AUTH"] = ""
	p := run(t, variables)
	eventually(t, "the line of the start", func() error {
		if !strings.Contains(p.log.String(), "it asks for no API keys: whoever is on this machine") {
			return fmt.Errorf("%s", p.log.String())
		}
		return nil
	})
	require.Contains(t, string(p.demand(http.MethodGet, "/settings.json").body), `"authentication":"off"`)
	b := openTab(t, p, "/")
	b.shows("#session", "No API keys asked for")
	b.accessible("without keys")
	require.Equal(t, http.StatusForbidden, p.demand(http.MethodPost, "/api/jobs/"+uuid.NewString()+"/cancel", "Origin", "https://evil.example").status, "other sites' pages change nothing here")
	for _, path := range []string{"/", "/settings.json", "/api/jobs", "/api/livez", "/metrics", "/nothing"} {
		request, err := http.NewRequestWithContext(within(t), http.MethodGet, p.base+path, nil)
		require.NoError(t, err)
		request.Host = "evil.example"
		require.Equal(t, http.StatusMisdirectedRequest, p.answered(request).status, "%s by a name that leads here", path)
	}
}
