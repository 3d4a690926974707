package handlers

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// partitioner puts events where every Kafka client puts them, and the changelogs'
// records where we say.
type partitioner struct{}

func (partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	if topic == events.SagaTopic || topic == events.WebhooksTopic {
		return kgo.ManualPartitioner().ForTopic(topic)
	}
	return kgo.StickyKeyPartitioner(nil).ForTopic(topic)
}

// fenceKey is the key of records that mark an end to read up to; they hold no state.
const fenceKey = "restored"

// readChangelog reads the states of partitions of the log to the changelog's ends. Where those
// are, no offset tells: the last records may be aborted ones, which are never delivered, or have
// been compacted away. So we append a record to each and read until it comes.
func (m *groupMember) readChangelog(ctx context.Context, partitions []int32, each func(partition int32, r *kgo.Record) error) error {
	from := map[int32]kgo.Offset{}
	for _, p := range partitions {
		from[p%m.changelogPartitions] = kgo.NewOffset().AtStart()
	}
	place := kgo.StickyKeyPartitioner(nil).ForTopic(events.Topic)
	client, err := kgo.NewClient(append(slices.Clone(m.opts),
		kgo.RecordPartitioner(partitioner{}),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{m.changelog: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)...)
	if err != nil {
		return err
	}
	defer client.Close()
	var fences []*kgo.Record
	for p := range from {
		fences = append(fences, &kgo.Record{Topic: m.changelog, Partition: p, Key: []byte(fenceKey), Value: []byte{}})
	}
	if err := client.ProduceSync(ctx, fences...).FirstErr(); err != nil {
		return fmt.Errorf("append the fence: %w", err)
	}
	left := map[int32]int64{}
	for _, fence := range fences {
		left[fence.Partition] = fence.Offset
	}
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, reading := left[r.Partition]
			if reading && err == nil && string(r.Key) != fenceKey {
				if of := int32(place.Partition(r, int(m.logPartitions))); slices.Contains(partitions, of) {
					err = each(of, r)
				}
			}
			if r.Offset >= end {
				delete(left, r.Partition)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// putState takes in a record of a changelog: a job's state, or a tombstone.
func putState[T any, P interface {
	*T
	proto.Message
}](states map[string]P, r *kgo.Record, group string) error {
	if r.Value == nil {
		delete(states, string(r.Key))
		return nil
	}
	state := P(new(T))
	if err := proto.Unmarshal(r.Value, state); err != nil {
		return fmt.Errorf("changelog %s/%d at offset %d: %w; delete the topic %s and the offsets of group %s to rebuild it from the log",
			r.Topic, r.Partition, r.Offset, err, r.Topic, group)
	}
	states[string(r.Key)] = state
	return nil
}

// stateRecords are jobs' new states as records of a changelog; nil is a tombstone.
func stateRecords[P proto.Message](states map[string]P, topic string, partition int32) ([]*kgo.Record, error) {
	var records []*kgo.Record
	for id, state := range states {
		r := &kgo.Record{Topic: topic, Key: []byte(id), Partition: partition}
		if state.ProtoReflect().IsValid() {
			value, err := proto.MarshalOptions{Deterministic: true}.Marshal(state)
			if err != nil {
				return nil, fmt.Errorf("encode the state of job %s for %s: %w", id, topic, err)
			}
			r.Value = value
		}
		records = append(records, r)
	}
	return records, nil
}

// fault is what stopped the work at one record.
type fault struct{ message, stack string }

// guard keeps one job's trouble from stopping all others.
func guard(log *slog.Logger, job string, work func() error) (broken *fault) {
	defer func() {
		if p := recover(); p != nil {
			broken = &fault{fmt.Sprintf("panic: %v", p), string(debug.Stack())}
			log.ErrorContext(telemetry.OfKey(context.Background(), job), "a handler panicked", "error", broken.message, "stack", broken.stack)
		}
	}()
	if err := work(); err != nil {
		log.ErrorContext(telemetry.OfKey(context.Background(), job), "a handler cannot decide", "error", err)
		return &fault{message: err.Error()}
	}
	return nil
}
