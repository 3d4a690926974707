package audit

import (
	"bytes"
	"container/heap"
	"crypto/sha256"
	"slices"
)

// Sample keeps the n things whose ids have the least hashes: always the same of a log, and
// others with another seed. It holds n.
type Sample[T any] struct {
	n    int
	seed string
	kept drawn[T]
}

// NewSample makes a sample of n.
func NewSample[T any](n int, seed string) *Sample[T] { return &Sample[T]{n: n, seed: seed} }

// Offer gives the sample a thing; left is what is not in it, if that is anything.
func (s *Sample[T]) Offer(id string, thing T) (left bool) {
	lot := ticket[T]{sha256.Sum256([]byte(s.seed + "/" + id)), thing}
	switch {
	case len(s.kept) < s.n:
		heap.Push(&s.kept, lot)
		return false
	case s.n > 0 && bytes.Compare(lot.hash[:], s.kept[0].hash[:]) < 0:
		s.kept[0] = lot
		heap.Fix(&s.kept, 0)
	}
	return true
}

// All is what was drawn, in the order of the hashes.
func (s *Sample[T]) All() []T {
	sorted := slices.Clone(s.kept)
	slices.SortFunc(sorted, func(a, b ticket[T]) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	all := make([]T, len(sorted))
	for i, t := range sorted {
		all[i] = t.thing
	}
	return all
}

type ticket[T any] struct {
	hash  [sha256.Size]byte
	thing T
}

// drawn is a heap with the greatest hash on top.
type drawn[T any] []ticket[T]

func (d drawn[T]) Len() int           { return len(d) }
func (d drawn[T]) Less(i, j int) bool { return bytes.Compare(d[i].hash[:], d[j].hash[:]) > 0 }
func (d drawn[T]) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }

// Push is for container/heap.
func (d *drawn[T]) Push(x any) { *d = append(*d, x.(ticket[T])) }

// Pop is for container/heap.
func (d *drawn[T]) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}
