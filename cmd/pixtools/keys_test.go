package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/testenv"
)

// TestKeysThatNobodyKnows: a key is accepted only where somebody can tell that it was not
// used for something else. Redis, which comes up empty, is believed that it does not know a
// key only after a while; the read model is asked first.
func TestKeysThatNobodyKnows(t *testing.T) {
	redis, err := testenv.StartRedis()
	require.NoError(t, err)
	t.Cleanup(redis.Stop)
	postgres, err := testenv.StartPostgres()
	require.NoError(t, err)
	t.Cleanup(postgres.Stop)
	env := realEnv(t)
	env["REDIS_URL"], env["DATABASE_URL"] = "redis://"+redis.Addr, postgres.URL
	env["READ_WAIT_TIMEOUT"] = "300ms"
	image := file("a.png", "image/png", pngOf(t, picture(8, 8)))
	ask := func(p *program, operation string, key part) int {
		response, body, err := p.post(nil, image, field("operations", `["`+operation+`"]`), key)
		require.NoError(t, err)
		if response.StatusCode == http.StatusServiceUnavailable {
			require.NotEmpty(t, response.Header.Get("Retry-After"), "%s", body)
		}
		return response.StatusCode
	}
	newKey := func() part { return field("idempotency_key", uuid.NewString()) }

	t.Run("the read model is behind", func(t *testing.T) {
		p := run(t, env, "--roles=api") // and no projector
		key := newKey()
		require.Equal(t, http.StatusServiceUnavailable, ask(p, "webp", key), "a Redis this young may have forgotten the key")
		require.Equal(t, http.StatusServiceUnavailable, ask(p, "avif", key))
	})
	t.Run("Redis is old enough", func(t *testing.T) {
		env["IDEMPOTENCY_SETTLE"] = "100ms"
		defer delete(env, "IDEMPOTENCY_SETTLE")
		p := run(t, env, "--roles=api")
		key := newKey()
		require.Equal(t, http.StatusAccepted, ask(p, "webp", key))
		require.Equal(t, http.StatusAccepted, ask(p, "webp", key))
		require.Equal(t, http.StatusUnprocessableEntity, ask(p, "avif", key))
	})
	t.Run("the read model is away", func(t *testing.T) {
		delete(env, "READ_WAIT_TIMEOUT")
		p := run(t, env)
		old, fresh := newKey(), newKey()
		for _, key := range []part{old, fresh} {
			require.NoError(t, redis.Restart())
			p.ended(p.submit(image, field("operations", `["webp"]`), key))
		}
		require.NoError(t, postgres.Kill())
		require.Equal(t, http.StatusServiceUnavailable, ask(p, "avif", old), "Redis has forgotten it")
		require.Equal(t, http.StatusServiceUnavailable, ask(p, "avif", fresh))
		require.Equal(t, http.StatusAccepted, ask(p, "webp", fresh), "Redis knows that it was written")
		require.NoError(t, postgres.Restart())
		p.healthy()
		require.Equal(t, http.StatusUnprocessableEntity, ask(p, "avif", old))
		require.Equal(t, http.StatusAccepted, ask(p, "webp", old))
	})
}

// TestIdempotencySettle: its limit.
func TestIdempotencySettle(t *testing.T) {
	for value, fault := range map[string]bool{"99ms": true, "100ms": false, "101ms": false} {
		t.Setenv("IDEMPOTENCY_SETTLE", value)
		_, err := loadConfig()
		require.Equal(t, fault, err != nil && strings.Contains(err.Error(), "IDEMPOTENCY_SETTLE"), "%s: %v", value, err)
	}
}
