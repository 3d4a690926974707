// Package apikeys keeps the keys by which clients of the API say who they are: made once and
// shown once, hashed at rest, in the schema that no rebuild of the read model touches.
//
// A key is pixtools_ID_SECRET. The prefix lets scanners of source code find a key that was left
// there, and the checksum at its end lets them tell it from what only looks like one. The id is
// public. Of the secret two things are derived, each of which tells nothing of the one before:
//
//	secret ──SHA-256──▶ session ──SHA-256──▶ what is stored
//
// A browser keeps the session in a cookie, so its cookies hold no key; the database holds
// neither, so who reads it can send no request.
package apikeys

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
)

const (
	prefix = "pixtools_"
	// idBytes make 16 letters.
	idBytes = 10
	// secretBytes: nobody guesses 256 bits, so a hash that is quick to compute is enough.
	secretBytes   = 32
	checksumBytes = 4
)

// letters are those of base32, in lower case: a double click selects the whole key.
var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Presented is what a request shows: a key, or the session that was made of one.
type Presented struct {
	ID      string
	session [sha256.Size]byte
}

// stored is what the database knows it by.
func (p Presented) stored() []byte {
	sum := sha256.Sum256(p.session[:])
	return sum[:]
}

// Session is the text that a browser keeps.
func (p Presented) Session() string { return p.ID + "_" + letters.EncodeToString(p.session[:]) }

// draw makes a key that was never there before.
func draw() (text string, p Presented, err error) {
	var id [idBytes]byte
	var secret [secretBytes]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", p, err
	}
	if _, err := rand.Read(secret[:]); err != nil {
		return "", p, err
	}
	text = prefix + letters.EncodeToString(id[:]) + "_" + letters.EncodeToString(append(secret[:], checksum(id[:], secret[:])...))
	p, err = ParseKey(text)
	return text, p, err
}

func checksum(id, secret []byte) []byte {
	return binary.BigEndian.AppendUint32(nil, crc32.Update(crc32.ChecksumIEEE(id), crc32.IEEETable, secret))
}

// errForm says that a text is not of a key's form.
var errForm = errors.New("it is not of the form pixtools_ID_SECRET, as `pixtools keys create` printed it")

// ParseKey reads a key.
func ParseKey(text string) (Presented, error) {
	rest, found := strings.CutPrefix(text, prefix)
	id, raw, ok := parts(rest, secretBytes+checksumBytes)
	if !found || !ok || string(raw[secretBytes:]) != string(checksum(decodeID(id), raw[:secretBytes])) {
		return Presented{}, errForm
	}
	return Presented{ID: id, session: sha256.Sum256(raw[:secretBytes])}, nil
}

// ParseSession reads what Session made.
func ParseSession(text string) (Presented, error) {
	id, raw, ok := parts(text, sha256.Size)
	if !ok {
		return Presented{}, errForm
	}
	return Presented{ID: id, session: [sha256.Size]byte(raw)}, nil
}

// IsID says whether a text is of the form of an id.
func IsID(text string) bool { return len(decodeID(text)) == idBytes }

func decodeID(text string) []byte {
	id, err := letters.DecodeString(text)
	if err != nil || letters.EncodeToString(id) != text {
		return nil
	}
	return id
}

func parts(text string, size int) (id string, raw []byte, ok bool) {
	id, rest, _ := strings.Cut(text, "_")
	raw, err := letters.DecodeString(rest)
	return id, raw, IsID(id) && err == nil && len(raw) == size && letters.EncodeToString(raw) == rest
}
