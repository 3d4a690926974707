package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/caarlos0/env/v11"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pixtools/pixtools/internal/blob"
)

// seeded is chance that a failed test can be given again.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

type writer = func(context.Context) error

// killDuring has every writer write on and on, kills when so many writes were acknowledged, while others
// are under way, and returns when all writers have noticed.
func killDuring(t *testing.T, acknowledged int, kill func(), writers []writer) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var count atomic.Int64
	var killed atomic.Bool
	reached := make(chan struct{})
	var wg sync.WaitGroup
	for _, write := range writers {
		wg.Go(func() {
			for {
				err := write(ctx)
				if err != nil {
					if !killed.Load() {
						t.Errorf("a write before the kill: %v", err)
					}
					return
				}
				if count.Add(1) == int64(acknowledged) {
					close(reached)
				}
			}
		})
	}
	select {
	case <-reached:
	case <-ctx.Done():
		t.Error("too few writes before the deadline")
	}
	killed.Store(true)
	kill()
	cancel()
	wg.Wait()
	require.False(t, t.Failed())
}

type place struct {
	partition int32
	offset    int64
}

// promises is what a broker acknowledged.
type promises struct {
	mu      sync.Mutex
	records map[string]place
	aborted []string
	offset  int64 // of group promisedGroup in partition 0
}

const (
	promisedTopic = "events"
	promisedGroup = "readers"
)

func (p *promises) keep(records ...*kgo.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range records {
		p.records[string(r.Value)] = place{r.Partition, r.Offset}
	}
}

func newClient(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(brokers...), kgo.ProducerLinger(0), kgo.DisableClientMetrics())...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

// makeTopic makes one that keeps everything, as the event log does.
func makeTopic(t *testing.T, brokers []string, partitions int32, configs map[string]string) {
	t.Helper()
	values := map[string]*string{"retention.ms": kmsg.StringPtr("-1")}
	for k, v := range configs {
		values[k] = &v
	}
	_, err := kadm.NewClient(newClient(t, brokers)).CreateTopic(testContext(t), partitions, 1, values, promisedTopic)
	require.NoError(t, err)
}

// readCommitted is what a consumer of committed records finds in the topic.
func readCommitted(t *testing.T, brokers []string) []*kgo.Record {
	t.Helper()
	ctx := testContext(t)
	client := newClient(t, brokers, kgo.ConsumeTopics(promisedTopic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, promisedTopic)
	require.NoError(t, err)
	left := 0
	ends.Each(func(o kadm.ListedOffset) {
		require.NoError(t, o.Err)
		if o.Offset > 0 {
			left++
		}
	})
	var records []*kgo.Record
	for left > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				records = append(records, r)
			}
			if end, _ := ends.Lookup(promisedTopic, r.Partition); r.Offset+1 == end.Offset {
				left--
			}
		})
	}
	return records
}

func (p *promises) check(t *testing.T, brokers []string) {
	t.Helper()
	found := map[string]place{}
	for _, r := range readCommitted(t, brokers) {
		found[string(r.Value)] = place{r.Partition, r.Offset}
	}
	for value, at := range p.records {
		require.Equal(t, at, found[value], "acknowledged record %s", value)
	}
	for _, value := range p.aborted {
		require.NotContains(t, found, value, "a transaction that was aborted")
	}
	offsets, err := kadm.NewClient(newClient(t, brokers)).FetchOffsets(testContext(t), promisedGroup)
	require.NoError(t, err)
	at, _ := offsets.Lookup(promisedTopic, 0)
	require.GreaterOrEqual(t, at.At, p.offset, "acknowledged group offset")
	p.offset = at.At // perhaps one more than we heard of
}

func TestKafkaSurvivesKills(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	spec := helperSpec{Config: testConfig(t), Needs: Needs{Kafka: true}}
	h := startHelper(t, spec, nil)
	makeTopic(t, h.Brokers, 3, nil)
	p := &promises{records: map[string]place{}}
	for round := range 6 {
		plain := newClient(t, h.Brokers)
		// A new id in every process: see abortOpenTransactions.
		transactional := newClient(t, h.Brokers, kgo.TransactionalID(uuid.NewString()))
		var names atomic.Int64
		record := func(kind string) *kgo.Record {
			name := fmt.Sprintf("%s %d/%d", kind, round, names.Add(1))
			return &kgo.Record{Topic: promisedTopic, Key: []byte(name), Value: []byte(name)}
		}
		produce := func(ctx context.Context) error {
			r := record("plain")
			if err := plain.ProduceSync(ctx, r).FirstErr(); err != nil {
				return err
			}
			p.keep(r)
			return nil
		}
		transactions := 0
		transact := func(ctx context.Context) error {
			if err := transactional.BeginTransaction(); err != nil {
				return err
			}
			records := []*kgo.Record{record("transaction"), record("transaction"), record("transaction")}
			if err := transactional.ProduceSync(ctx, records...).FirstErr(); err != nil {
				return err
			}
			transactions++
			if transactions%3 == 0 {
				p.mu.Lock()
				defer p.mu.Unlock()
				for _, r := range records { // whatever becomes of the abort itself
					p.aborted = append(p.aborted, string(r.Value))
				}
				return transactional.EndTransaction(ctx, kgo.TryAbort)
			}
			if err := transactional.EndTransaction(ctx, kgo.TryCommit); err != nil {
				return err
			}
			p.keep(records...)
			return nil
		}
		commit := func(ctx context.Context) error {
			offsets := kadm.Offsets{}
			offsets.AddOffset(promisedTopic, 0, p.offset+1, -1)
			answer, err := kadm.NewClient(plain).CommitOffsets(ctx, promisedGroup, offsets)
			if err == nil {
				err = answer.Error()
			}
			if err == nil {
				p.offset++
			}
			return err
		}
		killDuring(t, 1+random.IntN(60), func() {
			h.kill(t)
			plain.Close()
			transactional.Close()
		}, []writer{produce, produce, produce, transact, commit})
		h = startHelper(t, spec, nil)
		p.check(t, h.Brokers)
	}
	// Stopped in order, the broker writes snapshots and starts from them.
	h.stop(t)
	h = startHelper(t, spec, nil)
	p.check(t, h.Brokers)
}

// TestPostgresSurvivesKills: what of Postgres outlives the program is up to chance, as the kernel's memory
// killer would have it.
func TestPostgresSurvivesKills(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	spec := helperSpec{Config: testConfig(t), Needs: Needs{Postgres: true}}
	h := startHelper(t, spec, nil)
	var mu sync.Mutex
	committed := map[int32]bool{}
	var ids atomic.Int32
	for round, also := range []func(){
		func() {}, // it is stopped in order by its keeper
		func() { killProcess(t, childOf(t, spec.Config, "postgres")) }, // it runs on
		func() { // its children are the last to go
			killProcess(t, childOf(t, spec.Config, "postgres"))
			killProcess(t, postmaster(t, spec.Config))
		},
	} {
		pool, err := pgxpool.New(testContext(t), h.DatabaseURL)
		require.NoError(t, err)
		if round == 0 {
			_, err = pool.Exec(testContext(t), "create table events (id int primary key)")
			require.NoError(t, err)
		}
		insert := func(ctx context.Context) error {
			id := ids.Add(1)
			if _, err := pool.Exec(ctx, "insert into events values ($1)", id); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			committed[id] = true
			return nil
		}
		killDuring(t, 1+random.IntN(200), func() { also(); h.kill(t) }, []writer{insert, insert, insert})
		pool.Close()

		h = startHelper(t, spec, nil)
		conn, err := pgx.Connect(testContext(t), h.DatabaseURL)
		require.NoError(t, err)
		rows, err := conn.Query(testContext(t), "select id from events")
		require.NoError(t, err)
		found, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		require.NoError(t, err)
		require.NoError(t, conn.Close(testContext(t)))
		require.Subset(t, setOf(found), committed)
	}
}

func setOf(ids []int32) map[int32]bool {
	set := map[int32]bool{}
	for _, id := range ids {
		set[id] = true
	}
	return set
}

func killProcess(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

func postmaster(t *testing.T, cfg Config) int {
	t.Helper()
	pid, err := postmasterPID(filepath.Join(cfg.DataDir, "postgres", "data", postmasterFile))
	require.NoError(t, err)
	return pid
}

func store(t *testing.T, p *Parts) *blob.Store {
	t.Helper()
	var cfg blob.Config
	require.NoError(t, env.ParseWithOptions(&cfg, env.Options{Environment: map[string]string{
		"AWS_ACCESS_KEY_ID": p.S3AccessKey, "AWS_SECRET_ACCESS_KEY": p.S3SecretKey, "AWS_REGION": p.S3Region,
		"AWS_S3_BUCKET": p.S3Bucket, "AWS_ENDPOINT_URL": p.S3Endpoint,
	}}))
	s, err := blob.New(t.Context(), cfg)
	require.NoError(t, err)
	return s
}

func TestS3SurvivesKills(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	spec := helperSpec{Config: testConfig(t), Needs: Needs{S3: true}}
	h := startHelper(t, spec, nil)
	var mu sync.Mutex
	bodies, stored := map[string][]byte{}, map[string]bool{}
	for round := range 4 {
		s := store(t, h.Parts)
		put := func(ctx context.Context) error {
			mu.Lock()
			body := make([]byte, random.IntN(400_000))
			for i := range body {
				body[i] = byte(random.Uint32())
			}
			key := fmt.Sprintf("raw/%d", len(bodies))
			bodies[key] = body
			mu.Unlock()
			if err := s.Put(ctx, key, bytes.NewReader(body), int64(len(body)), sha256.Sum256(body), "image/png"); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			stored[key] = true
			return nil
		}
		mu.Lock()
		after := 1 + random.IntN(25)
		mu.Unlock()
		killDuring(t, after, func() {
			if round%2 == 0 { // else it ends by itself, in order
				killProcess(t, childOf(t, spec.Config, "s3"))
			}
			h.kill(t)
		}, []writer{put, put, put})

		h = startHelper(t, spec, nil)
		s = store(t, h.Parts)
		found := map[string]bool{}
		require.NoError(t, s.List(testContext(t), "raw/", func(o blob.Object) error {
			found[o.Key] = true
			return nil
		}))
		require.Subset(t, found, stored)
		for key := range found { // one that was not acknowledged is whole, too, or absent
			var got bytes.Buffer
			_, err := s.Download(testContext(t), key, &got, sha256.Sum256(bodies[key]))
			require.NoError(t, err, key)
			require.True(t, bytes.Equal(bodies[key], got.Bytes()), key)
		}
	}
}

// TestRedisStartsEmpty: nothing in it may be the only copy, so nobody may come to rely on what is there.
func TestRedisStartsEmpty(t *testing.T) {
	t.Parallel()
	spec := helperSpec{Config: testConfig(t), Needs: Needs{Redis: true}}
	h := startHelper(t, spec, nil)
	opts, err := redis.ParseURL(h.RedisURL)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	require.NoError(t, client.Set(testContext(t), "key", "value", 0).Err())
	for _, end := range []func(*helper, *testing.T){(*helper).kill, (*helper).stop} {
		require.NotEmpty(t, client.Get(testContext(t), "key").Val())
		end(h, t)
		h = startHelper(t, spec, nil)
		require.Zero(t, client.DBSize(testContext(t)).Val())
		require.NoError(t, client.Set(testContext(t), "key", "value", 0).Err())
	}
}
