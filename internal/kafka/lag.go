package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// LagConfig bounds finding out how far consumer groups are behind.
type LagConfig struct {
	// Refresh is for how long an answer is given to everybody who asks, so that many who ask cost
	// the brokers as much as one.
	// Beyond it: it is found out anew.
	Refresh time.Duration `env:"KAFKA_LAG_REFRESH_INTERVAL" envDefault:"3s" range:"100ms to 10m"`
	// Timeout bounds finding an answer. Of what was not found in it, the error is told.
	// Beyond it: 503, or the group's lag is not known.
	Timeout time.Duration `env:"KAFKA_LAG_TIMEOUT" envDefault:"1500ms" range:"100ms to 1m"`
}

// DefaultLagConfig is the configuration of an empty environment.
func DefaultLagConfig() LagConfig { return defaults[LagConfig]() }

// Validate reports every fault at once, by the name of the variable.
func (c LagConfig) Validate() error {
	return errors.Join(
		within("KAFKA_LAG_REFRESH_INTERVAL", c.Refresh, 100*time.Millisecond, 10*time.Minute),
		within("KAFKA_LAG_TIMEOUT", c.Timeout, 100*time.Millisecond, time.Minute),
	)
}

// Group is a consumer group whose lag is asked for.
type Group struct {
	Name string
	// Offsets are where the group goes on, by partition, if that is not kept in Kafka. Like there, a
	// partition that is missing is one that the group begins at its start.
	Offsets func(ctx context.Context) (map[int32]int64, error)
	// MayBeMissing: a group that has committed nothing is left out of the answer. Otherwise it has all of
	// the topic before it.
	MayBeMissing bool
}

// Lag is how far a group is behind.
type Lag struct {
	// Records is how many offsets there are from the first record that the group has not passed to the end,
	// over all partitions: an upper bound of the records, since transactions take offsets of their own.
	// 0: it has passed everything.
	Records int64
	// Age is that of the oldest of these records at the time of the answer, by the record's own time; 0
	// where there are none.
	Age time.Duration
	// Err says why it is not known; the rest is then zero.
	Err error
}

// Lags are those of one moment.
type Lags struct {
	At     time.Time
	Groups map[string]Lag
}

const (
	// What one fetch of a record brings: the batch that it is in, and what follows it up to these.
	lagFetchBytes          = 1 << 20
	lagFetchPartitionBytes = 16 << 10
	lagFetchWait           = 100 * time.Millisecond
)

// LagReader finds out how far consumer groups are behind a topic that is not compacted, in records
// and in time.
//
// It asks for committed offsets, which are the same for classic groups and for those of KIP-848, and
// for the end as it is for who reads committed records. Between a group's offset and the end there
// may be nothing but the marks of transactions, over which a consumer that gets no record does not
// move: so it reads on from the offset, to the first record or to the end. What it finds there it
// keeps, and reads it no more while the group stands still.
type LagReader struct {
	shared Config
	cfg    LagConfig
	topic  string
	groups []Group
	log    *slog.Logger
	client *kgo.Client
	// turn is held by who looks, or reads what was found last.
	turn chan struct{}
	last Lags
	// fault is that of the last look, which found nothing; until is how long both count.
	fault error
	until time.Time
	// known are the first records that were found, at or behind an offset that a group is at.
	known map[place]found
}

// place is an offset of a partition.
type place struct {
	partition int32
	offset    int64
}

// found is what there is from a place on: a record, or none before the offset.
type found struct {
	record bool
	offset int64
	time   time.Time
}

// NewLagReader makes one, which is closed by the caller. It does not connect yet.
func NewLagReader(shared Config, cfg LagConfig, log *slog.Logger, topic string, groups ...Group) (*LagReader, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	client, err := NewClient(shared, log)
	if err != nil {
		return nil, err
	}
	return &LagReader{shared: shared, cfg: cfg, topic: topic, groups: groups, log: log, client: client,
		turn: make(chan struct{}, 1), known: map[place]found{}}, nil
}

// Close gives the connections back.
func (l *LagReader) Close() { l.client.Close() }

// Lags are the groups' lags, as of LagConfig.Refresh ago or later.
//
// One who asks looks, and who comes meanwhile waits for that and takes it. The look does not end with
// the one who began it: else those who wait would begin again. A failure is told like an answer is.
func (l *LagReader) Lags(ctx context.Context) (Lags, error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return Lags{}, ctx.Err()
	}
	defer func() { <-l.turn }()
	if time.Now().After(l.until) {
		looking, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.Timeout)
		defer cancel()
		l.last, l.fault = l.look(looking)
		l.until = time.Now().Add(l.cfg.Refresh)
	}
	return l.last, l.fault
}

// look finds out now. The offsets are asked for before the ends: a group may be taken to be a little
// more behind than it is, and never is ahead of the end for that.
func (l *LagReader) look(ctx context.Context) (Lags, error) {
	admin := kadm.NewClient(l.client)
	at, faults := l.offsets(ctx, admin)
	starts, err := Starts(ctx, admin, l.topic)
	var ends map[int32]int64
	if err == nil {
		ends, err = CommittedEnds(ctx, admin, l.topic)
	}
	if err != nil {
		return Lags{}, err
	}
	wanted := map[int32][]int64{}
	for _, offsets := range at {
		for partition, end := range ends {
			// Where nothing was committed, and where what was is not there any more, the group begins at the start.
			offset := max(offsets[partition], starts[partition])
			offsets[partition] = offset
			if k, ok := l.known[place{partition, offset}]; offset < end && !(ok && (k.record || k.offset >= end)) {
				wanted[partition] = append(wanted[partition], offset)
			}
		}
	}
	read := l.read(ctx, wanted, ends)
	now, answer, kept := time.Now(), Lags{Groups: map[string]Lag{}}, map[place]found{}
	answer.At = now
	for name, offsets := range at {
		if lag, whole := l.lag(offsets, ends, now, kept); whole {
			answer.Groups[name] = lag
		} else {
			answer.Groups[name] = Lag{Err: read}
		}
	}
	for name, err := range faults {
		answer.Groups[name] = Lag{Err: err}
	}
	for name, lag := range answer.Groups { // here, not where it is told: once, however many ask
		if lag.Err != nil {
			l.log.Warn("the lag of a consumer group is not known", "group", name, "error", lag.Err)
		}
	}
	l.known = kept
	return answer, nil
}

// lag is that of a group at some offsets; it is whole if all that it takes is known. What is known and
// of use is kept.
func (l *LagReader) lag(offsets, ends map[int32]int64, now time.Time, kept map[place]found) (lag Lag, whole bool) {
	whole = true
	for partition, end := range ends {
		p := place{partition, offsets[partition]}
		if p.offset >= end {
			continue
		}
		k, ok := l.known[p]
		if !ok || !k.record && k.offset < end {
			whole = false
			continue
		}
		kept[p] = k
		if k.record && k.offset < end {
			lag.Records += end - k.offset
			lag.Age = max(lag.Age, now.Sub(k.time))
		}
	}
	return lag, whole
}

// offsets are where each group is.
func (l *LagReader) offsets(ctx context.Context, admin *kadm.Client) (at map[string]map[int32]int64, faults map[string]error) {
	at, faults = map[string]map[int32]int64{}, map[string]error{}
	var inKafka []string
	for _, g := range l.groups {
		if g.Offsets == nil {
			inKafka = append(inKafka, g.Name)
			continue
		}
		asking, cancel := context.WithTimeout(ctx, l.cfg.Timeout/2) // the rest is for Kafka
		offsets, err := g.Offsets(asking)
		cancel()
		if err != nil {
			faults[g.Name] = fmt.Errorf("ask where %s is: %w", g.Name, err)
			continue
		}
		at[g.Name] = map[int32]int64{}
		for partition, offset := range offsets {
			at[g.Name][partition] = offset
		}
	}
	answers := admin.FetchManyOffsets(ctx, inKafka...)
	for _, name := range inKafka {
		answer, ok := answers[name]
		err := answer.Err
		if !ok {
			err = errors.New("the brokers did not tell")
		}
		offsets := map[int32]int64{}
		for _, o := range answer.Fetched[l.topic] {
			if err == nil {
				err = o.Err
			}
			if o.At >= 0 {
				offsets[o.Partition] = o.At
			}
		}
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			faults[name] = fmt.Errorf("ask where %s is: %w", name, err)
			continue
		}
		at[name] = offsets
	}
	for _, g := range l.groups {
		if g.MayBeMissing && len(at[g.Name]) == 0 {
			delete(at, g.Name)
		}
	}
	return at, faults
}

// read finds the first record at or behind each of the wanted offsets, in l.known. It reads a
// partition once, from the lowest on, and leaves out what lies between.
func (l *LagReader) read(ctx context.Context, wanted map[int32][]int64, ends map[int32]int64) error {
	if len(wanted) == 0 {
		return nil
	}
	from := map[int32]kgo.Offset{}
	for partition, offsets := range wanted {
		slices.Sort(offsets)
		wanted[partition] = slices.Compact(offsets)
		from[partition] = kgo.NewOffset().At(offsets[0])
	}
	client, err := NewClient(l.shared, l.log,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.topic: from}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // else it would not be seen that there is nothing else
		kgo.FetchMaxBytes(lagFetchBytes), kgo.FetchMaxPartitionBytes(lagFetchPartitionBytes), kgo.FetchMaxWait(lagFetchWait))
	if err != nil {
		return err
	}
	defer client.Close()
	for len(wanted) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read the records that groups are at: %w", err)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			offsets := l.note(p.Partition, p.Records, wanted[p.Partition], ends[p.Partition])
			if wanted[p.Partition] = offsets; len(offsets) == 0 {
				delete(wanted, p.Partition)
				client.PauseFetchPartitions(map[string][]int32{l.topic: {p.Partition}})
				return
			}
			if n := len(p.Records); n > 0 && p.Records[n-1].Offset+1 < offsets[0] {
				client.SetOffsets(map[string]map[int32]kgo.EpochOffset{l.topic: {p.Partition: {Epoch: -1, Offset: offsets[0]}}})
			}
		})
	}
	return nil
}

// note keeps the first record at or behind each of the wanted offsets, and returns those that wait for
// the next records.
func (l *LagReader) note(partition int32, records []*kgo.Record, wanted []int64, end int64) []int64 {
	next := int64(0)
	for _, r := range records {
		next = r.Offset + 1
		for !r.Attrs.IsControl() && len(wanted) > 0 && wanted[0] <= r.Offset {
			l.known[place{partition, wanted[0]}] = found{record: true, offset: r.Offset, time: r.Timestamp}
			wanted = wanted[1:]
		}
	}
	for next >= end && len(wanted) > 0 {
		l.known[place{partition, wanted[0]}] = found{offset: next}
		wanted = wanted[1:]
	}
	return wanted
}
