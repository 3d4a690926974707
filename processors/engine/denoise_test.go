package engine

import (
	"fmt"
	"image"
	"image/color"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/models"
	"github.com/pixtools/pixtools/processors/denoiser"
)

// smallTile, in pixels, is one that the built-in model can just work with: quick to warm,
// and soon done with one of many.
const smallTile = 256

// denoisingPool has one child, and a configuration that the test may change for requests to come.
func denoisingPool(t *testing.T) (*Pool, *denoiser.Config) {
	denoise := &denoiser.Config{Threads: 2, Tile: smallTile, Concurrency: 1, StallTimeout: testDeadline, Timeout: testDeadline, YieldThen: time.Second, RebalanceTimeout: time.Minute}
	cfg := testConfig
	cfg.Denoise = denoise
	return newPool(t, cfg, 1), denoise
}

func denoiseRequest(t *testing.T, source string) Request {
	req := request(t, source, sniff.PNG)
	req.Denoise, req.Effort = true, 1
	return req
}

// gradient is what noisy shows under its noise, whose standard deviation is in steps of 8 bits.
func gradient(x, y, w, h int) [3]float64 {
	fx, fy := float64(x)/float64(w), float64(y)/float64(h)
	return [3]float64{50 + 150*fx, 60 + 120*fy, 200 - 70*fx - 70*fy}
}

func noisy(w, h int, sigma float64) *image.NRGBA {
	random := rand.New(rand.NewPCG(3, 4))
	picture := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			var c [3]uint8
			for i, v := range gradient(x, y, w, h) {
				c[i] = uint8(min(max(v+sigma*random.NormFloat64()+0.5, 0), 255))
			}
			picture.SetNRGBA(x, y, color.NRGBA{c[0], c[1], c[2], 255})
		}
	}
	return picture
}

func psnr(picture image.Image) float64 {
	w, h, sum := picture.Bounds().Dx(), picture.Bounds().Dy(), 0.0
	for y := range h {
		for x := range w {
			c := color.NRGBA64Model.Convert(picture.At(x, y)).(color.NRGBA64)
			want := gradient(x, y, w, h)
			for i, v := range []uint16{c.R, c.G, c.B} {
				d := float64(v)/257 - want[i]
				sum += d * d
			}
		}
	}
	return 10 * math.Log10(255*255*float64(w*h*3)/sum)
}

// large is a picture of many small tiles.
func large(t *testing.T) string {
	return write(t, "large.png", pngBytes(t, noisy(400, 300, 10)))
}

func TestDenoiseEveryFormat(t *testing.T) {
	pool, _ := denoisingPool(t)
	model, err := models.Load("")
	require.NoError(t, err)
	original := noisy(200, 140, 25)
	lossless := write(t, "noisy.png", pngBytes(t, original))
	for _, from := range formats {
		t.Run(from, func(t *testing.T) {
			source := lossless
			if from != sniff.PNG {
				req := request(t, lossless, from)
				mustConvert(t, pool, req) // such a child converts as well
				source = req.Target
			}
			req := denoiseRequest(t, source)
			result := mustConvert(t, pool, req)
			info, err := os.Stat(req.Target)
			require.NoError(t, err)
			require.Equal(t, Result{Width: 200, Height: 140, Bytes: info.Size(), CPUTime: result.CPUTime, Engine: result.Engine, ModelSHA256: model.SHA256}, result)
			require.Positive(t, result.CPUTime)
			require.Regexp(t, `^libvips 8\.\S+, onnxruntime 1\.\S+$`, result.Engine)
			require.Equal(t, sniff.Header{Format: sniff.PNG, Width: 200, Height: 140}, headerOf(t, req.Target))
			made := pixels(t, pool, req.Target, sniff.PNG)
			require.Contains(t, []color.Model{color.NRGBAModel, color.RGBAModel}, made.ColorModel(), "8 bits stay 8 bits")
			require.Greater(t, psnr(made), psnr(original)+5)
		})
	}
}

func TestDenoiseKeepsDepthAndAlpha(t *testing.T) {
	pool, _ := denoisingPool(t)
	const w, h = 120, 90
	noisy := noisy(w, h, 20)
	deep := image.NewNRGBA64(noisy.Bounds())
	for y := range h {
		for x := range w {
			c := noisy.NRGBAAt(x, y)
			deep.SetNRGBA64(x, y, color.NRGBA64{uint16(c.R) * 257, uint16(c.G) * 257, uint16(c.B) * 257, uint16(1 + 500*x + 7*y)})
			c.A = uint8(1 + 2*x + y%8)
			noisy.SetNRGBA(x, y, c)
		}
	}
	for name, source := range map[string]image.Image{"8 bits": noisy, "16 bits": deep} {
		t.Run(name, func(t *testing.T) {
			req := denoiseRequest(t, write(t, "alpha.png", pngBytes(t, source)))
			mustConvert(t, pool, req)
			made := pixels(t, pool, req.Target, sniff.PNG)
			require.Equal(t, source.ColorModel(), made.ColorModel())
			require.Greater(t, psnr(made), psnr(source)+5)
			values := map[uint16]bool{}
			for y := range h {
				for x := range w {
					got, want := color.NRGBA64Model.Convert(made.At(x, y)).(color.NRGBA64), color.NRGBA64Model.Convert(source.At(x, y)).(color.NRGBA64)
					require.Equal(t, want.A, got.A, "alpha at %d, %d", x, y)
					values[got.R] = true
				}
			}
			if name == "16 bits" {
				require.Greater(t, len(values), 1000, "it is finer than 8 bits can tell")
			}
		})
	}
}

func TestDenoiseGreyStaysGrey(t *testing.T) {
	pool, _ := denoisingPool(t)
	req := denoiseRequest(t, "testdata/grey.jpg")
	mustConvert(t, pool, req)
	picture := pixels(t, pool, req.Target, sniff.PNG)
	require.IsType(t, &image.Gray{}, picture)
	requireColour(t, picture.At(100, 200), color.NRGBA{200, 200, 200, 255}, 6)

	deep := image.NewGray16(image.Rect(0, 0, 20, 20))
	for i := range deep.Pix {
		deep.Pix[i] = 0x50
	}
	req = denoiseRequest(t, write(t, "deep.png", pngBytes(t, deep)))
	mustConvert(t, pool, req)
	picture = pixels(t, pool, req.Target, sniff.PNG)
	require.IsType(t, &image.Gray16{}, picture)
	requireColour(t, picture.At(10, 10), color.NRGBA{0x50, 0x50, 0x50, 255}, 6)

	req = denoiseRequest(t, write(t, "ga.png", greyAlphaPNG(t, 8, 8, 100, 37)))
	mustConvert(t, pool, req)
	requireColour(t, pixels(t, pool, req.Target, sniff.PNG).At(4, 4), color.NRGBA{100, 100, 100, 37}, 6)
}

// Pictures are made upright and sRGB before the network sees them, and nothing is left that
// would turn or tint them again.
func TestDenoiseUprightAndPlain(t *testing.T) {
	pool, _ := denoisingPool(t)
	stored := jpegBytes(t, quadrants(64, 48, upright[1]))
	for _, orientation := range []uint16{3, 6} {
		req := denoiseRequest(t, write(t, "turned.jpg", withOrientation(stored, orientation)))
		result := mustConvert(t, pool, req)
		if orientation == 6 {
			require.Equal(t, [2]int{48, 64}, [2]int{result.Width, result.Height})
		}
		requireQuadrants(t, pixels(t, pool, req.Target, sniff.PNG), upright[orientation], 20)
	}
	for source, want := range map[string][4]color.NRGBA{"p3.jpg": {p3, p3, p3, p3}, "p3.png": {p3, p3, p3, p3}} {
		req := denoiseRequest(t, filepath.Join("testdata", source))
		mustConvert(t, pool, req)
		requireQuadrants(t, pixels(t, pool, req.Target, sniff.PNG), want, 8)
		content, err := os.ReadFile(req.Target)
		require.NoError(t, err)
		for _, mark := range []string{"eXIf", "iCCP", "Exif", "acsp"} {
			require.NotContains(t, string(content), mark, source)
		}
	}
}

func TestDenoiseTinyPictures(t *testing.T) {
	pool, _ := denoisingPool(t)
	for _, size := range [][2]int{{1, 1}, {1, 40}, {40, 1}, {3, 2}, {7, 9}, {8, 8}, {257, 3}} {
		req := denoiseRequest(t, write(t, "tiny.png", pngBytes(t, quadrants(size[0], size[1], [4]color.NRGBA{blue, blue, blue, blue}))))
		result := mustConvert(t, pool, req)
		require.Equal(t, size, [2]int{result.Width, result.Height})
		requireColour(t, pixels(t, pool, req.Target, sniff.PNG).At(size[0]/2, size[1]/2), blue, 40)
	}
}

func TestDenoiseRefusedPictures(t *testing.T) {
	pool, _ := denoisingPool(t)
	damaged := pngBytes(t, noise(64, 64))
	copy(damaged[len(damaged)/2:], make([]byte, 200))
	cut := jpegBytes(t, noise(200, 150))
	for _, test := range []struct {
		name, code string
		content    []byte
	}{
		{"empty", sniff.EmptyFile, nil},
		{"text", sniff.UnsupportedFormat, []byte("hello, this is no picture at all")},
		{"bomb", sniff.SideTooLong, pngHeader(20000, 20000)},
		{"header only", sniff.Truncated, pngHeader(100, 100)},
		{"cut jpg", sniff.Truncated, cut[:len(cut)*6/10]},
		{"damaged png", Corrupt, damaged},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := denoiseRequest(t, write(t, "source", test.content))
			_, err := pool.Convert(deadline(t), req)
			var fault *InputError
			require.ErrorAs(t, err, &fault)
			require.Equal(t, test.code, fault.Code, fault.Message)
			require.NotContains(t, fault.Message, filepath.Dir(req.Source))
			require.NoFileExists(t, req.Target)
		})
	}
}

func TestDenoiseFaultsOfOthers(t *testing.T) {
	pool, _ := denoisingPool(t)
	good := write(t, "good.png", pngBytes(t, noise(16, 16)))
	for name, change := range map[string]func(*Request){
		"no target": func(r *Request) { r.Target = filepath.Join(r.Target, "missing", "x") },
		"full disk": func(r *Request) { require.NoError(t, os.Symlink("/dev/full", r.Target)) },
		"no png":    func(r *Request) { r.Format, r.Quality = sniff.WebP, 80 },
	} {
		t.Run(name, func(t *testing.T) {
			req := denoiseRequest(t, good)
			change(&req)
			_, err := pool.Convert(deadline(t), req)
			require.Error(t, err)
			var fault *InputError
			require.NotErrorAs(t, err, &fault)
		})
	}
	_, err := newPool(t, testConfig, 1).Convert(deadline(t), denoiseRequest(t, good))
	require.ErrorContains(t, err, "cannot denoise")
}

func TestDenoiseTellsProgress(t *testing.T) {
	pool, _ := denoisingPool(t)
	req := denoiseRequest(t, large(t))
	var told []int
	total := 0
	req.OnProgress = func(done, of int) { told, total = append(told, done), of }
	mustConvert(t, pool, req)
	require.Greater(t, total, 5)
	require.Len(t, told, total+1)
	for i, done := range told {
		require.Equal(t, i, done)
	}
}

// A child that is killed or crashes over a tile: the attempt fails, the next has a new one.
func TestDenoiseChildKilledAtWork(t *testing.T) {
	pool, _ := denoisingPool(t)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		mustConvert(t, pool, shortRequest(t))
		child := idleChild(t, pool)
		req := denoiseRequest(t, large(t))
		req.OnProgress = func(done, _ int) {
			if done == 2 {
				require.NoError(t, child.cmd.Process.Signal(signal))
			}
		}
		_, err := pool.Convert(deadline(t), req)
		require.ErrorContains(t, err, "the engine's child failed")
		var fault *InputError
		require.NotErrorAs(t, err, &fault, "another attempt may do")
		require.True(t, gone(child.cmd.Process.Pid))
		require.NoFileExists(t, req.Target)
	}
	mustConvert(t, pool, denoiseRequest(t, large(t)))
}

// SIGSTOP stands for an inference that hangs: nothing else is known to make one.
func TestStalledChildIsKilled(t *testing.T) {
	pool, cfg := denoisingPool(t)
	mustConvert(t, pool, shortRequest(t))
	child := idleChild(t, pool)
	req := denoiseRequest(t, large(t))
	req.OnProgress = func(done, _ int) {
		if done == 2 {
			require.NoError(t, child.cmd.Process.Signal(syscall.SIGSTOP))
		}
	}
	cfg.StallTimeout = time.Second
	_, err := pool.Convert(deadline(t), req)
	require.ErrorIs(t, err, ErrStalled)
	require.ErrorContains(t, err, "1s, the limit that DENOISE_STALL_TIMEOUT sets")
	require.True(t, gone(child.cmd.Process.Pid))
	require.NoFileExists(t, req.Target)

	cfg.StallTimeout = testDeadline
	mustConvert(t, pool, shortRequest(t))
	require.NotSame(t, child, idleChild(t, pool))
}

// The limit is on silence, not on the work: that may take longer.
func TestWorkMayTakeLongerThanItsParts(t *testing.T) {
	pool, cfg := denoisingPool(t)
	mustConvert(t, pool, shortRequest(t))
	cfg.StallTimeout = 1500 * time.Millisecond
	for size := 500; ; size += 300 {
		req := denoiseRequest(t, write(t, "large.png", pngBytes(t, noisy(size, size, 10))))
		began := time.Now()
		mustConvert(t, pool, req)
		if time.Since(began) > cfg.StallTimeout {
			return
		}
	}
}

func TestDenoisingGivesWay(t *testing.T) {
	pool, cfg := denoisingPool(t)
	cfg.Nice = 7
	mustConvert(t, pool, shortRequest(t))
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", idleChild(t, pool).cmd.Process.Pid))
	require.NoError(t, err)
	polite := 0
	for _, path := range threads {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(content), ") ")
		const nice = 16
		if strings.Fields(rest)[nice] == "7" {
			polite++
		}
	}
	require.GreaterOrEqual(t, polite, cfg.Threads, "of %d threads", len(threads))
}

// A model that was changed after the program started is still not used.
func TestTamperedModelIsNotUsed(t *testing.T) {
	pool, cfg := denoisingPool(t)
	cfg.Model = t.TempDir()
	for _, name := range []string{"denoise.onnx", "model.json"} {
		content, err := os.ReadFile("../../models/" + name)
		require.NoError(t, err)
		if name == "denoise.onnx" {
			content[1000] ^= 1
		}
		require.NoError(t, os.WriteFile(filepath.Join(cfg.Model, name), content, 0o600))
	}
	_, err := pool.Convert(deadline(t), denoiseRequest(t, large(t)))
	require.ErrorContains(t, err, "SHA-256")
	cfg.Model = ""
	mustConvert(t, pool, denoiseRequest(t, large(t)))
}

// peakMegabytes is the most memory that a process has had.
func peakMegabytes(t *testing.T, pid int) int {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(content), "VmHWM:")
	require.True(t, found)
	kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return kilobytes / 1000
}

// 12 megapixels, with the tile as it comes. bench/denoise measures more.
func TestDenoiseMemoryIsBounded(t *testing.T) {
	const most = 400 // megabytes
	pool, cfg := denoisingPool(t)
	cfg.Tile = 768
	source := write(t, "large.jpg", jpegBytes(t, noisy(4000, 3000, 10)))
	mustConvert(t, pool, denoiseRequest(t, source))
	peak := peakMegabytes(t, idleChild(t, pool).cmd.Process.Pid)
	t.Logf("peak: %d MB", peak)
	require.LessOrEqual(t, peak, most)
}
