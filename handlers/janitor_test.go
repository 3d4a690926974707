package handlers

import (
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
)

func TestLimitsOfTheJanitor(t *testing.T) {
	right := env.Must(env.ParseAsWithOptions[JanitorConfig](env.Options{Environment: map[string]string{}}))
	require.NoError(t, right.Validate())
	const year = 365 * 24 * time.Hour
	for _, low := range []bool{true, false} {
		for want, c := range map[string]struct {
			at, beyond func(*JanitorConfig)
		}{
			"JANITOR_INTERVAL":       {func(c *JanitorConfig) { c.Interval = either(low, time.Second, 24*time.Hour) }, func(c *JanitorConfig) { c.Interval = either(low, time.Second-1, 24*time.Hour+1) }},
			"JANITOR_SWEEP_INTERVAL": {func(c *JanitorConfig) { c.SweepInterval = either(low, time.Minute, year) }, func(c *JanitorConfig) { c.SweepInterval = either(low, time.Minute-1, year+1) }},
			"JANITOR_ORPHAN_GRACE":   {func(c *JanitorConfig) { c.OrphanGrace = either(low, 2*time.Hour, year) }, func(c *JanitorConfig) { c.OrphanGrace = either(low, 2*time.Hour-1, year+1) }},
			"JANITOR_RATE":           {func(c *JanitorConfig) { c.Rate = either(low, 0.1, 10_000) }, func(c *JanitorConfig) { c.Rate = either(low, 0.09, 10_001) }},
			"JANITOR_BATCH":          {func(c *JanitorConfig) { c.Batch = either(low, 1, 10_000) }, func(c *JanitorConfig) { c.Batch = either(low, 0, 10_001) }},
			"JANITOR_MAX_ORPHANS":    {func(c *JanitorConfig) { c.MaxOrphans = either(low, 1, 1_000_000_000) }, func(c *JanitorConfig) { c.MaxOrphans = either(low, 0, 1_000_000_001) }},
		} {
			config := right
			c.at(&config)
			require.NoError(t, config.Validate(), want)
			c.beyond(&config)
			require.ErrorContains(t, config.Validate(), want+" is ")
		}
	}
}

func either[T any](first bool, a, b T) T {
	if first {
		return a
	}
	return b
}
