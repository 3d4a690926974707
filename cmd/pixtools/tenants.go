package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/secrets"
	"github.com/pixtools/pixtools/projections"
)

func tenantsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tenants", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, Short: "Erase a tenant's personal data"}
	cmd.AddCommand(forgetCommand())
	return cmd
}

// erasure is what the forget command was told.
type erasure struct {
	tenant, confirm string
	deleteJobs      bool
	patience        time.Duration
	out             io.Writer
}

func forgetCommand() *cobra.Command {
	var e erasure
	cmd := &cobra.Command{
		Use:   "forget TENANT",
		Short: "Erase a tenant's personal data: delete its jobs, destroy its keys and its webhook address, for good",
		Long: "File names and webhook addresses are in the log, and in every copy of it, encrypted with keys of\n" +
			"their tenant. Without the keys nobody can read them again. Its default webhook address goes with them,\n" +
			"and the secrets that sign its webhooks. Pictures are personal data, too: so all jobs\n" +
			"of the tenant are deleted, and open ones cancelled before. Usage, which has no personal data, stays. What\n" +
			"the tenant submits afterwards has a new key. Without --confirm it says what it would do, and does nothing.\n" +
			"A back-up of before, with its secrets, has the keys: destroy it as well.",
		Example: "  pixtools tenants forget acme                   what would be erased\n" +
			"  pixtools tenants forget acme --confirm acme    erase it",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.tenant, e.out = args[0], cmd.OutOrStdout()
			return e.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&e.confirm, "confirm", "", "the tenant's name once more: do it")
	flags.Bool("dry-run", true, "say what would be done; so it is without --confirm, too")
	flags.BoolVar(&e.deleteJobs, "delete-jobs", true, "delete its jobs, and with them its pictures; =false keeps them, without names")
	flags.DurationVar(&e.patience, "wait", 2*time.Minute, "how long to wait for the end of jobs that were cancelled")
	cmd.MarkFlagsMutuallyExclusive("confirm", "dry-run")
	return cmd
}

func (e erasure) run(ctx context.Context) error {
	if e.confirm != "" && e.confirm != e.tenant {
		return fmt.Errorf("--confirm is %q, and the tenant %q: they must be the same", e.confirm, e.tenant)
	}
	if e.patience < 0 {
		return fmt.Errorf("--wait is %s: it must be 0 or more", e.patience)
	}
	p := parts{}
	if err := p.open(ctx, embedded.Needs{Kafka: true, Postgres: true}); err != nil {
		return err
	}
	defer p.close()
	k, end, err := p.keeper(ctx)
	if err != nil {
		return err
	}
	defer end()
	if e.confirm == "" {
		return e.preview(ctx, k, func() (secrets.Holdings, error) { return secrets.Held(ctx, k.pool, e.tenant) })
	}
	if err := secrets.Migrate(ctx, k.pool); err != nil {
		return err
	}
	// The jobs first: what ends in between leaves keys, and the command goes on when it is repeated.
	if e.deleteJobs {
		if err := e.remove(ctx, k); err != nil {
			return err
		}
	}
	gone, err := secrets.Forget(ctx, k.pool, e.tenant)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "%d keys of %s destroyed; processes that hold one let go within %s (TENANT_KEYS_CHECK_INTERVAL), or, without the database, %s (TENANT_KEYS_HOLD)\n"+
		"%d default webhook addresses and %d signing secrets of %s removed; processes that know them let go within %s (WEBHOOK_ADDRESS_REFRESH) and %s (WEBHOOK_SECRETS_REFRESH)\n"+
		"back-ups of before, with their secrets, still have all of them: destroy those, too\n", gone.Keys, e.tenant, p.cfg.Secrets.CheckInterval, p.cfg.Secrets.Hold,
		gone.WebhookAddresses, gone.WebhookSecrets, e.tenant, p.cfg.API.AddressRefresh, p.cfg.Webhooks.SecretsRefresh)
	return err
}

func (e erasure) preview(ctx context.Context, k keeper, held func() (secrets.Holdings, error)) error {
	of, err := held()
	if err != nil {
		return err
	}
	ended, open, size := 0, 0, int64(0)
	err = k.reader.EachOf(ctx, e.tenant, func(job *events.Job) error {
		if job.GetPhase() == events.Phase_PHASE_OPEN {
			open++
		} else {
			ended++
		}
		if !job.GetSourceExpired() {
			size += job.GetSource().GetBytes()
		}
		for _, op := range job.GetOperations() {
			if !op.GetArtifactExpired() {
				size += op.GetArtifact().GetBytes()
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.out, "would destroy %d keys of %s\n", of.Keys, e.tenant)
	fmt.Fprintf(e.out, "would remove %d default webhook addresses and %d signing secrets\n", of.WebhookAddresses, of.WebhookSecrets)
	if e.deleteJobs {
		fmt.Fprintf(e.out, "would cancel %d open jobs, and delete them and %d that have ended, with %d bytes of pictures\n", open, ended, size)
	} else {
		fmt.Fprintf(e.out, "would keep %d jobs, without names, with %d bytes of pictures\n", open+ended, size)
	}
	_, err = fmt.Fprintf(e.out, "nothing was done; to do it: --confirm %s\n", e.tenant)
	return err
}

// remove deletes all jobs of the tenant: those that are open it cancels, and looks again.
func (e erasure) remove(ctx context.Context, k keeper) error {
	m := newGauge(os.Stderr)
	m.counts = "jobs"
	defer m.finish()
	deadline := time.Now().Add(e.patience)
	const why = "the tenant's data are erased"
	deleted, cancelled := map[string]bool{}, map[string]bool{}
	for {
		open := 0
		// Each look begins where the log ends now: what was written is seen.
		if _, err := k.passed(ctx, everyPartition); err != nil {
			return err
		}
		err := k.reader.EachOf(ctx, e.tenant, func(job *events.Job) error {
			id := job.GetId()
			decided, err := commands.Delete{Reason: why, Source: "pixtools/tenants", At: time.Now()}.Decide(job)
			var conflict *commands.Conflict
			switch {
			case errors.As(err, &conflict):
				open++
				if cancelled[id] {
					return nil
				}
				cancelled[id] = true
				if decided, err = (commands.Cancel{Reason: why, At: time.Now()}).Decide(job); err != nil {
					return nil // it is about to end
				}
			case err != nil:
				return err
			case len(decided) > 0:
				deleted[id] = true
			}
			for _, d := range decided {
				if err := k.write(ctx, d); err != nil {
					return err
				}
			}
			m.tell(projections.Progress{Phase: "deleting jobs", Done: int64(len(deleted))})
			return nil
		})
		m.finish()
		switch {
		case err != nil:
			return fmt.Errorf("%w (%d jobs were deleted; the same command goes on)", err, len(deleted))
		case open == 0:
			_, err = fmt.Fprintf(e.out, "%d jobs of %s deleted, %d of them cancelled before\n", len(deleted), e.tenant, len(cancelled))
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("%d jobs of %s were cancelled and have not ended within %s (--wait): see that a process with the role saga runs, and repeat the command; %d jobs were deleted, no key was destroyed", open, e.tenant, e.patience, len(deleted))
		}
		if err := pause(ctx, lookAgainAfter); err != nil {
			return err
		}
	}
}

// lookAgainAfter is the pause before jobs that were cancelled are looked at once more.
const lookAgainAfter = 200 * time.Millisecond
