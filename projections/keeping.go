package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pixtools/pixtools/events"
)

// keptSince is from when what an ended job has stored counts: its source, and the oldest of
// its results. Nil: there is none, or the job is open, and nothing of it expires.
func keptSince(job *events.Job) (source, results *time.Time) {
	if job.GetPhase() != events.Phase_PHASE_ENDED {
		return nil, nil
	}
	if !job.GetSourceExpired() {
		at := job.GetRequestedAt().AsTime()
		source = &at
	}
	for _, op := range job.GetOperations() {
		if op.GetArtifact() == nil || op.GetArtifactExpired() {
			continue
		}
		if at := op.MadeAt(); results == nil || at.Before(*results) {
			results = &at
		}
	}
	return source, results
}

// EachDue gives ended jobs, whose ever they are, that have a source, or else a result, from a
// time or before it, the oldest first. Each page, of so many jobs, is a query of its own.
func (r *Reader) EachDue(ctx context.Context, source bool, until time.Time, page int, each func(*events.Job) error) error {
	column := "results_since"
	if source {
		column = "source_since"
	}
	query := fmt.Sprintf(`SELECT job_id::text, %[1]s, state FROM jobs WHERE %[1]s <= $1 AND (%[1]s, job_id) > ($2, $3::uuid)
		ORDER BY %[1]s, job_id LIMIT $4`, column)
	since, id := time.Unix(0, 0), "00000000-0000-0000-0000-000000000000"
	for {
		var jobs []*events.Job
		var raw []byte
		var decoding error
		err := r.each(ctx, query, []any{until, since, id, page}, []any{&id, &since, &raw}, func() error {
			job, err := decode(id, raw)
			decoding = errors.Join(decoding, err)
			jobs = append(jobs, job)
			return nil
		})
		if err := errors.Join(err, decoding); err != nil {
			return err
		}
		for _, job := range jobs {
			if err := each(job); err != nil {
				return err
			}
		}
		if len(jobs) < page {
			return nil
		}
	}
}

// Ledger is what the read model has of some jobs, and how far it was then.
type Ledger struct {
	Jobs map[string]*events.Job
	next map[int32]int64
}

// Passed says whether the read model had applied everything before an offset.
func (l Ledger) Passed(partition int32, end int64) bool { return l.next[partition] >= end }

// Ledger reads jobs, whose ever they are, and the positions, in one statement: so what is
// said of a job, and that there is none, is said at these positions, also while the read
// model is swapped or begun anew.
func (r *Reader) Ledger(ctx context.Context, ids []string) (Ledger, error) {
	l := Ledger{Jobs: map[string]*events.Job{}, next: map[int32]int64{}}
	var id *string
	var raw []byte
	var partition *int32
	var next *int64
	var decoding error
	err := r.each(ctx, `SELECT NULL::text, NULL::bytea, partition, next_offset FROM positions WHERE log_id = $1
		UNION ALL SELECT job_id::text, state, NULL, NULL FROM jobs WHERE job_id = ANY($2::uuid[])`,
		[]any{r.logID[:], ids}, []any{&id, &raw, &partition, &next}, func() error {
			if partition != nil {
				l.next[*partition] = *next
				return nil
			}
			job, err := decode(*id, raw)
			decoding = errors.Join(decoding, err)
			l.Jobs[*id] = job
			return nil
		})
	return l, errors.Join(err, decoding)
}

// EachOf gives every job of a tenant that was not deleted, in the order of the ids. Each page
// is a query of its own.
func (r *Reader) EachOf(ctx context.Context, tenant string, each func(*events.Job) error) error {
	return r.eachPage(ctx, "tenant = $2 AND phase <> $3", []any{tenant, int16(events.Phase_PHASE_DELETED)}, each)
}

// Events says at which offsets of its partition a job's events lie, whose ever it is, those that
// were passed over included.
func (r *Reader) Events(ctx context.Context, id string) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	var places []byte
	var over []int64
	err := r.pool.QueryRow(ctx, `SELECT (SELECT events FROM jobs WHERE job_id = $1),
		ARRAY(SELECT DISTINCT record_offset FROM passed_over WHERE job_id = $1 AND log_id = $2)`, id, r.logID[:]).Scan(&places, &over)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	offsets, err := readHistory(places)
	if offsets = append(offsets, over...); len(offsets) == 0 && err == nil {
		err = ErrNotFound
	}
	slices.Sort(offsets)
	return slices.Compact(offsets), err
}
