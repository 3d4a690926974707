package handlers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pixtools/pixtools/internal/egress"
	"github.com/pixtools/pixtools/internal/secrets"
)

func hooksConfig(t *testing.T) WebhooksConfig {
	var c WebhooksConfig
	require.NoError(t, env.ParseWithOptions(&c, env.Options{Environment: map[string]string{}}))
	require.NoError(t, c.Validate())
	return c
}

// The reference library takes our signatures, those of each secret that signs.
func TestSignatures(t *testing.T) {
	old, current := secrets.WebhookSecret{Key: []byte("an old key of 32 bytes, or about")}, secrets.WebhookSecret{Key: []byte("the key of now, of 32 bytes, too")}
	body := []byte(`{"job_id":"x"}`)
	header := http.Header{}
	header.Set("webhook-id", "id-1")
	now := time.Now()
	header.Set("webhook-timestamp", fmt.Sprint(now.Unix()))
	header.Set("webhook-signature", sign([][]byte{current.Key, old.Key}, "id-1", now, body))
	for text, good := range map[string]bool{old.Text(): true, current.Text(): true, (secrets.WebhookSecret{Key: []byte("another")}).Text(): false} {
		hook, err := standardwebhooks.NewWebhook(text)
		require.NoError(t, err)
		require.Equal(t, good, hook.Verify(body, header) == nil)
		require.Error(t, hook.Verify([]byte("{}"), header))
	}
}

func TestJudge(t *testing.T) {
	p := &poster{cfg: hooksConfig(t)}
	for _, c := range []struct {
		answer answer
		err    error
		want   posted // without its message
	}{
		{answer{status: 200}, nil, posted{status: 200}},
		{answer{status: 299}, nil, posted{status: 299}},
		{answer{status: 199}, nil, posted{status: 199, code: "status"}},
		{answer{status: 300}, nil, posted{status: 300, code: "redirect"}},
		{answer{status: 399}, nil, posted{status: 399, code: "redirect"}},
		{answer{status: 400}, nil, posted{status: 400, code: "status"}},
		{answer{status: 410}, nil, posted{status: 410, code: "gone", final: true}},
		{answer{429, "120"}, errAnswer, posted{status: 429, code: "status", retryAfter: 2 * time.Minute}},
		{answer{503, "x"}, errAnswer, posted{status: 503, code: "status"}},
		{answer{}, &url.Error{Op: "Post", URL: "http://secret/", Err: context.DeadlineExceeded}, posted{code: "timeout"}},
		{answer{}, &url.Error{Op: "Post", URL: "http://secret/", Err: &egress.Refused{Reason: "x"}}, posted{code: "address_refused"}},
		{answer{}, &url.Error{Op: "Post", URL: "http://secret/", Err: &net.DNSError{Name: "secret", IsNotFound: true}}, posted{code: "name_not_resolved"}},
		{answer{}, &url.Error{Op: "Post", URL: "http://secret/", Err: errors.New("secret")}, posted{code: "unreachable"}},
	} {
		got := p.judge(c.answer, c.err)
		require.NotContains(t, got.message, "secret")
		require.Equal(t, c.want.code != "", got.message != "")
		got.message = ""
		require.Equal(t, c.want, got, "%v %v", c.answer, c.err)
	}
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	require.Equal(t, time.Minute, retryAfter("Sat, 28 Nov 2026 12:01:00 GMT", at))
	require.Zero(t, retryAfter("Sat, 28 Nov 2026 11:59:00 GMT", at))
	require.Zero(t, retryAfter("-1", at))
	require.Zero(t, retryAfter("", at))
}

// A host that fails too often in a row is not called for a while; one that we refuse to call,
// or that answers 404, is not said to fail.
func TestBreaker(t *testing.T) {
	var calls atomic.Int64
	var code atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(int(code.Load()))
	}))
	t.Cleanup(receiver.Close)
	cfg := hooksConfig(t)
	cfg.BreakerFailures, cfg.BreakerOpen = 3, time.Hour
	g, err := egress.NewGuard([]string{"127.0.0.1"})
	require.NoError(t, err)
	var outside egress.Config
	require.NoError(t, env.ParseWithOptions(&outside, env.Options{Environment: map[string]string{}}))
	client := egress.NewClient(outside, g, nil)
	p, err := newPoster(cfg, WebhookParts{Client: client, MaxAnswerBytes: 10})
	require.NoError(t, err)
	call := func(host, address string) posted {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
		require.NoError(t, err)
		return p.judge(p.breaker(host).Execute(func() (answer, error) { return p.send(request) }))
	}
	code.Store(404)
	for range 10 {
		require.Equal(t, "status", call("a", receiver.URL).code)
		require.Equal(t, "address_refused", call("b", "http://127.0.0.2:1/").code)
	}
	code.Store(500)
	for range 3 {
		require.Equal(t, 500, call("a", receiver.URL).status)
	}
	before := calls.Load()
	open := call("a", receiver.URL)
	require.Equal(t, posted{notYet: time.Hour, hold: true}, open)
	require.Equal(t, before, calls.Load(), "it was not called")
	require.Equal(t, 500, call("c", receiver.URL).status, "another host is")
}

func TestWebhooksConfig(t *testing.T) {
	const year = 365 * 24 * time.Hour
	span := func(to func(*WebhooksConfig) *time.Duration, low, high time.Duration) func(*WebhooksConfig, int) {
		return func(c *WebhooksConfig, i int) { *to(c) = []time.Duration{low - 1, low, high, high + 1}[i] }
	}
	number := func(to func(*WebhooksConfig) *int, low, high int) func(*WebhooksConfig, int) {
		return func(c *WebhooksConfig, i int) { *to(c) = []int{low - 1, low, high, high + 1}[i] }
	}
	defaults := hooksConfig(t)
	for name, set := range map[string]func(*WebhooksConfig, int){
		"WEBHOOK_MAX_ATTEMPTS":  func(c *WebhooksConfig, i int) { c.MaxAttempts = []int32{0, 1, 100, 101}[i] },
		"WEBHOOK_BACKOFF_MIN":   span(func(c *WebhooksConfig) *time.Duration { return &c.BackoffMin }, 10*time.Millisecond, time.Hour),
		"WEBHOOK_BACKOFF_MAX":   span(func(c *WebhooksConfig) *time.Duration { return &c.BackoffMax }, defaults.BackoffMin, 7*24*time.Hour),
		"WEBHOOK_MAX_AGE":       span(func(c *WebhooksConfig) *time.Duration { return &c.MaxAge }, time.Minute, year),
		"WEBHOOK_GIVE_UP_AFTER": span(func(c *WebhooksConfig) *time.Duration { return &c.GiveUpAfter }, time.Second, year),
		"WEBHOOK_CONCURRENCY": func(c *WebhooksConfig, i int) {
			c.Concurrency, c.ConcurrencyPerHost = []int{0, 1, 10_000, 10_001}[i], 1
		},
		"WEBHOOK_CONCURRENCY_PER_HOST": number(func(c *WebhooksConfig) *int { return &c.ConcurrencyPerHost }, 1, defaults.Concurrency),
		"WEBHOOK_MAX_PENDING":          number(func(c *WebhooksConfig) *int { return &c.MaxPending }, 1, 10_000_000),
		"WEBHOOK_MAX_HOSTS":            number(func(c *WebhooksConfig) *int { return &c.MaxHosts }, 1, 1_000_000),
		"WEBHOOK_BREAKER_FAILURES":     number(func(c *WebhooksConfig) *int { return &c.BreakerFailures }, 1, 1000),
		"WEBHOOK_BREAKER_OPEN":         span(func(c *WebhooksConfig) *time.Duration { return &c.BreakerOpen }, 10*time.Millisecond, 24*time.Hour),
		"WEBHOOK_PAUSE":                span(func(c *WebhooksConfig) *time.Duration { return &c.Pause }, 10*time.Millisecond, 10*time.Minute),
		"WEBHOOK_SECRETS_REFRESH":      span(func(c *WebhooksConfig) *time.Duration { return &c.SecretsRefresh }, 10*time.Millisecond, 10*time.Minute),
		"WEBHOOK_COMMIT_INTERVAL":      span(func(c *WebhooksConfig) *time.Duration { return &c.CommitInterval }, 10*time.Millisecond, time.Minute),
		"WEBHOOK_FORGET_OPEN_AFTER":    span(func(c *WebhooksConfig) *time.Duration { return &c.ForgetOpenAfter }, time.Minute, 2*year),
		"WEBHOOK_TRANSACTION_TIMEOUT":  span(func(c *WebhooksConfig) *time.Duration { return &c.TransactionTimeout }, time.Second, 10*time.Second),
		"WEBHOOK_RESTORE_TIMEOUT":      span(func(c *WebhooksConfig) *time.Duration { return &c.RestoreTimeout }, time.Second, time.Hour),
		"WEBHOOK_RETRY_AFTER":          span(func(c *WebhooksConfig) *time.Duration { return &c.RetryAfter }, 10*time.Millisecond, time.Minute),
	} {
		for i, good := range []bool{false, true, true, false} {
			c := hooksConfig(t)
			if name == "WEBHOOK_BACKOFF_MIN" {
				c.BackoffMax = 2 * time.Hour
			}
			set(&c, i)
			if good {
				require.NoError(t, c.Validate(), name)
			} else {
				require.ErrorContains(t, c.Validate(), name+" is ")
			}
		}
	}
}
