package testenv

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), serviceStartTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestPostgresGivesEachTestADatabase(t *testing.T) {
	ctx := testContext(t)
	for range 2 { // the second would meet the first one's table
		conn, err := pgx.Connect(ctx, Postgres(t))
		require.NoError(t, err)
		_, err = conn.Exec(ctx, "CREATE TABLE mine (id int)")
		require.NoError(t, err)
		require.NoError(t, conn.Close(ctx))
	}
}

func TestPostgresKeepsRowsOverAKill(t *testing.T) {
	ctx := testContext(t)
	server, err := StartPostgres()
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	conn, err := pgx.Connect(ctx, server.URL)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE kept AS SELECT 42 AS n")
	require.NoError(t, err)

	require.NoError(t, server.Kill())
	require.Error(t, server.Kill(), "it is down")
	_, err = pgx.Connect(ctx, server.URL)
	require.Error(t, err)

	require.NoError(t, server.Restart())
	conn, err = pgx.Connect(ctx, server.URL)
	require.NoError(t, err)
	var n int
	require.NoError(t, conn.QueryRow(ctx, "SELECT n FROM kept").Scan(&n))
	require.Equal(t, 42, n)
	require.NoError(t, conn.Close(ctx))
}

func TestRedisFreezesAndComesBackEmpty(t *testing.T) {
	ctx := testContext(t)
	server, err := StartRedis()
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	client := redis.NewClient(&redis.Options{Addr: server.Addr, MaxRetries: -1, ContextTimeoutEnabled: true})
	defer func() { _ = client.Close() }()
	require.NoError(t, client.Set(ctx, "k", "v", 0).Err())

	require.NoError(t, server.Freeze())
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	require.Error(t, client.Ping(short).Err())
	require.NoError(t, server.Thaw())
	require.Equal(t, "v", client.Get(ctx, "k").Val())

	require.NoError(t, server.Restart())
	require.ErrorIs(t, client.Get(ctx, "k").Err(), redis.Nil)
}

func TestS3ComesBackAfterAKill(t *testing.T) {
	server, err := StartS3()
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	require.NoError(t, server.ready(testContext(t)))
	require.NoError(t, server.Kill())
	require.Error(t, server.ready(testContext(t)))
	require.NoError(t, server.Restart())
}

func TestPostgresFreezesWithItsConnections(t *testing.T) {
	ctx := testContext(t)
	server, err := StartPostgres()
	require.NoError(t, err)
	t.Cleanup(server.Stop)
	conn, err := pgx.Connect(ctx, server.URL)
	require.NoError(t, err)
	require.NoError(t, server.Freeze())
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, conn.Ping(short), context.DeadlineExceeded)
	require.NoError(t, server.Thaw())
	conn, err = pgx.Connect(ctx, server.URL)
	require.NoError(t, err)
	require.NoError(t, conn.Close(ctx))
}
