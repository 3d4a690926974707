package processors

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"image"
	pngfile "image/png"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
	"github.com/pixtools/pixtools/processors/engine"
)

const patience = time.Minute

func TestMain(m *testing.M) {
	engine.ChildMain()
	os.Exit(m.Run())
}

func fromEnvironment[T any](t *testing.T, variables map[string]string) (c T) {
	t.Helper()
	require.NoError(t, env.ParseWithOptions(&c, env.Options{Environment: variables}))
	return c
}

// world is a log and a store of a test's own.
type world struct {
	t       *testing.T
	cluster *testenv.KafkaCluster
	kafka   kafka.Config
	store   *blob.Store
	log     *kgo.Client
}

func newWorld(t *testing.T) *world {
	cluster, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(cluster.Stop)
	w := &world{t: t, cluster: cluster, kafka: kafka.DefaultConfig(cluster.Brokers()...)}
	s := testenv.S3(t)
	w.store, err = blob.New(t.Context(), fromEnvironment[blob.Config](t, map[string]string{"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.SecretKey,
		"AWS_REGION": s.Region, "AWS_ENDPOINT_URL": s.Endpoint, "AWS_S3_BUCKET": "test-" + strings.ToLower(rand.Text())}))
	require.NoError(t, err)
	require.NoError(t, w.store.EnsureBucket(t.Context()))
	w.log, err = kafka.NewProducerClient(w.kafka, slog.New(slog.DiscardHandler), kgo.ConsumeTopics(events.Topic, events.DeadLetterTopic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	t.Cleanup(w.log.Close)
	for topic, partitions := range map[string]int32{events.Topic: 2, events.DeadLetterTopic: 1} {
		require.NoError(t, kafka.EnsureTopic(t.Context(), w.log, kafka.Topic{Name: topic, Partitions: partitions, Replication: 1}))
	}
	return w
}

// request appends a job with one operation, and its source's blob.
func (w *world) request(name string, params map[string]any) string {
	var picture bytes.Buffer
	require.NoError(w.t, pngfile.Encode(&picture, image.NewGray(image.Rect(0, 0, 8, 8))))
	sum := sha256.Sum256(picture.Bytes())
	id := events.JobID("test", name)
	source := &events.Source{Key: "raw/" + id, Sha256: hex.EncodeToString(sum[:]), Bytes: int64(picture.Len()), Width: 8, Height: 8, Format: "png"}
	require.NoError(w.t, w.store.Put(w.t.Context(), source.GetKey(), bytes.NewReader(picture.Bytes()), source.GetBytes(), sum, "image/png"))
	parameters, err := structpb.NewStruct(params)
	require.NoError(w.t, err)
	w.append(events.New(id, time.Now(), "test", "req", &events.JobRequested{Source: source, Operations: []*events.Operation{{Name: "webp", Parameters: parameters}}}))
	return id
}

func (w *world) append(e events.Event) {
	r, err := e.Record()
	require.NoError(w.t, err)
	require.NoError(w.t, w.log.ProduceSync(w.t.Context(), r).FirstErr())
}

// work runs a worker of op.
func (w *world) work(op Operation) {
	log := slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	pool := engine.New(fromEnvironment[engine.Config](w.t, nil), 2, log)
	w.t.Cleanup(pool.Close)
	worker, err := NewWorker(fromEnvironment[WorkerConfig](w.t, nil), op, pool, w.store, kafka.NewPublisher(w.log, w.kafka.DeliveryTimeout), nil, w.t.TempDir(), "test", log)
	require.NoError(w.t, err)
	cfg := kafka.DefaultSubscriberConfig(events.OperationGroup + op.Name)
	cfg.Filter, cfg.CatchUp, cfg.RedeliveryMin, cfg.RedeliveryMax = worker.Notice, worker.CatchUp, time.Millisecond, 10*time.Millisecond
	subscriber, err := kafka.NewSubscriber(w.kafka, cfg, log)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = subscriber.Close() })
	messages, err := subscriber.Subscribe(context.WithoutCancel(w.t.Context()), events.Topic)
	require.NoError(w.t, err)
	go func() {
		for msg := range messages {
			go func() {
				if worker.Handle(msg) != nil {
					msg.Nack()
				} else {
					msg.Ack()
				}
			}()
		}
	}()
}

// outcomes reads on until so many operations have ended, and returns those, by job, and the
// dead letters that came meanwhile.
func (w *world) outcomes(want int) (map[string]events.Event, map[string]*events.DeadLetter) {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	ended, letters := map[string]events.Event{}, map[string]*events.DeadLetter{}
	for len(ended) < want {
		fetches := w.log.PollFetches(ctx)
		require.NoError(w.t, ctx.Err(), "%d of %d operations have ended", len(ended), want)
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Topic == events.DeadLetterTopic {
				e, err := events.DecodeLetter(r)
				require.NoError(w.t, err)
				letter := events.FoldLetter(nil, e)
				letters[letter.GetJobId()] = letter
				return
			}
			e, err := events.Decode(r)
			require.NoError(w.t, err)
			switch e.Message.(type) {
			case *events.OperationCompleted, *events.OperationFailed:
				require.NotContains(w.t, ended, e.JobID)
				ended[e.JobID] = e
			}
		})
	}
	return ended, letters
}

// A handler that panics costs its own job, after as many attempts as any other failure has;
// one that panics no more is done.
func TestPanicParksItsOwnKey(t *testing.T) {
	w := newWorld(t)
	var calls [101]atomic.Int32
	op := Operation{Name: "webp", Request: func(source, target string, params map[string]any) engine.Request {
		quality := number(params, "quality", 80)
		if n := calls[quality].Add(1); quality == 13 || quality == 14 && n < 3 {
			panic("unlucky picture")
		}
		return webp.Request(source, target, params)
	}}
	unlucky := w.request("unlucky", map[string]any{"quality": 13})
	recovers := w.request("recovers", map[string]any{"quality": 14})
	var others []string
	for _, name := range []string{"a", "b", "c", "d"} {
		others = append(others, w.request(name, nil))
	}
	w.work(op)
	ended, letters := w.outcomes(6)
	for _, id := range append(others, recovers) {
		require.IsType(t, &events.OperationCompleted{}, ended[id].Message)
	}
	failed, ok := ended[unlucky].Message.(*events.OperationFailed)
	require.True(t, ok)
	require.Equal(t, events.FailureKind_FAILURE_KIND_INTERNAL, failed.GetKind())
	require.Equal(t, events.CodePanic, failed.GetCode())
	require.NotContains(t, failed.GetMessage(), "unlucky", "what a panic says is for operators")
	require.EqualValues(t, 3, calls[13].Load())
	require.Len(t, letters, 1)
	letter := letters[unlucky]
	require.Contains(t, letter.GetStack(), "panic: unlucky picture")
	require.Contains(t, letter.GetStack(), "TestPanicParksItsOwnKey")
	require.Equal(t, "pixtools.op.webp", letter.GetGroup())

	// Asked for again, it has attempts of its own.
	calls[13].Store(0)
	w.append(events.New(unlucky, time.Now(), "test", "req", &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_FAILED}))
	w.append(events.New(unlucky, time.Now(), "test", "req", &events.OperationRetryRequested{Revision: 2, Operations: []string{"webp"}}))
	ended, _ = w.outcomes(1)
	require.EqualValues(t, 2, ended[unlucky].Message.(*events.OperationFailed).GetRevision(), "it panics still")
	require.EqualValues(t, 3, calls[13].Load())
}

// A retry tells its job: who began to read after the job's request can do the work.
func TestRetryOfAnUnknownJob(t *testing.T) {
	w := newWorld(t)
	id := w.request("known", nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var request *events.JobRequested
	for request == nil {
		fetches := w.log.PollFetches(ctx)
		require.NoError(t, ctx.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			e, err := events.Decode(r)
			require.NoError(t, err)
			request, _ = e.Message.(*events.JobRequested)
		})
	}
	other := events.JobID("test", "never requested here")
	for _, e := range []events.Event{
		events.New(other, time.Now(), "test", "req", &events.OperationRetryRequested{Revision: 2, Operations: []string{"webp"}, Request: request}),
		events.New(events.JobID("test", "avif only"), time.Now(), "test", "req", &events.OperationRetryRequested{Revision: 2, Operations: []string{"avif"}, Request: request}),
	} {
		w.append(e)
	}
	w.work(webp)
	ended, _ := w.outcomes(2)
	require.IsType(t, &events.OperationCompleted{}, ended[id].Message)
	require.EqualValues(t, 2, ended[other].Message.(*events.OperationCompleted).GetRevision())
}

// However long Kafka is away, that uses up no attempts: what it did not hear is none.
func TestKafkaThatIsAwayCostsNoAttempts(t *testing.T) {
	w := newWorld(t)
	w.kafka.DeliveryTimeout = 100 * time.Millisecond
	limits := fromEnvironment[WorkerConfig](t, nil)
	var tries atomic.Int32
	op := Operation{Name: "webp", Request: func(source, target string, params map[string]any) engine.Request {
		switch tries.Add(1) {
		case 1:
			_ = w.cluster.Freeze(0)
		case limits.MaxStarts + 3:
			_ = w.cluster.Thaw(0)
		}
		return webp.Request(source, target, params)
	}}
	id := w.request("patient", nil)
	w.work(op)
	ended, letters := w.outcomes(1)
	require.IsType(t, &events.OperationCompleted{}, ended[id].Message)
	require.Empty(t, letters)
	require.Greater(t, tries.Load(), limits.MaxStarts)
}
