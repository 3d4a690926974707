package embedded

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
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

// note is, per topic and partition, the offset below which everything was acknowledged.
type note map[string][]int64

type noteTaker struct {
	cluster *kfake.Cluster
	admin   *kadm.Client
	path    string
	last    note
	cancel  context.CancelFunc
	ended   chan struct{}
	err     error
}

func startNote(cluster *kfake.Cluster, client *kgo.Client, dir string, fail func(error)) *noteTaker {
	ctx, cancel := context.WithCancel(context.Background())
	n := &noteTaker{
		cluster: cluster, admin: kadm.NewClient(client), path: filepath.Join(dir, noteFile),
		cancel: cancel, ended: make(chan struct{}),
	}
	go func() {
		defer close(n.ended)
		tick := time.NewTicker(noteInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				n.err = n.take()
				return
			case <-tick.C:
			}
			// A disk that does not take the note does not take the log either, and the broker only warns.
			if err := n.take(); err != nil {
				fail(err)
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
	topics, err := n.admin.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("note what is acknowledged: list topics: %w", err)
	}
	now := note{}
	for _, topic := range topics.Names() {
		if !n.keepsEverything(topic) {
			continue
		}
		for _, p := range n.cluster.PartitionInfos(topic) {
			now[topic] = append(now[topic], p.HighWatermark)
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

// checkLog compares the log on disk with the note.
func checkLog(dir string) error {
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
	var faults []error
	for topic, offsets := range n {
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

// A record batch, as every Kafka broker keeps it: base offset (8 bytes), length of what follows (4),
// leader epoch (4), magic (1), CRC-32C (4) of all that follows it: attributes (2), last offset delta (4), ...
const (
	batchLengthAt = 8
	batchPrefix   = 12 // what the length does not count
	batchCRCAt    = 17
	batchBodyAt   = 21
	batchDeltaAt  = 23
	batchMinimum  = 61
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// logEnd is the offset after the last batch that can be read when reading from the start, as the broker does.
func logEnd(dir string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // nothing was written to it
	}
	if err != nil {
		return 0, err
	}
	var bases []int64
	for _, e := range entries {
		base, isSegment := strings.CutSuffix(e.Name(), ".dat")
		if !isSegment {
			continue
		}
		if n, err := strconv.ParseInt(base, 10, 64); err == nil {
			bases = append(bases, n)
		}
	}
	slices.Sort(bases)
	end := int64(0)
	for _, base := range bases {
		if base != end && end != 0 {
			return end, nil // the segment between them is missing or short
		}
		raw, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%d.dat", base)))
		if err != nil {
			return 0, err
		}
		for {
			size := batchSize(raw)
			if size == 0 {
				break
			}
			end = int64(binary.BigEndian.Uint64(raw)) + int64(binary.BigEndian.Uint32(raw[batchDeltaAt:])) + 1
			raw = raw[size:]
		}
	}
	return end, nil
}

// batchSize is the size of the batch that raw begins with, or 0 if it is cut short or damaged.
func batchSize(raw []byte) int {
	if len(raw) < batchMinimum {
		return 0
	}
	size := batchPrefix + int(binary.BigEndian.Uint32(raw[batchLengthAt:]))
	if size < batchMinimum || size > len(raw) {
		return 0
	}
	if crc32.Checksum(raw[batchBodyAt:size], castagnoli) != binary.BigEndian.Uint32(raw[batchCRCAt:]) {
		return 0
	}
	return size
}
