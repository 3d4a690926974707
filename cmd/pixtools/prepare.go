package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/projections"
)

// prepareCommand does once, and with rights that the roles need not have, what each role
// would do at its start.
func prepareCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "prepare",
		Short: "Make what the roles work on, where it is not there, and check what is: topics, database, bucket",
		Long: "Makes the topics, the database's tables and the bucket with its rules, and leaves what is there. Topics\n" +
			"that are otherwise than configured are named, each with the command that changes them; the exit status\n" +
			"is 1 then. It may run at any time and any number of times, several at once, also beside the roles.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			return prepareParts(cmd.Context(), cfg, cmd.OutOrStdout(), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.level})))
		},
	}
}

// prepareParts tries every part, so that all that is wrong is told at once.
func prepareParts(ctx context.Context, cfg config, out io.Writer, log *slog.Logger) error {
	var unset []string
	needs := cfg.needs()
	for _, part := range []struct {
		name    string
		missing bool
	}{{"KAFKA_BROKERS", needs.Kafka}, {"DATABASE_URL", needs.Postgres}, {"AWS_ENDPOINT_URL", needs.S3}} {
		if part.missing {
			unset = append(unset, part.name)
		}
	}
	if len(unset) > 0 {
		return fmt.Errorf("set %s: what runs embedded, pixtools serve prepares itself", strings.Join(unset, ", "))
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.PrepareTimeout)
	defer cancel()
	s := &services{cfg: cfg, log: log}
	var err error
	if s.kafka, err = kafka.NewProducerClient(cfg.Kafka, log); err != nil {
		return err
	}
	defer s.kafka.Close()
	if s.store, err = blob.New(ctx, cfg.Blob); err != nil {
		return err
	}
	if s.db, err = projections.Open(cfg.Read, projections.Schema); err != nil {
		return err
	}
	defer s.db.Close()
	var otherwise error
	parts := []struct {
		name, done string
		prepare    func(context.Context) error
	}{
		{"kafka", "the topics are there; the log is " + events.Topic, func(ctx context.Context) error {
			if err := s.prepareLog(ctx); err != nil {
				return err
			}
			otherwise = s.differences(ctx) // now, while there is time
			return nil
		}},
		{"database", "the tables are there", s.prepareDatabase},
		{"s3", "the bucket " + cfg.Blob.Bucket + " is there, with its rules", s.prepareStore},
	}
	results := make([]error, len(parts))
	var working sync.WaitGroup
	for i, part := range parts {
		working.Go(func() { results[i] = s.within(ctx, part.name, part.prepare) })
	}
	working.Wait()
	var faults []error
	for i, part := range parts {
		if results[i] != nil {
			faults = append(faults, results[i])
			continue
		}
		fmt.Fprintf(out, "%s: %s\n", part.name, part.done)
	}
	return errors.Join(append(faults, otherwise)...)
}

// within is persist, and says at the end of the time what was the matter last.
func (s *services) within(ctx context.Context, name string, prepare func(context.Context) error) error {
	var last error
	err := persist(ctx, s.log, name, func(ctx context.Context) error {
		err := prepare(ctx)
		if err != nil && (last == nil || ctx.Err() == nil) { // else it only tells that time is up
			last = err
		}
		return err
	})
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s is not ready after PREPARE_TIMEOUT, %s: %w", name, s.cfg.PrepareTimeout, last)
	}
	return err
}

// differences are an error that names them all.
func (s *services) differences(ctx context.Context) error {
	var all []error
	for _, topic := range s.cfg.topics(false) {
		found, err := kafka.Differences(ctx, s.kafka, topic)
		if err != nil {
			all = append(all, err)
		}
		for _, difference := range found {
			all = append(all, errors.New(difference))
		}
	}
	return errors.Join(all...)
}
