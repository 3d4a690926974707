package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	txnTopic      = "accounts"
	txnPartitions = 6
	txnGroup      = "ledger"
)

// transactor writes the same number into every partition, and it as the group's offset, in one transaction.
type transactor struct {
	*kgo.Client
	id    string
	topic kadm.TopicID
}

func newTransactor(t *testing.T, brokers []string) *transactor {
	t.Helper()
	id := uuid.NewString()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.TransactionalID(id), kgo.ProducerLinger(0),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.DisableClientMetrics())
	require.NoError(t, err)
	t.Cleanup(client.Close)
	topics, err := kadm.NewClient(client).ListTopics(testContext(t), txnTopic)
	require.NoError(t, err)
	return &transactor{client, id, topics[txnTopic].ID}
}

// prepare is all of a transaction but its end.
func (x *transactor) prepare(ctx context.Context, number int64) error {
	if err := x.BeginTransaction(); err != nil {
		return err
	}
	var records []*kgo.Record
	for p := range int32(txnPartitions) {
		records = append(records, &kgo.Record{Topic: txnTopic, Partition: p, Value: fmt.Append(nil, number)})
	}
	if err := x.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	id, epoch, err := x.ProducerID(ctx)
	if err != nil {
		return err
	}
	r := kmsg.NewPtrTxnOffsetCommitRequest()
	r.TransactionalID, r.Group, r.ProducerID, r.ProducerEpoch, r.Generation = x.id, txnGroup, id, epoch, -1
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic, topic.TopicID = txnTopic, x.topic // the version decides which is sent
	for p := range int32(txnPartitions) {
		partition := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		partition.Partition, partition.Offset = p, number
		topic.Partitions = append(topic.Partitions, partition)
	}
	r.Topics = append(r.Topics, topic)
	answer, err := r.RequestWith(ctx, x.Client)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(answer.Topics[0].Partitions[0].ErrorCode)
}

func (x *transactor) transact(ctx context.Context, number int64) error {
	if err := x.prepare(ctx, number); err != nil {
		return err
	}
	return x.EndTransaction(ctx, kgo.TryCommit)
}

// ledger is what a reader of committed records finds, by partition, and the group's offsets.
func ledger(t *testing.T, brokers []string) (numbers [txnPartitions][]string, offsets []int64) {
	t.Helper()
	ctx := testContext(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(txnTopic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableClientMetrics())
	require.NoError(t, err)
	defer client.Close()
	admin := kadm.NewClient(client)
	ends, err := admin.ListEndOffsets(ctx, txnTopic)
	require.NoError(t, err)
	left := 0
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left++
		}
	})
	for left > 0 {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				numbers[r.Partition] = append(numbers[r.Partition], string(r.Value))
			}
			if end, _ := ends.Lookup(txnTopic, r.Partition); r.Offset+1 == end.Offset {
				left--
			}
		})
	}
	committed, err := admin.FetchOffsets(ctx, txnGroup)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return numbers, nil
	}
	require.NoError(t, err)
	for p := range int32(txnPartitions) {
		if o, ok := committed.Lookup(txnTopic, p); ok {
			offsets = append(offsets, o.At)
		}
	}
	return numbers, offsets
}

func makeTxnTopic(t *testing.T, brokers []string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DisableClientMetrics())
	require.NoError(t, err)
	defer client.Close()
	_, err = kadm.NewClient(client).CreateTopic(testContext(t), txnPartitions, 1, map[string]*string{"retention.ms": kmsg.StringPtr("-1")}, txnTopic)
	require.NoError(t, err)
}

// TestKillDuringCommits kills the broker again and again while transactions end. Each is whole or nothing.
func TestKillDuringCommits(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	spec := helperSpec{Config: testConfig(t), Needs: Needs{Kafka: true}}
	h := startHelper(t, spec, nil)
	makeTxnTopic(t, h.Brokers)
	number := int64(0)
	for range 30 {
		x := newTransactor(t, h.Brokers)
		acknowledged, ended := make(chan int64, 1000), make(chan struct{})
		go func() {
			defer close(ended)
			for x.transact(t.Context(), number+1) == nil {
				number++
				acknowledged <- number
			}
			number++ // perhaps committed, perhaps not
		}()
		for range 3 + random.IntN(4) {
			select {
			case <-acknowledged:
			case <-ended:
				t.Fatal("transactions fail")
			}
		}
		// Somewhere within the next transaction: it takes as long as the disk does, so a number of requests is
		// no measure. Spinning is: each turn is a system call.
		for range random.IntN(20_000) {
			_ = os.Getppid()
		}
		h.kill(t)
		x.Close() // or it would try again for ever
		<-ended
		close(acknowledged)
		last := number - 1
		h = startHelper(t, spec, nil)
		numbers, offsets := ledger(t, h.Brokers)
		for p := range numbers {
			require.Equal(t, numbers[0], numbers[p], "partition %d has another set of transactions than partition 0", p)
		}
		require.Contains(t, numbers[0], fmt.Sprint(last), "an acknowledged transaction is gone")
		require.Len(t, slices.Compact(offsets), 1, "offsets are of several transactions")
		require.Equal(t, numbers[0][len(numbers[0])-1], fmt.Sprint(offsets[0]), "records and offsets are of different transactions")
	}
}

// TestTornCommit builds each stage of a commit that was cut off, with and without the note.
//
// Not parallel: it opens a directory twice in this process, and a child that another test forks meanwhile
// holds the first lock until it has become its own program.
func TestTornCommit(t *testing.T) {
	ctx := testContext(t)
	for name, c := range map[string]struct {
		marked int
		noted  bool
		// recut: it was being finished at a start that was cut off as well, when the broker had stopped in
		// order and left snapshots.
		recut bool
		// aborted: the markers say so, since the broker had refused the commit that was noted.
		aborted bool
		want    []string
	}{
		"not begun":       {0, false, false, false, nil},
		"only noted":      {0, true, false, false, []string{"7"}},
		"one marker":      {1, true, false, false, []string{"7"}},
		"all but one":     {txnPartitions - 1, true, false, false, []string{"7"}},
		"all, no offsets": {txnPartitions, true, false, false, []string{"7"}},
		"cut off twice":   {2, true, true, false, []string{"7"}},
		"refused":         {2, true, false, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			parts, err := Start(ctx, cfg, Needs{Kafka: true}, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			makeTxnTopic(t, parts.Brokers)
			x := newTransactor(t, parts.Brokers)
			require.NoError(t, x.prepare(ctx, 7))
			id, epoch, err := x.ProducerID(ctx)
			require.NoError(t, err)

			// What is on the disk now, and the markers that were written, is what a kill -9 leaves.
			marker := kmsg.NewWriteTxnMarkersRequestMarker()
			marker.ProducerID, marker.ProducerEpoch, marker.Committed = id, epoch, !c.aborted
			topic := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
			topic.Topic = txnTopic
			for p := range int32(c.marked) {
				topic.Partitions = append(topic.Partitions, p)
			}
			if c.marked > 0 {
				marker.Topics = append(marker.Topics, topic)
				require.NoError(t, (&broker{client: x.Client}).mark(ctx, marker))
			}
			image := cfg
			image.DataDir = filepath.Join(filepath.Dir(cfg.DataDir), "image")
			require.NoError(t, os.CopyFS(image.DataDir, os.DirFS(cfg.DataDir)))
			require.NoError(t, parts.Stop(ctx))
			kafkaDir := filepath.Join(image.DataDir, "kafka")
			if c.noted {
				j, err := openJournal(kafkaDir, slog.Default())
				require.NoError(t, err)
				note := commitNote{ProducerID: id, Epoch: epoch}
				for p := range int32(txnPartitions) {
					note.Offsets = append(note.Offsets, groupOffset{Group: txnGroup, TopicID: x.topic, Partition: p, Offset: 7})
				}
				require.NoError(t, j.write(note))
				if c.recut {
					unmarked, _, err := note.unmarked(kafkaDir)
					require.NoError(t, err)
					b, err := (&Parts{log: slog.New(slog.DiscardHandler)}).openBroker(kafkaDir, 0)
					require.NoError(t, err)
					require.NoError(t, b.mark(ctx, note.marker(unmarked)))
					b.close()
				}
				require.NoError(t, j.file.Close())
			}
			for range 2 { // the second start finds what the first left
				parts, err = Start(ctx, image, Needs{Kafka: true}, slog.New(slog.DiscardHandler))
				require.NoError(t, err)
				numbers, offsets := ledger(t, parts.Brokers)
				require.NoError(t, parts.Stop(ctx))
				for p := range numbers {
					require.Equal(t, c.want, numbers[p], "partition %d", p)
				}
				if c.noted && !c.aborted {
					require.Equal(t, []int64{7, 7, 7, 7, 7, 7}, offsets)
				} else {
					require.Empty(t, offsets)
				}
			}
		})
	}
}
