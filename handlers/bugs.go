package handlers

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
)

// produceOutside is what the deliberate bug saga-outside-transaction does (internal/bug):
// the events are written by themselves, and stay where the transaction is aborted. It gives
// the other records.
func (s *Saga) produceOutside(ctx context.Context, records []*kgo.Record) []*kgo.Record {
	return slices.DeleteFunc(records, func(r *kgo.Record) bool {
		if r.Topic != events.Topic {
			return false
		}
		if client, err := kgo.NewClient(append(slices.Clone(s.opts), kgo.RecordPartitioner(partitioner{}))...); err == nil {
			defer client.Close()
			_ = client.ProduceSync(ctx, r).FirstErr()
		}
		return true
	})
}
