package operations

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParameterLimits(t *testing.T) {
	for _, c := range []struct {
		op    string
		given map[string]any
		fault string // empty: accepted
	}{
		{"jpg", nil, ""},
		{"jpg", map[string]any{"quality": 0.0}, "jpg.quality must be a whole number from 1 to 100"},
		{"jpg", map[string]any{"quality": 1.0}, ""},
		{"jpg", map[string]any{"quality": 100.0}, ""},
		{"jpg", map[string]any{"quality": 101.0}, "jpg.quality must be a whole number from 1 to 100"},
		{"jpg", map[string]any{"quality": 1.5}, "jpg.quality must be a whole number from 1 to 100"},
		{"jpg", map[string]any{"quality": "80"}, "jpg.quality must be a whole number from 1 to 100"},
		{"jpg", map[string]any{"quality": nil}, "jpg.quality must be a whole number from 1 to 100"},
		{"avif", map[string]any{"effort": 9.0}, ""},
		{"avif", map[string]any{"effort": 10.0}, "avif.effort must be a whole number from 1 to 9"},
		{"avif", map[string]any{"effort": 0.0}, "avif.effort must be a whole number from 1 to 9"},
		{"webp", map[string]any{"lossless": true, "quality": 5.0}, ""},
		{"webp", map[string]any{"lossless": 1.0}, "webp.lossless must be true or false"},
		{"webp", map[string]any{"effort": 1.0}, `webp has no parameter "effort"; it takes quality, lossless`},
		{"png", map[string]any{"quality": 1.0}, `png has no parameter "quality"; it takes none`},
		{"denoise", map[string]any{"sigma": 1.0}, `denoise has no parameter "sigma"; it takes none`},
	} {
		op, ok := Find(c.op)
		require.True(t, ok)
		faults := op.Check(c.given)
		if c.fault == "" {
			require.Empty(t, faults, "%v", c)
		} else {
			require.Equal(t, []string{c.fault}, faults)
		}
	}
	_, ok := Find("gif")
	require.False(t, ok)
}
