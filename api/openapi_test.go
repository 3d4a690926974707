package api

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"
)

// spec is the document as the binary prints it.
func spec(t *testing.T) (*openapi3.T, []byte) {
	server, err := New(Config{MaxUploads: 1, MaxWaits: 1}, Parts{})
	require.NoError(t, err)
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(server.Spec())
	require.NoError(t, err)
	require.NoError(t, doc.Validate(loader.Context))
	return doc, server.Spec()
}

// The committed document is what the code says, and valid.
func TestOpenAPIIsValidAndCommitted(t *testing.T) {
	_, have := spec(t)
	committed, err := os.ReadFile("../schemas/openapi.json")
	require.NoError(t, err)
	require.Equal(t, string(committed), string(have), "stale: run build/bin/pixtools openapi >schemas/openapi.json")
}

// Clients are generated from the document: what they rely on is in it.
func TestOpenAPIDescribesTheContract(t *testing.T) {
	doc, _ := spec(t)
	post := doc.Paths.Value("/api/process").Post
	form := post.RequestBody.Value.Content.Get("multipart/form-data").Schema.Value
	require.ElementsMatch(t, []string{"operations"}, form.Required) // and file or upload
	require.Equal(t, "binary", form.Properties["file"].Value.Format)
	for _, status := range []string{"202", "400", "413", "422", "429", "503", "507"} {
		require.NotNil(t, post.Responses.Value(status), "POST /api/process does not describe %s", status)
	}
	require.Contains(t, post.Responses.Value("202").Value.Headers, PositionHeader)
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			require.NotEmpty(t, op.OperationID)
			require.NotEmpty(t, op.Summary)
			for status, response := range op.Responses.Map() {
				if status == "204" {
					require.Empty(t, response.Value.Content, op.OperationID)
					continue
				}
				require.Len(t, response.Value.Content, 1, "%s %s: one content type", op.OperationID, status)
			}
		}
	}
}

// Every path described is routed. A parameter is filled in with a job id.
func TestOpenAPIPathsAreRouted(t *testing.T) {
	doc, _ := spec(t)
	server, err := New(Config{MaxUploads: 1, MaxWaits: 1}, Parts{})
	require.NoError(t, err)
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			want := method + " " + path
			request := httptest.NewRequestWithContext(t.Context(), method, regexp.MustCompile(`\{[^}]+\}`).ReplaceAllString(path, "018f0000-0000-7000-8000-000000000001"), nil)
			_, pattern := server.mux.Handler(request)
			require.Equal(t, want, strings.TrimSpace(pattern))
		}
	}
}

// A route that does not say who may use it is found before it is served to anybody.
func TestRoutesSayWhoMayUseThem(t *testing.T) {
	doc := &openapi3.T{Paths: openapi3.NewPaths(openapi3.WithPath("/api/new", &openapi3.PathItem{Get: openapi3.NewOperation()}))}
	_, err := accessOf(doc)
	require.ErrorContains(t, err, "GET /api/new does not say who may use it")

	described, _ := spec(t)
	server, err := New(Config{MaxUploads: 1, MaxWaits: 1}, Parts{})
	require.NoError(t, err)
	for path, item := range described.Paths.Map() {
		for method, op := range item.Operations() {
			scope, guarded := server.access[method+" "+path]
			require.NotNil(t, op.Security, "%s %s", method, path)
			if !guarded || scope == anyScope {
				require.Empty(t, *op.Security, "%s %s", method, path)
				continue
			}
			require.Len(t, *op.Security, 3, "%s %s", method, path)
			require.Contains(t, op.Description, "Needs the scope "+string(scope))
			for _, status := range []string{"401", "403", "429"} {
				require.NotNil(t, op.Responses.Value(status), "%s %s: %s", method, path, status)
			}
		}
	}
}

// A name leads where its owner says, and a page of that name would read what we answer: only names that are ours count.
func TestOwnNames(t *testing.T) {
	ask := func(host string) *httptest.ResponseRecorder {
		request, answer := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil), httptest.NewRecorder()
		request.Host = host
		OwnNames(AuthConfig{Origins: []string{"https://Pictures.example:8443"}}, "laptop.lan", http.NotFoundHandler()).ServeHTTP(answer, request)
		return answer
	}
	for _, host := range []string{"", "localhost", "LOCALHOST.:8000", "pixtools.localhost:8000", "127.0.0.1", "127.0.0.1:8000", "192.0.2.7:1", "[::1]", "[::1]:8000",
		"[fe80::1%25lo]:8000", "laptop.lan:8000", "Laptop.LAN", "pictures.example", "pictures.example.:8443"} {
		require.Equal(t, http.StatusNotFound, ask(host).Code, host)
	}
	for _, host := range []string{"evil.example", "evil.example:8000", "EVIL.example.", "localhost.evil.example", "evillocalhost", "evil.pictures.example", "127.0.0.1.evil.example:8000",
		"example:8000", "[evil.example]:80", strings.Repeat("e", 5000)} {
		answer := ask(host)
		require.Equal(t, http.StatusMisdirectedRequest, answer.Code, host)
		require.Equal(t, "application/problem+json", answer.Header().Get("Content-Type"))
		require.NotEmpty(t, answer.Header().Get("X-Request-ID"))
		require.Contains(t, answer.Body.String(), "CORS_ORIGINS")
		require.Less(t, answer.Body.Len(), 500)
	}
}

// Without CORS_ORIGINS no page of another origin is told anything.
func TestNoOriginsByDefault(t *testing.T) {
	server, err := New(Config{MaxUploads: 1, MaxWaits: 1}, Parts{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	for _, method := range []string{"GET", "OPTIONS"} {
		request, answer := httptest.NewRequestWithContext(t.Context(), method, "/api/livez", nil), httptest.NewRecorder()
		request.Header.Set("Origin", "https://shop.example")
		request.Header.Set("Access-Control-Request-Method", "GET")
		server.ServeHTTP(answer, request)
		for name := range answer.Header() {
			require.NotContains(t, name, "Access-Control")
		}
	}
}
