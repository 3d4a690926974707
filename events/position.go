package events

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
)

// Position is a place in the log: what a write returns, what a query may wait for,
// and the id of a server-sent event.
type Position struct {
	// Log is the topic's id, drawn by Kafka when the topic was created: a position
	// in another log means nothing here.
	Log       [16]byte
	Partition int32
	// Offset is that of the record itself; a reader that applied it has passed it.
	Offset int64
}

const positionVersion = 1

// ErrPosition says that a token was not made by Position.Token.
var ErrPosition = errors.New("not a position token; pass back, unchanged, what a response carried")

// Token is the position as opaque, URL-safe text.
func (p Position) Token() string {
	b := append([]byte{positionVersion}, p.Log[:]...)
	b = binary.AppendUvarint(b, uint64(p.Partition))
	b = binary.AppendUvarint(b, uint64(p.Offset))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParsePosition reads a token; the error is ErrPosition.
func ParsePosition(token string) (Position, error) {
	var p Position
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 1+len(p.Log) || b[0] != positionVersion {
		return p, ErrPosition
	}
	rest := b[1+copy(p.Log[:], b[1:]):]
	partition, n := binary.Uvarint(rest)
	if n <= 0 || partition > 1<<31-1 {
		return p, ErrPosition
	}
	offset, m := binary.Uvarint(rest[n:])
	if m <= 0 || offset > 1<<63-1 || n+m != len(rest) {
		return p, ErrPosition
	}
	p.Partition, p.Offset = int32(partition), int64(offset)
	return p, nil
}
