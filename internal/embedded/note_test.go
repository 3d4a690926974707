package embedded

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	imagePartitions = 3
	// imageSegment makes segments of a few batches each: a real one would take 100 MiB.
	imageSegment = 3000
)

// logImage is what a kill -9 leaves: a log, a note, and a tail written after the note was taken.
type logImage struct {
	cfg Config
	// acknowledged and tail are records by partition, in their order.
	acknowledged, tail [imagePartitions][]string
	// noted is how many bytes of each partition's log the note vouches for.
	noted [imagePartitions]int
}

func (l *logImage) kafkaDir() string { return filepath.Join(l.cfg.DataDir, "kafka") }
func (l *logImage) notePath() string { return filepath.Join(l.kafkaDir(), noteFile) }

// segments are the paths of a partition's segments, oldest first.
func (l *logImage) segments(t *testing.T, partition int) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(l.kafkaDir(), "partitions", fmt.Sprintf("%s-%d", promisedTopic, partition), "*.dat"))
	require.NoError(t, err)
	base := func(name string) int {
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".dat"))
		require.NoError(t, err)
		return n
	}
	slices.SortFunc(names, func(a, b string) int { return base(a) - base(b) })
	return names
}

// at finds a byte of a partition's log.
func (l *logImage) at(t *testing.T, partition, position int) (segment int, path string, offset int64) {
	t.Helper()
	for i, path := range l.segments(t, partition) {
		size := fileSize(t, path)
		if position < size {
			return i, path, int64(position)
		}
		position -= size
	}
	t.Fatalf("no byte %d in partition %d", position, partition)
	return 0, "", 0
}

func (l *logImage) size(t *testing.T, partition int) int {
	t.Helper()
	sum := 0
	for _, path := range l.segments(t, partition) {
		sum += fileSize(t, path)
	}
	return sum
}

func fileSize(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return int(info.Size())
}

// copy makes another of the same log, which listens elsewhere.
func (l *logImage) copy(t *testing.T) *logImage {
	t.Helper()
	c := *l
	c.cfg.DataDir = t.TempDir()
	for path, content := range l.files(t) {
		to := c.kafkaDir() + strings.TrimPrefix(path, l.kafkaDir())
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o700))
		require.NoError(t, os.WriteFile(to, []byte(content), 0o600))
	}
	return &c
}

func (l *logImage) start(t *testing.T) (*Parts, error) {
	t.Helper()
	return Start(testContext(t), l.cfg, Needs{Kafka: true}, slog.New(slog.DiscardHandler))
}

// requireRefused: the log is not opened, the message says why and what to do, and nothing is changed.
func (l *logImage) requireRefused(t *testing.T, why string) {
	t.Helper()
	before := l.files(t)
	parts, err := l.start(t)
	if err == nil {
		require.NoError(t, parts.Stop(testContext(t)))
	}
	require.ErrorContains(t, err, why)
	require.ErrorContains(t, err, fmt.Sprintf("restore %s from a backup; or, to go on without the lost records, remove %s", l.kafkaDir(), l.notePath()))
	require.True(t, maps.Equal(before, l.files(t)), "the evidence is gone")
}

func (l *logImage) files(t *testing.T) map[string]string {
	t.Helper()
	content := map[string]string{}
	require.NoError(t, filepath.WalkDir(l.kafkaDir(), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a running broker takes its note by way of a temporary file
		}
		content[path] = string(raw)
		return err
	}))
	return content
}

// makeLog writes both parts of the log and takes its image before the broker stops.
func makeLog(t *testing.T, random *rand.Rand) *logImage {
	t.Helper()
	ctx := testContext(t)
	running := &logImage{cfg: testConfig(t)}
	parts, err := running.start(t)
	require.NoError(t, err)
	makeTopic(t, parts.Brokers, imagePartitions, map[string]string{"segment.bytes": strconv.Itoa(imageSegment)})
	client := newClient(t, parts.Brokers, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	names := 0
	fill := func(to *[imagePartitions][]string) {
		for p := range int32(imagePartitions) {
			for range 40 {
				var batch []*kgo.Record
				for range 1 + random.IntN(3) {
					names++
					value := fmt.Sprintf("%d %s", names, strings.Repeat("x", random.IntN(300)))
					batch = append(batch, &kgo.Record{Topic: promisedTopic, Partition: p, Value: []byte(value)})
					to[p] = append(to[p], value)
				}
				require.NoError(t, client.ProduceSync(ctx, batch...).FirstErr())
			}
		}
	}
	fill(&running.acknowledged)
	var noted []byte
	require.Eventually(t, func() bool {
		noted, _ = os.ReadFile(running.notePath())
		return bytes.Equal(noted, running.wantNote(t))
	}, deadline, pollInterval)
	for p := range imagePartitions {
		running.noted[p] = running.size(t, p)
		require.Greater(t, len(running.segments(t, p)), 2)
	}
	fill(&running.tail)
	image := running.copy(t)
	require.NoError(t, parts.Stop(ctx))
	require.NoError(t, os.WriteFile(image.notePath(), noted, 0o600))
	return image
}

func (l *logImage) wantNote(t *testing.T) []byte {
	t.Helper()
	n := note{}
	for p := range imagePartitions {
		n[promisedTopic] = append(n[promisedTopic], int64(len(l.acknowledged[p])))
	}
	raw, err := json.Marshal(n)
	require.NoError(t, err)
	return raw
}

func (l *logImage) find(t *testing.T, brokers []string) (found [imagePartitions][]string) {
	t.Helper()
	for _, r := range readCommitted(t, brokers) {
		found[r.Partition] = append(found[r.Partition], string(r.Value))
	}
	return found
}

// TestNoteAllowsTornTail cuts what nobody was promised at 200 random bytes, some in each partition at a
// time: all that was acknowledged is there, and nothing but a beginning of the rest.
func TestNoteAllowsTornTail(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	image := makeLog(t, random)
	for range (200 + imagePartitions - 1) / imagePartitions {
		cut := image.copy(t)
		for p := range imagePartitions {
			position := image.noted[p] + random.IntN(image.size(t, p)-image.noted[p])
			segments := cut.segments(t, p)
			last, path, offset := cut.at(t, p, position)
			require.NoError(t, os.Truncate(path, offset))
			for _, later := range segments[last+1:] {
				require.NoError(t, os.Remove(later))
			}
		}
		parts, err := cut.start(t)
		require.NoError(t, err)
		found := cut.find(t, parts.Brokers)
		for p := range imagePartitions {
			acknowledged := len(image.acknowledged[p])
			require.GreaterOrEqual(t, len(found[p]), acknowledged)
			require.Equal(t, image.acknowledged[p], found[p][:acknowledged])
			require.Equal(t, image.tail[p][:len(found[p])-acknowledged], found[p][acknowledged:])
		}
		require.NoError(t, parts.Stop(testContext(t)))
	}
}

// TestNoteRefusesFlippedByte flips random bits of what was acknowledged, and each byte of a batch's
// header, where some are not under its checksum.
func TestNoteRefusesFlippedByte(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	image := makeLog(t, random)
	flip := func(p, position int, bit byte) {
		_, path, offset := image.at(t, p, position)
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		raw[offset] ^= bit
		require.NoError(t, os.WriteFile(path, raw, 0o600))
		t.Logf("partition %d, byte %d (%d of %s), bit %x", p, position, offset, filepath.Base(path), bit)
		image.requireRefused(t, "the event log has lost acknowledged records: ")
		raw[offset] ^= bit
		require.NoError(t, os.WriteFile(path, raw, 0o600))
	}
	for range 200 {
		p := random.IntN(imagePartitions)
		flip(p, random.IntN(image.noted[p]), 1<<random.IntN(8))
	}
	header := 0 // of a segment's first batch
	for _, path := range image.segments(t, 0) {
		for i := range batchMinimum {
			if header+i < image.noted[0] {
				flip(0, header+i, 1<<random.IntN(8))
			}
		}
		header += fileSize(t, path)
	}
	parts, err := image.start(t)
	require.NoError(t, err, "all is as it was")
	require.NoError(t, parts.Stop(testContext(t)))
}

func TestNoteRefusesMissingFiles(t *testing.T) {
	t.Parallel()
	image := makeLog(t, seeded(t))
	partition := filepath.Dir(image.segments(t, 1)[0])
	lost := map[string]string{
		"the partition":         partition,
		"all partitions":        filepath.Dir(partition),
		"the list of topics":    filepath.Join(image.kafkaDir(), "topics.json"),
		"the broker's identity": filepath.Join(image.kafkaDir(), "meta.json"),
	}
	before := 0
	for i, path := range image.segments(t, 1) {
		if before < image.noted[1] {
			lost[fmt.Sprintf("segment %d", i)] = path
		}
		before += fileSize(t, path)
	}
	for what, path := range lost {
		t.Run(what, func(t *testing.T) {
			aside := filepath.Join(t.TempDir(), "aside")
			require.NoError(t, os.Rename(path, aside))
			defer func() { require.NoError(t, os.Rename(aside, path)) }()
			image.requireRefused(t, "the event log has lost acknowledged records: ")
		})
	}
}

func TestNoteRefusesDamagedNote(t *testing.T) {
	t.Parallel()
	image := makeLog(t, seeded(t))
	whole, err := os.ReadFile(image.notePath())
	require.NoError(t, err)
	for size := range whole {
		require.NoError(t, os.WriteFile(image.notePath(), whole[:size], 0o600))
		image.requireRefused(t, "the note of what was acknowledged is damaged")
	}
	// It claims more than there is: there was more.
	require.NoError(t, os.WriteFile(image.notePath(), fmt.Appendf(nil, `{%q:[0,0,%d]}`, promisedTopic, 1_000_000), 0o600))
	image.requireRefused(t, fmt.Sprintf("partition 2 of %s is readable up to offset %d, but 1000000 were acknowledged",
		promisedTopic, len(image.acknowledged[2])+len(image.tail[2])))

	// The remedy that the message names works.
	require.NoError(t, os.Remove(image.notePath()))
	parts, err := image.start(t)
	require.NoError(t, err)
	found := image.find(t, parts.Brokers)
	for p := range imagePartitions {
		require.Equal(t, slices.Concat(image.acknowledged[p], image.tail[p]), found[p])
	}
	require.NoError(t, parts.Stop(testContext(t)))
}

// TestTornIndex: a kill between the log's write and its index's. Records of open transactions must not
// become visible, neither that record nor later ones.
func TestTornIndex(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	for _, cut := range []int{1, 8, indexEntrySize, -7} { // below 0: half an entry too much, of a batch that is not there
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			image := &logImage{cfg: testConfig(t)}
			produce := func(client *kgo.Client, value string) {
				require.NoError(t, client.ProduceSync(ctx, &kgo.Record{Topic: promisedTopic, Value: []byte(value)}).FirstErr())
			}
			begun := func(brokers []string) *kgo.Client {
				client := newClient(t, brokers, kgo.TransactionalID(uuid.NewString()))
				require.NoError(t, client.BeginTransaction())
				return client
			}
			// crashed is what a kill -9 leaves when write has been called.
			crashed := func(write func(brokers []string)) *logImage {
				parts, err := image.start(t)
				require.NoError(t, err)
				write(parts.Brokers)
				left := image.copy(t)
				require.NoError(t, parts.Stop(ctx))
				return left
			}
			image = crashed(func(brokers []string) {
				makeTopic(t, brokers, 1, nil)
				produce(newClient(t, brokers), "a")
				produce(begun(brokers), "open")
			})
			index := strings.TrimSuffix(image.segments(t, 0)[0], ".dat") + ".idx"
			require.NoError(t, os.Truncate(index, int64(fileSize(t, index)-cut)))
			image = crashed(func(brokers []string) {
				plain, committed := newClient(t, brokers), begun(brokers)
				produce(plain, "b")
				produce(committed, "c")
				require.NoError(t, committed.EndTransaction(ctx, kgo.TryCommit))
				produce(plain, "d")
				produce(begun(brokers), "open, too")
			})
			parts, err := image.start(t)
			require.NoError(t, err)
			require.Equal(t, []string{"a", "b", "c", "d"}, image.find(t, parts.Brokers)[0])
			require.NoError(t, parts.Stop(ctx))
		})
	}
}

// TestNoteHasTopicsOfThisMoment: a program that is stopped right after its first start has its log vouched for.
func TestNoteHasTopicsOfThisMoment(t *testing.T) {
	t.Parallel()
	image := &logImage{cfg: testConfig(t)}
	parts, err := image.start(t)
	require.NoError(t, err)
	forever := "-1"
	_, err = kadm.NewClient(newClient(t, parts.Brokers)).CreateTopic(testContext(t), 1, 1, map[string]*string{"retention.ms": &forever}, "earlier")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		noted, _ := os.ReadFile(image.notePath())
		return string(noted) == `{"earlier":[0]}`
	}, deadline, pollInterval)
	makeTopic(t, parts.Brokers, imagePartitions, nil)
	client := newClient(t, parts.Brokers, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for p := range int32(imagePartitions) {
		value := fmt.Sprint(p)
		require.NoError(t, client.ProduceSync(testContext(t), &kgo.Record{Topic: promisedTopic, Partition: p, Value: []byte(value)}).FirstErr())
		image.acknowledged[p] = append(image.acknowledged[p], value)
	}
	require.NoError(t, parts.Stop(testContext(t)))
	noted, err := os.ReadFile(image.notePath())
	require.NoError(t, err)
	require.JSONEq(t, fmt.Sprintf(`{"earlier":[0],%q:[1,1,1]}`, promisedTopic), string(noted))
}
