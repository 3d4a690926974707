package handlers

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

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

// readChangelog reads partitions of a changelog to their ends. Where those are, no offset
// tells: the last records may be aborted ones, which are never delivered, or have
// been compacted away. So we append a record to each and read until it comes.
func readChangelog(ctx context.Context, opts []kgo.Opt, topic string, partitions []int32, each func(*kgo.Record) error) error {
	from := map[int32]kgo.Offset{}
	for _, p := range partitions {
		from[p] = kgo.NewOffset().AtStart()
	}
	client, err := kgo.NewClient(append(slices.Clone(opts),
		kgo.RecordPartitioner(partitioner{}),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)...)
	if err != nil {
		return err
	}
	defer client.Close()
	var fences []*kgo.Record
	for p := range from {
		fences = append(fences, &kgo.Record{Topic: topic, Partition: p, Key: []byte(fenceKey), Value: []byte{}})
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
				err = each(r)
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

// aboutJob is a context for a record's key that may be no job's id.
func aboutJob(key string) context.Context {
	if !events.IsJobID(key) {
		return context.Background()
	}
	return telemetry.With(context.Background(), telemetry.About{JobID: key})
}

// fault is what stopped the work at one record.
type fault struct{ message, stack string }

// guard keeps one job's trouble from stopping all others.
func guard(log *slog.Logger, job string, work func() error) (broken *fault) {
	defer func() {
		if p := recover(); p != nil {
			broken = &fault{fmt.Sprintf("panic: %v", p), string(debug.Stack())}
			log.ErrorContext(aboutJob(job), "a handler panicked", "error", broken.message, "stack", broken.stack)
		}
	}()
	if err := work(); err != nil {
		log.ErrorContext(aboutJob(job), "a handler cannot decide", "error", err)
		return &fault{message: err.Error()}
	}
	return nil
}
