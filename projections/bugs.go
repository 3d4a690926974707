package projections

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
)

// What the deliberate bugs do (internal/bug), where that takes more than a line.

// advanceAlone moves the offsets in a transaction of their own, before the rows.
func (s *session) advanceAlone(ctx context.Context, moved map[int32]int64) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return s.advance(ctx, tx, moved) })
	if err != nil {
		return err
	}
	for partition, next := range moved {
		s.next[partition] = next
	}
	return bug.Slow(ctx) // so that a kill meets the moment between the two
}

var firstRead sync.Map

// remembered is the job as this process first read it.
func remembered(job *events.Job) *events.Job {
	first, _ := firstRead.LoadOrStore(job.GetId(), job)
	return first.(*events.Job)
}
