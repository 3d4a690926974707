package embedded

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestRestartUnderClients: addresses and secrets stay, so clients go on and signed links stay good,
// whether the program was killed or stopped.
func TestRestartUnderClients(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	spec := helperSpec{Config: testConfig(t), Needs: everything}
	h := startHelper(t, spec, nil)
	first := h.Parts

	kafka := newClient(t, h.Brokers)
	makeTopic(t, h.Brokers, 1, nil)
	postgres, err := pgxpool.New(ctx, h.DatabaseURL)
	require.NoError(t, err)
	defer postgres.Close()
	opts, err := redis.ParseURL(h.RedisURL)
	require.NoError(t, err)
	cache := redis.NewClient(opts)
	defer func() { _ = cache.Close() }()
	objects := store(t, h.Parts)
	body := []byte("a picture")
	require.NoError(t, objects.Put(ctx, "results/1", bytes.NewReader(body), int64(len(body)), sha256.Sum256(body), "image/png"))
	link, _, err := objects.PresignGet(ctx, "results/1", "picture.png")
	require.NoError(t, err)

	work := func() {
		require.NoError(t, kafka.ProduceSync(ctx, &kgo.Record{Topic: promisedTopic, Value: []byte("x")}).FirstErr())
		// A pool learns that a connection is dead by using it.
		require.Eventually(t, func() bool { _, err := postgres.Exec(ctx, "select 1"); return err == nil }, deadline, pollInterval)
		require.NoError(t, cache.Set(ctx, "key", "value", 0).Err())
		resp, err := http.Get(link)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		got, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, body, got)
	}
	work()
	for _, end := range []func(*helper, *testing.T){(*helper).kill, (*helper).stop} {
		end(h, t)
		h = startHelper(t, spec, nil)
		require.Equal(t, first, h.Parts)
		work()
	}
	require.Len(t, readCommitted(t, h.Brokers), 3)
}

// TestRedisForgetsInTime: its clock is ours to move.
func TestRedisForgetsInTime(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	h := startHelper(t, helperSpec{Config: testConfig(t), Needs: Needs{Redis: true}}, nil)
	opts, err := redis.ParseURL(h.RedisURL)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	defer func() { _ = client.Close() }()
	require.NoError(t, client.Set(ctx, "short", "1", redisTick).Err())
	require.NoError(t, client.Set(ctx, "long", "1", 2*deadline).Err())
	require.Eventually(t, func() bool { return client.Exists(ctx, "short").Val() == 0 }, deadline, pollInterval)
	require.EqualValues(t, 1, client.Exists(ctx, "long").Val())
}
