package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/kafka"
)

// ReplayConfig bounds a replay.
type ReplayConfig struct {
	// Workers is how many fold and write side by side, each some of the partitions; 0: one a core.
	Workers int `env:"REPLAY_WORKERS" envDefault:"0" range:"0 to 256" unit:"workers"`
	// HeldJobs is how many folded jobs all workers together keep in memory.
	// Beyond it: written, and read again if they come back.
	HeldJobs int `env:"REPLAY_HELD_JOBS" envDefault:"20000" range:"1 to 10000000" unit:"jobs"`
	// FilterBytes is the memory in which all workers together remember, roughly, which jobs are in the
	// table.
	// Beyond it: with many more jobs than bytes, jobs are looked for in vain: slower.
	FilterBytes int `env:"REPLAY_FILTER_BYTES" envDefault:"33554432" range:"1 KiB to 1 GiB" unit:"bytes"`
	// Schemas is how many read models there may be beside the live one, but for those that `verify`,
	// `usage --audit` and `replay --diff` make and remove again.
	// Beyond it: the next rebuild is refused; `pixtools replay --drop` one.
	Schemas int `env:"REPLAY_SCHEMAS" envDefault:"4" range:"1 to 100" unit:"read models"`
	// SwapTimeout is how long a swap may hold the live projection up. Queries that wait for the
	// projection wait that long.
	// Beyond it: it lets go, and the swap is tried again, 20 times.
	SwapTimeout time.Duration `env:"REPLAY_SWAP_TIMEOUT" envDefault:"1s" range:"10ms to 1m"`
}

// Validate names every value out of range.
func (c ReplayConfig) Validate() error {
	var faults []error
	for _, n := range []struct {
		name            string
		value, from, to int
		unit            string
	}{
		{"REPLAY_WORKERS", c.Workers, 0, 256, "workers"},
		{"REPLAY_HELD_JOBS", c.HeldJobs, 1, 10_000_000, "jobs"},
		{"REPLAY_FILTER_BYTES", c.FilterBytes, 1 << 10, 1 << 30, "bytes"},
		{"REPLAY_SCHEMAS", c.Schemas, 1, 100, "read models"},
	} {
		if n.value < n.from || n.value > n.to {
			faults = append(faults, fmt.Errorf("%s is %d: it must be from %d to %d %s", n.name, n.value, n.from, n.to, n.unit))
		}
	}
	if c.SwapTimeout < 10*time.Millisecond || c.SwapTimeout > time.Minute {
		faults = append(faults, fmt.Errorf("REPLAY_SWAP_TIMEOUT is %s: it must be from 10ms to 1m", c.SwapTimeout))
	}
	return errors.Join(faults...)
}

func (c ReplayConfig) workers() int {
	if c.Workers == 0 {
		return runtime.GOMAXPROCS(0)
	}
	return c.Workers
}

// Replayer makes read models of the log beside the live one, and swaps them. It reads the
// log without a group and has nothing that writes to it: what it does can cause no event.
type Replayer struct {
	cfg   ReplayConfig
	read  Config
	logID [16]byte
	log   *slog.Logger
	opts  []kgo.Opt
	// admin sees no schema of its own: what it names, it names in full.
	admin *pgxpool.Pool
	// kafka answers what the log's partitions and ends are.
	kafka *kadm.Client
	// backend is the database's process that holds the lock of Begin.
	backend uint32
}

// execer is a pool, a connection or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// NewReplayer makes one for the log whose topic id is logID; opts must name the brokers.
func NewReplayer(cfg ReplayConfig, read Config, logID [16]byte, log *slog.Logger, opts ...kgo.Opt) (*Replayer, error) {
	admin, err := Open(read, "pg_catalog")
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		admin.Close()
		return nil, err
	}
	return &Replayer{cfg: cfg, read: read, logID: logID, log: log, opts: opts, admin: admin, kafka: kadm.NewClient(client)}, nil
}

// Close gives the connections back.
func (r *Replayer) Close() {
	r.kafka.Close()
	r.admin.Close()
}

// Progress is how far a replay is.
type Progress struct {
	// Phase is a word for people: what is being done.
	Phase string
	// Done and Total count the log's records: those of this phase.
	Done, Total int64
}

func (r *Replayer) starts(ctx context.Context) (map[int32]int64, error) {
	return kafka.Starts(ctx, r.kafka, events.Topic)
}

func (r *Replayer) ends(ctx context.Context) (map[int32]int64, error) {
	return kafka.CommittedEnds(ctx, r.kafka, events.Topic)
}

// Fetching is bounded: what is under way and what the client holds ready is some of these.
const (
	replayFetchBytes          = 1 << 20
	replayFetchPartitionBytes = 256 << 10
)

// consume makes a client that reads partitions from where it is told.
func (r *Replayer) consume(from map[int32]int64) (*kgo.Client, error) {
	at := map[int32]kgo.Offset{}
	for partition, offset := range from {
		at[partition] = kgo.NewOffset().At(offset)
	}
	return kgo.NewClient(append(slices.Clone(r.opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{events.Topic: at}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // a log that ends before that is another log
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // they are offsets, too: without them the end is never reached
		kgo.FetchMaxBytes(replayFetchBytes),
		kgo.FetchMaxPartitionBytes(replayFetchPartitionBytes),
		kgo.FetchMaxWait(100*time.Millisecond),
	)...)
}

// open makes a pool for a read model beside the live one.
func (r *Replayer) open(schema string, options map[string]string) (*pgxpool.Pool, error) {
	pc, err := r.read.poolConfig()
	if err != nil {
		return nil, err
	}
	pc.MaxConns = int32(r.cfg.workers() + 2)
	pc.ConnConfig.ConnectTimeout = r.read.ConnectTimeout
	pc.ConnConfig.RuntimeParams["search_path"] = schema
	pc.ConnConfig.RuntimeParams["application_name"] = "pixtools replay"
	for name, value := range options {
		pc.ConnConfig.RuntimeParams[name] = value
	}
	return pgxpool.NewWithConfig(context.Background(), pc)
}

// inOne runs statements, all or none.
func inOne(ctx context.Context, pool *pgxpool.Pool, statements ...string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		for _, statement := range statements {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return nil
	})
}
