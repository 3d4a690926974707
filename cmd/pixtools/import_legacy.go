package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/apikeys"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/eventlog"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/legacy"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/projections"
)

// legacyImport is what the command import-legacy was told, and what it works with.
type legacyImport struct {
	database, redis, table, pattern, tenant, since, unfinished string
	fromEndpoint, fromBucket, fromRegion                       string
	idle                                                       time.Duration
	rate                                                       float64
	dry, copyObjects                                           bool
	out                                                        io.Writer

	parts   parts
	rows    *legacy.Database
	from    time.Time // of --since
	now     time.Time
	objects legacy.Objects
	pool    *pgxpool.Pool
	seal    *secrets.Keyring
	log     *kgo.Client      // of the transactions
	retries *kafka.Publisher // what workers are to take up
	claims  *redis.Client    // ours; nil where REDIS_URL is not set
	gauge   *gauge
	pace    *rate.Limiter
	ends    []func() // what is to be closed, the last first

	// keys lead from a job of the Python service to the id of jobs under its key here.
	keys map[uuid.UUID]uuid.UUID
	// there are the jobs of the part that is worked on, and what the log has of each.
	there map[uuid.UUID]trace
	// written counts what this run wrote.
	written map[string]int64
	// late counts keys that came after their jobs.
	late int64
	// writing: all faults are listed.
	writing bool
}

// trace is what the log has of a job.
type trace byte

const (
	traceNone trace = iota
	// traceThere: the job is in the log. traceRetried: its operations were asked for again,
	// or it was deleted.
	traceThere
	traceRetried
)

// What becomes of jobs that the Python service did not finish.
const (
	unfinishedFail     = "fail"
	unfinishedResubmit = "resubmit"
)

// Codes of OperationFailed of jobs that came from the Python service.
const (
	codeLegacyFailed     = "legacy_failed"
	codeLegacyNoResult   = "legacy_no_result"
	codeLegacyUnfinished = "legacy_unfinished"
)

// jobsAtOnce is how many jobs are read, and then written in one transaction.
const jobsAtOnce = 100

func importLegacyCommand() *cobra.Command {
	l := legacyImport{written: map[string]int64{}}
	cmd := &cobra.Command{
		Use:   "import-legacy",
		Short: "Bring in the jobs of the Python service",
		Long: "Reads the table of jobs and the idempotency keys of the Python service, and writes its jobs into the\n" +
			"log, under their own ids and with their own times. Afterwards their ids, and their keys, are\n" +
			"answered here, with links to the results that are in the bucket. Nothing of the Python service is\n" +
			"changed. PixTools may run meanwhile.\n\n" +
			"First every row is read, and each that cannot be brought in is listed, with the reason; then the\n" +
			"others are written. What is there already is passed over: run it as often as you like, also after it\n" +
			"was ended in the middle. With --dry-run nothing is written.\n\n" +
			"Stop the Python service first, or at least its uploads: a key that is sent here before its job was\n" +
			"brought in makes a new job. A job that is PENDING or PROCESSING, and whose row did not change for\n" +
			"--idle, is taken for one that will never end: its results, also those that only the bucket knows,\n" +
			"are kept, and the rest has failed, or with --unfinished=resubmit is done here.\n\n" +
			"The form of the keys in Redis is not the same in all versions of the Python service. Find yours:\n" +
			"  redis-cli -u REDIS_URL --scan --pattern '*idem*' | head\n" +
			"and write the client's key as " + legacy.KeyPlace + ": of app:idem:order-17, --key-pattern 'app:idem:" + legacy.KeyPlace + "'. The value may be the\n" +
			"job's id, or a JSON object with job_id.\n\n" +
			"Objects are read in AWS_S3_BUCKET. If the Python service has another bucket, name it with\n" +
			"--from-bucket, --from-endpoint and --copy-objects; what is needed of it is then copied. Links that\n" +
			"the Python service signed are good for as long as they say and its bucket is there.",
		Example: "  pixtools import-legacy --database postgresql+asyncpg://pixtools@db/pixtools --redis redis://redis/0 --dry-run\n" +
			"  IMPORT_LEGACY_DATABASE_URL=... IMPORT_LEGACY_REDIS_URL=... pixtools import-legacy --unfinished=resubmit\n" +
			"  pixtools import-legacy --database ... --copy-objects --from-endpoint http://old-s3:9000 --from-bucket pixtools-images",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l.out = cmd.OutOrStdout()
			return l.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&l.database, "database", "", "the Python service's DATABASE_URL; else IMPORT_LEGACY_DATABASE_URL, which no list of processes shows")
	flags.StringVar(&l.redis, "redis", "", "its REDIS_URL; else IMPORT_LEGACY_REDIS_URL; without either, keys are left out")
	flags.StringVar(&l.table, "table", "jobs", "its table of jobs, with the schema if need be")
	flags.StringVar(&l.pattern, "key-pattern", "idempotency:"+legacy.KeyPlace, "how its idempotency keys are called in Redis")
	flags.StringVar(&l.tenant, "tenant", apikeys.DefaultTenant, "whose the jobs are")
	flags.StringVar(&l.since, "since", "", "only jobs made since a time (2026-11-24T12:00:00Z), or a while ago (720h)")
	flags.StringVar(&l.unfinished, "unfinished", unfinishedFail, "what becomes of operations that it never finished: fail, or resubmit")
	flags.DurationVar(&l.idle, "idle", 10*time.Minute, "for how long the row of an unfinished job must not have changed; others are left for a later run")
	flags.Float64Var(&l.rate, "rate", 0, "jobs written a second at most; 0: IMPORT_LEGACY_RATE")
	flags.BoolVar(&l.dry, "dry-run", false, "say what would be done, write nothing")
	flags.BoolVar(&l.copyObjects, "copy-objects", false, "put every object into AWS_S3_BUCKET, under a name of ours")
	flags.StringVar(&l.fromBucket, "from-bucket", "", "the Python service's bucket, where it is not AWS_S3_BUCKET")
	flags.StringVar(&l.fromEndpoint, "from-endpoint", "", "its S3 server, where it is not AWS_ENDPOINT_URL; keys: IMPORT_LEGACY_AWS_ACCESS_KEY_ID, IMPORT_LEGACY_AWS_SECRET_ACCESS_KEY")
	flags.StringVar(&l.fromRegion, "from-region", "", "its region, where it is not AWS_REGION")
	return cmd
}

// check refuses what the flags say wrongly, all at once.
func (l *legacyImport) check() error {
	var faults []error
	if l.unfinished != unfinishedFail && l.unfinished != unfinishedResubmit {
		faults = append(faults, fmt.Errorf("--unfinished is %q: use fail or resubmit", l.unfinished))
	}
	if err := legacy.CheckPattern(l.pattern); err != nil {
		faults = append(faults, err)
	}
	if err := apikeys.CheckTenant(l.tenant); err != nil {
		faults = append(faults, err)
	}
	if l.idle < 0 {
		faults = append(faults, fmt.Errorf("--idle is %s: it must be 0s or more", l.idle))
	}
	if (l.fromBucket != "" || l.fromEndpoint != "") && !l.copyObjects {
		faults = append(faults, errors.New("--from-bucket and --from-endpoint need --copy-objects: links lead into AWS_S3_BUCKET"))
	}
	since, err := when("since", l.since, l.now)
	if err != nil {
		faults = append(faults, err)
	} else if since != nil {
		l.from = *since
	}
	return errors.Join(faults...)
}

func (l *legacyImport) run(ctx context.Context) error {
	l.now = time.Now()
	if err := l.check(); err != nil {
		return err
	}
	defer func() {
		for _, end := range slices.Backward(l.ends) {
			end()
		}
	}()
	if err := l.open(ctx); err != nil {
		return err
	}
	defer l.gauge.finish()
	return l.work(ctx)
}

// open reaches all that is needed. A dry run makes nothing.
func (l *legacyImport) open(ctx context.Context) error {
	l.gauge = newGauge(os.Stderr)
	l.gauge.counts = "jobs"
	l.parts.fresh = embedded.Needs{Kafka: true, Postgres: true, S3: true}
	if l.dry {
		dir, err := os.MkdirTemp("", "pixtools-dry-run-")
		if err != nil {
			return err
		}
		l.parts.scratch = dir
		l.ends = append(l.ends, func() { _ = os.RemoveAll(dir) })
	}
	if err := l.parts.open(ctx, embedded.Needs{Kafka: true, Postgres: !l.dry, S3: true}); err != nil {
		return err
	}
	l.ends = append(l.ends, l.parts.close)
	cfg := &l.parts.cfg
	l.database, l.redis = cmp.Or(l.database, cfg.Legacy.DatabaseURL), cmp.Or(l.redis, cfg.Legacy.RedisURL)
	if l.rate != 0 {
		cfg.Legacy.Rate = l.rate
		if err := cfg.Legacy.Validate(); err != nil {
			return fmt.Errorf("--rate: %w", err)
		}
	}
	l.pace = rate.NewLimiter(rate.Limit(cfg.Legacy.Rate), jobsAtOnce)
	if l.database == "" {
		return errors.New("--database is missing: give the Python service's DATABASE_URL, or set IMPORT_LEGACY_DATABASE_URL")
	}
	var err error
	if l.rows, err = legacy.OpenDatabase(ctx, l.database, l.table, cfg.Legacy.Timeout); err != nil {
		return err
	}
	l.ends = append(l.ends, l.rows.Close)
	if l.objects.To, err = blob.New(ctx, cfg.Blob); err != nil {
		return err
	}
	l.objects.From, l.objects.Always, l.objects.MaxBytes = l.objects.To, l.copyObjects, cfg.Legacy.MaxObjectBytes
	if l.fromBucket != "" || l.fromEndpoint != "" {
		theirs := cfg.Blob
		theirs.Bucket, theirs.Endpoint, theirs.Region = cmp.Or(l.fromBucket, theirs.Bucket), cmp.Or(l.fromEndpoint, theirs.Endpoint), cmp.Or(l.fromRegion, theirs.Region)
		if cfg.Legacy.AccessKeyID != "" {
			theirs.AccessKeyID, theirs.SecretAccessKey = cfg.Legacy.AccessKeyID, cfg.Legacy.SecretAccessKey
		}
		if l.objects.From, err = blob.New(ctx, theirs); err != nil {
			return fmt.Errorf("--from-bucket, --from-endpoint: %w", err)
		}
	}
	if l.dry {
		return nil
	}
	return l.openForWriting(ctx)
}

func (l *legacyImport) openForWriting(ctx context.Context) error {
	cfg, log := &l.parts.cfg, l.parts.log
	spool, err := openSpool(cfg.API.SpoolDir)
	if err != nil {
		return fmt.Errorf("SPOOL_DIR: %w", err)
	}
	l.objects.Spool = spool.dir
	l.ends = append(l.ends, spool.close)
	if l.pool, err = projections.Open(cfg.Read, projections.Schema); err != nil {
		return err
	}
	l.ends = append(l.ends, l.pool.Close)
	c := copying{parts: l.parts, store: l.objects.To, db: l.pool}
	if err := c.prepare(ctx); err != nil {
		return err
	}
	l.seal = secrets.New(cfg.Secrets, l.pool, cfg.Read.QueryTimeout, log)
	watching, stop := context.WithCancel(ctx)
	l.ends = append(l.ends, stop)
	go func() { _ = l.seal.Watch(watching) }() // it has no error but the end of its context
	if cfg.RedisURL != "" {
		options, err := cfg.redis()
		if err != nil {
			return err
		}
		l.claims = redis.NewClient(options)
		l.ends = append(l.ends, func() { _ = l.claims.Close() })
	}
	// Of two imports at once, the one that began later goes on: that is what the id is for. On
	// the embedded broker it must not outlive its process.
	id := "pixtools.import-legacy"
	if l.parts.missing.Kafka {
		id += "." + uuid.NewString()
	}
	// Readers of committed records wait while a transaction is open, also after a kill.
	if l.log, err = kafka.NewClient(cfg.Kafka, log, kgo.TransactionalID(id), kgo.TransactionTimeout(cfg.Saga.TransactionTimeout)); err != nil {
		return err
	}
	l.ends = append(l.ends, l.log.Close)
	// Ends the transaction of an import that was killed: what the log is then read to is all
	// that it has.
	if _, _, err := l.log.ProducerID(ctx); err != nil {
		return fmt.Errorf("begin to write: %w", err)
	}
	client, err := kafka.NewProducerClient(cfg.Kafka, log)
	if err != nil {
		return err
	}
	l.retries = kafka.NewPublisher(client, cfg.Kafka.DeliveryTimeout)
	l.ends = append(l.ends, client.Close)
	return nil
}

// work looks at everything, tells what is wrong, and then writes what is not.
func (l *legacyImport) work(ctx context.Context) error {
	if err := l.readKeys(ctx); err != nil {
		return err
	}
	found, err := l.rows.Count(ctx, l.from)
	if err != nil {
		return err
	}
	total := int64(0)
	for _, n := range found {
		total += n
	}
	fmt.Fprintf(l.out, "the Python service has %d jobs: %s\n", total, counts(found))
	fates := map[string]int64{}
	if err := l.each(ctx, "looking", total, func(row legacy.Row) error {
		fate, why := l.fateOf(row)
		fates[string(fate)]++
		if _, keyed := l.keys[idOf(row)]; keyed && row.Fault == nil {
			fates["keyed"]++
		}
		if fate == fateRejected || fate == fateAtWork {
			l.gauge.pause()
			_, err := fmt.Fprintf(l.out, "%s  job %s  %s\n", fate, row.ID, why)
			return err
		}
		if l.dry && fate == fateNew {
			return l.preview(ctx, row.Job, fates)
		}
		return nil
	}); err != nil {
		return err
	}
	l.gauge.finish()
	word := "to bring in"
	if l.dry {
		word = "would be brought in"
	}
	fmt.Fprintf(l.out, "%s: %d; there already: %d; to be asked for again: %d; left for a later run: %d; cannot be brought in: %d\n", word,
		fates[string(fateNew)], fates[string(fateThere)], fates[string(fateAgain)], fates[string(fateAtWork)], fates[string(fateRejected)])
	fmt.Fprintf(l.out, "idempotency keys: %d; of them without a job in the table: %d\n", len(l.keys), int64(len(l.keys))-fates["keyed"])
	if l.dry {
		_, err := fmt.Fprintf(l.out, "objects: %d there, %d gone\n", fates["objects there"], fates["objects gone"])
		return err
	}
	l.writing = true
	if err := l.write(ctx, total); err != nil {
		return fmt.Errorf("%w; %d jobs were brought in: the same command goes on", err, l.written["jobs"])
	}
	l.gauge.finish()
	fmt.Fprintf(l.out, "brought in: %d jobs (%s); asked for again: %d; refused: %d\n", l.written["jobs"], counts(l.outcomes()), l.written["again"], l.written["refused"])
	fmt.Fprintf(l.out, "objects: %d read, %d gone\n", l.written["objects read"], l.written["objects gone"])
	if l.late > 0 {
		fmt.Fprintf(l.out, "%d keys came after their jobs: they lead to them as long as Redis remembers, %s at most (IDEMPOTENCY_TTL)\n", l.late, l.parts.cfg.API.IdempotencyTTL)
	}
	_, err = fmt.Fprintln(l.out, "check it: pixtools verify")
	return err
}

// outcomes of the jobs that were written.
func (l *legacyImport) outcomes() map[string]int64 {
	found := map[string]int64{}
	for name, n := range l.written {
		if outcome, is := strings.CutPrefix(name, "outcome "); is {
			found[outcome] = n
		}
	}
	return found
}

// readKeys holds the keys, by the job that each leads to.
func (l *legacyImport) readKeys(ctx context.Context) error {
	l.keys = map[uuid.UUID]uuid.UUID{}
	if l.redis == "" {
		_, err := fmt.Fprintln(l.out, "no --redis: idempotency keys are left out")
		return err
	}
	cfg, empty, second := l.parts.cfg.Legacy, int64(0), int64(0)
	if err := legacy.Keys(ctx, l.redis, l.pattern, cfg.Timeout, func(key, id string) error {
		job, err := uuid.Parse(id)
		if err != nil {
			empty++
			return nil
		}
		own := uuid.MustParse(events.JobID(l.tenant, key))
		if other, known := l.keys[job]; known && other != own {
			second++
			return nil
		}
		if l.keys[job] = own; len(l.keys) > cfg.MaxKeys {
			return fmt.Errorf("redis has more than %d keys like %s: see that --key-pattern names idempotency keys only, or raise IMPORT_LEGACY_MAX_KEYS", cfg.MaxKeys, l.pattern)
		}
		return nil
	}); err != nil {
		return err
	}
	if empty+second > 0 {
		fmt.Fprintf(l.out, "keys like %s left out: %d whose value names no job, %d of a job that has another one\n", l.pattern, empty, second)
	}
	return nil
}

// each goes through the rows, in parts: of each part it is known what the log has.
func (l *legacyImport) each(ctx context.Context, phase string, total int64, do func(legacy.Row) error) error {
	held, done := l.parts.cfg.Legacy.HeldJobs, int64(0)
	l.late = 0
	for after := ""; ; {
		l.there = map[uuid.UUID]trace{}
		n, last := 0, after
		if err := l.rows.Rows(ctx, after, held, l.from, func(row legacy.Row) error {
			n, last = n+1, row.ID
			if row.Fault == nil {
				l.there[uuid.MustParse(row.Job.ID)] = traceNone
			}
			return nil
		}); err != nil || n == 0 {
			return err
		}
		if err := l.readLog(ctx); err != nil {
			return err
		}
		if err := l.rows.Rows(ctx, after, n, l.from, func(row legacy.Row) error {
			done++
			l.gauge.counts = "jobs"
			l.gauge.tell(projections.Progress{Phase: phase, Done: done, Total: max(total, done)})
			if _, known := l.there[idOf(row)]; !known && row.Fault == nil {
				return nil // it was made while we read: of the next run
			}
			return do(row)
		}); err != nil {
			return err
		}
		after = last
	}
}

func idOf(row legacy.Row) uuid.UUID {
	id, _ := uuid.Parse(row.Job.ID)
	return id
}

// readLog notes what the log has of the jobs of a part. It leaves the keys of those that are
// there in our Redis: a run that was killed may not have come to that.
func (l *legacyImport) readLog(ctx context.Context) error {
	t, err := l.parts.brokers.Topic(ctx, events.Topic)
	if errors.Is(err, eventlog.ErrNoTopic) {
		return nil
	}
	if err != nil {
		return err
	}
	l.gauge.counts = "records"
	count := eventlog.Counter(t.Ranges, func(done, total int64) {
		l.gauge.tell(projections.Progress{Phase: "looking what is there", Done: done, Total: total})
	})
	return l.parts.brokers.Read(ctx, events.Topic, t.Ranges, func(r *kgo.Record) error {
		count(r)
		id, err := uuid.ParseBytes(r.Key)
		if _, ours := l.there[id]; err != nil || !ours {
			return nil
		}
		e, err := events.Decode(r)
		if err != nil {
			return nil // nothing that tells of a job
		}
		switch m := e.Message.(type) {
		case *events.JobRequested:
			l.there[id] = max(l.there[id], traceThere)
			key, keyed := l.keys[id]
			switch {
			case m.GetIdempotencyJobId() != "":
				return l.claim(ctx, e)
			case keyed && e.Imported():
				l.late++
				m.IdempotencyJobId = key.String()
				return l.claim(ctx, e)
			}
		case *events.OperationRetryRequested, *events.JobDeleted:
			l.there[id] = traceRetried
		}
		return nil
	})
}

// claim leaves in our Redis that a key leads to a job. Redis saves work and is not needed.
func (l *legacyImport) claim(ctx context.Context, e events.Event) error {
	m, ok := e.Message.(*events.JobRequested)
	if !l.writing || l.claims == nil || !ok || m.GetIdempotencyJobId() == "" {
		return nil
	}
	if err := api.ClaimKey(ctx, l.claims, m.GetIdempotencyJobId(), e.JobID, m.GetIdempotencyFingerprint(), l.parts.cfg.API.IdempotencyTTL); err != nil {
		l.parts.log.Warn("cannot leave idempotency keys in Redis; without it they are answered while PostgreSQL is there", "error", err)
		l.claims = nil
	}
	return ctx.Err()
}

// fate is what is to become of a row.
type fate string

const (
	fateNew      fate = "new"
	fateThere    fate = "there"
	fateAgain    fate = "again" // there, and to be asked for again
	fateAtWork   fate = "at work"
	fateRejected fate = "rejected"
)

func (l *legacyImport) fateOf(row legacy.Row) (f fate, why string) {
	if row.Fault != nil {
		return fateRejected, row.Fault.Error()
	}
	if faults := commands.CheckOperations(row.Job.Operations, nil, ""); faults != nil {
		return fateRejected, faults.Error()
	}
	switch l.there[idOf(row)] {
	case traceRetried:
		return fateThere, ""
	case traceThere:
		if row.Job.Unfinished() && l.unfinished == unfinishedResubmit {
			return fateAgain, ""
		}
		return fateThere, ""
	}
	if row.Job.Unfinished() && l.now.Sub(row.Job.UpdatedAt) < l.idle {
		return fateAtWork, fmt.Sprintf("%s, and changed at %s, less than --idle, %s, ago: run this again later", row.Job.Status, row.Job.UpdatedAt.Format(time.RFC3339), l.idle)
	}
	return fateNew, ""
}

// preview counts the objects of a job, and its key.
func (l *legacyImport) preview(ctx context.Context, job legacy.Job, fates map[string]int64) error {
	results, err := l.results(ctx, job)
	if err != nil {
		return err
	}
	for _, key := range append(slices.Collect(maps.Values(results)), job.SourceKey) {
		if key == "" {
			continue
		}
		switch _, err := l.objects.From.Head(ctx, key); {
		case errors.Is(err, blob.ErrNotFound):
			fates["objects gone"]++
		case err != nil:
			return err
		default:
			fates["objects there"]++
		}
	}
	return nil
}

// results are the keys of a job's results, by operation, with those that only the bucket knows.
func (l *legacyImport) results(ctx context.Context, job legacy.Job) (map[string]string, error) {
	found := map[string]string{}
	for _, name := range job.Operations {
		if key := job.ResultKeys[name]; key != "" {
			found[name] = key
		}
	}
	if !job.Unfinished() || len(found) == len(job.Operations) {
		return found, nil
	}
	orphans, err := l.objects.Orphans(ctx, job.ID, job.Operations)
	for name, key := range orphans {
		if found[name] == "" {
			found[name] = key
		}
	}
	return found, err
}

// write brings in what is to be brought in.
func (l *legacyImport) write(ctx context.Context, total int64) error {
	var batch []candidate
	flush := func() error {
		err := l.writeBatch(ctx, batch)
		batch = batch[:0]
		return err
	}
	err := l.each(ctx, "bringing in", total, func(row legacy.Row) error {
		if f, _ := l.fateOf(row); f == fateNew || f == fateAgain {
			batch = append(batch, candidate{row.Job, f == fateNew})
		}
		if len(batch) == jobsAtOnce {
			return flush()
		}
		return nil
	})
	if err == nil && len(batch) > 0 {
		err = flush()
	}
	return err
}

// candidate is a job that is to be brought in, or if it is not new, to be asked for again.
type candidate struct {
	legacy.Job
	isNew bool
}

// adopted is a job that was read, with its objects.
type adopted struct {
	events []events.Event
	// retry asks for what was never finished; nil: nothing is to be asked for.
	retry *events.Event
	// refused says why it cannot be brought in.
	refused    error
	read, gone int64
}

// writeBatch reads the objects of some jobs and writes all their events in one transaction: of
// each job the log has everything or nothing, whenever this is killed. What workers are to
// take up follows it, since they read what is not committed, too.
func (l *legacyImport) writeBatch(ctx context.Context, batch []candidate) error {
	all := make([]adopted, len(batch))
	reading, together := errgroup.WithContext(ctx)
	reading.SetLimit(l.parts.cfg.Legacy.Reads)
	for i, job := range batch {
		reading.Go(func() (err error) {
			if all[i], err = l.adopt(together, job.Job); err != nil {
				return fmt.Errorf("job %s: %w", job.ID, err)
			}
			return nil
		})
	}
	if err := reading.Wait(); err != nil {
		return err
	}
	var records []*kgo.Record
	for i, a := range all {
		if a.refused != nil {
			l.written["refused"]++
			l.gauge.pause()
			fmt.Fprintf(l.out, "%s  job %s  %s\n", fateRejected, batch[i].ID, a.refused)
			continue
		}
		if !batch[i].isNew {
			continue
		}
		told, err := events.Records(a.events)
		if err != nil {
			return err
		}
		records = append(records, told...)
	}
	if err := l.pace.WaitN(ctx, len(batch)); err != nil {
		return err
	}
	if err := l.commit(ctx, records); err != nil {
		return err
	}
	for i, a := range all {
		if a.refused != nil {
			continue
		}
		if batch[i].isNew {
			l.count(a)
			if err := l.claim(ctx, a.events[0]); err != nil {
				return err
			}
		}
		if a.retry == nil {
			continue
		}
		r, err := a.retry.Record()
		if err == nil {
			err = l.retries.Append(ctx, r)
		}
		if err != nil {
			return fmt.Errorf("ask for job %s again: %w", batch[i].ID, err)
		}
		l.written["again"]++
	}
	return nil
}

func (l *legacyImport) count(a adopted) {
	l.written["jobs"]++
	l.written["objects read"] += a.read
	l.written["objects gone"] += a.gone
	for _, e := range a.events {
		if m, is := e.Message.(*events.JobFinalized); is {
			l.written["outcome "+strings.TrimPrefix(m.GetOutcome().String(), "OUTCOME_")]++
		}
	}
}

// commit writes records, all or none.
func (l *legacyImport) commit(ctx context.Context, records []*kgo.Record) error {
	if len(records) == 0 {
		return nil
	}
	if err := l.log.BeginTransaction(); err != nil {
		return fmt.Errorf("write to the log: %w", err)
	}
	if err := l.log.ProduceSync(ctx, records...).FirstErr(); err != nil {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.parts.cfg.Saga.TransactionTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("write to the log: %w", err), l.log.EndTransaction(ending, kgo.TryAbort))
	}
	if err := l.log.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("write to the log: %w", err)
	}
	return nil
}

// adopt reads a job's objects and decides its events. An error is one of the parts' not
// answering.
func (l *legacyImport) adopt(ctx context.Context, job legacy.Job) (a adopted, err error) {
	c := commands.Adopt{JobID: job.ID, Tenant: l.tenant, Operations: job.Operations, Results: map[string]*events.Artifact{}, Gone: map[string]bool{},
		Attempt: int32(min(max(job.Retries, 0), 1000)) + 1, WebhookFailed: job.Status == legacy.WebhookFailed,
		RequestedAt: job.CreatedAt, EndedAt: job.UpdatedAt, At: l.now}
	switch {
	case job.Unfinished():
		c.Code, c.Message = codeLegacyUnfinished, "the service that the job came from did not finish it"
	case job.Status == legacy.Failed:
		c.Code, c.Message = codeLegacyFailed, cmp.Or(job.Reason(), "it failed in the service that the job came from")
	default:
		c.Code, c.Message = codeLegacyNoResult, "the service that the job came from named no result"
	}
	if err := l.takeSource(ctx, job, &c, &a); err != nil {
		return l.refusing(a, err)
	}
	if err := l.takeResults(ctx, job, &c, &a); err != nil {
		return l.refusing(a, err)
	}
	webhook := job.WebhookURL
	if strings.HasPrefix(webhook, "internal://") {
		webhook = "" // a marker of the Python service's own page
	}
	if key, keyed := l.keys[uuid.MustParse(job.ID)]; keyed {
		c.IdempotencyJobID = key.String()
	}
	if !c.SourceGone {
		c.Fingerprint = commands.Fingerprint(c.Source.GetSha256(), job.Operations, nil, webhook)
	}
	if c.FileName, err = l.seal.Seal(ctx, l.tenant, job.ID, job.FileName); err != nil {
		return a, err
	}
	if c.WebhookURL, err = l.seal.Seal(ctx, l.tenant, job.ID, webhook); err != nil {
		return a, err
	}
	if a.events, err = c.Decide(nil); err != nil {
		return adopted{refused: err}, nil
	}
	if !job.Unfinished() || l.unfinished != unfinishedResubmit {
		return a, nil
	}
	var state *events.Job
	for _, e := range a.events {
		state = events.Fold(state, e)
	}
	const one = 2 // revisions: the Python service's, and this one
	again, err := commands.Retry{MaxRevisions: one, At: l.now}.Decide(state)
	var conflict *commands.Conflict
	switch {
	case errors.As(err, &conflict): // all is there, or the source is gone
		return a, nil
	case err != nil:
		return a, err
	}
	again[0].Source = events.ImportSource + "/resubmit" // which is not what was done elsewhere
	a.retry = &again[0]
	return a, nil
}

// refusing has one job's fault stop that job only.
func (l *legacyImport) refusing(a adopted, err error) (adopted, error) {
	if errors.Is(err, legacy.ErrTooLarge) {
		a.refused = err
		return a, nil
	}
	return a, err
}

// gone names an object that is no more, where its key would say too much, or nobody knows it.
const gone = "gone"

func (l *legacyImport) takeSource(ctx context.Context, job legacy.Job, c *commands.Adopt, a *adopted) error {
	prefix := blob.RawPrefix + job.ID + "/"
	c.Source = &events.Source{Key: prefix + gone}
	found, err := l.take(ctx, job.SourceKey, prefix, job.FileName, func(sha256 string) string { return sha256 })
	switch {
	case errors.Is(err, blob.ErrNotFound):
		c.SourceGone = true
		a.gone++
		return nil
	case err != nil:
		return err
	}
	a.read++
	c.Source = &events.Source{Key: found.Key, Sha256: found.SHA256, Bytes: found.Bytes, Width: int32(found.Width), Height: int32(found.Height), Format: found.Format}
	return nil
}

func (l *legacyImport) takeResults(ctx context.Context, job legacy.Job, c *commands.Adopt, a *adopted) error {
	keys, err := l.results(ctx, job)
	if err != nil {
		return err
	}
	for name, key := range keys {
		op, known := operations.Find(name)
		if !known {
			continue // Decide says so
		}
		prefix := blob.ProcessedPrefix + job.ID + "/"
		found, err := l.take(ctx, key, prefix, job.FileName, func(sha256 string) string { return name + "/" + sha256 + "." + op.Extension })
		switch {
		case errors.Is(err, blob.ErrNotFound):
			c.Results[name], c.Gone[name] = &events.Artifact{Key: prefix + name + "/" + gone, Format: op.Format}, true
			a.gone++
			continue
		case err != nil:
			return err
		}
		a.read++
		c.Results[name] = &events.Artifact{Key: found.Key, Sha256: found.SHA256, Bytes: found.Bytes, Width: int32(found.Width), Height: int32(found.Height),
			Format: cmp.Or(found.Format, op.Format)}
	}
	return nil
}

// take reads an object; blob.ErrNotFound also where nobody knows its key.
func (l *legacyImport) take(ctx context.Context, key, prefix, fileName string, named func(sha256 string) string) (legacy.Object, error) {
	if key == "" {
		return legacy.Object{}, blob.ErrNotFound
	}
	return l.objects.Take(ctx, key, prefix, fileName, named)
}
