package projections

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/bits-and-blooms/bloom/v3"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// Until bounds a past state; the zero value bounds nothing.
type Until struct {
	// Text is what it was asked for by.
	Text string
	// Time: events after it are left out.
	Time time.Time
	// Position: of its partition, what lies behind it is left out, whatever its time. Time
	// is then that of the event there.
	Position *events.Position
}

// At is the state when the event at a position was the newest.
func (r *Replayer) At(ctx context.Context, p events.Position) (Until, error) {
	if p.Log != r.logID {
		return Until{}, fmt.Errorf("%w: it is a position in another log", ErrNoEvent)
	}
	ends, err := r.ends(ctx)
	if err != nil {
		return Until{}, err
	}
	if p.Offset < 0 || p.Offset >= ends[p.Partition] {
		return Until{}, fmt.Errorf("%w: partition %d ends at %d", ErrNoEvent, p.Partition, ends[p.Partition])
	}
	client, err := r.consume(map[int32]int64{p.Partition: p.Offset})
	if err != nil {
		return Until{}, err
	}
	defer client.Close()
	for {
		fetches := client.PollRecords(ctx, 1)
		if err := errors.Join(ctx.Err(), r.faults(fetches)); err != nil {
			return Until{}, err
		}
		for _, record := range fetches.Records() {
			e, err := events.Decode(record)
			if record.Offset != p.Offset || err != nil {
				return Until{}, fmt.Errorf("%w: partition %d, offset %d", ErrNoEvent, p.Partition, p.Offset)
			}
			return Until{Text: p.Token(), Time: e.Time, Position: &p}, nil
		}
	}
}

// leavesOut says whether an event is later than the state. A job is as it was before the
// first such event that changed it: what the log has of it behind that is left out, too,
// whatever its time. Clocks differ, and otherwise one would be shown a job as it never was.
func (u Until) leavesOut(partition int32, offset int64, at time.Time) bool {
	if u.Position != nil && u.Position.Partition == partition {
		return offset > u.Position.Offset
	}
	return !u.Time.IsZero() && at.After(u.Time)
}

// Rebuilt tells of a rebuild that is done.
type Rebuilt struct {
	SchemaInfo
	// Records were read, Jobs written; Again counts writes of jobs that came back after they
	// were let go.
	Records, Jobs, Again int64
	// Unreadable records are no events: the live projector passes over them, too.
	Unreadable int64
	// Took is how long it took: all of it, and making the indexes alone.
	Took, Indexing time.Duration
}

// ErrNoEvent says that there is no event at a position.
var ErrNoEvent = errors.New("there is no event at this position")

// ErrLogCut says that the log does not have its beginning any more.
var ErrLogCut = errors.New("the log's beginning is gone: what is made of the rest would lack jobs")

// Build makes a read model of the log, as long as it is now, in a schema of its own. What
// was made is removed where an error comes back.
func (r *Replayer) Build(ctx context.Context, until Until, tell func(Progress)) (Rebuilt, error) {
	return r.rebuild(ctx, until, false, tell)
}

// Aside makes a read model of the log, as long as it is now, for do alone, and removes it again.
// There is a place for it whatever REPLAY_SCHEMAS says; one that is cut off the next replay removes.
func (r *Replayer) Aside(ctx context.Context, tell func(Progress), do func(Rebuilt) error) error {
	built, err := r.rebuild(ctx, Until{}, true, tell)
	if err != nil {
		return err
	}
	err = do(built)
	cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.read.ApplyTimeout)
	defer cancel()
	return errors.Join(err, r.drop(cleaning, built.Name))
}

func (r *Replayer) rebuild(ctx context.Context, until Until, aside bool, tell func(Progress)) (Rebuilt, error) {
	began := time.Now()
	starts, err := r.starts(ctx)
	if err != nil {
		return Rebuilt{}, err
	}
	ends, err := r.ends(ctx)
	if err != nil {
		return Rebuilt{}, err
	}
	for partition, start := range starts {
		if start > 0 {
			return Rebuilt{}, fmt.Errorf("%w: partition %d begins at %d", ErrLogCut, partition, start)
		}
	}
	if p := until.Position; p != nil {
		ends[p.Partition] = min(ends[p.Partition], p.Offset+1)
	}
	made, err := r.create(ctx, until.Text, aside)
	if err != nil {
		return Rebuilt{}, err
	}
	b := &build{Replayer: r, until: until, aside: aside, schema: made.Name, ends: ends, tell: r.noted(ctx, made, tell)}
	done := Rebuilt{SchemaInfo: made}
	if err = b.run(ctx, &done); err == nil {
		done.Took = time.Since(began)
		return done, nil
	}
	cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.read.ApplyTimeout)
	defer cancel()
	return Rebuilt{}, errors.Join(err, r.drop(cleaning, made.Name))
}

// build is one rebuild. The log's partitions are shared out among workers; a job never
// crosses partitions, so workers share nothing.
type build struct {
	*Replayer
	until Until
	// aside: it stays in the state in which the next replay removes it.
	aside  bool
	schema string
	pool   *pgxpool.Pool
	ends   map[int32]int64
	tell   func(Progress)

	records, jobs, again, unreadable atomic.Int64
}

func (b *build) run(ctx context.Context, done *Rebuilt) (err error) {
	// The last transaction of all waits for the disk, and so for those before it.
	if b.pool, err = b.open(b.schema, map[string]string{"synchronous_commit": "off"}); err != nil {
		return err
	}
	defer b.pool.Close()
	if err := Migrate(ctx, b.pool, b.schema); err != nil {
		return err
	}
	indexes, err := b.dropIndexes(ctx)
	if err != nil {
		return err
	}
	if err := b.load(ctx); err != nil {
		return err
	}
	b.tell(Progress{Phase: "making indexes"})
	indexing := time.Now()
	if err := inOne(ctx, b.pool, append(indexes, "ANALYZE jobs")...); err != nil {
		return err
	}
	done.Indexing = time.Since(indexing)
	done.Records, done.Jobs, done.Again, done.Unreadable = b.records.Load(), b.jobs.Load(), b.again.Load(), b.unreadable.Load()
	return b.finish(ctx, done)
}

// dropIndexes leaves only the primary key, by which jobs are found that come back, and
// gives the statements that make the others: one sort is cheaper than many inserts.
func (b *build) dropIndexes(ctx context.Context) (definitions []string, err error) {
	rows, err := b.pool.Query(ctx, `SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i
		WHERE i.indrelid = 'jobs'::regclass AND NOT i.indisprimary`)
	if err != nil {
		return nil, fmt.Errorf("list the indexes: %w", err)
	}
	var name, definition string
	var drops []string
	_, err = pgx.ForEachRow(rows, []any{&name, &definition}, func() error {
		drops, definitions = append(drops, "DROP INDEX "+name), append(definitions, definition)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the indexes: %w", err)
	}
	return definitions, inOne(ctx, b.pool, drops...)
}

// finish notes how far the read model is, and that it is whole.
func (b *build) finish(ctx context.Context, done *Rebuilt) error {
	return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = on"); err != nil {
			return err
		}
		switch {
		case b.aside:
		case b.until == (Until{}):
			done.State, done.Since = StateReady, time.Now().UTC().Truncate(time.Second)
		default:
			done.State, done.Since = StatePast, time.Now().UTC().Truncate(time.Second)
		}
		if b.until == (Until{}) {
			for partition, next := range b.ends {
				_, err := tx.Exec(ctx, "INSERT INTO positions (log_id, partition, next_offset) VALUES ($1, $2, $3)", b.logID[:], partition, next)
				if err != nil {
					return fmt.Errorf("write the positions: %w", err)
				}
			}
		}
		return comment(ctx, tx, done.SchemaInfo)
	})
}

// chunk is what one fetch brought of a partition, a part of it that is worked on as one.
type chunk struct {
	partition int32
	records   []*kgo.Record
}

const (
	// waitingChunks may wait for a worker. Partitions come in turns, so a few keep all
	// workers busy. A chunk is as large as the projector's batches.
	waitingChunks = 2
	// toldUnreadable is of how many records that are no events the log file tells.
	toldUnreadable = 10
)

// load reads the log from its beginning to b.ends and writes the rows.
func (b *build) load(ctx context.Context) error {
	from, missing, total := map[int32]int64{}, map[int32]bool{}, int64(0)
	for partition, end := range b.ends {
		if end > 0 {
			from[partition], missing[partition] = 0, true
			total += end
		}
	}
	client, err := b.consume(from)
	if err != nil {
		return err
	}
	defer client.Close()
	group, ctx := errgroup.WithContext(ctx)
	var chunks []chan chunk
	for range b.cfg.workers() {
		in := make(chan chunk, waitingChunks)
		chunks = append(chunks, in)
		w, err := b.worker()
		if err != nil {
			return err
		}
		group.Go(func() error { return w.run(ctx, in) })
	}
	group.Go(func() error {
		defer func() {
			for _, in := range chunks {
				close(in)
			}
		}()
		for len(missing) > 0 {
			fetches := client.PollFetches(ctx)
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := b.faults(fetches); err != nil {
				return err
			}
			err := eachPartition(fetches, func(p kgo.FetchPartition) error {
				return b.share(ctx, p, chunks, missing)
			})
			if err != nil {
				return err
			}
			b.tell(Progress{"reading the log", b.records.Load(), total})
		}
		return nil
	})
	return group.Wait()
}

func eachPartition(fetches kgo.Fetches, do func(kgo.FetchPartition) error) (err error) {
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if err == nil {
			err = do(p.FetchPartition)
		}
	})
	return err
}

// faults gives the first error that does not pass by itself.
func (r *Replayer) faults(fetches kgo.Fetches) (err error) {
	fetches.EachError(func(_ string, partition int32, fault error) {
		if err != nil {
			return
		}
		r.log.Warn("cannot fetch", "partition", partition, "error", fault)
		if partition >= 0 && !kerr.IsRetriable(fault) {
			err = fmt.Errorf("read partition %d of the log: %w", partition, fault)
		}
	})
	return err
}

// share gives a partition's records, up to its end, to the worker whose it is.
func (b *build) share(ctx context.Context, p kgo.FetchPartition, chunks []chan chunk, missing map[int32]bool) error {
	records, end := p.Records, b.ends[p.Partition]
	if n := len(records); n == 0 || !missing[p.Partition] {
		return nil
	} else if records[n-1].Offset >= end-1 {
		delete(missing, p.Partition)
		for len(records) > 0 && records[len(records)-1].Offset >= end {
			records = records[:len(records)-1]
		}
	}
	to := chunks[int(p.Partition)%len(chunks)]
	for len(records) > 0 {
		n := min(len(records), b.read.BatchRecords)
		select {
		case to <- chunk{p.Partition, records[:n]}:
		case <-ctx.Done():
			return ctx.Err()
		}
		records = records[n:]
	}
	return nil
}

// held is a job in memory.
type held struct {
	row
	// stored says that the table has it, as it was before it came back.
	stored bool
	// past says that it was changed later than the state that is asked for. One that began
	// later has no job.
	past bool
}

// worker folds the events of its partitions and writes the jobs that it lets go.
//
// Its memory is two generations: a job that an event comes for is in the young one. When
// that is full, the jobs of the old one, for which nothing came since, are written and
// let go, and the young one is the old one. Most jobs come to their end before that, and
// are written once.
type worker struct {
	*build
	young, old map[[16]byte]*held
	most       int
	written    *bloom.BloomFilter
	batch      []located
	ids        [][16]byte
	// past are the jobs that were let go and changed later than the state that is asked for. Of those
	// that only began later nothing is kept: were such a job's beginning told once more, long after and
	// with an earlier time, it would be taken for new.
	past map[[16]byte]struct{}
	// used is what is to be added to the table usage, over to the table passed_over.
	used ledger
	over []passedOver
}

// heldAccounts are as many rows of usage as a worker keeps, before it adds them to the table.
const heldAccounts = 10_000

// heldPassedOver are as many records of which not all is known.
const heldPassedOver = 10_000

// filterHashes is how many bits a job sets in the filter.
const filterHashes = 4

func (b *build) worker() (*worker, error) {
	n := b.cfg.workers()
	most := max(b.cfg.HeldJobs/n/2, 1)
	return &worker{build: b, most: most, young: map[[16]byte]*held{}, old: map[[16]byte]*held{}, used: ledger{}, past: map[[16]byte]struct{}{},
		written: bloom.New(uint(b.cfg.FilterBytes/n*8), filterHashes)}, nil
}

func (w *worker) run(ctx context.Context, chunks <-chan chunk) error {
	for c := range chunks {
		if err := w.take(ctx, c); err != nil {
			return err
		}
		w.records.Add(int64(len(c.records)))
	}
	if err := w.write(ctx, w.old); err != nil {
		return err
	}
	if err := w.write(ctx, w.young); err != nil {
		return err
	}
	if err := writePassedOver(ctx, w.pool, w.logID, w.over); err != nil {
		return err
	}
	return w.used.write(ctx, w.pool)
}

func (w *worker) take(ctx context.Context, c chunk) error {
	w.batch, w.ids = w.batch[:0], w.ids[:0]
	for _, r := range c.records {
		if r.Attrs.IsControl() {
			continue
		}
		e, err := events.Decode(r)
		if err == nil || errors.Is(err, events.ErrUnknownType) {
			w.over = note(w.over, r, e, err)
		}
		if err != nil {
			if !errors.Is(err, events.ErrUnknownType) && w.unreadable.Add(1) <= toldUnreadable {
				w.log.Error("replay passes over a record that is no event", "partition", r.Partition, "offset", r.Offset, "error", err)
			}
			continue
		}
		w.batch, w.ids = append(w.batch, located{e, r.Offset, w.until.leavesOut(r.Partition, r.Offset, e.Time)}), append(w.ids, uuid.MustParse(e.JobID))
	}
	if err := w.comeBack(ctx); err != nil {
		return err
	}
	for i, e := range w.batch {
		id := w.ids[i]
		if _, past := w.past[id]; past {
			continue
		}
		h := w.find(id)
		if h == nil {
			h = &held{}
		}
		next := foldOne(w.log, h.job, e.Event)
		if next == nil || h.past {
			continue // of a job that nobody requested
		}
		if e.later {
			if h.past = next != h.job; h.past {
				w.young[id] = h
			}
			continue
		}
		w.used.add(h.job, next, e.Event)
		h.row = h.after(next, e.offset)
		w.young[id] = h
	}
	if len(w.over) >= heldPassedOver {
		if err := writePassedOver(ctx, w.pool, w.logID, w.over); err != nil {
			return err
		}
		w.over = w.over[:0]
	}
	if len(w.used) >= heldAccounts {
		if err := w.used.write(ctx, w.pool); err != nil {
			return err
		}
		clear(w.used)
	}
	if len(w.young) >= w.most { // not in between: who came back for this chunk must stay for it
		return w.age(ctx)
	}
	return nil
}

// find moves a job to the young generation.
func (w *worker) find(id [16]byte) *held {
	if h := w.young[id]; h != nil {
		return h
	}
	h := w.old[id]
	if h != nil {
		delete(w.old, id)
		w.young[id] = h
	}
	return h
}

// comeBack reads the jobs of the batch that were written and let go before.
func (w *worker) comeBack(ctx context.Context) error {
	var missing [][16]byte
	for _, id := range w.ids {
		if _, past := w.past[id]; !past && w.young[id] == nil && w.old[id] == nil && w.written.Test(id[:]) {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	found, err := readRows(ctx, w.pool, missing)
	if err != nil {
		return err
	}
	for id, row := range found {
		w.young[uuid.MustParse(id)] = &held{row: row, stored: true}
	}
	return nil
}

// age lets the old generation go.
func (w *worker) age(ctx context.Context) error {
	if err := w.write(ctx, w.old); err != nil {
		return err
	}
	clear(w.old)
	w.young, w.old = w.old, w.young
	return nil
}

// write stores jobs: new ones by COPY, those that came back like the projector does.
func (w *worker) write(ctx context.Context, jobs map[[16]byte]*held) error {
	fresh, again := make([][16]byte, 0, len(jobs)), map[string]row{}
	for id, h := range jobs {
		if h.job == nil {
			continue
		}
		if h.past {
			w.past[id] = struct{}{}
		}
		if !h.stored {
			fresh = append(fresh, id)
			continue
		}
		again[h.job.GetId()] = h.row
		if len(again) == w.read.BatchRecords {
			if err := w.writeAgain(ctx, again); err != nil {
				return err
			}
		}
	}
	if err := w.writeAgain(ctx, again); err != nil {
		return err
	}
	if len(fresh) == 0 {
		return nil
	}
	at := 0
	_, err := w.pool.CopyFrom(ctx, pgx.Identifier{"jobs"}, jobColumns, pgx.CopyFromFunc(func() ([]any, error) {
		if at == len(fresh) {
			return nil, nil
		}
		id := fresh[at]
		at++
		return copied(id, jobs[id].row)
	}))
	if err != nil {
		return fmt.Errorf("copy %d jobs: %w", len(fresh), err)
	}
	for _, id := range fresh {
		w.written.Add(id[:])
	}
	w.jobs.Add(int64(len(fresh)))
	return nil
}

func (w *worker) writeAgain(ctx context.Context, rows map[string]row) error {
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error { return write(ctx, tx, rows) })
	w.again.Add(int64(len(rows)))
	clear(rows)
	return err
}

var jobColumns = []string{"job_id", "tenant", "phase", "outcome", "revision", "created_at", "updated_at", "state", "events", "pending", "running", "opened_at",
	"operations", "standing", "changes", "source_since", "results_since", "key_id"}

func copied(id [16]byte, r row) ([]any, error) {
	job := r.job
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(job)
	if err != nil {
		return nil, fmt.Errorf("encode the state of job %s: %w", job.GetId(), err)
	}
	pending, running := work(job)
	source, results := keptSince(job)
	return []any{id, job.GetTenant(), int16(job.GetPhase()), int16(job.GetOutcome()), job.GetRevision(),
		job.GetRequestedAt().AsTime(), job.GetUpdatedAt().AsTime(), raw, r.history.raw, pending, running, job.Opened(),
		r.operations, int16(StandingOf(job)), r.changes, source, results, keyID(job)}, nil
}
