package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/projections"
)

// replay is what the replay command was told.
type replay struct {
	diff, promote, rollback, list bool
	schema, until, drop           string
	show                          int
	out                           io.Writer
}

func replayCommand() *cobra.Command {
	var r replay
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Rebuild the read model from the log, beside the live one; compare, swap, swap back",
		Long: "Reads the log from its beginning and makes a read model of it in a schema of its own. The\n" +
			"live one goes on meanwhile, and queries never stop. Nothing is written to the log.\n" +
			"What is built stays until --drop, but for that of --diff alone.",
		Example: "  pixtools replay --diff              rebuild, print what is not as in the live read model, and keep nothing\n" +
			"  pixtools replay --promote           rebuild, and put it in the live one's place\n" +
			"  pixtools replay --schema pixtools_read_1 --promote   the one that was rebuilt before\n" +
			"  pixtools replay --rollback          put back what was live before\n" +
			"  pixtools replay --until 2026-11-24T12:00:00Z         the state of that time",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.out = cmd.OutOrStdout()
			return r.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&r.diff, "diff", false, "print the jobs, and the rows of usage, that are not the same in the live read model; the exit status is 1 where there are any")
	flags.BoolVar(&r.promote, "promote", false, "make it the live read model, in one transaction")
	flags.BoolVar(&r.rollback, "rollback", false, "make the read model live again that was so before")
	flags.StringVar(&r.until, "until", "", "build a past state: up to a time (2026-11-24T12:00:00Z), since a while ago (2h), or up to a position")
	flags.StringVar(&r.schema, "schema", "", "take this read model, built before, rather than build one")
	flags.IntVar(&r.show, "show", 20, "how many of them --diff prints at most")
	flags.BoolVar(&r.list, "list", false, "list the read models")
	flags.StringVar(&r.drop, "drop", "", "remove this read model")
	for _, alone := range []string{"rollback", "list", "drop"} {
		for _, other := range []string{"diff", "promote", "until", "schema", "rollback", "list", "drop"} {
			if alone != other {
				cmd.MarkFlagsMutuallyExclusive(alone, other)
			}
		}
	}
	cmd.MarkFlagsMutuallyExclusive("until", "promote") // what is past is never live
	cmd.MarkFlagsMutuallyExclusive("until", "schema")
	return cmd
}

// replayHeapGrowthPercent is Go's GOGC for a rebuild: it keeps some hundred megabytes at work,
// and collecting half as often would save little of its time.
const replayHeapGrowthPercent = 200

func (r replay) run(ctx context.Context) error {
	if r.show < 0 {
		return fmt.Errorf("--show is %d: it must be 0 or more jobs", r.show)
	}
	return withReplayer(ctx, func(replayer *projections.Replayer) error {
		if r.list {
			return r.printSchemas(ctx, replayer)
		}
		end, err := replayer.Begin(ctx)
		if err != nil {
			return err
		}
		defer end()
		if r.drop != "" {
			return replayer.Drop(ctx, r.drop)
		}
		return r.work(ctx, replayer)
	})
}

// withReplayer finds the log and the database, and does something with a replayer of them.
func withReplayer(ctx context.Context, do func(*projections.Replayer) error) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(replayHeapGrowthPercent)
	}
	p := parts{fresh: embedded.Needs{Postgres: true}}
	if _, err := p.reach(ctx, embedded.Needs{Kafka: true, Postgres: true}); err != nil {
		return err
	}
	defer p.close()
	replayer, err := p.replayer(ctx)
	if err != nil {
		return err
	}
	defer replayer.Close()
	return do(replayer)
}

// replayer makes one for the parts.
func (p *parts) replayer(ctx context.Context) (*projections.Replayer, error) {
	opts, err := p.cfg.Kafka.Options()
	if err != nil {
		return nil, err
	}
	logID, err := logIDOf(ctx, opts)
	if err != nil {
		return nil, err
	}
	return projections.NewReplayer(p.cfg.Replay, p.cfg.Read, logID, p.log, opts...)
}

// logIDOf asks which log it is, within a time: a broker that is not there has to be told of.
func logIDOf(ctx context.Context, opts []kgo.Opt) ([16]byte, error) {
	const patience = 15 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return [16]byte{}, err
	}
	defer client.Close()
	id, err := kafka.TopicID(ctx, client, events.Topic)
	if refused := kafka.Refused(err); refused != nil {
		return id, refused
	}
	if err != nil {
		return id, fmt.Errorf("find the log: %w", err)
	}
	return id, nil
}

func (r replay) work(ctx context.Context, replayer *projections.Replayer) error {
	m := newGauge(os.Stderr)
	defer m.finish()
	if r.rollback {
		swapped, err := replayer.Rollback(ctx, m.tell)
		m.finish()
		return r.printSwap(swapped, err, "what was live before")
	}
	name := r.schema
	if name == "" && r.diff && !r.promote && r.until == "" { // what is made for a comparison alone is not kept
		return r.compareAside(ctx, replayer, m)
	}
	if name == "" {
		until, err := r.bound(ctx, replayer)
		if err != nil {
			return err
		}
		built, err := replayer.Build(ctx, until, m.tell)
		m.finish()
		if err != nil {
			return err
		}
		name = built.Name
		r.printBuilt(built, until)
	}
	differ := false
	if r.diff {
		var err error
		if differ, err = r.compare(ctx, replayer, name, m); err != nil {
			return err
		}
	}
	if r.promote {
		swapped, err := replayer.Promote(ctx, name, m.tell)
		m.finish()
		return r.printSwap(swapped, err, name)
	}
	if differ {
		return errDiffer
	}
	return nil
}

var errDiffer = errors.New("the read models are not the same")

// compareAside compares with a read model that it removes again.
func (r replay) compareAside(ctx context.Context, replayer *projections.Replayer, m *gauge) error {
	differ, name := false, ""
	err := replayer.Aside(ctx, m.tell, func(built projections.Rebuilt) (err error) {
		m.finish()
		name = built.Name
		r.printBuilt(built, projections.Until{})
		differ, err = r.compare(ctx, replayer, name, m)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(r.out, "removed %s; to keep one: pixtools replay, and then pixtools replay --schema NAME --diff\n", name)
	if differ {
		return errDiffer
	}
	return nil
}

// bound reads --until.
func (r replay) bound(ctx context.Context, replayer *projections.Replayer) (projections.Until, error) {
	if r.until == "" {
		return projections.Until{}, nil
	}
	if at, err := when("until", r.until, time.Now()); err == nil {
		return projections.Until{Text: at.Format(time.RFC3339Nano), Time: *at}, nil
	}
	position, err := events.ParsePosition(r.until)
	if err != nil {
		return projections.Until{}, fmt.Errorf("--until is %q: use a time such as 2026-11-24T12:00:00Z, how long ago, such as 2h, or a position, such as a job's history shows", r.until)
	}
	until, err := replayer.At(ctx, position)
	if err != nil {
		return until, fmt.Errorf("--until is %q: %w", r.until, err)
	}
	return until, nil
}

func (r replay) printBuilt(b projections.Rebuilt, until projections.Until) {
	fmt.Fprintf(r.out, "built %s: %d jobs of %d records in %s, %.0f records/s\n", b.Name, b.Jobs, b.Records, b.Took.Round(time.Millisecond), float64(b.Records)/b.Took.Seconds())
	if b.Unreadable > 0 {
		fmt.Fprintf(r.out, "  %d records are no events and were passed over, as the live read model does\n", b.Unreadable)
	}
	switch {
	case until != (projections.Until{}):
		fmt.Fprintf(r.out, "  it shows the state until %s (%s) and cannot be promoted; remove it: pixtools replay --drop %s\n", until.Text, until.Time.Format(time.RFC3339Nano), b.Name)
	case !r.promote && !r.diff:
		fmt.Fprintf(r.out, "  compare: pixtools replay --schema %[1]s --diff; make it live: pixtools replay --schema %[1]s --promote\n", b.Name)
	}
}

func (r replay) compare(ctx context.Context, replayer *projections.Replayer, name string, m *gauge) (differ bool, err error) {
	p := changePrinter{out: r.out, most: r.show, before: m.finish}
	d, err := replayer.Diff(ctx, name, m.tell, p.show)
	m.finish()
	if errors.Is(err, projections.ErrNoSchema) {
		return false, fmt.Errorf("cannot compare: %w", err)
	}
	if err != nil {
		return false, err
	}
	p.rest()
	fmt.Fprintf(r.out, "compared with the live read model: %d the same, %d changed (~), %d added (+), %d missing (-)\n", d.Same, d.Changed, d.Added, d.Missing)
	if d.Usage > 0 {
		fmt.Fprintf(r.out, "  %d rows of usage differ\n", d.Usage)
	}
	printBehind(r.out, d)
	if d.WithoutPlaces {
		fmt.Fprintln(r.out, "  the live read model is of another log: the places of events were not compared")
	}
	return d.Changed+d.Added+d.Missing+d.Usage > 0, nil
}

func printBehind(out io.Writer, d projections.Difference) {
	if d.Unknown > 0 {
		fmt.Fprintf(out, "  %d more have events of a newer version, and were not compared\n", d.Unknown)
	}
	if d.Behind > 0 {
		fmt.Fprintf(out, "  the live read model is %d records behind, so some of that is what it still lacks: is a projector at work?\n", d.Behind)
	}
}

// changePrinter prints what is not the same, and counts what is too much to print.
type changePrinter struct {
	out         io.Writer
	most, shown int
	before      func()
}

func (p *changePrinter) show(c projections.Change) error {
	if p.shown++; p.shown > p.most {
		return nil
	}
	p.before()
	what := c.JobID
	if c.Usage != "" {
		what = "usage " + c.Usage
	}
	fmt.Fprintf(p.out, "%s %s\n", map[string]string{projections.Added: "+", projections.Missing: "-", projections.Changed: "~"}[c.Kind], what)
	for _, f := range c.Fields {
		fmt.Fprintf(p.out, "    %s: %s -> %s\n", f.Field, short(f.Live), short(f.Other))
	}
	return nil
}

func (p *changePrinter) rest() {
	if p.shown > p.most {
		fmt.Fprintf(p.out, "... and %d more\n", p.shown-p.most)
	}
}

// short keeps a value on a line.
func short(value string) string {
	const most = 100
	if runes := []rune(value); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return value
}

func (r replay) printSwap(s projections.Swapped, err error, name string) error {
	if err != nil {
		return err
	}
	fmt.Fprintf(r.out, "%s is live now (%s)\n", name, projections.Schema)
	if s.Replaced {
		fmt.Fprintf(r.out, "  the live projection stood still for %s; what was live until now is %s: pixtools replay --rollback\n", s.Held.Round(time.Millisecond), projections.Previous)
	}
	return nil
}

func (r replay) printSchemas(ctx context.Context, replayer *projections.Replayer) error {
	all, err := replayer.Schemas(ctx)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tSTATE\tSINCE\tSIZE\tUNTIL")
	for _, s := range all {
		state, since := s.State, dash("")
		switch {
		case s.Name == projections.Schema:
			state = "live"
		case s.CutOff():
			state = "cut off"
		}
		if !s.Since.IsZero() {
			since = s.Since.Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", s.Name, dash(state), since, mebibytes(uint64(s.Bytes)), dash(s.Until))
	}
	return table.Flush()
}

func mebibytes(n uint64) string { return fmt.Sprintf("%d MiB", n>>20) }

// gauge shows how far a command is: a bar on a terminal, else a line every few seconds.
type gauge struct {
	out      *os.File
	terminal bool
	// counts is what is counted.
	counts string
	now    projections.Progress
	// began is when this phase did, shown when and how far it was shown last.
	began, shown time.Time
	shownDone    int64
	bar          *progressbar.ProgressBar
}

const (
	linesEvery = 2 * time.Second
	barsEvery  = 200 * time.Millisecond
)

func newGauge(out *os.File) *gauge {
	return &gauge{out: out, terminal: isTerminal(out), counts: "records"}
}

func (m *gauge) tell(p projections.Progress) {
	if p.Phase != m.now.Phase {
		m.finish()
		m.began, m.shown, m.shownDone = time.Now(), time.Now(), p.Done
	}
	m.now = p
	every := linesEvery
	if m.terminal {
		every = barsEvery
	}
	if (p.Total == 0 && p.Done > 0 || p.Done < p.Total) && time.Since(m.shown) < every {
		return
	}
	m.show()
}

func (m *gauge) show() {
	since := time.Since(m.shown)
	rate, line := "", m.now.Phase
	if since > 0 && m.now.Done > m.shownDone {
		rate = fmt.Sprintf("%.0f/s", float64(m.now.Done-m.shownDone)/since.Seconds())
	}
	m.shown, m.shownDone = time.Now(), m.now.Done
	if m.terminal {
		m.showBar(strings.TrimSpace(rate + " " + m.left() + " " + mebibytes(memory())))
		return
	}
	if m.now.Total > 0 {
		line += fmt.Sprintf(": %5.1f%%, %d of %d %s", 100*float64(m.now.Done)/float64(m.now.Total), m.now.Done, m.now.Total, m.counts)
	}
	if m.now.Total == 0 && m.now.Done > 0 {
		line += fmt.Sprintf(": %d %s", m.now.Done, m.counts)
	}
	for _, part := range []string{rate, m.left(), mebibytes(memory())} {
		if part != "" {
			line += ", " + part
		}
	}
	fmt.Fprintln(m.out, line)
}

// left is how long this phase will take, if it goes on as it went.
func (m *gauge) left() string {
	if m.now.Done <= 0 || m.now.Done >= m.now.Total {
		return ""
	}
	left := time.Duration(float64(time.Since(m.began)) * float64(m.now.Total-m.now.Done) / float64(m.now.Done))
	return left.Round(time.Second).String() + " left"
}

func (m *gauge) showBar(words string) {
	if m.bar == nil {
		total := m.now.Total
		if total == 0 {
			total = -1 // it turns
		}
		m.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(m.out), progressbar.OptionShowCount(),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionClearOnFinish())
	}
	m.bar.Describe(m.now.Phase + " " + words)
	_ = m.bar.Set64(m.now.Done)
}

// pause clears the line for something to be printed.
func (m *gauge) pause() {
	if m.bar != nil {
		_ = m.bar.Clear()
	}
}

func (m *gauge) finish() {
	if m.bar != nil {
		_ = m.bar.Finish()
		m.bar = nil
	}
	m.now = projections.Progress{}
}

// memory is what this process holds of the system's.
func memory() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}
