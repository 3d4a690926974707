package handlers_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/egress"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/internal/testenv"
)

// hookWorld is a log, keys and a receiver.
type hookWorld struct {
	t     *testing.T
	opts  []kgo.Opt
	parts handlers.WebhookParts
	cfg   handlers.WebhooksConfig
	url   string
	down  atomic.Bool
	// answering, if it is set before the first request, is called before each answer.
	answering func()

	mu    sync.Mutex
	calls map[string]int // by webhook-id
}

const hookPartitions, hookChangelogs = 4, 2

func newHookWorld(t *testing.T) *hookWorld {
	w := &hookWorld{t: t, opts: broker(t, hookPartitions, 1), calls: map[string]int{}}
	w.makeChangelog()
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, secrets.Migrate(t.Context(), pool))
	receiver := httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if w.answering != nil {
			w.answering()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.calls[r.Header.Get("webhook-id")]++
		if w.down.Load() {
			answer.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(receiver.Close)
	w.url = receiver.URL
	require.NoError(t, env.ParseWithOptions(&w.cfg, env.Options{Environment: map[string]string{"WEBHOOK_MAX_ATTEMPTS": "100", "WEBHOOK_BACKOFF_MIN": "100ms",
		"WEBHOOK_BACKOFF_MAX": "1s", "WEBHOOK_COMMIT_INTERVAL": "50ms", "WEBHOOK_BREAKER_FAILURES": "1000"}}))
	require.NoError(t, w.cfg.Validate())
	guard, err := egress.NewGuard([]string{"127.0.0.1"})
	require.NoError(t, err)
	var outside egress.Config
	require.NoError(t, env.ParseWithOptions(&outside, env.Options{Environment: map[string]string{}}))
	w.parts = handlers.WebhookParts{Client: egress.NewClient(outside, guard, nil), Keys: secrets.New(secrets.Config{CheckInterval: time.Second, Hold: time.Hour}, pool, patience, slog.New(slog.DiscardHandler)), Secrets: secrets.NewWebhooks(pool, patience, time.Hour),
		Body: func(_ context.Context, job *events.Job, _ string) ([]byte, error) { return []byte(job.GetId()), nil }}
	return w
}

func (w *hookWorld) makeChangelog() {
	client := w.client()
	require.NoError(w.t, kafka.EnsureTopic(w.t.Context(), client, kafka.Topic{Name: events.WebhooksTopic, Partitions: hookChangelogs, Replication: 1,
		Must: map[string]string{"cleanup.policy": "compact"}}))
}

func (w *hookWorld) client() *kgo.Client {
	client, err := kgo.NewClient(w.opts...)
	require.NoError(w.t, err)
	w.t.Cleanup(client.Close)
	return client
}

// start runs the role until the returned function stops it.
func (w *hookWorld) start() func() {
	client := w.client()
	hooks, err := handlers.NewWebhooks(w.cfg, w.parts, "hooks-"+uuid.NewString(), hookPartitions, hookChangelogs,
		func(ctx context.Context, records ...*kgo.Record) error {
			return client.ProduceSync(ctx, records...).FirstErr()
		},
		slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), w.opts...)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = hooks.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-done
	}
	w.t.Cleanup(stop)
	return stop
}

// jobs end, and name the receiver; it gives the webhook-id of each.
func (w *hookWorld) jobs(name string, n int) (ids []string) {
	var all []events.Event
	for i := range n {
		id := events.JobID("test", fmt.Sprint(name, i))
		address, err := w.parts.Keys.Seal(w.t.Context(), "test", id, w.url)
		require.NoError(w.t, err)
		for _, m := range []proto.Message{
			&events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, WebhookUrl: address},
			&events.OperationFailed{Revision: 1, Operation: "webp", Attempt: 1},
			&events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_FAILED},
		} {
			all = append(all, events.New(id, time.Now(), "test", "req", m))
		}
		ids = append(ids, all[len(all)-1].ID)
	}
	produce(w.t, w.opts, all...)
	return ids
}

func (w *hookWorld) called() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.calls)
}

// states are the fold of the log.
func (w *hookWorld) states() map[string]*events.Job {
	states := map[string]*events.Job{}
	ends, err := kadm.NewClient(w.client()).ListCommittedOffsets(w.t.Context(), events.Topic)
	require.NoError(w.t, err)
	client, err := kgo.NewClient(append(w.opts[:len(w.opts):len(w.opts)], kgo.ConsumeTopics(events.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	require.NoError(w.t, err)
	defer client.Close()
	left := ends.KOffsets()[events.Topic]
	maps.DeleteFunc(left, func(_ int32, end kgo.Offset) bool { return end.EpochOffset().Offset == 0 })
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(w.t, ctx.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if end, reading := left[r.Partition]; reading && r.Offset+1 >= end.EpochOffset().Offset {
				delete(left, r.Partition)
			}
			if e, err := events.Decode(r); err == nil {
				states[e.JobID] = events.Fold(states[e.JobID], e)
			}
		})
	}
	return states
}

// eventually asks until it is so, or fails at the deadline.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, patience, 20*time.Millisecond, what)
}

// TestWebhooksHandOver: with a receiver that is down, all that is pending goes from process to
// process with its partitions, and arrives when the receiver is back. A process that begins
// anew on that log, without offsets and changelog, posts none of it again.
func TestWebhooksHandOver(t *testing.T) {
	w := newHookWorld(t)
	w.down.Store(true)
	stopFirst := w.start()
	ids := w.jobs("a", 20)
	all := func() bool {
		called := w.called()
		for _, id := range ids {
			if called[id] == 0 {
				return false
			}
		}
		return true
	}
	eventually(t, "an attempt at each", all)
	stopSecond := w.start()
	stopFirst()
	stopThird := w.start() // and they share
	ids = append(ids, w.jobs("b", 20)...)
	eventually(t, "an attempt at each", all)
	stopSecond()
	w.down.Store(false)
	delivered := func() bool {
		states := w.states()
		for _, job := range states {
			if !job.GetWebhook().GetDelivered() {
				return false
			}
		}
		return len(states) == len(ids)
	}
	eventually(t, "all is delivered", delivered)
	stopThird()

	before := w.called()
	require.Len(t, before, len(ids), "attempts at an outcome have one id")
	admin := kadm.NewClient(w.client())
	eventually(t, "the group is empty", func() bool {
		_, err := admin.DeleteGroup(t.Context(), events.WebhooksGroup)
		return err == nil
	})
	_, err := admin.DeleteTopic(t.Context(), events.WebhooksTopic)
	require.NoError(t, err)
	eventually(t, "a new changelog", func() bool {
		_, err := admin.CreateTopic(t.Context(), hookChangelogs, 1, map[string]*string{}, events.WebhooksTopic)
		return err == nil
	})
	w.start()
	more := w.jobs("c", 20) // some in every partition
	eventually(t, "all is delivered", func() bool {
		called := w.called()
		for _, id := range more {
			if called[id] == 0 {
				return false
			}
		}
		return true
	})
	after := w.called()
	for _, id := range ids {
		require.Equal(t, before[id], after[id], "an old outcome was posted again")
	}
}

// TestWebhooksTellBeforeTheyLeave: a process that stops keeps its place in the group until what it
// is posting is in the log. Whoever got its partitions before that would post it once more.
func TestWebhooksTellBeforeTheyLeave(t *testing.T) {
	w := newHookWorld(t)
	admin := kadm.NewClient(w.client())
	posting, stopping := make(chan struct{}), make(chan struct{})
	begun := sync.OnceFunc(func() { close(posting) })
	var left atomic.Bool
	w.answering = func() {
		begun()
		<-stopping
		for range 20 { // long after it would have left
			groups, err := admin.DescribeGroups(context.Background(), events.WebhooksGroup)
			if err == nil && len(groups[events.WebhooksGroup].Members) == 0 {
				left.Store(true)
				return
			}
			<-time.After(50 * time.Millisecond) // between two looks
		}
	}
	stop := w.start()
	ids := w.jobs("a", 1)
	<-posting
	close(stopping)
	stop()
	require.False(t, left.Load(), "it has left while it was posting")
	require.Equal(t, map[string]int{ids[0]: 1}, w.called())
	for _, job := range w.states() {
		require.True(t, job.GetWebhook().GetDelivered(), "what was posted is in the log")
	}
	groups, err := admin.DescribeGroups(t.Context(), events.WebhooksGroup)
	require.NoError(t, err)
	require.Empty(t, groups[events.WebhooksGroup].Members, "and then it leaves at once")
}
