package projections_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
	"github.com/pixtools/pixtools/projections"
)

const (
	patience   = 90 * time.Second
	partitions = 3
)

var quiet = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))

// world is a log and a database, both real, both this test's own.
type world struct {
	t        *testing.T
	opts     []kgo.Opt
	client   *kgo.Client
	logID    [16]byte
	postgres *testenv.PostgresServer
	cfg      projections.Config
	pool     *pgxpool.Pool
	reader   *projections.Reader
	// folded is what a fold of the log gives, kept up as events are produced.
	folded map[string]*events.Job
	places map[string][]int64
	used   map[string]projections.Used
	last   map[int32]int64
}

func newWorld(t *testing.T) *world {
	cluster, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	postgres, err := testenv.StartPostgres()
	require.NoError(t, err)
	t.Cleanup(postgres.Stop)
	w := &world{t: t, postgres: postgres, folded: map[string]*events.Job{}, places: map[string][]int64{}, used: map[string]projections.Used{}, last: map[int32]int64{},
		opts: []kgo.Opt{kgo.SeedBrokers(cluster.Brokers()...), kgo.SessionTimeout(6 * time.Second), kgo.HeartbeatInterval(500 * time.Millisecond)}}
	w.client, err = kgo.NewClient(w.opts...)
	require.NoError(t, err)
	t.Cleanup(w.client.Close)
	ctx := w.ctx()
	require.NoError(t, kafka.EnsureTopic(ctx, w.client, kafka.Topic{Name: events.Topic, Partitions: partitions, Replication: 1}))
	w.logID, err = kafka.TopicID(ctx, w.client, events.Topic)
	require.NoError(t, err)
	require.NoError(t, env.ParseWithOptions(&w.cfg, env.Options{Environment: map[string]string{"DATABASE_URL": postgres.URL}}))
	require.NoError(t, w.cfg.Validate())
	w.pool, err = projections.Open(w.cfg, projections.Schema)
	require.NoError(t, err)
	t.Cleanup(w.pool.Close)
	require.NoError(t, projections.Migrate(ctx, w.pool, projections.Schema))
	w.reader = projections.NewReader(w.cfg, w.pool, w.logID, quiet)
	w.background(w.reader.Listen)
	return w
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// background runs something until the returned function, or the test's end, stops it.
func (w *world) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) projector() (stop func()) {
	return w.background(projections.NewProjector(w.cfg, w.pool, w.logID, quiet, w.opts...).Run)
}

func (w *world) produce(e events.Event) {
	r, err := e.Record()
	require.NoError(w.t, err)
	require.NoError(w.t, w.client.ProduceSync(w.ctx(), r).FirstErr())
	w.last[r.Partition] = r.Offset
	w.fold(e, r.Offset)
}

// fold keeps what a fold of the log gives.
func (w *world) fold(e events.Event, offset int64) {
	before := w.folded[e.JobID]
	next := events.Fold(before, e)
	if next == nil {
		return
	}
	w.folded[e.JobID] = next
	w.places[e.JobID] = append(w.places[e.JobID], offset)
	w.count(before, next, e)
}

// produceJobs tells the lives of some jobs, interleaved, with repeats.
func (w *world) produceJobs(from, to int, random *rand.Rand) {
	var told []events.Event
	for step := range 4 {
		for i := from; i < to; i++ {
			id := events.JobID("test", fmt.Sprint(i))
			m := []proto.Message{
				&events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, Source: &events.Source{Sha256: "aa"}},
				&events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1},
				&events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &events.Artifact{Bytes: int64(i)}},
				&events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED},
			}[step]
			told = append(told, events.New(id, time.Date(2026, 11, 24, 12, step, i, 0, time.UTC), "test", "req", m))
			w.produce(told[len(told)-1])
			if random.IntN(5) == 0 {
				w.produce(told[random.IntN(len(told))])
			}
		}
	}
}

// caughtUp waits for the projection, then wants it equal to the fold of the log.
func (w *world) caughtUp() {
	w.t.Helper()
	for partition, offset := range w.last {
		require.NoError(w.t, w.reader.Wait(w.ctx(), partition, offset), "partition %d up to %d", partition, offset)
	}
	for id, want := range w.folded {
		have, err := w.reader.Job(w.ctx(), want.GetTenant(), id)
		require.NoError(w.t, err)
		require.True(w.t, proto.Equal(want, have), "job %s:\nlog  %v\nread %v", id, want, have)
		history, err := w.reader.History(w.ctx(), want.GetTenant(), id)
		require.NoError(w.t, err)
		require.Equal(w.t, w.places[id], history)
	}
	var rows int
	require.NoError(w.t, w.pool.QueryRow(w.ctx(), "SELECT count(*) FROM jobs").Scan(&rows))
	require.Len(w.t, w.folded, rows)
	require.Equal(w.t, w.used, w.usageOf(projections.Schema))
}

// Projectors stop, start and overlap; the database dies under them; records repeat:
// the read model is the fold of the log, and its offsets are the log's.
func TestReadModelIsTheFoldOfTheLog(t *testing.T) {
	w := newWorld(t)
	random := rand.New(rand.NewPCG(1, 1))
	stop := w.projector()
	w.produceJobs(0, 20, random)
	w.caughtUp()
	stop()
	w.produceJobs(20, 30, random) // while nobody projects
	first := w.projector()
	w.projector() // two members
	w.produceJobs(30, 50, random)
	w.caughtUp()
	first() // the other takes its partitions over
	w.produceJobs(50, 60, random)
	w.caughtUp()

	require.NoError(t, w.postgres.Kill())
	w.produceJobs(60, 70, random)
	require.NoError(t, w.postgres.Restart())
	w.caughtUp()

	// A second migration of the same schema, and from several processes, changes nothing.
	done := make(chan error, 4)
	for range cap(done) {
		go func() { done <- projections.Migrate(w.ctx(), w.pool, projections.Schema) }()
	}
	for range cap(done) {
		require.NoError(t, <-done)
	}
	w.caughtUp()
}

// Who waits for a job's end is told of it, whichever projector sees it, and also after the
// database was away.
func TestWatchersHearOfTheEnd(t *testing.T) {
	w := newWorld(t)
	w.projector()
	random := rand.New(rand.NewPCG(1, 1))
	told := func(from, to int, between func()) {
		var all []<-chan struct{}
		for i := from; i < to; i++ {
			ended, stop := w.reader.Watch(events.JobID("test", fmt.Sprint(i)))
			t.Cleanup(stop)
			all = append(all, ended)
		}
		other, stop := w.reader.Watch("another job")
		defer stop()
		w.produceJobs(from, to, random)
		between()
		for i, ended := range all {
			for id := events.JobID("test", fmt.Sprint(from+i)); ; {
				select {
				case <-ended:
				case <-w.ctx().Done():
					t.Fatalf("not told of the end of job %d", from+i)
				}
				// Being told may also mean that news were missed.
				job, err := w.reader.Job(w.ctx(), "test", id)
				if err == nil && job.GetPhase() == events.Phase_PHASE_ENDED {
					break
				}
			}
		}
		if from == 10 { // by then nothing was missed
			require.Empty(t, other)
		}
	}
	told(0, 10, func() {})
	told(10, 20, func() {})
	told(20, 30, func() {
		require.NoError(t, w.postgres.Kill())
		require.NoError(t, w.postgres.Restart())
	})
}

// A transaction's marker is an offset too: the projection is seen to reach the end.
func TestReachesTheEndBehindTransactions(t *testing.T) {
	w := newWorld(t)
	w.projector()
	client, err := kgo.NewClient(append(w.opts[:len(w.opts):len(w.opts)], kgo.TransactionalID("test"))...)
	require.NoError(t, err)
	defer client.Close()
	id := events.JobID("test", "0")
	for _, commit := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		require.NoError(t, client.BeginTransaction())
		r, err := events.New(id, time.Now(), "test", "req", &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}}).Record()
		require.NoError(t, err)
		require.NoError(t, client.ProduceSync(w.ctx(), r).FirstErr())
		require.NoError(t, client.EndTransaction(w.ctx(), commit))
	}
	ends, err := kadm.NewClient(w.client).ListEndOffsets(w.ctx(), events.Topic)
	require.NoError(t, err)
	ends.Each(func(end kadm.ListedOffset) {
		if end.Offset > 0 {
			require.NoError(t, w.reader.Wait(w.ctx(), end.Partition, end.Offset-1))
		}
	})
	_, err = w.reader.Job(w.ctx(), "test", id)
	require.NoError(t, err)
	_, err = w.reader.Job(w.ctx(), "another tenant", id)
	require.ErrorIs(t, err, projections.ErrNotFound)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, w.reader.Wait(ctx, 0, 1<<40), projections.ErrBehind)
}
