package telemetry

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MetricsPath is where metrics are, on either port.
const MetricsPath = "/metrics"

// Metrics serves everything that this process counts.
func Metrics() http.Handler {
	return promhttp.InstrumentMetricHandler(prometheus.DefaultRegisterer, promhttp.HandlerFor(prometheus.DefaultGatherer, promhttp.HandlerOpts{
		EnableOpenMetrics: true, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes}))
}

// maxScrapes bounds the scrapes that are answered at once; one more is answered 503.
const maxScrapes = 8

// Readiness is what /readyz answers.
type Readiness struct {
	Status string `json:"status"`
	// Roles says of each role that it is ready, or what it waits for.
	Roles map[string]string `json:"roles"`
}

// Ready is what a role that takes work says of itself.
const Ready = "ready"

// Private is what the private port serves: metrics, probes, profiles. roles tells how each role is.
func Private(roles func() map[string]string) http.Handler {
	answer := func(w http.ResponseWriter, status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, Metrics())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r, status := Readiness{Status: Ready, Roles: roles()}, http.StatusOK
		for _, state := range r.Roles {
			if state != Ready {
				r.Status, status = "not ready", http.StatusServiceUnavailable
			}
		}
		answer(w, status, r)
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
