package grace_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/grace"
)

// TestOutlast runs on synctest's clock.
func TestOutlast(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]time.Duration{"a while": 5 * time.Second, "no time": 0} {
		synctest.Test(t, func(t *testing.T) {
			type key struct{}
			ctx, stop := context.WithCancel(context.WithValue(t.Context(), key{}, name))
			lasting, cancel := grace.Outlast(ctx, by)
			defer cancel()
			require.Equal(t, name, lasting.Value(key{}))
			<-time.After(time.Hour)
			require.NoError(t, lasting.Err(), "it does not end before ctx")
			asked := time.Now()
			stop()
			<-lasting.Done()
			require.Equal(t, by, time.Since(asked))
		})
	}
	synctest.Test(t, func(t *testing.T) { // which fails, should a goroutine be left
		lasting, cancel := grace.Outlast(t.Context(), time.Hour)
		cancel()
		require.Error(t, lasting.Err())
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		lasting, cancel := grace.Outlast(ctx, time.Hour)
		stop()
		synctest.Wait()
		require.NoError(t, lasting.Err())
		cancel()
		require.Error(t, lasting.Err(), "nobody has to wait")
	})
}
