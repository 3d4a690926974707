// Package kafka is a watermill publisher and subscriber on franz-go, with order
// per key and concurrency across keys.
//
// watermill's Router handles every message it receives in a goroutine of its own,
// so order is made here or nowhere. A subscription is one member of a consumer
// group; of each partition it owns it hands out many keys at once, but of one key
// one record at a time, the next after the Ack of the one before:
//
//	poll loop ─▶ partition ─▶ lane (one key) ─▶ worker ─▶ message ─▶ Router ─▶ Ack
//	    ▲            │                                                         │
//	    └── pause ◀──┴── tracker: commits up to the oldest record not done ◀───┘
//
// What is guaranteed:
//   - A record is delivered until it is acked (or GiveUp took it), over restarts and
//     rebalances: at least once. Only the contiguous prefix of done records is committed.
//   - Records of one key are handled one at a time and in offset order. Within one
//     process that holds always, also when a partition goes and comes back. Between
//     processes it holds but for one window: a handler that overruns
//     DrainTimeout and ignores its cancelled context, or a process cut off for longer than its
//     session timeout, may still be busy when the next owner starts.
//   - A slow handler delays its own key only, and never costs the member its
//     partitions: heartbeats, polls and hand-overs do not wait for handlers, but for
//     DrainTimeout at a hand-over.
//
// Where to read: subscriber.go (poll loop, assignment), partition.go (lanes and
// workers; its comments walk the interleavings), tracker.go, catchup.go; apart from
// them publisher.go and topics.go.
package kafka

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kslog"
)

// fetchMaxBytes and fetchMaxPartitionBytes bound what one fetch brings into memory,
// per broker and per partition. A larger single batch still comes, alone.
const (
	fetchMaxBytes          = 16 << 20
	fetchMaxPartitionBytes = 1 << 20

	// fetchMaxWait is how long a broker holds a fetch that finds nothing. A partition
	// that resumes after a pause joins the next fetch, so this is also how long its
	// workers may run dry; with kgo's default of 5 s that was most of the time.
	fetchMaxWait = 250 * time.Millisecond
)

// NewClient makes a client that the caller closes. It produces idempotently, waits
// for all in-sync replicas and does not linger: here somebody waits for each publish.
// Records with a key go where every Kafka client puts them (murmur2).
//
// It does not connect yet; Ping does.
func NewClient(cfg Config, log *slog.Logger, opts ...kgo.Opt) (*kgo.Client, error) {
	common, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	common = append(common,
		kgo.WithLogger(kslog.New(log)),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.ZstdCompression(), kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(cfg.MaxBatchBytes),
		kgo.MaxBufferedRecords(cfg.MaxBufferedRecords),
		kgo.MaxBufferedBytes(int(cfg.MaxBufferedBytes)),
		kgo.FetchMaxBytes(fetchMaxBytes),
		kgo.FetchMaxPartitionBytes(fetchMaxPartitionBytes),
		kgo.FetchMaxWait(fetchMaxWait),
	)
	client, err := kgo.NewClient(append(common, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return client, nil
}

// NewProducerClient makes a client for a Publisher. It differs from NewClient in that
// a record can be given up while a broker owes its answer: otherwise a record of a
// failed publish would wait in the buffer and be written minutes later, when the
// broker is back and the caller long gone. It excludes transactions.
func NewProducerClient(cfg Config, log *slog.Logger, opts ...kgo.Opt) (*kgo.Client, error) {
	return NewClient(cfg, log, append([]kgo.Opt{kgo.AllowIdempotentProduceCancellation()}, opts...)...)
}
