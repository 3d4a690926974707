package kafka

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTrackerCommitsTheDonePrefix compares with the definition, which is too slow to
// use: behind the last record of the longest prefix of added records that are done.
func TestTrackerCommitsTheDonePrefix(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		var (
			subject tracker
			added   []int64
			open    []int64
			done    = map[int64]bool{}
			offset  = random.Int64N(100)
			before  int64
		)
		for range 400 {
			if len(open) == 0 || random.IntN(100) < 52 {
				offset += 1 + random.Int64N(3)*random.Int64N(2) // with holes
				subject.add(offset, int32(offset/50))
				added, open = append(added, offset), append(open, offset)
				continue
			}
			i := random.IntN(len(open))
			chosen := open[i]
			open = append(open[:i], open[i+1:]...)
			done[chosen] = true
			grew := subject.done(chosen)

			want := prefix(added, done)
			require.Equal(t, want != before, grew, "seed %d", seed)
			require.Equal(t, want, subject.head.next, "seed %d", seed)
			if want > 0 {
				require.Equal(t, int32((want-1)/50), subject.head.epoch, "seed %d", seed)
			}
			before = want
		}
		for _, o := range open {
			subject.done(o)
		}
		require.Zero(t, subject.span(), "seed %d", seed)
		require.Equal(t, added[len(added)-1]+1, subject.head.next, "seed %d", seed)
	}
}

func prefix(added []int64, done map[int64]bool) int64 {
	next := int64(0)
	for _, offset := range added {
		if !done[offset] {
			break
		}
		next = offset + 1
	}
	return next
}

// TestTrackerOrderOfDoneDoesNotMatter is the metamorphic half: whatever the order in
// which the same records are done, the group ends at the same place.
func TestTrackerOrderOfDoneDoesNotMatter(t *testing.T) {
	offsets := []int64{3, 4, 7, 8, 20}
	for seed := range uint64(100) {
		var subject tracker
		for _, offset := range offsets {
			subject.add(offset, 0)
		}
		order := rand.New(rand.NewPCG(seed, 2)).Perm(len(offsets) - 1)
		for _, i := range order {
			subject.done(offsets[i+1])
			require.Zero(t, subject.head.next, "the first is not done")
		}
		subject.done(3)
		require.Equal(t, int64(21), subject.head.next)
	}
}

func TestTrackerRefusesWhatCannotBe(t *testing.T) {
	var subject tracker
	subject.add(5, 0)
	require.Panics(t, func() { subject.add(5, 0) }, "an offset twice")
	require.Panics(t, func() { subject.done(4) }, "an offset never added")
	require.True(t, subject.done(5))
	require.Panics(t, func() { subject.done(5) }, "done twice")
	require.Panics(t, func() { subject.add(4, 0) }, "an offset before the last")
}
