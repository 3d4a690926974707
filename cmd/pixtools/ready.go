package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/internal/telemetry"
)

// readyTimeout is less than probes of containers wait by default.
const readyTimeout = 2 * time.Second

// readyCommand asks the process in the same container, where there is neither a shell nor
// another program to ask with.
func readyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ready",
		Short: "Say whether the PixTools at PRIVATE_ADDR takes work: the exit status is 0, or 1",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			address := cfg.Telemetry.Address()
			if address == "" {
				return errors.New("set PRIVATE_ADDR to the address that pixtools serve has its private port at; it has none without it")
			}
			return askReady(cmd.Context(), address)
		},
	}
}

// askReady is nil where each role of the process with this private port is ready.
func askReady(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("PRIVATE_ADDR is %q: %w", address, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost" // every interface, so this one
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask whether it is ready: %w", err)
	}
	defer response.Body.Close()
	var told telemetry.Readiness
	if err := json.NewDecoder(response.Body).Decode(&told); err != nil {
		return fmt.Errorf("ask whether it is ready: %s answers %s, and not as PixTools does: %w", request.URL, response.Status, err)
	}
	var waiting []string
	for role, state := range told.Roles {
		if state != telemetry.Ready {
			waiting = append(waiting, role+" "+state)
		}
	}
	slices.Sort(waiting)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.Join(waiting, "; "))
	}
	return nil
}
