package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"
)

const schema = `syntax = "proto3"; package p; message A { string x = 1; } message B {}`

var subjects = []string{"p.A", "p.B"}

func config(url string) Config {
	return Config{URL: url, Timeout: 5 * time.Second, RetryAfter: 100 * time.Millisecond}
}

// announce runs it to its end and returns what it logged.
func announce(t *testing.T, cfg Config) string {
	t.Helper()
	require.NoError(t, cfg.Validate())
	var logged bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	Announce(ctx, cfg, subjects, schema, slog.New(slog.NewTextHandler(&logged, nil)))
	require.NoError(t, ctx.Err(), "it went on until the deadline: %s", logged.String())
	return logged.String()
}

func TestRegister(t *testing.T) {
	registry := srfake.New(srfake.WithAuth("Basic " + base64.StdEncoding.EncodeToString([]byte("user:pass@word"))))
	defer registry.Close()
	registry.SeedSchema("p.B", 1, 7, sr.Schema{Schema: schema, Type: sr.TypeProtobuf})
	require.NoError(t, registry.SetCompat("p.B", sr.CompatNone))
	withUser := strings.Replace(registry.URL(), "://", "://user:pass%40word@", 1)
	for range 2 { // again at every start, in every process
		logged := announce(t, config(withUser))
		require.Contains(t, logged, "schemas are registered")
		require.NotContains(t, logged, "word")
	}
	for _, subject := range subjects {
		got, ok := registry.GetSchema(subject, 1)
		require.True(t, ok, subject)
		require.Equal(t, sr.Schema{Schema: schema, Type: sr.TypeProtobuf}, got.Schema)
		_, ok = registry.GetSchema(subject, 2)
		require.False(t, ok, "the same schema is no second version")
	}
	client, _, err := config(withUser).client()
	require.NoError(t, err)
	levels := client.Compatibility(t.Context(), subjects...)
	require.NoError(t, levels[0].Err)
	require.Equal(t, sr.CompatBackwardTransitive, levels[0].Level)
	require.Equal(t, sr.CompatNone, levels[1].Level, "an operator's choice stays")
}

// TestCAFile: a registry whose certificate is from an authority of its own.
func TestCAFile(t *testing.T) {
	registry := srfake.New()
	defer registry.Close()
	behind, err := url.Parse(registry.URL())
	require.NoError(t, err)
	server := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(behind))
	defer server.Close()
	cfg := config(server.URL)
	cfg.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	require.ErrorContains(t, cfg.Validate(), "SCHEMA_REGISTRY_CA_FILE")
	require.NoError(t, os.WriteFile(cfg.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	require.Contains(t, announce(t, cfg), "schemas are registered")
}

func TestTriesAgain(t *testing.T) {
	registry := srfake.New()
	defer registry.Close()
	var asked atomic.Int32
	registry.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		if asked.Add(1) > 3 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	logged := announce(t, config(registry.URL()))
	require.Equal(t, 3, strings.Count(logged, "not registered yet"))
	require.True(t, registry.SubjectExists("p.B"))
}

func TestNobodyThere(t *testing.T) {
	var logged bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == "error" {
			cancel() // it has told; now it is to end
		}
		return a
	}}))
	Announce(ctx, config("http://user:secret@127.0.0.1:1"), subjects, schema, log)
	require.Contains(t, logged.String(), "connection refused")
	require.NotContains(t, logged.String(), "secret")
}

func TestRefused(t *testing.T) {
	for status, advice := range map[int]string{http.StatusConflict: "delete the subject", http.StatusUnprocessableEntity: "PROTOBUF"} {
		registry := srfake.New()
		registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`{"error_code":42201,"message":"no"}`))
			return true
		})
		logged := announce(t, config(registry.URL()))
		require.Contains(t, logged, "level=ERROR")
		require.Contains(t, logged, "p.A")
		require.Contains(t, logged, advice)
		registry.Close()
	}
}

func TestValidate(t *testing.T) {
	at := func(url string, timeout, retry time.Duration) string {
		if err := (Config{URL: url, Timeout: timeout, RetryAfter: retry}).Validate(); err != nil {
			return err.Error()
		}
		return ""
	}
	const good, ms = "https://user:p%40ss@registry:8081/path", time.Millisecond
	for _, url := range []string{"", good, "http://registry"} {
		require.Empty(t, at(url, time.Second, time.Second), url)
	}
	for _, url := range []string{"registry:8081", "ftp://registry", "http://", "http://:8081", "http://a b", "http://r?x=1", "http://user:secret@ho st"} {
		require.Contains(t, at(url, time.Second, time.Second), "SCHEMA_REGISTRY_URL", url)
		require.NotContains(t, at(url, time.Second, time.Second), "secret")
	}
	for _, c := range []struct {
		low, high time.Duration
		name      string
		check     func(time.Duration) string
	}{
		{100 * ms, time.Minute, "SCHEMA_REGISTRY_TIMEOUT", func(d time.Duration) string { return at(good, d, time.Second) }},
		{100 * ms, time.Hour, "SCHEMA_REGISTRY_RETRY_AFTER", func(d time.Duration) string { return at(good, time.Second, d) }},
	} {
		require.Empty(t, c.check(c.low)+c.check(c.low+1)+c.check(c.high-1)+c.check(c.high))
		require.Contains(t, c.check(c.low-1), c.name)
		require.Contains(t, c.check(c.high+1), c.name)
	}
	both := at("x", 0, 0)
	require.Equal(t, 2, strings.Count(both, "\n"), "every fault at once: %s", both)
}
