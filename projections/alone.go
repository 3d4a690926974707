package projections

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Alone runs work in one of all processes that call it with this name, until ctx is done. The
// lock is a connection's: when that is lost, the work is ended, and another process, or this
// one, begins it anew. Between the loss and its notice two may be at work.
func Alone(ctx context.Context, pool *pgxpool.Pool, name string, retry time.Duration, log *slog.Logger, work func(context.Context) error) error {
	for {
		if err := alone(ctx, pool, name, work); err != nil && ctx.Err() == nil {
			log.Warn("cannot hold the lock, trying again", "lock", name, "error", err, "after", retry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

func alone(ctx context.Context, pool *pgxpool.Pool, name string, work func(context.Context) error) error {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	raw := conn.Hijack() // the lock is the connection's
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = raw.Close(ending)
	}()
	var ours bool
	if err := raw.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtext($1))", name).Scan(&ours); err != nil || !ours {
		return err
	}
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		_, err := raw.WaitForNotification(working) // none comes: it ends with the connection
		stop(err)
	}()
	err = work(working)
	stop(nil)
	<-lost
	return err
}
