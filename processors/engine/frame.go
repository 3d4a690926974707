package engine

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// maxFrameBytes is far above any message: a length beyond it is garbage, and is not
// allocated.
const maxFrameBytes = 1 << 20

// writeFrame writes a message as JSON, its length before it in four bytes, in one write.
func writeFrame(w io.Writer, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

// readFrame reads one message. It returns io.EOF only where no message has begun.
func readFrame(r io.Reader, message any) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxFrameBytes {
		return fmt.Errorf("a message of %d bytes; %d is the limit", n, maxFrameBytes)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("within a message: %w", err)
	}
	return json.Unmarshal(body, message)
}
