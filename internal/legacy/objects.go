package legacy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"unicode"

	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/internal/sniff"
)

// ErrTooLarge says that an object is larger than MaxObjectBytes.
var ErrTooLarge = errors.New("larger than IMPORT_LEGACY_MAX_OBJECT_BYTES")

// Objects are those in the Python service's bucket.
type Objects struct {
	// From is its bucket, To ours. They may be the same one.
	From, To *blob.Store
	// Always puts every object into ours, under a name of ours.
	Always bool
	// Spool is a directory for objects that are being looked at.
	Spool    string
	MaxBytes int64
}

// Object is one that was read.
type Object struct {
	Key, SHA256   string
	Bytes         int64
	Width, Height int
	// Format is empty where the header cannot be read.
	Format string
}

// Take reads an object: its hash, its size and what its header says. One that lies where
// events may not lead, since Always says so, or it is not below prefix, or its key has the
// file's name in it, is put into our bucket under prefix and the name that named gives. The
// error is blob.ErrNotFound where it is gone.
func (o Objects) Take(ctx context.Context, key, prefix, fileName string, named func(sha256 string) string) (found Object, err error) {
	file, err := os.CreateTemp(o.Spool, "legacy-*")
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	body, err := o.From.Get(ctx, key)
	if err != nil {
		return found, err
	}
	defer body.Close()
	hash := sha256.New()
	found.Key = key
	if found.Bytes, err = io.Copy(io.MultiWriter(file, hash), io.LimitReader(body, o.MaxBytes+1)); err != nil {
		return found, err
	}
	if found.Bytes > o.MaxBytes {
		return found, fmt.Errorf("%s: %w", key, ErrTooLarge)
	}
	sum := [sha256.Size]byte(hash.Sum(nil))
	found.SHA256 = hex.EncodeToString(sum[:])
	// What it claims to be is told, also beyond the limits of today.
	header, err := sniff.Read(file, found.Bytes, sniff.Limits{MaxPixels: 1 << 62, MaxSide: 1 << 30})
	var refused *sniff.Error
	if err != nil && !errors.As(err, &refused) {
		return found, err
	}
	found.Format, found.Width, found.Height = header.Format, header.Width, header.Height
	if !o.Always && o.From == o.To && strings.HasPrefix(key, prefix) && !Tells(key[len(prefix):], fileName) {
		return found, nil
	}
	found.Key = prefix + named(found.SHA256)
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return found, err
	}
	contentType := "application/octet-stream"
	switch found.Format {
	case "":
	case sniff.JPG:
		contentType = "image/jpeg"
	default:
		contentType = "image/" + found.Format
	}
	return found, o.To.Put(ctx, found.Key, file, found.Bytes, sum, contentType)
}

// Tells says whether a key has a file's name in it, which nobody is to read in the log.
func Tells(key, fileName string) bool {
	stem := strings.TrimSuffix(path.Base(fileName), path.Ext(fileName))
	return fileName != "" && stem != "" && stem != "." && strings.Contains(strings.ToLower(key), strings.ToLower(stem))
}

// canonical is an operation's name as ours are written.
func canonical(name string) string {
	if name = strings.ToLower(name); name == "jpeg" {
		return "jpg"
	}
	return name
}

// Orphans are results of a job that its row does not name, by operation: the Python service
// wrote them into the row only when all were made.
func (o Objects) Orphans(ctx context.Context, id string, names []string) (map[string]string, error) {
	found := map[string]string{}
	prefix := blob.ProcessedPrefix + id + "/"
	err := o.From.List(ctx, prefix, func(object blob.Object) error {
		words := strings.FieldsFunc(object.Key[len(prefix):], func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
		for _, word := range words {
			for _, name := range names {
				if canonical(word) == name {
					if found[name] == "" {
						found[name] = object.Key
					}
					return nil
				}
			}
		}
		return nil
	})
	return found, err
}
