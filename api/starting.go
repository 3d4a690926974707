package api

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/pixtools/pixtools/internal/telemetry"
)

// Starting answers while the process waits for parts at its start: health and the probes
// tell of it, everything else is 503. Of parts it needs those that health asks. waitedFor
// names the parts that are still to come, as health does.
func Starting(parts Parts, waitedFor func() []string) http.Handler {
	s := &Server{Parts: parts}
	answer := func(w http.ResponseWriter, status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/health", func(w http.ResponseWriter, r *http.Request) {
		h := s.report(r.Context(), waitedFor()...)
		// Also where all came this moment: no picture would be processed yet.
		h.Status = "unhealthy"
		h.Detail = &HealthDetail{h.Status, h.Dependencies}
		answer(w, http.StatusServiceUnavailable, h)
	})
	mux.HandleFunc("GET /api/livez", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, Alive{"alive"})
	})
	mux.Handle("GET "+telemetry.MetricsPath, telemetry.Metrics())
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		what := "PixTools is starting."
		if names := waitedFor(); len(names) > 0 {
			what = "PixTools is starting and waits for " + strings.Join(names, ", ") + "."
		}
		unavailable(what, nil).write(w)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		identify(w, r)
		mux.ServeHTTP(w, r)
	})
}
