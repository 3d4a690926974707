package blob_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/blob"
)

// send puts a body where a request was signed for, changed as the test wants it, and returns the answer's status.
func send(t *testing.T, signed blob.PutRequest, body []byte, change func(*http.Request)) int {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), http.MethodPut, signed.URL, bytes.NewReader(body))
	require.NoError(t, err)
	for name, value := range signed.Headers {
		req.Header.Set(name, value)
	}
	if change != nil {
		change(req)
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	return resp.StatusCode
}

// directUploads: the server takes what was signed, and nothing else.
func directUploads(t *testing.T, cfg blob.Config) {
	s, ctx := open(t, cfg), testContext(t)
	const size = 1000
	body, sum := picture(t, size)
	other, _ := picture(t, size)
	sign := func(key string, sum *[sha256.Size]byte) blob.PutRequest {
		before := time.Now().Truncate(time.Second)
		signed, err := s.PresignPut(ctx, key, size, "image/png", sum)
		require.NoError(t, err)
		require.False(t, signed.ExpiresAt.Before(before.Add(time.Hour)))
		require.False(t, signed.KeptUntil.Before(before.AddDate(0, 0, 1)))
		return signed
	}
	plain, held := sign("uploads/plain", nil), sign("uploads/held", &sum)
	for name, c := range map[string]struct {
		signed blob.PutRequest
		body   []byte
		change func(*http.Request)
	}{
		"a byte less":   {plain, body[:size-1], nil},
		"a byte more":   {plain, append(bytes.Clone(body), 0), nil},
		"nothing":       {plain, nil, nil},
		"another type":  {plain, body, func(r *http.Request) { r.Header.Set("Content-Type", "text/html") }},
		"no type":       {plain, body, func(r *http.Request) { r.Header.Del("Content-Type") }},
		"another key":   {plain, body, func(r *http.Request) { r.URL.Path = strings.Replace(r.URL.Path, "plain", "other", 1) }},
		"another place": {plain, body, func(r *http.Request) { r.URL.Path = strings.Replace(r.URL.Path, "uploads/plain", "raw/plain", 1) }},
		"a longer expiry": {plain, body, func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "Expires=3600", "Expires=7200", 1)
		}},
		"fewer signed":        {plain, body, func(r *http.Request) { r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "content-length%3B", "", 1) }},
		"no signature":        {plain, body, func(r *http.Request) { r.URL.RawQuery = "" }},
		"another signature":   {plain, body, func(r *http.Request) { r.URL.RawQuery += "0" }},
		"deleting":            {plain, nil, func(r *http.Request) { r.Method = http.MethodDelete }},
		"other bytes":         {held, other, nil},
		"no checksum":         {held, other, func(r *http.Request) { r.Header.Del("X-Amz-Checksum-Sha256") }},
		"a checksum of other": {held, other, func(r *http.Request) { r.Header.Set("X-Amz-Checksum-Sha256", "AAAA") }},
	} {
		t.Run(name, func(t *testing.T) {
			status := send(t, c.signed, c.body, c.change)
			require.GreaterOrEqual(t, status, 400)
			require.Less(t, status, 500)
		})
	}
	for _, key := range []string{"uploads/plain", "uploads/held", "uploads/other", "raw/plain"} {
		_, err := s.Version(ctx, key)
		require.ErrorIs(t, err, blob.ErrNotFound, key)
	}
	for _, signed := range []blob.PutRequest{plain, plain, held, held} { // it may be sent again
		require.Equal(t, http.StatusOK, send(t, signed, body, nil))
	}
	for _, key := range []string{"uploads/plain", "uploads/held"} { // hashed here, and known to the server
		v, err := s.Version(ctx, key)
		require.NoError(t, err)
		require.EqualValues(t, size, v.Size)
		got, err := v.SHA256(ctx)
		require.NoError(t, err)
		require.Equal(t, sum, got)
		require.NoError(t, v.CopyTo(ctx, "raw/of-"+key, sum, "image/webp"))
		copied, err := s.Head(ctx, "raw/of-"+key)
		require.NoError(t, err)
		require.Equal(t, "image/webp", copied.ContentType)
		n, err := s.Download(ctx, "raw/of-"+key, io.Discard, sum)
		require.NoError(t, err)
		require.EqualValues(t, size, n)
	}

	t.Run("expired", func(t *testing.T) {
		cfg.UploadExpirySeconds = 1
		signed, err := open(t, cfg).PresignPut(ctx, "uploads/late", size, "image/png", nil)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return send(t, signed, body, nil) == http.StatusForbidden }, deadline, 100*time.Millisecond)
	})
	t.Run("under the public address", func(t *testing.T) {
		public := cfg
		public.PublicEndpoint = "https://pictures.example"
		signed, err := open(t, public).PresignPut(ctx, "uploads/public", size, "image/png", nil)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(signed.URL, "https://pictures.example/"), signed.URL)
	})
	t.Run("from a page", func(t *testing.T) { // the browser asks first, since it is of another origin
		req, err := http.NewRequestWithContext(ctx, http.MethodOptions, held.URL, nil)
		require.NoError(t, err)
		req.Header.Set("Origin", "https://pictures.example")
		req.Header.Set("Access-Control-Request-Method", http.MethodPut)
		req.Header.Set("Access-Control-Request-Headers", "content-type,x-amz-checksum-sha256")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		require.Contains(t, []string{"*", "https://pictures.example"}, resp.Header.Get("Access-Control-Allow-Origin"))
		require.Contains(t, resp.Header.Get("Access-Control-Allow-Methods"), http.MethodPut)
		require.Contains(t, resp.Header.Get("Access-Control-Allow-Headers"), "x-amz-checksum-sha256")
	})
}

// crossOrigin: where the server has rules by bucket, ours is set beside those of others, and what it does not
// name is refused. Where it has none it allows everything, as the page needs it.
func crossOrigin(t *testing.T, cfg blob.Config, has bool) {
	ctx := testContext(t)
	applied, err := open(t, cfg).EnsureCORS(ctx)
	require.NoError(t, err)
	require.False(t, applied, "nobody asked")
	cfg.CORSOrigins = []string{"https://pictures.example"}
	if has {
		_, err := plainClient(cfg).PutBucketCors(ctx, &s3.PutBucketCorsInput{Bucket: &cfg.Bucket, CORSConfiguration: &types.CORSConfiguration{CORSRules: []types.CORSRule{
			{ID: aws.String("theirs"), AllowedOrigins: []string{"https://theirs.example"}, AllowedMethods: []string{"GET"}}}}})
		require.NoError(t, err)
	}
	for _, origins := range [][]string{{"https://old.example"}, cfg.CORSOrigins, cfg.CORSOrigins} {
		cfg.CORSOrigins = origins
		applied, err := open(t, cfg).EnsureCORS(ctx)
		require.NoError(t, err)
		require.Equal(t, has, applied)
	}
	signed, err := open(t, cfg).PresignPut(ctx, "uploads/page", 3, "image/png", nil)
	require.NoError(t, err)
	preflight := func(origin, method string) string {
		req, err := http.NewRequestWithContext(ctx, http.MethodOptions, signed.URL, nil)
		require.NoError(t, err)
		req.Header.Set("Origin", origin)
		req.Header.Set("Access-Control-Request-Method", method)
		req.Header.Set("Access-Control-Request-Headers", "content-type,x-amz-checksum-sha256")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		return resp.Header.Get("Access-Control-Allow-Origin")
	}
	require.Equal(t, "https://pictures.example", preflight("https://pictures.example", http.MethodPut))
	if !has {
		return
	}
	require.NotEqual(t, "https://old.example", preflight("https://old.example", http.MethodPut))
	rules, err := plainClient(cfg).GetBucketCors(ctx, &s3.GetBucketCorsInput{Bucket: &cfg.Bucket})
	require.NoError(t, err)
	var ids []string
	for _, r := range rules.CORSRules {
		ids = append(ids, aws.ToString(r.ID))
	}
	require.ElementsMatch(t, []string{"pixtools-page", "theirs"}, ids)
}

// overwritten: who looked at one content gets that or an error, never the next one.
func overwritten(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	first, sum := picture(t, 3000)
	second, other := picture(t, 3000)
	for name, replace := range map[string]func(key string) error{
		"by other bytes": func(key string) error {
			return s.Put(ctx, key, bytes.NewReader(second), 3000, other, "image/png")
		},
		"deleted": func(key string) error { return s.Delete(ctx, key) },
	} {
		t.Run(name, func(t *testing.T) {
			key := "uploads/" + strings.ReplaceAll(name, " ", "-")
			require.NoError(t, s.Put(ctx, key, bytes.NewReader(first), 3000, sum, "image/png"))
			v, err := s.Version(ctx, key)
			require.NoError(t, err)
			_, err = v.Window(ctx, 1).ReadAt(make([]byte, 10), 0)
			require.NoError(t, err)
			require.NoError(t, replace(key))
			_, err = v.Window(ctx, 1).ReadAt(make([]byte, 10), 0)
			require.ErrorIs(t, err, blob.ErrChanged)
			require.ErrorIs(t, v.CopyTo(ctx, "raw/x/"+name, sum, "image/png"), blob.ErrChanged)
			_, err = s.Head(ctx, "raw/x/"+name)
			require.ErrorIs(t, err, blob.ErrNotFound)
		})
	}
	t.Run("a hash that is not its", func(t *testing.T) {
		require.NoError(t, s.Put(ctx, "uploads/h", bytes.NewReader(first), 3000, sum, "image/png"))
		v, err := s.Version(ctx, "uploads/h")
		require.NoError(t, err)
		require.ErrorIs(t, v.CopyTo(ctx, "raw/x/h", other, "image/png"), blob.ErrChanged)
	})
}

// window: pieces of an object are those of its bytes, and no more of them are fetched than allowed.
func window(t *testing.T, s *blob.Store) {
	ctx := testContext(t)
	const size = 2*blob.WindowBytes + 5
	body, sum := picture(t, size)
	require.NoError(t, s.Put(ctx, "uploads/w", bytes.NewReader(body), size, sum, "image/png"))
	v, err := s.Version(ctx, "uploads/w")
	require.NoError(t, err)
	read := func(w *blob.Window, at, n int64) error {
		got := make([]byte, n)
		read, err := w.ReadAt(got, at)
		want := body[min(at, size):min(at+n, size)]
		if !bytes.Equal(got[:read], want[:read]) || (err == nil) != (int64(read) == n) {
			return fmt.Errorf("%d at %d: %d bytes, %w", n, at, read, errors.Join(err, errors.New("not those of the object")))
		}
		return err
	}
	for reads, want := range map[int]error{2: blob.ErrTooManyReads, 3: nil, 4: nil} {
		w := v.Window(ctx, reads)
		require.NoError(t, read(w, 0, 10))
		require.NoError(t, read(w, 100, blob.WindowBytes-100)) // the same piece, to its end
		require.NoError(t, read(w, blob.WindowBytes-1, 2))     // over its edge
		require.ErrorIs(t, read(w, 2*blob.WindowBytes, 5), want, strconv.Itoa(reads))
	}
	w := v.Window(ctx, 1)
	require.ErrorIs(t, read(w, size-2, 4), io.EOF)
	require.ErrorIs(t, read(w, size, 1), io.EOF)
	require.ErrorIs(t, read(w, size+100, 1), io.EOF)
}

// TestDirectUploadLimits goes just below, at and above the limits.
func TestDirectUploadLimits(t *testing.T) {
	for variable, values := range map[string]struct{ good, bad []string }{
		"UPLOAD_URL_EXPIRY_SECONDS": {[]string{"1", "2", "86399", "86400"}, []string{"0", "86401"}},
		"UPLOAD_RETENTION_DAYS":     {[]string{"1", "2", "29", "30"}, []string{"0", "31"}},
		"S3_CORS_ORIGINS": {[]string{"", "*", "https://a.example,http://b.example:8000", origins(100)},
			[]string{"a.example", "https://a.example/", "https://a.example/x", "https://user@a.example", origins(101)}},
	} {
		for _, value := range values.good {
			require.NoError(t, defaults(t, map[string]string{variable: value}).Validate(), "%s=%s", variable, value)
		}
		for _, value := range values.bad {
			err := defaults(t, map[string]string{variable: value}).Validate()
			require.ErrorContains(t, err, variable, value)
		}
	}
}

func origins(n int) string { return strings.Repeat("https://a.example,", n-1) + "https://a.example" }
