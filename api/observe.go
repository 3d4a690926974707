package api

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/pixtools/pixtools/internal/telemetry"
)

var (
	// requestDuration counts, by its _count, and measures. A stream and a query with wait= take as
	// long as their clients ask.
	requestDuration = promauto.NewHistogramVec(prometheus.HistogramOpts{Name: "pixtools_http_request_duration_seconds",
		Help:    "Requests by route, method and status, and how long they took to the last byte.",
		Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10, 60}}, []string{"route", "method", "status"})
	requestsInProgress = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_http_requests_in_progress",
		Help: "Requests that are being answered, streams included."})
	answerBytes = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_http_response_bytes_total",
		Help: "Bytes of bodies answered, as sent."}, []string{"route"})
	uploadsInProgress = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_uploads_in_progress",
		Help: "Uploads that are arriving, of MAX_CONCURRENT_UPLOADS."})
	streamsOpen = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_streams_open",
		Help: "Event streams that are open, of MAX_STREAMS."})
	waitsOpen = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_reads_waiting",
		Help: "Queries that wait for a job's end, of MAX_WAITING_READS."})
	spoolBytes = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_spool_bytes",
		Help: "Bytes that uploads in progress have on disk, of SPOOL_MAX_BYTES."})
	spoolLimit   = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_spool_limit_bytes", Help: "SPOOL_MAX_BYTES."})
	jobsAccepted = promauto.NewCounter(prometheus.CounterOpts{Name: "pixtools_jobs_accepted_total",
		Help: "Jobs whose JobRequested this process put into the log."})
)

// methods are those that are told apart; a client may send any word as one.
var methods = map[string]bool{http.MethodGet: true, http.MethodHead: true, http.MethodPost: true, http.MethodPut: true, http.MethodDelete: true, http.MethodOptions: true}

// routeOf is a pattern's path, bounded in number: what the page is made of is one.
func routeOf(pattern string) string {
	_, path, _ := strings.Cut(pattern, " ")
	switch {
	case path == "":
		return "unmatched"
	case strings.HasPrefix(path, "/api/"), path == telemetry.MetricsPath, path == "/openapi.json":
		return path
	}
	return "page"
}

// probed are asked every few seconds by machines.
var probed = map[string]bool{"/api/livez": true, "/api/readyz": true, "/api/health": true, telemetry.MetricsPath: true}

// jobIn is the job that a path names where its pattern has it, or empty.
func jobIn(pattern, path string) string {
	before, _, found := strings.Cut(pattern, "{job_id}")
	if _, before, _ = strings.Cut(before, " "); !found {
		return ""
	}
	named, _, _ := strings.Cut(strings.TrimPrefix(path, before), "/")
	id, _ := jobID(named)
	return id
}

// made notes the job that the request of ctx makes.
func made(ctx context.Context, jobID string) context.Context {
	if seen, ok := ctx.Value(requestKey{}).(*request); ok {
		seen.jobID = jobID
	}
	return telemetry.With(ctx, telemetry.About{JobID: jobID})
}

// observe begins to look at a request; what it returns tells of it: a line, which has neither
// the path, which may name a file, nor the query, nor headers.
func (s *Server) observe(r *http.Request, seen *request, pattern string, answer *quiet) (end func()) {
	begun := time.Now()
	requestsInProgress.Inc()
	route, method := routeOf(pattern), r.Method
	if !methods[method] {
		method = "other"
	}
	if span := trace.SpanFromContext(r.Context()); span.IsRecording() {
		span.SetName(method + " " + route)
		span.SetAttributes(semconv.HTTPRoute(route))
	}
	return func() {
		took := time.Since(begun)
		status := answer.status
		if status == 0 {
			status = http.StatusOK // nothing was written, or nobody was there to read it
		}
		requestsInProgress.Dec()
		requestDuration.WithLabelValues(route, method, strconv.Itoa(status)).Observe(took.Seconds())
		answerBytes.WithLabelValues(route).Add(float64(answer.bytes))
		level := slog.LevelInfo
		if probed[route] {
			level = slog.LevelDebug
		}
		ctx := telemetry.With(r.Context(), telemetry.About{JobID: seen.jobID})
		s.Log.Log(ctx, level, "request", "method", method, "route", route, "status", status,
			"duration_ms", float64(took.Microseconds())/1000, "bytes", answer.bytes)
	}
}

// traced puts a span around every request but the probes', where spans are sent.
func traced(inner http.Handler) http.Handler {
	if !telemetry.Sending() {
		return inner
	}
	return otelhttp.NewHandler(inner, "request", otelhttp.WithFilter(func(r *http.Request) bool { return !probed[r.URL.Path] }))
}
