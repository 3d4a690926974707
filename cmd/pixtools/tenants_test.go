package main

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
)

// read is the answer to a request as text.
func (p *program) read(path string) string {
	p.t.Helper()
	response, err := http.Get(p.base + path)
	require.NoError(p.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(p.t, err)
	return string(text)
}

// TestForgetTenant: a tenant's keys are destroyed under a running program. No answer, no export
// and no record has its names any more; what it submits then has a new key.
func TestForgetTenant(t *testing.T) {
	variables := embeddedEnv(t)
	variables["TENANT_KEYS_CHECK_INTERVAL"] = "100ms"
	variables["DENOISE_TILE"], variables["DENOISE_THREADS"] = "216", "1"
	p := run(t, variables)
	const name, hook = "holiday with aunt.png", "hook.example/anna"
	content := pngOf(t, picture(30, 20))
	submit := func() string {
		return p.submit(file(name, "image/png", content), field("operations", `["webp"]`), field("webhook_url", "https://"+hook))
	}
	id := submit()
	require.Equal(t, name, p.ended(id).Source.Name)
	require.Contains(t, p.ended(id).ResultURLs["webp"], "holiday")
	slow := p.submit(file(name, "image/png", pngOf(t, picture(3000, 2000))), field("operations", `["denoise"]`))

	for _, args := range [][]string{{"secret", "create"}, {"address", "set", "https://" + hook + "/default"}} {
		_, complaints, status := p.command(append([]string{"webhooks"}, args...)...)
		require.Zero(t, status, complaints)
	}
	forget := func(status int, args ...string) string {
		t.Helper()
		out, complaints, got := p.command(append([]string{"tenants", "forget", "default"}, args...)...)
		require.Equal(t, status, got, "%s\n%s", out, complaints)
		return out + complaints
	}
	for _, args := range [][]string{nil, {"--dry-run"}} {
		told := forget(0, args...)
		require.Contains(t, told, "would destroy 1 keys of default")
		require.Regexp(t, `would remove 1 default webhook addresses and [1-9]\d* signing secrets`, told)
		require.Contains(t, told, "would cancel 1 open jobs, and delete them and 1 that have ended")
		require.Contains(t, told, "nothing was done")
	}
	require.Contains(t, forget(1, "--confirm=other"), "must be the same")
	require.Equal(t, name, p.ended(id).Source.Name)

	told := forget(0, "--confirm=default", "--delete-jobs=false")
	require.Contains(t, told, "1 keys of default destroyed")
	require.Regexp(t, `1 default webhook addresses and [1-9]\d* signing secrets of default removed`, told)
	nothing := func() {
		t.Helper()
		_, complaints, status := p.command("webhooks", "address", "show")
		require.Equal(t, 1, status)
		require.Contains(t, complaints, "has no webhook address")
		out, complaints, status := p.command("webhooks", "secret", "list")
		require.Zero(t, status, complaints)
		require.Equal(t, 1, strings.Count(out, "\n"), "no secret is made for webhooks that wait: %s", out)
	}
	nothing()
	var job api.Job
	eventually(t, "the name is gone", func() (err error) {
		if job, err = p.now(id); err == nil && job.Source.Name != "" {
			err = errors.New(job.Source.Name)
		}
		return err
	})
	require.True(t, job.Source.NameErased)
	_, disposition := fetch(t, job.ResultURLs["webp"])
	require.Contains(t, disposition, "pixtools_webp_image.webp")
	nowhere := func(id string) {
		t.Helper()
		said := map[string]string{"list": p.read("/api/jobs"), "events": p.read("/api/jobs/" + id + "/events"), "job": p.read("/api/jobs/" + id)}
		out, complaints, status := p.command("events", "cat")
		require.Zero(t, status, complaints)
		said["log"] = out
		for what, text := range said {
			require.NotContains(t, text, "holiday", what)
			require.NotContains(t, text, hook, what)
		}
	}
	nowhere(id)
	again := submit()
	require.Equal(t, name, p.ended(again).Source.Name, "a new key")
	require.True(t, p.ended(id).Source.NameErased)

	told = forget(0, "--confirm=default")
	require.Contains(t, told, "3 jobs of default deleted, 1 of them cancelled before")
	require.Contains(t, told, "1 keys of default destroyed")
	var problem api.Problem
	for _, id := range []string{id, again, slow} {
		require.Equal(t, http.StatusNotFound, p.ask(http.MethodGet, "/api/jobs/"+id, nil, &problem))
		nowhere(id)
	}
	nothing()
	p.bucket().settles(map[string]bool{})
	require.Contains(t, forget(0), "would destroy 0 keys of default")
	require.Equal(t, "SUCCEEDED", *p.ended(submit()).Outcome)
}
