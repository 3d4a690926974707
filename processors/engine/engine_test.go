package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/sniff"
)

// testDeadline ends a test that hangs; nothing is measured by it.
const testDeadline = 2 * time.Minute

var testConfig = Config{
	Threads: 1, MemoryBytes: 2 << 30, RecycleAfter: 500,
	Limits: sniff.Limits{MaxPixels: 100_000_000, MaxSide: 16383},
}

func TestMain(m *testing.M) {
	ChildMain()
	doomedParent()
	os.Exit(m.Run())
}

func newPool(t *testing.T, cfg Config, workers int) *Pool {
	require.NoError(t, cfg.Validate())
	pool := New(cfg, workers, slog.New(slog.NewTextHandler(t.Output(), nil)))
	t.Cleanup(pool.Close)
	return pool
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testDeadline)
	t.Cleanup(cancel)
	return ctx
}

// request is a conversion to a format with everyday settings.
func request(t *testing.T, source, format string) Request {
	req := Request{Source: source, Target: filepath.Join(t.TempDir(), "result."+format), Format: format}
	switch format {
	case sniff.JPG:
		req.Quality = 92
	case sniff.WebP:
		req.Quality, req.Effort = 90, 2
	case sniff.AVIF:
		req.Quality, req.Effort = 90, 1
	}
	return req
}

func write(t *testing.T, name string, content []byte) string {
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

func mustConvert(t *testing.T, pool *Pool, req Request) Result {
	t.Helper()
	result, err := pool.Convert(deadline(t), req)
	require.NoError(t, err)
	return result
}

// pixels decodes a result with Go's decoders, or by way of PNG where those will not do: Go
// has none for AVIF, and that for lossy WebP takes its range of colours for JPEG's.
func pixels(t *testing.T, pool *Pool, path, format string) image.Image {
	t.Helper()
	if format == sniff.AVIF || format == sniff.WebP {
		req := request(t, path, sniff.PNG)
		mustConvert(t, pool, req)
		path, format = req.Target, sniff.PNG
	}
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	decode := png.Decode
	if format == sniff.JPG {
		decode = jpeg.Decode
	}
	picture, err := decode(file)
	require.NoError(t, err)
	return picture
}

var (
	red    = color.NRGBA{230, 30, 30, 255}
	green  = color.NRGBA{30, 200, 30, 255}
	blue   = color.NRGBA{30, 30, 230, 255}
	yellow = color.NRGBA{230, 220, 40, 255}
	white  = color.NRGBA{255, 255, 255, 255}
)

// quadrants paints top left, top right, bottom left, bottom right.
func quadrants(w, h int, colours [4]color.NRGBA) *image.NRGBA {
	picture := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			picture.SetNRGBA(x, y, colours[y*2/h*2+x*2/w])
		}
	}
	return picture
}

func pngBytes(t *testing.T, picture image.Image) []byte {
	var b bytes.Buffer
	require.NoError(t, png.Encode(&b, picture))
	return b.Bytes()
}

func jpegBytes(t *testing.T, picture image.Image) []byte {
	var b bytes.Buffer
	require.NoError(t, jpeg.Encode(&b, picture, &jpeg.Options{Quality: 95}))
	return b.Bytes()
}

// requireQuadrants looks at the middle of each quadrant.
func requireQuadrants(t *testing.T, picture image.Image, want [4]color.NRGBA, tolerance int) {
	t.Helper()
	w, h := picture.Bounds().Dx(), picture.Bounds().Dy()
	for i, colour := range want {
		x, y := w/4+i%2*w/2, h/4+i/2*h/2
		requireColour(t, picture.At(x, y), colour, tolerance)
	}
}

func requireColour(t *testing.T, got color.Color, want color.NRGBA, tolerance int) {
	t.Helper()
	g := color.NRGBAModel.Convert(got).(color.NRGBA)
	for i, pair := range [][2]uint8{{g.R, want.R}, {g.G, want.G}, {g.B, want.B}, {g.A, want.A}} {
		difference := int(pair[0]) - int(pair[1])
		if difference < -tolerance || difference > tolerance {
			t.Fatalf("channel %d: got %v, want %v within %d", i, g, want, tolerance)
		}
	}
}

// noise cannot be compressed, so that encoders have work.
func noise(w, h int) *image.NRGBA {
	random := rand.NewPCG(1, 2)
	picture := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := 0; i < len(picture.Pix); i += 4 {
		binary.LittleEndian.PutUint32(picture.Pix[i:], uint32(random.Uint64())|0xff000000)
	}
	return picture
}

func TestConfigValidate(t *testing.T) {
	require.NoError(t, testConfig.Validate())
	byDefault, err := env.ParseAs[Config]()
	require.NoError(t, err)
	require.NoError(t, byDefault.Validate())

	err = Config{Threads: 65, MemoryBytes: minMemoryBytes - 1}.Validate()
	for _, fault := range []string{"ENGINE_THREADS is 65", "ENGINE_MEMORY_BYTES is", "ENGINE_RECYCLE_AFTER is 0", "MAX_IMAGE_PIXELS is 0", "MAX_IMAGE_SIDE is 0"} {
		require.ErrorContains(t, err, fault)
	}
}
