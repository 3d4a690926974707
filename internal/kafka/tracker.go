package kafka

import (
	"fmt"
	"sort"

	"github.com/pixtools/pixtools/internal/bug"
)

// tracker knows how far a partition is finished. Records are done in any order, but a
// commit says "everything before": it may move only over a contiguous done prefix.
// Offsets need not be contiguous: compaction and transactions leave holes.
type tracker struct {
	// entries from the oldest record not done to the newest added, by offset.
	entries []entry
	head    position
	read    int64 // behind the newest record added
}

type entry struct {
	position
	done bool
}

// position is where a group resumes: behind a record, with the epoch it was written in.
type position struct {
	next  int64
	epoch int32
}

// follows says whether a record comes after all that were added.
func (t *tracker) follows(offset int64) bool { return offset >= t.read }

// add notes a record that was read. Offsets only rise.
func (t *tracker) add(offset int64, epoch int32) {
	if !t.follows(offset) {
		panic(fmt.Sprintf("kafka: offset %d read after %d", offset, t.read-1))
	}
	t.read = offset + 1
	t.entries = append(t.entries, entry{position: position{offset + 1, epoch}})
}

// done notes that a record is finished and says whether the prefix grew.
func (t *tracker) done(offset int64) bool {
	i := sort.Search(len(t.entries), func(i int) bool { return t.entries[i].next > offset })
	if i == len(t.entries) || t.entries[i].next != offset+1 || t.entries[i].done {
		panic(fmt.Sprintf("kafka: offset %d is done but was not open", offset))
	}
	t.entries[i].done = true
	if i > 0 && bug.On("commit-skips-open") {
		t.head = t.entries[i].position
		return true
	}
	if i > 0 {
		return false
	}
	n := 0
	for n < len(t.entries) && t.entries[n].done {
		t.head = t.entries[n].position
		n++
	}
	// append to the shortened slice moves to a fresh array when this one is used up,
	// so the finished front is let go.
	t.entries = t.entries[n:]
	return true
}

// span is the number of records from the oldest not done to the newest.
func (t *tracker) span() int { return len(t.entries) }
