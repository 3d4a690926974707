package kafka

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func newLagReader(t *testing.T, brokers []string, topic string, groups ...Group) *LagReader {
	cfg := DefaultLagConfig()
	cfg.Timeout = deadline
	l, err := NewLagReader(DefaultConfig(brokers...), cfg, logger(), topic, groups...)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

// lookNow is an answer that nobody got before.
func lookNow(t *testing.T, l *LagReader) Lags {
	t.Helper()
	lags, err := l.look(within1(t))
	require.NoError(t, err)
	return lags
}

// requireLag compares what a group is told to be with what it is: so many records, the oldest of that time.
func requireLag(t *testing.T, l *LagReader, group string, records int64, oldest time.Time) {
	t.Helper()
	lags := lookNow(t, l)
	want := Lag{Records: records}
	if records > 0 {
		want.Age = lags.At.Sub(oldest)
	}
	require.Contains(t, lags.Groups, group)
	got := lags.Groups[group]
	require.NoError(t, got.Err)
	require.Equal(t, want.Records, got.Records, group)
	// Kafka keeps whole milliseconds.
	require.Equal(t, want.Age.Milliseconds(), got.Age.Milliseconds(), group)
}

// TestLag: how far groups of both protocols are behind, in records and in time.
func TestLag(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		for protocol, opts := range map[string][]kgo.Opt{"classic": nil, "KIP-848": {kgo.ServerSideBalancer()}} {
			t.Run(protocol, func(t *testing.T) {
				t.Parallel()
				group, topic, ctx := "group-"+uuid.NewString(), newTopic(t, brokers, 3), within1(t)
				l := newLagReader(t, brokers, topic, Group{Name: group})
				requireLag(t, l, group, 0, time.Time{}) // of nothing

				// The oldest record is not that of the lowest partition.
				now := time.Now().Truncate(time.Millisecond)
				ago := func(d time.Duration) time.Time { return now.Add(-d) }
				produce(t, brokers,
					&kgo.Record{Topic: topic, Partition: 0, Timestamp: ago(time.Hour)}, &kgo.Record{Topic: topic, Partition: 0, Timestamp: ago(time.Minute)},
					&kgo.Record{Topic: topic, Partition: 2, Timestamp: ago(24 * time.Hour)}, &kgo.Record{Topic: topic, Partition: 2, Timestamp: ago(time.Second)})
				requireLag(t, l, group, 4, ago(24*time.Hour)) // of a group that nobody has heard of

				member := newClient(t, brokers, append([]kgo.Opt{kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
					kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted())}, opts...)...)
				next := func(records int) (got []*kgo.Record) {
					for len(got) < records {
						fetches := member.PollFetches(ctx)
						require.NoError(t, fetches.Err())
						got = append(got, fetches.Records()...)
					}
					return got
				}
				done := func(records []*kgo.Record, partition int32, offset int64) {
					for _, r := range records {
						if r.Partition == partition && r.Offset == offset {
							require.NoError(t, member.CommitRecords(ctx, r))
						}
					}
				}
				read := next(4)
				requireLag(t, l, group, 4, ago(24*time.Hour)) // reading is not passing
				done(read, 2, 0)
				requireLag(t, l, group, 3, ago(time.Hour))
				done(read, 0, 0)
				requireLag(t, l, group, 2, ago(time.Minute))
				done(read, 0, 1)
				requireLag(t, l, group, 1, ago(time.Second))
				done(read, 2, 1)
				requireLag(t, l, group, 0, time.Time{})
				produce(t, brokers, &kgo.Record{Topic: topic, Partition: 1, Timestamp: ago(time.Minute)})
				requireLag(t, l, group, 1, ago(time.Minute))
				done(next(1), 1, 0)
				requireLag(t, l, group, 0, time.Time{})
			})
		}
	})
}

// TestLagOverTransactions: what transactions leave in the log besides records is not to be passed, and
// what is not committed is not there yet.
func TestLagOverTransactions(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic, ctx := newTopic(t, brokers, 1), within1(t)
		at := map[int32]int64{}
		const group = "elsewhere"
		l := newLagReader(t, brokers, topic, Group{Name: group, Offsets: func(context.Context) (map[int32]int64, error) { return at, nil }})
		producer := newClient(t, brokers, kgo.TransactionalID(topic))
		begun := time.Now().Truncate(time.Millisecond)
		transact := func(how kgo.TransactionEndTry) {
			require.NoError(t, producer.BeginTransaction())
			require.NoError(t, producer.ProduceSync(ctx, &kgo.Record{Topic: topic, Timestamp: begun}).FirstErr())
			if how == kgo.TryCommit {
				requireLag(t, l, group, 0, time.Time{}) // not yet
			}
			require.NoError(t, producer.EndTransaction(ctx, how))
		}
		// The brokers write the mark after they have said that the transaction has ended.
		awaitEnd := func(want int64) {
			eventually(t, func() bool {
				ends, err := kadm.NewClient(producer).ListCommittedOffsets(ctx, topic)
				end, _ := ends.Lookup(topic, 0)
				return err == nil && end.Offset == want
			}, "the topic does not end at %d", want)
		}
		transact(kgo.TryCommit)
		awaitEnd(2) // a record and a mark
		requireLag(t, l, group, 2, begun)
		at[0] = 1
		requireLag(t, l, group, 0, time.Time{}) // only the mark is left
		transact(kgo.TryAbort)
		transact(kgo.TryAbort)
		awaitEnd(6)
		requireLag(t, l, group, 0, time.Time{})

		// Behind them is a record: those before it do not count.
		produce(t, brokers, &kgo.Record{Topic: topic, Timestamp: begun.Add(-time.Hour)})
		requireLag(t, l, group, 1, begun.Add(-time.Hour))
		at[0] = 7
		requireLag(t, l, group, 0, time.Time{})
		at[0] = 100 // of a log that was longer
		requireLag(t, l, group, 0, time.Time{})
	})
}

// TestLagOfManyGroups: groups at many offsets of a partition, far apart; one that is missing; one of
// which is not known where it is.
func TestLagOfManyGroups(t *testing.T) {
	eachBroker(t, func(t *testing.T, brokers []string) {
		topic := newTopic(t, brokers, 1)
		first := time.Now().Truncate(time.Millisecond).Add(-time.Hour)
		const records = 2000
		var all []*kgo.Record
		for i := range records {
			all = append(all, &kgo.Record{Topic: topic, Value: make([]byte, 1000), Timestamp: first.Add(time.Duration(i) * time.Second)})
		}
		produce(t, brokers, all...)
		missing := "group-" + uuid.NewString()
		groups := []Group{{Name: missing, MayBeMissing: true},
			{Name: "lost", Offsets: func(context.Context) (map[int32]int64, error) { return nil, errors.New("the table is away") }}}
		offsets := map[string]int64{"at 0": 0, "at 1": 1, "also at 1": 1, "at 1000": 1000, "at 1999": 1999, "at 2000": 2000}
		for name := range offsets {
			groups = append(groups, Group{Name: name, Offsets: func(context.Context) (map[int32]int64, error) { return map[int32]int64{0: offsets[name]}, nil }})
		}
		l := newLagReader(t, brokers, topic, groups...)
		for range 2 { // read, and then known
			for name, offset := range offsets {
				requireLag(t, l, name, records-offset, first.Add(time.Duration(offset)*time.Second))
			}
		}
		lags := lookNow(t, l)
		require.NotContains(t, lags.Groups, missing)
		require.ErrorContains(t, lags.Groups["lost"].Err, "the table is away")
		require.Len(t, lags.Groups, len(offsets)+1)
		require.Len(t, l.known, 4, "the records of now are kept, and no others")
		offsets["at 0"] = 5
		requireLag(t, l, "at 0", records-5, first.Add(5*time.Second))
		require.Len(t, l.known, 4)
	})
}

// TestLagIsAskedForOnce: who asks meanwhile, or soon after, gets the same answer.
func TestLagIsAskedForOnce(t *testing.T) {
	t.Parallel()
	brokers := embedded(t).ListenAddrs()
	var looks atomic.Int32
	release := make(chan struct{})
	group := Group{Name: "group", Offsets: func(context.Context) (map[int32]int64, error) {
		looks.Add(1)
		<-release
		return nil, nil
	}}
	cfg := LagConfig{Refresh: 10 * time.Minute, Timeout: deadline}
	l, err := NewLagReader(DefaultConfig(brokers...), cfg, logger(), newTopic(t, brokers, 1), group)
	require.NoError(t, err)
	defer l.Close()

	// The one who began it goes away; it goes on for the others.
	impatient, goAway := context.WithCancel(t.Context())
	var answers [20]Lags
	var asking sync.WaitGroup
	asking.Go(func() { answers[0], _ = l.Lags(impatient) })
	eventually(t, func() bool { return looks.Load() == 1 }, "nobody looks")
	goAway()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Lags(ended) // who does not wait does not wait
	require.ErrorIs(t, err, context.Canceled)
	for i := range answers[1:] {
		asking.Go(func() { answers[1+i], _ = l.Lags(t.Context()) })
	}
	close(release)
	asking.Wait()
	for _, a := range answers {
		require.False(t, a.At.IsZero())
		require.Equal(t, answers[0].At, a.At)
	}
	require.EqualValues(t, 1, looks.Load())
	l.until = time.Time{}
	later, err := l.Lags(t.Context())
	require.NoError(t, err)
	require.True(t, later.At.After(answers[0].At))
	require.EqualValues(t, 2, looks.Load())
}

// TestLagWithoutBrokers: it is told within its time, and not found out again by everybody.
func TestLagWithoutBrokers(t *testing.T) {
	t.Parallel()
	cluster := embedded(t)
	brokers, topic := cluster.ListenAddrs(), newTopic(t, cluster.ListenAddrs(), 1)
	var looks atomic.Int32
	group := Group{Name: "group", Offsets: func(context.Context) (map[int32]int64, error) {
		looks.Add(1)
		return nil, nil
	}}
	l, err := NewLagReader(DefaultConfig(brokers...), LagConfig{Refresh: 10 * time.Minute, Timeout: 100 * time.Millisecond}, logger(), topic, group)
	require.NoError(t, err)
	defer l.Close()
	cluster.Close()
	for range 3 {
		_, err = l.Lags(within1(t))
		require.ErrorContains(t, err, "ask where topic "+topic)
	}
	require.EqualValues(t, 1, looks.Load())
}
