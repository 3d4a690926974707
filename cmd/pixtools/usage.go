package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/projections"
)

// usage is what the usage command was told.
type usage struct {
	remote
	from, to, operation, group string
	asJSON, audit              bool
	show                       int
	out                        io.Writer
}

func usageCommand() *cobra.Command {
	var u usage
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Print what was used: operations, bytes, processor time and failures, by day and operation",
		Long: "Asks a running PixTools. With --audit, it counts the log anew and compares: in a read model of its\n" +
			"own, which it removes again. Nothing is written to the log or to the live read model.",
		Example: "  pixtools usage                                the last 30 days, today included\n" +
			"  pixtools usage --from 2026-11-01 --to 2026-11-30 --group day\n" +
			"  pixtools usage --audit                        the live numbers are those of the log, or which are not",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u.out = cmd.OutOrStdout()
			if u.audit {
				return u.auditLog(cmd.Context())
			}
			return u.ask(cmd.Context(), time.Now())
		},
	}
	flags := cmd.Flags()
	u.flag(flags)
	flags.StringVar(&u.from, "from", "", "the first UTC day, such as 2026-11-01; 29 days before today if not given")
	flags.StringVar(&u.to, "to", "", "the last UTC day; today if not given")
	flags.StringVar(&u.operation, "operation", "", "of this operation alone")
	flags.StringVar(&u.group, "group", "", "a row for each day, operation or total; without it, for each operation of each day")
	flags.BoolVar(&u.asJSON, "json", false, "print the answer as JSON")
	flags.BoolVar(&u.audit, "audit", false, "count the log anew and compare with the live numbers; the exit status is 1 where they differ")
	flags.IntVar(&u.show, "show", 20, "how many rows that differ --audit prints at most")
	for _, other := range []string{"server", "from", "to", "operation", "group", "json"} {
		cmd.MarkFlagsMutuallyExclusive("audit", other)
	}
	return cmd
}

// defaultUsageDays are asked for where nobody says which.
const defaultUsageDays = 30

func (u *usage) ask(ctx context.Context, now time.Time) error {
	today := now.UTC().Format(time.DateOnly)
	query := url.Values{"to": {cmp.Or(u.to, today)}, "from": {cmp.Or(u.from, now.UTC().AddDate(0, 0, 1-defaultUsageDays).Format(time.DateOnly))}}
	if u.operation != "" {
		query.Set("operation", u.operation)
	}
	if u.group != "" {
		query.Set("group", u.group)
	}
	var answer api.Usage
	if err := u.call(ctx, http.MethodGet, "/api/usage?"+query.Encode(), nil, &answer); err != nil {
		return err
	}
	if u.asJSON {
		return json.NewEncoder(u.out).Encode(answer)
	}
	table := tabwriter.NewWriter(u.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DAY\tOPERATION\tOPERATIONS\tFAILURES\tINPUT BYTES\tOUTPUT BYTES\tCPU SECONDS")
	line := func(day, operation string, used api.Used) {
		fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%.3f\n", day, operation, used.Operations, used.Failures, used.InputBytes, used.OutputBytes, used.CPUSeconds)
	}
	for _, row := range answer.Usage {
		day, operation := "-", "-"
		if row.Day != nil {
			day = *row.Day
		}
		if row.Operation != nil {
			operation = *row.Operation
		}
		line(day, operation, row.Used)
	}
	line("total", "", answer.Total)
	return table.Flush()
}

func (u *usage) auditLog(ctx context.Context) error {
	if u.show < 0 {
		return fmt.Errorf("--show is %d: it must be 0 or more rows", u.show)
	}
	return withReplayer(ctx, func(replayer *projections.Replayer) error {
		end, err := replayer.Begin(ctx)
		if err != nil {
			return err
		}
		defer end()
		m := newGauge(os.Stderr)
		defer m.finish()
		p := changePrinter{out: u.out, most: u.show, before: m.finish}
		built, d, err := replayer.Audit(ctx, m.tell, p.show)
		m.finish()
		if err != nil {
			return err
		}
		p.rest()
		fmt.Fprintf(u.out, "counted %d records of the log anew in %s: %d rows of usage differ\n", built.Records, built.Took.Round(time.Millisecond), d.Usage)
		printBehind(u.out, d)
		if d.Usage > 0 {
			return errors.New("the live usage is not that of the log: `pixtools replay --promote` makes it so")
		}
		return nil
	})
}
