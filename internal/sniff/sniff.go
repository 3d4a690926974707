// Package sniff reads a picture's header: which of the four formats it is, how large,
// and whether it is animated. Nothing is decoded, and nothing here is C, so the API may
// call it on whatever was uploaded; the engine's children call it again before they let
// libvips near the bytes.
//
// The bytes decide. File names and content types are a client's claims.
package sniff

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"slices"

	"golang.org/x/image/webp"
)

// Names of the formats, as they are written in events and operations.
const (
	JPG  = "jpg"
	PNG  = "png"
	WebP = "webp"
	AVIF = "avif"
)

// Codes of Error. They are part of the HTTP answers and of OperationFailed.
const (
	EmptyFile         = "empty_file"
	UnsupportedFormat = "unsupported_format"
	CorruptHeader     = "corrupt_header"
	Truncated         = "truncated"
	TooManyPixels     = "too_many_pixels"
	SideTooLong       = "side_too_long"
)

// Limits bound what a picture may claim to be. A few bytes of header can announce
// gigabytes of pixels; only the claim can be checked before they are decoded.
type Limits struct {
	// MaxPixels is how many pixels a picture may have.
	// Beyond it: 422; where only the processor's limit is lower: OperationFailed, kind INPUT.
	MaxPixels int64 `env:"MAX_IMAGE_PIXELS" envDefault:"100000000" range:"1 to 4294967296" unit:"pixels"`
	// MaxSide is how long a picture's longer side may be. 16383 is the most that WebP can hold, so
	// that a picture within it fits all four formats; a longer one fails where it does not fit.
	// Beyond it: as with MaxPixels.
	MaxSide int `env:"MAX_IMAGE_SIDE" envDefault:"16383" range:"1 to 65535" unit:"pixels"`
}

// Bounds of the limits themselves.
const (
	largestMaxPixels = 1 << 32
	largestMaxSide   = 65535 // JPEG's field for it has 16 bits
)

// Validate reports every limit that is out of range, by the name of its variable.
func (l Limits) Validate() error {
	var faults []error
	if l.MaxPixels < 1 || l.MaxPixels > largestMaxPixels {
		faults = append(faults, fmt.Errorf("MAX_IMAGE_PIXELS is %d: use 1 to %d pixels", l.MaxPixels, int64(largestMaxPixels)))
	}
	if l.MaxSide < 1 || l.MaxSide > largestMaxSide {
		faults = append(faults, fmt.Errorf("MAX_IMAGE_SIDE is %d: use 1 to %d pixels", l.MaxSide, largestMaxSide))
	}
	return errors.Join(faults...)
}

// Header is what a picture says of itself. Width and height are those of the stored
// pixels, before an orientation is applied.
type Header struct {
	Format        string
	Width, Height int
	// Animated is true where the header announces more than one frame.
	Animated bool
}

// Error says what is wrong with the picture; asking again will not help. Any other
// error of Read comes from reading the file.
type Error struct{ Code, Message string }

func (e *Error) Error() string { return e.Message }

func fault(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Read reads the header of the size bytes in r, and checks it against the limits.
// The header is returned beside an error of the limits too.
func Read(r io.ReaderAt, size int64, limits Limits) (Header, error) {
	if size <= 0 {
		return Header{}, fault(EmptyFile, "the file is empty")
	}
	file := &recorder{r: r}
	header, err := read(file, size, limits)
	switch {
	case file.err != nil:
		return Header{}, fmt.Errorf("reading the picture's header: %w", file.err)
	case err != nil:
		return header, err
	}
	return header, limits.Check(header.Width, header.Height)
}

// Check compares a size with the limits.
func (l Limits) Check(width, height int) error {
	switch pixels := int64(width) * int64(height); {
	case width < 1 || height < 1:
		return fault(CorruptHeader, "the picture's header says it is %d x %d pixels", width, height)
	case max(width, height) > l.MaxSide:
		return fault(SideTooLong, "the picture is %d x %d pixels; the limit is %d a side", width, height, l.MaxSide)
	case pixels > l.MaxPixels:
		return fault(TooManyPixels, "the picture is %d x %d = %d pixels; the limit is %d", width, height, pixels, l.MaxPixels)
	}
	return nil
}

// recorder keeps apart a disk that failed and a file that ends early: the parsers wrap
// both into complaints about the picture.
type recorder struct {
	r   io.ReaderAt
	err error
}

func (r *recorder) ReadAt(p []byte, offset int64) (int, error) {
	n, err := r.r.ReadAt(p, offset)
	if err != nil && !errors.Is(err, io.EOF) && r.err == nil {
		r.err = err
	}
	return n, err
}

// magicBytes is enough to tell the formats apart.
const magicBytes = 12

func read(file io.ReaderAt, size int64, limits Limits) (Header, error) {
	magic := make([]byte, min(size, magicBytes))
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, size), magic); err != nil {
		return Header{}, fault(Truncated, "the file ends within its first %d bytes", magicBytes)
	}
	switch {
	case bytes.HasPrefix(magic, []byte("\xff\xd8\xff")):
		return config(JPG, jpeg.DecodeConfig, file, size)
	case bytes.HasPrefix(magic, []byte("\x89PNG\r\n\x1a\n")):
		header, err := config(PNG, png.DecodeConfig, file, size)
		header.Animated = err == nil && animatedPNG(file, size)
		return header, err
	case len(magic) == magicBytes && string(magic[:4]) == "RIFF" && string(magic[8:]) == "WEBP":
		return readWebP(file, size, magic)
	case len(magic) == magicBytes && string(magic[4:8]) == "ftyp":
		return readAVIF(file, size, limits)
	}
	return Header{}, unsupported()
}

func unsupported() error {
	return fault(UnsupportedFormat, "the file is not a JPEG, PNG, WebP or AVIF picture")
}

// config asks one of Go's decoders for the size alone.
func config(format string, decode func(io.Reader) (image.Config, error), file io.ReaderAt, size int64) (Header, error) {
	c, err := decode(bufio.NewReader(io.NewSectionReader(file, 0, size)))
	switch {
	case errors.As(err, new(jpeg.UnsupportedError)), errors.As(err, new(png.UnsupportedError)):
		return Header{}, fault(UnsupportedFormat, "this kind of %s is not supported: %v", format, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Header{}, fault(Truncated, "the %s file ends within its header", format)
	case err != nil:
		return Header{}, fault(CorruptHeader, "the %s header is damaged: %v", format, err)
	}
	return Header{Format: format, Width: c.Width, Height: c.Height}, nil
}

// readWebP checks the length in the outermost header too: a file cut short in transfer
// shows there.
func readWebP(file io.ReaderAt, size int64, magic []byte) (Header, error) {
	const riffHeader = 8
	if claimed := riffHeader + int64(binary.LittleEndian.Uint32(magic[4:])); claimed > size {
		return Header{}, fault(Truncated, "the webp file is %d bytes long, but its header says %d", size, claimed)
	}
	header, err := config(WebP, webp.DecodeConfig, file, size)
	if err != nil {
		return Header{}, err
	}
	const flagsAt, animation = 20, 1 << 1
	first := make([]byte, flagsAt+1)
	_, err = file.ReadAt(first, 0)
	header.Animated = err == nil && string(first[12:16]) == "VP8X" && first[flagsAt]&animation != 0
	return header, nil
}

// maxPNGChunks bounds the walk along a PNG's chunks: 2 GB at an encoder's usual 8 KiB.
const maxPNGChunks = 1 << 18

func animatedPNG(file io.ReaderAt, size int64) bool {
	return findChunk(file, size, "acTL", "IDAT") == "acTL" // it stands before the pixels
}

// PNGEnds says whether a PNG has its last chunk, or was cut off.
func PNGEnds(file io.ReaderAt, size int64) bool {
	return findChunk(file, size, "IEND") != ""
}

// findChunk is the first kind of these that is in the file as a whole, or "".
func findChunk(file io.ReaderAt, size int64, kinds ...string) string {
	const signature, header, sum = 8, 8, 4
	var chunk [header]byte
	at := int64(signature)
	for range maxPNGChunks {
		if at+header+sum > size {
			return ""
		}
		if _, err := file.ReadAt(chunk[:], at); err != nil {
			return ""
		}
		at += header + int64(binary.BigEndian.Uint32(chunk[:])) + sum
		if kind := string(chunk[4:]); at <= size && slices.Contains(kinds, kind) {
			return kind
		}
	}
	return ""
}
