package embedded

import (
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
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A transaction's commit is many writes: a marker in each partition, then each group offset. Kafka notes
// the decision first and, after a crash, finishes what it began. This broker does not: a kill -9 between
// two of the writes leaves a transaction that is committed here and aborted there. The saga's state could
// then say that a job has ended whose JobFinalized nobody will ever see.
//
// So the decision is noted here, synced before the broker hears of it. The broker handles one request
// after another, so at most one commit is torn: that of the last note. At the next start its missing
// markers and offsets are added before anyone may read.
//
// That needs a name for the transaction. Clients of EndTxn version 5 (KIP-890) get a new producer epoch
// with each, so producer id and epoch are one. Transactions of older clients share an epoch; theirs stay
// as torn as the broker leaves them.

const (
	commitFile = "commit.journal"
	// uniqueEpochs is the first version of EndTxn after which every transaction has an epoch of its own.
	uniqueEpochs = 5
)

// commitNote is the decision to commit a transaction.
type commitNote struct {
	ProducerID int64
	Epoch      int16
	Offsets    []groupOffset
}

// groupOffset names its topic as the client did: by name, or from version 6 of the request on by id.
type groupOffset struct {
	Group, Topic string
	TopicID      [16]byte
	Partition    int32
	Offset       int64
	LeaderEpoch  int32
	Metadata     string
}

// commitJournal takes the notes. The broker calls it from its one loop, so it needs no lock.
type commitJournal struct {
	file *os.File
	// offsets are those of open transactions, by producer id. A producer that vanishes leaves its last here,
	// until the process ends.
	offsets map[int64][]groupOffset
	log     *slog.Logger
}

func openJournal(dir string, log *slog.Logger) (*commitJournal, error) {
	file, err := os.OpenFile(filepath.Join(dir, commitFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &commitJournal{file: file, offsets: map[int64][]groupOffset{}, log: log}, nil
}

// watch has the broker ask us before it handles what concerns us.
func (j *commitJournal) watch(cluster *kfake.Cluster) {
	cluster.ControlKey(int16(kmsg.TxnOffsetCommit), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		j.remember(r.(*kmsg.TxnOffsetCommitRequest))
		return nil, nil, false
	})
	cluster.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		request := r.(*kmsg.EndTxnRequest)
		if err := j.end(request); err != nil {
			// Not committed, then: the client is told, and may try again.
			j.log.Error("cannot note a transaction's commit", "error", err)
			response := request.ResponseKind().(*kmsg.EndTxnResponse)
			response.ErrorCode = kerr.KafkaStorageError.Code
			return response, nil, true
		}
		return nil, nil, false
	})
}

// remember collects a transaction's offsets. Should the broker refuse them, the client will not commit.
func (j *commitJournal) remember(r *kmsg.TxnOffsetCommitRequest) {
	for _, t := range r.Topics {
		for _, p := range t.Partitions {
			o := groupOffset{Group: r.Group, Topic: t.Topic, TopicID: t.TopicID, Partition: p.Partition, Offset: p.Offset, LeaderEpoch: p.LeaderEpoch}
			if p.Metadata != nil {
				o.Metadata = *p.Metadata
			}
			j.offsets[r.ProducerID] = append(j.offsets[r.ProducerID], o)
		}
	}
}

func (j *commitJournal) end(r *kmsg.EndTxnRequest) error {
	offsets := j.offsets[r.ProducerID]
	if r.Commit && r.Version >= uniqueEpochs {
		if err := j.write(commitNote{ProducerID: r.ProducerID, Epoch: r.ProducerEpoch, Offsets: offsets}); err != nil {
			return err
		}
	}
	delete(j.offsets, r.ProducerID)
	return nil
}

const journalHeader = 8 // length and CRC-32C of what follows

// write puts a note in the place of the last one, whose commit is whole by now. Torn itself, it counts as
// none, rightly: the broker has not heard of the commit.
func (j *commitJournal) write(n commitNote) error {
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	frame = binary.BigEndian.AppendUint32(frame, crc32.Checksum(body, castagnoli))
	if _, err := j.file.WriteAt(append(frame, body...), 0); err != nil {
		return err
	}
	return j.file.Sync()
}

// clear says that no commit is torn.
func (j *commitJournal) clear() error { return errors.Join(j.file.Truncate(0), j.file.Sync()) }

// read is the last note, or nil.
func (j *commitJournal) read() (*commitNote, error) {
	raw, err := os.ReadFile(j.file.Name())
	if err != nil {
		return nil, err
	}
	if len(raw) < journalHeader {
		return nil, nil
	}
	body := raw[journalHeader:]
	size := binary.BigEndian.Uint32(raw)
	if uint64(size) > uint64(len(body)) || crc32.Checksum(body[:size], castagnoli) != binary.BigEndian.Uint32(raw[4:]) {
		return nil, nil
	}
	n := &commitNote{}
	if err := json.Unmarshal(body[:size], n); err != nil {
		return nil, err
	}
	return n, nil
}

// dropSnapshots makes the broker read its log anew. Its snapshots, written when it is stopped in order,
// say which transactions were aborted: a commit that is finished later contradicts them.
func dropSnapshots(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "partitions", "*", "snapshot.json"))
	if err != nil {
		return err
	}
	for _, name := range append(names, filepath.Join(dir, sessionFile)) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// unmarked lists the partitions that hold records of the transaction and not its end. If it was aborted in
// any, which means that the broker refused the commit after we had noted it, aborted is true.
func (n *commitNote) unmarked(dir string) (open kadm.TopicsSet, aborted bool, err error) {
	open = kadm.TopicsSet{}
	partitions, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if errors.Is(err, fs.ErrNotExist) {
		return open, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	for _, p := range partitions {
		escaped, number, ok := cutLast(p.Name(), "-")
		partition, err := strconv.ParseInt(number, 10, 32)
		topic, escapeErr := url.PathUnescape(escaped)
		if !ok || err != nil || escapeErr != nil {
			continue // not a partition's
		}
		begun := false
		err = eachBatch(filepath.Join(dir, "partitions", p.Name()), func(b batchInfo) {
			switch {
			case b.producerID != n.ProducerID:
			case b.control: // of whatever epoch: it ends what the producer has open
				aborted = aborted || begun && b.aborts
				begun = false
			case b.transactional:
				begun = b.epoch == n.Epoch
			}
		})
		if err != nil {
			return nil, false, err
		}
		if begun {
			open.Add(topic, int32(partition))
		}
	}
	return open, aborted, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// marker is the request that ends the transaction where its end is missing.
func (n *commitNote) marker(open kadm.TopicsSet) kmsg.WriteTxnMarkersRequestMarker {
	m := kmsg.NewWriteTxnMarkersRequestMarker()
	m.ProducerID, m.ProducerEpoch, m.Committed = n.ProducerID, n.Epoch, true
	for _, list := range open.Sorted() {
		t := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
		t.Topic, t.Partitions = list.Topic, list.Partitions
		m.Topics = append(m.Topics, t)
	}
	return m
}

// byGroup are the offsets to commit, as kadm takes them. Those of topics that are gone go with them.
func (n *commitNote) byGroup(topics kadm.TopicDetails) map[string]kadm.Offsets {
	names := map[[16]byte]string{}
	for _, t := range topics {
		names[t.ID] = t.Topic
	}
	groups := map[string]kadm.Offsets{}
	for _, o := range n.Offsets {
		if o.Topic == "" {
			o.Topic = names[o.TopicID]
		}
		if !topics.Has(o.Topic) {
			continue
		}
		offsets := groups[o.Group]
		offsets.Add(kadm.Offset{Topic: o.Topic, Partition: o.Partition, At: o.Offset, LeaderEpoch: o.LeaderEpoch, Metadata: o.Metadata})
		groups[o.Group] = offsets
	}
	return groups
}

// complete adds what is missing of the commit. Offsets that went on since are left.
func (b *broker) complete(ctx context.Context, n *commitNote, unmarked kadm.TopicsSet) error {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	if err := b.mark(ctx, n.marker(unmarked)); err != nil {
		return err
	}
	admin := kadm.NewClient(b.client)
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	for group, offsets := range n.byGroup(topics) {
		has, err := admin.FetchOffsets(ctx, group)
		// Not found: its first offsets are these.
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return fmt.Errorf("read the offsets of group %s: %w", group, err)
		}
		offsets.DeleteFunc(func(o kadm.Offset) bool {
			at, ok := has.Lookup(o.Topic, o.Partition)
			return ok && at.At >= o.At
		})
		if len(offsets) == 0 {
			continue
		}
		committed, err := admin.CommitOffsets(ctx, group, offsets)
		if err := errors.Join(err, committed.Error()); err != nil {
			return fmt.Errorf("commit the offsets of group %s: %w", group, err)
		}
	}
	return nil
}

// finishCommit completes the commit that an earlier run may have begun, with a broker of its own, and says
// whether there was anything to do. It may itself be cut off anywhere: the note stays until all is done.
func (p *Parts) finishCommit(ctx context.Context, dir string, j *commitJournal, open func() (*broker, error)) error {
	n, err := j.read()
	if n == nil || err != nil {
		return err
	}
	// Of an earlier try, perhaps: then they know the markers as records and not as ends.
	if err := dropSnapshots(dir); err != nil {
		return err
	}
	unmarked, aborted, err := n.unmarked(dir)
	if err != nil {
		return err
	}
	if aborted {
		return j.clear()
	}
	b, err := open()
	if err != nil {
		return err
	}
	err = b.complete(ctx, n, unmarked)
	b.close()
	if err != nil {
		return fmt.Errorf("finish the commit of producer %d, epoch %d: %w", n.ProducerID, n.Epoch, err)
	}
	if err := dropSnapshots(dir); err != nil {
		return err
	}
	if len(unmarked) > 0 {
		p.log.Warn("finished a transaction's commit that an earlier run was cut off in", "producer", n.ProducerID, "epoch", n.Epoch,
			"partitions", unmarked.Topics())
	}
	return j.clear()
}
