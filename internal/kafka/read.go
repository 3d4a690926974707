package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ErrNoRecord says that no committed record is at an offset.
var ErrNoRecord = errors.New("there is no record at this offset")

// ReadAt reads one committed record, through a client of its own.
func ReadAt(ctx context.Context, cfg Config, log *slog.Logger, topic string, partition int32, offset int64) (*kgo.Record, error) {
	if offset < 0 {
		return nil, fmt.Errorf("%w: %s-%d at %d", ErrNoRecord, topic, partition, offset)
	}
	client, err := NewClient(cfg, log,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(offset)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxPartitionBytes(1))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	for {
		fetches := client.PollRecords(ctx, 1)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read %s-%d at %d: %w", topic, partition, offset, err)
		}
		for _, r := range fetches.Records() {
			if r.Offset == offset && !r.Attrs.IsControl() {
				return r, nil
			}
			return nil, fmt.Errorf("%w: %s-%d at %d", ErrNoRecord, topic, partition, offset)
		}
	}
}
