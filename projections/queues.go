package projections

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

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

// work is what of an open job waits and what runs, as the columns have it: names with commas
// between. opened is since when, if the revision's first event is the one that was folded.
func work(job *events.Job) (pending, running string, opened time.Time) {
	opened = job.GetRequestedAt().AsTime()
	if job.GetRevision() > 1 {
		opened = job.GetUpdatedAt().AsTime()
	}
	if job.GetPhase() != events.Phase_PHASE_OPEN {
		return "", "", opened
	}
	var waiting, working []string
	for _, op := range job.GetOperations() {
		switch op.GetPhase() {
		case events.OperationPhase_OPERATION_PHASE_PENDING:
			waiting = append(waiting, op.GetName())
		case events.OperationPhase_OPERATION_PHASE_RUNNING:
			working = append(working, op.GetName())
		}
	}
	return strings.Join(waiting, ","), strings.Join(working, ","), opened
}

// fillPageRows is how many rows are filled in by one statement.
const fillPageRows = 1000

// fillQueues fills in what migration 2 added, in the rows of jobs that are open. They stay
// locked until it is committed, so a projector at work does not change them in between.
func fillQueues(ctx context.Context, tx *sql.Tx) error {
	for last := ""; ; {
		rows, err := tx.QueryContext(ctx, `SELECT job_id, state FROM jobs WHERE phase = $1 AND ($2 = '' OR job_id > $2::uuid)
			ORDER BY job_id LIMIT $3 FOR UPDATE`, int16(events.Phase_PHASE_OPEN), last, fillPageRows)
		if err != nil {
			return fmt.Errorf("read the open jobs: %w", err)
		}
		states, err := pageOf(rows)
		if err != nil {
			return fmt.Errorf("read the open jobs: %w", err)
		}
		var ids, pendings, runnings []string
		var openeds []time.Time
		for id, job := range states {
			pending, running, opened := work(job)
			ids, pendings, runnings, openeds = append(ids, id), append(pendings, pending), append(runnings, running), append(openeds, opened)
			last = max(last, id)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE jobs SET pending = string_to_array(new.pending, ','), running = string_to_array(new.running, ','),
				opened_at = new.opened
			FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[]) AS new (job_id, pending, running, opened)
			WHERE jobs.job_id = new.job_id`, ids, pendings, runnings, openeds); err != nil {
			return fmt.Errorf("fill in the work of %d jobs: %w", len(ids), err)
		}
		if len(states) < fillPageRows {
			return nil
		}
	}
}

func pageOf(rows *sql.Rows) (map[string]*events.Job, error) {
	defer rows.Close()
	states := map[string]*events.Job{}
	for rows.Next() {
		var id string
		var raw []byte
		if err := rows.Scan(&id, &raw); err != nil {
			return nil, err
		}
		job := &events.Job{}
		if err := proto.Unmarshal(raw, job); err != nil {
			return nil, fmt.Errorf("the stored state of job %s cannot be decoded; rebuild the read model: %w", id, err)
		}
		states[id] = job
	}
	return states, rows.Err()
}
