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
	// ids are those of the ends and failures before it, and of the dead letters that a saga
	// told.
	ids map[uuid.UUID]struct{}
	// refused are the offsets of this partition's records that are dead letters of a saga.
	// Those of an imported log have ids that tell of another place.
	refused map[int64]struct{}
}

func (k *known) hasRefused(offset int64) bool {
	if k == nil {
		return false
	}
	_, found := k.refused[offset]
	return found
}

func (k *known) has(id string) bool {
	if k == nil {
		return false
	}
	parsed, err := uuid.Parse(id)
	_, found := k.ids[parsed]
	return err == nil && found
}

func (k *known) add(id string) {
	if parsed, err := uuid.Parse(id); err == nil {
		k.ids[parsed] = struct{}{}
	}
}

// look reads a partition from the first record that is to be folded to its end, and the
// dead letters where something was answered there.
func (s *Saga) look(ctx context.Context, partition int32, first int64) (*known, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RestoreTimeout)
	defer cancel()
	k := &known{ids: map[uuid.UUID]struct{}{}, refused: map[int64]struct{}{}}
	var err error
	given := false // whether there may be dead letters
	k.until, err = s.readToEnd(ctx, events.Topic, partition, first, func(r *kgo.Record) {
		e, err := events.Decode(r)
		switch kind := events.TypeOf(r); {
		case err != nil:
			given = true
		case kind == failedType:
			given = true
			k.add(e.ID)
		case kind == finalizedType:
			k.add(e.ID)
		}
	})
	if err == nil && given {
		_, err = s.readToEnd(ctx, events.DeadLetterTopic, 0, 0, func(r *kgo.Record) {
			e, err := events.DecodeLetter(r)
			m, ok := e.Message.(*events.DeadLettered)
			if err != nil || !ok || m.GetGroup() != events.SagaGroup {
				return
			}
			k.add(e.ID)
			if o := m.GetOrigin(); o.GetTopic() == events.Topic && o.GetPartition() == partition {
				k.refused[o.GetOffset()] = struct{}{}
			}
		})
	}
	if err != nil {
		return nil, fmt.Errorf("look ahead in partition %d: %w", partition, err)
	}
	return k, nil
}

var (
	finalizedType = events.Event{Message: &events.JobFinalized{}}.Type()
	failedType    = events.Event{Message: &events.OperationFailed{}}.Type()
)

// readToEnd calls each for the committed records of a partition, from an offset to the end
// that it has now.
func (s *Saga) readToEnd(ctx context.Context, topic string, partition int32, from int64, each func(*kgo.Record)) (end int64, err error) {
	client, err := kgo.NewClient(append(slices.Clone(s.opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(from)}}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the last offset is seen, whatever it is
	)...)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the ends of %s: %w", topic, err)
	}
	last, ok := ends.Lookup(topic, partition)
	if !ok {
		return 0, fmt.Errorf("%s has no partition %d", topic, partition)
	}
	starts, err := kadm.NewClient(client).ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the starts of %s: %w", topic, err)
	}
	if start, ok := starts.Lookup(topic, partition); ok {
		from = max(from, start.Offset) // what was before has expired
	}
	for next := from; next < last.Offset; {
		fetches := client.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return 0, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if r.Offset < last.Offset && !r.Attrs.IsControl() {
				each(r)
			}
		})
	}
	return last.Offset, nil
}
