package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/internal/apikeys"
)

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Short: "Make, list and revoke API keys",
		Long: "Works on PostgreSQL itself: that of DATABASE_URL, or the embedded one of PIXTOOLS_DATA_DIR, whether a\n" +
			"PixTools runs there or not."}
	cmd.AddCommand(keysCreate(), keysList(), keysRevoke())
	return cmd
}

// withKeys gives the table of API keys.
func withKeys(ctx context.Context, do func(context.Context, *pgxpool.Pool, apikeys.Config) error) error {
	return withSecrets(ctx, apikeys.Migrate, func(ctx context.Context, p *parts, pool *pgxpool.Pool) error {
		return do(ctx, pool, p.cfg.API.Keys)
	})
}

func keysCreate() *cobra.Command {
	var wanted apikeys.Request
	var scopes []string
	var submits, reads int
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key and print it, this once",
		Long: "The key goes to standard output, alone; what it is to standard error. It is stored as a hash: a key that\n" +
			"is lost is revoked, and another made.\n\n" +
			"  submit   submit pictures, cancel and retry jobs of the tenant\n" +
			"  read     read jobs, histories and usage of the tenant\n" +
			"  operate  dead letters, queues, lag and more of the whole installation, whose ever the jobs are;\n" +
			"           for those who run it, and for no tenant\n\n" +
			"A scope implies none of the others.",
		Example: "  pixtools keys create --tenant acme --scope submit,read --name 'web shop' --expires 2160h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, scope := range scopes {
				wanted.Scopes = append(wanted.Scopes, apikeys.Scope(scope))
			}
			if cmd.Flags().Changed("submits-per-minute") {
				wanted.SubmitsPerMinute = &submits
			}
			if cmd.Flags().Changed("reads-per-minute") {
				wanted.ReadsPerMinute = &reads
			}
			if cmd.Flags().Changed("expires") && wanted.Lifetime == 0 {
				return errors.New("--expires is 0s: it must be 1m or more, or not given, for a key that does not expire")
			}
			if err := wanted.Validate(); err != nil {
				return err
			}
			return withKeys(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, cfg apikeys.Config) error {
				text, k, err := apikeys.Create(ctx, pool, cfg, wanted)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "key %s of tenant %s may %s, and %s. It is shown this once:\n", k.ID, k.Tenant, scopeList(k.Scopes), ending(k))
				fmt.Fprintln(cmd.OutOrStdout(), text)
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&wanted.Tenant, "tenant", "", "whose jobs it is for; where no keys are asked for, jobs are of the tenant "+apikeys.DefaultTenant)
	flags.StringVar(&wanted.Name, "name", "", "who uses it, as the list shows it")
	flags.StringSliceVar(&scopes, "scope", nil, "what it may do: submit, read, operate, with commas")
	flags.DurationVar(&wanted.Lifetime, "expires", 0, "after how long it expires, such as 720h; never if not given")
	flags.IntVar(&submits, "submits-per-minute", 0, "its own limit in place of RATE_LIMIT_SUBMITS_PER_MINUTE; 0 for none")
	flags.IntVar(&reads, "reads-per-minute", 0, "its own limit in place of RATE_LIMIT_READS_PER_MINUTE; 0 for none")
	for _, name := range []string{"tenant", "name", "scope"} {
		_ = cmd.MarkFlagRequired(name) // fails for names of no flag
	}
	return cmd
}

func scopeList(scopes []apikeys.Scope) string {
	var words []string
	for _, scope := range scopes {
		words = append(words, string(scope))
	}
	return strings.Join(words, ",")
}

func ending(k apikeys.Key) string {
	if k.ExpiresAt == nil {
		return "does not expire"
	}
	return "expires " + k.ExpiresAt.UTC().Format(time.RFC3339)
}

func keysList() *cobra.Command {
	var tenant string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List keys, those that are revoked or have expired, too",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withKeys(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, _ apikeys.Config) error {
				keys, err := apikeys.List(ctx, pool, tenant)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if asJSON {
					lines := json.NewEncoder(out)
					for _, k := range keys {
						if err := lines.Encode(k); err != nil {
							return err
						}
					}
					return nil
				}
				now := time.Now()
				table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "ID\tTENANT\tNAME\tSCOPES\tSTATE\tCREATED\tEXPIRES\tREVOKED\tLAST USED")
				for _, k := range keys {
					fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Tenant, k.Name, scopeList(k.Scopes), k.State(now),
						minute(&k.CreatedAt), minute(k.ExpiresAt), minute(k.RevokedAt), minute(k.LastUsedAt))
				}
				return table.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "of this tenant alone")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line each")
	return cmd
}

func minute(at *time.Time) string {
	if at == nil {
		return "-"
	}
	return at.UTC().Format("2006-01-02T15:04Z")
}

func keysRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a key for good",
		Long: "ID is what `pixtools keys list` shows, or the key itself, for one that was found where it should not be.\n" +
			"API processes that run hear of it within API_KEY_REFRESH_INTERVAL.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			if shown, err := apikeys.ParseKey(id); err == nil {
				id = shown.ID
			} else if !apikeys.IsID(id) {
				return fmt.Errorf("this is no id of an API key; `pixtools keys list` shows them")
			}
			return withKeys(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, cfg apikeys.Config) error {
				k, err := apikeys.Revoke(ctx, pool, id)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "key %s of tenant %s was revoked %s; API processes that can reach PostgreSQL refuse it within %s\n",
					k.ID, k.Tenant, k.RevokedAt.UTC().Format(time.RFC3339), cfg.RefreshInterval)
				return nil
			})
		},
	}
}
