package projections

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/telemetry"
)

var (
	eventsApplied = promauto.NewCounter(prometheus.CounterOpts{Name: "pixtools_projector_events_total",
		Help: "Events that the projector applied."})
	eventAge = promauto.NewHistogram(prometheus.HistogramOpts{Name: "pixtools_projector_event_age_seconds",
		Help:    "From an event to the commit that shows it to queries.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600, 3600}})
	applyDuration = promauto.NewHistogram(prometheus.HistogramOpts{Name: "pixtools_projector_apply_seconds",
		Help:    "How long one transaction of the projector took.",
		Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}})
)

// applied tells of a transaction: a span in the trace of each event, as its record carries it,
// so that a job's trace shows when it was to be seen. A rebuild tells nothing of itself.
func (s *session) applied(batch []located, records []*kgo.Record, begun time.Time, err error) {
	if s.beside {
		return
	}
	ended := time.Now()
	applyDuration.Observe(ended.Sub(begun).Seconds())
	for i, e := range batch {
		if telemetry.Sending() {
			_, span := telemetry.Process(context.Background(), "project", events.ProjectorGroup, e.Event, records[i], begun)
			telemetry.End(span, err)
		}
		if err == nil {
			eventAge.Observe(max(ended.Sub(e.Time), 0).Seconds())
		}
	}
	if err == nil {
		eventsApplied.Add(float64(len(batch)))
	}
}

// Joined says whether the projector is a member of its group.
func (p *Projector) Joined() bool { return kafka.Joined(p.client.Load()) }
