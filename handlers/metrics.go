package handlers

import (
	"errors"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/telemetry"
)

var (
	jobsEnded = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_jobs_ended_total",
		Help: "Revisions of jobs that this process ended, by outcome, once their transaction was committed."}, []string{"outcome"})
	transactionsAborted = promauto.NewCounter(prometheus.CounterOpts{Name: "pixtools_saga_transactions_aborted_total",
		Help: "Transactions of the saga that a rebalance aborted; their records are read again."})
	webhooksAttempted = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_webhook_attempts_total",
		Help: "Attempts to post an outcome, by whether the receiver took it."}, []string{"outcome"})
)

func init() {
	webhooksAttempted.WithLabelValues("delivered")
	webhooksAttempted.WithLabelValues("failed")
	for outcome := range events.Outcome_name {
		if name := events.Outcome(outcome); name != events.Outcome_OUTCOME_UNSPECIFIED {
			jobsEnded.WithLabelValues(outcomeName(name))
		}
	}
}

func countWebhook(code string) {
	outcome := "delivered"
	if code != "" {
		outcome = "failed"
	}
	webhooksAttempted.WithLabelValues(outcome).Inc()
}

func outcomeName(outcome events.Outcome) string {
	return strings.ToLower(strings.TrimPrefix(outcome.String(), "OUTCOME_"))
}

// errAborted is what spans of ends say whose transaction was not committed.
var errAborted = errors.New("the transaction was not committed: its records are read again")

// finish ends the spans of what a transaction told.
func finish(changes map[int32]*changeSet, err error) {
	for _, c := range changes {
		for _, span := range c.spans {
			telemetry.End(span, err)
		}
		c.spans = nil
	}
}
