package eventlog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
)

// objectsAtOnce is how many objects are copied side by side.
const objectsAtOnce = 8

// What became of an object at the export.
const (
	stateStored  = "stored"
	stateExpired = "expired"
	stateMissing = "missing"
	stateDamaged = "damaged"
)

// objectLine is an object that an event names. Its bytes, if they are stored, lie in the
// file that its SHA-256 names: equal ones once.
type objectLine struct {
	Key         string `json:"key"`
	SHA256      string `json:"sha256"`
	Bytes       int64  `json:"bytes"`
	ContentType string `json:"content_type,omitempty"`
	State       string `json:"state"`
}

// blobPath is where an object's bytes lie in an export.
func blobPath(sum string) string { return filepath.Join(blobsDir, sum[:2], sum) }

// gone are the beginnings of keys whose objects an event says are removed.
func gone(e events.Event) (prefixes []string) {
	switch m := e.Message.(type) {
	case *events.ArtifactsExpired:
		for _, op := range m.GetOperations() {
			prefixes = append(prefixes, blob.ProcessedPrefix+e.JobID+"/"+op+"/")
		}
		if m.GetSource() {
			prefixes = append(prefixes, blob.RawPrefix+e.JobID+"/")
		}
	case *events.JobDeleted:
		prefixes = append(prefixes, blob.RawPrefix+e.JobID+"/", blob.ProcessedPrefix+e.JobID+"/")
	}
	return prefixes
}

// copier copies objects out of the store.
type copier struct {
	Export
	work    string
	out     *linesWriter
	removed map[string]bool // prefixes of gone
	keys    map[string]bool // ids of those that something is sealed with
	// seen are the keys that were told of, by the beginning of their hash: there may be
	// millions, of a hundred bytes each.
	seen map[[16]byte]bool

	mu    sync.Mutex // guards out, total, have and missing, which the copies share
	total ManifestObjects
	have  map[string]bool // hashes whose bytes are here
	done  int64
	// missing is what the store did not have, until it is known why.
	missing []missing
}

type missing struct {
	objectLine
	why string
}

// mostRounds bounds how often the log is read on for what was removed meanwhile.
const mostRounds = 5

// exportObjects goes through what was exported of the log once more, and copies each
// object that it names.
//
// Jobs are deleted while it does. An object that goes between the log's end and its turn is
// missing, and the log, as it was exported, does not say why: a restore would show a job
// without its pictures. But whoever removes an object has said so in the log before. So where
// one is missing, the log is exported further, up to an end that is later than the miss; what
// the log names there is copied in turn. An object that is missing still was lost.
//
// It gives the ids of the keys that the log's personal data are sealed with.
func (b *Brokers) exportObjects(ctx context.Context, e Export, work string, m *Manifest) (keys map[string]bool, err error) {
	out, err := createLines(filepath.Join(work, objectsFile))
	if err != nil {
		return nil, err
	}
	c := &copier{Export: e, work: work, out: out, removed: map[string]bool{}, keys: map[string]bool{}, seen: map[[16]byte]bool{}, have: map[string]bool{}}
	err = c.round(ctx, m, 0)
	told := 0 // of how many that are missing the log was asked
	for n := 1; n < mostRounds && err == nil && c.unexplained(told) && e.Until.IsZero(); n++ {
		files := len(m.Files)
		told = len(c.missing)
		if err = b.exportFurther(ctx, e, work, m); err == nil {
			err = c.round(ctx, m, files)
		}
	}
	if err == nil {
		err = c.tellMissing()
	}
	size, sum, closed := out.close()
	if err := errors.Join(err, closed); err != nil {
		return nil, err
	}
	if len(c.have) > 0 {
		if err := syncDir(filepath.Join(work, blobsDir)); err != nil {
			return nil, err
		}
	}
	m.Objects = &c.total
	m.Files = append(m.Files, ManifestFile{Name: objectsFile, Bytes: size, SHA256: sum, Records: int64(len(c.seen))})
	return c.keys, nil
}

// round copies what the files from one on name.
func (c *copier) round(ctx context.Context, m *Manifest, from int) error {
	// What was removed is told of after what was stored.
	if err := c.through(m.Files[from:], func(e events.Event) error {
		for _, prefix := range gone(e) {
			c.removed[prefix] = true
		}
		for _, id := range e.SealedWith() {
			c.keys[id] = true
		}
		return nil
	}); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(objectsAtOnce)
	err := c.through(m.Files[from:], func(e events.Event) error {
		for _, named := range e.Objects() {
			if named.SHA256 == "" && e.Imported() {
				continue // gone before its job was brought in
			}
			o := objectLine{Key: named.Key, SHA256: named.SHA256, Bytes: named.Bytes}
			id := [16]byte(hashOf(o.Key))
			if c.seen[id] {
				continue
			}
			c.seen[id] = true
			group.Go(func() error { return c.copy(ctx, o, e.Time) })
		}
		return ctx.Err()
	})
	return errors.Join(group.Wait(), err)
}

// unexplained says whether an object is missing, of those from one on, that nobody has removed.
func (c *copier) unexplained(from int) bool {
	return slices.ContainsFunc(c.missing[from:], func(m missing) bool { return !c.wasRemoved(m.Key) })
}

// tellMissing writes what was missing at last.
func (c *copier) tellMissing() error {
	for _, m := range c.missing {
		if c.wasRemoved(m.Key) {
			m.State = stateExpired
			c.total.Expired++
		} else {
			c.total.Missing++
			c.Lost(m.Key, m.why)
		}
		if err := c.out.lines.Encode(m.objectLine); err != nil {
			return err
		}
	}
	return nil
}

func hashOf(key string) []byte {
	sum := sha256.Sum256([]byte(key))
	return sum[:16]
}

// through calls each for the exported events that are in files.
func (c *copier) through(files []ManifestFile, each func(events.Event) error) error {
	for _, f := range files {
		if f.Topic != events.Topic {
			continue
		}
		err := readLines(filepath.Join(c.work, f.Name), func(l recordLine) error {
			r, err := l.record()
			if err != nil {
				return err
			}
			e, err := events.Decode(r)
			if err != nil {
				return nil // names nothing that we could read
			}
			return each(e)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) copy(ctx context.Context, o objectLine, told time.Time) error {
	why, err := c.fetch(ctx, &o)
	if err != nil {
		return err
	}
	if o.State == stateMissing && time.Since(told) > c.kept(o.Key) {
		o.State = stateExpired
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	c.Progress("copying objects", c.done, -1)
	switch o.State {
	case stateStored:
		c.total.Stored++
		c.total.Bytes += o.Bytes
	case stateExpired:
		c.total.Expired++
	case stateMissing:
		c.missing = append(c.missing, missing{o, why})
		return nil
	case stateDamaged:
		c.total.Damaged++
		c.Lost(o.Key, why)
	}
	return c.out.lines.Encode(o)
}

// kept is for how long the store keeps an object.
func (c *copier) kept(key string) time.Duration {
	if strings.HasPrefix(key, blob.RawPrefix) {
		return c.SourceRetention
	}
	return c.Retention
}

func (c *copier) wasRemoved(key string) bool {
	parts := strings.SplitAfter(key, "/")
	for n := range parts {
		if c.removed[strings.Join(parts[:n], "")] {
			return true
		}
	}
	return false
}

// fetch gets an object's bytes, unless an equal one's are here. An error is the store's
// not answering; what is wrong with the object is why.
func (c *copier) fetch(ctx context.Context, o *objectLine) (why string, err error) {
	var want [sha256.Size]byte
	if n, err := hex.Decode(want[:], []byte(o.SHA256)); err != nil || n != len(want) || len(o.SHA256) != 2*len(want) {
		o.State = stateDamaged
		return "the log has no SHA-256 of it", nil
	}
	o.SHA256 = strings.ToLower(o.SHA256)
	head, err := c.Store.Head(ctx, o.Key)
	if errors.Is(err, blob.ErrNotFound) {
		o.State = stateMissing
		return "the store does not have it", nil
	}
	if err != nil {
		return "", err
	}
	o.ContentType = head.ContentType
	c.mu.Lock()
	have := c.have[o.SHA256]
	c.mu.Unlock()
	if have {
		o.State = stateStored
		return "", nil
	}
	err = c.download(ctx, *o, want)
	switch {
	case errors.Is(err, blob.ErrNotFound):
		o.State = stateMissing
		return "it went while we asked for it", nil
	case errors.Is(err, blob.ErrChecksum):
		o.State = stateDamaged
		return err.Error(), nil
	case err != nil:
		return "", err
	}
	o.State = stateStored
	c.mu.Lock()
	c.have[o.SHA256] = true
	c.mu.Unlock()
	return "", nil
}

func (c *copier) download(ctx context.Context, o objectLine, want [sha256.Size]byte) error {
	path := filepath.Join(c.work, blobPath(o.SHA256))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "unfinished-")
	if err != nil {
		return err
	}
	_, err = c.Store.Download(ctx, o.Key, file, want)
	if err = errors.Join(err, file.Chmod(0o644), file.Sync(), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// checkObjects refuses an export whose objects are not as they were written.
func checkObjects(dir string, progress func(done int64)) error {
	checked := map[string]bool{}
	return readLines(filepath.Join(dir, objectsFile), func(o objectLine) error {
		if o.State != stateStored || checked[o.SHA256] {
			return nil
		}
		if len(o.SHA256) != 2*sha256.Size {
			return fmt.Errorf("%s names %q, which is no SHA-256", objectsFile, o.SHA256)
		}
		checked[o.SHA256] = true
		progress(int64(len(checked)))
		return checkFile(filepath.Join(dir, blobPath(o.SHA256)), o.SHA256, o.Bytes)
	})
}

// importObjects puts an export's objects into the store. One that is there is left: its
// key names its content.
func importObjects(ctx context.Context, dir string, store *blob.Store, progress func(done int64)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(objectsAtOnce)
	done := int64(0)
	err := readLines(filepath.Join(dir, objectsFile), func(o objectLine) error {
		if o.State != stateStored {
			return nil
		}
		done++
		progress(done)
		group.Go(func() error { return putObject(ctx, dir, store, o) })
		return ctx.Err()
	})
	return errors.Join(group.Wait(), err)
}

// mostForeign is how many objects of somebody else are named.
const mostForeign = 3

// vacantStore refuses a bucket that has other objects where ours lie than the export's.
func vacantStore(ctx context.Context, dir string, store *blob.Store) error {
	ours := map[[16]byte]bool{}
	err := readLines(filepath.Join(dir, objectsFile), func(o objectLine) error {
		ours[[16]byte(hashOf(o.Key))] = true
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	foreign, named := 0, []string{}
	for _, prefix := range []string{blob.RawPrefix, blob.ProcessedPrefix} {
		err := store.List(ctx, prefix, func(o blob.Object) error {
			if ours[[16]byte(hashOf(o.Key))] {
				return nil
			}
			if foreign++; foreign <= mostForeign {
				named = append(named, o.Key)
			}
			return nil
		})
		if err != nil && !errors.Is(err, blob.ErrNoBucket) { // one that is to be made is empty
			return err
		}
	}
	if foreign > 0 {
		return fmt.Errorf("the bucket has %d objects that are not of this back-up, such as %s: restore into an empty one (AWS_S3_BUCKET)", foreign, strings.Join(named, ", "))
	}
	return nil
}

func putObject(ctx context.Context, dir string, store *blob.Store, o objectLine) error {
	head, err := store.Head(ctx, o.Key)
	if err == nil && head.Size == o.Bytes {
		return nil
	}
	if err != nil && !errors.Is(err, blob.ErrNotFound) {
		return err
	}
	var sum [sha256.Size]byte
	if _, err := hex.Decode(sum[:], []byte(o.SHA256)); err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(dir, blobPath(o.SHA256)))
	if err != nil {
		return err
	}
	defer file.Close()
	return store.Put(ctx, o.Key, file, o.Bytes, sum, o.ContentType)
}
