package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/eventlog"
)

// dlqCommand is for operators: what was given up, and what to do about it.
func dlqCommand() *cobra.Command {
	var r remote
	cmd := &cobra.Command{
		Use:   "dlq",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Short: "List, inspect, redrive and discard dead letters: work that was given up",
		Long: "A dead letter is work that failed for another reason than the picture: storage was away for\n" +
			"too long, a worker crashed again and again, a record could not be read. Mend the cause,\n" +
			"then redrive.",
	}
	r.flag(cmd.PersistentFlags())
	cmd.AddCommand(dlqList(&r), dlqShow(&r), dlqTreat(&r, "redrive"), dlqTreat(&r, "discard"))
	return cmd
}

// lettersMeant are the flags that pick dead letters.
type lettersMeant struct {
	operation, kind, code, group, job, since, until string
}

func (m *lettersMeant) flags(flags *pflag.FlagSet) {
	flags.StringVar(&m.operation, "operation", "", "of this operation")
	flags.StringVar(&m.kind, "type", "", "whose record has this event type, for instance JobRequested")
	flags.StringVar(&m.code, "code", "", "with this code, for instance source_unavailable")
	flags.StringVar(&m.group, "group", "", "of this consumer group")
	flags.StringVar(&m.job, "job", "", "of this job")
	flags.StringVar(&m.since, "since", "", "given up since: a time (2026-11-24T12:00:00Z) or how long ago (2h)")
	flags.StringVar(&m.until, "until", "", "given up before: likewise")
}

// event is the full name of an event type.
func (m *lettersMeant) event() string {
	if m.kind == "" || strings.Contains(m.kind, ".") {
		return m.kind
	}
	return "pixtools.events.v1." + m.kind
}

// when reads a time, or how long ago one was.
func when(flag, text string, now time.Time) (*time.Time, error) {
	if text == "" {
		return nil, nil
	}
	at, err := eventlog.ParseMoment(text, now)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return &at, nil
}

func (m *lettersMeant) selection() (s api.Selection, err error) {
	s = api.Selection{Operation: m.operation, Type: m.event(), Code: m.code, Group: m.group, JobID: m.job}
	now := time.Now()
	if s.Since, err = when("since", m.since, now); err != nil {
		return s, err
	}
	s.Until, err = when("until", m.until, now)
	return s, err
}

func dlqList(r *remote) *cobra.Command {
	var m lettersMeant
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List open dead letters, the oldest first",
		Example: "  pixtools dlq list --operation denoise --since 2h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := m.selection()
			if err != nil {
				return err
			}
			q := url.Values{}
			for name, value := range map[string]string{"operation": s.Operation, "type": s.Type, "code": s.Code, "group": s.Group, "job_id": s.JobID} {
				if value != "" {
					q.Set(name, value)
				}
			}
			for name, at := range map[string]*time.Time{"since": s.Since, "until": s.Until} {
				if at != nil {
					q.Set(name, at.Format(time.RFC3339))
				}
			}
			if all {
				q.Set("state", "all")
			}
			return listLetters(cmd.Context(), r, q, asJSON, cmd.OutOrStdout())
		},
	}
	m.flags(cmd.Flags())
	cmd.Flags().BoolVar(&all, "all", false, "those that were redriven or discarded, too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line each")
	return cmd
}

func listLetters(ctx context.Context, r *remote, q url.Values, asJSON bool, out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	lines := json.NewEncoder(out)
	found := 0
	for {
		var page api.DeadLetterPage
		if err := r.call(ctx, http.MethodGet, "/api/dead-letters?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		for _, l := range page.DeadLetters {
			if asJSON {
				if err := lines.Encode(l); err != nil {
					return err
				}
				continue
			}
			if found == 0 {
				fmt.Fprintln(table, "ID\tAT\tSTATE\tOPERATION\tCODE\tATTEMPTS\tJOB\tMESSAGE")
			}
			found++
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", l.ID, l.At.Format(time.RFC3339), strings.ToLower(l.State), dash(l.Operation), l.Code, l.Attempts, dash(l.JobID), l.Message)
		}
		if page.Next == nil {
			break
		}
		q.Set("after", *page.Next)
	}
	if found == 0 && !asJSON {
		fmt.Fprintln(out, "no dead letters")
	}
	return table.Flush()
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func dlqShow(r *remote) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Print a dead letter, its stack and its record, as JSON",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var detail api.DeadLetterDetail
			if err := r.call(cmd.Context(), http.MethodGet, "/api/dead-letters/"+url.PathEscape(args[0]), nil, &detail); err != nil {
				return err
			}
			lines := json.NewEncoder(cmd.OutOrStdout())
			lines.SetIndent("", "  ")
			return lines.Encode(detail)
		},
	}
}

// treatment is what the commands redrive and discard were told.
type treatment struct {
	*remote
	path              string
	request           api.DiscardRequest
	all, dryRun, sure bool
	limit             int
	in                io.Reader
	out               io.Writer
}

func dlqTreat(r *remote, what string) *cobra.Command {
	t := treatment{remote: r, path: "/api/dead-letters/" + what}
	var m lettersMeant
	cmd := &cobra.Command{
		Use:     what + " [ID...]",
		Short:   "Ask for the work of dead letters again, after a preview",
		Example: "  pixtools dlq redrive --code source_unavailable --since 2h --dry-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			selection, err := m.selection()
			if err != nil {
				return err
			}
			if len(args) == 0 && m == (lettersMeant{}) && !t.all {
				return errors.New("say which dead letters: their ids, --operation, --type, --code, --group, --job, --since or --until, or --all")
			}
			if t.limit < 1 || t.limit > 1000 {
				return fmt.Errorf("--batch is %d: it must be from 1 to 1000", t.limit)
			}
			selection.IDs, selection.All, selection.Limit = args, t.all, t.limit
			t.request.Selection, t.in, t.out = selection, cmd.InOrStdin(), cmd.OutOrStdout()
			return t.run(cmd.Context())
		},
	}
	m.flags(cmd.Flags())
	cmd.Flags().BoolVar(&t.all, "all", false, "all that are open")
	cmd.Flags().BoolVar(&t.dryRun, "dry-run", false, "only say what would be done")
	cmd.Flags().BoolVar(&t.sure, "yes", false, "do not ask")
	cmd.Flags().IntVar(&t.limit, "batch", 100, "how many in one request, 1 to 1000")
	if what == "discard" {
		cmd.Short = "Let dead letters be, after a preview"
		cmd.Example = `  pixtools dlq discard 6d2a… --reason "test traffic"`
		cmd.Flags().StringVar(&t.request.Reason, "reason", "", "why; kept with the dead letter (required)")
		_ = cmd.MarkFlagRequired("reason")
	}
	return cmd
}

func (t treatment) run(ctx context.Context) error {
	if t.dryRun || !t.sure {
		t.request.DryRun = true
		doable, err := t.pass(ctx)
		if err != nil || t.dryRun {
			return err
		}
		if doable == 0 {
			return errNothing
		}
		if !isTerminal(t.in) {
			return errors.New("this was a preview, and there is no terminal to ask on: repeat it with --yes to do it")
		}
		fmt.Fprintf(t.out, "do this for %d? [y/N] ", doable)
		answer, _ := bufio.NewReader(t.in).ReadString('\n')
		if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
			return errors.New("nothing was done")
		}
	}
	t.request.DryRun, t.request.After = false, ""
	done, err := t.pass(ctx)
	if err == nil && done == 0 {
		return errNothing
	}
	if done > 0 {
		fmt.Fprintf(t.out, "done: %d\n", done)
	}
	return err
}

var errNothing = errors.New("there was nothing to do")

// pass goes through all that is meant, page by page, and says of each what comes of it.
func (t treatment) pass(ctx context.Context) (doable int, err error) {
	for {
		var body any = t.request
		if strings.HasSuffix(t.path, "redrive") {
			body = t.request.Selection
		}
		var answer api.Treated
		if err := t.call(ctx, http.MethodPost, t.path, body, &answer); err != nil {
			return doable, err
		}
		if len(answer.Results) == 0 && t.request.After == "" {
			fmt.Fprintln(t.out, "no open dead letter is meant by this")
		}
		for _, one := range answer.Results {
			if one.Action != "none" {
				doable++
			}
			action := one.Action
			if answer.DryRun && action != "none" {
				action = "would " + action
			}
			fmt.Fprintf(t.out, "%s  %-14s %-8s job %s  %s\n", one.ID, action, dash(one.Operation), dash(one.JobID), one.Detail)
		}
		if answer.Next == nil {
			return doable, nil
		}
		t.request.After = *answer.Next
	}
}
