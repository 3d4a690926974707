package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// Projector applies the log to the read model.
type Projector struct {
	cfg  Config
	pool *pgxpool.Pool
	log  *slog.Logger
	opts []kgo.Opt
	// logID is the topic's id.
	logID [16]byte
	// beside says that another schema than the live one is written: nobody waits for it.
	beside bool
	// client is that of the session under way, for those who ask how we are.
	client atomic.Pointer[kgo.Client]
	// SessionOpts are more options of the session's client, beside those of all.
	SessionOpts []kgo.Opt
}

// NewProjector makes a projector of the log whose topic id is logID; opts must
// name the brokers. The tables must be there.
func NewProjector(cfg Config, pool *pgxpool.Pool, logID [16]byte, log *slog.Logger, opts ...kgo.Opt) *Projector {
	return &Projector{cfg: cfg, pool: pool, logID: logID, log: log, opts: opts}
}

// Run works until ctx is done; it outlives Kafka and Postgres being away.
func (p *Projector) Run(ctx context.Context) error {
	for {
		err := p.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		p.log.Warn("projection interrupted, going on from its stored offsets", "error", err, "after", p.cfg.RetryAfter)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.cfg.RetryAfter):
		}
	}
}

// session is one membership in the group. Its fields are used by the polling
// goroutine, and by callbacks that run only while that one is in PollRecords or
// AllowRebalance (BlockRebalanceOnPoll), so they need no lock.
type session struct {
	*Projector
	// next is the offset that the database holds, by partition that we own, and table the
	// table that holds it: a swap or a rebuild puts another in its place.
	next  map[int32]int64
	table uint32
	// jobs holds the rows of jobs of partitions that we own. It is right as long
	// as next is: nobody else wrote a job of a partition without moving its offset.
	jobs *lru.Cache[string, row]
	// mending says that there may be jobs to fold anew: see passedover.go.
	mending bool
}

func (p *Projector) session(ctx context.Context) error {
	jobs, err := lru.New[string, row](p.cfg.CachedJobs)
	if err != nil {
		return err
	}
	s := &session{Projector: p, next: map[int32]int64{}, jobs: jobs}
	client, err := kgo.NewClient(append(slices.Concat(p.opts, p.SessionOpts),
		kgo.ConsumerGroup(events.ProjectorGroup),
		kgo.ConsumeTopics(events.Topic),
		kgo.DisableAutoCommit(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Commit markers are offsets too: without them the projection would never
		// be seen to reach the log's end.
		kgo.KeepControlRecords(),
		kgo.BlockRebalanceOnPoll(),
		kgo.AdjustFetchOffsetsFn(s.seek),
		kgo.OnPartitionsRevoked(s.forget),
		kgo.OnPartitionsLost(s.forget),
	)...)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	p.client.Store(client)
	defer p.client.Store(nil)
	for {
		wait := lookEvery
		if s.mending {
			wait = time.Millisecond
		}
		polling, cancel := context.WithTimeout(ctx, wait)
		fetches := client.PollRecords(polling, p.cfg.BatchRecords)
		cancel()
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return ctx.Err()
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			if !errors.Is(err, context.DeadlineExceeded) {
				p.log.Warn("projector cannot fetch", "topic", topic, "partition", partition, "error", err)
			}
		})
		err := s.apply(ctx, fetches)
		switch {
		case err == nil && s.mending:
			s.mending, err = s.mend(ctx)
		case fetches.NumRecords() == 0:
			err = s.look(ctx)
		}
		if errors.Is(err, errSwapped) {
			if err = s.settle(ctx); err == nil {
				err = s.apply(ctx, fetches)
			}
		}
		if err != nil {
			return err
		}
		client.AllowRebalance()
	}
}

// lookEvery is how often a projector to which nothing comes looks whether its read model is
// still there.
const lookEvery = 2 * time.Second

func (s *session) look(ctx context.Context) error {
	if len(s.next) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	table, there, err := positionsIn(ctx, s.pool, s.logID)
	switch {
	case err != nil:
		return err
	case table != s.table:
		return errSwapped
	}
	for partition, next := range s.next {
		if there[partition] != next {
			return errMoved // or a migration has emptied it
		}
	}
	return nil
}

func (s *session) sameTable(ctx context.Context, in rowQuerier) error {
	var table uint32
	if err := in.QueryRow(ctx, "SELECT 'positions'::regclass::oid").Scan(&table); err != nil {
		return fmt.Errorf("look which read model there is: %w", err)
	}
	if table != s.table {
		return errSwapped
	}
	return nil
}

// seek sets where fetching begins to what the database holds. Kafka's own offsets
// of this group are never written.
func (s *session) seek(ctx context.Context, assigned map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	for partition := range assigned[events.Topic] {
		_, err := s.pool.Exec(ctx, `INSERT INTO positions (log_id, partition, next_offset) VALUES ($1, $2, 0)
			ON CONFLICT DO NOTHING`, s.logID[:], partition)
		if err != nil {
			return nil, fmt.Errorf("prepare the position of partition %d: %w", partition, err)
		}
		var next int64
		err = s.pool.QueryRow(ctx, "SELECT tableoid, next_offset FROM positions WHERE log_id = $1 AND partition = $2",
			s.logID[:], partition).Scan(&s.table, &next)
		if err != nil {
			return nil, fmt.Errorf("read the position of partition %d: %w", partition, err)
		}
		s.next[partition] = next
		assigned[events.Topic][partition] = kgo.NewOffset().At(next).WithEpoch(-1)
	}
	s.jobs.Purge()
	s.mending = true
	return assigned, nil
}

func (s *session) forget(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	for _, partition := range lost[events.Topic] {
		delete(s.next, partition)
	}
	s.jobs.Purge()
}

// errMoved says that another projector applied records of a partition we thought
// ours: our session had expired. Starting anew reads the offsets again.
var errMoved = errors.New("another projector has moved on in a partition of ours")

// errSwapped says that another read model has taken the place of the one we knew.
var errSwapped = errors.New("the read model was swapped")

// settle goes on in the read model that is there now. It is as far as the one before it,
// or further (apply passes over what it has), and its rows may be others than we remember.
func (s *session) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.QueryTimeout)
	defer cancel()
	table, there, err := positionsIn(ctx, s.pool, s.logID)
	if err != nil {
		return err
	}
	for partition, next := range s.next {
		if there[partition] < next {
			return fmt.Errorf("%w, and is behind in partition %d: %d instead of %d", errSwapped, partition, there[partition], next)
		}
	}
	for partition := range s.next {
		s.next[partition] = there[partition]
	}
	s.table, s.mending = table, true
	s.jobs.Purge()
	return nil
}

// notAnEvent is what operators look for.
const notAnEvent = "projector passes over a record that is no event"

// apply is one transaction: the rows, the offsets, and word to those who wait.
func (s *session) apply(ctx context.Context, fetches kgo.Fetches) error {
	moved := map[int32]int64{}
	var batch []located
	var records []*kgo.Record // of the batch
	var over []passedOver
	begun := time.Now()
	fetches.EachRecord(func(r *kgo.Record) {
		if r.Offset < s.next[r.Partition] {
			return
		}
		moved[r.Partition] = r.Offset + 1
		if r.Attrs.IsControl() {
			return
		}
		e, err := events.Decode(r)
		switch {
		case errors.Is(err, events.ErrUnknownType): // a newer version's: nothing of it is shown here
			over = note(over, r, e, err)
		case bug.On("projector-skips-event") && r.Offset%20 == 0:
		case err != nil:
			s.log.ErrorContext(telemetry.OfKey(context.Background(), string(r.Key)), notAnEvent, "partition", r.Partition, "offset", r.Offset, "error", err)
		default:
			batch = append(batch, located{Event: e, offset: r.Offset})
			records = append(records, r)
			over = note(over, r, e, nil)
		}
	})
	if len(moved) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ApplyTimeout)
	defer cancel()
	if bug.On("projector-offsets-alone") {
		if err := s.advanceAlone(ctx, moved); err != nil {
			return err
		}
	}
	var changed map[string]row
	used := ledger{}
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
		if err := s.advance(ctx, tx, moved); err != nil {
			return err
		}
		if changed, err = s.fold(ctx, tx, batch, used); err != nil {
			return err
		}
		if err := write(ctx, tx, changed); err != nil {
			return err
		}
		if err := writePassedOver(ctx, tx, s.logID, over); err != nil {
			return err
		}
		if err := used.write(ctx, tx); err != nil {
			return err
		}
		if s.beside {
			return nil
		}
		return tell(ctx, tx, moved, changed)
	})
	s.applied(batch, records, begun, err)
	if err != nil {
		return err
	}
	for partition, next := range moved {
		s.next[partition] = next
	}
	for id, job := range changed {
		s.jobs.Add(id, job)
	}
	return nil
}

// advance moves the stored offsets from where we believe them to be. The row lock
// that this takes makes a second owner wait, and then find the offset moved.
//
// A swap (swap.go) locks the table instead. Where it comes first, our statement waits,
// then finds the name to mean another table, and with that no row. Where we come first,
// it waits for our commit, so that all of our statements mean the same read model.
func (s *session) advance(ctx context.Context, tx pgx.Tx, moved map[int32]int64) error {
	var partitions []int32
	var from, to []int64
	for partition, next := range moved {
		partitions, from, to = append(partitions, partition), append(from, s.next[partition]), append(to, next)
	}
	tag, err := tx.Exec(ctx, `UPDATE positions SET next_offset = m.next
		FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS m(partition, expected, next)
		WHERE positions.log_id = $1 AND positions.partition = m.partition AND positions.next_offset = m.expected
			AND positions.tableoid = $5`,
		s.logID[:], partitions, from, to, s.table)
	if err != nil {
		return fmt.Errorf("move the projection's offsets: %w", err)
	}
	if tag.RowsAffected() == int64(len(moved)) {
		return nil
	}
	if err := s.sameTable(ctx, tx); err != nil {
		return err
	}
	return errMoved
}

// tell says, at commit and to every process that answers queries, what has come.
func tell(ctx context.Context, tx pgx.Tx, moved map[int32]int64, changed map[string]row) error {
	n := news{moves: moved}
	for id, r := range changed {
		if r.job.GetPhase() != events.Phase_PHASE_OPEN {
			n.ended = append(n.ended, id)
		}
	}
	for _, payload := range n.encode() {
		if _, err := tx.Exec(ctx, "SELECT pg_notify($1, $2)", channel, payload); err != nil {
			return fmt.Errorf("tell of the projection's offsets: %w", err)
		}
	}
	return nil
}

// fold gives the new rows of the jobs that the batch tells of, and adds to what was used.
func (s *session) fold(ctx context.Context, tx pgx.Tx, batch []located, used ledger) (map[string]row, error) {
	rows, err := s.load(ctx, tx, batch)
	if err != nil {
		return nil, err
	}
	changed := map[string]row{}
	for _, e := range batch {
		before := rows[e.JobID]
		next := foldOne(s.log, before.job, e.Event)
		if next == nil {
			continue // of a job that nobody requested
		}
		used.add(before.job, next, e.Event)
		after := before.after(next, e.offset)
		rows[e.JobID], changed[e.JobID] = after, after
	}
	return changed, nil
}

// foldOne passes over an event that makes Fold panic: the saga, which folds the same, tells
// of it, and all other jobs go on.
func foldOne(log *slog.Logger, before *events.Job, e events.Event) (after *events.Job) {
	defer func() {
		if p := recover(); p != nil {
			log.ErrorContext(telemetry.OfEvent(context.Background(), e), "projector passes over an event that panics", "event", e.ID, "error", p, "stack", string(debug.Stack()))
			after = before
		}
	}()
	return events.Fold(before, e)
}

// load finds the rows of a batch's jobs, in memory or in the table.
func (s *session) load(ctx context.Context, tx pgx.Tx, batch []located) (map[string]row, error) {
	rows := map[string]row{}
	var missing []string
	for _, e := range batch {
		if _, ok := rows[e.JobID]; ok {
			continue
		}
		known, ok := s.jobs.Get(e.JobID)
		if !ok {
			missing = append(missing, e.JobID)
		}
		rows[e.JobID] = known
	}
	if len(missing) == 0 {
		return rows, nil
	}
	found, err := readRows(ctx, tx, missing)
	if err != nil {
		return nil, err
	}
	maps.Copy(rows, found)
	return rows, nil
}

// readRows reads jobs from the table, those that it has.
func readRows[ID string | [16]byte](ctx context.Context, in querier, ids []ID) (map[string]row, error) {
	found, err := in.Query(ctx, "SELECT state, events, changes, operations FROM jobs WHERE job_id = ANY($1::uuid[])", ids)
	if err != nil {
		return nil, fmt.Errorf("read the states of %d jobs: %w", len(ids), err)
	}
	rows := map[string]row{}
	var state, places []byte
	var changes []int64
	var operations string
	_, err = pgx.ForEachRow(found, []any{&state, &places, &changes, &operations}, func() error {
		job := &events.Job{}
		if err := proto.Unmarshal(state, job); err != nil {
			return fmt.Errorf("a stored state cannot be decoded; rebuild the read model: %w", err)
		}
		history, err := loadHistory(slices.Clone(places))
		rows[job.GetId()] = row{job, history, slices.Clone(changes), operations}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the states of %d jobs: %w", len(ids), err)
	}
	return rows, nil
}

// write stores the last state of each changed job, all in one statement.
func write(ctx context.Context, tx pgx.Tx, changed map[string]row) error {
	if len(changed) == 0 {
		return nil
	}
	var ids, tenants []string
	var phases, outcomes []int16
	var revisions []int32
	var created, updated, opened []time.Time
	var sources, results []*time.Time
	var pending, running, operations, changes []string
	var keys []*string
	var standings []int16
	var states, histories [][]byte
	for id, r := range changed {
		job := r.job
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(job)
		if err != nil {
			return fmt.Errorf("encode the state of job %s: %w", id, err)
		}
		ids, tenants = append(ids, id), append(tenants, job.GetTenant())
		phases, outcomes = append(phases, int16(job.GetPhase())), append(outcomes, int16(job.GetOutcome()))
		revisions = append(revisions, job.GetRevision())
		created, updated = append(created, job.GetRequestedAt().AsTime()), append(updated, job.GetUpdatedAt().AsTime())
		states, histories = append(states, raw), append(histories, r.history.raw)
		waits, runs := work(job)
		// Commas, since Postgres' arrays of arrays are rectangles.
		pending, running = append(pending, strings.Join(waits, ",")), append(running, strings.Join(runs, ","))
		opened = append(opened, job.Opened())
		source, result := keptSince(job)
		sources, results = append(sources, source), append(results, result)
		operations, standings = append(operations, r.operations), append(standings, int16(StandingOf(job)))
		changes = append(changes, joined(r.changes))
		keys = append(keys, keyID(job))
	}
	_, err := tx.Exec(ctx, `INSERT INTO jobs (job_id, tenant, phase, outcome, revision, created_at, updated_at, state, events, pending, running, opened_at,
			operations, standing, changes, source_since, results_since, key_id)
		SELECT job_id, tenant, phase, outcome, revision, created, updated, state, events, string_to_array(pending, ','), string_to_array(running, ','), opened,
			operations, standing, string_to_array(changes, ',')::bigint[], source, results, key_id
		FROM unnest($1::uuid[], $2::text[], $3::smallint[], $4::smallint[], $5::int[], $6::timestamptz[], $7::timestamptz[], $8::bytea[], $9::bytea[],
				$10::text[], $11::text[], $12::timestamptz[], $13::text[], $14::smallint[], $15::text[], $16::timestamptz[], $17::timestamptz[], $18::uuid[])
			AS new (job_id, tenant, phase, outcome, revision, created, updated, state, events, pending, running, opened, operations, standing, changes, source, results, key_id)
		ON CONFLICT (job_id) DO UPDATE SET tenant = excluded.tenant, created_at = excluded.created_at, phase = excluded.phase, outcome = excluded.outcome, revision = excluded.revision,
			updated_at = excluded.updated_at, state = excluded.state, events = excluded.events,
			pending = excluded.pending, running = excluded.running, opened_at = excluded.opened_at,
			operations = excluded.operations, standing = excluded.standing, changes = excluded.changes,
			source_since = excluded.source_since, results_since = excluded.results_since, key_id = excluded.key_id`,
		ids, tenants, phases, outcomes, revisions, created, updated, states, histories, pending, running, opened, operations, standings, changes, sources, results, keys)
	if err != nil {
		return fmt.Errorf("write the states of %d jobs: %w", len(ids), err)
	}
	return nil
}

// keyID is what the column key_id has of a job. What is no UUID, which we do not write, leads
// nowhere.
func keyID(job *events.Job) *string {
	if id := job.GetIdempotencyJobId(); events.IsJobID(id) {
		return &id
	}
	return nil
}

func joined(numbers []int64) string {
	var text []byte
	for i, n := range numbers {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, n, 10)
	}
	return string(text)
}
