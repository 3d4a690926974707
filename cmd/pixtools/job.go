package main

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/api"
)

func jobCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "job", Short: "Retry or cancel a job"}
	var r remote
	r.flag(cmd.PersistentFlags())
	var ops []string
	retry := &cobra.Command{
		Use:   "retry JOB_ID",
		Short: "Run operations again that did not complete",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer api.Retried
			if err := r.call(cmd.Context(), http.MethodPost, "/api/jobs/"+args[0]+"/retry", api.RetryRequest{Operations: ops}, &answer); err != nil {
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
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer api.Cancelled
			if err := r.call(cmd.Context(), http.MethodPost, "/api/jobs/"+args[0]+"/cancel", nil, &answer); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), answer.JobID+": cancellation requested")
			return nil
		},
	}
	cmd.AddCommand(retry, cancel)
	return cmd
}
