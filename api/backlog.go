package api

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/projections"
)

// What the read model says is to be done, looked at once for all scrapes. Every process with the
// role api says the same; take the greatest.
var (
	queueWaiting = promauto.NewGaugeVec(prometheus.GaugeOpts{Name: "pixtools_queue_waiting",
		Help: "Operations of open jobs that no attempt has begun on."}, []string{"operation"})
	queueRunning = promauto.NewGaugeVec(prometheus.GaugeOpts{Name: "pixtools_queue_running",
		Help: "Operations of open jobs that an attempt has begun on."}, []string{"operation"})
	queueOldest = promauto.NewGaugeVec(prometheus.GaugeOpts{Name: "pixtools_queue_oldest_seconds",
		Help: "For how long the oldest waiting operation waits; 0 where none does. Beyond QUEUE_MAX_AGE, submissions are refused."}, []string{"operation"})
	unfinishedJobs = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_unfinished_jobs",
		Help: "Jobs that are open."})
	oldestUnfinished = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_oldest_unfinished_job_seconds",
		Help: "For how long the oldest open job is open; 0 where none is. JOB_DEADLINE bounds it."})
	lookedAt atomic.Pointer[time.Time]
)

func init() {
	begun := time.Now()
	promauto.NewGaugeFunc(prometheus.GaugeOpts{Name: "pixtools_read_model_age_seconds",
		Help: "How old what queries show may be: since the last moment of which the read model is known to have everything."}, func() float64 {
		at := lookedAt.Load()
		if at == nil {
			at = &begun
		}
		return time.Since(*at).Seconds()
	})
}

// tellBacklog has the metrics say what was seen of a time.
func (s *Server) tellBacklog(ctx context.Context, at time.Time, queues map[string]projections.Queue) error {
	open, since, err := s.Reader.Unfinished(ctx)
	if err != nil {
		return err
	}
	unfinishedJobs.Set(float64(open))
	oldestUnfinished.Set(ageAt(at, since))
	for _, name := range operations.Names() {
		q := queues[name]
		queueWaiting.WithLabelValues(name).Set(float64(q.Waiting))
		queueRunning.WithLabelValues(name).Set(float64(q.Running))
		queueOldest.WithLabelValues(name).Set(ageAt(at, q.Oldest))
	}
	lookedAt.Store(&at)
	return nil
}

// ageAt is 0 for what is not there.
func ageAt(at, since time.Time) float64 {
	if since.IsZero() {
		return 0
	}
	return max(at.Sub(since), 0).Seconds()
}
