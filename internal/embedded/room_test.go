package embedded

import (
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestRefusals: with its disk full, the broker refuses whatever would be written, with an error that
// clients try again at, and has written nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	ctx, dir := testContext(t), t.TempDir()
	p := &Parts{log: slog.New(slog.DiscardHandler), failed: make(chan error, 4)}
	b, err := p.openBroker(dir, 0)
	require.NoError(t, err)
	t.Cleanup(b.close)
	brokers := b.cluster.ListenAddrs()
	makeTopic(t, brokers, 1, nil)
	record := func() *kgo.Record { return &kgo.Record{Topic: promisedTopic, Value: []byte("x")} }
	plain := newClient(t, brokers)
	require.NoError(t, plain.ProduceSync(ctx, record()).FirstErr())
	committing := newClient(t, brokers, kgo.TransactionalID("t"), kgo.RetryTimeout(time.Second))
	require.NoError(t, committing.BeginTransaction())
	require.NoError(t, committing.ProduceSync(ctx, record()).FirstErr())

	p.guardLog(b.cluster, dir, math.MaxInt64)
	impatient := newClient(t, brokers, kgo.RecordDeliveryTimeout(time.Second), kgo.RetryTimeout(time.Second), kgo.DisableIdempotentWrite())
	require.Error(t, impatient.ProduceSync(ctx, record()).FirstErr())
	require.Error(t, committing.EndTransaction(ctx, kgo.TryCommit))
	offsets := kadm.Offsets{}
	offsets.AddOffset(promisedTopic, 0, 1, -1)
	err = kadm.NewClient(plain).CommitAllOffsets(ctx, "group", offsets)
	require.ErrorIs(t, err, kerr.KafkaStorageError)
	require.True(t, kerr.IsRetriable(err))
	anew := kmsg.NewPtrInitProducerIDRequest()
	told, err := anew.RequestWith(ctx, newClient(t, brokers, kgo.RequestRetries(0)))
	require.NoError(t, err)
	require.Equal(t, kerr.KafkaStorageError.Code, told.ErrorCode)
	offered := kmsg.NewPtrTxnOffsetCommitRequest()
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic = promisedTopic
	topic.Partitions = []kmsg.TxnOffsetCommitRequestTopicPartition{kmsg.NewTxnOffsetCommitRequestTopicPartition()}
	offered.Topics = []kmsg.TxnOffsetCommitRequestTopic{topic}
	refused, ok := refusals[kmsg.TxnOffsetCommit](offered, kerr.KafkaStorageError.Code).(*kmsg.TxnOffsetCommitResponse)
	require.True(t, ok)
	require.Equal(t, kerr.KafkaStorageError.Code, refused.Topics[0].Partitions[0].ErrorCode)
	unacknowledged := kmsg.NewPtrProduceRequest()
	unacknowledged.Acks = 0
	require.Nil(t, refusals[kmsg.Produce](unacknowledged, 1))

	info := b.cluster.PartitionInfo(promisedTopic, 0)
	require.EqualValues(t, 2, info.HighWatermark, "the record, and that of the open transaction")
	require.EqualValues(t, 1, info.LastStableOffset, "it is not committed")
	require.Empty(t, p.failed, "nothing was tried")
}

// TestFailedWrite: a write that failed all the same ends the part, and says what to do.
func TestFailedWrite(t *testing.T) {
	t.Parallel()
	var lost []string
	log := kafkaLog{slog.New(slog.DiscardHandler), func(line string) { lost = append(lost, diskFault("/data/kafka", line).Error()) }}
	log.Logf(1, "persist batch %s-%d: %v", "t", 0, "no space left on device")
	log.Logf(1, "endTx: failed to persist control batch for %s p%d pid %d", "t", 0, 1)
	log.Logf(2, "groups.log: discarding %d corrupt trailing bytes", 3)
	log.Logf(3, "persist this: %v", "no fault")
	require.Len(t, lost, 2)
	require.Contains(t, lost[0], "make room there (persist batch t-0: no space left on device)")
	require.Contains(t, lost[0], "/data could not be written")
}
