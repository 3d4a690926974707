package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

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
	// Secrets, unless nil, is where the tenants' keys are, which are copied, too.
	Secrets *pgxpool.Pool
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
		if err := b.exportTopic(ctx, e, work, m, t); err != nil {
			return nil, err
		}
	}
	if e.Store != nil {
		if err := exportObjects(ctx, e, work, m); err != nil {
			return nil, err
		}
	}
	if e.Secrets != nil {
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

// exportTopic writes each partition's records in segments of its own.
func (b *Brokers) exportTopic(ctx context.Context, e Export, work string, m *Manifest, t *Topic) error {
	topic := ManifestTopic{Name: t.Name, ID: uuid.UUID(t.ID).String(), Partitions: []ManifestPartition{}}
	done, total := int64(0), int64(0)
	for _, r := range t.Ranges {
		total += max(r.To-r.From, 0)
	}
	for _, partition := range slices.Sorted(maps.Keys(t.Ranges)) {
		s := &segments{work: work, topic: t.Name, partition: partition, manifest: m}
		r := t.Ranges[partition]
		err := b.Read(ctx, t.Name, map[int32]Range{partition: r}, func(record *kgo.Record) error {
			e.Progress("exporting "+t.Name, done+record.Offset-r.From, total)
			return s.add(record)
		})
		if err := errors.Join(err, s.close()); err != nil {
			return err
		}
		done += max(r.To-r.From, 0)
		p := ManifestPartition{Partition: partition, Records: s.records, End: r.To}
		if s.records > 0 {
			p.First, p.Last = &s.first, &s.last
		}
		topic.Partitions = append(topic.Partitions, p)
		topic.Records += p.Records
	}
	m.Topics = append(m.Topics, topic)
	return nil
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

// exportSecrets writes the tenants' keys into a file for its owner only.
func exportSecrets(ctx context.Context, e Export, work string, m *Manifest) error {
	keys, err := secrets.All(ctx, e.Secrets)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(keys, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(work, secretsFile)
	if err := writeSynced(path, raw, 0o600); err != nil {
		return err
	}
	sum, size, err := sumOf(path)
	if err != nil {
		return err
	}
	count := len(keys)
	m.Secrets = &count
	m.Files = append(m.Files, ManifestFile{Name: secretsFile, Bytes: size, SHA256: sum})
	return nil
}
