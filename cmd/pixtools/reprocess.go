package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/projections"
)

// reprocess is what the reprocess command was told.
type reprocess struct {
	operation, where, run     string
	limit                     int
	promote, rollback, asJSON bool
	out                       io.Writer
}

func reprocessCommand() *cobra.Command {
	var r reprocess
	cmd := &cobra.Command{
		Use:   "reprocess",
		Short: "Make results of the past anew, with this program's engine and model; compare, replace, put back",
		Long: "Does an operation again over the jobs that the read model has ended, and reports how the results\n" +
			"differ in size and look. The new ones lie in the store beside the old ones, and no event names\n" +
			"them, until the run is promoted. A promotion writes an ArtifactReplaced event for each; so does a\n" +
			"rollback, after which the old results are shown again.\n\n" +
			"It works while no live work waits, and at REPROCESS_RATE at most. A run that was ended goes on\n" +
			"where it was, on any machine: --run. What it knows lies in the store, and is deleted with the\n" +
			"results after S3_RETENTION_DAYS.\n\n" +
			"--where has terms joined by and: model or engine, = or !=, and a value, in quotes if it has\n" +
			"spaces. A model is named by its SHA-256; '' stands for none. Without --where, all are meant.",
		Example: "  pixtools reprocess --operation denoise --where 'model != SHA256'\n" +
			"  pixtools reprocess --operation webp --where \"engine != 'libvips 8.18.7'\" --limit 100\n" +
			"  pixtools reprocess --run 01a20fa7-b5f0-776b-a89d-614cd6c1a123             go on; the report once more\n" +
			"  pixtools reprocess --run 01a20fa7-b5f0-776b-a89d-614cd6c1a123 --promote   or --rollback",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.out = cmd.OutOrStdout()
			return r.start(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&r.operation, "operation", "", "the operation to do again, for instance denoise")
	flags.StringVar(&r.where, "where", "", "of results that this or that made only")
	flags.IntVar(&r.limit, "limit", 0, "of so many results at most; 0: no limit")
	flags.StringVar(&r.run, "run", "", "the run to go on with, to promote or to roll back")
	flags.BoolVar(&r.promote, "promote", false, "put the new results in the place of the old ones")
	flags.BoolVar(&r.rollback, "rollback", false, "put the old results back")
	flags.BoolVar(&r.asJSON, "json", false, "print JSON objects, one a line: result or replaced, and in the last report")
	cmd.MarkFlagsOneRequired("operation", "run")
	for _, other := range []string{"operation", "where", "limit"} {
		cmd.MarkFlagsMutuallyExclusive("run", other)
	}
	for _, done := range []string{"promote", "rollback"} {
		cmd.MarkFlagsMutuallyExclusive("operation", done) // what nobody has looked at is not promoted
	}
	cmd.MarkFlagsMutuallyExclusive("promote", "rollback")
	return cmd
}

// checkOperation refuses an operation that there is not.
func checkOperation(name string) error {
	if _, known := operations.Find(name); !known {
		return fmt.Errorf("--operation is %q: there are %s", name, strings.Join(operations.Names(), ", "))
	}
	return nil
}

func (r reprocess) start(ctx context.Context) error {
	if r.run == "" {
		if err := checkOperation(r.operation); err != nil {
			return err
		}
	}
	if _, err := commands.ParseWhere(r.where); err != nil {
		return fmt.Errorf("--where is %q: %w", r.where, err)
	}
	if r.limit < 0 {
		return fmt.Errorf("--limit is %d: use 0 for no limit, or more", r.limit)
	}
	writes := r.promote || r.rollback
	p := parts{}
	if _, err := p.reach(ctx, embedded.Needs{Kafka: writes, Postgres: true, S3: true}); err != nil {
		return err
	}
	defer p.close()
	pool, err := projections.Open(p.cfg.Read, projections.Schema)
	if err != nil {
		return err
	}
	defer pool.Close()
	again, done, err := p.again(ctx)
	if err != nil {
		return err
	}
	defer done()
	m := newGauge(os.Stderr)
	m.counts = "results"
	defer m.finish()
	reader := projections.NewReader(p.cfg.Read, pool, [16]byte{}, p.log)
	queue := &turns{reader: reader, cfg: p.cfg.Reprocess, gauge: m, pace: rate.NewLimiter(rate.Limit(p.cfg.Reprocess.Rate), 1)}
	work := processors.Reprocess{Again: again, Turn: queue.wait, State: func(ctx context.Context, tenant, id string) (*events.Job, error) {
		job, err := reader.Job(ctx, tenant, id)
		if errors.Is(err, projections.ErrNotFound) {
			return nil, nil
		}
		return job, err
	}}
	run, err := r.find(ctx, work, reader, m)
	if err != nil {
		return err
	}
	lines := json.NewEncoder(r.out)
	if writes {
		return r.replace(ctx, &p, work, run, m, lines)
	}
	return r.work(ctx, work, run, m, lines)
}

// find is the run to go on with, or a new one.
func (r reprocess) find(ctx context.Context, work processors.Reprocess, reader *projections.Reader, m *gauge) (processors.Run, error) {
	if r.run != "" {
		return work.Find(ctx, r.run)
	}
	run, err := work.Plan(ctx, r.operation, r.where, r.limit, func(each func(*events.Job) error) error {
		seen := int64(0)
		m.counts = "jobs"
		defer func() { m.counts = "results" }()
		return reader.EachEnded(ctx, func(job *events.Job) error {
			seen++
			m.tell(projections.Progress{Phase: "looking for results", Done: seen}) // nobody knows of how many
			return each(job)
		})
	})
	m.finish()
	if err == nil {
		fmt.Fprintf(os.Stderr, "run %s: %d results of %s; to go on with it, should it be ended: pixtools reprocess --run %s\n", run.ID, run.Items, run.Operation, run.ID)
	}
	return run, err
}

// report is what a run came to.
type report struct {
	processors.Run
	Fates map[processors.Fate]int64 `json:"fates"`
	// Reasons are those of what was skipped or failed.
	Reasons map[string]int64 `json:"reasons,omitempty"`
	// BytesBefore and BytesAfter are of the results that were made and are other ones.
	BytesBefore int64 `json:"bytes_before"`
	BytesAfter  int64 `json:"bytes_after"`
	// Alike counts those of which every pixel is equal; the others' likeness is from
	// LeastPSNR on, MeanPSNR in the middle, in decibels.
	Alike     int64    `json:"every_pixel_equal"`
	LeastPSNR *float64 `json:"least_psnr_db,omitempty"`
	MeanPSNR  *float64 `json:"mean_psnr_db,omitempty"`

	least []processors.Remade
	sum   float64
}

// shownLeast is how many of the least alike results are printed.
const shownLeast = 5

func (o *report) add(m processors.Remade) {
	o.Fates[m.Fate]++
	if m.Why != "" {
		o.Reasons[m.Why]++
	}
	if m.Fate != processors.FateMade {
		return
	}
	o.BytesBefore += m.Before.Bytes
	o.BytesAfter += m.After.Bytes
	if m.PSNR == nil {
		o.Alike++
		return
	}
	o.sum += *m.PSNR
	mean := o.sum / float64(o.Fates[processors.FateMade]-o.Alike)
	o.MeanPSNR = &mean
	o.least = append(o.least, m)
	slices.SortStableFunc(o.least, func(a, b processors.Remade) int {
		if *a.PSNR < *b.PSNR {
			return -1
		}
		return 1
	})
	o.least = o.least[:min(len(o.least), shownLeast)]
	o.LeastPSNR = o.least[0].PSNR
}

// work makes what is not made yet, and reports.
func (r reprocess) work(ctx context.Context, work processors.Reprocess, run processors.Run, m *gauge, lines *json.Encoder) error {
	o := &report{Run: run, Fates: map[processors.Fate]int64{}, Reasons: map[string]int64{}}
	done := int64(0)
	err := work.Work(ctx, run, func(made processors.Remade) error {
		done++
		m.tell(projections.Progress{Phase: "making results anew", Done: done, Total: int64(run.Items)})
		o.add(made)
		if r.asJSON {
			return lines.Encode(map[string]processors.Remade{"result": made})
		}
		return nil
	})
	m.finish()
	if err != nil {
		return err
	}
	if r.asJSON {
		return lines.Encode(map[string]*report{"report": o})
	}
	fmt.Fprintf(r.out, "run %s: %s of %d results; skipped or failed: %s\n", run.ID, run.Operation, run.Items, counts(o.Reasons))
	fmt.Fprintf(r.out, "  %s\n", counts(o.Fates))
	if o.Fates[processors.FateMade] == 0 {
		fmt.Fprintln(r.out, "  there is nothing to promote")
		return nil
	}
	fmt.Fprintf(r.out, "  bytes: %d before, %d after\n", o.BytesBefore, o.BytesAfter)
	if o.LeastPSNR != nil {
		fmt.Fprintf(r.out, "  alike by %.2f dB at least, %.2f dB on average; every pixel equal: %d\n", *o.LeastPSNR, *o.MeanPSNR, o.Alike)
	} else {
		fmt.Fprintf(r.out, "  every pixel equal: %d\n", o.Alike)
	}
	for _, l := range o.least {
		fmt.Fprintf(r.out, "    %8.2f dB  %d -> %d bytes  job %s\n", *l.PSNR, l.Before.Bytes, l.After.Bytes, l.JobID)
	}
	fmt.Fprintf(r.out, "  put them in place: pixtools reprocess --run %[1]s --promote; take that back: pixtools reprocess --run %[1]s --rollback\n", run.ID)
	return nil
}

// replace promotes or rolls back.
func (r reprocess) replace(ctx context.Context, p *parts, work processors.Reprocess, run processors.Run, m *gauge, lines *json.Encoder) error {
	client, err := kafka.NewProducerClient(p.cfg.Kafka, p.log)
	if err != nil {
		return err
	}
	defer client.Close()
	publisher := kafka.NewPublisher(client, p.cfg.Kafka.DeliveryTimeout)
	defer func() { _ = publisher.Close() }()
	write := func(ctx context.Context, e events.Event) error {
		record, err := e.Record()
		if err != nil {
			return err
		}
		return publisher.Append(ctx, record)
	}
	replaced, seen, reasons := int64(0), int64(0), map[string]int64{}
	phase := "putting results in place"
	if r.rollback {
		phase = "putting results back"
	}
	err = work.Replace(ctx, run, r.rollback, write, func(c processors.Replaced) error {
		seen++
		m.tell(projections.Progress{Phase: phase, Done: seen, Total: max(int64(run.Items), seen)})
		if c.Done {
			replaced++
		} else {
			reasons[c.Why]++
		}
		if r.asJSON {
			return lines.Encode(map[string]processors.Replaced{"replaced": c})
		}
		return nil
	})
	m.finish()
	if err != nil {
		return fmt.Errorf("%w (%d results were replaced; the same command goes on)", err, replaced)
	}
	if r.asJSON {
		return lines.Encode(map[string]any{"report": map[string]any{"run": run.ID, "replaced": replaced, "left": reasons}})
	}
	_, err = fmt.Fprintf(r.out, "run %s: %d results replaced; left: %s\n", run.ID, replaced, counts(reasons))
	return err
}

// turns keeps reprocessing behind live work, and below its rate.
type turns struct {
	reader *projections.Reader
	cfg    processors.ReprocessConfig
	gauge  *gauge
	pace   *rate.Limiter
}

func (t *turns) wait(ctx context.Context) error {
	for {
		queues, err := t.reader.Queues(ctx)
		if err != nil {
			return fmt.Errorf("ask what live work waits: %w", err)
		}
		waiting := map[string]int64{}
		for operation, q := range queues {
			if q.Waiting > 0 {
				waiting[operation] = q.Waiting
			}
		}
		if len(waiting) == 0 {
			break
		}
		t.gauge.tell(projections.Progress{Phase: "waiting, for live work waits: " + counts(waiting)})
		if err := pause(ctx, t.cfg.LookInterval); err != nil {
			return err
		}
	}
	return t.pace.Wait(ctx)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
