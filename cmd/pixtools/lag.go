package main

import (
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/projections"
)

// webhookGroup follows the log where webhooks are delivered.
const webhookGroup = "pixtools.webhooks"

// lagReader finds out how far every group that follows the log is behind.
func (s *services) lagReader(reader *projections.Reader) (*kafka.LagReader, error) {
	groups := []kafka.Group{
		{Name: events.SagaGroup}, {Name: webhookGroup, MayBeMissing: true},
		{Name: events.ProjectorGroup, Offsets: reader.Positions}, // it commits with its rows, not to Kafka
	}
	for _, name := range operations.Names() {
		groups = append(groups, kafka.Group{Name: events.OperationGroup + name})
	}
	return kafka.NewLagReader(s.cfg.Kafka, s.cfg.Lag, s.log, events.Topic, groups...)
}
