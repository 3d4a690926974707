package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/handlers"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/projections"
)

// caughtUp bounds how long the janitor waits for the read model to pass what the log has. Then
// it begins again later.
const caughtUp = time.Minute

// keeper reads jobs as the log has them.
type keeper struct {
	cfg        config
	log        *slog.Logger
	client     *kgo.Client
	pool       *pgxpool.Pool // of a command; nil in a role
	reader     *projections.Reader
	publisher  *kafka.Publisher
	partitions int
}

// jobs reads jobs from a read model that has passed the end that the log has now. The answer
// and how far the read model was are of one moment: one that is begun anew in between says
// nothing of what it has not read.
func (k keeper) jobs(ctx context.Context, ids []string) (map[string]*events.Job, error) {
	partitions := map[int32]bool{}
	for _, id := range ids {
		partitions[kafka.PartitionOf([]byte(id), k.partitions)] = true
	}
	ends, err := k.passed(ctx, func(partition int32) bool { return partitions[partition] })
	if err != nil {
		return nil, err
	}
	found, err := k.reader.Ledger(ctx, ids)
	if err != nil {
		return nil, err
	}
	for partition, end := range ends {
		if !found.Passed(partition, end) {
			return nil, fmt.Errorf("partition %d: %w", partition, projections.ErrBehind)
		}
	}
	return found.Jobs, nil
}

// passed waits until the read model has applied what the log has now, of some partitions, and
// says how far that is.
func (k keeper) passed(ctx context.Context, wanted func(int32) bool) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, caughtUp)
	defer cancel()
	listed, err := kadm.NewClient(k.client).ListEndOffsets(ctx, events.Topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ask where the log ends: %w", err)
	}
	ends := map[int32]int64{}
	for partition, end := range listed[events.Topic] {
		if end.Offset == 0 || !wanted(partition) {
			continue
		}
		if err := k.reader.Wait(ctx, partition, end.Offset-1); err != nil {
			return nil, fmt.Errorf("the read model has not reached the end of partition %d (see that a process with the role projector runs): %w", partition, err)
		}
		ends[partition] = end.Offset
	}
	return ends, nil
}

func everyPartition(int32) bool { return true }

// told reads a job's events from the log. events.ErrUnknownType: this version does not know all
// of them.
func (k keeper) told(ctx context.Context, id string) ([]events.Event, error) {
	offsets, err := k.reader.Events(ctx, id)
	if errors.Is(err, projections.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	records, err := kafka.ReadOffsets(ctx, k.cfg.Kafka, k.log, events.Topic, kafka.PartitionOf([]byte(id), k.partitions), offsets)
	if err != nil {
		return nil, err
	}
	var all []events.Event
	for _, r := range records {
		e, err := events.Decode(r)
		if errors.Is(err, events.ErrUnknownType) {
			return nil, err
		}
		if err == nil {
			if unknown := events.Unknown(r, e, nil); len(unknown) > 0 {
				return nil, fmt.Errorf("%w: %s", events.ErrUnknownType, strings.Join(unknown, ", "))
			}
		}
		if err != nil || e.JobID != id {
			return nil, fmt.Errorf("the record at offset %d is no event of job %s: the read model is of another log: %w", r.Offset, id, err)
		}
		all = append(all, e)
	}
	return all, nil
}

func (k keeper) write(ctx context.Context, e events.Event) error {
	r, err := e.Record()
	if err != nil {
		return err
	}
	return k.publisher.Append(ctx, r)
}

// janitor is the janitor over these parts.
func (k keeper) janitor(store *blob.Store) *handlers.Janitor {
	cfg := k.cfg.Janitor
	return (&handlers.Janitor{JanitorConfig: cfg, Retention: k.cfg.retention(), Uploads: k.cfg.Blob.UploadRetention(), Store: store, Log: k.log, Now: now,
		Due: func(ctx context.Context, source bool, until time.Time, each func(*events.Job) error) error {
			// Else a pass would say again what the one before it said.
			if _, err := k.passed(ctx, everyPartition); err != nil {
				return err
			}
			return k.reader.EachDue(ctx, source, until, cfg.Batch, each)
		},
		Jobs: k.jobs, Told: k.told, Write: k.write,
		Shadows: func(ctx context.Context, each func(string)) error { return processors.Shadows(ctx, store, each) },
	}).Begin()
}

// janitor runs the janitor: what is told of as gone is removed by every process, each for its
// partitions; passes are one process's.
func (s *services) janitor(ctx context.Context, group *errgroup.Group) error {
	log := s.log.With("role", "janitor")
	reader := projections.NewReader(s.cfg.Read, s.db, s.logID, log)
	work := keeper{cfg: s.cfg, log: log, client: s.kafka, reader: reader, publisher: s.publisher, partitions: int(s.cfg.Partitions)}.janitor(s.store)
	consumer := s.cfg.Consumer
	consumer.Group, consumer.Filter = events.JanitorGroup, work.Concerns
	consumer.ClientOpts = []kgo.Opt{kafkaMetrics(consumer.Group)}
	subscriber, err := kafka.NewSubscriber(s.cfg.Kafka, consumer, log)
	if err != nil {
		return err
	}
	s.roles.runs("janitor", joined(subscriber.Joined, consumer.Group))
	router, err := s.router(log)
	if err != nil {
		return err
	}
	router.AddConsumerHandler(consumer.Group, events.Topic, subscriber, work.Handle)
	group.Go(func() error { return reader.Listen(ctx) })
	group.Go(func() error { return router.Run(context.WithoutCancel(ctx)) })
	group.Go(func() error {
		<-ctx.Done()
		return errors.Join(subscriber.Close(), router.Close())
	})
	group.Go(func() error {
		return projections.Alone(ctx, s.db, "pixtools janitor", min(s.cfg.Janitor.Interval, 10*time.Second), log, work.Run)
	})
	return nil
}

// janitorPass is what the janitor command was told.
type janitorPass struct {
	dry, allOrphans, asJSON bool
	out                     io.Writer
}

func janitorCommand() *cobra.Command {
	var j janitorPass
	cmd := &cobra.Command{
		Use:   "janitor",
		Short: "Let go of what is past its retention, and remove stored objects that nothing needs, once",
		Long: "Does by hand, at once, what the role janitor of `pixtools serve` does every so often: says in the log\n" +
			"what has expired, and removes the objects of what has expired or was deleted, and those that no event\n" +
			"names. A PixTools with the role projector must run. It may be stopped at any time and begun again.",
		Example: "  pixtools janitor --dry-run     what would be let go and removed: how many, and how many bytes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			j.out = cmd.OutOrStdout()
			return j.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&j.dry, "dry-run", false, "count, and change nothing")
	flags.BoolVar(&j.allOrphans, "all-orphans", false, "also where there are more orphans than JANITOR_MAX_ORPHANS")
	flags.BoolVar(&j.asJSON, "json", false, "print JSON")
	return cmd
}

func (j janitorPass) run(ctx context.Context) error {
	p := parts{}
	if err := p.open(ctx, embedded.Needs{Kafka: true, Postgres: true, S3: true}); err != nil {
		return err
	}
	defer p.close()
	k, end, err := p.keeper(ctx)
	if err != nil {
		return err
	}
	defer end()
	store, err := blob.New(ctx, p.cfg.Blob)
	if err != nil {
		return err
	}
	m := newGauge(os.Stderr)
	defer m.finish()
	work := k.janitor(store)
	// What is seen is counted as it goes by: nobody knows of how many.
	jobs, looked, due, read := int64(0), int64(0), work.Due, work.Jobs
	work.Due = func(ctx context.Context, source bool, until time.Time, each func(*events.Job) error) error {
		m.counts = "jobs"
		return due(ctx, source, until, func(job *events.Job) error {
			jobs++
			m.tell(projections.Progress{Phase: "looking for what has expired", Done: jobs})
			return each(job)
		})
	}
	work.Jobs = func(ctx context.Context, ids []string) (map[string]*events.Job, error) {
		m.counts = "jobs"
		looked += int64(len(ids))
		m.tell(projections.Progress{Phase: "going over stored objects", Done: looked})
		return read(ctx, ids)
	}
	done := handlers.Tally{}
	for _, step := range []func() (handlers.Tally, error){
		func() (handlers.Tally, error) { return work.Expire(ctx, j.dry) },
		func() (handlers.Tally, error) { return work.ClearUploads(ctx, j.dry) },
		func() (handlers.Tally, error) { return work.Sweep(ctx, j.dry, j.allOrphans) },
	} {
		if err == nil {
			var tally handlers.Tally
			tally, err = step()
			maps.Copy(done, tally)
		}
	}
	m.finish()
	if printing := j.print(done); err == nil {
		err = printing
	}
	return err
}

func (j janitorPass) print(done handlers.Tally) error {
	if j.asJSON {
		return json.NewEncoder(j.out).Encode(map[string]any{"dry_run": j.dry, "what": done})
	}
	if len(done) == 0 {
		_, err := fmt.Fprintln(j.out, "there is nothing to do")
		return err
	}
	table := tabwriter.NewWriter(j.out, 0, 0, 2, ' ', 0)
	head := "REMOVED"
	if j.dry {
		head = "WOULD BE REMOVED"
	}
	fmt.Fprintln(table, head+"\tOBJECTS\tBYTES")
	for _, why := range slices.Sorted(maps.Keys(done)) {
		fmt.Fprintf(table, "%s\t%d\t%d\n", why, done[why].Objects, done[why].Bytes)
	}
	return table.Flush()
}

// keeper is one over a command's parts; end lets go of what it holds.
func (p *parts) keeper(ctx context.Context) (k keeper, end func(), err error) {
	t, err := p.brokers.Topic(ctx, events.Topic)
	if err != nil {
		return k, nil, err
	}
	pool, err := projections.Open(p.cfg.Read, projections.Schema)
	if err != nil {
		return k, nil, err
	}
	client, err := kafka.NewProducerClient(p.cfg.Kafka, p.log)
	if err != nil {
		pool.Close()
		return k, nil, err
	}
	k = keeper{cfg: p.cfg, log: p.log, client: client, pool: pool, reader: projections.NewReader(p.cfg.Read, pool, t.ID, p.log),
		publisher: kafka.NewPublisher(client, p.cfg.Kafka.DeliveryTimeout), partitions: len(t.Ranges)}
	listening, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.reader.Listen(listening)
	}()
	return k, func() {
		stop()
		<-done
		_ = k.publisher.Close()
		client.Close()
		pool.Close()
	}, nil
}
