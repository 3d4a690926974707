package sniff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The pictures that Go cannot encode are the engine's; a script there makes them.
const pictures = "../../processors/engine/testdata"

var generous = Limits{MaxPixels: 1 << 30, MaxSide: 65535}

func readBytes(b []byte, limits Limits) (Header, error) {
	return Read(bytes.NewReader(b), int64(len(b)), limits)
}

func picture(t testing.TB, name string) []byte {
	content, err := os.ReadFile(filepath.Join(pictures, name))
	require.NoError(t, err)
	return content
}

func pngHeader(width, height uint32) []byte {
	data := binary.BigEndian.AppendUint32([]byte("IHDR"), width)
	data = append(binary.BigEndian.AppendUint32(data, height), 8, 2, 0, 0, 0)
	b := append([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\x0d"), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(data))
}

func jpegOf(t testing.TB, width, height int) []byte {
	var b bytes.Buffer
	require.NoError(t, jpeg.Encode(&b, image.NewGray(image.Rect(0, 0, width, height)), nil))
	return b.Bytes()
}

func pngOf(t testing.TB, width, height int) []byte {
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, image.NewGray(image.Rect(0, 0, width, height))))
	return b.Bytes()
}

func TestFormats(t *testing.T) {
	for name, test := range map[string]struct {
		content []byte
		want    Header
	}{
		"jpg":            {jpegOf(t, 31, 17), Header{JPG, 31, 17, false}},
		"cmyk jpg":       {picture(t, "cmyk.jpg"), Header{JPG, 64, 48, false}},
		"png":            {pngOf(t, 31, 17), Header{PNG, 31, 17, false}},
		"animated png":   {picture(t, "animated.png"), Header{PNG, 48, 32, true}},
		"webp, lossless": {picture(t, "alpha.webp"), Header{WebP, 64, 48, false}},
		"webp, extended": {picture(t, "turned.webp"), Header{WebP, 64, 48, false}},
		"animated webp":  {picture(t, "animated.webp"), Header{WebP, 48, 32, true}},
		"avif":           {picture(t, "still.avif"), Header{AVIF, 64, 48, false}},
		"animated avif":  {picture(t, "animated.avif"), Header{AVIF, 48, 32, true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readBytes(test.content, generous)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestLimits(t *testing.T) {
	limits := Limits{MaxPixels: 1000, MaxSide: 100}
	for _, test := range []struct {
		width, height uint32
		code          string
	}{
		{100, 10, ""},
		{99, 10, ""},
		{10, 100, ""},
		{101, 1, SideTooLong},
		{1, 101, SideTooLong},
		{91, 11, TooManyPixels}, // 1001
		{77, 13, TooManyPixels}, // 1001
		{37, 27, ""},            // 999
		{20000, 20000, SideTooLong},
	} {
		header, err := readBytes(pngHeader(test.width, test.height), limits)
		require.Equal(t, Header{Format: PNG, Width: int(test.width), Height: int(test.height)}, header)
		if test.code == "" {
			require.NoError(t, err)
			continue
		}
		var fault *Error
		require.ErrorAs(t, err, &fault)
		require.Equal(t, test.code, fault.Code)
		limit := map[string]string{SideTooLong: "100 a side", TooManyPixels: "the limit is 1000"}[test.code]
		require.Contains(t, fault.Message, limit)
	}
}

// What an AVIF file claims anywhere counts, not what its primary item claims.
func TestLimitsOfAVIF(t *testing.T) {
	content := picture(t, "still.avif")
	require.NoError(t, err2(readBytes(content, Limits{MaxPixels: 64 * 48, MaxSide: 64})))
	requireCode(t, SideTooLong, content, Limits{MaxPixels: 64 * 48, MaxSide: 63})
	requireCode(t, TooManyPixels, content, Limits{MaxPixels: 64*48 - 1, MaxSide: 64})

	large := withSizes(content, 0xffffffff, 0xffffffff)
	requireCode(t, SideTooLong, large, generous)
}

func err2(_ Header, err error) error { return err }

// withSizes writes over the size in every ispe box.
func withSizes(content []byte, width, height uint32) []byte {
	content = bytes.Clone(content)
	for at := 0; ; {
		i := bytes.Index(content[at:], []byte("ispe"))
		if i < 0 {
			return content
		}
		at += i + 8
		binary.BigEndian.PutUint32(content[at:], width)
		binary.BigEndian.PutUint32(content[at+4:], height)
	}
}

func requireCode(t *testing.T, code string, content []byte, limits Limits) {
	t.Helper()
	_, err := readBytes(content, limits)
	var fault *Error
	require.ErrorAs(t, err, &fault)
	require.Equal(t, code, fault.Code, fault.Message)
	require.NotEmpty(t, fault.Message)
}

func TestRefused(t *testing.T) {
	avif, webp := picture(t, "still.avif"), picture(t, "alpha.webp")
	jpg := jpegOf(t, 16, 16)
	for _, test := range []struct {
		name, code string
		content    []byte
	}{
		{"empty", EmptyFile, nil},
		{"one byte", UnsupportedFormat, []byte{0xff}},
		{"text", UnsupportedFormat, []byte("not a picture, but long enough to look")},
		{"gif", UnsupportedFormat, []byte("GIF89a..........")},
		{"svg", UnsupportedFormat, []byte("<svg xmlns='http://www.w3.org/2000/svg'/>")},
		{"heic", UnsupportedFormat, bytes.ReplaceAll(bytes.ReplaceAll(avif, []byte("avif"), []byte("heic")), []byte("avis"), []byte("hevc"))},
		{"jpg cut in its header", Truncated, jpg[:20]},
		{"png cut in its header", Truncated, pngHeader(8, 8)[:20]},
		{"webp cut", Truncated, webp[:len(webp)-1]},
		{"avif cut in its header", Truncated, avif[:60]},
		{"avif cut in its pixels", Truncated, avif[:len(avif)-1]},
		{"png of no pixels", CorruptHeader, pngHeader(0, 8)},
		{"png with a bad sum", CorruptHeader, append(pngHeader(8, 8)[:29], 0, 0, 0, 0)},
		{"jpg of other bytes", CorruptHeader, append([]byte("\xff\xd8\xff"), strings.Repeat("x", 400)...)},
		{"webp of other bytes", CorruptHeader, []byte("RIFF\x10\x00\x00\x00WEBPxxxx\x04\x00\x00\x00yyyyzzzz")},
		{"avif without meta", CorruptHeader, bytes.Replace(avif, []byte("meta"), []byte("free"), 1)},
		{"avif without a primary item", CorruptHeader, bytes.Replace(avif, []byte("pitm"), []byte("free"), 1)},
		{"avif of no pixels", CorruptHeader, withSizes(avif, 0, 0)},
	} {
		t.Run(test.name, func(t *testing.T) { requireCode(t, test.code, test.content, generous) })
	}
}

var errDisk = errors.New("the disk failed")

type brokenDisk struct{ good []byte }

func (d brokenDisk) ReadAt(p []byte, offset int64) (int, error) {
	if offset+int64(len(p)) <= int64(len(d.good)) {
		return copy(p, d.good[offset:]), nil
	}
	return 0, errDisk
}

// A disk that fails is no fault of the picture: the client may try again.
func TestReadFailure(t *testing.T) {
	for _, content := range [][]byte{jpegOf(t, 64, 64), pngOf(t, 64, 64), picture(t, "still.avif"), picture(t, "alpha.webp")} {
		for _, good := range []int{0, 16, 40} {
			_, err := Read(brokenDisk{content[:good]}, int64(len(content)), generous)
			require.ErrorIs(t, err, errDisk)
			var fault *Error
			require.NotErrorAs(t, err, &fault)
		}
	}
}

func TestPNGEnds(t *testing.T) {
	content := pngOf(t, 64, 64)
	for cut := range content {
		require.False(t, PNGEnds(bytes.NewReader(content[:cut]), int64(cut)), cut)
	}
	require.True(t, PNGEnds(bytes.NewReader(content), int64(len(content))))
}

func TestLimitsValidate(t *testing.T) {
	require.NoError(t, generous.Validate())
	require.NoError(t, Limits{1, 1}.Validate())
	err := Limits{0, 65536}.Validate()
	require.ErrorContains(t, err, "MAX_IMAGE_PIXELS is 0")
	require.ErrorContains(t, err, "MAX_IMAGE_SIDE is 65536")
}

// reader counts what is read, to see that a header costs no more than a header.
type reader struct {
	io.ReaderAt
	bytes int64
}

func (r *reader) ReadAt(p []byte, offset int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, offset)
	r.bytes += int64(n)
	return n, err
}

func FuzzRead(f *testing.F) {
	for _, name := range []string{"still.avif", "animated.avif", "alpha.webp", "animated.webp", "turned.png", "cmyk.jpg"} {
		f.Add(picture(f, name))
	}
	f.Add(pngHeader(20000, 20000))
	limits := Limits{MaxPixels: 1_000_000, MaxSide: 4000}
	f.Fuzz(func(t *testing.T, content []byte) {
		r := &reader{ReaderAt: bytes.NewReader(content)}
		header, err := Read(r, int64(len(content)), limits)
		if most := 8*int64(len(content)) + maxMetaBytes; r.bytes > most {
			t.Fatalf("%d bytes were read of a file of %d", r.bytes, len(content))
		}
		var fault *Error
		if err != nil {
			require.ErrorAs(t, err, &fault, "whatever the bytes, the fault is the picture's")
			require.NotEmpty(t, fault.Code)
			return
		}
		require.NoError(t, limits.Check(header.Width, header.Height))
		require.Contains(t, []string{JPG, PNG, WebP, AVIF}, header.Format)
	})
}
