package projections

import (
	"encoding/binary"
	"errors"

	"github.com/pixtools/pixtools/events"
)

// longestHistory is of how many events of a job the places are kept. A job has some six;
// what is beyond is in the log all the same.
const longestHistory = 10_000

// history says where a job's events lie: their offsets in the job's partition, as they
// follow each other. As bytes, each is a varint: the first as it is, the others relative
// to the one before.
type history struct {
	raw  []byte
	last int64
	n    int
}

func (h history) add(offset int64) history {
	if h.n == longestHistory {
		return h
	}
	return history{binary.AppendUvarint(h.raw, uint64(offset-h.last)), offset, h.n + 1}
}

var errHistory = errors.New("the stored places of a job's events cannot be read; rebuild the read model")

func readHistory(raw []byte) (offsets []int64, err error) {
	last := int64(0)
	for rest := raw; len(rest) > 0; {
		delta, n := binary.Uvarint(rest)
		if n <= 0 {
			return nil, errHistory
		}
		last += int64(delta)
		offsets, rest = append(offsets, last), rest[n:]
	}
	return offsets, nil
}

func loadHistory(raw []byte) (history, error) {
	offsets, err := readHistory(raw)
	h := history{raw: raw, n: len(offsets)}
	if h.n > 0 {
		h.last = offsets[h.n-1]
	}
	return h, err
}

// row is what the read model has of a job.
type row struct {
	job     *events.Job
	history history
	// changes say how it stood, and since when: see standings.go.
	changes []int64
	// operations are the names of those asked for. A state forgets them when its job is
	// deleted; what was counted before stays.
	operations []string
}

// after is the row with one more event, at offset, and what that made of the job.
func (r row) after(next *events.Job, offset int64) row {
	before := r.job
	r.job, r.history = next, r.history.add(offset)
	if next == before {
		return r
	}
	r.changes = addChange(r.changes, next)
	if next.GetPhase() != events.Phase_PHASE_DELETED && !named(r.operations, next.GetOperations()) {
		r.operations = make([]string, 0, len(next.GetOperations())) // never nil, which COPY would take for NULL
		for _, op := range next.GetOperations() {
			r.operations = append(r.operations, op.GetName())
		}
	}
	return r
}

// named says whether these are the operations' names; of a row that has none yet they are not.
func named(names []string, ops []*events.OperationState) bool {
	if names == nil || len(names) != len(ops) {
		return false
	}
	for i, op := range ops {
		if names[i] != op.GetName() {
			return false
		}
	}
	return true
}

// located is an event and where it lies.
type located struct {
	events.Event
	offset int64
}
