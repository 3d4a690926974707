package projections

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// Versions run side by side while one takes the other's place. The older one's projector meets
// events that it does not know, and passes over them, and fields, which Fold does not look at.
// That is noted in the table passed_over, in the transaction that moves the offset. A projector
// that knows what is named there, when partitions are given to it, folds those jobs anew from
// the log: so their rows are what they would be had it applied all of their events itself.

// passedOver is a record of which not all was known.
type passedOver struct {
	partition int32
	offset    int64
	jobID     string
	what      []string
}

// note adds a record to those, if it is one. e and err are what events.Decode said.
func note(over []passedOver, r *kgo.Record, e events.Event, err error) []passedOver {
	if what := events.Unknown(r, e, err); len(what) > 0 {
		return append(over, passedOver{r.Partition, r.Offset, string(r.Key), what})
	}
	return over
}

func writePassedOver(ctx context.Context, in execer, logID [16]byte, over []passedOver) error {
	if len(over) == 0 {
		return nil
	}
	var partitions []int32
	var offsets []int64
	var jobs, whats []string
	for _, o := range over {
		for _, what := range o.what {
			partitions, offsets, jobs, whats = append(partitions, o.partition), append(offsets, o.offset), append(jobs, o.jobID), append(whats, what)
		}
	}
	_, err := in.Exec(ctx, `INSERT INTO passed_over (log_id, partition, record_offset, job_id, what)
		SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::uuid[], $5::text[]) ON CONFLICT DO NOTHING`, logID[:], partitions, offsets, jobs, whats)
	if err != nil {
		return fmt.Errorf("note %d records of which this version does not know all: %w", len(over), err)
	}
	return nil
}

// mendJobs are folded anew at once. In between the projector goes on: a rebalance, and whoever
// waits for what comes, waits for one such batch at most.
const mendJobs = 100

// mend folds some jobs of our partitions anew, and says whether there are more.
func (s *session) mend(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ApplyTimeout)
	defer cancel()
	known, err := s.knownNow(ctx)
	if err != nil || len(known) == 0 {
		return false, err
	}
	rows, err := s.pool.Query(ctx, `SELECT partition, job_id::text FROM passed_over WHERE log_id = $1 AND partition = ANY($2) AND what = ANY($3)
		GROUP BY partition, job_id ORDER BY partition, job_id LIMIT $4`, s.logID[:], slices.Collect(maps.Keys(s.next)), known, mendJobs)
	if err != nil {
		return false, fmt.Errorf("list what was passed over: %w", err)
	}
	jobs, n := map[int32][]string{}, 0
	var partition int32
	var id string
	_, err = pgx.ForEachRow(rows, []any{&partition, &id}, func() error {
		jobs[partition] = append(jobs[partition], id)
		n++
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("list what was passed over: %w", err)
	}
	for partition, ids := range jobs {
		if err := s.mendPartition(ctx, partition, ids, known); err != nil {
			return false, err
		}
	}
	if n > 0 {
		s.log.Info("folded jobs anew, of which an older version had passed over what this one knows", "jobs", n, "what", known)
	}
	return n == mendJobs, nil
}

// knownNow are those of the names in our partitions that this version knows.
func (s *session) knownNow(ctx context.Context) ([]string, error) {
	rows, err := s.pool.Query(ctx, "SELECT DISTINCT what FROM passed_over WHERE log_id = $1 AND partition = ANY($2)", s.logID[:], slices.Collect(maps.Keys(s.next)))
	if err != nil {
		return nil, fmt.Errorf("look what was passed over: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look what was passed over: %w", err)
	}
	return slices.DeleteFunc(all, func(what string) bool { return !events.Knows(what) }), nil
}

// mendPartition folds jobs of one partition anew. They are read before the transaction: it holds
// nobody up while Kafka is asked, and fails where somebody else has applied anything since.
func (s *session) mendPartition(ctx context.Context, partition int32, ids, known []string) error {
	before, err := readRows(ctx, s.pool, ids)
	if err != nil {
		return err
	}
	over, err := s.passedOverOf(ctx, partition, ids)
	if err != nil {
		return err
	}
	var offsets []int64
	for _, id := range ids {
		for offset := range over[id] {
			offsets = append(offsets, offset)
		}
		places, err := readHistory(before[id].history.raw)
		if err != nil {
			return err
		}
		offsets = append(offsets, places...)
	}
	slices.Sort(offsets)
	told, err := s.readEvents(ctx, partition, slices.Compact(offsets), func(r *kgo.Record) bool { return len(over[string(r.Key)][r.Offset]) > 0 })
	if err != nil {
		return err
	}
	changed, used := map[string]row{}, ledger{}
	for _, id := range ids {
		if before[id].history.n == longestHistory {
			s.log.Error("a job has too many events to be folded anew here; make the read model anew: pixtools replay --promote", "job", id, "events", longestHistory)
			continue
		}
		after := s.foldAnew(told[id], over[id], known, used)
		if after.job == nil {
			continue // of a job that nobody requested
		}
		changed[id] = after
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		here := map[int32]int64{partition: s.next[partition]}
		if err := s.advance(ctx, tx, here); err != nil { // to where it is: it must be there, and stay
			return err
		}
		if err := write(ctx, tx, changed); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM passed_over WHERE log_id = $1 AND partition = $2 AND job_id = ANY($3::uuid[]) AND what = ANY($4)", s.logID[:], partition, ids, known); err != nil {
			return fmt.Errorf("let go of what was passed over: %w", err)
		}
		if err := used.write(ctx, tx); err != nil {
			return err
		}
		return tell(ctx, tx, here, changed)
	})
	if err != nil {
		return err
	}
	for id, r := range changed {
		s.jobs.Add(id, r)
	}
	return nil
}

// foldAnew is the row of a job of all its events, and adds to what was used the difference to
// what the older version has counted: that folded the same events without what it passed over.
func (s *session) foldAnew(told []located, over map[int64][]string, known []string, used ledger) row {
	var after row
	var then *events.Job
	for _, e := range told {
		next := foldOne(s.log, after.job, e.Event)
		used.add(after.job, next, e.Event)
		if next != nil {
			after = after.after(next, e.offset)
		}
		what := over[e.offset]
		if slices.ContainsFunc(what, func(name string) bool { return name == e.Type() }) {
			continue
		}
		seen := e.Event
		if len(what) > 0 {
			seen = seen.Without(slices.DeleteFunc(slices.Clone(what), func(name string) bool { return !slices.Contains(known, name) }))
		}
		counted := ledger{}
		before := then
		then = foldOne(s.log, before, seen)
		counted.add(before, then, seen)
		for a, u := range counted {
			if used[a] = used[a].Add(u.negative()); used[a] == (Used{}) {
				delete(used, a)
			}
		}
	}
	return after
}

func (u Used) negative() Used {
	return Used{-u.Operations, -u.Failures, -u.InputBytes, -u.OutputBytes, -u.CPU}
}

// passedOverOf is what was passed over of jobs, by job and offset.
func (s *session) passedOverOf(ctx context.Context, partition int32, ids []string) (map[string]map[int64][]string, error) {
	rows, err := s.pool.Query(ctx, "SELECT job_id::text, record_offset, what FROM passed_over WHERE log_id = $1 AND partition = $2 AND job_id = ANY($3::uuid[])", s.logID[:], partition, ids)
	if err != nil {
		return nil, fmt.Errorf("read what was passed over: %w", err)
	}
	over := map[string]map[int64][]string{}
	var id, what string
	var offset int64
	_, err = pgx.ForEachRow(rows, []any{&id, &offset, &what}, func() error {
		if over[id] == nil {
			over[id] = map[int64][]string{}
		}
		over[id][offset] = append(over[id][offset], what)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what was passed over: %w", err)
	}
	return over, nil
}

// readEvents reads the events at some offsets of a partition, which ascend, by job. Those whose
// type is not known are left out, and what was passed over and is no event after all.
func (s *session) readEvents(ctx context.Context, partition int32, offsets []int64, over func(*kgo.Record) bool) (map[string][]located, error) {
	told := map[string][]located{}
	if len(offsets) == 0 {
		return told, nil
	}
	records, err := kafka.ReadAt(ctx, events.Topic, partition, offsets, s.opts...)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		e, err := events.Decode(r)
		if errors.Is(err, events.ErrUnknownType) {
			continue
		}
		if err != nil && over(r) { // its type was all that the older version looked at
			s.log.ErrorContext(telemetry.OfKey(context.Background(), string(r.Key)), notAnEvent, "partition", r.Partition, "offset", r.Offset, "error", err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the record at offset %d of partition %d was an event before: the read model is of another log: %w", r.Offset, partition, err)
		}
		told[e.JobID] = append(told[e.JobID], located{Event: e, offset: r.Offset})
	}
	return told, nil
}
