package handlers_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
)

const patience = time.Minute

// broker is an Apache Kafka of this test's own: the topics' and groups' names are fixed.
func broker(t *testing.T, partitions, changelogPartitions int32) []kgo.Opt {
	cluster, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	opts := []kgo.Opt{kgo.SeedBrokers(cluster.Brokers()...), kgo.SessionTimeout(6 * time.Second), kgo.HeartbeatInterval(500 * time.Millisecond)}
	client, err := kgo.NewClient(opts...)
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, kafka.EnsureTopic(ctx, client, kafka.Topic{Name: events.Topic, Partitions: partitions, Replication: 1}))
	require.NoError(t, kafka.EnsureTopic(ctx, client, kafka.Topic{Name: events.SagaTopic, Partitions: changelogPartitions, Replication: 1}))
	require.NoError(t, kafka.EnsureTopic(ctx, client, kafka.Topic{Name: events.DeadLetterTopic, Partitions: 1, Replication: 1}))
	return opts
}

func config(t *testing.T) handlers.SagaConfig {
	var c handlers.SagaConfig
	require.NoError(t, env.Parse(&c))
	require.NoError(t, c.Validate())
	return c
}

// start runs a saga until the returned function stops it.
func start(t *testing.T, opts []kgo.Opt, cfg handlers.SagaConfig, partitions, changelog int32) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	saga := handlers.NewSaga(cfg, "saga-"+uuid.NewString(), partitions, changelog, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), opts...)
	go func() {
		defer close(done)
		_ = saga.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// began is now, since the saga's deadline is one of the clock.
var began = time.Now().UTC()

// jobEvents are a job's events up to the end of its operations; every third job's
// second operation fails.
func jobEvents(i int) []events.Event {
	id := events.JobID("test", fmt.Sprint(i))
	e := func(m proto.Message) events.Event { return events.New(id, began, "test", "req", m) }
	life := []events.Event{
		e(&events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "avif"}}, Source: &events.Source{Sha256: "aa"}}),
		e(&events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1}),
		e(&events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &events.Artifact{Bytes: 3}}),
		e(&events.OperationStarted{Revision: 1, Operation: "avif", Attempt: 1}),
	}
	if i%3 == 0 {
		return append(life, e(&events.OperationFailed{Revision: 1, Operation: "avif", Attempt: 1, Kind: events.FailureKind_FAILURE_KIND_INPUT, Code: "x"}))
	}
	return append(life, e(&events.OperationCompleted{Revision: 1, Operation: "avif", Attempt: 1, Artifact: &events.Artifact{Bytes: 4}}))
}

func produce(t *testing.T, opts []kgo.Opt, all ...events.Event) {
	client, err := kgo.NewClient(opts...)
	require.NoError(t, err)
	defer client.Close()
	var records []*kgo.Record
	for _, e := range all {
		r, err := e.Record()
		require.NoError(t, err)
		records = append(records, r)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, client.ProduceSync(ctx, records...).FirstErr())
}

// finals reads the log as a read_committed consumer does, from its beginning, until
// want jobs have ended, and returns every JobFinalized by job.
func finals(t *testing.T, opts []kgo.Opt, want int) map[string][]*events.JobFinalized {
	client, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.ConsumeTopics(events.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found := map[string][]*events.JobFinalized{}
	for len(found) < want {
		fetches := client.PollFetches(ctx)
		require.NoError(t, ctx.Err(), "%d of %d jobs have ended", len(found), want)
		fetches.EachRecord(func(r *kgo.Record) {
			e, err := events.Decode(r)
			if err != nil {
				return // one that is meant to be no event
			}
			if m, ok := e.Message.(*events.JobFinalized); ok {
				found[e.JobID] = append(found[e.JobID], m)
			}
		})
	}
	return found
}

// Sagas come and go while jobs run, every event is told twice, and still each job ends
// once, for a consumer of committed records.
func TestEachRevisionEndsOnce(t *testing.T) {
	for _, changelog := range []int32{3, 1} {
		t.Run(fmt.Sprintf("changelog of %d", changelog), func(t *testing.T) { eachRevisionEndsOnce(t, 3, changelog) })
	}
}

func eachRevisionEndsOnce(t *testing.T, partitions, changelog int32) {
	opts := broker(t, partitions, changelog)
	cfg := config(t)
	const jobs, rounds = 60, 4
	for round := range rounds {
		stop := start(t, opts, cfg, partitions, changelog)
		for i := round * jobs / rounds; i < (round+1)*jobs/rounds; i++ {
			produce(t, opts, jobEvents(i)...)
		}
		if round%2 == 0 {
			stop() // wherever it is: what it did not commit, the next one does
		} else {
			finals(t, opts, (round+1)*jobs/rounds)
			stop()
		}
	}
	// All once more, as a producer would that did not hear its acknowledgement; then one
	// more job per partition's end, to know that the repeats were read.
	start(t, opts, cfg, partitions, changelog)
	start(t, opts, cfg, partitions, changelog) // a second member: partitions change hands meanwhile
	for i := range jobs {
		produce(t, opts, jobEvents(i)...)
	}
	const extra = 30
	for i := jobs; i < jobs+extra; i++ {
		produce(t, opts, jobEvents(i)...)
	}
	found := finals(t, opts, jobs+extra)
	for i := range jobs + extra {
		ends := found[events.JobID("test", fmt.Sprint(i))]
		require.Len(t, ends, 1, "job %d", i)
		want, completed := events.Outcome_OUTCOME_SUCCEEDED, int32(2)
		if i%3 == 0 {
			want, completed = events.Outcome_OUTCOME_PARTIAL, 1
		}
		require.Equal(t, want, ends[0].GetOutcome())
		require.Equal(t, completed, ends[0].GetTotals().GetCompleted())
	}
}

// A job that ended longer ago than the saga remembers is forgotten, and no sooner.
func TestRemembersEndedJobsForItsTime(t *testing.T) {
	const partitions, changelog = 1, 1
	opts := broker(t, partitions, changelog)
	cfg := config(t)
	cfg.Remember = time.Hour
	start(t, opts, cfg, partitions, changelog)
	old := jobEvents(1)
	produce(t, opts, old...)
	finals(t, opts, 1)
	later := func(i int, by time.Duration) []events.Event {
		moved := jobEvents(i)
		for j := range moved {
			moved[j].Time = moved[j].Time.Add(by)
		}
		return moved
	}
	produce(t, opts, later(2, time.Hour)...) // at the limit: job 1 is still known
	finals(t, opts, 2)
	produce(t, opts, old...)
	produce(t, opts, later(4, time.Hour)...)
	require.Len(t, finals(t, opts, 3)[events.JobID("test", "1")], 1)
	produce(t, opts, later(5, time.Hour+time.Second)...) // beyond it
	finals(t, opts, 4)
	// Forgotten, a repeat of the whole job is taken for a new one: that is what the
	// limit means, and why submissions ask the read model too.
	produce(t, opts, old...)
	produce(t, opts, later(7, time.Hour+time.Second)...)
	require.Len(t, finals(t, opts, 5)[events.JobID("test", "1")], 2)
}

// letters reads the dead letters as a read_committed consumer does, until there are want.
func letters(t *testing.T, opts []kgo.Opt, want int) (all []*events.DeadLetter) {
	client, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.ConsumeTopics(events.DeadLetterTopic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for len(all) < want {
		fetches := client.PollFetches(ctx)
		require.NoError(t, ctx.Err(), "%d of %d dead letters", len(all), want)
		fetches.EachRecord(func(r *kgo.Record) {
			e, err := events.DecodeLetter(r)
			require.NoError(t, err)
			all = append(all, events.FoldLetter(nil, e))
		})
	}
	return all
}

// A record that is no event is a dead letter, once, whatever becomes of the saga; its job
// fails, and the others end as they would.
func TestUnreadableRecords(t *testing.T) {
	const partitions, changelog = 1, 1
	opts := broker(t, partitions, changelog)
	cfg := config(t)
	stop := start(t, opts, cfg, partitions, changelog)
	produce(t, opts, jobEvents(1)[:2]...)
	client, err := kgo.NewClient(opts...)
	require.NoError(t, err)
	defer client.Close()
	poison := events.JobID("test", "1")
	for range 2 {
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: events.Topic, Key: []byte(poison), Value: []byte("?")}).FirstErr())
	}
	produce(t, opts, jobEvents(2)...)
	found := finals(t, opts, 2)
	require.Equal(t, events.Outcome_OUTCOME_FAILED, found[poison][0].GetOutcome())
	require.EqualValues(t, 2, found[poison][0].GetTotals().GetFailed())
	require.Equal(t, events.Outcome_OUTCOME_SUCCEEDED, found[events.JobID("test", "2")][0].GetOutcome())
	stop()
	start(t, opts, cfg, partitions, changelog)
	produce(t, opts, jobEvents(4)...)
	require.Len(t, finals(t, opts, 3)[poison], 1)
	all := letters(t, opts, 2)
	require.Len(t, all, 2)
	require.Equal(t, all[0].GetOrigin().GetOffset()+1, all[1].GetOrigin().GetOffset())
	require.NotEqual(t, all[0].ID, all[1].ID)
	for _, l := range all {
		require.Equal(t, events.CodeUndecodable, l.GetCode())
		require.Equal(t, poison, l.GetJobId())
	}
}

// What has no outcome at its deadline fails, also where nothing is read any more that
// would bring the job to the saga's mind.
func TestDeadline(t *testing.T) {
	const partitions, changelog = 2, 1
	opts := broker(t, partitions, changelog)
	cfg := config(t)
	cfg.TickInterval = 100 * time.Millisecond
	stop := start(t, opts, cfg, partitions, changelog)
	early := jobEvents(1)
	for i := range early {
		early[i].Time = began.Add(-time.Hour)
	}
	produce(t, opts, early[:3]...) // webp has completed, avif has begun
	produce(t, opts, jobEvents(2)[:3]...)
	for i := 4; i < 24; i++ {
		produce(t, opts, jobEvents(i)...) // on both partitions
	}
	finals(t, opts, 20)
	stop()
	cfg.JobDeadline = 30 * time.Minute
	start(t, opts, cfg, partitions, changelog)
	found := finals(t, opts, 21)
	late := found[events.JobID("test", "1")]
	require.Len(t, late, 1)
	require.Equal(t, events.Outcome_OUTCOME_PARTIAL, late[0].GetOutcome())
	require.Empty(t, found[events.JobID("test", "2")], "it has time left")
	all := letters(t, opts, 1)
	require.Equal(t, "avif", all[0].GetOperation())
	require.Equal(t, events.CodeDeadline, all[0].GetCode())
	require.Nil(t, all[0].GetOrigin())
}

// A job that the saga has forgotten is retried as if it had not: the retry tells it.
func TestRetryOfAForgottenJob(t *testing.T) {
	const partitions, changelog = 1, 1
	opts := broker(t, partitions, changelog)
	cfg := config(t)
	cfg.Remember = time.Minute
	start(t, opts, cfg, partitions, changelog)
	old := jobEvents(3) // avif fails
	produce(t, opts, old...)
	finals(t, opts, 1)
	later := jobEvents(4)
	for i := range later {
		later[i].Time = began.Add(time.Hour)
	}
	produce(t, opts, later...) // now job 3 is forgotten
	finals(t, opts, 2)

	var state *events.Job
	for _, e := range old {
		state = events.Fold(state, e)
	}
	end, err := commands.Finalize{Cause: old[len(old)-1], At: began}.Decide(state)
	require.NoError(t, err)
	state = events.Fold(state, end[0])
	retry, err := commands.Retry{MaxRevisions: 2, At: began.Add(time.Hour)}.Decide(state)
	require.NoError(t, err)
	id := events.JobID("test", "3")
	produce(t, opts, retry[0], events.New(id, began.Add(time.Hour), "test", "req",
		&events.OperationCompleted{Revision: 2, Operation: "avif", Attempt: 1, Artifact: &events.Artifact{Bytes: 10}}))
	produce(t, opts, jobEvents(5)...)
	both := finals(t, opts, 3)[id]
	require.Len(t, both, 2)
	require.Equal(t, int32(2), both[1].GetRevision())
	require.Equal(t, events.Outcome_OUTCOME_SUCCEEDED, both[1].GetOutcome())
	require.EqualValues(t, 13, both[1].GetTotals().GetArtifactBytes(), "with what completed before")
}

// A saga with no offsets and no changelog, on a log that others have worked on, answers
// nothing that was answered: not while it reads what leads to an end that stands behind,
// not by a deadline that is long past, and not for a record that is a dead letter already.
// What nobody has answered it does.
func TestBeginsAnewOnAnOldLog(t *testing.T) {
	const partitions, changelog, jobs = 2, 1, 3000
	opts := broker(t, partitions, changelog)
	cfg := config(t)
	cfg.TickInterval, cfg.BatchRecords = 10*time.Millisecond, 100
	old := began.Add(-cfg.JobDeadline - time.Hour)
	var all []events.Event
	for i := range jobs {
		var state *events.Job
		life := jobEvents(i)
		for j := range life {
			life[j].Time = old
			state = events.Fold(state, life[j])
		}
		if i >= 10 {
			end, err := commands.Finalize{Cause: life[len(life)-1], At: old}.Decide(state)
			require.NoError(t, err)
			life = append(life, end...)
		}
		all = append(all, life...)
	}
	produce(t, opts, all...)
	poison := events.JobID("test", "poison")
	late := events.JobID("test", "late")
	produce(t, opts, events.New(poison, began, "test", "req", jobEvents(0)[0].Message), events.New(late, old, "test", "req", jobEvents(0)[0].Message))
	client, err := kgo.NewClient(opts...)
	require.NoError(t, err)
	defer client.Close()
	r := &kgo.Record{Topic: events.Topic, Key: []byte(poison), Value: []byte("?")}
	require.NoError(t, client.ProduceSync(t.Context(), r).FirstErr())
	told := events.NewDeadLetter(began, "pixtools/saga", "", &events.DeadLettered{Group: events.SagaGroup, JobId: poison,
		Origin: &events.Origin{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}, Code: events.CodeUndecodable})
	letter, err := told.Record()
	require.NoError(t, err)
	require.NoError(t, client.ProduceSync(t.Context(), letter).FirstErr())
	for _, op := range []string{"webp", "avif"} {
		produce(t, opts, events.New(poison, began, "pixtools/saga", "req", &events.OperationFailed{Revision: 1, Operation: op, Code: events.CodeUndecodable}))
	}
	start(t, opts, cfg, partitions, changelog)
	finals(t, opts, jobs+2) // the ten that were not ended, the late one, the poisoned one among them
	produce(t, opts, jobEvents(jobs)...)
	produce(t, opts, jobEvents(jobs+1)...)
	produce(t, opts, jobEvents(jobs+2)...)
	found := finals(t, opts, jobs+5)
	for i := range jobs {
		require.Len(t, found[events.JobID("test", fmt.Sprint(i))], 1, "job %d", i)
	}
	require.Len(t, found[poison], 1)
	require.Equal(t, events.Outcome_OUTCOME_FAILED, found[late][0].GetOutcome())
	given := letters(t, opts, 3) // the one that was told, and those of the late job's operations
	require.Len(t, given, 3)
	require.Equal(t, told.LetterID, given[0].ID)
}
