package eventlog

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The files of an export; docs/export.md describes them.
const (
	formatName    = "pixtools-export"
	formatVersion = 1
	manifestFile  = "manifest.json"
	manifestSum   = "manifest.json.sha256"
	objectsFile   = "objects.jsonl.zst"
	blobsDir      = "blobs"
	// secretsFile has the tables of pixtools_secrets in clear, sealedFile the same encrypted with age.
	secretsFile = "secrets.json"
	sealedFile  = secretsFile + ".age"

	// segmentBytes is the size of a segment's lines, before compression, at which the next
	// one begins.
	segmentBytes = 64 << 20
	// longestLine bounds a line, in bytes: a record of the largest batch that
	// KAFKA_MAX_BATCH_BYTES allows, in base64.
	longestLine = 128 << 20
	// decoderMemory bounds what a segment may make the decoder hold, in bytes.
	decoderMemory = 256 << 20
)

// Manifest says what an export holds. It is written last: an export without one is none.
type Manifest struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	// Until is the time from which on records were left out; null: none were.
	Until *time.Time `json:"until"`
	// Schemas are the Protobuf packages of the topics' messages.
	Schemas []string        `json:"schemas"`
	Topics  []ManifestTopic `json:"topics"`
	// Files are all files but the manifest and those below blobs/, which are named by
	// their SHA-256.
	Files   []ManifestFile   `json:"files"`
	Objects *ManifestObjects `json:"objects"`
	// Tables are those of the schema pixtools_secrets; null: they were not asked for.
	Tables []ManifestTable `json:"secret_tables"`
}

// ManifestTable is a table of pixtools_secrets, whose rows are in the file of secrets.
type ManifestTable struct {
	Name string `json:"name"`
	Rows int64  `json:"rows"`
}

// ManifestTopic is a topic as it was.
type ManifestTopic struct {
	Name       string              `json:"name"`
	ID         string              `json:"topic_id"`
	Records    int64               `json:"records"`
	Partitions []ManifestPartition `json:"partitions"`
}

// ManifestPartition is a partition as it was. First and Last are null where it has no
// record; End is the offset up to which it was read.
type ManifestPartition struct {
	Partition int32  `json:"partition"`
	Records   int64  `json:"records"`
	First     *int64 `json:"first_offset"`
	Last      *int64 `json:"last_offset"`
	End       int64  `json:"end_offset"`
}

// ManifestFile is a file, and what part of which topic it holds, if any.
type ManifestFile struct {
	Name      string `json:"name"`
	Bytes     int64  `json:"bytes"`
	SHA256    string `json:"sha256"`
	Topic     string `json:"topic,omitempty"`
	Partition int32  `json:"partition"`
	Records   int64  `json:"records"`
	First     int64  `json:"first_offset"`
	Last      int64  `json:"last_offset"`
}

// ManifestObjects counts the objects that events name, by what became of them.
type ManifestObjects struct {
	Stored  int64 `json:"stored"`
	Bytes   int64 `json:"bytes"`
	Expired int64 `json:"expired"`
	Missing int64 `json:"missing"`
	Damaged int64 `json:"damaged"`
}

// text is bytes in JSON: a string where they are UTF-8, {"base64": ...} where they are
// not, null where there are none.
type text []byte

type encodedText struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON is for encoding/json.
func (t text) MarshalJSON() ([]byte, error) {
	switch {
	case t == nil:
		return []byte("null"), nil
	case utf8.Valid(t):
		return json.Marshal(string(t))
	}
	return json.Marshal(encodedText{t})
}

// UnmarshalJSON is for encoding/json.
func (t *text) UnmarshalJSON(raw []byte) error {
	switch {
	case bytes.Equal(raw, []byte("null")):
		*t = nil
		return nil
	case len(raw) > 0 && raw[0] == '{':
		var encoded encodedText
		err := json.Unmarshal(raw, &encoded)
		*t = encoded.Base64
		return err
	}
	var s string
	err := json.Unmarshal(raw, &s)
	*t = []byte(s)
	return err
}

// recordLine is a record in a segment.
type recordLine struct {
	Offset    int64        `json:"offset"`
	Timestamp int64        `json:"timestamp_ms"`
	Key       text         `json:"key"`
	Headers   []headerLine `json:"headers"`
	// Value is base64, or null.
	Value *string `json:"value"`
}

type headerLine struct {
	Key   text `json:"key"`
	Value text `json:"value"`
}

func lineOfRecord(r *kgo.Record) recordLine {
	l := recordLine{Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Headers: []headerLine{}}
	for _, h := range r.Headers {
		l.Headers = append(l.Headers, headerLine{text(h.Key), h.Value})
	}
	if r.Value != nil {
		value := base64.StdEncoding.EncodeToString(r.Value)
		l.Value = &value
	}
	return l
}

func (l recordLine) record() (*kgo.Record, error) {
	r := &kgo.Record{Offset: l.Offset, Timestamp: time.UnixMilli(l.Timestamp), Key: l.Key}
	for _, h := range l.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(h.Key), Value: h.Value})
	}
	if l.Value != nil {
		value, err := base64.StdEncoding.DecodeString(*l.Value)
		if err != nil {
			return nil, fmt.Errorf("value: %w", err)
		}
		r.Value = append([]byte{}, value...)
	}
	return r, nil
}

// linesWriter writes JSON lines, compressed, and hashes the file on the way.
type linesWriter struct {
	file  *os.File
	sum   hash.Hash
	zstd  *zstd.Encoder
	lines *json.Encoder
	// raw is how much was written before compression; bytes how much after it.
	raw, bytes int64
}

func createLines(path string) (*linesWriter, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	w := &linesWriter{file: file, sum: sha256.New()}
	w.zstd, err = zstd.NewWriter(io.MultiWriter(file, w.sum, counting{&w.bytes}), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	w.lines = json.NewEncoder(io.MultiWriter(w.zstd, counting{&w.raw}))
	w.lines.SetEscapeHTML(false)
	return w, nil
}

type counting struct{ n *int64 }

func (c counting) Write(b []byte) (int, error) {
	*c.n += int64(len(b))
	return len(b), nil
}

// close ends the file on disk and tells its size and hash.
func (w *linesWriter) close() (bytes int64, sum string, err error) {
	err = errors.Join(w.zstd.Close(), w.file.Sync(), w.file.Close())
	return w.bytes, hex.EncodeToString(w.sum.Sum(nil)), err
}

// readLines calls each for the lines of a file that createLines made.
func readLines[T any](path string, each func(T) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	plain, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(decoderMemory))
	if err != nil {
		return err
	}
	defer plain.Close()
	lines := bufio.NewScanner(plain)
	lines.Buffer(make([]byte, 0, 64<<10), longestLine)
	number := 0
	for lines.Scan() {
		number++
		var line T
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("%s, line %d: %w", path, number, err)
		}
		if err := each(line); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s, after line %d: %w", path, number, err)
	}
	return nil
}

// seal writes the manifest and its checksum.
func (m *Manifest) seal(dir string) error {
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	raw = append(raw, '\n')
	sum := sha256.Sum256(raw)
	return errors.Join(
		writeSynced(filepath.Join(dir, manifestFile), raw, 0o644),
		// In the form that sha256sum --check reads.
		writeSynced(filepath.Join(dir, manifestSum), fmt.Appendf(nil, "%x  %s\n", sum, manifestFile), 0o644))
}

func writeSynced(path string, content []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Sync(), file.Close())
}

// openManifest reads the manifest of an export and checks that it is whole.
func openManifest(dir string) (*Manifest, error) {
	raw, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no export, or one that was not finished: it has no %s", dir, manifestFile)
	}
	if err != nil {
		return nil, err
	}
	announced, err := os.ReadFile(filepath.Join(dir, manifestSum))
	if err != nil {
		return nil, err
	}
	if want := fmt.Sprintf("%x  %s\n", sha256.Sum256(raw), manifestFile); string(announced) != want {
		return nil, fmt.Errorf("%s is damaged, or %s beside it: they do not belong together", filepath.Join(dir, manifestFile), manifestSum)
	}
	m := &Manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, manifestFile), err)
	}
	if m.Format != formatName || m.Version != formatVersion {
		return nil, fmt.Errorf("%s has format %q in version %d; this PixTools reads %q in version %d", dir, m.Format, m.Version, formatName, formatVersion)
	}
	for _, f := range m.Files {
		if !filepath.IsLocal(f.Name) {
			return nil, fmt.Errorf("%s names the file %q, which is none below it", filepath.Join(dir, manifestFile), f.Name)
		}
	}
	return m, nil
}

// sumOf hashes a file.
func sumOf(path string) (string, int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer file.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, file)
	return hex.EncodeToString(sum.Sum(nil)), n, err
}

// checkFile refuses a file that is not as it was written.
func checkFile(path, sum string, bytes int64) error {
	is, size, err := sumOf(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is missing", path)
	case err != nil:
		return err
	case size != bytes:
		return fmt.Errorf("%s is damaged: it has %d bytes, and was written with %d", path, size, bytes)
	case is != strings.ToLower(sum):
		return fmt.Errorf("%s is damaged: its SHA-256 is %s, and was %s", path, is, sum)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
