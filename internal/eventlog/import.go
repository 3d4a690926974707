package eventlog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"filippo.io/age"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/secrets"
)

// Import says what to read, and into what.
type Import struct {
	// Dir is what Export made.
	Dir string
	// DryRun checks everything and writes nothing.
	DryRun bool
	// Partitions are those of a log that is still to be made.
	Partitions int32
	// Prepare makes the topics where they are missing, as the services do; PrepareSecrets the tables
	// of Secrets.
	Prepare, PrepareSecrets func(context.Context) error
	// WithObjects: also the export's objects, into Store. A dry run does not touch it.
	WithObjects bool
	Store       *blob.Store
	// WithSecrets: also its secrets, into the database Secrets, decrypted by Identities. That is
	// a restore: nothing else may be there, neither in Store, nor in Secrets, nor what Unused,
	// which may be nil, finds.
	WithSecrets bool
	Secrets     *pgxpool.Pool
	Identities  []age.Identity
	Unused      func(context.Context) error
	// Workers are the consumer groups of operations, by operation: each is set to where its
	// first unfinished work is, so that it need not read what has ended.
	Workers map[string]string
	// Progress hears how far it is; a total of -1 is not known.
	Progress func(what string, done, total int64)
}

// Imported says what an import did, or would do.
type Imported struct {
	// Records are those of the export, Found those of them that were there already.
	Records, Found int64
	Objects        int64
	// Tables are those with secrets.
	Tables     []ManifestTable
	Partitions int
	// Open is how many jobs have not ended.
	Open int
}

// importedTopics in the order in which they are written: what the dead letters speak of
// is there before them.
var importedTopics = []string{events.Topic, events.DeadLetterTopic}

// Import writes an export into the cluster. Nothing is written before all of it is
// checked. The topics must be empty, or hold the beginning of this very import: then it
// goes on.
//
// Going on is safe because an import is a function of the export and the number of
// partitions: record k of a partition is always the same one. What a partition holds is
// compared by a running hash, so neither side is held in memory.
func (b *Brokers) Import(ctx context.Context, im Import) (Imported, error) {
	ended, err := lru.New[string, struct{}](rememberedEnds)
	if err != nil {
		return Imported{}, err
	}
	job := &importing{Import: im, brokers: b, plans: map[string]*plan{}, places: map[Place]Place{}, open: map[string]*openJob{}, ended: ended}
	steps := []func(context.Context) error{job.check, job.target, job.plan, job.vacant}
	if !im.DryRun {
		steps = append(steps, job.fits, job.prepare, job.blobs, job.secrets, job.write, job.compare, job.place)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return job.result, err
		}
	}
	return job.result, nil
}

// importing is an import under way.
type importing struct {
	Import
	brokers  *Brokers
	manifest *Manifest
	tables   []secrets.Table
	plans    map[string]*plan
	// places is where the records of dead letters come to lie, by where they were.
	places map[Place]Place
	open   map[string]*openJob
	// ended are the jobs that ended last.
	ended  *lru.Cache[string, struct{}]
	result Imported
}

// plan is what one topic's partitions have, and are to have.
type plan struct {
	topic string
	// found is what is there, written how many are to be: both by partition.
	found, written []content
}

// content is how many records a partition has, and a hash over them.
type content struct {
	records int64
	hash    hash.Hash
	sum     [sha256.Size]byte
	// gaps are where offsets run ahead of the number of records, since something else
	// stands in between: the embedded broker marks where an earlier run was cut off. end is
	// the offset of the next record.
	gaps []gap
	end  int64
}

// gap: from that record on, offsets are so much ahead.
type gap struct{ record, ahead int64 }

// offsetOf is where a partition's record of that number lies, or will: of those that are
// not there yet, each follows the one before.
func (c *content) offsetOf(record int64) int64 {
	if record >= c.records {
		return c.end + record - c.records
	}
	after := sort.Search(len(c.gaps), func(i int) bool { return c.gaps[i].record > record })
	if after == 0 {
		return record
	}
	return record + c.gaps[after-1].ahead
}

func newPlan(topic string, partitions int) *plan {
	p := &plan{topic: topic, found: make([]content, partitions), written: make([]content, partitions)}
	for i := range partitions {
		p.found[i].hash, p.written[i].hash = sha256.New(), sha256.New()
	}
	return p
}

// partitionOf is where a record goes: by its key, or by where it was if it has none.
func (p *plan) partitionOf(r *kgo.Record) int32 {
	if r.Key == nil {
		return r.Partition % int32(len(p.written))
	}
	return kafka.PartitionOf(r.Key, len(p.written))
}

// add takes in one more record. Its time is left out: a broker may be set to write its own.
func (c *content) add(r *kgo.Record) {
	c.records++
	var number [8]byte
	put := func(b []byte) {
		length := uint64(len(b)) + 1
		if b == nil {
			length = 0
		}
		c.hash.Write(binary.BigEndian.AppendUint64(number[:0], length))
		c.hash.Write(b)
	}
	put(r.Key)
	put(r.Value)
	c.hash.Write(binary.BigEndian.AppendUint64(number[:0], uint64(len(r.Headers))))
	for _, h := range r.Headers {
		put([]byte(h.Key))
		put(h.Value)
	}
}

// Look reads what an export says of itself, and refuses one that lacks what is wanted of it, or
// whose secrets cannot be read: that is told before anything is started for it.
func (im Import) Look() error {
	_, _, err := im.open()
	return err
}

func (im Import) open() (m *Manifest, tables []secrets.Table, err error) {
	m, err = openManifest(im.Dir)
	switch {
	case err != nil:
		return nil, nil, err
	case im.WithObjects && m.Objects == nil:
		return nil, nil, fmt.Errorf("%s has no objects: it was exported without --with-blobs", im.Dir)
	case im.WithSecrets && m.Tables == nil:
		return nil, nil, fmt.Errorf("%s has no secrets: pixtools events export made it, not pixtools backup; pixtools events import reads it", im.Dir)
	case im.WithSecrets:
		tables, err = openSecrets(im.Dir, m, im.Identities)
	}
	return m, tables, err
}

// check reads every file that is to be used, and refuses a damaged one.
func (j *importing) check(ctx context.Context) (err error) {
	if j.manifest, j.tables, err = j.Import.open(); err != nil {
		return err
	}
	for i, f := range j.manifest.Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		j.Progress("checking files", int64(i), int64(len(j.manifest.Files)))
		if f.Name == objectsFile && !j.WithObjects || (f.Name == secretsFile || f.Name == sealedFile) && !j.WithSecrets {
			continue
		}
		if f.Topic != "" && !slices.Contains(importedTopics, f.Topic) {
			return fmt.Errorf("%s holds the topic %s, which this PixTools does not have", f.Name, f.Topic)
		}
		if err := checkFile(filepath.Join(j.Dir, f.Name), f.SHA256, f.Bytes); err != nil {
			return err
		}
	}
	if j.WithObjects {
		if err := checkObjects(j.Dir, func(done int64) { j.Progress("checking objects", done, -1) }); err != nil {
			return err
		}
		j.result.Objects = j.manifest.Objects.Stored
	}
	if !j.WithSecrets {
		return nil
	}
	j.result.Tables = j.manifest.Tables
	return nil
}

// target looks at what is there.
func (j *importing) target(ctx context.Context) error {
	if err := j.brokers.idle(ctx); err != nil {
		return err
	}
	for _, name := range importedTopics {
		t, err := j.brokers.Topic(ctx, name)
		if errors.Is(err, ErrNoTopic) {
			partitions := 1
			if name == events.Topic {
				partitions = int(j.Partitions)
			}
			j.plans[name] = newPlan(name, partitions)
			continue
		}
		if err != nil {
			return err
		}
		if t, err = j.brokers.still(ctx, t); err != nil {
			return err
		}
		p := newPlan(name, len(t.Ranges))
		if err := j.brokers.contents(ctx, t, p.found, func(done, total int64) { j.Progress("reading "+name, done, total) }); err != nil {
			return fmt.Errorf("%s has records that are not of this export: import into a new one (%w)", name, err)
		}
		j.plans[name] = p
	}
	j.result.Partitions = len(j.plans[events.Topic].written)
	return j.offsets(ctx)
}

// stillness is for how long nothing may have been written. What an import that was killed had sent
// last, the broker may take in only now: then it would lie behind what we find, and between what
// we write.
const stillness = time.Second

// still waits until a topic that holds something grows no more, and gives it as it is then.
func (b *Brokers) still(ctx context.Context, t *Topic) (*Topic, error) {
	for {
		empty := true
		for _, end := range t.Written {
			empty = empty && end == 0
		}
		if empty {
			return t, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(stillness):
		}
		later, err := b.Topic(ctx, t.Name)
		if err != nil {
			return nil, err
		}
		if maps.Equal(later.Written, t.Written) {
			return later, nil
		}
		t = later
	}
}

// contents hashes what a topic holds.
func (b *Brokers) contents(ctx context.Context, t *Topic, into []content, progress func(done, total int64)) error {
	for partition, r := range t.Ranges {
		if r.From > 0 {
			return fmt.Errorf("the first %d records of partition %d were removed", r.From, partition)
		}
	}
	count := Counter(t.Ranges, progress)
	err := b.Read(ctx, t.Name, t.Ranges, func(r *kgo.Record) error {
		count(r)
		c := &into[r.Partition]
		if c.offsetOf(c.records-1)+1 < r.Offset {
			c.gaps = append(c.gaps, gap{c.records, r.Offset - c.records})
		}
		c.add(r)
		return nil
	})
	if err != nil {
		return err
	}
	for partition := range into {
		c := &into[partition]
		c.sum, c.end = [sha256.Size]byte(c.hash.Sum(nil)), t.Written[int32(partition)]
	}
	return nil
}

// idle refuses to write under services that run: they would take in, and answer, half a
// job's events.
func (b *Brokers) idle(ctx context.Context) error {
	var groups kadm.ListedGroups
	err := persist(ctx, func(ctx context.Context) (err error) {
		groups, err = kadm.NewClient(b.admin).ListGroups(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("ask which consumer groups there are: %w", err)
	}
	for _, g := range groups.Sorted() {
		if strings.HasPrefix(g.Group, "pixtools.") && g.State != "Empty" && g.State != "Dead" {
			return fmt.Errorf("the consumer group %s has members (%s): stop every `pixtools serve` on this cluster; of one that was killed, Kafka hears within its session timeout", g.Group, g.State)
		}
	}
	return nil
}

// offsets refuses what would make services pass over imported records: positions that
// groups kept of an earlier log.
func (j *importing) offsets(ctx context.Context) error {
	groups := []string{events.SagaGroup, events.JanitorGroup}
	for _, group := range j.Workers {
		groups = append(groups, group)
	}
	for _, group := range groups {
		var offsets kadm.OffsetResponses
		err := persist(ctx, func(ctx context.Context) (err error) {
			offsets, err = kadm.NewClient(j.brokers.admin).FetchOffsets(ctx, group)
			return err
		})
		if errors.Is(err, kerr.GroupIDNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("ask for the offsets of group %s: %w", group, err)
		}
		for partition, found := range j.plans[events.Topic].found {
			if at, ok := offsets.Lookup(events.Topic, int32(partition)); ok && at.Err == nil && at.At > found.end {
				return fmt.Errorf("the group %s has read partition %d up to offset %d, of an earlier log: remove its offsets with kafka-consumer-groups.sh --delete-offsets --group %s --topic %s",
					group, partition, at.At, group, events.Topic)
			}
		}
	}
	return nil
}

// plan reads the export once, to know what goes where and whether what is there is its
// beginning.
func (j *importing) plan(ctx context.Context) error {
	if err := j.origins(ctx); err != nil {
		return err
	}
	for _, name := range importedTopics {
		p := j.plans[name]
		err := j.records(ctx, name, "planning", func(r *kgo.Record) error {
			if most := int(j.brokers.cfg.MaxBatchBytes); recordSize(r) > most {
				return fmt.Errorf("the record at offset %d of partition %d of %s has %d bytes: set KAFKA_MAX_BATCH_BYTES, which is %d, and the topic's max.message.bytes to more",
					r.Offset, r.Partition, name, recordSize(r), most)
			}
			to := p.partitionOf(r)
			w := &p.written[to]
			here := Place{Partition: r.Partition, Offset: r.Offset}
			if _, wanted := j.places[here]; wanted && name == events.Topic {
				j.places[here] = Place{Partition: to, Offset: p.found[to].offsetOf(w.records)}
			}
			if name == events.Topic {
				j.follow(r, to, p.found[to].offsetOf(w.records))
			}
			w.add(r)
			if found := p.found[to]; w.records == found.records && [sha256.Size]byte(w.hash.Sum(nil)) != found.sum {
				return different(name, to)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for partition := range p.written {
			w, found := &p.written[partition], p.found[partition]
			if w.records < found.records {
				return different(name, int32(partition))
			}
			w.sum = [sha256.Size]byte(w.hash.Sum(nil))
			j.result.Records += w.records
			j.result.Found += found.records
		}
	}
	j.result.Open = len(j.open)
	return nil
}

// vacant refuses to put a back-up beside something else: jobs of another log would be shown with
// those of this one, and the janitor would remove pictures that this log does not name. What an
// interrupted restore has left is part of the back-up, and no fault.
func (j *importing) vacant(ctx context.Context) error {
	if !j.WithSecrets {
		return nil
	}
	for _, name := range []string{events.SagaTopic, events.WebhooksTopic} {
		t, err := j.brokers.Topic(ctx, name)
		if errors.Is(err, ErrNoTopic) {
			continue
		}
		if err != nil {
			return err
		}
		for partition, end := range t.Written {
			if end > 0 {
				return fmt.Errorf("%s has records (partition %d up to offset %d), of another log: restore into a cluster without them, or remove that topic", name, partition, end)
			}
		}
	}
	if j.Store != nil {
		if err := vacantStore(ctx, j.Dir, j.Store); err != nil {
			return err
		}
	}
	if j.Secrets != nil {
		if err := secrets.Vacant(ctx, j.Secrets, j.tables); err != nil {
			return fmt.Errorf("%w: restore into a database without it; to keep those secrets and to take the log and the objects alone, use pixtools events import", err)
		}
	}
	if j.Unused == nil {
		return nil
	}
	return j.Unused(ctx)
}

func different(topic string, partition int32) error {
	return fmt.Errorf("%s has records that are not of this export (partition %d): import into a new one", topic, partition)
}

// recordSize is what a record takes of a batch, at the most.
func recordSize(r *kgo.Record) int {
	const frame, perHeader = 128, 10 // batch and record; two lengths
	n := frame + size(r)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + perHeader
	}
	return n
}

// records reads the export's records of a topic, in the order in which they are written.
func (j *importing) records(ctx context.Context, topic, what string, each func(*kgo.Record) error) error {
	done, total := int64(0), int64(0)
	for _, t := range j.manifest.Topics {
		if t.Name == topic {
			total = t.Records
		}
	}
	for _, f := range j.manifest.Files {
		if f.Topic != topic {
			continue
		}
		read, last := int64(0), f.First-1
		err := readLines(filepath.Join(j.Dir, f.Name), func(l recordLine) error {
			r, err := l.record()
			if err != nil {
				return fmt.Errorf("%s, offset %d: %w", f.Name, l.Offset, err)
			}
			if r.Offset <= last {
				return fmt.Errorf("%s: offset %d comes after %d", f.Name, r.Offset, last)
			}
			r.Topic, r.Partition = topic, f.Partition
			if topic == events.DeadLetterTopic {
				if err := j.relocate(r); err != nil {
					return err
				}
			}
			last = r.Offset
			read++
			done++
			j.Progress(what+" "+topic, done, total)
			if done%pollRecords == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			return each(r)
		})
		if err != nil {
			return err
		}
		if read != f.Records || last != f.Last {
			return fmt.Errorf("%s has %d records up to offset %d; the manifest says %d up to %d", f.Name, read, last, f.Records, f.Last)
		}
	}
	if done != total {
		return fmt.Errorf("the files of %s have %d records; the manifest says %d", topic, done, total)
	}
	return ctx.Err()
}

// origins notes of which records the dead letters speak.
func (j *importing) origins(ctx context.Context) error {
	return j.records(ctx, events.DeadLetterTopic, "planning", func(r *kgo.Record) error {
		if _, o := originOf(r); o != nil {
			j.places[Place{Partition: o.GetPartition(), Offset: o.GetOffset()}] = Place{Offset: -1}
		}
		return nil
	})
}

func originOf(r *kgo.Record) (*events.DeadLettered, *events.Origin) {
	e, err := events.DecodeLetter(r)
	if err != nil {
		return nil, nil
	}
	letter, ok := e.Message.(*events.DeadLettered)
	origin := letter.GetOrigin()
	if !ok || origin.GetTopic() != events.Topic {
		return nil, nil
	}
	return letter, origin
}

// relocate has a dead letter speak of its record's new place. It is the one thing that an
// import changes: a redrive reads what stands there. Its id, its record's key, stays.
func (j *importing) relocate(r *kgo.Record) error {
	letter, origin := originOf(r)
	if origin == nil {
		return nil
	}
	now, known := j.places[Place{Partition: origin.GetPartition(), Offset: origin.GetOffset()}]
	switch {
	case !known: // while they are being noted
		return nil
	case now.Offset < 0: // the export ends before it
		letter.Origin = nil
	default:
		origin.Partition, origin.Offset = now.Partition, now.Offset
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(letter)
	r.Value = value
	return err
}

// openJob is a job that has not ended yet, and where its operations were asked for.
type openJob struct {
	state     *events.Job
	partition int32
	asked     map[string]int64
}

// rememberedEnds is how many jobs an import remembers to have ended, of about 150 bytes each. A
// request that is repeated after more ends than that looks like a new job: it counts as open,
// and what it asks for may be made once more, as after any repeat that nobody remembers.
const rememberedEnds = 200_000

// follow keeps the jobs that are open.
func (j *importing) follow(r *kgo.Record, partition int32, offset int64) {
	e, err := events.Decode(r)
	if err != nil {
		return
	}
	if _, request := e.Message.(*events.JobRequested); request && j.ended.Contains(e.JobID) {
		return // a repeat, such as of requests under one key that were sent at once
	}
	o := j.open[e.JobID]
	if o == nil {
		o = &openJob{partition: partition, asked: map[string]int64{}}
	}
	o.state = events.Fold(o.state, e)
	if o.state.GetPhase() != events.Phase_PHASE_OPEN {
		delete(j.open, e.JobID)
		j.ended.Add(e.JobID, struct{}{})
		return
	}
	j.open[e.JobID] = o
	for _, op := range o.state.GetOperations() {
		_, known := o.asked[op.GetName()]
		if op.Ended() {
			delete(o.asked, op.GetName())
		} else if !known {
			o.asked[op.GetName()] = offset
		}
	}
}

// prepare makes the topics, which must be as they were planned.
func (j *importing) prepare(ctx context.Context) error {
	if err := j.Prepare(ctx); err != nil {
		return err
	}
	for _, name := range importedTopics {
		t, err := j.brokers.Topic(ctx, name)
		if err != nil {
			return err
		}
		if len(t.Ranges) != len(j.plans[name].written) {
			return fmt.Errorf("%s has %d partitions, and was to have %d: import again", name, len(t.Ranges), len(j.plans[name].written))
		}
	}
	return nil
}

// fits refuses tables that this version has not, before anything is made that stays: a topic
// has its partitions for ever.
func (j *importing) fits(ctx context.Context) error {
	if !j.WithSecrets {
		return nil
	}
	if err := j.PrepareSecrets(ctx); err != nil {
		return err
	}
	return secrets.Fits(ctx, j.Secrets, j.tables)
}

func (j *importing) blobs(ctx context.Context) error {
	if !j.WithObjects {
		return nil
	}
	return importObjects(ctx, j.Dir, j.Store, func(done int64) { j.Progress("storing objects", done, j.manifest.Objects.Stored) })
}

func (j *importing) secrets(ctx context.Context) error {
	if !j.WithSecrets {
		return nil
	}
	j.Progress("restoring secrets", 0, -1)
	return secrets.Load(ctx, j.Secrets, j.tables)
}

// linger is how long a batch waits for more records: here nobody waits for one.
const linger = 5 * time.Millisecond

// lastSent bounds how long an import that is to stop waits for what it has sent.
const lastSent = 10 * time.Second

// write appends what is not there yet. Records of one partition go in order, and after
// one that is refused none follows, so what is there is always a beginning.
func (j *importing) write(ctx context.Context) error {
	client, err := kafka.NewClient(j.brokers.cfg, j.brokers.log, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(linger))
	if err != nil {
		return err
	}
	defer client.Close()
	for _, name := range importedTopics {
		p := j.plans[name]
		writing, stop := context.WithCancelCause(ctx)
		at := make([]int64, len(p.written))
		err := j.records(writing, name, "importing", func(r *kgo.Record) error {
			to := p.partitionOf(r)
			at[to]++
			if at[to] <= p.found[to].records {
				return nil
			}
			r = &kgo.Record{Topic: name, Partition: to, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}
			client.Produce(writing, r, func(_ *kgo.Record, err error) {
				if err != nil {
					stop(err)
				}
			})
			return context.Cause(writing)
		})
		err = errors.Join(err, client.Flush(writing))
		if writing.Err() != nil { // what was sent comes to an end all the same: see stillness
			sent, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSent)
			_ = client.Flush(sent)
			cancel()
		}
		if cause := context.Cause(writing); cause != nil {
			err = cause
		}
		stop(nil)
		if err != nil {
			return fmt.Errorf("write %s: %w; import again to go on", name, err)
		}
	}
	return nil
}

// compare reads back what was written.
func (j *importing) compare(ctx context.Context) error {
	for _, name := range importedTopics {
		t, err := j.brokers.Topic(ctx, name)
		if err != nil {
			return err
		}
		is := newPlan(name, len(t.Ranges)).found
		if err := j.brokers.contents(ctx, t, is, func(done, total int64) { j.Progress("comparing "+name, done, total) }); err != nil {
			return fmt.Errorf("what was written to %s is not what was to be: %w", name, err)
		}
		for partition, w := range j.plans[name].written {
			if is[partition].records != w.records || is[partition].sum != w.sum || is[partition].end != j.plans[name].found[partition].offsetOf(w.records) {
				return fmt.Errorf("what was written to %s is not what was to be: partition %d has %d records up to offset %d, and was to have %d up to %d; did somebody else write?",
					name, partition, is[partition].records, is[partition].end, w.records, j.plans[name].found[partition].offsetOf(w.records))
			}
		}
	}
	return nil
}

// place sets the groups of operations to their first unfinished work. From there they read
// and fold to the end, as after any restart; where nothing is open, they begin at the end.
func (j *importing) place(ctx context.Context) error {
	for operation, group := range j.Workers {
		first := make([]int64, len(j.plans[events.Topic].written))
		for partition, w := range j.plans[events.Topic].written {
			first[partition] = j.plans[events.Topic].found[partition].offsetOf(w.records)
		}
		for _, o := range j.open {
			if at, waits := o.asked[operation]; waits {
				first[o.partition] = min(first[o.partition], at)
			}
		}
		offsets := kadm.Offsets{}
		for partition, at := range first {
			offsets.AddOffset(events.Topic, int32(partition), at, -1)
		}
		err := persist(ctx, func(ctx context.Context) error {
			return kadm.NewClient(j.brokers.admin).CommitAllOffsets(ctx, group, offsets)
		})
		if err != nil {
			return fmt.Errorf("set the offsets of group %s: %w; import again to go on", group, err)
		}
	}
	return nil
}
