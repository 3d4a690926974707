package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/api"
)

func jobCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "job", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, Short: "Explain, retry, cancel or delete a job"}
	var r remote
	r.flag(cmd.PersistentFlags())
	var ops []string
	retry := &cobra.Command{
		Use:   "retry JOB_ID",
		Short: "Run operations again that did not complete",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer api.Retried
			if err := r.call(cmd.Context(), http.MethodPost, "/api/jobs/"+url.PathEscape(args[0])+"/retry", api.RetryRequest{Operations: ops}, &answer); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: revision %d begins: %s\n", answer.JobID, answer.Revision, strings.Join(answer.Operations, ", "))
			return nil
		},
	}
	retry.Flags().StringSliceVar(&ops, "ops", nil, "only these operations")
	cancel := &cobra.Command{
		Use:   "cancel JOB_ID",
		Short: "Give up operations that have no outcome yet",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer api.Cancelled
			if err := r.call(cmd.Context(), http.MethodPost, "/api/jobs/"+url.PathEscape(args[0])+"/cancel", nil, &answer); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), answer.JobID+": cancellation requested")
			return nil
		},
	}
	remove := &cobra.Command{
		Use:   "delete JOB_ID",
		Short: "Delete a job that has ended, and its pictures, for good",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.call(cmd.Context(), http.MethodDelete, "/api/jobs/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), args[0]+": deleted")
			return nil
		},
	}
	cmd.AddCommand(jobHistory(&r), retry, cancel, remove)
	return cmd
}

func jobHistory(r *remote) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history JOB_ID",
		Short: "Print every event of a job, what it came of, and the job after it",
		Args:  oneJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			var history api.JobHistory
			if err := r.call(cmd.Context(), http.MethodGet, "/api/jobs/"+url.PathEscape(args[0])+"/events", nil, &history); err != nil {
				return err
			}
			if asJSON {
				lines := json.NewEncoder(cmd.OutOrStdout())
				for _, e := range history.Events {
					if err := lines.Encode(e); err != nil {
						return err
					}
				}
				return nil
			}
			return printHistory(cmd.OutOrStdout(), history)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line each, with the events and the job after each in full")
	return cmd
}

func printHistory(out io.Writer, history api.JobHistory) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tAFTER\tEVENT\tOF\tBY\tJOB THEN")
	for _, e := range history.Events {
		delay := ""
		if e.DelaySeconds != nil {
			delay = fmt.Sprintf("+%.3fs", *e.DelaySeconds)
		}
		var about struct {
			Operation string `json:"operation"`
			Attempt   int    `json:"attempt"`
			Message   string `json:"message"`
		}
		if err := json.Unmarshal(e.Event, &about); err != nil {
			return err
		}
		of := about.Operation
		if about.Attempt > 0 {
			of += fmt.Sprintf(" attempt %d", about.Attempt)
		}
		if about.Message != "" {
			of += ": " + about.Message
		}
		then := "no effect"
		if e.Effect && e.Job != nil {
			then = stateOf(*e.Job)
		} else if e.Effect {
			then = "deleted"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Time.Format("2006-01-02T15:04:05.000Z"), delay, e.Type, of, strings.TrimPrefix(e.Source, "pixtools/"), then)
	}
	return table.Flush()
}

// stateOf is a job in a line: its end, or its operations.
func stateOf(job api.Job) string {
	if job.Outcome != nil {
		return fmt.Sprintf("revision %d %s", job.Revision, *job.Outcome)
	}
	var all []string
	for _, op := range job.Operations {
		all = append(all, op+" "+strings.ToLower(job.OperationResults[op].State))
	}
	return strings.Join(all, ", ")
}

// oneJob wants a job's id: what else stands there may be taken for a path.
func oneJob(cmd *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(cmd, args); err != nil {
		return err
	}
	return checkJobID(args[0])
}

func checkJobID(text string) error {
	if _, err := uuid.Parse(text); err != nil {
		return fmt.Errorf("%q is no job id: that is a UUID, as submit prints it", text)
	}
	return nil
}
