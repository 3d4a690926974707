package kafka

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestReadOffsets(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		name := newTopic(t, brokers, 1)
		client, ctx := newClient(t, brokers), within1(t)
		var records []*kgo.Record
		for i := range 3 * seekBeyond {
			records = append(records, &kgo.Record{Topic: name, Value: fmt.Append(nil, i)})
		}
		require.NoError(t, client.ProduceSync(ctx, records...).FirstErr())
		cfg := DefaultConfig(brokers...)
		last := int64(len(records) - 1)
		for _, offsets := range [][]int64{{0}, {last}, {0, 1, 2, seekBeyond - 1, seekBeyond, 2*seekBeyond + 5, last}, {0, last}} {
			found, err := ReadOffsets(ctx, cfg, logger(), name, 0, offsets)
			require.NoError(t, err)
			require.Len(t, found, len(offsets))
			for i, r := range found {
				require.Equal(t, offsets[i], r.Offset)
				require.Equal(t, fmt.Sprint(offsets[i]), string(r.Value))
			}
		}
		none, err := ReadOffsets(ctx, cfg, logger(), name, 0, nil)
		require.NoError(t, err)
		require.Empty(t, none)
		_, err = ReadOffsets(ctx, cfg, logger(), name, 0, []int64{-1})
		require.ErrorIs(t, err, ErrNoRecord)

		// Of an aborted transaction there are offsets and no records.
		producer := newClient(t, brokers, kgo.TransactionalID(name))
		require.NoError(t, producer.BeginTransaction())
		require.NoError(t, producer.ProduceSync(ctx, &kgo.Record{Topic: name}).FirstErr())
		require.NoError(t, producer.EndTransaction(ctx, kgo.TryAbort))
		require.NoError(t, client.ProduceSync(ctx, &kgo.Record{Topic: name}).FirstErr())
		_, err = ReadOffsets(ctx, cfg, logger(), name, 0, []int64{last + 1})
		require.ErrorIs(t, err, ErrNoRecord)
		// Beyond the end there is nothing yet: it is waited for, no longer than asked.
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		_, err = ReadOffsets(short, cfg, logger(), name, 0, []int64{last + 100})
		require.Error(t, err)
	})
}
