package handlers

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
)

// tellEarly is what the deliberate bug webhook-told-early does: it says that an attempt has
// succeeded.
func (h *Webhooks) tellEarly(ctx context.Context, a *attempt) {
	decided, err := commands.WebhookAttempted{WebhookPolicy: h.cfg.policy(), Revision: a.revision, Attempt: a.number, HTTPStatus: http.StatusNoContent, At: time.Now()}.Decide(a.state)
	if err == nil {
		_ = h.tell(ctx, decided)
	}
}

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
