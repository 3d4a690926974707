package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/pixtools/pixtools/internal/embedded"
)

// reach fills in where the parts are that a command needs and nobody configured: those of a
// PixTools that runs in the data directory, or, where none does, embedded ones of its own,
// which let go ends.
func reach(ctx context.Context, cfg *config, needs embedded.Needs, log *slog.Logger) (letGo func(), err error) {
	missing := cfg.needs()
	needs = embedded.Needs{Kafka: needs.Kafka && missing.Kafka, Postgres: needs.Postgres && missing.Postgres}
	if needs == (embedded.Needs{}) {
		return func() {}, nil
	}
	there, _, err := embedded.Running(cfg.Embedded, needs)
	if err == nil {
		cfg.use(there)
		return func() {}, nil
	}
	if !errors.Is(err, embedded.ErrNotRunning) {
		return nil, err
	}
	if needs.Kafka && !embedded.Exists(cfg.Embedded) {
		return nil, fmt.Errorf("KAFKA_BROKERS is not set, and %s has no embedded log: set KAFKA_BROKERS, or PIXTOOLS_DATA_DIR, as for the PixTools whose log is meant", cfg.Embedded.DataDir)
	}
	own, err := embedded.Start(ctx, cfg.Embedded, needs, log)
	if err != nil {
		return nil, err
	}
	cfg.use(own)
	return func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.StopTimeout)
		defer cancel()
		if err := own.Stop(stopping); err != nil {
			log.Error("embedded parts did not stop cleanly", "error", err)
		}
	}, nil
}
