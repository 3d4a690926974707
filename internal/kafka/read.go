package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrNoRecord says that no committed record is at an offset.
var ErrNoRecord = errors.New("there is no record at this offset")

// seekBeyond is from how many records on it is cheaper to fetch anew than to read on.
const seekBeyond = 1000

// ReadOffsets reads the committed records at some offsets of a partition, which ascend,
// through a client of its own. The number of records is that of the offsets.
func ReadOffsets(ctx context.Context, cfg Config, log *slog.Logger, topic string, partition int32, offsets []int64) ([]*kgo.Record, error) {
	return readAt(ctx, func(opts ...kgo.Opt) (*kgo.Client, error) { return NewClient(cfg, log, opts...) }, topic, partition, offsets)
}

// ReadAt is ReadOffsets for those who have a client's options instead of a configuration.
func ReadAt(ctx context.Context, topic string, partition int32, offsets []int64, opts ...kgo.Opt) ([]*kgo.Record, error) {
	return readAt(ctx, func(more ...kgo.Opt) (*kgo.Client, error) { return kgo.NewClient(slices.Concat(opts, more)...) }, topic, partition, offsets)
}

func readAt(ctx context.Context, newClient func(...kgo.Opt) (*kgo.Client, error), topic string, partition int32, offsets []int64) ([]*kgo.Record, error) {
	if len(offsets) == 0 {
		return nil, nil
	}
	missing := func(offset int64) error { return fmt.Errorf("%w: %s-%d at %d", ErrNoRecord, topic, partition, offset) }
	if offsets[0] < 0 {
		return nil, missing(offsets[0])
	}
	client, err := newClient(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(offsets[0])}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	found := make([]*kgo.Record, 0, len(offsets))
	for {
		fetches := client.PollRecords(ctx, pollRecords)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read %s-%d at %d: %w", topic, partition, offsets[len(found)], err)
		}
		next := int64(0)
		for _, r := range fetches.Records() {
			next = r.Offset + 1
			wanted := offsets[len(found)]
			if r.Offset < wanted {
				continue
			}
			if r.Offset > wanted || r.Attrs.IsControl() {
				return nil, missing(wanted)
			}
			if found = append(found, r); len(found) == len(offsets) {
				return found, nil
			}
		}
		if wanted := offsets[len(found)]; next > 0 && wanted-next > seekBeyond {
			client.SetOffsets(map[string]map[int32]kgo.EpochOffset{topic: {partition: {Epoch: -1, Offset: wanted}}})
		}
	}
}
