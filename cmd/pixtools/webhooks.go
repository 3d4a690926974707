package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/internal/apikeys"
	"github.com/pixtools/pixtools/internal/egress"
	"github.com/pixtools/pixtools/internal/secrets"
)

func webhooksCommand() *cobra.Command {
	help := func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd := &cobra.Command{Use: "webhooks", Args: cobra.NoArgs, RunE: help, Short: "Signing secrets, default addresses, and webhooks that failed"}
	var tenant string
	secret := &cobra.Command{Use: "secret", Args: cobra.NoArgs, RunE: help, Short: "Secrets that sign a tenant's webhooks"}
	address := &cobra.Command{Use: "address", Args: cobra.NoArgs, RunE: help, Short: "Where a tenant's webhooks go that name no address"}
	for _, group := range []*cobra.Command{secret, address} {
		group.PersistentFlags().StringVar(&tenant, "tenant", apikeys.DefaultTenant, "whose")
		group.PersistentPreRunE = func(*cobra.Command, []string) error { return apikeys.CheckTenant(tenant) }
	}
	secret.AddCommand(secretCreate(&tenant), secretList(&tenant), secretRevoke(&tenant))
	address.AddCommand(addressSet(&tenant), addressShow(&tenant), addressClear(&tenant))
	cmd.AddCommand(secret, address, webhooksList(), webhooksRedeliver())
	return cmd
}

// withWebhooks finds the database, and does something with what it has of webhooks.
func withWebhooks(ctx context.Context, do func(context.Context, *parts, *secrets.Webhooks) error) error {
	return withSecrets(ctx, secrets.Migrate, func(ctx context.Context, p *parts, pool *pgxpool.Pool) error {
		return do(ctx, p, secrets.NewWebhooks(pool, p.cfg.Read.QueryTimeout, 0))
	})
}

func secretCreate(tenant *string) *cobra.Command {
	return &cobra.Command{
		Use:   "create",
		Short: "Make another secret; it signs beside those that are there",
		Long: "Make another secret, and print it. It signs beside those that are there: give it to the receiver,\n" +
			"and then revoke the old one.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withWebhooks(cmd.Context(), func(ctx context.Context, _ *parts, hooks *secrets.Webhooks) error {
				made, err := hooks.CreateSecret(ctx, *tenant)
				if errors.Is(err, secrets.ErrTooManySecrets) {
					return fmt.Errorf("%w, with `pixtools webhooks secret revoke`", err)
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", made.ID, made.Text())
				return nil
			})
		},
	}
}

func secretList(tenant *string) *cobra.Command {
	var reveal bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List secrets, the oldest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withWebhooks(cmd.Context(), func(ctx context.Context, _ *parts, hooks *secrets.Webhooks) error {
				all, err := hooks.Secrets(ctx, *tenant)
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "ID\tMADE\tREVOKED\tSECRET")
				for _, s := range all {
					revoked, text := "-", "(--reveal shows it)"
					switch {
					case s.RevokedAt != nil:
						revoked, text = s.RevokedAt.UTC().Format(time.RFC3339), "(forgotten)"
					case reveal:
						text = s.Text()
					}
					fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", s.ID, s.CreatedAt.UTC().Format(time.RFC3339), revoked, text)
				}
				return table.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&reveal, "reveal", false, "print the secrets themselves")
	return cmd
}

func secretRevoke(tenant *string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke SECRET_ID",
		Short: "Have a secret sign no more",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := uuid.Parse(args[0])
			if err != nil {
				return fmt.Errorf("%q is no secret's id: that is a UUID, as `pixtools webhooks secret list` prints it", args[0])
			}
			return withWebhooks(cmd.Context(), func(ctx context.Context, p *parts, hooks *secrets.Webhooks) error {
				if err := hooks.RevokeSecret(ctx, *tenant, id); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s signs no more, everywhere within %s (WEBHOOK_SECRETS_REFRESH)\n", id, p.cfg.Webhooks.SecretsRefresh)
				return nil
			})
		},
	}
}

func addressSet(tenant *string) *cobra.Command {
	return &cobra.Command{
		Use:   "set URL",
		Short: "Set the address; it counts for jobs that are submitted from then on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withWebhooks(cmd.Context(), func(ctx context.Context, p *parts, hooks *secrets.Webhooks) error {
				outside, err := egress.NewGuard(p.cfg.Outside.AllowPrivate)
				if err != nil {
					return err
				}
				if err := outside.CheckURL(args[0]); err != nil {
					return fmt.Errorf("the address %w", err)
				}
				if err := hooks.SetAddress(ctx, *tenant, args[0]); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "jobs of %s that name no address are posted to %s, those that are submitted from now on, everywhere within %s (WEBHOOK_ADDRESS_REFRESH)\n",
					*tenant, args[0], p.cfg.API.AddressRefresh)
				return nil
			})
		},
	}
}

func addressShow(tenant *string) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Print the address",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withWebhooks(cmd.Context(), func(ctx context.Context, _ *parts, hooks *secrets.Webhooks) error {
				if err := hooks.ReadAddresses(ctx); err != nil {
					return err
				}
				address := hooks.Address(*tenant)
				if address == "" {
					return fmt.Errorf("tenant %s has no webhook address: `pixtools webhooks address set` gives it one", *tenant)
				}
				fmt.Fprintln(cmd.OutOrStdout(), address)
				return nil
			})
		},
	}
}

func addressClear(tenant *string) *cobra.Command {
	return &cobra.Command{
		Use:   "clear",
		Short: "Have no address; jobs that were submitted before keep theirs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withWebhooks(cmd.Context(), func(ctx context.Context, p *parts, hooks *secrets.Webhooks) error {
				if err := hooks.ReadAddresses(ctx); err != nil {
					return err
				}
				before := hooks.Address(*tenant)
				if before == "" {
					fmt.Fprintf(cmd.OutOrStdout(), "tenant %s had no webhook address\n", *tenant)
					return nil
				}
				if err := hooks.SetAddress(ctx, *tenant, ""); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "tenant %s has no webhook address any more, everywhere within %s (WEBHOOK_ADDRESS_REFRESH); it was %s\n", *tenant, p.cfg.API.AddressRefresh, before)
				return nil
			})
		},
	}
}

// failedWebhooks calls each for the jobs whose webhook failed, the newest first.
func failedWebhooks(ctx context.Context, r *remote, each func(id string) error) error {
	query := url.Values{"status": {"COMPLETED_WEBHOOK_FAILED"}}
	for {
		var page api.JobPage
		if err := r.call(ctx, http.MethodGet, "/api/jobs?"+query.Encode(), nil, &page); err != nil {
			return err
		}
		for _, job := range page.Jobs {
			if err := each(job.JobID); err != nil {
				return err
			}
		}
		if page.Next == nil {
			return nil
		}
		query.Set("cursor", *page.Next)
	}
}

func webhooksList() *cobra.Command {
	var r remote
	var most int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List jobs with results whose webhook failed, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if most < 1 {
				return fmt.Errorf("--limit is %d: it must be 1 or more jobs", most)
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "JOB\tREVISION\tATTEMPTS\tLAST ERROR\tENDED")
			enough := errors.New("as many as were asked for")
			err := failedWebhooks(cmd.Context(), &r, func(id string) error {
				if most--; most < 0 {
					return enough
				}
				var job api.Job
				if err := r.call(cmd.Context(), http.MethodGet, "/api/jobs/"+id, nil, &job); err != nil {
					return err
				}
				if job.Webhook == nil || job.FinalizedAt == nil {
					return nil // it has gone on since
				}
				fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\n", id, job.Webhook.Revision, job.Webhook.Attempts, job.Webhook.LastCode, job.FinalizedAt.UTC().Format(time.RFC3339))
				return nil
			})
			if err != nil && !errors.Is(err, enough) {
				return err
			}
			return table.Flush()
		},
	}
	r.flag(cmd.Flags())
	cmd.Flags().IntVar(&most, "limit", 50, "how many jobs at most")
	return cmd
}

func webhooksRedeliver() *cobra.Command {
	var r remote
	var failed bool
	cmd := &cobra.Command{
		Use:   "redeliver JOB_ID...",
		Short: "Call the webhooks of jobs once more, now",
		Long: "One attempt is made now, with the same webhook-id as before. If it fails, further ones follow as long\n" +
			"as WEBHOOK_MAX_ATTEMPTS allows.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if failed == (len(args) > 0) {
				return errors.New("name jobs, or use --failed for all that `pixtools webhooks list` lists")
			}
			var refused int
			redeliver := func(id string) error {
				var answer api.Redelivered
				if err := r.call(cmd.Context(), http.MethodPost, "/api/jobs/"+url.PathEscape(id)+"/webhook", nil, &answer); err != nil {
					refused++
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %v\n", id, err)
					return cmd.Context().Err()
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: attempt %d at revision %d is due\n", answer.JobID, answer.Attempt, answer.Revision)
				return nil
			}
			if failed {
				// All first: what is redelivered is not listed any more, and pages would move.
				if err := failedWebhooks(cmd.Context(), &r, func(id string) error { args = append(args, id); return nil }); err != nil {
					return err
				}
			}
			for _, id := range args {
				if err := checkJobID(id); err != nil {
					return err
				}
			}
			for _, id := range args {
				if err := redeliver(id); err != nil {
					return err
				}
			}
			if refused > 0 {
				return fmt.Errorf("%d of %d jobs: their webhooks are not called again", refused, len(args))
			}
			return nil
		},
	}
	r.flag(cmd.Flags())
	cmd.Flags().BoolVar(&failed, "failed", false, "of all jobs that `pixtools webhooks list` lists")
	return cmd
}
