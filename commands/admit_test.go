package commands

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAdmit(t *testing.T) {
	const limit = 30 * time.Minute
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	waitsFor := func(age time.Duration) time.Time { return now.Add(-age) }
	for name, c := range map[string]struct {
		operations []string
		oldest     map[string]time.Time
		refused    []string
	}{
		"nothing waits":                {[]string{"webp"}, nil, nil},
		"just below the limit":         {[]string{"webp"}, map[string]time.Time{"webp": waitsFor(limit - 1)}, nil},
		"at the limit":                 {[]string{"webp"}, map[string]time.Time{"webp": waitsFor(limit)}, nil},
		"just above the limit":         {[]string{"webp"}, map[string]time.Time{"webp": waitsFor(limit + 1)}, []string{"webp"}},
		"another's work waits":         {[]string{"webp"}, map[string]time.Time{"denoise": waitsFor(10 * limit)}, nil},
		"one of several":               {[]string{"webp", "denoise"}, map[string]time.Time{"denoise": waitsFor(2 * limit), "webp": waitsFor(1)}, []string{"denoise"}},
		"all, in the request's order":  {[]string{"webp", "avif"}, map[string]time.Time{"avif": waitsFor(2 * limit), "webp": waitsFor(3 * limit)}, []string{"webp", "avif"}},
		"from the future, by a clock":  {[]string{"webp"}, map[string]time.Time{"webp": waitsFor(-limit)}, nil},
		"no operation, nothing to say": {nil, map[string]time.Time{"webp": waitsFor(2 * limit)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var refused []string
			for _, o := range (Admit{Operations: c.operations, Oldest: c.oldest, At: now, MaxAge: limit}).Decide() {
				refused = append(refused, o.Operation)
				require.Equal(t, now.Sub(c.oldest[o.Operation]), o.Age)
				require.Equal(t, limit, o.MaxAge)
			}
			require.Equal(t, c.refused, refused)
		})
	}
	require.Equal(t, "denoise: the oldest work waits for 31m0s, longer than QUEUE_MAX_AGE, 30m0s",
		Overdue{"denoise", 31 * time.Minute, limit}.Error())
}
