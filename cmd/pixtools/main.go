// Command pixtools is the whole of PixTools: the services, by role, and the tools.
// This package is the one place where the parts are wired.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/processors/engine"
)

// heapGrowthPercent is Go's GOGC. What these processes keep is some tens of megabytes, and
// collecting it as often as Go does by default is a tenth of their work.
const heapGrowthPercent = 400

func main() {
	// Children are this same binary; these do not return in one.
	engine.ChildMain()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(heapGrowthPercent)
	}
	embedded.ChildMain()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := &cobra.Command{
		Use:           "pixtools",
		Short:         "Upload pictures, name operations, get the results as links",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), submitCommand(), jobCommand(), dlqCommand(), eventsCommand(), backupCommand(), restoreCommand(), importLegacyCommand(), replayCommand(), verifyCommand(), reprocessCommand(), usageCommand(),
		webhooksCommand(), janitorCommand(), keysCommand(), tenantsCommand(), configCommand(), prepareCommand(), readyCommand(), openapiCommand())
	tellUse(root)
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pixtools:", err)
		var told statusError
		if errors.As(err, &told) {
			os.Exit(told.status)
		}
		os.Exit(1)
	}
}

// tellUse adds to what is wrong with arguments and flags how the command is used.
func tellUse(cmd *cobra.Command) {
	for _, below := range cmd.Commands() { // first: a command without such functions has its parent's
		tellUse(below)
	}
	told := func(cmd *cobra.Command, err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w. Usage: %s; more: %s --help", err, cmd.UseLine(), cmd.CommandPath())
	}
	flags := cmd.FlagErrorFunc()
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return told(cmd, flags(cmd, err)) })
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error { return told(cmd, check(cmd, args)) }
	}
}

// statusError is an error with an exit status of its own; that of all others is 1.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }
