package denoiser

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Every pixel is kept once, by a tile that sees halo around it or the picture's edge.
func TestSpansCoverEveryPixelOnce(t *testing.T) {
	for _, c := range []struct{ tile, halo, multiple int }{
		{64, 0, 1}, {64, 24, 8}, {208, 96, 8}, {768, 96, 8}, {48, 0, 16}, {64, 31, 1}, {16, 0, 8}, {96, 20, 4},
	} {
		for length := 1; length < 2000; length++ {
			cut := spans(length, c.tile, c.halo, c.multiple)
			padded := roundUp(length, c.multiple)
			next := 0
			for i, s := range cut {
				if !(s.keepFrom == next && s.keepTo > s.keepFrom && s.keepTo <= length) {
					t.Fatalf("%+v length %d: tile %d keeps %+v after %d", c, length, i, s, next)
				}
				next = s.keepTo
				leftOK := s.from == 0 || s.keepFrom-s.from >= c.halo
				rightOK := s.to == padded || s.to-s.keepTo >= c.halo
				if !leftOK || !rightOK || s.from < 0 || s.to > padded || s.from%c.multiple != 0 || (s.to-s.from)%c.multiple != 0 ||
					s.to-s.from > c.tile || s.to-s.from != cut[0].to-cut[0].from {
					t.Fatalf("%+v length %d: tile %d is %+v", c, length, i, s)
				}
				// A reflection needs the pixels it reflects.
				if s.to > length && reflected(s.to-1, length) < s.from {
					t.Fatalf("%+v length %d: tile %d does not see what it reflects", c, length, i)
				}
			}
			require.Equal(t, length, next)
		}
	}
}

// The default, on a picture of 12 megapixels: how much is computed twice.
func TestSpansAreFewAndSmall(t *testing.T) {
	work := func(length int) int {
		cut := spans(length, 768, 96, 8)
		return len(cut) * (cut[0].to - cut[0].from)
	}
	require.LessOrEqual(t, float64(work(4000)*work(3000))/(4000*3000), 1.65)
	require.Len(t, spans(768, 768, 96, 8), 1)
	require.Len(t, spans(769, 768, 96, 8), 2)
}

func TestReflected(t *testing.T) {
	for length, want := range map[int][]int{
		1: {0, 0, 0, 0, 0}, 2: {0, 1, 0, 1, 0, 1}, 3: {0, 1, 2, 1, 0, 1, 2}, 5: {0, 1, 2, 3, 4, 3, 2, 1, 0, 1},
	} {
		for at, to := range want {
			require.Equal(t, to, reflected(at, length), "%d of %d", at, length)
		}
	}
}
