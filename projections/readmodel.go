// Package projections builds the read model of the log in Postgres and answers
// queries from it. The read model is disposable: everything in it comes from the
// log, and the offsets that it holds are changed in the same transaction as its
// rows, so that each event is applied once.
package projections

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/pixtools/pixtools/internal/telemetry"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema is the Postgres schema of the live read model. Statements name no schema:
// a rebuild runs the same ones in another, by its search path.
const Schema = "pixtools_read"

// Config reaches the database.
type Config struct {
	// URL is where PostgreSQL is, as pgx understands it: `sslmode`, `sslrootcert` and others are
	// parameters of it; `postgresql+asyncpg://` is accepted. Unset: it runs embedded.
	// Beyond it: the program ends where PostgreSQL refuses the user, the database or TLS; where it
	// does not answer, it is waited for.
	URL string `env:"DATABASE_URL" secret:"url" example:"postgres://user:password@db/pixtools?sslmode=verify-full&sslrootcert=/etc/ssl/private-ca.pem"`
	// MaxConns bounds the connections of this process.
	// Beyond it: queries wait, then 503.
	MaxConns int32 `env:"DATABASE_MAX_CONNS" envDefault:"16" range:"2 or more" unit:"connections"`
	// ConnectTimeout bounds opening one connection.
	// Beyond it: 503.
	ConnectTimeout time.Duration `env:"DATABASE_CONNECT_TIMEOUT" envDefault:"1s" range:"10ms to 1m"`
	// QueryTimeout bounds one query of the API, and one for a tenant's key.
	// Beyond it: 503.
	QueryTimeout time.Duration `env:"DATABASE_QUERY_TIMEOUT" envDefault:"1500ms" range:"10ms to 1m"`
	// ApplyTimeout bounds the projector's transaction.
	// Beyond it: the session begins anew.
	ApplyTimeout time.Duration `env:"PROJECTOR_APPLY_TIMEOUT" envDefault:"30s" range:"10ms to 1m"`
	// BatchRecords is how many records at most one transaction applies.
	// Beyond it: the rest comes next.
	BatchRecords int `env:"PROJECTOR_BATCH_RECORDS" envDefault:"2000" range:"1 to 1000000" unit:"records"`
	// CachedJobs is how many folded jobs the projector keeps in memory.
	// Beyond it: read from the table.
	CachedJobs int `env:"PROJECTOR_CACHED_JOBS" envDefault:"20000" range:"1 to 1000000" unit:"jobs"`
	// RetryAfter is the pause before the projector tries again after a fault.
	RetryAfter time.Duration `env:"PROJECTOR_RETRY_AFTER" envDefault:"500ms" range:"10ms to 1m"`
}

// Validate names every value out of range.
func (c Config) Validate() error {
	var faults []error
	if c.URL != "" {
		if _, err := c.poolConfig(); err != nil {
			faults = append(faults, err)
		}
	}
	if c.MaxConns < 2 {
		faults = append(faults, fmt.Errorf("DATABASE_MAX_CONNS is %d: it must be 2 or more connections", c.MaxConns))
	}
	for name, d := range map[string]time.Duration{"DATABASE_CONNECT_TIMEOUT": c.ConnectTimeout, "DATABASE_QUERY_TIMEOUT": c.QueryTimeout,
		"PROJECTOR_APPLY_TIMEOUT": c.ApplyTimeout, "PROJECTOR_RETRY_AFTER": c.RetryAfter} {
		if d < 10*time.Millisecond || d > time.Minute {
			faults = append(faults, fmt.Errorf("%s is %s: it must be from 10ms to 1m", name, d))
		}
	}
	for name, n := range map[string]int{"PROJECTOR_BATCH_RECORDS": c.BatchRecords, "PROJECTOR_CACHED_JOBS": c.CachedJobs} {
		if n < 1 || n > 1_000_000 {
			faults = append(faults, fmt.Errorf("%s is %d: it must be from 1 to 1000000", name, n))
		}
	}
	return errors.Join(faults...)
}

var sslParameter = regexp.MustCompile(`([?&])ssl=`)

func (c Config) poolConfig() (*pgxpool.Config, error) {
	// The Python service's configuration named its driver in the scheme, and that driver calls
	// sslmode ssl.
	address := c.URL
	if rest, python := strings.CutPrefix(address, "postgresql+asyncpg://"); python {
		address = sslParameter.ReplaceAllString("postgresql://"+rest, "${1}sslmode=")
	}
	pc, err := pgxpool.ParseConfig(address)
	if err != nil {
		// pgx quotes the address first, and where it cannot parse it, with the password.
		_, why, _ := strings.Cut(err.Error()[strings.LastIndexByte(err.Error(), '`')+1:], ": ")
		return nil, fmt.Errorf("DATABASE_URL cannot be used: %s; it is of the form postgres://user:password@host/database?sslmode=verify-full&sslrootcert=FILE (characters such as @ in the password are written %%40)", why)
	}
	return pc, nil
}

// Open makes the pool for a schema. It does not wait for the database.
func Open(cfg Config, schema string) (*pgxpool.Pool, error) {
	pc, err := cfg.poolConfig()
	if err != nil {
		return nil, err
	}
	pc.MaxConns = cfg.MaxConns
	pc.ConnConfig.ConnectTimeout = cfg.ConnectTimeout
	pc.ConnConfig.RuntimeParams["search_path"] = schema
	pc.ConnConfig.RuntimeParams["application_name"] = "pixtools"
	pc.ConnConfig.Tracer = telemetry.PostgresFaults{}
	return pgxpool.NewWithConfig(context.Background(), pc)
}

// ErrNewer says that a newer version's tables are no more such as this one can work on.
var ErrNewer = errors.New("the read model's tables are those of a newer version of pixtools, and this one cannot work on them")

// fits says whether this version may work on the tables that are there: on its own, and on those
// of a newer version to which only that was added which need not be known.
func fits(ctx context.Context, pool *pgxpool.Pool, ours []*goose.Source) error {
	var since int64
	if err := pool.QueryRow(ctx, "SELECT since FROM fits").Scan(&since); err != nil {
		return fmt.Errorf("ask which versions may work on the tables: %w", err)
	}
	if newest := ours[len(ours)-1].Version; since > newest {
		return fmt.Errorf("%w: they ask for migration %d, and this version knows up to %d; start a version that knows it, or make a read model of this version with `pixtools replay --promote`, while no process of the newer one runs", ErrNewer, since, newest)
	}
	return nil
}

// Migrate brings a schema's tables up to date; many processes may do so at once, also of several
// versions. Tables of a newer version stay as they are. ErrNewer: this version cannot work on them.
func Migrate(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	if err := createSchema(ctx, pool, schema); err != nil {
		return fmt.Errorf("create schema %s: %w", schema, err)
	}
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker))
	if err != nil {
		return err
	}
	applied, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrate schema %s: %w", schema, err)
	}
	if err := fits(ctx, pool, provider.ListSources()); err != nil {
		return fmt.Errorf("read model %s: %w", schema, err)
	}
	if schema != Schema || len(applied) == 0 {
		return nil
	}
	// A migration may have begun the read model anew: who remembers how far it was must look.
	_, err = pool.Exec(ctx, "SELECT pg_notify($1, $2)", channel, anewWord)
	return err
}

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// positionsIn reads how far a read model is, by partition, and which table says so.
func positionsIn(ctx context.Context, in querier, logID [16]byte) (table uint32, next map[int32]int64, err error) {
	rows, err := in.Query(ctx, `SELECT t.oid, p.partition, p.next_offset FROM (SELECT 'positions'::regclass::oid) t
		LEFT JOIN positions p ON p.log_id = $1`, logID[:])
	if err != nil {
		return 0, nil, fmt.Errorf("read the positions: %w", err)
	}
	next = map[int32]int64{}
	var partition *int32
	var offset *int64
	_, err = pgx.ForEachRow(rows, []any{&table, &partition, &offset}, func() error {
		if partition != nil {
			next[*partition] = *offset
		}
		return nil
	})
	if err != nil {
		return 0, nil, fmt.Errorf("read the positions: %w", err)
	}
	return table, next, nil
}

// createSchema holds a lock: two CREATE SCHEMA IF NOT EXISTS at once may both find
// nothing, and then one of them fails on the catalogue's unique index.
func createSchema(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('pixtools schema'))"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{schema}.Sanitize())
		return err
	})
}
