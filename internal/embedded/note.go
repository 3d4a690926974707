package embedded

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/pixtools/pixtools/internal/disk"
)

// The broker acknowledges a record after syncing it. When it starts again and meets a damaged batch, it
// cuts the log there and goes on. That is right for the tail that a crash tore, which nobody was promised,
// and wrong for anything before: accepted work would vanish without a word. The two look the same in
// the log, so beside it lies a note, synced on its own, of how far each partition was acknowledged.
// A log that ends before its note has lost data, and the broker is not started on it.
//
// The note is taken every noteInterval, so a loss within the last interval before a crash can go
// unnoticed; a loss of anything older cannot. Topics with retention or compaction are left out: after a
// kill -9 their logs may rightly end earlier.

const (
	noteFile     = "acknowledged.json"
	noteInterval = 250 * time.Millisecond
)

// note is, per topic and partition, the offset below which everything was acknowledged. It is 0 for a
// partition whose first records somebody deleted: where that begins after a kill -9 nobody knows.
type note map[string][]int64

type noteTaker struct {
	cluster *kfake.Cluster
	client  *kgo.Client
	path    string
	last    note
	cancel  context.CancelFunc
	ended   chan struct{}
	err     error
}

func startNote(cluster *kfake.Cluster, client *kgo.Client, dir string, fail func(error), log *slog.Logger) *noteTaker {
	ctx, cancel := context.WithCancel(context.Background())
	n := &noteTaker{
		cluster: cluster, client: client, path: filepath.Join(dir, noteFile),
		cancel: cancel, ended: make(chan struct{}),
	}
	go func() {
		defer close(n.ended)
		told := time.Time{}
		tick := time.NewTicker(noteInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				n.err = n.take()
				return
			case <-tick.C:
			}
			// A disk that does not take the note does not take the log either, and the broker only warns. Where
			// it is full, though, the broker is kept from writing, and the note comes when there is room.
			err := n.take()
			switch {
			case err == nil:
			case !disk.IsFull(err):
				fail(err)
			case time.Since(told) > fullAgain:
				told = time.Now()
				log.Error("the disk is full", "part", "kafka", "error", err)
			}
		}
	}()
	return n
}

// stop takes a last note, while the broker still runs.
func (n *noteTaker) stop() error {
	n.cancel()
	<-n.ended
	return n.err
}

// take asks the broker, which answers between two requests: what it names then is synced already.
func (n *noteTaker) take() error {
	ctx, cancel := context.WithTimeout(context.Background(), brokerTimeout)
	defer cancel()
	// Not by way of kadm, whose answer may be some seconds old: a topic made since would not be in the note,
	// nor would anything in it, even after a stop in order.
	all, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, n.client)
	if err != nil {
		return fmt.Errorf("note what is acknowledged: list topics: %w", err)
	}
	now := note{}
	for _, t := range all.Topics {
		if t.Topic == nil {
			continue
		}
		topic := *t.Topic
		if !n.keepsEverything(topic) {
			continue
		}
		for _, p := range n.cluster.PartitionInfos(topic) {
			end := p.HighWatermark
			if p.LogStartOffset > 0 {
				end = 0
			}
			now[topic] = append(now[topic], end)
		}
	}
	if equalNotes(now, n.last) {
		return nil
	}
	raw, err := json.Marshal(now)
	if err != nil {
		return err
	}
	if err := writeFileSynced(n.path, raw); err != nil {
		return fmt.Errorf("note what is acknowledged: %w", err)
	}
	n.last = now
	return nil
}

func (n *noteTaker) keepsEverything(topic string) bool {
	info := n.cluster.TopicInfo(topic)
	if info == nil {
		return false // deleted since it was listed
	}
	value := func(name string) string {
		if v := info.Configs[name]; v != nil {
			return *v
		}
		return ""
	}
	return value("retention.ms") == "-1" && !strings.Contains(value("cleanup.policy"), "compact")
}

func equalNotes(a, b note) bool {
	if len(a) != len(b) {
		return false
	}
	for topic, offsets := range a {
		if !slices.Equal(offsets, b[topic]) {
			return false
		}
	}
	return true
}

// checkLog makes sure that the broker may open the log.
func checkLog(dir string) error {
	if err := compareNote(dir); err != nil {
		return err
	}
	return mendIndexes(dir)
}

// compareNote compares the log on disk with the note, and changes nothing.
func compareNote(dir string) error {
	path := filepath.Join(dir, noteFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the first start
	}
	if err != nil {
		return err
	}
	const remedy = "restore %s from a backup; or, to go on without the lost records, remove %s and start again"
	var n note
	if err := json.Unmarshal(raw, &n); err != nil {
		return fmt.Errorf("the note of what was acknowledged is damaged (%w), so lost records could not be told: "+remedy, err, dir, path)
	}
	listed, err := listedPartitions(dir)
	if err != nil {
		return err
	}
	var faults []error
	for topic, offsets := range n {
		if listed[topic] < len(offsets) {
			faults = append(faults, fmt.Errorf("the broker knows of %d partitions of %s, not %d", listed[topic], topic, len(offsets)))
		}
		for partition, acknowledged := range offsets {
			end, err := logEnd(filepath.Join(dir, "partitions", fmt.Sprintf("%s-%d", url.PathEscape(topic), partition)))
			if err != nil {
				faults = append(faults, err)
			} else if end < acknowledged {
				faults = append(faults, fmt.Errorf("partition %d of %s is readable up to offset %d, but %d were acknowledged", partition, topic, end, acknowledged))
			}
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("the event log has lost acknowledged records: %w; "+remedy, errors.Join(faults...), dir, path)
	}
	return nil
}

// listedPartitions counts the partitions of each topic that the broker will know of. It begins anew where
// its own files are missing, whatever lies beside them.
func listedPartitions(dir string) (map[string]int, error) {
	if !exists(filepath.Join(dir, "meta.json")) {
		return nil, nil
	}
	raw, err := os.ReadFile(filepath.Join(dir, "topics.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var file struct {
		Topics []struct {
			Name       string `json:"name"`
			Partitions int    `json:"partitions"`
		} `json:"topics"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restore %s from a backup", filepath.Join(dir, "topics.json"), err, dir)
	}
	listed := map[string]int{}
	for _, t := range file.Topics {
		listed[t.Name] = t.Partitions
	}
	return listed, nil
}

// logEnd is the offset up to which a partition's log is whole from its beginning: segment after segment
// and batch after batch. The broker is not as strict: it believes the base offset and the leader epoch,
// which are not under a batch's checksum.
func logEnd(dir string) (int64, error) {
	end := int64(0)
	for {
		name := strconv.FormatInt(end, 10)
		raw, err := os.ReadFile(filepath.Join(dir, name+".dat"))
		if errors.Is(err, fs.ErrNotExist) {
			return end, nil
		}
		if err != nil {
			return 0, err
		}
		index, err := os.ReadFile(filepath.Join(dir, name+".idx"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		begin := end
		for size := batchSize(raw); size > 0; size = batchSize(raw) {
			if int64(binary.BigEndian.Uint64(raw)) != end || raw[batchMagicAt] != batchMagic || !indexed(raw, index) {
				break
			}
			end += int64(binary.BigEndian.Uint32(raw[batchDeltaAt:])) + 1
			raw, index = raw[size:], index[min(indexEntrySize, len(index)):]
		}
		if len(raw) > 0 || end == begin {
			return end, nil
		}
	}
}

// Beside each segment lies an index with an entry a batch, as the broker has it: version 1 (1 byte), the
// low byte of the CRC-32C of what follows (1), leader epoch (4), a time that is not read again (8), and
// whether the batch belongs to a transaction (1). Little-endian, unlike the batches.
const (
	indexEntrySize  = 15
	indexVersion    = 1
	indexCRCAt      = 1
	indexEpochAt    = 2
	indexTxnAt      = 14
	batchEpochOfLog = 12 // where a batch has the leader epoch
	batchMagicAt    = 16
	batchMagic      = 2
)

// indexed says whether the index begins with this batch's entry.
func indexed(batch, index []byte) bool {
	if len(index) < indexEntrySize || index[indexCRCAt] != byte(crc32.Checksum(index[indexEpochAt:indexEntrySize], castagnoli)) {
		return false
	}
	want := newIndexEntry(batch)
	copy(want[indexEpochAt+4:indexTxnAt], index[indexEpochAt+4:])
	return bytes.Equal(want[indexEpochAt:], index[indexEpochAt:indexEntrySize])
}

func newIndexEntry(batch []byte) []byte {
	entry := make([]byte, indexEntrySize)
	entry[0] = indexVersion
	binary.LittleEndian.PutUint32(entry[indexEpochAt:], binary.BigEndian.Uint32(batch[batchEpochOfLog:]))
	if attributes := binary.BigEndian.Uint16(batch[batchAttributesAt:]); attributes&attributeTransactional != 0 && attributes&attributeControl == 0 {
		entry[indexTxnAt] = 1
	}
	entry[indexCRCAt] = byte(crc32.Checksum(entry[indexEpochAt:], castagnoli))
	return entry
}

// mendIndexes adds what is missing at an index's end. The broker writes a batch first and its entry then.
// After a kill in between it would take that batch for one outside of transactions, though its transaction
// was never committed, and would take every later entry for that of the batch before.
func mendIndexes(dir string) error {
	segments, err := filepath.Glob(filepath.Join(dir, "partitions", "*", "*.dat"))
	if err != nil {
		return err
	}
	for _, segment := range segments {
		raw, err := os.ReadFile(segment)
		if err != nil {
			return err
		}
		path := strings.TrimSuffix(segment, ".dat") + ".idx"
		index, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		whole := len(index) / indexEntrySize * indexEntrySize
		mended := index[:whole:whole]
		for at := 0; batchSize(raw) > 0; at += indexEntrySize {
			if at >= whole {
				mended = append(mended, newIndexEntry(raw)...)
			}
			raw = raw[batchSize(raw):]
		}
		if len(mended) > len(index) {
			if err := writeFileSynced(path, mended); err != nil {
				return err
			}
		}
	}
	return nil
}
