package projections

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ErrSlow says that the database has not answered within DATABASE_QUERY_TIMEOUT.
var ErrSlow = errors.New("the database has not answered in time")

// JobFilter says which jobs of a tenant are meant; empty members mean all.
type JobFilter struct {
	Tenant string
	// Standings: those that stand like one of these.
	Standings []Standing
	// Operation: those that were asked for it.
	Operation string
	// Since and Until are times at which they were requested: from Since, before Until.
	Since, Until time.Time
	// From and To are the first and the last id.
	From, To uuid.UUID
	// At: as they were when every event up to this time had happened, to the microsecond.
	At time.Time
}

// ListedJob is what a list shows of a job.
type ListedJob struct {
	ID         uuid.UUID
	CreatedAt  time.Time
	Operations []string
	Standing   Standing
	// Since is when it came to stand so.
	Since    time.Time
	Revision int32
}

// JobPlace is a job's place in a list, which is ordered by it, the newest first.
type JobPlace struct {
	CreatedAt time.Time
	ID        uuid.UUID
}

// where is the filter in SQL. A past state is told from the changes that a row keeps.
func (f JobFilter) where() (standing, conditions string, args []any) {
	standing = "standing"
	if !f.At.IsZero() {
		standing, args = standingAt, append(args, before(f.At))
	}
	var all []string
	must := func(condition string, arg any) {
		args = append(args, arg)
		all = append(all, fmt.Sprintf(condition, len(args)))
	}
	must("tenant = $%d", f.Tenant)
	if !f.At.IsZero() {
		must("created_at <= $%d", f.At)
	}
	if !f.Since.IsZero() {
		must("created_at >= $%d", f.Since)
	}
	if !f.Until.IsZero() {
		must("created_at < $%d", f.Until)
	}
	if f.Operation != "" {
		must("operations @> ARRAY[$%d::text]", f.Operation)
	}
	if f.To != uuid.Nil {
		must("job_id >= $%d", f.From)
		must("job_id <= $%d", f.To)
	}
	// In words, not as an argument: only so does Postgres see that an index is enough which
	// has no others.
	picked := fmt.Sprintf("(%s) <> %d", standing, Deleted)
	if len(f.Standings) > 0 {
		var words []string
		for _, s := range f.Standings {
			words = append(words, fmt.Sprint(s))
		}
		picked = fmt.Sprintf("(%s) IN (%s)", standing, strings.Join(words, ", "))
	}
	return standing, strings.Join(append(all, picked), " AND "), args
}

// Jobs lists jobs, the newest first, those behind a place where there is one; more says
// whether others follow.
func (r *Reader) Jobs(ctx context.Context, f JobFilter, behind *JobPlace, limit int) (page []ListedJob, more bool, err error) {
	_, conditions, args := f.where()
	if behind != nil {
		args = append(args, behind.CreatedAt, behind.ID)
		conditions += fmt.Sprintf(" AND (created_at, job_id) < ($%d, $%d)", len(args)-1, len(args))
	}
	args = append(args, limit+1)
	query := fmt.Sprintf("SELECT job_id, created_at, operations, changes FROM jobs WHERE %s ORDER BY created_at DESC, job_id DESC LIMIT $%d", conditions, len(args))
	upTo := before(time.UnixMicro(1 << 58)) // all
	if !f.At.IsZero() {
		upTo = before(f.At)
	}
	var job ListedJob
	var operations []string
	var changes []int64
	err = r.each(ctx, query, args, []any{&job.ID, &job.CreatedAt, &operations, &changes}, func() error {
		for len(changes) > 0 && changes[len(changes)-1] >= upTo {
			changes = changes[:len(changes)-1]
		}
		listed := job
		listed.CreatedAt, listed.Operations = job.CreatedAt.UTC(), append([]string{}, operations...)
		listed.Standing, listed.Since, listed.Revision = stood(changes)
		page = append(page, listed)
		return nil
	})
	if err == nil && len(page) > limit {
		return page[:limit], true, nil
	}
	return page, false, err
}

// JobTotals counts jobs by how they stand, and those of each operation.
type JobTotals struct {
	Jobs        map[Standing]int64
	ByOperation map[string]map[Standing]int64
}

// Totals counts the jobs that are meant.
func (r *Reader) Totals(ctx context.Context, f JobFilter) (JobTotals, error) {
	standing, conditions, args := f.where()
	totals := JobTotals{Jobs: map[Standing]int64{}, ByOperation: map[string]map[Standing]int64{}}
	var operations []string
	var stands Standing
	var count int64
	query := fmt.Sprintf("SELECT operations, (%s) AS stands, count(*) FROM jobs WHERE %s GROUP BY 1, 2", standing, conditions)
	err := r.each(ctx, query, args, []any{&operations, &stands, &count}, func() error {
		totals.Jobs[stands] += count
		for _, op := range operations {
			if totals.ByOperation[op] == nil {
				totals.ByOperation[op] = map[Standing]int64{}
			}
			totals.ByOperation[op][stands] += count
		}
		return nil
	})
	return totals, err
}

// each asks, within the time of a query, and does something with each row.
func (r *Reader) each(ctx context.Context, query string, args, into []any, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	rows, err := r.pool.Query(ctx, query, args...)
	if err == nil {
		_, err = pgx.ForEachRow(rows, into, do)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrSlow, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
