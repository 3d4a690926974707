package processors

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/pixtools/pixtools/events"
)

// The outcomes of an attempt, as metrics have them.
const (
	outcomeCompleted = "completed"
	outcomeFailed    = "failed"    // for good: OperationFailed
	outcomeAgain     = "again"     // it is tried again, here or elsewhere
	outcomeStopped   = "cancelled" // nobody waits for it any more
)

var (
	attempts = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_attempts_total",
		Help: "Attempts by outcome, and by the kind of failure where they failed for good: input, world or internal."}, []string{"operation", "outcome", "kind"})
	attemptDuration = promauto.NewHistogramVec(prometheus.HistogramOpts{Name: "pixtools_attempt_duration_seconds",
		Help:    "From an attempt's begin to its outcome in the log, waiting for storage included.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}}, []string{"operation"})
	queueAge = promauto.NewHistogramVec(prometheus.HistogramOpts{Name: "pixtools_queue_age_seconds",
		Help:    "From the request to the begin of the first attempt.",
		Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300, 900, 1800, 3600}}, []string{"operation"})
	inProgress = promauto.NewGaugeVec(prometheus.GaugeOpts{Name: "pixtools_attempts_in_progress",
		Help: "Attempts that have begun here and have no outcome yet."}, []string{"operation"})
)

// countFrom0 has an operation's metrics there before anything happens, so that a rate sees the first.
func countFrom0(operation string) {
	for _, outcome := range []string{outcomeCompleted, outcomeAgain, outcomeStopped} {
		attempts.WithLabelValues(operation, outcome, "")
	}
	for _, kind := range []events.FailureKind{events.FailureKind_FAILURE_KIND_INPUT, events.FailureKind_FAILURE_KIND_WORLD, events.FailureKind_FAILURE_KIND_INTERNAL} {
		attempts.WithLabelValues(operation, outcomeFailed, kindName(kind))
	}
	attemptDuration.WithLabelValues(operation)
	queueAge.WithLabelValues(operation)
	inProgress.WithLabelValues(operation)
}

func kindName(kind events.FailureKind) string {
	return strings.ToLower(strings.TrimPrefix(kind.String(), "FAILURE_KIND_"))
}
