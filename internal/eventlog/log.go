// Package eventlog reads the log as an operator wants to see it, and copies it: the
// tools `pixtools events tail`, `cat`, `export` and `import`.
//
// Everything streams: no more of the log is in memory than a few batches of each
// partition. Where to read: log.go (a topic, its ends), merge.go (many partitions as one
// sequence), query.go and line.go (what is shown), archive.go (the files of an export),
// export.go, import.go (and how it goes on after an interruption), objects.go.
package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/internal/kafka"
)

const (
	// askTimeout bounds each question to the brokers, and so how long a cluster that is
	// away is waited for.
	askTimeout = 10 * time.Second
	// stallTimeout is how long a read may bring nothing before the brokers are asked
	// whether there still is something to read.
	stallTimeout = 10 * time.Second
)

// ErrNoTopic says that the cluster has no such topic.
var ErrNoTopic = errors.New("there is no such topic")

// Brokers is a cluster to read from and write to.
type Brokers struct {
	cfg   kafka.Config
	log   *slog.Logger
	admin *kgo.Client
}

// Connect asks the cluster for an answer. Close what it returns.
func Connect(ctx context.Context, cfg kafka.Config, log *slog.Logger) (*Brokers, error) {
	client, err := kafka.NewClient(cfg, log)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		client.Close()
		if refused := kafka.Refused(err); refused != nil {
			return nil, refused
		}
		return nil, fmt.Errorf("no broker answers at %v within %s: %w", cfg.Brokers, askTimeout, err)
	}
	return &Brokers{cfg: cfg, log: log, admin: client}, nil
}

// Close closes the connection.
func (b *Brokers) Close() { b.admin.Close() }

// Topic is a topic with the ends that it had when it was asked for.
type Topic struct {
	Name string
	// ID is drawn by Kafka when the topic is created.
	ID [16]byte
	// Ranges is what is in each partition: committed records, of those a reader of
	// committed records is given.
	Ranges map[int32]Range
	// Written is each partition's end, whatever is committed.
	Written map[int32]int64
}

// Range is the offsets from From to before To.
type Range struct{ From, To int64 }

// Topic asks what a topic holds now; ErrNoTopic where there is none.
func (b *Brokers) Topic(ctx context.Context, name string) (*Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	id, err := kafka.TopicID(ctx, b.admin, name)
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil, fmt.Errorf("%w: %s", ErrNoTopic, name)
	}
	if err != nil {
		return nil, err
	}
	t := &Topic{Name: name, ID: id, Ranges: map[int32]Range{}, Written: map[int32]int64{}}
	admin := kadm.NewClient(b.admin)
	// The committed end first: what is written meanwhile lies behind it.
	for _, ask := range []struct {
		list func(context.Context, ...string) (kadm.ListedOffsets, error)
		set  func(partition int32, offset int64)
	}{
		{admin.ListStartOffsets, func(p int32, o int64) { t.Ranges[p] = Range{From: o} }},
		{admin.ListCommittedOffsets, func(p int32, o int64) { t.Ranges[p] = Range{t.Ranges[p].From, o} }},
		{admin.ListEndOffsets, func(p int32, o int64) { t.Written[p] = o }},
	} {
		if err := each(ctx, ask.list, name, ask.set); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func each(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error), topic string, set func(int32, int64)) error {
	offsets, err := list(ctx, topic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for the ends of %s: %w", topic, err)
	}
	offsets.Each(func(o kadm.ListedOffset) { set(o.Partition, o.Offset) })
	return nil
}

// writtenSince gives the first offset of each partition that was written at a time or
// later; the partition's end where there is none.
func (b *Brokers) writtenSince(ctx context.Context, t *Topic, at time.Time) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	found := map[int32]int64{}
	list := func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
		// Kafka counts in whole milliseconds: the first that is not before.
		return kadm.NewClient(b.admin).ListOffsetsAfterMilli(ctx, at.Add(time.Millisecond-1).UnixMilli(), topics...)
	}
	err := each(ctx, list, t.Name, func(p int32, o int64) { found[p] = min(o, t.Ranges[p].To) })
	return found, err
}

// askAgain is the pause between two questions that brokers could not answer yet.
const askAgain = 250 * time.Millisecond

// persist asks again while the answer is that there is none yet, as of a cluster that has
// just begun.
func persist(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil || !kerr.IsRetriable(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(askAgain):
		}
	}
}
