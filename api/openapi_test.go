package api

import (
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
	for _, status := range []string{"202", "400", "413", "422", "429", "503"} {
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
