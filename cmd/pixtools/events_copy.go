package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"filippo.io/age"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/eventlog"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/projections"
)

// copying is what the commands export and import, back-up and restore were told.
type copying struct {
	dir, until          string
	blobs, secrets, dry bool
	recipients          []age.Recipient
	identities          []age.Identity
	out, errors         io.Writer
	store               *blob.Store
	db                  *pgxpool.Pool
	parts               parts
	meter               *meter
	lost                int
}

func eventsExport() *cobra.Command {
	var c copying
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the log into files with checksums",
		Long: "Write the log, as it is now, into a new directory of files with checksums: to look at it with\n" +
			"other tools, or to seed another environment. The dead letters are written, too; what can be\n" +
			"made again (the read model, the saga's state) is not. Services may run meanwhile. The format\n" +
			"is described in docs/export.md.\n\n" +
			"What is secret stays where it is, and what is sealed with it stays sealed: downloads are named\n" +
			"image instead of as the file that was uploaded, and webhook addresses cannot be read. To have\n" +
			"all of it, for a back-up or to move from embedded mode to a cluster, use pixtools backup.",
		Example: "  pixtools events export --out log-2026-11-24 --with-blobs",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.out, c.errors = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return c.export(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&c.dir, "out", "", "the directory to make (required)")
	cmd.Flags().BoolVar(&c.blobs, "with-blobs", false, "also the objects in S3 that events name, each checked against its SHA-256")
	cmd.Flags().StringVar(&c.until, "until", "", "only what was written before this time, or before so long ago")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func eventsImport() *cobra.Command {
	var c copying
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Write an export into an empty log",
		Long: "Write an export into an empty log, in embedded mode or on a cluster, with any number of\n" +
			"partitions. Every checksum is verified before anything is written. An import that was\n" +
			"interrupted goes on when it is started again. No `pixtools serve` may run on the log\n" +
			"meanwhile; start it afterwards: it makes the read model and the saga's state of the log.\n\n" +
			"It reads the log and the objects of a back-up, too, and leaves the secrets that are there: for\n" +
			"where PostgreSQL was not lost.",
		Example: "  KAFKA_BROKERS=kafka-1:9092 pixtools events import --in log-2026-11-24 --with-blobs",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.out, c.errors = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return c.load(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&c.dir, "in", "", "the directory that export, or back-up, made (required)")
	cmd.Flags().BoolVar(&c.blobs, "with-blobs", false, "also the objects, into S3")
	cmd.Flags().BoolVar(&c.dry, "dry-run", false, "check everything, say what would be done, write nothing")
	_ = cmd.MarkFlagRequired("in")
	return cmd
}

// open reaches the parts that are needed; a dry run needs the log only.
func (c *copying) open(ctx context.Context) (err error) {
	if err := c.parts.open(ctx, embedded.Needs{Kafka: true, Postgres: c.secrets && !c.dry, S3: c.blobs && !c.dry}); err != nil {
		return err
	}
	if c.blobs && !c.dry {
		c.store, err = blob.New(ctx, c.parts.cfg.Blob)
	}
	if err == nil && c.secrets && !c.dry {
		c.db, err = projections.Open(c.parts.cfg.Read, projections.Schema)
	}
	if err != nil {
		c.close()
	}
	return err
}

func (c *copying) close() {
	if c.db != nil {
		c.db.Close()
	}
	c.parts.close()
}

// progress shows a bar for each stage that takes long.
func (c *copying) progress(what string, done, total int64) {
	if c.meter == nil || c.meter.what != what {
		c.finish()
		c.meter = newMeter(what, true)
	}
	c.meter.to(done, total)
}

func (c *copying) finish() {
	if c.meter != nil {
		c.meter.finish()
	}
}

func (c *copying) export(ctx context.Context) error {
	until, err := when("until", c.until, time.Now())
	if err != nil {
		return err
	}
	if err := c.open(ctx); err != nil {
		return err
	}
	defer c.close()
	e := eventlog.Export{Dir: c.dir, Store: c.store, Secrets: c.db, Recipients: c.recipients, Progress: c.progress, Lost: c.lose,
		Retention: c.parts.cfg.retention().Results, SourceRetention: c.parts.cfg.retention().Sources}
	if until != nil {
		e.Until = *until
	}
	m, err := c.parts.brokers.Export(ctx, e)
	c.finish()
	if err != nil {
		return err
	}
	for _, t := range m.Topics {
		fmt.Fprintf(c.out, "%s: %d records of %d partitions\n", t.Name, t.Records, len(t.Partitions))
	}
	if o := m.Objects; o != nil {
		fmt.Fprintf(c.out, "objects: %d of %d bytes; %d expired, %d missing, %d damaged\n", o.Stored, o.Bytes, o.Expired, o.Missing, o.Damaged)
	}
	c.tellTables(m.Tables)
	fmt.Fprintf(c.out, "written to %s\n", c.dir)
	return nil
}

func (c *copying) tellTables(tables []eventlog.ManifestTable) {
	for _, t := range tables {
		fmt.Fprintf(c.out, "secrets, %s: %d rows\n", t.Name, t.Rows)
	}
}

// mostLost is how many lost objects are named; all of them are in the export's list.
const mostLost = 20

func (c *copying) lose(key, why string) {
	c.lost++
	if c.lost <= mostLost {
		fmt.Fprintf(c.errors, "not exported: %s: %s\n", key, why)
	}
	if c.lost == mostLost+1 {
		fmt.Fprintln(c.errors, "not exported: more; objects.jsonl.zst lists them")
	}
}

func (c *copying) load(ctx context.Context) error {
	im := eventlog.Import{Dir: c.dir, DryRun: c.dry, WithObjects: c.blobs, WithSecrets: c.secrets, Identities: c.identities,
		Prepare: c.prepare, PrepareSecrets: c.prepareSecrets, Workers: map[string]string{}, Progress: c.progress}
	if err := im.Look(); err != nil {
		return err
	}
	c.parts.fresh = embedded.Needs{Kafka: true, Postgres: true, S3: true}
	if c.dry {
		// What is not there yet is not made for a dry run either: elsewhere, for its time.
		dir, err := os.MkdirTemp("", "pixtools-dry-run-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		c.parts.scratch = dir
	}
	if err := c.open(ctx); err != nil {
		return err
	}
	defer c.close()
	im.Partitions, im.Store, im.Secrets = c.parts.cfg.Partitions, c.store, c.db
	for _, op := range operations.All() {
		im.Workers[op.Name] = events.OperationGroup + op.Name
	}
	if c.db != nil {
		im.Unused = c.unused
	}
	did, err := c.parts.brokers.Import(ctx, im)
	c.finish()
	if err != nil {
		return err
	}
	word := "imported"
	if c.dry {
		word = "would import"
	}
	fmt.Fprintf(c.out, "%s %d records into %d partitions", word, did.Records-did.Found, did.Partitions)
	if did.Found > 0 {
		fmt.Fprintf(c.out, "; %d were there already", did.Found)
	}
	fmt.Fprintf(c.out, "; %d jobs are open\n", did.Open)
	if c.blobs {
		fmt.Fprintf(c.out, "objects: %d\n", did.Objects)
	}
	c.tellTables(did.Tables)
	return nil
}

// unused refuses a database in which another log's jobs are shown.
func (c *copying) unused(ctx context.Context) error {
	jobs, err := projections.Jobs(ctx, c.db)
	if err == nil && jobs > 0 {
		err = fmt.Errorf("the read model in PostgreSQL has %d jobs, of another log: restore into another database (DATABASE_URL), or remove the schema with DROP SCHEMA %s CASCADE", jobs, projections.Schema)
	}
	return err
}

// prepare makes what the services would make.
func (c *copying) prepare(ctx context.Context) error {
	s := &services{cfg: c.parts.cfg, log: c.parts.log, store: c.store, embedded: c.parts.missing}
	var err error
	if s.kafka, err = kafka.NewProducerClient(s.cfg.Kafka, s.log); err != nil {
		return err
	}
	defer s.kafka.Close()
	err = s.prepareLog(ctx)
	if s.store != nil {
		err = errors.Join(err, s.prepareStore(ctx))
	}
	return err
}

func (c *copying) prepareSecrets(ctx context.Context) error {
	return (&services{db: c.db}).prepareSecrets(ctx)
}
