package kafka

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Backoff of a catch-up that failed.
const (
	catchUpRetryMin = 100 * time.Millisecond
	catchUpRetryMax = 10 * time.Second
)

// catchUp runs the CatchUp hook until it succeeds; false: the partition went first.
func (s *subscription) catchUp(ctx context.Context, partition int32, first int64) bool {
	if s.cfg.CatchUp == nil {
		return true
	}
	for failures := 1; ; failures++ {
		err := s.cfg.CatchUp(ctx, s.topic, partition, s.records(ctx, partition, first))
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			return true
		}
		s.log.Warn("catching up failed, trying again", "partition", partition, "err", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(backoff(catchUpRetryMin, catchUpRetryMax, failures)):
		}
	}
}

// records reads a partition from an offset to the end it has now, with a client of its
// own: the group's client is at the same records already and stays there.
//
// It reads uncommitted: what a transaction wrote and has not committed may still
// matter to somebody who wants to know what was begun. Control records, which only
// Kafka reads, are asked for, so that the last offset is seen whatever it is, and not
// passed on. The topic must not be compacted: its last offset might never come.
func (s *subscription) records(ctx context.Context, partition int32, first int64) iter.Seq2[*kgo.Record, error] {
	return func(yield func(*kgo.Record, error) bool) {
		client, err := NewClient(s.shared, s.log,
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{s.topic: {partition: kgo.NewOffset().At(first)}}),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // if retention took the first meanwhile
			kgo.KeepControlRecords(),
		)
		if err != nil {
			yield(nil, err)
			return
		}
		defer client.Close()
		end, err := endOffset(ctx, client, s.topic, partition)
		if err != nil {
			yield(nil, err)
			return
		}
		readTo(ctx, client, end, yield)
	}
}

func endOffset(ctx context.Context, client *kgo.Client, topic string, partition int32) (int64, error) {
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("end of %s: %w", topic, err)
	}
	end, ok := ends.Lookup(topic, partition)
	if !ok {
		return 0, fmt.Errorf("end of %s-%d: no such partition", topic, partition)
	}
	return end.Offset, end.Err
}

func readTo(ctx context.Context, client *kgo.Client, end int64, yield func(*kgo.Record, error) bool) {
	for next := int64(0); next < end; {
		fetches := client.PollRecords(ctx, pollRecords)
		if err := fetches.Err(); err != nil {
			yield(nil, err)
			return
		}
		for r := range fetches.RecordsAll() {
			next = r.Offset + 1
			if next > end {
				return
			}
			if !r.Attrs.IsControl() && !yield(r, nil) {
				return
			}
		}
	}
}
