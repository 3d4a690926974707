package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Swapped tells of a swap.
type Swapped struct {
	// Live is what the read model was called that is live now; the one before it is called
	// Previous, if there was one.
	Live     string
	Replaced bool
	// Held is how long the live projection was held up, Tries how often that was tried.
	Held  time.Duration
	Tries int
}

// Promote makes a read model that is ready the live one.
func (r *Replayer) Promote(ctx context.Context, name string, tell func(Progress)) (Swapped, error) {
	return r.swap(ctx, name, StateReady, tell)
}

// Rollback makes the read model live again that the live one took the place of. What
// came since is applied to it first.
func (r *Replayer) Rollback(ctx context.Context, tell func(Progress)) (Swapped, error) {
	return r.swap(ctx, Previous, StateReplaced, tell)
}

// mostTries is how often the projection is held up for one thing before it is given up.
const mostTries = 20

func (r *Replayer) swap(ctx context.Context, name, state string, tell func(Progress)) (Swapped, error) {
	all, err := r.Schemas(ctx)
	if err != nil {
		return Swapped{}, err
	}
	info, err := find(all, name)
	if err != nil {
		return Swapped{}, err
	}
	if info.State != state {
		return Swapped{}, fmt.Errorf("%w: %s is %q, not %q", ErrState, name, info.State, state)
	}
	done := Swapped{Live: name}
	tell = r.noted(ctx, info, tell)
	err = r.hurrying(ctx, func() error {
		done.Tries++
		return r.trySwap(ctx, info, &done, tell)
	})
	if err != nil {
		return done, err
	}
	return done, r.clear(ctx, StateDiscarded)
}

// hurrying tries again what ran out of its time.
func (r *Replayer) hurrying(ctx context.Context, try func() error) error {
	for tries := 1; ; tries++ {
		err := try()
		if err == nil || tries == mostTries || ctx.Err() != nil || !errors.Is(err, errHurry) {
			return err
		}
		r.log.Warn("the live projection would have been held up for too long; trying again", "try", tries, "error", err)
	}
}

// errHurry says that what holds the projection up was not done in its time. It holds
// nothing then, and may be tried again.
var errHurry = errors.New("not done within REPLAY_SWAP_TIMEOUT")

func (r *Replayer) trySwap(ctx context.Context, info SchemaInfo, done *Swapped, tell func(Progress)) error {
	f, err := r.follow(ctx, info.Name)
	if err != nil {
		return err
	}
	defer f.close()
	// Most of the way without a lock.
	targets, err := r.goal(ctx, r.admin)
	if err != nil {
		return err
	}
	if err := f.to(ctx, r, targets, tell); err != nil {
		return err
	}
	tell(Progress{Phase: "swapping"})
	return r.swapNow(ctx, f, info, done)
}

// hurried are Postgres' codes for having run out of time: lock_not_available,
// deadlock_detected, query_canceled, idle_in_transaction_session_timeout.
var hurried = []string{"55P03", "40P01", "57014", "25P03"}

// standing does something in a transaction that may hold the live projection up. The
// server ends it, too: should we be gone, and nobody tell it, it must let go by itself.
func (r *Replayer) standing(ctx context.Context, do func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.SwapTimeout)
	defer cancel()
	err := pgx.BeginFunc(ctx, r.admin, func(tx pgx.Tx) error {
		limit := fmt.Sprintf("%dms", r.cfg.SwapTimeout.Milliseconds())
		for _, setting := range []string{"lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"} {
			if _, err := tx.Exec(ctx, "SELECT set_config($1, $2, true)", setting, limit); err != nil {
				return err
			}
		}
		return do(ctx, tx)
	})
	var answer *pgconn.PgError
	if errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err) || errors.As(err, &answer) && slices.Contains(hurried, answer.Code) {
		return fmt.Errorf("%w: %w", errHurry, err)
	}
	return err
}

// goal is how far a read model must be to take the live one's place: as far as that is,
// and where there is none, to the log's end.
func (r *Replayer) goal(ctx context.Context, in rowQuerier) (map[int32]int64, error) {
	there, err := hasPositions(ctx, in, Schema)
	if err != nil {
		return nil, err
	}
	if !there {
		return r.ends(ctx)
	}
	return livePositions(ctx, in, r.logID)
}

// rowQuerier is a pool, a connection or a transaction.
type rowQuerier interface {
	querier
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func hasPositions(ctx context.Context, in rowQuerier, schema string) (there bool, err error) {
	err = in.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", quoted(schema)+".positions").Scan(&there)
	if err != nil {
		err = fmt.Errorf("look for %s: %w", schema, err)
	}
	return there, err
}

func livePositions(ctx context.Context, in querier, logID [16]byte) (map[int32]int64, error) {
	rows, err := in.Query(ctx, "SELECT partition, next_offset FROM "+Schema+".positions WHERE log_id = $1", logID[:])
	if err != nil {
		return nil, fmt.Errorf("read the live positions: %w", err)
	}
	next := map[int32]int64{}
	var partition int32
	var offset int64
	_, err = pgx.ForEachRow(rows, []any{&partition, &offset}, func() error {
		next[partition] = offset
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the live positions: %w", err)
	}
	return next, nil
}

// swapNow is the one transaction.
//
// It locks the live positions, which every transaction of a projector moves first. One
// that began before us ends before we have the lock; one that comes now waits. So the live
// read model stands still, at positions that we read, and ours is brought to the very
// same, unless it was further already. Whoever reads jobs meanwhile is not held up, and
// from either of the two reads the same: no reader sees the projection go back, whatever
// it has resolved the name to.
//
// At the commit the lock goes, and who waited for it resolves the name anew: Postgres
// looks for changed names after each wait for a lock. The projector then finds another
// table and settles there (projector.go).
func (r *Replayer) swapNow(ctx context.Context, f *follower, info SchemaInfo, done *Swapped) error {
	return r.standing(ctx, func(ctx context.Context, tx pgx.Tx) error {
		// Nobody makes the live schema while we look whether it is there (createSchema).
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('pixtools schema'))"); err != nil {
			return err
		}
		all, err := schemas(ctx, tx)
		if err != nil {
			return err
		}
		began := time.Now()
		locked, err := r.standStill(ctx, tx, f)
		if err != nil {
			return err
		}
		if err := rename(ctx, tx, all, info, done); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT pg_notify($1, $2)", channel, anewWord); err != nil {
			return err
		}
		if locked {
			done.Held = time.Since(began)
		}
		return nil
	})
}

// standStill locks the live positions, if there are any, and brings ours to the same.
func (r *Replayer) standStill(ctx context.Context, tx pgx.Tx, f *follower) (locked bool, err error) {
	if locked, err = hasPositions(ctx, tx, Schema); err != nil || !locked {
		return locked, err
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE "+Schema+".positions IN ACCESS EXCLUSIVE MODE"); err != nil {
		return locked, fmt.Errorf("hold the live projection up: %w", err)
	}
	targets, err := livePositions(ctx, tx, r.logID)
	if err != nil {
		return locked, err
	}
	return locked, f.to(ctx, r, targets, func(Progress) {})
}

// rename puts one read model in the live one's place, and that in Previous' place. What
// was there before has had its time.
func rename(ctx context.Context, tx pgx.Tx, all []SchemaInfo, info SchemaInfo, done *Swapped) error {
	const aside = Schema + "_aside"
	now := time.Now().UTC().Truncate(time.Second)
	to := func(s SchemaInfo, name, state string) error {
		if _, err := tx.Exec(ctx, "ALTER SCHEMA "+quoted(s.Name)+" RENAME TO "+quoted(name)); err != nil {
			return fmt.Errorf("rename %s to %s: %w", s.Name, name, err)
		}
		s.Name, s.State, s.Since, s.Backend, s.Progress = name, state, now, 0, nil
		return comment(ctx, tx, s)
	}
	live, err := find(all, Schema)
	done.Replaced = err == nil
	if previous, err := find(all, Previous); err == nil && done.Replaced && info.Name != Previous {
		if err := to(previous, fmt.Sprintf("%s_discarded_%d", Schema, now.Unix()), StateDiscarded); err != nil {
			return err
		}
	}
	if done.Replaced {
		if err := to(live, aside, StateReplaced); err != nil {
			return err
		}
	}
	if err := to(info, Schema, stateLive); err != nil {
		return err
	}
	if done.Replaced {
		live.Name = aside
		return to(live, Previous, StateReplaced)
	}
	return nil
}
