package handlers

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
)

// known is what the log already tells behind the record that is being folded. A saga that
// begins anew on a log that others have worked on (its offsets are gone, or the log was
// imported) comes past every event that settled a job before it comes to the JobFinalized
// that was the answer; without this it would answer again.
//
// In ordinary life there is next to nothing in it: what lies between the committed offset
// and the log's end is what no saga has answered.
type known struct {
	// until is the first offset that was not looked at.
	until int64
	// ids are those of the ends and failures before it.
	ids map[uuid.UUID]struct{}
	// refused are offsets of records that are dead letters of ours; nil until asked for.
	refused map[int64]struct{}
}

func (k *known) has(eventID string) bool {
	if k == nil {
		return false
	}
	id, err := uuid.Parse(eventID)
	_, found := k.ids[id]
	return err == nil && found
}

// look reads a partition from the first record that is to be folded to its end.
func (s *Saga) look(ctx context.Context, partition int32, first int64) (*known, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RestoreTimeout)
	defer cancel()
	k := &known{ids: map[uuid.UUID]struct{}{}}
	err := s.readTo(ctx, events.Topic, partition, first, func(r *kgo.Record) {
		switch events.TypeOf(r) {
		case finalizedType, failedType:
			if e, err := events.Decode(r); err == nil {
				if id, err := uuid.Parse(e.ID); err == nil {
					k.ids[id] = struct{}{}
				}
			}
		}
	}, &k.until)
	if err != nil {
		return nil, fmt.Errorf("look ahead in partition %d: %w", partition, err)
	}
	return k, nil
}

var (
	finalizedType = events.Event{Message: &events.JobFinalized{}}.Type()
	failedType    = events.Event{Message: &events.OperationFailed{}}.Type()
)

// readTo calls each for the committed records of a partition from an offset to the end
// that it has now, which it puts into end.
func (s *Saga) readTo(ctx context.Context, topic string, partition int32, from int64, each func(*kgo.Record), end *int64) error {
	client, err := kgo.NewClient(append(slices.Clone(s.opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(from)}}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the last offset is seen, whatever it is
	)...)
	if err != nil {
		return err
	}
	defer client.Close()
	ends, err := committedEnds(ctx, client, topic)
	if err != nil {
		return err
	}
	*end = ends[partition]
	for next := from; next < *end; {
		fetches := client.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if r.Offset < *end && !r.Attrs.IsControl() {
				each(r)
			}
		})
	}
	return nil
}

// committedEnds are the ends up to which a topic's partitions can be read.
func committedEnds(ctx context.Context, client *kgo.Client, topic string) (map[int32]int64, error) {
	offsets, err := kadm.NewClient(client).ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the ends of %s: %w", topic, err)
	}
	ends := map[int32]int64{}
	offsets.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends, nil
}

// wasRefused says whether a record is a dead letter of ours already.
func (s *Saga) wasRefused(ctx context.Context, c *changeSet, r *kgo.Record) (bool, error) {
	k := c.memory.known
	if k == nil || r.Offset >= k.until {
		return false, nil
	}
	if k.refused == nil {
		ctx, cancel := context.WithTimeout(ctx, s.cfg.RestoreTimeout)
		defer cancel()
		refused, end := map[int64]struct{}{}, int64(0)
		err := s.readTo(ctx, events.DeadLetterTopic, 0, 0, func(letter *kgo.Record) {
			e, err := events.DecodeLetter(letter)
			if err != nil {
				return
			}
			m, ok := e.Message.(*events.DeadLettered)
			if ok && m.GetGroup() == events.SagaGroup && m.GetOrigin().GetTopic() == r.Topic && m.GetOrigin().GetPartition() == r.Partition {
				refused[m.GetOrigin().GetOffset()] = struct{}{}
			}
		}, &end)
		if err != nil {
			return false, fmt.Errorf("read the dead letters: %w", err)
		}
		k.refused = refused
	}
	_, found := k.refused[r.Offset]
	return found, nil
}

// caughtUp are those of our partitions that are read to their ends: only there is it known
// of an open job that nothing has ended it.
func (s *Saga) caughtUp(ctx context.Context, client *kgo.Client) ([]int32, error) {
	ends, err := committedEnds(ctx, client, events.Topic)
	if err != nil {
		return nil, err
	}
	committed := client.CommittedOffsets()[events.Topic]
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []int32
	for partition := range s.owned {
		at, read := s.read[partition]
		if !read {
			at = committed[partition].Offset
		}
		if at >= ends[partition] {
			all = append(all, partition)
		}
	}
	slices.Sort(all)
	return all, nil
}
