package engine

import (
	"image"
	"image/color"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/sniff"
)

// flat is a picture of one colour, in strips that are compared one after the other.
func flat(w, h int, value uint8) *image.NRGBA {
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			m.SetNRGBA(x, y, color.NRGBA{value, value / 2, 7, 255})
		}
	}
	return m
}

func TestCompare(t *testing.T) {
	pool := newPool(t, Config{Threads: 1, MemoryBytes: 1 << 30, RecycleAfter: 100, Limits: sniff.Limits{MaxPixels: 1 << 24, MaxSide: 1 << 13}}, 1)
	large := noise(900, 800) // more than one strip
	source := write(t, "a.png", pngBytes(t, large))
	lossless := request(t, source, sniff.WebP)
	lossless.Quality, lossless.Lossless = 100, true
	mustConvert(t, pool, lossless)
	like, err := pool.Compare(deadline(t), source, lossless.Target, 0)
	require.NoError(t, err)
	require.True(t, math.IsInf(like, 1), "%f", like)

	lossy := request(t, source, sniff.JPG)
	lossy.Quality = 90
	mustConvert(t, pool, lossy)
	like, err = pool.Compare(deadline(t), source, lossy.Target, 0)
	require.NoError(t, err)
	require.Greater(t, like, 5.0)
	require.Less(t, like, 60.0)

	one, other := flat(30, 20, 100), flat(30, 20, 100)
	other.SetNRGBA(29, 19, color.NRGBA{110, 50, 7, 255}) // one sample of 30*20*3 is off by 10
	like, err = pool.Compare(deadline(t), write(t, "b.png", pngBytes(t, one)), write(t, "c.png", pngBytes(t, other)), 0)
	require.NoError(t, err)
	require.InDelta(t, 10*math.Log10(255*255/(100.0/(30*20*3))), like, 1e-6)

	var refused *InputError
	_, err = pool.Compare(deadline(t), source, write(t, "d.png", pngBytes(t, one)), 0)
	require.ErrorAs(t, err, &refused)
	require.Equal(t, OtherShape, refused.Code)
	_, err = pool.Compare(deadline(t), source, write(t, "e.png", []byte("no picture")), 0)
	require.ErrorAs(t, err, &refused)
}
