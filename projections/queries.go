package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
)

// Errors of queries.
var (
	// ErrNotFound: the read model has no such job.
	ErrNotFound = errors.New("no such job")
	// ErrBehind: the projection did not reach a position in time.
	ErrBehind = errors.New("the read model has not caught up yet")
	// ErrUnavailable: the database does not answer.
	ErrUnavailable = errors.New("the database is unreachable")
)

// Reader answers queries, and knows how far the projection has come.
type Reader struct {
	cfg   Config
	pool  *pgxpool.Pool
	logID [16]byte
	log   *slog.Logger

	mu sync.Mutex
	// next is the projection's next offset by partition, as far as we have heard; furthest is the
	// same, but also of read models that were there before this one.
	next, furthest map[int32]int64
	// changed is closed, and replaced, whenever next grows.
	changed chan struct{}
	// watched has a channel for each watcher of a job's end, by job.
	watched map[string]map[chan struct{}]struct{}
}

// NewReader makes a reader of the projection of one log; call Listen beside it.
func NewReader(cfg Config, pool *pgxpool.Pool, logID [16]byte, log *slog.Logger) *Reader {
	return &Reader{cfg: cfg, pool: pool, logID: logID, log: log, next: map[int32]int64{}, furthest: map[int32]int64{}, changed: make(chan struct{}),
		watched: map[string]map[chan struct{}]struct{}{}}
}

// History says at which offsets of its partition a job's events lie, in their order.
func (r *Reader) History(ctx context.Context, tenant, id string) ([]int64, error) {
	var places []byte
	if err := r.row(ctx, "SELECT events FROM jobs WHERE job_id = $1 AND tenant = $2", []any{id, tenant}, &places); err != nil {
		return nil, err
	}
	return readHistory(places)
}

// row reads one row, or says ErrNotFound. That it says only where the read model is as far as
// any that we have heard of: who waited for a position did so in the one of that time, and one
// that was begun anew since may not have the job yet. What we have heard is remembered across
// that: the word of it may come between the wait and the query.
func (r *Reader) row(ctx context.Context, query string, args []any, into ...any) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	for {
		err := r.pool.QueryRow(ctx, query, args...).Scan(into...)
		if err == nil {
			return nil
		}
		if errors.Is(err, pgx.ErrNoRows) {
			var there bool
			if there, err = r.there(ctx, query, args); there {
				continue // it came in between
			}
			if err == nil {
				return ErrNotFound
			}
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// there says whether there is a row. errSwapped: there is none, and the read model is behind.
func (r *Reader) there(ctx context.Context, query string, args []any) (found bool, err error) {
	r.mu.Lock()
	furthest := maps.Clone(r.furthest)
	r.mu.Unlock()
	// In one statement: none is there at these positions, and not only at earlier ones.
	rows, err := r.pool.Query(ctx, fmt.Sprintf(`SELECT found, partition, next_offset FROM (SELECT EXISTS (%s) AS found) f
		LEFT JOIN positions ON log_id = $%d`, query, len(args)+1), append(slices.Clone(args), r.logID[:])...)
	if err != nil {
		return false, err
	}
	var partition *int32
	var next *int64
	if _, err := pgx.ForEachRow(rows, []any{&found, &partition, &next}, func() error {
		if partition != nil && *next >= furthest[*partition] {
			delete(furthest, *partition)
		}
		return nil
	}); err != nil {
		return false, err
	}
	if !found && len(furthest) > 0 {
		return false, errSwapped
	}
	return found, nil
}

// Job is a job of a tenant as the read model has it.
func (r *Reader) Job(ctx context.Context, tenant, id string) (*events.Job, error) {
	var raw []byte
	if err := r.row(ctx, "SELECT state FROM jobs WHERE job_id = $1 AND tenant = $2", []any{id, tenant}, &raw); err != nil {
		return nil, err
	}
	return decode(id, raw)
}

// JobOfAnyTenant is a job whose ever it is: for operators.
func (r *Reader) JobOfAnyTenant(ctx context.Context, id string) (*events.Job, error) {
	var raw []byte
	if err := r.row(ctx, "SELECT state FROM jobs WHERE job_id = $1", []any{id}, &raw); err != nil {
		return nil, err
	}
	return decode(id, raw)
}

// JobUnderKey is the job that answers for the idempotency key whose jobs have this id: the
// job of that id, or else one that came from another service and kept the id that it had
// there, of several the oldest.
func (r *Reader) JobUnderKey(ctx context.Context, tenant, id string) (*events.Job, error) {
	var raw []byte
	if err := r.row(ctx, `SELECT state FROM jobs WHERE (job_id = $1 OR key_id = $1) AND tenant = $2
		ORDER BY job_id <> $1, created_at, job_id LIMIT 1`, []any{id, tenant}, &raw); err != nil {
		return nil, err
	}
	return decode(id, raw)
}

// JobAndPlace is a job, and the offset of the last event in it.
func (r *Reader) JobAndPlace(ctx context.Context, tenant, id string) (*events.Job, int64, error) {
	var raw, places []byte
	if err := r.row(ctx, "SELECT state, events FROM jobs WHERE job_id = $1 AND tenant = $2", []any{id, tenant}, &raw, &places); err != nil {
		return nil, 0, err
	}
	h, err := loadHistory(places)
	if err != nil {
		return nil, 0, err
	}
	job, err := decode(id, raw)
	return job, h.last, err
}

// jobsPage is how many jobs one query of EachEnded and EachOf brings.
const jobsPage = 500

// EachEnded gives every job that has ended, whose ever it is, in the order of the ids. Each
// page is a query of its own: a job that ends meanwhile may be among them or not.
func (r *Reader) EachEnded(ctx context.Context, each func(*events.Job) error) error {
	return r.eachPage(ctx, "phase = $2", []any{int16(events.Phase_PHASE_ENDED)}, each)
}

// eachPage gives the jobs for which a condition holds; its arguments are from $2 on.
func (r *Reader) eachPage(ctx context.Context, condition string, args []any, each func(*events.Job) error) error {
	after := "00000000-0000-0000-0000-000000000000"
	for {
		page, err := r.pageAfter(ctx, condition, append([]any{after}, args...))
		if err != nil || len(page) == 0 {
			return err
		}
		for _, job := range page {
			if err := each(job); err != nil {
				return err
			}
		}
		after = page[len(page)-1].GetId()
	}
}

func (r *Reader) pageAfter(ctx context.Context, condition string, args []any) ([]*events.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	query := fmt.Sprintf("SELECT job_id::text, state FROM jobs WHERE job_id > $1 AND %s ORDER BY job_id LIMIT %d", condition, jobsPage)
	rows, err := r.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*events.Job, error) {
		var id string
		var raw []byte
		if err := row.Scan(&id, &raw); err != nil {
			return nil, err
		}
		return decode(id, raw)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return page, nil
}

func decode(id string, raw []byte) (*events.Job, error) {
	job := &events.Job{}
	if err := proto.Unmarshal(raw, job); err != nil {
		return nil, fmt.Errorf("the stored state of job %s cannot be decoded; rebuild the read model: %w", id, err)
	}
	if bug.On("read-remembers") {
		job = remembered(job)
	}
	return job, nil
}

// Health asks the database for a sign of life.
func (r *Reader) Health(ctx context.Context) error { return r.pool.Ping(ctx) }

// Positions are where the projection goes on, by partition, as the read model has it now.
func (r *Reader) Positions(ctx context.Context) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	_, next, err := positionsIn(ctx, r.pool, r.logID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return next, nil
}

// ReadModels lists the live read model, if it is there, and all beside it, by name.
func (r *Reader) ReadModels(ctx context.Context) ([]SchemaInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.QueryTimeout)
	defer cancel()
	all, err := schemas(ctx, r.pool)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return all, nil
}

// Wait returns once the projection has applied the record at offset, or with
// ErrBehind when ctx ends first.
func (r *Reader) Wait(ctx context.Context, partition int32, offset int64) error {
	for {
		// next and changed are read under one lock: a move between the two would
		// otherwise be missed, and its close waited for in vain.
		r.mu.Lock()
		reached, changed := r.next[partition] > offset, r.changed
		r.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-ctx.Done():
			return ErrBehind
		case <-changed:
		}
	}
}

// Watch gives a channel that receives whenever the job may have ended: when it has, and
// when news may have been missed. Who watches before reading the job misses no end.
func (r *Reader) Watch(id string) (ended <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched[id] == nil {
		r.watched[id] = map[chan struct{}]struct{}{}
	}
	r.watched[id][c] = struct{}{}
	return c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if delete(r.watched[id], c); len(r.watched[id]) == 0 {
			delete(r.watched, id)
		}
	}
}

// Listen follows the projection until ctx is done.
func (r *Reader) Listen(ctx context.Context) error {
	for {
		err := r.listen(ctx)
		if ctx.Err() != nil {
			return nil
		}
		r.log.Warn("lost sight of the projection, connecting again", "error", err, "after", r.cfg.RetryAfter)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(r.cfg.RetryAfter):
		}
	}
}

func (r *Reader) listen(ctx context.Context) error {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// A connection that listens is not given back: another query would then hear.
	raw := conn.Hijack()
	defer raw.Close(context.WithoutCancel(ctx))
	if _, err := raw.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	// Read after LISTEN: a move before it is in the table, a later one is told.
	if err := r.look(ctx, raw); err != nil {
		return err
	}
	for {
		n, err := raw.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		told, err := decodeNews(n.Payload)
		if err != nil {
			return err
		}
		if told.anew {
			if err := r.look(ctx, raw); err != nil {
				return err
			}
		}
		r.hear(told)
	}
}

// look takes the positions from the table, whatever was heard before: after a swap they
// are those of another read model, and one that was begun anew is behind.
func (r *Reader) look(ctx context.Context, conn *pgx.Conn) error {
	_, next, err := positionsIn(ctx, conn, r.logID)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.next = map[int32]int64{}
	r.mu.Unlock()
	r.hear(news{moves: next})
	r.wakeAll() // what ended meanwhile was not told to us
	return nil
}

func (r *Reader) hear(n news) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for partition, next := range n.moves {
		r.next[partition] = max(r.next[partition], next)
		r.furthest[partition] = max(r.furthest[partition], next)
	}
	close(r.changed)
	r.changed = make(chan struct{})
	for _, id := range n.ended {
		wake(r.watched[id])
	}
}

func (r *Reader) wakeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, watchers := range r.watched {
		wake(watchers)
	}
}

func wake(watchers map[chan struct{}]struct{}) {
	for c := range watchers {
		select {
		case c <- struct{}{}:
		default: // it was woken, and has not looked yet
		}
	}
}
