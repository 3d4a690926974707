package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A record batch, as every Kafka broker keeps it: base offset (8 bytes), length of what follows (4),
// leader epoch (4), magic (1), CRC-32C (4) of all that follows it: attributes (2), last offset delta (4),
// first and last timestamp (8 each), producer id (8), producer epoch (2), ...
const (
	batchLengthAt     = 8
	batchPrefix       = 12 // what the length does not count
	batchCRCAt        = 17
	batchBodyAt       = 21
	batchAttributesAt = 21
	batchDeltaAt      = 23
	batchProducerAt   = 43
	batchEpochAt      = 51
	batchMinimum      = 61

	// A control batch has one record: its length, attributes, offsets and the length of its key take a byte
	// each, and of the key two bytes are a version and two the type: 0 aborts, 1 commits.
	markerTypeAt = batchMinimum + 5 + 3
	markerCommit = 1

	attributeTransactional = 1 << 4
	attributeControl       = 1 << 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// batchInfo is what is read of a batch.
type batchInfo struct {
	producerID             int64
	epoch                  int16
	transactional, control bool
	// aborts: it is the end of a transaction that was aborted. Else a control batch is a commit.
	aborts bool
}

// eachBatch goes through a partition's batches, segment after segment; of each, until one is damaged or
// cut short.
func eachBatch(dir string, visit func(batchInfo)) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was written to it
	}
	if err != nil {
		return err
	}
	var bases []int64
	for _, e := range entries {
		base, isSegment := strings.CutSuffix(e.Name(), ".dat")
		if !isSegment {
			continue
		}
		if n, err := strconv.ParseInt(base, 10, 64); err == nil {
			bases = append(bases, n)
		}
	}
	slices.Sort(bases)
	for _, base := range bases {
		raw, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%d.dat", base)))
		if err != nil {
			return err
		}
		for size := batchSize(raw); size > 0; size = batchSize(raw) {
			attributes := binary.BigEndian.Uint16(raw[batchAttributesAt:])
			b := batchInfo{
				producerID: int64(binary.BigEndian.Uint64(raw[batchProducerAt:])), epoch: int16(binary.BigEndian.Uint16(raw[batchEpochAt:])),
				transactional: attributes&attributeTransactional != 0, control: attributes&attributeControl != 0,
			}
			b.aborts = b.control && (size <= markerTypeAt || raw[markerTypeAt] != markerCommit)
			visit(b)
			raw = raw[size:]
		}
	}
	return nil
}

// batchSize is the size of the batch that raw begins with, or 0 if it is cut short or damaged.
func batchSize(raw []byte) int {
	if len(raw) < batchMinimum {
		return 0
	}
	size := batchPrefix + int(binary.BigEndian.Uint32(raw[batchLengthAt:]))
	if size < batchMinimum || size > len(raw) {
		return 0
	}
	if crc32.Checksum(raw[batchBodyAt:size], castagnoli) != binary.BigEndian.Uint32(raw[batchCRCAt:]) {
		return 0
	}
	return size
}
