package denoiser

// span is a tile's extent along one axis, in pixels: the network sees from..to, and of
// its answer keepFrom..keepTo goes into the result.
type span struct{ from, to, keepFrom, keepTo int }

// spans cuts an axis into tiles of at most the size tile, all equally large and as small as their
// number allows. length is the picture's; it is rounded up to the multiple, and what is
// beyond the picture is seen and never kept.
//
// What is kept lies halo away from the tile's ends, except at the picture's own: there the
// network meets the same edge as it would in the whole picture. Tiles begin at multiples,
// so that a strided convolution steps on the same pixels. Hence the parts put together
// are the whole.
func spans(length, tile, halo, multiple int) []span {
	padded := roundUp(length, multiple)
	if padded <= tile {
		return []span{{0, padded, 0, length}}
	}
	n := ceilDiv(padded-2*halo, tile-2*halo)
	side := roundUp(ceilDiv(padded+2*halo*(n-1), n), multiple)
	cut := make([]span, n)
	kept := 0
	for i := range cut {
		from := min(i*(side-2*halo), padded-side)
		cut[i] = span{from, from + side, kept, from + side - halo}
		kept = cut[i].keepTo
	}
	cut[n-1].keepTo = length
	return cut
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

func roundUp(a, multiple int) int { return ceilDiv(a, multiple) * multiple }

// reflected is the pixel that stands for one at or beyond the picture's end, as in a
// mirror on the last pixel. A picture narrower than the reflection is mirrored to and fro.
func reflected(at, length int) int {
	if length == 1 {
		return 0
	}
	period := 2 * (length - 1)
	if at %= period; at >= length {
		return period - at
	}
	return at
}
