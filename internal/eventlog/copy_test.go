package eventlog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/embedded"
	"github.com/pixtools/pixtools/internal/eventlog"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/testenv"
)

var quiet = slog.New(slog.DiscardHandler)

// cluster is a broker of one test's own, since the topics' names are fixed.
type cluster struct {
	*eventlog.Brokers
	client *kgo.Client
	t      *testing.T
}

func connect(t *testing.T, addresses []string) *cluster {
	cfg := kafka.DefaultConfig(addresses...)
	brokers, err := eventlog.Connect(t.Context(), cfg, quiet)
	require.NoError(t, err)
	t.Cleanup(brokers.Close)
	client, err := kafka.NewClient(cfg, quiet, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return &cluster{brokers, client, t}
}

func onKafka(t *testing.T) *cluster {
	c, err := testenv.StartKafka("", 1)
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	return connect(t, c.Brokers())
}

func onEmbedded(t *testing.T) *cluster {
	parts, err := embedded.Start(t.Context(), embedded.Config{DataDir: t.TempDir(), DiskReserve: 64 << 20, Bucket: "b", Region: "us-east-1"}, embedded.Needs{Kafka: true}, quiet)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, parts.Stop(context.Background())) })
	return connect(t, parts.Brokers)
}

// prepare makes the topics. The records of these tests are old: a broker that runs for half a minute
// would remove them.
func (c *cluster) prepare(partitions int32) func(context.Context) error {
	forever := map[string]string{"retention.ms": "-1"}
	return func(ctx context.Context) error {
		return errors.Join(
			kafka.EnsureTopic(ctx, c.client, kafka.Topic{Name: events.Topic, Partitions: partitions, Replication: 1, Initially: forever}),
			kafka.EnsureTopic(ctx, c.client, kafka.Topic{Name: events.DeadLetterTopic, Partitions: 1, Replication: 1, Initially: forever}))
	}
}

func (c *cluster) produce(records ...*kgo.Record) {
	c.t.Helper()
	require.NoError(c.t, c.client.ProduceSync(c.t.Context(), records...).FirstErr())
}

// all reads a topic's committed records, by quoted key in their order; those without a key are
// under none.
func (c *cluster) all(topic string) map[string][]*kgo.Record {
	c.t.Helper()
	t, err := c.Topic(c.t.Context(), topic)
	require.NoError(c.t, err)
	found := map[string][]*kgo.Record{}
	require.NoError(c.t, c.Read(c.t.Context(), topic, t.Ranges, func(r *kgo.Record) error {
		key := fmt.Sprintf("%q", r.Key)
		if r.Key == nil {
			key = "none"
		}
		found[key] = append(found[key], r)
		return nil
	}))
	return found
}

var began = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// history fills a log with jobs, of which the last has not ended, and with what no event
// is; two dead letters speak of that.
func history(t *testing.T, c *cluster, partitions int32, jobs int) {
	require.NoError(t, c.prepare(partitions)(t.Context()))
	put := func(id string, at time.Time, m proto.Message) {
		r, err := events.New(id, at, "pixtools/test", "request", m).Record()
		require.NoError(t, err)
		r.Partition, r.Timestamp = kafka.PartitionOf(r.Key, int(partitions)), at
		c.client.Produce(t.Context(), r, func(_ *kgo.Record, err error) { require.NoError(t, err) })
	}
	for i := range jobs {
		id, at := events.JobID("test", fmt.Sprint(i)), began.Add(time.Duration(i)*time.Second)
		request := &events.JobRequested{Tenant: "default", Operations: []*events.Operation{{Name: "webp"}, {Name: "jpg"}}, Source: &events.Source{Key: "raw/x", Sha256: "00"}}
		put(id, at, request)
		put(id, at, &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1})
		put(id, at, &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &events.Artifact{Key: "y"}})
		if i == jobs-1 {
			break
		}
		put(id, at, &events.OperationFailed{Revision: 1, Operation: "jpg", Attempt: 1, Kind: events.FailureKind_FAILURE_KIND_INPUT, Code: "truncated", Message: "cut off"})
		put(id, at, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_PARTIAL})
		if i == 0 {
			put(id, at, request) // which does not open it again
		}
	}
	require.NoError(t, c.client.Flush(t.Context()))
	// A transaction that was given up: nobody sees its records, and offsets have gaps.
	c.giveUp(kafka.PartitionOf([]byte("aborted"), int(partitions)))
	odd := []*kgo.Record{
		{Key: []byte("no\xffid"), Value: []byte{0, 0xff}, Headers: []kgo.RecordHeader{{Key: "a\xfe", Value: []byte("\xfd")}, {Key: "empty", Value: []byte{}}, {Key: "none"}, {Key: "a\xfe", Value: []byte("again")}}},
		{Key: []byte(events.JobID("test", "1")), Value: nil},
		{Key: []byte{}, Value: []byte{}},
		{Value: []byte("without a key"), Partition: partitions - 1},
	}
	for i, r := range odd {
		r.Topic, r.Timestamp = events.Topic, began.Add(time.Duration(i)*time.Millisecond)
		if r.Key != nil {
			r.Partition = kafka.PartitionOf(r.Key, int(partitions))
		}
	}
	c.produce(odd...)
	for _, r := range odd[:2] {
		letter, err := events.NewDeadLetter(began, "pixtools/saga", "", &events.DeadLettered{Group: events.SagaGroup, Code: events.CodeUndecodable,
			Origin: &events.Origin{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}}).Record()
		require.NoError(t, err)
		c.produce(letter)
	}
}

// giveUp writes a transaction into a partition, and aborts it.
func (c *cluster) giveUp(partition int32) {
	client, err := kgo.NewClient(kgo.SeedBrokers(c.client.OptValue(kgo.SeedBrokers).([]string)...), kgo.TransactionalID(fmt.Sprint("t", time.Now().UnixNano())), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(c.t, err)
	defer client.Close()
	require.NoError(c.t, client.BeginTransaction())
	require.NoError(c.t, client.ProduceSync(c.t.Context(), &kgo.Record{Topic: events.Topic, Partition: partition, Key: []byte("aborted"), Value: []byte("aborted")}).FirstErr())
	require.NoError(c.t, client.EndTransaction(c.t.Context(), kgo.TryAbort))
}

func silent(string, int64, int64) {}

// same wants equal records, key by key and in the same order, whatever their places.
func same(t *testing.T, want, got map[string][]*kgo.Record) {
	t.Helper()
	require.Len(t, got, len(want))
	for key, records := range want {
		require.Len(t, got[key], len(records), "records of key %q", key)
		for i, w := range records {
			g := got[key][i]
			require.Equal(t, w.Value, g.Value)
			require.Equal(t, w.Value == nil, g.Value == nil)
			require.Equal(t, w.Key == nil, g.Key == nil)
			require.Equal(t, w.Headers, g.Headers)
			require.Equal(t, w.Timestamp.UnixMilli(), g.Timestamp.UnixMilli())
		}
	}
}

// TestCopy: from the embedded broker to Apache Kafka and back, into other numbers of
// partitions, interrupted again and again.
func TestCopy(t *testing.T) {
	const jobs = 600
	source := onEmbedded(t)
	history(t, source, 12, jobs)
	dir := filepath.Join(t.TempDir(), "export")
	m, err := source.Export(t.Context(), eventlog.Export{Dir: dir, Progress: silent})
	require.NoError(t, err)
	require.EqualValues(t, jobs*5-2+1+4, m.Topics[0].Records)

	for _, to := range []struct {
		name       string
		open       func(*testing.T) *cluster
		partitions int32
	}{{"Kafka", onKafka, 5}, {"embedded", onEmbedded, 3}} {
		t.Run(to.name, func(t *testing.T) {
			target := to.open(t)
			im := eventlog.Import{Dir: dir, Partitions: to.partitions, Prepare: target.prepare(to.partitions), Progress: silent,
				Workers: map[string]string{"webp": "pixtools.op.webp", "jpg": "pixtools.op.jpg"}}
			dry := im
			dry.DryRun = true
			would, err := target.Import(t.Context(), dry)
			require.NoError(t, err)
			require.EqualValues(t, jobs*5-2+1+4+2, would.Records)
			require.Equal(t, 1, would.Open)
			_, err = target.Topic(t.Context(), events.Topic)
			require.ErrorIs(t, err, eventlog.ErrNoTopic, "a dry run makes nothing")

			for _, after := range []int64{1, 700, 2500} {
				interrupted(t, target, im, after)
				// What a restart of the embedded broker leaves behind, and another's failure.
				target.giveUp(int32(after) % to.partitions)
			}
			did, err := target.Import(t.Context(), im)
			require.NoError(t, err)
			require.Positive(t, did.Found)
			same(t, source.all(events.Topic), target.all(events.Topic))
			letters(t, source, target)
			workers(t, target, to.partitions, jobs)

			again, err := target.Import(t.Context(), im)
			require.NoError(t, err, "all of it is there")
			require.Equal(t, again.Records, again.Found)
			target.produce(&kgo.Record{Topic: events.Topic, Key: []byte("more"), Value: []byte("more")})
			_, err = target.Import(t.Context(), im)
			require.ErrorContains(t, err, "pixtools.jobs.v1 has records that are not of this export")

			// And on: what came back is what was.
			back := filepath.Join(t.TempDir(), "back")
			_, err = target.Export(t.Context(), eventlog.Export{Dir: back, Progress: silent})
			require.NoError(t, err)
			third := onEmbedded(t)
			im.Dir, im.Partitions, im.Prepare = back, 12, third.prepare(12)
			_, err = third.Import(t.Context(), im)
			require.NoError(t, err)
			same(t, target.all(events.Topic), third.all(events.Topic))
		})
	}
}

// interrupted imports until so many records are on their way.
func interrupted(t *testing.T, target *cluster, im eventlog.Import, after int64) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	im.Progress = func(what string, done, _ int64) {
		if what == "importing "+events.Topic && done == after {
			stop()
		}
	}
	_, err := target.Import(ctx, im)
	require.ErrorIs(t, err, context.Canceled)
}

// letters wants the dead letters to speak of the same records.
func letters(t *testing.T, source, target *cluster) {
	origins := func(c *cluster) (records []string) {
		for id, letter := range c.all(events.DeadLetterTopic) {
			e, err := events.DecodeLetter(letter[0])
			require.NoError(t, err)
			o := e.Message.(*events.DeadLettered).GetOrigin()
			require.NoError(t, c.Read(t.Context(), events.Topic, map[int32]eventlog.Range{o.GetPartition(): {From: o.GetOffset(), To: o.GetOffset() + 1}},
				func(r *kgo.Record) error {
					records = append(records, fmt.Sprintf("%s: %q %q", id, r.Key, r.Value))
					return nil
				}))
		}
		return records
	}
	require.Len(t, origins(source), 2)
	require.ElementsMatch(t, origins(source), origins(target))
}

// workers wants the group of an operation to begin at the job that waits for it, and the
// other, whose work is done, at the end.
func workers(t *testing.T, target *cluster, partitions int32, jobs int) {
	topic, err := target.Topic(t.Context(), events.Topic)
	require.NoError(t, err)
	open := events.JobID("test", fmt.Sprint(jobs-1))
	at := target.all(events.Topic)[strconv.Quote(open)][0]
	for group, first := range map[string]map[int32]int64{"pixtools.op.webp": {}, "pixtools.op.jpg": {at.Partition: at.Offset}} {
		offsets, err := kadm.NewClient(target.client).FetchOffsets(t.Context(), group)
		require.NoError(t, err)
		for partition := range partitions {
			want, waits := first[partition]
			if !waits {
				want = topic.Ranges[partition].To
			}
			got, ok := offsets.Lookup(events.Topic, partition)
			require.True(t, ok)
			require.Equal(t, want, got.At, "%s, partition %d", group, partition)
		}
	}
}

// TestUntil: an export up to a time is the beginning of the log.
func TestUntil(t *testing.T) {
	source := onEmbedded(t)
	history(t, source, 3, 50)
	dir := filepath.Join(t.TempDir(), "export")
	m, err := source.Export(t.Context(), eventlog.Export{Dir: dir, Until: began.Add(10 * time.Second), Progress: silent})
	require.NoError(t, err)
	require.EqualValues(t, 10*5+1, m.Topics[0].Records, "of the first ten seconds")
	_, err = source.Export(t.Context(), eventlog.Export{Dir: dir, Progress: silent})
	require.ErrorContains(t, err, "exists already")
	left, err := filepath.Glob(dir + ".unfinished*")
	require.NoError(t, err)
	require.Empty(t, left)
	target := onEmbedded(t)
	_, err = target.Import(t.Context(), eventlog.Import{Dir: dir, Partitions: 4, Prepare: target.prepare(4), Progress: silent})
	require.NoError(t, err)
	require.Len(t, target.all(events.Topic), 10)
}

// TestNothingIsWrittenUnderServices: half a job's events would be taken in and answered.
func TestNothingIsWrittenUnderServices(t *testing.T) {
	source := onEmbedded(t)
	history(t, source, 3, 5)
	dir := filepath.Join(t.TempDir(), "export")
	_, err := source.Export(t.Context(), eventlog.Export{Dir: dir, Progress: silent})
	require.NoError(t, err)
	target := onKafka(t)
	require.NoError(t, target.prepare(2)(t.Context()))
	im := eventlog.Import{Dir: dir, Partitions: 2, Prepare: target.prepare(2), Progress: silent, Workers: map[string]string{"webp": "pixtools.op.webp"}}
	member, err := kgo.NewClient(kgo.SeedBrokers(target.client.OptValue(kgo.SeedBrokers).([]string)...), kgo.ConsumerGroup("pixtools.op.webp"), kgo.ConsumeTopics(events.Topic),
		kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) {}))
	require.NoError(t, err)
	defer member.Close()
	require.Eventually(t, func() bool {
		_, err := target.Import(t.Context(), func() eventlog.Import { d := im; d.DryRun = true; return d }())
		return err != nil && strings.Contains(err.Error(), "pixtools.op.webp has members")
	}, time.Minute, 50*time.Millisecond)
	member.Close()
	// What a group kept of an earlier log would have it pass over records.
	offsets := kadm.Offsets{}
	offsets.AddOffset(events.Topic, 0, 7, -1)
	require.Eventually(t, func() bool {
		return kadm.NewClient(target.client).CommitAllOffsets(t.Context(), "pixtools.saga", offsets) == nil
	}, time.Minute, 50*time.Millisecond)
	_, err = target.Import(t.Context(), im)
	require.ErrorContains(t, err, "pixtools.saga has read partition 0 up to offset 7")
}

// TestLargeRecords: what would not fit is refused before anything is written.
func TestLargeRecords(t *testing.T) {
	source := onEmbedded(t)
	history(t, source, 2, 3)
	source.produce(&kgo.Record{Topic: events.Topic, Key: []byte("large"), Value: bytes.Repeat([]byte("x"), 5000)})
	dir := filepath.Join(t.TempDir(), "export")
	_, err := source.Export(t.Context(), eventlog.Export{Dir: dir, Progress: silent})
	require.NoError(t, err)
	target := onEmbedded(t)
	cfg := kafka.DefaultConfig(target.client.OptValue(kgo.SeedBrokers).([]string)...)
	for limit, fits := range map[int32]bool{5000 + 5 + 127: false, 5000 + 5 + 128: true} {
		cfg.MaxBatchBytes = limit
		brokers, err := eventlog.Connect(t.Context(), cfg, quiet)
		require.NoError(t, err)
		t.Cleanup(brokers.Close)
		_, err = brokers.Import(t.Context(), eventlog.Import{Dir: dir, DryRun: true, Partitions: 2, Progress: silent})
		if fits {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, "KAFKA_MAX_BATCH_BYTES")
		}
	}
}

// TestDamage: whatever byte of whatever file is another one, the import is refused, names
// the file and has written nothing.
func TestDamage(t *testing.T) {
	source := onEmbedded(t)
	history(t, source, 3, 20)
	dir := filepath.Join(t.TempDir(), "export")
	m, err := source.Export(t.Context(), eventlog.Export{Dir: dir, Progress: silent})
	require.NoError(t, err)
	target := onEmbedded(t)
	refused := func(names ...string) {
		t.Helper()
		_, err := target.Import(t.Context(), eventlog.Import{Dir: dir, Partitions: 2, Prepare: target.prepare(2), Progress: silent})
		require.Error(t, err)
		for _, name := range names {
			require.ErrorContains(t, err, name)
		}
		_, err = target.Topic(t.Context(), events.Topic)
		require.ErrorIs(t, err, eventlog.ErrNoTopic)
	}
	files := []string{"manifest.json", "manifest.json.sha256"}
	for _, f := range m.Files {
		files = append(files, f.Name)
	}
	require.Greater(t, len(files), 4)
	for _, name := range files {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, at := range []int{0, len(whole) / 3, len(whole) / 2, len(whole) - 1} {
			damaged := bytes.Clone(whole)
			damaged[at] ^= 1
			require.NoError(t, os.WriteFile(path, damaged, 0o600))
			refused(name)
		}
		require.NoError(t, os.WriteFile(path, whole[:len(whole)-1], 0o600))
		refused(name)
		require.NoError(t, os.Remove(path))
		refused(name)
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	// A segment that decodes well and tells something else.
	path := filepath.Join(dir, m.Files[0].Name)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	decoder, err := zstd.NewReader(nil)
	require.NoError(t, err)
	plain, err := decoder.DecodeAll(whole, nil)
	require.NoError(t, err)
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	other := bytes.Replace(plain, []byte("pixtools/test"), []byte("pixtools/tess"), 1)
	require.NotEqual(t, plain, other)
	require.NoError(t, os.WriteFile(path, encoder.EncodeAll(other, nil), 0o600))
	refused(m.Files[0].Name)
	require.NoError(t, os.WriteFile(path, whole, 0o600))
	// A manifest that is whole and says something else than the files.
	forge := func(change func(*eventlog.Manifest), says string) {
		t.Helper()
		var forged eventlog.Manifest
		raw, err := json.Marshal(m)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(raw, &forged))
		change(&forged)
		eventlog.Seal(t, &forged, dir)
		refused(says)
	}
	forge(func(m *eventlog.Manifest) { m.Version = 2 }, "version 2")
	forge(func(m *eventlog.Manifest) { m.Files[0].Name = "../secret" }, `"../secret"`)
	forge(func(m *eventlog.Manifest) { m.Files[0].Records++ }, m.Files[0].Name)
	forge(func(m *eventlog.Manifest) { m.Files = m.Files[1:] }, "the manifest says")
	forge(func(m *eventlog.Manifest) { m.Files[0].Topic = "other" }, "the topic other")
	eventlog.Seal(t, m, dir)
	_, err = target.Import(t.Context(), eventlog.Import{Dir: dir, Partitions: 2, Prepare: target.prepare(2), Progress: silent})
	require.NoError(t, err)
}
