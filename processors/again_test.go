package processors

import (
	"math"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"
)

func TestLimitsOfDoingAgain(t *testing.T) {
	c, err := env.ParseAs[AgainConfig]()
	require.NoError(t, err)
	require.NoError(t, c.Validate())
	for _, good := range []float64{10, 100} {
		require.NoError(t, AgainConfig{MinPSNR: good}.Validate())
	}
	for _, bad := range []float64{9.99, 100.01, math.NaN(), math.Inf(1)} {
		require.ErrorContains(t, AgainConfig{MinPSNR: bad}.Validate(), "REEXECUTE_MIN_PSNR")
	}
	r, err := env.ParseAs[ReprocessConfig]()
	require.NoError(t, err)
	require.NoError(t, r.Validate())
	for _, good := range []ReprocessConfig{{0.01, 10 * time.Millisecond}, {10_000, time.Minute}} {
		require.NoError(t, good.Validate())
	}
	for _, rate := range []float64{0.009, 10_001, math.NaN()} {
		require.ErrorContains(t, ReprocessConfig{rate, time.Second}.Validate(), "REPROCESS_RATE")
	}
	for _, interval := range []time.Duration{9 * time.Millisecond, time.Minute + 1} {
		require.ErrorContains(t, ReprocessConfig{1, interval}.Validate(), "REPROCESS_LOOK_INTERVAL")
	}
}
