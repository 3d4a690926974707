package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/secrets"
)

// Export says what to write, and where.
type Export struct {
	// Dir is made, and must not exist.
	Dir string
	// Until leaves out what was written then or later; zero: nothing.
	Until time.Time
	// Store, unless nil, is copied from, too: what the events name.
	Store *blob.Store
	// Retention is how long the store keeps results, SourceRetention sources: older ones are gone
	// by right.
	Retention, SourceRetention time.Duration
	// Secrets, unless nil, is the database whose schema pixtools_secrets is copied, too,
	// encrypted to Recipients; without any, in clear.
	Secrets    *pgxpool.Pool
	Recipients []age.Recipient
	// Progress hears how far it is.
	Progress func(what string, done, total int64)
	// Lost hears of an object that should be there and is not.
	Lost func(key, why string)
}

// Export writes the log, as it is now, into files. It is whole when Dir is there: until
// then everything lies in a directory beside it, which is left only where the process was
// killed.
func (b *Brokers) Export(ctx context.Context, e Export) (*Manifest, error) {
	if _, err := os.Lstat(e.Dir); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s exists already: name a directory that does not (%w)", e.Dir, errOr(err, fs.ErrExist))
	}
	work, err := os.MkdirTemp(filepath.Dir(e.Dir), filepath.Base(e.Dir)+".unfinished-")
	if err != nil {
		return nil, err
	}
	m, err := b.exportTo(ctx, e, work)
	if err == nil {
		err = os.Rename(work, e.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(work))
	}
	return m, syncDir(filepath.Dir(e.Dir))
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func (b *Brokers) exportTo(ctx context.Context, e Export, work string) (*Manifest, error) {
	m := &Manifest{Format: formatName, Version: formatVersion, Created: time.Now().UTC().Truncate(time.Second),
		Schemas: []string{"pixtools.events.v1", "pixtools.deadletters.v1"}, Files: []ManifestFile{}}
	if !e.Until.IsZero() {
		m.Until = &e.Until
	}
	// The dead letters' end first, so that the records that they speak of are in the log's.
	var topics []*Topic
	for _, name := range []string{events.DeadLetterTopic, events.Topic} {
		t, err := b.Topic(ctx, name)
		if errors.Is(err, ErrNoTopic) && name == events.DeadLetterTopic {
			continue // made by a version that had none
		}
		if err != nil {
			return nil, err
		}
		if t.Ranges, err = b.resolve(ctx, t, Query{Until: e.Until}); err != nil {
			return nil, err
		}
		topics = append(topics, t)
	}
	slices.Reverse(topics)
	for _, t := range topics {
		if err := b.exportTopic(ctx, e, work, m, t.Name, uuid.UUID(t.ID).String(), t.Ranges); err != nil {
			return nil, err
		}
	}
	// What the log refers to comes after the log's end. An object is stored, and a key made,
	// before the event that needs it, so whatever the copied part names is there by now. The other
	// way round, a job submitted in between would be in the log without its picture and its key.
	var keys map[string]bool
	if e.Store != nil {
		var err error
		if keys, err = b.exportObjects(ctx, e, work, m); err != nil {
			return nil, err
		}
	}
	if e.Secrets != nil {
		if err := secrets.Belong(ctx, e.Secrets, slices.Collect(maps.Keys(keys))); err != nil {
			return nil, err
		}
		if err := exportSecrets(ctx, e, work, m); err != nil {
			return nil, err
		}
	}
	for _, dir := range directoriesOf(m) {
		if err := syncDir(filepath.Join(work, dir)); err != nil {
			return nil, err
		}
	}
	return m, errors.Join(m.seal(work), syncDir(work))
}

func directoriesOf(m *Manifest) []string {
	found := map[string]bool{}
	for _, f := range m.Files {
		found[filepath.Dir(f.Name)] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// exportTopic writes ranges of each partition in segments of its own, behind what the manifest
// has of them.
func (b *Brokers) exportTopic(ctx context.Context, e Export, work string, m *Manifest, name, id string, ranges map[int32]Range) error {
	i := slices.IndexFunc(m.Topics, func(t ManifestTopic) bool { return t.Name == name })
	if i < 0 {
		m.Topics = append(m.Topics, ManifestTopic{Name: name, ID: id, Partitions: []ManifestPartition{}})
		i = len(m.Topics) - 1
	}
	topic := &m.Topics[i]
	done, total := int64(0), int64(0)
	for _, r := range ranges {
		total += max(r.To-r.From, 0)
	}
	for _, partition := range slices.Sorted(maps.Keys(ranges)) {
		s := &segments{work: work, topic: name, partition: partition, manifest: m}
		r := ranges[partition]
		err := b.Read(ctx, name, map[int32]Range{partition: r}, func(record *kgo.Record) error {
			e.Progress("exporting "+name, done+record.Offset-r.From, total)
			return s.add(record)
		})
		if err := errors.Join(err, s.close()); err != nil {
			return err
		}
		done += max(r.To-r.From, 0)
		topic.add(ManifestPartition{Partition: partition, Records: s.records, End: r.To}, s)
	}
	return nil
}

// add counts what was written of a partition, perhaps behind what was before.
func (t *ManifestTopic) add(p ManifestPartition, s *segments) {
	t.Records += p.Records
	i := slices.IndexFunc(t.Partitions, func(known ManifestPartition) bool { return known.Partition == p.Partition })
	if i < 0 {
		t.Partitions = append(t.Partitions, ManifestPartition{Partition: p.Partition})
		i = len(t.Partitions) - 1
	}
	known := &t.Partitions[i]
	known.Records, known.End = known.Records+p.Records, p.End
	if p.Records == 0 {
		return
	}
	if known.First == nil {
		known.First = &s.first
	}
	known.Last = &s.last
}

// exportFurther writes what has come to the log since it was exported up to some end.
func (b *Brokers) exportFurther(ctx context.Context, e Export, work string, m *Manifest) error {
	t, err := b.Topic(ctx, events.Topic)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(m.Topics, func(t ManifestTopic) bool { return t.Name == events.Topic })
	if id := uuid.UUID(t.ID).String(); id != m.Topics[i].ID {
		return fmt.Errorf("%s was removed and made anew meanwhile: its id is %s, and was %s", t.Name, id, m.Topics[i].ID)
	}
	further := map[int32]Range{}
	for _, p := range m.Topics[i].Partitions {
		further[p.Partition] = Range{p.End, max(p.End, t.Ranges[p.Partition].To)}
	}
	return b.exportTopic(ctx, e, work, m, t.Name, m.Topics[i].ID, further)
}

// segments writes one partition.
type segments struct {
	work, topic string
	partition   int32
	manifest    *Manifest
	current     *linesWriter
	file        ManifestFile
	records     int64
	first, last int64
}

func (s *segments) add(r *kgo.Record) (err error) {
	if s.current == nil {
		s.file = ManifestFile{Name: fmt.Sprintf("%s/%05d-%019d.jsonl.zst", s.topic, s.partition, r.Offset), Topic: s.topic, Partition: s.partition, First: r.Offset}
		if s.current, err = createLines(filepath.Join(s.work, s.file.Name)); err != nil {
			return err
		}
	}
	if err := s.current.lines.Encode(lineOfRecord(r)); err != nil {
		return err
	}
	if s.records == 0 {
		s.first = r.Offset
	}
	s.records++
	s.file.Records++
	s.last, s.file.Last = r.Offset, r.Offset
	if s.current.raw >= segmentBytes {
		return s.close()
	}
	return nil
}

func (s *segments) close() (err error) {
	if s.current == nil {
		return nil
	}
	s.file.Bytes, s.file.SHA256, err = s.current.close()
	s.current = nil
	s.manifest.Files = append(s.manifest.Files, s.file)
	return err
}
