package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/api"
)

// hookCall is a webhook as it arrived.
type hookCall struct {
	path   string
	header http.Header
	body   []byte
}

// receiver takes webhooks, and answers as its test wants.
type receiver struct {
	t      *testing.T
	server *httptest.Server

	mu      sync.Mutex
	calls   []hookCall
	answers map[string]http.HandlerFunc // by path; 204 where there is none
}

// newReceiver listens on an address of the loopback range of its own, so that it can be
// allowed apart from the rest.
func newReceiver(t *testing.T, ip string) *receiver {
	l, err := net.Listen("tcp", ip+":0")
	require.NoError(t, err)
	r := &receiver{t: t, answers: map[string]http.HandlerFunc{}}
	r.server = httptest.NewUnstartedServer(r)
	require.NoError(t, r.server.Listener.Close())
	r.server.Listener = l
	r.server.Start()
	t.Cleanup(r.server.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, _ := io.ReadAll(request.Body)
	r.mu.Lock()
	r.calls = append(r.calls, hookCall{request.URL.Path, request.Header.Clone(), body})
	answer := r.answers[request.URL.Path]
	r.mu.Unlock()
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, request)
}

func (r *receiver) answer(path string, with http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[path] = with
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func (r *receiver) of(path string) (calls []hookCall) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if c.path == path {
			calls = append(calls, c)
		}
	}
	return calls
}

// hook waits until a job's webhook is in a state.
func (p *program) hook(id, state string) (job api.Job) {
	p.t.Helper()
	eventually(p.t, "webhook of "+id+": "+state, func() (err error) {
		if job, err = p.now(id); err == nil && (job.Webhook == nil || job.Webhook.State != state) {
			err = fmt.Errorf("%+v", job.Webhook)
		}
		return err
	})
	return job
}

// verifies says whether a call is signed with a secret, in the eyes of the reference library.
func verifies(t *testing.T, c hookCall, secret string) bool {
	t.Helper()
	hook, err := standardwebhooks.NewWebhook(secret)
	require.NoError(t, err)
	if hook.Verify(c.body, c.header) != nil {
		return false
	}
	require.Error(t, hook.Verify(append([]byte(" "), c.body...), c.header), "another body is not signed")
	return true
}

func hookEnv(t *testing.T) map[string]string {
	env := embeddedEnv(t)
	maps.Copy(env, map[string]string{"WEBHOOK_ALLOW_PRIVATE": "127.0.0.2/31", "WEBHOOK_BACKOFF_MIN": "50ms", "WEBHOOK_BACKOFF_MAX": "300ms", "WEBHOOK_MAX_ATTEMPTS": "3",
		"WEBHOOK_COMMIT_INTERVAL": "50ms", "WEBHOOK_TIMEOUT": "1s", "WEBHOOK_CONNECT_TIMEOUT": "500ms", "WEBHOOK_BREAKER_FAILURES": "1000",
		"WEBHOOK_SECRETS_REFRESH": "10ms", "WEBHOOK_ADDRESS_REFRESH": "10ms"})
	return env
}

// secretsOf are a tenant's secrets that sign, by the tool.
func (p *program) secrets() (ids, texts []string) {
	p.t.Helper()
	out, complaints, code := p.command("webhooks", "secret", "list", "--reveal")
	require.Zero(p.t, code, complaints)
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) == 4 && strings.HasPrefix(f[3], "whsec_") {
			ids, texts = append(ids, f[0]), append(texts, f[3])
		}
	}
	return ids, texts
}

// TestWebhooks: outcomes reach their receivers, signed; what receivers do wrong costs them
// attempts, and nobody else anything.
func TestWebhooks(t *testing.T) {
	p := run(t, hookEnv(t))
	good, bad := newReceiver(t, "127.0.0.2"), newReceiver(t, "127.0.0.3")
	inside := newReceiver(t, "127.0.0.1")
	image, broken := pngOf(t, picture(8, 8)), jpegOf(t, picture(300, 200))
	submit := func(t *testing.T, at *receiver, path string) string {
		return p.submit(file("my cat.png", "image/png", image), field("operations", `["webp"]`), field("webhook_url", at.server.URL+path))
	}

	t.Run("delivered", func(t *testing.T) {
		id := p.submit(file("my cat.jpg", "image/jpeg", broken[:len(broken)/2]), field("operations", `["webp"]`), field("webhook_url", good.server.URL+"/failed"))
		failed := p.hook(id, "DELIVERED")
		require.Equal(t, "FAILED", failed.Status)

		job := p.hook(submit(t, good, "/delivered"), "DELIVERED")
		require.Equal(t, "COMPLETED", job.Status)
		require.Equal(t, &api.Webhook{State: "DELIVERED", Revision: 1, Attempts: 1}, job.Webhook)
		calls := good.of("/delivered")
		require.Len(t, calls, 1)
		var told api.Outcome
		require.NoError(t, json.Unmarshal(calls[0].body, &told))
		require.Equal(t, job.JobID, told.JobID)
		require.Equal(t, "COMPLETED", told.Status)
		require.Equal(t, "SUCCEEDED", told.Outcome)
		require.EqualValues(t, 1, told.Revision)
		require.Equal(t, calls[0].header.Get("webhook-id"), told.EventID)
		require.Equal(t, job.OperationResults["webp"].Artifact.SHA256, told.OperationResults["webp"].Artifact.SHA256)
		_, disposition := fetch(t, told.ResultURLs["webp"])
		require.Contains(t, disposition, "pixtools_webp_my cat.webp")
		var history api.JobHistory
		require.Equal(t, http.StatusOK, p.ask(http.MethodGet, "/api/jobs/"+job.JobID+"/events", nil, &history))
		require.Contains(t, fmt.Sprint(history.Events), told.EventID, "the event of its end")
		_, texts := p.secrets()
		require.Len(t, texts, 1, "one was made")
		require.True(t, verifies(t, calls[0], texts[0]))

		require.NoError(t, json.Unmarshal(good.of("/failed")[0].body, &told))
		require.Equal(t, "FAILED", told.Status)
		require.Equal(t, failed.OperationResults["webp"].Error, told.OperationResults["webp"].Error)
	})
	t.Run("fails at first", func(t *testing.T) {
		n := 0
		bad.answer("/shaky", func(w http.ResponseWriter, _ *http.Request) {
			if n++; n < 3 {
				w.WriteHeader(http.StatusInternalServerError)
			}
		})
		job := p.hook(submit(t, bad, "/shaky"), "DELIVERED")
		require.EqualValues(t, 3, job.Webhook.Attempts)
		require.Equal(t, "COMPLETED", job.Status)
		calls := bad.of("/shaky")
		require.Len(t, calls, 3)
		for _, c := range calls {
			require.Equal(t, calls[0].header.Get("webhook-id"), c.header.Get("webhook-id"))
		}
	})
	t.Run("fails, and is delivered again", func(t *testing.T) {
		bad.answer("/down", status(http.StatusInternalServerError))
		job := p.hook(submit(t, bad, "/down"), "FAILED")
		require.Equal(t, "COMPLETED_WEBHOOK_FAILED", job.Status)
		require.Equal(t, "SUCCEEDED", *job.Outcome)
		require.Equal(t, "status", job.Webhook.LastCode)
		require.Len(t, bad.of("/down"), 3)
		out, err := p.tool("webhooks", "list")
		require.NoError(t, err, out)
		require.Regexp(t, job.JobID+" +1 +3 +status ", out)

		bad.answer("/down", nil)
		out, err = p.tool("webhooks", "redeliver", "--failed")
		require.NoError(t, err, out)
		require.Equal(t, job.JobID+": attempt 4 at revision 1 is due\n", out)
		job = p.hook(job.JobID, "DELIVERED")
		require.Equal(t, "COMPLETED", job.Status)
		calls := bad.of("/down")
		require.Len(t, calls, 4)
		require.Equal(t, calls[0].header.Get("webhook-id"), calls[3].header.Get("webhook-id"))
		out, err = p.tool("webhooks", "redeliver", job.JobID)
		require.Error(t, err)
		require.Contains(t, out, "the webhook was delivered")
	})
	t.Run("hangs", func(t *testing.T) {
		ended := make(chan struct{})
		t.Cleanup(func() { close(ended) })
		bad.answer("/hangs", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-ended:
			case <-r.Context().Done():
			}
		})
		hanging := submit(t, bad, "/hangs")
		eventually(t, "a call that hangs", func() error {
			if len(bad.of("/hangs")) == 0 {
				return fmt.Errorf("none yet")
			}
			return nil
		})
		p.hook(submit(t, good, "/meanwhile"), "DELIVERED")
		job := p.hook(hanging, "FAILED")
		require.Equal(t, "timeout", job.Webhook.LastCode)
	})
	t.Run("redirects", func(t *testing.T) {
		bad.answer("/moved", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, inside.server.URL+"/secret", http.StatusTemporaryRedirect)
		})
		job := p.hook(submit(t, bad, "/moved"), "FAILED")
		require.Equal(t, "redirect", job.Webhook.LastCode)
		require.Len(t, bad.of("/moved"), 3)
		require.Empty(t, inside.of("/secret"))
	})
	t.Run("points inside by name", func(t *testing.T) {
		_, port, err := net.SplitHostPort(inside.server.Listener.Addr().String())
		require.NoError(t, err)
		job := p.hook(p.submit(file("a.png", "image/png", image), field("operations", `["webp"]`), field("webhook_url", "http://localhost:"+port+"/named")), "FAILED")
		require.Equal(t, "address_refused", job.Webhook.LastCode)
		require.Empty(t, inside.of("/named"))
		response, body, err := p.post(nil, file("a.png", "image/png", image), field("operations", `["webp"]`), field("webhook_url", inside.server.URL))
		require.NoError(t, err)
		require.Equal(t, http.StatusUnprocessableEntity, response.StatusCode)
		require.Contains(t, string(body), "public internet")
	})
	t.Run("wants no more", func(t *testing.T) {
		bad.answer("/gone", status(http.StatusGone))
		job := p.hook(submit(t, bad, "/gone"), "FAILED")
		require.Equal(t, "gone", job.Webhook.LastCode)
		require.Len(t, bad.of("/gone"), 1)
	})
	t.Run("answers without end", func(t *testing.T) {
		bad.answer("/endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		})
		require.EqualValues(t, 1, p.hook(submit(t, bad, "/endless"), "DELIVERED").Webhook.Attempts)
	})
	t.Run("secrets rotate", func(t *testing.T) {
		ids, texts := p.secrets()
		out, complaints, code := p.command("webhooks", "secret", "create")
		require.Zero(t, code, complaints)
		next := strings.Fields(out)[1]
		p.hook(submit(t, good, "/both"), "DELIVERED")
		require.True(t, verifies(t, good.of("/both")[0], texts[0]))
		require.True(t, verifies(t, good.of("/both")[0], next))
		_, complaints, code = p.command("webhooks", "secret", "revoke", ids[0])
		require.Zero(t, code, complaints)
		p.hook(submit(t, good, "/new"), "DELIVERED")
		require.False(t, verifies(t, good.of("/new")[0], texts[0]))
		require.True(t, verifies(t, good.of("/new")[0], next))
	})
	t.Run("a tenant's own address", func(t *testing.T) {
		_, complaints, code := p.command("webhooks", "address", "set", inside.server.URL)
		require.Equal(t, 1, code)
		require.Contains(t, complaints, "public internet")
		out, complaints, code := p.command("webhooks", "address", "set", good.server.URL+"/tenant")
		require.Zero(t, code, complaints)
		require.Contains(t, out, "jobs of default that name no address are posted to "+good.server.URL+"/tenant")
		out, _, _ = p.command("webhooks", "address", "show")
		require.Equal(t, good.server.URL+"/tenant\n", out)
		eventually(t, "a job that is posted to the tenant's address", func() error {
			id := p.submit(file("a.png", "image/png", image), field("operations", `["webp"]`))
			if job := p.ended(id); job.Webhook == nil {
				return fmt.Errorf("%s names no address", id)
			}
			p.hook(id, "DELIVERED")
			return nil
		})
		require.NotEmpty(t, good.of("/tenant"))
		p.hook(submit(t, good, "/own"), "DELIVERED")
		require.Len(t, good.of("/own"), 1)
		for _, says := range []string{"tenant default has no webhook address any more", "tenant default had no webhook address"} {
			out, complaints, code = p.command("webhooks", "address", "clear")
			require.Zero(t, code, complaints)
			require.Contains(t, out, says)
		}
		eventually(t, "a job that is posted nowhere", func() error {
			if job := p.ended(p.submit(file("a.png", "image/png", image), field("operations", `["webp"]`))); job.Webhook != nil {
				return fmt.Errorf("%+v", job.Webhook)
			}
			return nil
		})
	})
	t.Run("a retry has an outcome of its own", func(t *testing.T) {
		id := p.submit(file("b.jpg", "image/jpeg", broken[:len(broken)/2]), field("operations", `["webp"]`), field("webhook_url", good.server.URL+"/retried"))
		p.hook(id, "DELIVERED")
		require.Equal(t, http.StatusAccepted, p.ask(http.MethodPost, "/api/jobs/"+id+"/retry", nil, &api.Retried{}))
		eventually(t, "the second outcome", func() error {
			job, err := p.now(id)
			if err == nil && (job.Webhook.Revision != 2 || job.Webhook.State != "DELIVERED") {
				err = fmt.Errorf("%+v", job.Webhook)
			}
			return err
		})
		calls := good.of("/retried")
		require.Len(t, calls, 2)
		require.NotEqual(t, calls[0].header.Get("webhook-id"), calls[1].header.Get("webhook-id"))
	})
	t.Run("the log is sound", func(t *testing.T) { require.Empty(t, p.verify(0).findings) })
}

// TestWebhooksSurviveKills: what is to be posted is known again after kill -9, without
// reading the whole log, and is posted under the same id.
func TestWebhooksSurviveKills(t *testing.T) {
	env := hookEnv(t)
	maps.Copy(env, map[string]string{"WEBHOOK_MAX_ATTEMPTS": "100", "WEBHOOK_BACKOFF_MAX": "1s"})
	p := run(t, env)
	at := newReceiver(t, "127.0.0.2")
	at.answer("/hook", status(http.StatusServiceUnavailable))
	image := pngOf(t, picture(8, 8))
	ids := map[string]bool{}
	for round := range 2 {
		for range 3 {
			ids[p.submit(file("a.png", "image/png", image), field("operations", `["webp"]`), field("webhook_url", at.server.URL+"/hook"))] = true
		}
		for id := range ids {
			p.hook(id, "SCHEDULED")
		}
		if round == 0 {
			before := len(at.of("/hook"))
			eventually(t, "an attempt", func() error {
				if len(at.of("/hook")) == before {
					return fmt.Errorf("none yet")
				}
				return nil
			})
		}
		p.kill()
		p.start()
		p.healthy()
	}
	at.answer("/hook", nil)
	for id := range ids {
		require.Equal(t, "COMPLETED", p.hook(id, "DELIVERED").Status)
	}
	told := map[string]string{}
	for _, c := range at.of("/hook") {
		var outcome api.Outcome
		require.NoError(t, json.Unmarshal(c.body, &outcome))
		require.True(t, ids[outcome.JobID])
		if known, ok := told[outcome.JobID]; ok {
			require.Equal(t, known, c.header.Get("webhook-id"))
		}
		told[outcome.JobID] = c.header.Get("webhook-id")
	}
	require.Len(t, told, len(ids))
	require.Empty(t, p.verify(0).findings)
}
