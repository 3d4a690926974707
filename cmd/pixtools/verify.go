package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/audit"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/eventlog"
	"github.com/pixtools/pixtools/processors"
	"github.com/pixtools/pixtools/projections"
)

// verify is what the verify command was told.
type verify struct {
	until, artifacts, seed string
	grace                  time.Duration
	readModel, asJSON      bool
	reexecute              int
	out                    io.Writer
}

// mostReexecuted bounds --reexecute: they are kept in memory, with their jobs.
const mostReexecuted = 100_000

// letterTakes is how long the saga may take to tell of an unreadable record, with a restart.
const letterTakes = time.Minute

// couldNotCheck is verify's exit status where something was not there to be checked.
const couldNotCheck = 2

func verifyCommand() *cobra.Command {
	var v verify
	failed := func(err error) error {
		var told statusError
		if err == nil || errors.As(err, &told) {
			return err
		}
		return statusError{err, couldNotCheck}
	}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that every job has its end, every object its bytes, and the read model what the log says",
		Long: "Reads the log from its beginning to the end that it has now, and checks\n" +
			"  - that every job has its end, and its events are whole: causes, revisions, identities;\n" +
			"  - that sources and results are in the store, with the SHA-256 that the log tells;\n" +
			"  - that the live read model is what a rebuild of it would be;\n" +
			"  - with --reexecute, that operations done again give the same bytes, or with another engine or\n" +
			"    model, pictures that are as like as REEXECUTE_MIN_PSNR asks.\n" +
			"Nothing is written to the log. A rebuild takes a schema of its own for a while.\n\n" +
			"Findings go to standard output as they come, then a summary; progress goes to standard error.\n" +
			"With --json each line is an object with one member: finding, open, or, in the last, summary.\n" +
			"The exit status is 0 where nothing was found, 1 where something was, 2 where something could\n" +
			"not be checked.",
		Example: "  pixtools verify\n" +
			"  pixtools verify --until 2026-11-24T12:00:00Z --artifacts=none\n" +
			"  pixtools verify --artifacts=none --read-model=false --reexecute 100\n" +
			"  pixtools verify --artifacts=sample:1000 --json | jq -c 'select(.finding).finding'",
		Args: func(cmd *cobra.Command, args []string) error { return failed(cobra.NoArgs(cmd, args)) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			v.out = cmd.OutOrStdout()
			return failed(v.run(cmd.Context()))
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return failed(err) })
	flags := cmd.Flags()
	flags.StringVar(&v.until, "until", "", "check the log as it was at a time (2026-11-24T12:00:00Z), a while ago (2h), or at a position; the read model is then left out")
	flags.DurationVar(&v.grace, "grace", 0, "how old a job without an end must be to be a finding; 0: what JOB_DEADLINE allows")
	flags.StringVar(&v.artifacts, "artifacts", "all", "which stored objects to read: all, none, or sample:N, always the same N of a log")
	flags.IntVar(&v.reexecute, "reexecute", 0, "do so many completed operations again, always the same of a log, and compare the results")
	flags.StringVar(&v.seed, "seed", "", "any text: with another, others are in a sample")
	flags.BoolVar(&v.readModel, "read-model", true, "compare the live read model with a rebuilt one")
	flags.BoolVar(&v.asJSON, "json", false, "print JSON objects, one a line")
	return cmd
}

// summary is what was checked, and how much of what was found.
type summary struct {
	LogID    string               `json:"log"`
	Until    time.Time            `json:"until"`
	Findings int64                `json:"findings"`
	Kinds    map[audit.Kind]int64 `json:"kinds"`
	audit.Tally
	// ReadModel is absent where it was not compared.
	ReadModel *readModelSummary `json:"read_model,omitempty"`
	// Reexecuted counts by verdict, Skipped the skipped ones by reason.
	Reexecuted map[processors.Verdict]int64 `json:"reexecuted,omitempty"`
	Skipped    map[string]int64             `json:"skipped,omitempty"`
}

type readModelSummary struct {
	Same    int64 `json:"same"`
	Changed int64 `json:"changed"`
	Added   int64 `json:"only_rebuilt"`
	Missing int64 `json:"only_live"`
	// Usage counts rows of usage that differ.
	Usage  int64 `json:"usage"`
	Behind int64 `json:"behind"`
	// Unknown counts jobs of which the log has what this version does not know: they were not compared.
	Unknown int64 `json:"unknown"`
}

func (v verify) run(ctx context.Context) error {
	sample, err := v.objects()
	if err != nil {
		return err
	}
	if v.grace < 0 {
		return fmt.Errorf("--grace is %s: use 0 for what JOB_DEADLINE allows, or more", v.grace)
	}
	if v.reexecute < 0 || v.reexecute > mostReexecuted {
		return fmt.Errorf("--reexecute is %d: it must be from 0 to %d operations", v.reexecute, mostReexecuted)
	}
	v.readModel = v.readModel && v.until == ""
	withObjects := v.artifacts != "none"
	p := parts{}
	if err := p.open(ctx, embedded.Needs{Kafka: true, Postgres: v.readModel, S3: withObjects || v.reexecute > 0}); err != nil {
		return err
	}
	defer p.close()
	now := time.Now()
	a := audit.Audit{Config: p.cfg.Verify, Until: now, Now: now, Grace: v.grace, SampleObjects: sample, Seed: v.seed,
		Retention: p.cfg.retention().Results, SourceRetention: p.cfg.retention().Sources}
	if a.Grace == 0 {
		// The saga looks every so often at what is over its deadline.
		a.Grace = p.cfg.Saga.JobDeadline + 2*p.cfg.Saga.TickInterval
	}
	if withObjects {
		if a.Store, err = blob.New(ctx, p.cfg.Blob); err != nil {
			return err
		}
	}
	t, err := p.brokers.Topic(ctx, events.Topic)
	if err != nil {
		return err
	}
	a.LogID, a.Partitions = t.ID, len(t.Ranges)
	meant := t.Ranges
	if v.until != "" {
		if meant, a.Until, err = p.brokers.Until(ctx, t, v.until, now); err != nil {
			return err
		}
	}
	s := &summary{LogID: fmt.Sprintf("%x", t.ID), Until: a.Until, Kinds: map[audit.Kind]int64{}}
	m := newGauge(os.Stderr)
	defer m.finish()
	tell := teller{s, v.out, m, v.asJSON, json.NewEncoder(v.out)}
	a.Found, a.Still = tell.found, tell.still
	done := audit.NewSample[audit.Completion](v.reexecute, v.seed)
	a.Completed = func(c audit.Completion) {
		if !c.Event.Imported() { // which another program made
			done.Offer(c.Event.ID, c)
		}
	}
	if err := v.log(ctx, &p, t.Ranges, meant, &a, tell); err != nil {
		return err
	}
	if v.reexecute > 0 {
		if err := v.again(ctx, &p, done.All(), tell); err != nil {
			return err
		}
	}
	if v.readModel {
		if err := v.compare(ctx, &p, tell); err != nil {
			return err
		}
	}
	if err := tell.end(); err != nil {
		return err
	}
	if s.Findings > 0 {
		return statusError{fmt.Errorf("%d findings", s.Findings), 1}
	}
	return nil
}

// objects reads --artifacts.
func (v verify) objects() (sample int, err error) {
	if v.artifacts == "all" || v.artifacts == "none" {
		return 0, nil
	}
	if number, is := strings.CutPrefix(v.artifacts, "sample:"); is {
		if sample, err = strconv.Atoi(number); err == nil && sample > 0 {
			return sample, nil
		}
	}
	return 0, fmt.Errorf("--artifacts is %q: use all, none, or sample:N with N of 1 or more", v.artifacts)
}

// log has what is meant of the log audited.
func (v verify) log(ctx context.Context, p *parts, whole, meant map[int32]eventlog.Range, a *audit.Audit, tell teller) error {
	for partition, r := range whole {
		if r.From > 0 {
			return fmt.Errorf("the log's beginning is gone (partition %d begins at %d), and with it what the rest stands on: import an export of it (pixtools events import), and set the topic's retention to unlimited", partition, r.From)
		}
	}
	letters, err := v.letters(ctx, p)
	if err != nil {
		return err
	}
	a.Excused = func(r *kgo.Record) bool {
		age := a.Now.Sub(r.Timestamp)
		return letters[r.Partition][r.Offset] || age > p.cfg.DeadLetters.Retention || age < letterTakes
	}
	a.Progress = func(done, total int64) {
		tell.gauge.counts = "objects"
		tell.gauge.tell(projections.Progress{Phase: "reading objects", Done: done, Total: total})
	}
	tell.Tally, err = a.Log(ctx, func(what string, all bool, each func(*kgo.Record) error) error {
		ranges := meant
		if all {
			ranges = whole
		}
		tell.gauge.counts = "records"
		count := eventlog.Counter(ranges, func(done, total int64) {
			tell.gauge.tell(projections.Progress{Phase: what, Done: done, Total: total})
		})
		return p.brokers.Read(ctx, events.Topic, ranges, func(r *kgo.Record) error {
			count(r)
			return each(r)
		})
	})
	tell.gauge.finish()
	return err
}

// letters are the places of the records that a dead letter is about.
func (v verify) letters(ctx context.Context, p *parts) (map[int32]map[int64]bool, error) {
	places := map[int32]map[int64]bool{}
	t, err := p.brokers.Topic(ctx, events.DeadLetterTopic)
	if errors.Is(err, eventlog.ErrNoTopic) {
		return places, nil
	}
	if err != nil {
		return nil, err
	}
	return places, p.brokers.Read(ctx, t.Name, t.Ranges, func(r *kgo.Record) error {
		e, err := events.DecodeLetter(r)
		if err != nil {
			return nil // nothing that tells of a record
		}
		if m, ok := e.Message.(*events.DeadLettered); ok && m.GetOperation() == "" && m.GetOrigin().GetTopic() == events.Topic {
			partition := m.GetOrigin().GetPartition()
			if places[partition] == nil {
				places[partition] = map[int64]bool{}
			}
			places[partition][m.GetOrigin().GetOffset()] = true
		}
		return nil
	})
}

// again does operations once more.
func (v verify) again(ctx context.Context, p *parts, all []audit.Completion, tell teller) error {
	again, done, err := p.again(ctx)
	if err != nil {
		return err
	}
	defer done()
	tell.Reexecuted, tell.Skipped = map[processors.Verdict]int64{}, map[string]int64{}
	tell.gauge.counts = "operations"
	for i, c := range all {
		tell.gauge.tell(projections.Progress{Phase: "doing again", Done: int64(i), Total: int64(len(all))})
		verdict, why, err := again.Check(ctx, c.Job, c.Done, c.Event.Time)
		if err != nil {
			return fmt.Errorf("do %s of job %s again: %w", c.Done.GetOperation(), c.Event.JobID, err)
		}
		tell.Reexecuted[verdict]++
		switch verdict {
		case processors.Skipped:
			tell.Skipped[why]++
		case processors.Different:
			if err := tell.found(audit.Find(audit.Reexecuted, c.Event.JobID, c.Done.GetOperation(), &c.Place, "%s", why)); err != nil {
				return err
			}
		}
	}
	tell.gauge.finish()
	return nil
}

// compare rebuilds the read model beside the live one, and removes it again.
func (v verify) compare(ctx context.Context, p *parts, tell teller) error {
	replayer, err := p.replayer(ctx)
	if err != nil {
		return err
	}
	defer replayer.Close()
	end, err := replayer.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	tell.gauge.counts = "records"
	show := func(c projections.Change) error {
		message := map[string]string{projections.Added: "the live read model lacks the job", projections.Missing: "the live read model has a job that the log does not have",
			projections.Changed: "the live row is not what the log makes of it:"}[c.Kind]
		if c.Usage != "" {
			message = "the usage of " + c.Usage + " is not what the log makes of it:"
		}
		for _, f := range c.Fields {
			message += fmt.Sprintf(" %s is %s, should be %s;", f.Field, short(f.Live), short(f.Other))
		}
		return tell.found(audit.Find(audit.ReadModel, c.JobID, "", nil, "%s", strings.TrimSuffix(message, ";")))
	}
	var d projections.Difference
	missing := false
	err = replayer.Aside(ctx, tell.gauge.tell, func(built projections.Rebuilt) (err error) {
		d, err = replayer.Diff(ctx, built.Name, tell.gauge.tell, show)
		tell.gauge.finish()
		if missing = errors.Is(err, projections.ErrNoSchema); missing {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	if missing {
		return tell.found(audit.Find(audit.ReadModel, "", "", nil, "there is no live read model"))
	}
	tell.ReadModel = &readModelSummary{Same: d.Same, Changed: d.Changed, Added: d.Added, Missing: d.Missing, Usage: d.Usage, Behind: d.Behind, Unknown: d.Unknown}
	if d.Behind > 0 {
		f := audit.Find(audit.ReadModel, "", "", nil, "the live read model is %d records behind the log", d.Behind)
		f.Next = "see that a process with the role projector runs, and verify again"
		return tell.found(f)
	}
	return nil
}

// teller prints what is found, as it is.
type teller struct {
	*summary
	out    io.Writer
	gauge  *gauge
	asJSON bool
	lines  *json.Encoder
}

func (t teller) found(f audit.Finding) error {
	t.Findings++
	t.Kinds[f.Kind]++
	if t.asJSON {
		return t.lines.Encode(map[string]audit.Finding{"finding": f})
	}
	t.gauge.pause()
	text := string(f.Kind)
	if f.JobID != "" {
		text += "  job " + f.JobID
	}
	if f.Place != nil {
		text += fmt.Sprintf("  %d:%d (%s)", f.Partition, f.Offset, f.Position)
	}
	_, err := fmt.Fprintf(t.out, "%s\n    %s\n    -> %s\n", text, f.Message, f.Next)
	return err
}

func (t teller) still(o audit.Open) error {
	if t.asJSON {
		return t.lines.Encode(map[string]audit.Open{"open": o})
	}
	t.gauge.pause()
	_, err := fmt.Fprintf(t.out, "open  job %s  %d:%d\n    revision %d since %s waits for %s\n", o.JobID, o.Partition, o.Offset, o.Revision,
		o.Since.Format(time.RFC3339), dash(strings.Join(o.Waits, ", ")))
	return err
}

func (t teller) end() error {
	if t.asJSON {
		return t.lines.Encode(map[string]*summary{"summary": t.summary})
	}
	s := t.summary
	fmt.Fprintf(t.out, "the log until %s: %d jobs, %d events, %d repeats, %d of types unknown here, %d unreadable\n", s.Until.Format(time.RFC3339),
		s.Jobs, s.Events, s.Repeats, s.Unknown, s.Broken)
	fmt.Fprintf(t.out, "finals: %s\n", counts(s.Finals))
	fmt.Fprintf(t.out, "open and not yet overdue: %d\n", s.Open)
	o := s.Objects
	fmt.Fprintf(t.out, "objects: %d intact (%s), %d expired, %d missing, %d damaged, %d not looked at\n", o.Intact, mebibytes(uint64(o.Bytes)), o.Expired, o.Missing, o.Damaged, o.Left)
	if r := s.ReadModel; r != nil {
		fmt.Fprintf(t.out, "read model: %d jobs the same, %d changed, %d lacking, %d too many, %d of a newer version and not compared; %d rows of usage differ\n", r.Same, r.Changed, r.Added, r.Missing, r.Unknown, r.Usage)
	} else {
		fmt.Fprintln(t.out, "read model: not compared")
	}
	if s.Reexecuted != nil {
		fmt.Fprintf(t.out, "done again: %s; skipped: %s\n", counts(s.Reexecuted), counts(s.Skipped))
	}
	_, err := fmt.Fprintf(t.out, "findings: %s\n", counts(s.Kinds))
	return err
}

// counts prints numbers by name.
func counts[K ~string](of map[K]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		parts = append(parts, fmt.Sprintf("%d %s", of[name], name))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}
