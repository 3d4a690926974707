package blob_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/testenv"
)

const deadline = 60 * time.Second

func TestMain(m *testing.M) {
	embedded.ChildMain()
	os.Exit(m.Run())
}

// defaults is what the program would read from an environment with only these variables.
func defaults(t *testing.T, variables map[string]string) blob.Config {
	t.Helper()
	var cfg blob.Config
	require.NoError(t, env.ParseWithOptions(&cfg, env.Options{Environment: variables}))
	return cfg
}

func minioConfig(t *testing.T) blob.Config {
	t.Helper()
	s := testenv.S3(t)
	return defaults(t, map[string]string{
		"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.SecretKey, "AWS_REGION": s.Region,
		"AWS_ENDPOINT_URL": s.Endpoint, "AWS_S3_BUCKET": "test-" + strings.ToLower(rand.Text()),
	})
}

func embeddedConfig(t *testing.T) blob.Config {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	parts, err := embedded.Start(ctx, embedded.Config{DataDir: t.TempDir(), DiskReserve: 64 << 20, Bucket: "pixtools", Region: "us-east-1"},
		embedded.Needs{S3: true}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { _ = parts.Stop(context.Background()) })
	return defaults(t, map[string]string{
		"AWS_ACCESS_KEY_ID": parts.S3AccessKey, "AWS_SECRET_ACCESS_KEY": parts.S3SecretKey, "AWS_REGION": parts.S3Region,
		"AWS_ENDPOINT_URL": parts.S3Endpoint, "AWS_S3_BUCKET": parts.S3Bucket,
	})
}

func open(t *testing.T, cfg blob.Config) *blob.Store {
	t.Helper()
	s, err := blob.New(t.Context(), cfg)
	require.NoError(t, err)
	return s
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// picture is random: no server can have it from elsewhere.
func picture(t *testing.T, size int) ([]byte, [sha256.Size]byte) {
	t.Helper()
	b := make([]byte, size)
	_, err := rand.Read(b)
	require.NoError(t, err)
	return b, sha256.Sum256(b)
}

// TestServers runs every check of behaviour against both kinds of server the product meets.
func TestServers(t *testing.T) {
	for name, config := range map[string]func(*testing.T) blob.Config{"minio": minioConfig, "embedded": embeddedConfig} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t)
			s := open(t, cfg)
			for range 2 { // each start of the program does it
				require.NoError(t, s.EnsureBucket(testContext(t)))
			}
			require.NoError(t, s.Health(testContext(t)))
			t.Run("round trip", func(t *testing.T) { roundTrip(t, s) })
			t.Run("a file, and again", func(t *testing.T) { putFile(t, s) })
			t.Run("wrong checksum", func(t *testing.T) { wrongChecksum(t, s) })
			t.Run("missing", func(t *testing.T) { missing(t, s) })
			t.Run("list", func(t *testing.T) { list(t, s) })
			t.Run("links", func(t *testing.T) { links(t, s, cfg) })
			t.Run("names", func(t *testing.T) { names(t, s) })
			t.Run("lifecycle", func(t *testing.T) { lifecycle(t, s, cfg, name == "minio") })
			t.Run("direct uploads", func(t *testing.T) { directUploads(t, cfg) })
			t.Run("overwritten", func(t *testing.T) { overwritten(t, s) })
			t.Run("window", func(t *testing.T) { window(t, s) })
			t.Run("cross origin", func(t *testing.T) { crossOrigin(t, cfg, name == "embedded") })
			t.Run("configuration", func(t *testing.T) { wrongConfiguration(t, cfg) })
		})
	}
}

func roundTrip(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	for _, size := range []int{0, 1, 1000, 3 << 20} {
		body, sum := picture(t, size)
		key := fmt.Sprintf("%sjob/%x", blob.RawPrefix, sum)
		require.NoError(t, s.Put(ctx, key, bytes.NewReader(body), int64(size), sum, "image/webp"))

		var got bytes.Buffer
		n, err := s.Download(ctx, key, &got, sum)
		require.NoError(t, err)
		require.Equal(t, int64(size), n)
		require.True(t, bytes.Equal(body, got.Bytes()))

		object, err := s.Head(ctx, key)
		require.NoError(t, err)
		require.Equal(t, int64(size), object.Size)
		require.Equal(t, "image/webp", object.ContentType)
		require.WithinDuration(t, time.Now(), object.ModifiedAt, deadline)

		_, err = s.Download(ctx, key, io.Discard, sha256.Sum256([]byte("another")))
		require.ErrorIs(t, err, blob.ErrChecksum)
	}
}

// putFile: processors upload files, which stay theirs, and repeat uploads.
func putFile(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	body, sum := picture(t, 5000)
	f, err := os.Create(t.TempDir() + "/result")
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	_, err = f.Write(body)
	require.NoError(t, err)
	for range 2 {
		_, err = f.Seek(0, io.SeekStart)
		require.NoError(t, err, "the file is still open")
		require.NoError(t, s.Put(ctx, "processed/job/result", f, int64(len(body)), sum, "image/png"))
	}
	_, err = s.Download(ctx, "processed/job/result", io.Discard, sum)
	require.NoError(t, err)
}

func wrongChecksum(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	body, sum := picture(t, 2000)
	body[1000] ^= 1 // a bit turns between hashing and storing
	require.ErrorIs(t, s.Put(ctx, "raw/job/turned", bytes.NewReader(body), int64(len(body)), sum, "image/png"), blob.ErrChecksum)
	_, err := s.Head(ctx, "raw/job/turned")
	require.ErrorIs(t, err, blob.ErrNotFound)
}

func missing(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	_, err := s.Get(ctx, "raw/no/such")
	require.ErrorIs(t, err, blob.ErrNotFound)
	_, err = s.Head(ctx, "raw/no/such")
	require.ErrorIs(t, err, blob.ErrNotFound)

	body, sum := picture(t, 10)
	require.NoError(t, s.Put(ctx, "raw/job/gone", bytes.NewReader(body), int64(len(body)), sum, "image/png"))
	for range 2 {
		require.NoError(t, s.Delete(ctx, "raw/job/gone"))
	}
	_, err = s.Head(ctx, "raw/job/gone")
	require.ErrorIs(t, err, blob.ErrNotFound)
}

func list(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	body, sum := picture(t, 10)
	want := []string{"raw/list/a/1", "raw/list/a/2", "raw/list/b/1"}
	for _, key := range want {
		require.NoError(t, s.Put(ctx, key, bytes.NewReader(body), int64(len(body)), sum, "image/png"))
	}
	var got []string
	require.NoError(t, s.List(ctx, "raw/list/", func(o blob.Object) error {
		require.Equal(t, int64(10), o.Size)
		require.False(t, o.ModifiedAt.IsZero())
		got = append(got, o.Key)
		return nil
	}))
	require.Equal(t, want, got)
	require.ErrorIs(t, s.List(ctx, "raw/list/", func(blob.Object) error { return io.ErrShortWrite }), io.ErrShortWrite)
}

func fetch(t *testing.T, link string) (status int, header http.Header, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, link, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, resp.Header, body
}

func links(t *testing.T, s *blob.Store, cfg blob.Config) {
	ctx := testContext(t)
	body, sum := picture(t, 1234)
	const key = "processed/job/linked"
	require.NoError(t, s.Put(ctx, key, bytes.NewReader(body), int64(len(body)), sum, "image/webp"))

	origin, err := s.PublicOrigin(ctx)
	require.NoError(t, err)
	require.Equal(t, cfg.Endpoint, origin)
	link, expiresAt, err := s.PresignGet(ctx, key, "pixtools_webp_cat.webp")
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(24*time.Hour), expiresAt, deadline)
	status, header, got := fetch(t, link)
	require.Equal(t, http.StatusOK, status, "%s", got)
	require.Equal(t, body, got)
	require.Equal(t, "image/webp", header.Get("Content-Type"))
	require.Equal(t, `attachment; filename="pixtools_webp_cat.webp"`, header.Get("Content-Disposition"))

	for what, tampered := range map[string]string{
		"another object":  strings.Replace(link, "linked", "other", 1),
		"another expiry":  strings.Replace(link, "X-Amz-Expires=86400", "X-Amz-Expires=96400", 1),
		"another name":    strings.Replace(link, "cat", "dog", 1),
		"no signature":    strings.SplitN(link, "?", 2)[0],
		"another address": strings.Replace(link, "127.0.0.1", "localhost", 1),
	} {
		require.NotEqual(t, link, tampered, what)
		status, _, _ := fetch(t, tampered)
		require.Contains(t, []int{http.StatusForbidden, http.StatusUnauthorized}, status, what)
	}

	cfg.PresignExpirySeconds = 1
	short, expiresAt, err := open(t, cfg).PresignGet(ctx, key, "late.webp")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		status, _, _ := fetch(t, short)
		return status == http.StatusForbidden && time.Now().After(expiresAt)
	}, deadline, 100*time.Millisecond)

	// A browser reaches the server by another name: here, through a proxy that passes that name on.
	target, err := url.Parse(cfg.Endpoint)
	require.NoError(t, err)
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host
	}})
	defer proxy.Close()
	cfg.PublicEndpoint, cfg.PresignExpirySeconds = proxy.URL, 60
	link, _, err = open(t, cfg).PresignGet(ctx, key, "cat.webp")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(link, proxy.URL+"/"), link)
	status, _, got = fetch(t, link)
	require.Equal(t, http.StatusOK, status, "%s", got)
	require.Equal(t, body, got)
}

func names(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	body, sum := picture(t, 10)
	const key = "processed/job/named"
	require.NoError(t, s.Put(ctx, key, bytes.NewReader(body), int64(len(body)), sum, "image/webp"))
	long := strings.Repeat("日", 300) + ".webp"
	for name, want := range map[string]string{
		"plain.webp":             "plain.webp",
		"with space & (1).webp":  "with space & (1).webp",
		"Käse 日本 😀.webp":         "Käse 日本 😀.webp",
		"100% 'quoted'.webp":     "100% 'quoted'.webp",
		`a"b\c/d.webp`:           "a_b_c_d.webp",
		"two\r\nX-Evil: yes":     "two__X-Evil: yes",
		"not utf-8 \xff.webp":    "not utf-8 _.webp",
		"é\"; filename=evil.exe": "é_; filename=evil.exe",
	} {
		link, _, err := s.PresignGet(ctx, key, name)
		require.NoError(t, err)
		status, header, got := fetch(t, link)
		require.Equal(t, http.StatusOK, status, "%s: %s", name, got)
		_, params, err := mime.ParseMediaType(header.Get("Content-Disposition"))
		require.NoError(t, err, header.Get("Content-Disposition"))
		require.Equal(t, want, params["filename"], header.Get("Content-Disposition"))
		require.Empty(t, header.Get("X-Evil"))
	}
	link, _, err := s.PresignGet(ctx, key, long)
	require.NoError(t, err)
	status, header, _ := fetch(t, link)
	require.Equal(t, http.StatusOK, status)
	_, params, err := mime.ParseMediaType(header.Get("Content-Disposition"))
	require.NoError(t, err)
	require.LessOrEqual(t, len(params["filename"]), 255, "file systems end there")
	require.True(t, strings.HasSuffix(params["filename"], "日.webp"), params["filename"])
	require.NotContains(t, params["filename"], "\ufffd")
}

func lifecycle(t *testing.T, s *blob.Store, cfg blob.Config, has bool) {
	ctx := testContext(t)
	for range 2 {
		applied, err := s.EnsureLifecycle(ctx)
		require.NoError(t, err)
		require.Equal(t, has, applied)
	}
	if !has {
		return
	}
	require.Equal(t, map[string]int32{"pixtools-raw raw/": 30, "pixtools-processed processed/": 30, "pixtools-reprocess reprocess/": 30, "pixtools-uploads uploads/": 1}, rules(t, cfg))

	addRule(t, cfg, "theirs", "backup/", 7)
	cfg.RetentionDays, cfg.UploadRetentionDays = 9, 2
	applied, err := open(t, cfg).EnsureLifecycle(ctx)
	require.NoError(t, err)
	require.True(t, applied)
	require.Equal(t, map[string]int32{"pixtools-raw raw/": 9, "pixtools-processed processed/": 9, "pixtools-reprocess reprocess/": 9, "pixtools-uploads uploads/": 2, "theirs backup/": 7}, rules(t, cfg))

	cfg.SourceRetentionDays = 90
	_, err = open(t, cfg).EnsureLifecycle(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]int32{"pixtools-raw raw/": 90, "pixtools-processed processed/": 9, "pixtools-reprocess reprocess/": 9, "pixtools-uploads uploads/": 2, "theirs backup/": 7}, rules(t, cfg))
}

func wrongConfiguration(t *testing.T, cfg blob.Config) {
	ctx := testContext(t)
	wrong := cfg
	wrong.SecretAccessKey = "wrong"
	body, sum := picture(t, 10)
	err := open(t, wrong).Put(ctx, "raw/a/b", bytes.NewReader(body), 10, sum, "image/png")
	require.ErrorIs(t, err, blob.ErrRefused)
	require.ErrorIs(t, open(t, wrong).EnsureBucket(ctx), blob.ErrRefused)
	_, err = open(t, wrong).EnsureLifecycle(ctx)
	require.ErrorIs(t, err, blob.ErrRefused)
	for _, kind := range []error{blob.ErrUnavailable, blob.ErrNotFound, blob.ErrChecksum} {
		require.NotErrorIs(t, err, kind)
	}
	require.ErrorContains(t, open(t, wrong).Health(ctx), "AWS_SECRET_ACCESS_KEY")

	wrong = cfg
	wrong.Bucket = "nobody-made-this-one"
	err = open(t, wrong).Health(ctx)
	require.ErrorContains(t, err, "AWS_S3_BUCKET")
	require.NotErrorIs(t, err, blob.ErrUnavailable)
}

// TestUnavailable: what the network and a sick server do, by a server that misbehaves on purpose.
func TestUnavailable(t *testing.T) {
	body, sum := picture(t, 1000)
	for name, handler := range map[string]http.HandlerFunc{
		"500":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"503":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"throttled": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
		"hung up":   func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"silent":    func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				_, _ = io.Copy(io.Discard, r.Body)
				handler(w, r)
			}))
			t.Cleanup(server.Close)
			cfg := defaults(t, map[string]string{
				"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": server.URL,
				"S3_CALL_TIMEOUT": "300ms", "S3_TRANSFER_TIMEOUT": "300ms", "S3_MAX_BACKOFF": "10ms",
			})
			s := open(t, cfg)
			ctx := testContext(t)
			require.ErrorIs(t, s.Put(ctx, "raw/a/b", bytes.NewReader(body), int64(len(body)), sum, "image/png"), blob.ErrUnavailable)
			if name != "silent" { // there the whole time goes by in the first attempt
				require.Equal(t, int32(cfg.MaxAttempts), requests.Load())
			}
			_, err := s.Download(ctx, "raw/a/b", io.Discard, sum)
			require.ErrorIs(t, err, blob.ErrUnavailable)
			require.ErrorIs(t, s.Delete(ctx, "raw/a/b"), blob.ErrUnavailable)
			before := requests.Load()
			require.ErrorIs(t, s.Health(ctx), blob.ErrUnavailable)
			require.Equal(t, before+1, requests.Load(), "health asks once")

			gaveUp, cancel := context.WithCancel(ctx)
			cancel()
			_, err = s.Head(gaveUp, "raw/a/b")
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, blob.ErrUnavailable, "it was the caller")
		})
	}
}

// TestSilentServer: one that takes requests and answers none is not waited for as long as a transfer may
// take, and one that answers other questions is, however long it says nothing of the transfer.
func TestSilentServer(t *testing.T) {
	body, sum := picture(t, 10<<20) // more than a connection's buffers take
	var silent atomic.Bool
	var questions atomic.Int32
	over := make(chan struct{})
	hang := func(r *http.Request) {
		select {
		case <-r.Context().Done(): // which a server sees only once it has read the body
		case <-over:
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if silent.Load() && r.Method != http.MethodGet {
			hang(r)
			return
		}
		switch r.Method {
		case http.MethodHead:
			questions.Add(1)
		case http.MethodPut:
			for before := questions.Load(); questions.Load() < before+5; {
				select {
				case <-over: // the test has failed
					return
				default:
					runtime.Gosched()
				}
			}
			_, _ = io.Copy(io.Discard, r.Body)
		case http.MethodGet: // half of it, and no more
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/2])
			_ = http.NewResponseController(w).Flush()
			hang(r)
		}
	}))
	defer server.Close()
	defer close(over)
	s := open(t, defaults(t, map[string]string{
		"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": server.URL,
		"S3_TRANSFER_TIMEOUT": (10 * deadline).String(), "S3_PROBE_AFTER": "20ms",
	}))
	put := func() error {
		return s.Put(testContext(t), "raw/a/b", bytes.NewReader(body), int64(len(body)), sum, "image/png")
	}
	require.NoError(t, put(), "slow")
	silent.Store(true)
	err := put()
	require.ErrorIs(t, err, blob.ErrUnavailable, "away")
	require.NotErrorIs(t, err, context.Canceled, "nobody gave up")
	_, err = s.Download(testContext(t), "raw/a/b", io.Discard, sum)
	require.ErrorIs(t, err, blob.ErrUnavailable, "away in the middle of an object")
	silent.Store(false)
	require.NoError(t, put(), "back")
}

// TestCutOff: a connection that ends in the middle of an object.
func TestCutOff(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write(make([]byte, 500))
		panic(http.ErrAbortHandler)
	}))
	defer server.Close()
	s := open(t, defaults(t, map[string]string{"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": server.URL}))
	_, err := s.Download(testContext(t), "raw/a/b", io.Discard, sha256.Sum256(make([]byte, 500)))
	require.ErrorIs(t, err, blob.ErrUnavailable)
}

// TestPutIsOneRequestWithBothHashes: no leave asked for, no trailer, the body hashed by the caller alone.
func TestPutIsOneRequestWithBothHashes(t *testing.T) {
	body, sum := picture(t, 3<<20)
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			return // asked whether we are there, where this machine is slow
		}
		requests.Add(1)
		require.Equal(t, hex.EncodeToString(sum[:]), r.Header.Get("X-Amz-Content-Sha256"))
		require.NotEmpty(t, r.Header.Get("X-Amz-Checksum-Sha256"))
		require.Empty(t, r.Header.Get("Expect"))
		require.Empty(t, r.Header.Get("X-Amz-Trailer"))
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	defer server.Close()
	s := open(t, defaults(t, map[string]string{"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": server.URL}))
	counted := &countingReader{ReadSeeker: bytes.NewReader(body)}
	require.NoError(t, s.Put(testContext(t), "raw/a/b", counted, int64(len(body)), sum, "image/png"))
	require.Equal(t, int32(1), requests.Load())
	require.Equal(t, int64(len(body)), counted.n, "read once: to send it")
}

type countingReader struct {
	io.ReadSeeker
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.ReadSeeker.Read(b)
	c.n += int64(n)
	return n, err
}

func TestValidateNamesEveryFault(t *testing.T) {
	err := blob.Config{AccessKeyID: "only", Endpoint: "no-scheme"}.Validate()
	for _, variable := range []string{
		"AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_S3_BUCKET", "AWS_ENDPOINT_URL", "PRESIGNED_URL_EXPIRY_SECONDS", "S3_RETENTION_DAYS",
		"S3_CALL_TIMEOUT", "S3_TRANSFER_TIMEOUT", "S3_CONNECT_TIMEOUT", "S3_MAX_ATTEMPTS", "S3_MAX_BACKOFF", "S3_MAX_IDLE_CONNS",
		"S3_PROBE_AFTER", "S3_PROBE_TIMEOUT", "UPLOAD_URL_EXPIRY_SECONDS", "UPLOAD_RETENTION_DAYS",
	} {
		require.ErrorContains(t, err, variable)
	}
	require.NoError(t, defaults(t, nil).Validate())
	for days, right := range map[int]bool{-1: false, 0: true, 36500: true, 36501: false} {
		c := defaults(t, nil)
		c.SourceRetentionDays = days
		require.Equal(t, right, c.Validate() == nil, days)
	}
}
