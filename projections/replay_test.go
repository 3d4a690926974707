package projections_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/projections"
)

func silent(projections.Progress) {}

// muted says nothing of records that are no events, of which these tests have many.
var muted = slog.New(slog.DiscardHandler)

func (w *world) mutedProjector() (stop func()) {
	return w.background(projections.NewProjector(w.cfg, w.pool, w.logID, muted, w.opts...).Run)
}

// onlyReads fails on every request to Kafka that could change something.
type onlyReads struct{ t *testing.T }

func (o onlyReads) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	reads := []kmsg.Key{kmsg.Metadata, kmsg.ApiVersions, kmsg.ListOffsets, kmsg.Fetch}
	if !slices.Contains(reads, kmsg.Key(key)) {
		o.t.Errorf("a replay sends %s to Kafka", kmsg.NameForKey(key))
	}
}

func (w *world) replayer(change ...func(*projections.ReplayConfig)) *projections.Replayer {
	var cfg projections.ReplayConfig
	require.NoError(w.t, env.ParseWithOptions(&cfg, env.Options{Environment: map[string]string{}}))
	cfg.SwapTimeout = 20 * time.Second // these machines are busy
	for _, c := range change {
		c(&cfg)
	}
	require.NoError(w.t, cfg.Validate())
	r, err := projections.NewReplayer(cfg, w.cfg, w.logID, muted, append(slices.Clone(w.opts), kgo.WithHooks(onlyReads{w.t}))...)
	require.NoError(w.t, err)
	w.t.Cleanup(r.Close)
	return r
}

// tell produces, and keeps what a fold of the log gives.
func (w *world) tell(id string, at time.Time, m proto.Message) events.Position {
	e := events.New(id, at, "test", "req", m)
	r, err := e.Record()
	require.NoError(w.t, err)
	return w.tellRecord(r)
}

func (w *world) tellRecord(r *kgo.Record) events.Position {
	require.NoError(w.t, w.client.ProduceSync(w.ctx(), r).FirstErr())
	w.last[r.Partition] = r.Offset
	if e, err := events.Decode(r); err == nil {
		w.fold(e, r.Offset)
	}
	return events.Position{Log: w.logID, Partition: r.Partition, Offset: r.Offset}
}

var testDay = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// randomly tells anything of some jobs, in any order: legal, illegal, repeated; and records
// that are no events, and the markers of transactions.
func (w *world) randomly(steps, from, to int, random *rand.Rand) {
	transactional, err := kgo.NewClient(append(slices.Clone(w.opts), kgo.TransactionalID(fmt.Sprint("test", random.Uint64())))...)
	require.NoError(w.t, err)
	defer transactional.Close()
	at := testDay
	for range steps {
		at = at.Add(time.Duration(random.IntN(1000)) * time.Millisecond)
		id, revision, op := events.JobID("test", fmt.Sprint(from+random.IntN(to-from))), int32(1+random.IntN(2)), []string{"webp", "avif"}[random.IntN(2)]
		request := &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "avif"}}, Source: &events.Source{Sha256: "aa"},
			WebhookUrl: &events.Sealed{KeyId: "k"}}
		if random.IntN(3) == 0 {
			request.IdempotencyJobId = events.JobID("key", id)
		}
		switch random.IntN(24) {
		case 0, 1, 2:
			w.tell(id, at, request)
		case 3, 4, 5, 6, 7:
			w.tell(id, at, &events.OperationStarted{Revision: revision, Operation: op, Attempt: int32(1 + random.IntN(3))})
		case 8, 9, 10, 11, 12:
			w.tell(id, at, &events.OperationCompleted{Revision: revision, Operation: op, Attempt: 1, Artifact: &events.Artifact{Bytes: random.Int64N(1000)}})
		case 13, 14, 15:
			w.tell(id, at, &events.OperationFailed{Revision: revision, Operation: op, Attempt: 1, Code: "corrupt"})
		case 16, 17:
			w.tell(id, at, &events.JobFinalized{Revision: revision, Outcome: events.Outcome_OUTCOME_PARTIAL})
		case 18, 19:
			w.tell(id, at, &events.OperationRetryRequested{Revision: 2, Operations: []string{"avif"}, Request: request})
		case 20, 21:
			w.tell(id, at, &events.WebhookScheduled{Revision: revision, Attempt: 1})
		case 22:
			w.tellRecord(&kgo.Record{Topic: events.Topic, Key: []byte(id), Value: []byte("no event")})
		case 23:
			require.NoError(w.t, transactional.BeginTransaction())
			r, err := events.New(id, at, "test", "req", &events.JobCancelRequested{Revision: revision}).Record()
			require.NoError(w.t, err)
			require.NoError(w.t, transactional.ProduceSync(w.ctx(), r).FirstErr())
			end := kgo.TransactionEndTry(random.IntN(2) == 0)
			require.NoError(w.t, transactional.EndTransaction(w.ctx(), end))
			w.last[r.Partition] = r.Offset + 1 // the marker
			if e, err := events.Decode(r); err == nil && end == kgo.TryCommit {
				w.fold(e, r.Offset)
			}
		}
	}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	_, err := w.pool.Exec(w.ctx(), sql, args...)
	require.NoError(w.t, err)
}

// rowsThatDiffer compares two schemas without any code of ours.
func (w *world) rowsThatDiffer(a, b string) (n int) {
	for _, table := range []string{"jobs", "usage", "positions"} {
		var differ int
		err := w.pool.QueryRow(w.ctx(), fmt.Sprintf(`SELECT count(*) FROM (
			(TABLE %[1]s.%[3]s EXCEPT TABLE %[2]s.%[3]s) UNION ALL (TABLE %[2]s.%[3]s EXCEPT TABLE %[1]s.%[3]s)) d`, a, b, table)).Scan(&differ)
		require.NoError(w.t, err)
		n += differ
	}
	return n
}

func (w *world) begin(r *projections.Replayer) {
	w.t.Helper()
	end, err := r.Begin(w.ctx())
	require.NoError(w.t, err)
	w.t.Cleanup(end)
}

func (w *world) schemas(r *projections.Replayer) (names []string) {
	all, err := r.Schemas(w.ctx())
	require.NoError(w.t, err)
	for _, s := range all {
		names = append(names, s.Name)
	}
	return names
}

// A rebuild gives, row for row, what the live projector made, however little it may keep in
// memory; and it says what is not the same.
func TestRebuildIsTheLiveReadModel(t *testing.T) {
	w := newWorld(t)
	w.cfg.BatchRecords = 7
	stop := w.mutedProjector()
	w.randomly(600, 0, 40, rand.New(rand.NewPCG(3, 1)))
	w.caughtUp()
	var total int64
	for i, change := range []func(*projections.ReplayConfig){
		func(*projections.ReplayConfig) {},
		func(c *projections.ReplayConfig) { c.HeldJobs, c.Workers = 1, 1 },
		func(c *projections.ReplayConfig) { c.HeldJobs, c.Workers, c.FilterBytes = 10, 3, 1<<10 },
	} {
		r := w.replayer(change)
		end, err := r.Begin(w.ctx())
		require.NoError(t, err)
		var told projections.Progress
		built, err := r.Build(w.ctx(), projections.Until{}, func(p projections.Progress) {
			if p.Total > 0 {
				require.GreaterOrEqual(t, p.Done, told.Done)
				told = p
			}
		})
		require.NoError(t, err)
		require.EqualValues(t, len(w.folded), built.Jobs)
		require.Positive(t, built.Records)
		total = max(total, built.Records)
		require.Equal(t, total, built.Records)
		require.Equal(t, i > 0, built.Again > 0, "%d written again", built.Again)
		require.Positive(t, built.Unreadable)
		require.Zero(t, w.rowsThatDiffer(projections.Schema, built.Name))
		difference, err := r.Diff(w.ctx(), built.Name, silent, func(c projections.Change) error { return fmt.Errorf("%+v", c) })
		require.NoError(t, err)
		require.Equal(t, projections.Difference{Same: int64(len(w.folded))}, difference)
		end()
	}

	// By hand: a job changed, one removed, one added; and the log goes on meanwhile, with a
	// projector that takes the changed row for true.
	r := w.replayer()
	w.begin(r)
	ids := slices.Sorted(maps.Keys(w.folded))
	changed := proto.Clone(w.folded[ids[0]]).(*events.Job)
	changed.CancelReason = "by hand"
	changed.Operations[1].FailureCode = "by hand"
	raw, err := proto.Marshal(changed)
	require.NoError(t, err)
	added := events.JobID("test", "by hand")
	w.exec("UPDATE jobs SET state = $2, events = $3 WHERE job_id = $1", ids[0], raw, []byte{7})
	w.exec("UPDATE jobs SET revision = 77, pending = '{gif}' WHERE job_id = $1", ids[3])
	w.exec("DELETE FROM jobs WHERE job_id = $1", ids[1])
	w.exec("INSERT INTO jobs SELECT $2, tenant, phase, outcome, revision, created_at, updated_at, state, events, pending, running, opened_at, operations, standing, changes FROM jobs WHERE job_id = $1", ids[2], added)
	stop()
	w.mutedProjector()
	w.tell(ids[0], testDay, &events.JobRequested{})
	w.randomly(60, 40, 80, rand.New(rand.NewPCG(4, 1)))
	found := map[string]projections.Change{}
	difference, err := r.Diff(w.ctx(), "pixtools_read_1", silent, func(c projections.Change) error {
		found[c.JobID] = c
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, projections.Difference{Same: int64(len(w.folded)) - 3, Changed: 2, Added: 1, Missing: 1}, difference)
	require.Len(t, found, 4)
	require.Equal(t, projections.Added, found[ids[1]].Kind)
	require.Equal(t, projections.Missing, found[added].Kind)
	fields := map[string]projections.FieldChange{}
	for _, f := range found[ids[0]].Fields {
		fields[f.Field] = f
	}
	require.Equal(t, []string{"events", "state.cancel_reason", "state.operations[1].failure_code"}, slices.Sorted(maps.Keys(fields)))
	require.Equal(t, "by hand", fields["state.cancel_reason"].Live)
	require.Len(t, found[ids[3]].Fields, 2)
	require.Equal(t, projections.FieldChange{Field: "revision", Live: "77", Other: fmt.Sprint(w.folded[ids[3]].GetRevision())}, found[ids[3]].Fields[0])
	require.Equal(t, "{gif}", found[ids[3]].Fields[1].Live)

	// Promoted, all of it is as the log says; also for the projector, which had its own
	// memory of the changed row.
	swapped, err := r.Promote(w.ctx(), "pixtools_read_1", silent)
	require.NoError(t, err)
	require.True(t, swapped.Replaced)
	w.caughtUp()
	w.tell(ids[0], testDay, &events.ArtifactsExpired{Source: true})
	w.randomly(60, 0, 80, rand.New(rand.NewPCG(5, 1)))
	w.caughtUp()

	// Back, with what came since, and with what was changed by hand; then back again.
	_, err = r.Promote(w.ctx(), "pixtools_read_1", silent)
	require.ErrorIs(t, err, projections.ErrNoSchema)
	_, err = r.Rollback(w.ctx(), silent)
	require.NoError(t, err)
	require.Equal(t, []string{"pixtools_read", "pixtools_read_2", "pixtools_read_3", "pixtools_read_previous"}, w.schemas(r))
	require.NotZero(t, w.rowsThatDiffer(projections.Schema, projections.Previous))
	_, err = r.Rollback(w.ctx(), silent)
	require.NoError(t, err)
	w.caughtUp()

	// A second promotion leaves one previous, and the next read model gets in.
	w.tell(ids[0], testDay, &events.ArtifactsExpired{Operations: []string{"avif", "webp"}})
	_, err = r.Promote(w.ctx(), "pixtools_read_3", silent)
	require.NoError(t, err)
	w.caughtUp()
	require.Equal(t, []string{"pixtools_read", "pixtools_read_2", "pixtools_read_previous"}, w.schemas(r))
	limited := w.replayer(func(c *projections.ReplayConfig) { c.Schemas = 2 })
	_, err = limited.Build(w.ctx(), projections.Until{}, silent)
	require.ErrorIs(t, err, projections.ErrSchemas)
	require.ErrorContains(t, err, "pixtools replay --drop NAME")
	// What is made for a comparison has a place all the same, and is gone afterwards, also after a fault.
	_, d, err := limited.Audit(w.ctx(), silent, func(projections.Change) error { return nil })
	require.NoError(t, err)
	require.Zero(t, d.Usage)
	fault := errors.New("a fault")
	require.ErrorIs(t, limited.Aside(w.ctx(), silent, func(built projections.Rebuilt) error {
		require.Contains(t, w.schemas(r), built.Name)
		_, err := limited.Promote(w.ctx(), built.Name, silent)
		require.ErrorIs(t, err, projections.ErrState)
		return fault
	}), fault)
	require.Equal(t, []string{"pixtools_read", "pixtools_read_2", "pixtools_read_previous"}, w.schemas(r))
	require.ErrorIs(t, r.Drop(w.ctx(), projections.Schema), projections.ErrState)
	require.ErrorIs(t, r.Drop(w.ctx(), "public"), projections.ErrNoSchema)
	require.NoError(t, r.Drop(w.ctx(), "pixtools_read_2"))
	built, err := limited.Build(w.ctx(), projections.Until{}, silent)
	require.NoError(t, err)
	require.Equal(t, "pixtools_read_1", built.Name)
	w.caughtUp()
}

// What was is built, by time and by position, and cannot be promoted.
func TestPastStates(t *testing.T) {
	w := newWorld(t)
	r := w.replayer()
	w.begin(r)
	for i := range 3 {
		w.tell(events.JobID("test", fmt.Sprint(i)), testDay, &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "avif"}}})
	}
	w.randomly(200, 0, 20, rand.New(rand.NewPCG(6, 1)))
	w.tell(events.JobID("test", "0"), testDay, &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 9}) // a clock that is behind
	last := w.tell(events.JobID("test", "1"), testDay.Add(time.Hour), &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 8})
	then := maps.Clone(w.folded)
	w.tell(events.JobID("test", "2"), testDay.Add(2*time.Hour), &events.JobDeleted{})
	w.tell(events.JobID("test", "1"), testDay.Add(time.Hour), &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 10}) // behind the position
	w.tell(events.JobID("test", "new"), testDay.Add(3*time.Hour), &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}})

	equal := func(schema string, want map[string]*events.Job) {
		rows, err := w.pool.Query(w.ctx(), "SELECT state FROM "+schema+".jobs")
		require.NoError(t, err)
		defer rows.Close()
		found := 0
		for rows.Next() {
			var raw []byte
			require.NoError(t, rows.Scan(&raw))
			job := &events.Job{}
			require.NoError(t, proto.Unmarshal(raw, job))
			require.True(t, proto.Equal(want[job.GetId()], job), "job %s:\nwant %v\nhave %v", job.GetId(), want[job.GetId()], job)
			found++
		}
		require.NoError(t, rows.Err())
		require.Equal(t, len(want), found)
	}
	until, err := r.At(w.ctx(), last)
	require.NoError(t, err)
	built, err := r.Build(w.ctx(), until, silent)
	require.NoError(t, err)
	require.Equal(t, projections.StatePast, built.State)
	equal(built.Name, then)
	// By time, the event of the same moment behind the position belongs to it.
	at := testDay.Add(time.Hour)
	then[events.JobID("test", "1")] = w.folded[events.JobID("test", "1")]
	built, err = r.Build(w.ctx(), projections.Until{Text: at.Format(time.RFC3339), Time: at}, silent)
	require.NoError(t, err)
	equal(built.Name, then)
	all, err := r.Schemas(w.ctx())
	require.NoError(t, err)
	require.Equal(t, "2026-11-24T13:00:00Z", all[2].Until)

	_, err = r.Promote(w.ctx(), built.Name, silent)
	require.ErrorIs(t, err, projections.ErrState)
	_, err = r.Rollback(w.ctx(), silent)
	require.ErrorIs(t, err, projections.ErrNoSchema)
	for _, p := range []events.Position{
		{Log: [16]byte{1}}, {Log: w.logID, Partition: last.Partition, Offset: 1 << 40}, {Log: w.logID, Partition: 1 << 20}, {Log: w.logID, Partition: 0, Offset: -1},
	} {
		_, err = r.At(w.ctx(), p)
		require.ErrorIs(t, err, projections.ErrNoEvent, "%v", p)
	}
	difference, err := r.Diff(w.ctx(), built.Name, silent, func(projections.Change) error { return nil })
	require.NoError(t, err) // against a live one that nobody projects
	require.EqualValues(t, len(then), difference.Added)
}

// A rebuild that is cut off leaves nothing that stops the next one, whether it cleans up
// behind itself or not; two at once there are not.
func TestInterruptedRebuilds(t *testing.T) {
	w := newWorld(t)
	w.randomly(50, 0, 10, rand.New(rand.NewPCG(7, 1)))
	r := w.replayer()
	end, err := r.Begin(w.ctx())
	require.NoError(t, err)
	_, err = w.replayer().Begin(w.ctx())
	require.ErrorIs(t, err, projections.ErrBusy)

	for _, phase := range []string{"reading the log", "making indexes"} {
		ctx, cancel := context.WithCancel(w.ctx())
		_, err = r.Build(ctx, projections.Until{}, func(p projections.Progress) {
			if p.Phase == phase {
				cancel()
			}
		})
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, []string{projections.Schema}, w.schemas(r))
	}
	end()

	// Killed: its connections go, and what it made stays.
	w.exec(`CREATE SCHEMA pixtools_read_1`)
	w.exec(`COMMENT ON SCHEMA pixtools_read_1 IS '{"state":"building"}'`)
	w.exec(`CREATE TABLE pixtools_read_1.jobs (half text)`)
	w.exec(`CREATE SCHEMA pixtools_read_by_somebody`)
	another := w.replayer()
	require.Eventually(t, func() bool { // the server sees that the first has gone
		end, err = another.Begin(w.ctx())
		return !errors.Is(err, projections.ErrBusy)
	}, patience, 20*time.Millisecond)
	require.NoError(t, err)
	defer end()
	require.Equal(t, []string{projections.Schema, "pixtools_read_by_somebody"}, w.schemas(another))
	built, err := another.Build(w.ctx(), projections.Until{}, silent)
	require.NoError(t, err)
	require.Equal(t, "pixtools_read_1", built.Name)
	_, err = another.Promote(w.ctx(), "pixtools_read_by_somebody", silent)
	require.ErrorIs(t, err, projections.ErrState)
}

// A swap that would hold the projection up for too long lets go and tries again, and gives
// up at last; the live read model is as it was.
func TestSwapLetsGo(t *testing.T) {
	w := newWorld(t)
	w.randomly(50, 0, 10, rand.New(rand.NewPCG(12, 1)))
	w.mutedProjector()
	w.caughtUp()
	r := w.replayer(func(c *projections.ReplayConfig) { c.SwapTimeout = 20 * time.Millisecond })
	w.begin(r)
	built, err := r.Build(w.ctx(), projections.Until{}, silent)
	require.NoError(t, err)
	holder, err := w.pool.Begin(w.ctx())
	require.NoError(t, err)
	_, err = holder.Exec(w.ctx(), "UPDATE positions SET next_offset = next_offset")
	require.NoError(t, err)
	swapped, err := r.Promote(w.ctx(), built.Name, silent)
	require.ErrorContains(t, err, "REPLAY_SWAP_TIMEOUT")
	require.Equal(t, 20, swapped.Tries)
	require.Equal(t, []string{projections.Schema, built.Name}, w.schemas(r))
	w.caughtUp()

	patient, tries := w.replayer(func(c *projections.ReplayConfig) { c.SwapTimeout = time.Second }), 0
	swapped, err = patient.Promote(w.ctx(), built.Name, func(p projections.Progress) {
		if p.Phase != "swapping" {
			return
		}
		if tries++; tries == 3 {
			require.NoError(t, holder.Rollback(w.ctx()))
		}
	})
	require.NoError(t, err)
	require.GreaterOrEqual(t, swapped.Tries, 3)
	w.randomly(50, 0, 20, rand.New(rand.NewPCG(13, 1)))
	w.caughtUp()
}

// Dropped under a running projector and reader, the read model comes back as it was, and
// nobody has to be started anew. Nothing made half of it meanwhile.
func TestReadModelIsDropped(t *testing.T) {
	w := newWorld(t)
	w.mutedProjector()
	w.randomly(200, 0, 20, rand.New(rand.NewPCG(8, 1)))
	w.caughtUp()
	w.exec("DROP SCHEMA pixtools_read CASCADE")
	some := slices.Sorted(maps.Keys(w.folded))[0]
	_, err := w.reader.Job(w.ctx(), "test", some)
	require.ErrorIs(t, err, projections.ErrUnavailable)
	w.randomly(100, 0, 30, rand.New(rand.NewPCG(9, 1)))
	r := w.replayer()
	w.begin(r)
	built, err := r.Build(w.ctx(), projections.Until{}, silent)
	require.NoError(t, err)
	require.Equal(t, []string{built.Name}, w.schemas(r))
	w.randomly(20, 0, 30, rand.New(rand.NewPCG(10, 1)))
	swapped, err := r.Promote(w.ctx(), built.Name, silent)
	require.NoError(t, err)
	require.False(t, swapped.Replaced)
	w.caughtUp()
	w.randomly(20, 0, 30, rand.New(rand.NewPCG(11, 1)))
	w.caughtUp()

	// Emptied, as a migration may, in a moment in which nothing comes.
	w.exec("TRUNCATE jobs, positions, usage")
	w.exec("SELECT pg_notify('pixtools_projection', 'anew')")
	require.Eventually(t, func() bool {
		var n int
		require.NoError(t, w.pool.QueryRow(w.ctx(), "SELECT count(*) FROM jobs").Scan(&n))
		return n == len(w.folded)
	}, patience, 20*time.Millisecond)
	w.caughtUp()

	// Made anew by a process that starts, it begins at nothing, and so do its readers.
	w.exec("DROP SCHEMA pixtools_read CASCADE")
	require.NoError(t, projections.Migrate(w.ctx(), w.pool, projections.Schema))
	partition := slices.Sorted(maps.Keys(w.last))[0]
	for id := range w.folded { // one that lies there
		if offsets := w.places[id]; w.partitionOf(id) == partition {
			for {
				require.NoError(t, w.reader.Wait(w.ctx(), partition, offsets[0]))
				if _, err := w.reader.Job(w.ctx(), "test", id); !errors.Is(err, projections.ErrUnavailable) {
					require.NoError(t, err)
					break
				}
			}
		}
	}
	w.caughtUp()
}

// TestNoSuchJobOfAReadModelBegunAnew: a read model that was begun anew does not say that there is
// no such job before it is as far as the one was that it replaces, however late who waited for
// that one asks.
func TestNoSuchJobOfAReadModelBegunAnew(t *testing.T) {
	w := newWorld(t)
	stop := w.mutedProjector()
	w.randomly(200, 0, 20, rand.New(rand.NewPCG(12, 1)))
	w.caughtUp()
	_, err := w.reader.Job(w.ctx(), "test", uuid.NewString())
	require.ErrorIs(t, err, projections.ErrNotFound)
	for name, anew := range map[string]func(){
		"another table": func() { w.exec("DROP SCHEMA pixtools_read CASCADE") },
		"the same tables": func() {
			w.exec("TRUNCATE jobs, positions, usage")
			w.exec("SELECT pg_notify('pixtools_projection', 'anew')")
		},
	} {
		stop()
		anew()
		require.NoError(t, projections.Migrate(w.ctx(), w.pool, projections.Schema))
		partition := slices.Sorted(maps.Keys(w.last))[0]
		require.Eventually(t, func() bool { // it has heard of the new one, and forgotten how far the old one was
			ctx, cancel := context.WithTimeout(w.ctx(), 10*time.Millisecond)
			defer cancel()
			return w.reader.Wait(ctx, partition, 0) != nil
		}, patience, time.Millisecond, name)
		for id, job := range w.folded {
			_, err := w.reader.Job(w.ctx(), job.GetTenant(), id)
			require.ErrorIs(t, err, projections.ErrUnavailable, name)
			require.NotErrorIs(t, err, projections.ErrNotFound, name)
		}
		stop = w.mutedProjector()
		w.caughtUp()
		_, err := w.reader.Job(w.ctx(), "test", uuid.NewString())
		require.ErrorIs(t, err, projections.ErrNotFound, name)
	}
}

func (w *world) partitionOf(id string) int32 {
	return kafka.PartitionOf([]byte(id), partitions)
}

// While projectors, writers and readers are at work, read models are promoted and rolled
// back: no read fails, everybody sees what he has written, and nothing goes back.
func TestPromotionUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.mutedProjector()
	w.mutedProjector()
	const clients = 6
	var mu sync.Mutex // over w.tell
	for c := range clients {
		w.tell(events.JobID("test", fmt.Sprint(c)), testDay, &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}})
	}
	w.caughtUp()
	var stop atomic.Bool
	var reads, writes atomic.Int64
	var all sync.WaitGroup
	fail := make(chan error, 2*clients)
	see := func(id string, atLeast int32) (int32, error) {
		job, err := w.reader.Job(w.ctx(), "test", id)
		if err != nil {
			return 0, fmt.Errorf("job %s: %w", id, err)
		}
		reads.Add(1)
		if seen := job.GetOperations()[0].GetAttempt(); seen >= atLeast {
			return seen, nil
		}
		return 0, fmt.Errorf("job %s went back to %d from %d", id, job.GetOperations()[0].GetAttempt(), atLeast)
	}
	for c := range clients {
		id := events.JobID("test", fmt.Sprint(c))
		all.Go(func() { // writes, waits, reads
			for attempt := int32(1); !stop.Load(); attempt++ {
				mu.Lock()
				p := w.tell(id, testDay, &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: attempt})
				mu.Unlock()
				writes.Add(1)
				err := w.reader.Wait(w.ctx(), p.Partition, p.Offset)
				if err == nil {
					_, err = see(id, attempt)
				}
				if err != nil {
					fail <- err
					return
				}
			}
		})
		all.Go(func() { // reads only
			for last := int32(0); !stop.Load(); {
				seen, err := see(id, last)
				if err != nil {
					fail <- err
					return
				}
				last = seen
			}
		})
	}
	r := w.replayer()
	w.begin(r)
	for range 3 {
		built, err := r.Build(w.ctx(), projections.Until{}, silent)
		require.NoError(t, err)
		before := writes.Load()
		require.Eventually(t, func() bool { return len(fail) > 0 || writes.Load() > before+20 }, patience, time.Millisecond)
		swapped, err := r.Promote(w.ctx(), built.Name, silent)
		require.NoError(t, err)
		t.Logf("promoted after %d writes, %d reads: %+v", writes.Load(), reads.Load(), swapped)
		before = writes.Load()
		require.Eventually(t, func() bool { return len(fail) > 0 || writes.Load() > before+20 }, patience, time.Millisecond)
		swapped, err = r.Rollback(w.ctx(), silent)
		require.NoError(t, err)
		t.Logf("rolled back after %d writes, %d reads: %+v", writes.Load(), reads.Load(), swapped)
	}
	stop.Store(true)
	all.Wait()
	close(fail)
	for err := range fail {
		t.Error(err)
	}
	w.caughtUp()
	difference, err := r.Diff(w.ctx(), projections.Previous, silent, func(c projections.Change) error { return fmt.Errorf("%+v", c) })
	require.NoError(t, err)
	require.EqualValues(t, clients, difference.Same)
}

// Events of every version there ever was are read in one rebuild.
func TestRebuildReadsOldAndNewVersions(t *testing.T) {
	w := newWorld(t)
	for _, version := range []string{"1", "2"} {
		raw, err := os.ReadFile("../schemas/corpus/OperationRetryRequested." + version + ".json")
		require.NoError(t, err)
		var example struct {
			Headers map[string]string `json:"headers"`
			Value   string            `json:"value_hex"`
		}
		require.NoError(t, json.Unmarshal(raw, &example))
		value, err := hex.DecodeString(example.Value)
		require.NoError(t, err)
		id := events.JobID("test", version)
		w.tell(id, testDay, &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "avif"}}, Source: &events.Source{Sha256: "aa"}})
		w.tell(id, testDay, &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &events.Artifact{Bytes: 1}})
		w.tell(id, testDay, &events.OperationFailed{Revision: 1, Operation: "avif", Attempt: 1})
		w.tell(id, testDay, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_PARTIAL})
		r := &kgo.Record{Topic: events.Topic, Key: []byte(id), Value: value}
		example.Headers[events.HeaderSubject] = id
		for key, header := range example.Headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(header)})
		}
		w.tellRecord(r)
		require.EqualValues(t, 2, w.folded[id].GetRevision())
	}
	// One that only a newer version of the program knows.
	r, err := events.New(events.JobID("test", "1"), testDay, "test", "req", &events.JobDeleted{}).Record()
	require.NoError(t, err)
	for i, h := range r.Headers {
		if h.Key == events.HeaderType {
			r.Headers[i].Value = []byte("pixtools.events.v1.JobPainted")
		}
	}
	w.tellRecord(r)
	replayer := w.replayer()
	w.begin(replayer)
	built, err := replayer.Build(w.ctx(), projections.Until{}, silent)
	require.NoError(t, err)
	_, err = replayer.Promote(w.ctx(), built.Name, silent)
	require.NoError(t, err)
	w.mutedProjector()
	w.caughtUp()
}

func TestLimitsOfReplays(t *testing.T) {
	parse := func(name, value string) error {
		var cfg projections.ReplayConfig
		require.NoError(t, env.ParseWithOptions(&cfg, env.Options{Environment: map[string]string{name: value}}))
		return cfg.Validate()
	}
	for name, values := range map[string][4]string{ // below, lowest, highest, above
		"REPLAY_WORKERS":      {"-1", "0", "256", "257"},
		"REPLAY_HELD_JOBS":    {"0", "1", "10000000", "10000001"},
		"REPLAY_FILTER_BYTES": {"1023", "1024", "1073741824", "1073741825"},
		"REPLAY_SCHEMAS":      {"0", "1", "100", "101"},
		"REPLAY_SWAP_TIMEOUT": {"9ms", "10ms", "1m", "61s"},
	} {
		require.ErrorContains(t, parse(name, values[0]), name)
		require.NoError(t, parse(name, values[1]))
		require.NoError(t, parse(name, values[2]))
		require.ErrorContains(t, parse(name, values[3]), name)
	}
}
