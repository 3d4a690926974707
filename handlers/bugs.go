package handlers

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// produceOutside is what the deliberate bug saga-outside-transaction does (internal/bug):
// what was written stays, also where the transaction is aborted.
func (s *Saga) produceOutside(ctx context.Context, r *kgo.Record) {
	client, err := kgo.NewClient(append(slices.Clone(s.opts), kgo.RecordPartitioner(partitioner{}))...)
	if err != nil {
		return
	}
	defer client.Close()
	_ = client.ProduceSync(ctx, r).FirstErr()
}
