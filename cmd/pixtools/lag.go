package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/projections"
)

// lagReader finds out how far every group that follows the log is behind.
func (s *services) lagReader(reader *projections.Reader) (*kafka.LagReader, error) {
	groups := []kafka.Group{
		{Name: events.SagaGroup}, {Name: events.WebhooksGroup, MayBeMissing: true}, {Name: events.JanitorGroup, MayBeMissing: true},
		{Name: events.ProjectorGroup, Offsets: reader.Positions}, // it commits with its rows, not to Kafka
	}
	for _, name := range operations.Names() {
		groups = append(groups, kafka.Group{Name: events.OperationGroup + name})
	}
	return kafka.NewLagReader(s.cfg.Kafka, s.cfg.Lag, s.log, events.Topic, groups...)
}

var (
	lagSeconds = prometheus.NewDesc("pixtools_group_lag_seconds",
		"The age of the oldest record that a consumer group has not passed; 0 where it has passed all. Every process with the role api says the same.", []string{"group"}, nil)
	lagRecords = prometheus.NewDesc("pixtools_group_lag_records",
		"At most so many records are not passed by a consumer group.", []string{"group"}, nil)
)

// lagMetrics asks for the lags when it is asked, at most as often as KAFKA_LAG_REFRESH_INTERVAL
// says. What is not known now is left out.
type lagMetrics struct{ reader *kafka.LagReader }

// Describe is for the registry.
func (m lagMetrics) Describe(to chan<- *prometheus.Desc) { to <- lagSeconds; to <- lagRecords }

// Collect is for the registry.
func (m lagMetrics) Collect(to chan<- prometheus.Metric) {
	lags, err := m.reader.Lags(context.Background()) // KAFKA_LAG_TIMEOUT bounds it
	if err != nil {
		return
	}
	for group, lag := range lags.Groups {
		if lag.Err == nil {
			to <- prometheus.MustNewConstMetric(lagSeconds, prometheus.GaugeValue, lag.Age.Seconds(), group)
			to <- prometheus.MustNewConstMetric(lagRecords, prometheus.GaugeValue, float64(lag.Records), group)
		}
	}
}
