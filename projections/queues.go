package projections

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pixtools/pixtools/events"
)

// Queue is what is to be done of one operation.
type Queue struct {
	Waiting, Running int64
	// Oldest is since when the longest waiting work waits; zero where none does.
	Oldest time.Time
}

// Queues counts the work of open jobs, by operation; one without work is left out.
func (r *Reader) Queues(ctx context.Context) (map[string]Queue, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	rows, err := r.pool.Query(ctx, `SELECT work.operation, count(*) FILTER (WHERE work.waits), count(*) FILTER (WHERE NOT work.waits),
			min(opened_at) FILTER (WHERE work.waits)
		FROM jobs, LATERAL (SELECT unnest(pending), true UNION ALL SELECT unnest(running), false) AS work (operation, waits)
		WHERE phase = $1 GROUP BY work.operation`, int16(events.Phase_PHASE_OPEN))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	queues := map[string]Queue{}
	var operation string
	var q Queue
	var oldest *time.Time
	if _, err := pgx.ForEachRow(rows, []any{&operation, &q.Waiting, &q.Running, &oldest}, func() error {
		q.Oldest = time.Time{}
		if oldest != nil {
			q.Oldest = *oldest
		}
		queues[operation] = q
		return nil
	}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return queues, nil
}

// Unfinished counts the open jobs, and says since when the oldest is open; zero where none is.
func (r *Reader) Unfinished(ctx context.Context) (open int64, since time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	var oldest *time.Time
	if err := r.pool.QueryRow(ctx, "SELECT count(*), min(opened_at) FROM jobs WHERE phase = $1", int16(events.Phase_PHASE_OPEN)).Scan(&open, &oldest); err != nil {
		return 0, since, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if oldest != nil {
		since = *oldest
	}
	return open, since, nil
}

// Passed says whether the projection has applied everything before these offsets, by
// partition, as far as we have heard.
func (r *Reader) Passed(ends map[int32]int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for partition, end := range ends {
		if r.next[partition] < end {
			return false
		}
	}
	return true
}

// work is what of an open job waits and what runs.
func work(job *events.Job) (pending, running []string) {
	pending, running = []string{}, []string{} // COPY would take nil for NULL
	if job.GetPhase() != events.Phase_PHASE_OPEN {
		return pending, running
	}
	for _, op := range job.GetOperations() {
		switch op.GetPhase() {
		case events.OperationPhase_OPERATION_PHASE_PENDING:
			pending = append(pending, op.GetName())
		case events.OperationPhase_OPERATION_PHASE_RUNNING:
			running = append(running, op.GetName())
		}
	}
	return pending, running
}
