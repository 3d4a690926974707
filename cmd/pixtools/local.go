package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/eventlog"
	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/processors/engine"
	"github.com/pixtools/pixtools/projections"
)

// parts are what a command works on: configured ones, those of a PixTools that runs in the
// data directory, or embedded ones that run for as long as the command.
type parts struct {
	// running: only those of a PixTools that runs.
	running bool
	// fresh: those that may be made anew where there are none.
	fresh embedded.Needs
	// scratch is a directory to use where there is no embedded log.
	scratch string

	// missing are those that nobody configured.
	missing embedded.Needs
	cfg     config
	log     *slog.Logger
	brokers *eventlog.Brokers
	own     *embedded.Parts
}

// leastForSecrets is what a command gets to change secrets, in a database whose queries are
// bounded more tightly.
const leastForSecrets = 10 * time.Second

// withSecrets finds the database, has migrate make what it must have, and does something with it.
func withSecrets(ctx context.Context, migrate func(context.Context, *pgxpool.Pool) error, do func(context.Context, *parts, *pgxpool.Pool) error) error {
	var p parts
	if _, err := p.reach(ctx, embedded.Needs{Postgres: true}); err != nil {
		return err
	}
	defer p.close()
	pool, err := projections.Open(p.cfg.Read, projections.Schema)
	if err != nil {
		return err
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(ctx, max(p.cfg.Read.QueryTimeout, leastForSecrets))
	defer cancel()
	if err := migrate(ctx, pool); err != nil {
		return fmt.Errorf("%w; DATABASE_URL must name the database of the PixTools that is meant", err)
	}
	return do(ctx, &p, pool)
}

// open reaches the parts, and connects to the log.
func (p *parts) open(ctx context.Context, needs embedded.Needs) error {
	holder, err := p.reach(ctx, needs)
	if err != nil {
		return err
	}
	if p.brokers, err = eventlog.Connect(ctx, p.cfg.Kafka, p.log); err == nil {
		return nil
	}
	p.close()
	if needs.Kafka && holder != "" {
		return fmt.Errorf("%s holds %s, and runs no broker there that answers; if it was given KAFKA_BROKERS, set that here, too: %w", holder, p.cfg.Embedded.DataDir, err)
	}
	return err
}

// reach reads the configuration, and finds or starts the parts that nobody configured;
// holder is who runs them, if it is somebody else.
func (p *parts) reach(ctx context.Context, needs embedded.Needs) (holder string, err error) {
	if p.cfg, err = loadConfig(); err != nil {
		return "", err
	}
	p.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: p.cfg.level}))
	missing := p.cfg.needs()
	p.missing = missing
	if p.scratch != "" && missing.Kafka && !embedded.Exists(p.cfg.Embedded) {
		p.cfg.Embedded.DataDir = p.scratch
	}
	needs = embedded.Needs{Kafka: needs.Kafka && missing.Kafka, Postgres: needs.Postgres && missing.Postgres, S3: needs.S3 && missing.S3}
	if needs == (embedded.Needs{}) {
		return "", nil
	}
	there, holder, err := embedded.Running(p.cfg.Embedded, needs)
	if err == nil {
		p.cfg.use(there)
		return holder, nil
	}
	if !errors.Is(err, embedded.ErrNotRunning) {
		return "", err
	}
	dir := p.cfg.Embedded.DataDir
	_, noDir := os.Stat(dir)
	switch {
	case needs.Kafka && !p.fresh.Kafka && !embedded.Exists(p.cfg.Embedded):
		return "", fmt.Errorf("KAFKA_BROKERS is not set, and %s has no embedded log: set KAFKA_BROKERS, or PIXTOOLS_DATA_DIR, as for the PixTools whose log is meant", dir)
	case noDir != nil && (needs.Postgres && !p.fresh.Postgres || needs.S3 && !p.fresh.S3):
		return "", fmt.Errorf("DATABASE_URL or AWS_ENDPOINT_URL is not set, and there are no embedded parts in %s: set it, or PIXTOOLS_DATA_DIR, as for the PixTools that is meant", dir)
	case needs.Kafka && p.running:
		return "", fmt.Errorf("no PixTools runs in %s, so nothing new will come: start `pixtools serve`, or read what is there with `pixtools events cat`", dir)
	}
	if p.own, err = embedded.Start(ctx, p.cfg.Embedded, needs, p.log); err != nil {
		return "", err
	}
	p.cfg.use(p.own)
	return "", nil
}

// again makes what does operations once more, over children of this process's own. done
// ends them.
func (p *parts) again(ctx context.Context) (again processors.Again, done func(), err error) {
	store, err := blob.New(ctx, p.cfg.Blob)
	if err != nil {
		return again, nil, err
	}
	if err := checkModel(p.cfg.Denoise); err != nil {
		return again, nil, err
	}
	spool, err := openSpool(p.cfg.API.SpoolDir)
	if err != nil {
		return again, nil, fmt.Errorf("SPOOL_DIR: %w", err)
	}
	denoising := p.cfg.Engine
	denoising.Denoise = p.cfg.network()
	// One at a time: it gives way to those whose clients wait. Children start when needed.
	pools := map[bool]*engine.Pool{false: engine.New(p.cfg.Engine, 1, p.log), true: engine.New(denoising, 1, p.log)}
	again = processors.Again{AgainConfig: p.cfg.Again, Store: store, Spool: spool.dir,
		Pool: func(operation string) *engine.Pool { return pools[operation == processors.Denoise.Name] },
		Timeout: func(operation string) time.Duration {
			if operation == processors.Denoise.Name {
				return p.cfg.Denoise.Timeout
			}
			return p.cfg.Processor.Timeout
		},
		Retention: p.cfg.retention(), Now: time.Now}
	return again, func() {
		for _, pool := range pools {
			pool.Close()
		}
		spool.close()
	}, nil
}

func (p *parts) close() {
	if p.brokers != nil {
		p.brokers.Close()
	}
	if p.own == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.StopTimeout)
	defer cancel()
	if err := p.own.Stop(ctx); err != nil {
		p.log.Error("embedded parts did not stop cleanly", "error", err)
	}
}
