package projections

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Previous is the schema of the read model that the live one took the place of.
const Previous = Schema + "_previous"

// States of a schema beside the live one.
const (
	stateLive = "live"
	// StateBuilding: a rebuild, or a comparison that keeps nothing, is at work in it, or was cut off.
	StateBuilding = "building"
	// StateReady: it is whole, can be compared and can be promoted.
	StateReady = "ready"
	// StatePast: it shows a past state, and is never promoted.
	StatePast = "past"
	// StateReplaced: it was live; a rollback makes it so again.
	StateReplaced = "replaced"
	// StateDiscarded: it was live before that; the next replay drops it if its own did not.
	StateDiscarded = "discarded"
)

// SchemaInfo is a schema with a read model in it. What follows its size is a comment on
// the schema in Postgres.
type SchemaInfo struct {
	Name  string `json:"-"`
	Bytes int64  `json:"-"`
	State string `json:"state"`
	// Until is what a past state was asked for by.
	Until string `json:"until,omitempty"`
	// Made is when it was begun, Since when it has its state.
	Made  time.Time `json:"made"`
	Since time.Time `json:"since"`
	// Backend is the database's process that holds the lock of Begin for the replay that works on it, or
	// did so last; Progress is how far that is, if it has said so.
	Backend  uint32 `json:"backend,omitempty"`
	Progress *Noted `json:"progress,omitempty"`
	// AtWork: that process still holds the lock. It goes with the replay, however that ends.
	AtWork bool `json:"-"`
}

// CutOff says that the read model was being built by a replay that is not there any more. The next
// replay removes it.
func (s SchemaInfo) CutOff() bool { return s.State == StateBuilding && !s.AtWork }

// Errors of schemas.
var (
	// ErrNoSchema: there is no such schema.
	ErrNoSchema = errors.New("there is no such read model")
	// ErrSchemas: there are as many as may be.
	ErrSchemas = errors.New("there are too many read models beside the live one")
	// ErrState: what was asked for cannot be done with that schema.
	ErrState = errors.New("this read model is not for that")
	// ErrBusy: another replay is at work.
	ErrBusy = errors.New("another replay is at work on this database")
)

func quoted(schema string) string { return pgx.Identifier{schema}.Sanitize() }

// lockName is hashed to the lock of Begin.
const lockName = "pixtools replay"

// Schemas lists the live read model, if it is there, and all beside it, by name.
func (r *Replayer) Schemas(ctx context.Context) ([]SchemaInfo, error) { return schemas(ctx, r.admin) }

func schemas(ctx context.Context, in querier) ([]SchemaInfo, error) {
	rows, err := in.Query(ctx, `SELECT n.nspname, coalesce(obj_description(n.oid, 'pg_namespace'), ''),
			(SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind = 'r'),
			(SELECT coalesce(array_agg(l.pid::bigint), '{}') FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
				AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
				AND (l.classid::bigint << 32) | l.objid::bigint = hashtext($2)::bigint)
		FROM pg_namespace n WHERE n.nspname = $1 OR starts_with(n.nspname, $1 || '_') ORDER BY n.nspname COLLATE "C"`, Schema, lockName)
	if err != nil {
		return nil, fmt.Errorf("list the read models: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (SchemaInfo, error) {
		var s SchemaInfo
		var name, comment string
		var bytes int64
		var atWork []uint32
		if err := row.Scan(&name, &comment, &bytes, &atWork); err != nil {
			return s, err
		}
		if comment != "" && json.Unmarshal([]byte(comment), &s) != nil {
			s = SchemaInfo{} // somebody else's words
		}
		s.Name, s.Bytes, s.AtWork = name, bytes, slices.Contains(atWork, s.Backend)
		return s, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the read models: %w", err)
	}
	return all, nil
}

// Jobs counts the jobs of the live read model; where there is none, they are 0.
func Jobs(ctx context.Context, pool *pgxpool.Pool) (n int64, err error) {
	var there bool
	if err = pool.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", Schema+".jobs").Scan(&there); err == nil && there {
		err = pool.QueryRow(ctx, "SELECT count(*) FROM "+quoted(Schema)+".jobs").Scan(&n)
	}
	if err != nil {
		return 0, fmt.Errorf("count the jobs of the read model: %w", err)
	}
	return n, nil
}

func find(all []SchemaInfo, name string) (SchemaInfo, error) {
	i := slices.IndexFunc(all, func(s SchemaInfo) bool { return s.Name == name })
	if i < 0 {
		return SchemaInfo{}, fmt.Errorf("%w: %s", ErrNoSchema, name)
	}
	return all[i], nil
}

// comment writes what is known of a schema.
func comment(ctx context.Context, in execer, s SchemaInfo) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = in.Exec(ctx, "COMMENT ON SCHEMA "+quoted(s.Name)+" IS '"+strings.ReplaceAll(string(raw), "'", "''")+"'")
	return err
}

// Drop removes a read model beside the live one. The caller holds the lock of Begin.
func (r *Replayer) Drop(ctx context.Context, name string) error {
	if name == Schema {
		return fmt.Errorf("%w: %s is the live one", ErrState, name)
	}
	all, err := r.Schemas(ctx)
	if err != nil {
		return err
	}
	if _, err := find(all, name); err != nil {
		return err
	}
	return r.drop(ctx, name)
}

// dropWait is how long removing waits for those who still read there.
const dropWait = "5s"

func (r *Replayer) drop(ctx context.Context, name string) error {
	err := inOne(ctx, r.admin, "SET LOCAL lock_timeout = '"+dropWait+"'", "DROP SCHEMA IF EXISTS "+quoted(name)+" CASCADE")
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// clear removes what is of no more use. Where somebody still reads there, a later replay
// does.
func (r *Replayer) clear(ctx context.Context, states ...string) error {
	all, err := r.Schemas(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Name == Schema || !slices.Contains(states, s.State) {
			continue
		}
		r.log.Info("removing a read model that nobody needs", "schema", s.Name, "state", s.State)
		if err := r.drop(ctx, s.Name); err != nil {
			r.log.Warn("a read model that nobody needs could not be removed; the next replay tries again", "schema", s.Name, "error", err)
		}
	}
	return ctx.Err()
}

// Begin makes this the only replay on the database, until end is called or the process
// ends, and removes what others left that were cut off.
func (r *Replayer) Begin(ctx context.Context) (end func(), err error) {
	conn, err := r.admin.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	raw := conn.Hijack() // the lock is the connection's
	end = func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.read.QueryTimeout)
		defer cancel()
		// Not by closing alone: the server may take a while to see that, and whoever comes next
		// would be told that we are at work.
		_, _ = raw.Exec(ending, "SELECT pg_advisory_unlock_all()")
		_ = raw.Close(ending)
	}
	var ours bool
	if err := raw.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtext($1))", lockName).Scan(&ours); err != nil {
		end()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !ours {
		end()
		return nil, ErrBusy
	}
	r.backend = raw.PgConn().PID()
	if err := r.clear(ctx, StateBuilding, StateDiscarded); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// create makes an empty schema for a rebuild, with the tables of this version. One that stands aside
// is not kept and so not counted.
func (r *Replayer) create(ctx context.Context, until string, aside bool) (SchemaInfo, error) {
	all, err := r.Schemas(ctx)
	if err != nil {
		return SchemaInfo{}, err
	}
	beside := slices.DeleteFunc(all, func(s SchemaInfo) bool { return s.Name == Schema })
	if !aside && len(beside) >= r.cfg.Schemas {
		var names []string
		for _, s := range beside {
			names = append(names, s.Name)
		}
		return SchemaInfo{}, fmt.Errorf("%w: %s; REPLAY_SCHEMAS is %d; `pixtools replay --list` says what they are, `pixtools replay --drop NAME` removes one", ErrSchemas, strings.Join(names, ", "), r.cfg.Schemas)
	}
	number := 1
	for _, s := range beside {
		if n, err := strconv.Atoi(strings.TrimPrefix(s.Name, Schema+"_")); err == nil && n >= number {
			number = n + 1
		}
	}
	now := time.Now().UTC().Truncate(time.Second)
	made := SchemaInfo{Name: fmt.Sprintf("%s_%d", Schema, number), State: StateBuilding, Until: until, Made: now, Since: now, Backend: r.backend}
	// The comment in the same transaction: a schema without one would never be removed.
	err = pgx.BeginFunc(ctx, r.admin, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "CREATE SCHEMA "+quoted(made.Name)); err != nil {
			return err
		}
		return comment(ctx, tx, made)
	})
	if err != nil {
		return made, fmt.Errorf("create schema %s: %w", made.Name, err)
	}
	return made, nil
}
