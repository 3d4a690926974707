package eventlog

import (
	"container/heap"
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/internal/kafka"
)

const (
	// pollRecords is how many records one poll takes at most.
	pollRecords = 1000
	// queuedRecords and queuedBytes of one partition wait for their turn; at either,
	// fetching of the partition pauses.
	queuedRecords = 256
	queuedBytes   = 1 << 20
)

// source is a partition on its way through a merge.
type source struct {
	partition int32
	// next is the offset to read next; at end the partition is done.
	next, end int64
	queue     []*kgo.Record
	bytes     int
	paused    bool
}

func (s *source) full() bool { return len(s.queue) >= queuedRecords || s.bytes >= queuedBytes }

// merge reads partitions as one sequence: of one partition in the order of offsets,
// between partitions by the records' timestamps.
//
// It needs the next record of every partition to know which is the earliest, so a
// partition that is ahead in time waits: it pauses at its limit and is read on when its
// turn comes. That bounds the memory, whatever the log's length.
type merge struct {
	brokers *Brokers
	topic   string
	client  *kgo.Client
	sources map[int32]*source
	// ready are those with a record at hand, the earliest first; waiting counts those
	// that are not done and have none.
	ready   byTime
	waiting int
}

// Read yields the committed records of ranges, in the order of merge. It ends when all
// have come, with ctx, or with the first error of each.
func (b *Brokers) Read(ctx context.Context, topic string, ranges map[int32]Range, each func(*kgo.Record) error) error {
	m := &merge{brokers: b, topic: topic, sources: map[int32]*source{}}
	from := map[int32]kgo.Offset{}
	for partition, r := range ranges {
		if r.From < r.To {
			m.sources[partition] = &source{partition: partition, next: r.From, end: r.To}
			from[partition] = kgo.NewOffset().At(r.From)
		}
	}
	if len(from) == 0 {
		return ctx.Err()
	}
	m.waiting = len(from)
	var err error
	if m.client, err = b.consumer(topic, from); err != nil {
		return err
	}
	defer m.client.Close()
	for {
		r, err := m.take(ctx)
		if err != nil || r == nil {
			return err
		}
		if err := each(r); err != nil {
			return err
		}
	}
}

// consumer reads committed records. Control records, which only Kafka reads, come too, so
// that a partition's last offset is seen whatever it is.
func (b *Brokers) consumer(topic string, from map[int32]kgo.Offset) (*kgo.Client, error) {
	return kafka.NewClient(b.cfg, b.log,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // if retention took the first meanwhile
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords())
}

// take gives the next record, nil after the last.
func (m *merge) take(ctx context.Context) (*kgo.Record, error) {
	for m.waiting > 0 {
		if err := m.poll(ctx); err != nil {
			return nil, err
		}
	}
	if len(m.ready) == 0 {
		return nil, ctx.Err()
	}
	s := m.ready[0]
	r := s.queue[0]
	s.queue[0] = nil
	s.queue, s.bytes = s.queue[1:], s.bytes-size(r)
	if s.paused && s.next < s.end && !s.full() && len(s.queue) <= queuedRecords/2 {
		s.paused = false
		m.client.ResumeFetchPartitions(map[string][]int32{m.topic: {s.partition}})
	}
	switch {
	case len(s.queue) > 0:
		heap.Fix(&m.ready, 0)
	default:
		heap.Pop(&m.ready)
		if s.next < s.end {
			m.waiting++
		}
	}
	return r, nil
}

func size(r *kgo.Record) int { return len(r.Key) + len(r.Value) }

// poll brings records into the queues.
func (m *merge) poll(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, stallTimeout)
	defer cancel()
	fetches := m.client.PollRecords(limited, pollRecords)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := fetches.Err(); errors.Is(err, context.DeadlineExceeded) {
		return m.lookAgain(ctx)
	} else if err != nil {
		return fmt.Errorf("read %s: %w", m.topic, err)
	}
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if s := m.sources[p.Partition]; s != nil && len(p.Records) > 0 {
			m.add(s, p.Records)
		}
	})
	return nil
}

func (m *merge) add(s *source, records []*kgo.Record) {
	had, wasDone := len(s.queue) > 0, s.next >= s.end
	for _, r := range records {
		if r.Offset < s.next || r.Offset >= s.end {
			continue
		}
		if !r.Attrs.IsControl() {
			s.queue, s.bytes = append(s.queue, r), s.bytes+size(r)
		}
	}
	s.next = max(s.next, records[len(records)-1].Offset+1)
	if !s.paused && (s.full() || s.next >= s.end) {
		s.paused = true
		m.client.PauseFetchPartitions(map[string][]int32{m.topic: {s.partition}})
	}
	if had || wasDone {
		return
	}
	if len(s.queue) > 0 {
		heap.Push(&m.ready, s)
	}
	if len(s.queue) > 0 || s.next >= s.end {
		m.waiting--
	}
}

// lookAgain is for when nothing comes: retention may have taken what we wait for, or
// nobody answers any more.
func (m *merge) lookAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return each(ctx, kadm.NewClient(m.brokers.admin).ListStartOffsets, m.topic, func(p int32, start int64) {
		s := m.sources[p]
		if s == nil || s.next >= s.end || start < s.end {
			return
		}
		s.next = s.end
		if len(s.queue) == 0 {
			m.waiting--
		}
	})
}

// byTime is a heap of sources that have a record.
type byTime []*source

func (h byTime) Len() int { return len(h) }
func (h byTime) Less(i, j int) bool {
	a, b := h[i].queue[0], h[j].queue[0]
	if !a.Timestamp.Equal(b.Timestamp) {
		return a.Timestamp.Before(b.Timestamp)
	}
	return a.Partition < b.Partition
}
func (h byTime) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *byTime) Push(x any) { *h = append(*h, x.(*source)) }

// Pop is for container/heap.
func (h *byTime) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// Follow yields committed records from offsets on as they come, until ctx is done or each
// fails; idle is called when there are no more for now.
func (b *Brokers) Follow(ctx context.Context, topic string, from map[int32]int64, each func(*kgo.Record) error, idle func() error) error {
	offsets := map[int32]kgo.Offset{}
	for partition, offset := range from {
		offsets[partition] = kgo.NewOffset().At(offset)
	}
	client, err := b.consumer(topic, offsets)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		fetches := client.PollRecords(ctx, pollRecords)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s: %w", topic, err)
		}
		for r := range fetches.RecordsAll() {
			if r.Attrs.IsControl() {
				continue
			}
			if err := each(r); err != nil {
				return err
			}
		}
		if err := idle(); err != nil {
			return err
		}
	}
}
