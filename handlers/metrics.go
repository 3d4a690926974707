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
	passes = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_janitor_passes_total",
		Help: "Passes of the janitor that ended, by step (expire, uploads, sweep) and outcome (complete, failed)."}, []string{"step", "outcome"})
	lastPass = promauto.NewGaugeVec(prometheus.GaugeOpts{Name: "pixtools_janitor_last_pass_timestamp_seconds",
		Help: "When the last complete pass of a step ended; before that, since when this process has been doing passes. 0: another process does them."}, []string{"step"})
	passInterval = promauto.NewGaugeVec(prometheus.GaugeOpts{Name: "pixtools_janitor_interval_seconds",
		Help: "How often a step is to be passed: JANITOR_INTERVAL, JANITOR_SWEEP_INTERVAL. 0: another process does it."}, []string{"step"})
	objectsRemoved = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_janitor_removed_objects_total",
		Help: "Stored objects that the janitor removed, by reason."}, []string{"why"})
	bytesRemoved = promauto.NewCounterVec(prometheus.CounterOpts{Name: "pixtools_janitor_removed_bytes_total",
		Help: "Bytes of the stored objects that the janitor removed, by reason."}, []string{"why"})
)

func init() {
	webhooksAttempted.WithLabelValues("delivered")
	webhooksAttempted.WithLabelValues("failed")
	for _, step := range janitorSteps {
		passes.WithLabelValues(step, "complete")
		passes.WithLabelValues(step, "failed")
		lastPass.WithLabelValues(step)
		passInterval.WithLabelValues(step)
	}
	for _, name := range removals {
		objectsRemoved.WithLabelValues(name)
		bytesRemoved.WithLabelValues(name)
	}
	for outcome := range events.Outcome_name {
		if name := events.Outcome(outcome); name != events.Outcome_OUTCOME_UNSPECIFIED {
			jobsEnded.WithLabelValues(outcomeName(name))
		}
	}
}

// removals are the reasons why objects are removed, as metrics name them.
var removals = map[Why]string{WhyExpired: "expired", WhyDeleted: "deleted", WhyOrphan: "orphan", WhyReplaced: "replaced", WhyNote: "note", WhyUpload: "upload"}

func countRemoved(why Why, bytes int64) {
	objectsRemoved.WithLabelValues(removals[why]).Inc()
	bytesRemoved.WithLabelValues(removals[why]).Add(float64(bytes))
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
