package handlers

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// simLog is what Kafka is to us: partitions with an order of their own, transactions that
// are seen as a whole or not at all, a compacted changelog, a topic of dead letters.
type simLog struct {
	partitions [][]entry
	// used are the partitions with records in them, in the order of their first ones.
	used  []int32
	place kgo.TopicPartitioner
	// changelog has what was committed, by partition of the changelog.
	changelog [][]*kgo.Record
	letters   map[string]*events.DeadLetter
	// letterOrder lists them in the order in which they were first told of; told counts how
	// often a consumer's own dead letter of a record was.
	letterOrder []string
	told        map[string]int
}

type entry struct {
	record *kgo.Record
	event  events.Event
	fault  error // why record is no event
	txn    *transaction
}

// transaction is one of a saga.
type transaction struct {
	ended, committed bool
	// what else it writes when it is committed.
	offsets   map[int32]int64
	changelog []*kgo.Record
	letters   []events.LetterEvent
	changes   map[int32]*changeSet
}

func newSimLog(partitions, changelogs int) simLog {
	return simLog{partitions: make([][]entry, partitions), place: kgo.StickyKeyPartitioner(nil).ForTopic(events.Topic),
		changelog: make([][]*kgo.Record, changelogs), letters: map[string]*events.DeadLetter{}, told: map[string]int{}}
}

func (l *simLog) partitionOf(r *kgo.Record, partitions int) int32 {
	return int32(l.place.Partition(r, partitions))
}

// append writes a copy of the record at the end of its partition. Whoever reads it gets
// what Decode makes of it.
func (l *simLog) append(r *kgo.Record, at time.Time, txn *transaction) *entry {
	p := l.partitionOf(r, len(l.partitions))
	if len(l.partitions[p]) == 0 {
		l.used = append(l.used, p)
	}
	written := *r
	written.Partition, written.Offset, written.Timestamp = p, int64(len(l.partitions[p])), at
	e := entry{record: &written, txn: txn}
	e.event, e.fault = events.Decode(&written)
	l.partitions[p] = append(l.partitions[p], e)
	return &l.partitions[p][written.Offset]
}

// appendEvent writes an event, which must come out as it went in.
func (l *simLog) appendEvent(e events.Event, at time.Time, txn *transaction) *kgo.Record {
	r, err := e.Record()
	if err != nil {
		panic(err)
	}
	written := l.append(r, at, txn)
	if written.fault != nil {
		violated(e.JobID, "%s cannot be read back: %v", e.Type(), written.fault)
	}
	again := written.event
	if same := proto.Equal(again.Message, e.Message); !same || again.ID != e.ID || !again.Time.Equal(e.Time) || again.CausationID != e.CausationID {
		violated(e.JobID, "%s comes back as another", e.Type())
	}
	return r
}

// read gives up to n committed entries from offset on, and the offset after them. As for
// a read_committed consumer of Kafka, an open transaction is the end.
func (l *simLog) read(p int32, offset int64, n int) (found []entry, next int64) {
	for _, e := range l.partitions[p][offset:] {
		if len(found) == n || e.txn != nil && !e.txn.ended {
			break
		}
		if offset++; e.txn == nil || e.txn.committed {
			found = append(found, e)
		}
	}
	return found, offset
}

// commit ends a transaction.
func (l *simLog) commit(t *transaction) {
	t.ended, t.committed = true, true
	for _, r := range t.changelog {
		l.changelog[r.Partition] = append(l.changelog[r.Partition], r)
	}
	for _, e := range t.letters {
		l.tell(e)
	}
}

// tell writes a record about a dead letter, and has it read at once.
func (l *simLog) tell(e events.LetterEvent) {
	r, err := e.Record()
	if err != nil {
		panic(err)
	}
	if e, err = events.DecodeLetter(r); err != nil {
		panic(err)
	}
	if _, ok := e.Message.(*events.DeadLettered); ok {
		l.told[e.LetterID]++
	}
	before := l.letters[e.LetterID]
	after := events.FoldLetter(before, e)
	if after == nil {
		violated("", "a fact about a dead letter that there is not")
	}
	if before == nil {
		l.letterOrder = append(l.letterOrder, e.LetterID)
	}
	l.letters[e.LetterID] = after
}

// compact keeps, of the older part of a partition of the changelog, each key's last record
// only, and of that no tombstones.
func (l *simLog) compact(w *world) {
	c := &l.changelog[w.IntN(len(l.changelog))]
	if len(*c) == 0 {
		return
	}
	old := (*c)[:w.IntN(len(*c)+1)]
	last := map[string]int{}
	for i, r := range *c {
		last[string(r.Key)] = i
	}
	var kept []*kgo.Record
	for i, r := range old {
		if last[string(r.Key)] == i && r.Value != nil {
			kept = append(kept, r)
		}
	}
	kept = append(kept, (*c)[len(old):]...)
	*c = kept
}

// byKey orders a transaction's records of the changelog, which the saga writes in any order.
func byKey(records []*kgo.Record) {
	slices.SortFunc(records, func(a, b *kgo.Record) int { return bytes.Compare(a.Key, b.Key) })
}

// known says whether an entry is an event, for a consumer that passes over all else.
func (e entry) known() bool { return e.fault == nil }

// broken says whether an entry is no event, rather than one of a newer version.
func (e entry) broken() bool { return e.fault != nil && !errors.Is(e.fault, events.ErrUnknownType) }
