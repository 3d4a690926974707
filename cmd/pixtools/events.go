package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/eventlog"
)

func eventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Read the log, export it, import it",
		Long: "The log is that of `pixtools serve` in the same environment: on KAFKA_BROKERS, or else the\n" +
			"embedded one below PIXTOOLS_DATA_DIR (./data). If a PixTools runs there, its broker is\n" +
			"asked, and nothing of it is disturbed; if none does, the embedded parts that are needed run\n" +
			"for the time of the command.",
	}
	cmd.AddCommand(eventsCat(), eventsTail(), eventsExport(), eventsImport())
	return cmd
}

// wanted are the flags that pick events.
type wanted struct {
	job, operation, since, until string
	types, from                  []string
	limit                        int
}

func (w *wanted) flags(cmd *cobra.Command, from string) {
	flags := cmd.Flags()
	flags.StringVar(&w.job, "job", "", "of this job; only its partition is read")
	flags.StringSliceVar(&w.types, "type", nil, "of these types, for instance JobFinalized, or a full name")
	flags.StringVar(&w.operation, "operation", "", "about this operation, for instance webp; a job's request is about all of its operations")
	flags.StringVar(&w.since, "since", "", "written at this time (2026-11-24T12:00:00Z) or so long ago (2h), or later")
	flags.StringSliceVar(&w.from, "from", []string{from}, "where to begin: start, end, a time, how long ago, a position as the API gives them, or\n"+
		"PARTITION:OFFSET; of places several can be named, and only their partitions are read")
	flags.IntVar(&w.limit, "limit", 0, "end after so many; 0: no limit")
}

func (w *wanted) query() (q eventlog.Query, err error) {
	now := time.Now()
	if w.job != "" {
		id, err := uuid.Parse(w.job)
		if err != nil || len(w.job) != 36 {
			return q, fmt.Errorf("--job is %q: a job's id is a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", w.job)
		}
		q.Job = id.String()
	}
	for _, name := range w.types {
		full, err := eventlog.ParseType(name)
		if err != nil {
			return q, err
		}
		q.Types = append(q.Types, full)
	}
	for flag, bound := range map[string]struct {
		text string
		at   *time.Time
	}{"since": {w.since, &q.Since}, "until": {w.until, &q.Until}} {
		at, err := when(flag, bound.text, now)
		if err != nil {
			return q, err
		}
		if at != nil {
			*bound.at = *at
		}
	}
	if w.limit < 0 {
		return q, fmt.Errorf("--limit is %d: use 0 for no limit, or more", w.limit)
	}
	if w.operation != "" {
		if err := checkOperation(w.operation); err != nil {
			return q, err
		}
	}
	q.Operation, q.Limit = w.operation, w.limit
	q.From, err = eventlog.ParseFrom(w.from, now)
	return q, err
}

const lineHelp = `
Each line is a JSON object: position (the API's token), partition, offset, written (the
record's own time), the CloudEvents attributes (id, type, full_type, source, subject, time, ...),
and the event as data. A record that is no event has fault, key and value_hex instead of data.
Committed records only. The exit status is 0 also where the reader goes away, as head does.`

func eventsCat() *cobra.Command {
	var w wanted
	cmd := &cobra.Command{
		Use:   "cat",
		Short: "Print events as JSON lines, up to the log's present end",
		Long: "Print events as JSON lines, up to the end that the log has now.\n" + lineHelp + `

Of one job, and of one partition, events come in the log's order. Partitions are merged by
written: always the earliest of the partitions' next records. For that a few hundred records of
each partition are held, never the log. Where a partition's times go back, as clocks do, its
order is kept and the merged one is as good as the clocks were.`,
		Example: "  pixtools events cat --job 01a20fa7-b5f0-776b-a89d-614cd6c1a123\n" +
			"  pixtools events cat --type JobFinalized --since 24h | jq -r .data.outcome | sort | uniq -c",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return w.show(cmd.Context(), false, cmd.OutOrStdout()) },
	}
	w.flags(cmd, "start")
	cmd.Flags().StringVar(&w.until, "until", "", "written before this time, or before so long ago")
	return cmd
}

func eventsTail() *cobra.Command {
	var w wanted
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print events as JSON lines as they come, until interrupted",
		Long: "Print events as JSON lines as they come, until interrupted.\n" + lineHelp + `

Events of one job come in the log's order; between partitions there is none.`,
		Example: "  pixtools events tail --operation denoise\n  pixtools events tail --from 10m --type OperationFailed",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if w.since != "" && !cmd.Flags().Changed("from") {
				w.from = []string{"start"} // since says where
			}
			return w.show(cmd.Context(), true, cmd.OutOrStdout())
		},
	}
	w.flags(cmd, "end")
	return cmd
}

// show prints until the query's end; that nobody listens any more is an end, too.
func (w *wanted) show(ctx context.Context, follow bool, out io.Writer) error {
	q, err := w.query()
	if err != nil {
		return err
	}
	// A closed pipe is then an error of the write, and no signal that ends the process.
	signal.Ignore(syscall.SIGPIPE)
	parts := parts{running: follow}
	if err := parts.open(ctx, embedded.Needs{Kafka: true}); err != nil {
		return err
	}
	defer parts.close()
	buffered := bufio.NewWriterSize(out, 64<<10)
	bar := newMeter("reading", !follow && !isTerminal(out))
	err = parts.brokers.Show(ctx, events.Topic, q, follow, buffered, buffered.Flush, bar.to)
	bar.finish()
	if errors.Is(err, syscall.EPIPE) || follow && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func isTerminal(w any) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// patienceWithoutProgress is how long a person looks at nothing.
const patienceWithoutProgress = 2 * time.Second

// meter is a bar on standard error, if that is a terminal, once it takes long.
type meter struct {
	what  string
	shown bool
	// bytes are counted, and the rate is told.
	bytes bool
	began time.Time
	bar   *progressbar.ProgressBar
}

func newMeter(what string, shown bool) *meter {
	return &meter{what: what, shown: shown && isTerminal(os.Stderr), began: time.Now()}
}

func (m *meter) to(done, total int64) {
	if !m.shown || m.bar == nil && time.Since(m.began) < patienceWithoutProgress {
		return
	}
	if m.bar == nil {
		m.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(m.what),
			progressbar.OptionShowBytes(m.bytes), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	}
	_ = m.bar.Set64(done)
}

func (m *meter) finish() {
	if m.bar != nil {
		_ = m.bar.Finish()
	}
}
