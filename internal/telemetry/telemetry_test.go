package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/trace"

	"github.com/pixtools/pixtools/events"
)

const (
	jobID  = "018f0000-0000-7000-8000-000000000001"
	parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	require.NoError(t, Config{}.Validate())
	require.False(t, Config{}.Traces())
	good := Config{PrivateAddr: "0.0.0.0:9090", PprofAddr: "0.0.0.0:9090", Endpoint: "http://localhost:4318", Protocol: "http/protobuf", TracesExporter: "otlp",
		Sampler: "parentbased_traceidratio", SamplerArg: "0.1"}
	require.NoError(t, good.Validate())
	require.True(t, good.Traces())
	for _, off := range []func(*Config){func(c *Config) { c.Disabled = true }, func(c *Config) { c.TracesExporter = "none" }, func(c *Config) { c.Endpoint = "" }} {
		c := good
		off(&c)
		require.NoError(t, c.Validate())
		require.False(t, c.Traces())
	}
	require.Equal(t, "127.0.0.1:1", Config{PprofAddr: "127.0.0.1:1"}.Address())
	for says, c := range map[string]Config{
		`PRIVATE_ADDR is "9090"`:                            {PrivateAddr: "9090"},
		`PRIVATE_ADDR is "localhost:0"`:                     {PrivateAddr: "localhost:0"},
		`PRIVATE_ADDR is "localhost:65536"`:                 {PrivateAddr: "localhost:65536"},
		`the second is the first's old name`:                {PrivateAddr: "localhost:1", PprofAddr: "localhost:2"},
		"OTEL_EXPORTER_OTLP_ENDPOINT is no http":            {Endpoint: "localhost:4317"},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is no http":     {TracesEndpoint: "ftp://x"},
		`OTEL_EXPORTER_OTLP_PROTOCOL is "grpc"`:             {Protocol: "grpc"},
		`OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is "http/json"`: {TracesProtocol: "http/json"},
		`OTEL_TRACES_EXPORTER is "console"`:                 {TracesExporter: "console"},
		`OTEL_TRACES_SAMPLER is "sometimes"`:                {Sampler: "sometimes"},
		`OTEL_TRACES_SAMPLER_ARG is "1.01"`:                 {SamplerArg: "1.01"},
		`OTEL_TRACES_SAMPLER_ARG is "-0.01"`:                {SamplerArg: "-0.01"},
	} {
		require.ErrorContains(t, c.Validate(), says)
	}
	for _, edge := range []string{"0", "1"} {
		require.NoError(t, Config{SamplerArg: edge}.Validate())
	}
	require.NoError(t, Config{PrivateAddr: "localhost:65535"}.Validate())
}

// TestLines: a line has what its context is about, also below With and groups, and nothing else.
func TestLines(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(NewHandler(slog.NewJSONHandler(&out, nil))).With("role", "test")
	line := func() (l map[string]any) {
		require.NoError(t, json.Unmarshal(out.Bytes(), &l))
		out.Reset()
		return l
	}
	log.Info("nothing")
	require.NotContains(t, line(), "job_id")
	request := With(t.Context(), About{RequestID: "r"})
	e := events.New(jobID, time.Unix(0, 0), "test", "r2", &events.JobRequested{})
	e.TraceParent = parent
	log.InfoContext(With(OfEvent(request, e), About{Operation: "webp"}), "all")
	l := line()
	require.Equal(t, []any{"test", "r2", jobID, "webp", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"},
		[]any{l["role"], l["request_id"], l["job_id"], l["operation"], l["trace_id"], l["span_id"]})
	log.InfoContext(request, "the first is as it was")
	require.Equal(t, "r", line()["request_id"])
}

// TestTraceOfRequest: a caller's trace goes on; what is none is not taken over, and there is one
// all the same.
func TestTraceOfRequest(t *testing.T) {
	t.Parallel()
	header := http.Header{}
	header.Set("traceparent", parent)
	require.Equal(t, parent, TraceParent(OfRequest(t.Context(), header)))
	for _, odd := range []string{"", "nonsense", "00-00000000000000000000000000000000-b7ad6b7169203331-01", parent + "0"} {
		header.Set("traceparent", odd)
		ctx := OfRequest(t.Context(), header)
		require.True(t, trace.SpanContextFromContext(ctx).IsValid())
		require.False(t, trace.SpanContextFromContext(ctx).IsSampled(), "it was nobody's wish")
		require.NotContains(t, TraceParent(ctx), "0af7651916cd43dd8448eb211c80319c")
		require.Equal(t, TraceParent(ctx), TraceParent(OfRequest(ctx, http.Header{})), "one request, one trace")
	}
	require.Empty(t, TraceParent(t.Context()))
}

// TestRecordsCarryTheTrace: published within a trace they carry it, whatever they had before;
// without one they are as they were.
func TestRecordsCarryTheTrace(t *testing.T) {
	t.Parallel()
	e := events.New(jobID, time.Unix(0, 0), "test", "r", &events.JobRequested{})
	r, err := e.Record()
	require.NoError(t, err)
	headers := len(r.Headers)
	Publish(t.Context(), []*kgo.Record{r}).End()
	require.Len(t, r.Headers, headers)
	e.TraceParent = parent
	for range 2 {
		Publish(OfEvent(t.Context(), e), []*kgo.Record{r}).End()
		read, err := events.Decode(r)
		require.NoError(t, err)
		require.Equal(t, parent, read.TraceParent)
		require.Len(t, r.Headers, headers+1)
	}
	e.TraceParent = "nonsense"
	require.Empty(t, TraceParent(OfEvent(t.Context(), e)))
}

// TestReadiness: one role that does not take work makes the process not ready.
func TestReadiness(t *testing.T) {
	t.Parallel()
	states := map[string]string{"saga": Ready, "api": "waits for kafka"}
	handler := Private(func() map[string]string { return states })
	ask := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w
	}
	w := ask("/readyz")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Contains(t, w.Body.String(), "waits for kafka")
	states["api"] = Ready
	require.Equal(t, http.StatusOK, ask("/readyz").Code)
	require.Equal(t, http.StatusOK, ask("/livez").Code)
	Fault(Redis)
	require.Contains(t, ask("/metrics").Body.String(), `pixtools_dependency_faults_total{dependency="redis"}`)
}

func TestWhoseFault(t *testing.T) {
	t.Parallel()
	require.False(t, databasesFault(nil))
	require.False(t, databasesFault(t.Context().Err()))
	require.True(t, databasesFault(errors.New("connection refused")))
}
