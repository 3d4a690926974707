package denoiser

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/models"
)

// whole is a tile larger than any picture here.
const whole = 768

// network is one for the whole test binary, as a process has one environment; tests set
// its tile.
var network *Network

func TestMain(m *testing.M) {
	model, err := models.Load("")
	if err == nil {
		network, err = Open(Config{Threads: 2, Tile: whole}, model)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// noisy is a gradient with noise of a standard deviation, in steps of 8 bits; alpha is
// something that no computation would give.
func noisy(width, height, bands int, deep bool, sigma float64) Picture {
	p := Picture{Width: width, Height: height, Bands: bands, Deep: deep}
	p.Pixels = make([]byte, height*p.rowBytes())
	random := rand.New(rand.NewPCG(1, uint64(width*height*bands)))
	for y := range height {
		line := p.Pixels[y*p.rowBytes():]
		for x := range width {
			for b := range bands {
				value := clean(x, y, b, p) + sigma/255*random.NormFloat64()
				if b == p.colours() {
					value = float64((x*7+y*13)%256) / 255
				}
				p.setSample(line, x*bands+b, float32(value))
			}
		}
	}
	return p
}

func clean(x, y, band int, p Picture) float64 {
	return 0.2 + 0.6*(float64(x)/float64(p.Width)*float64(2-band%2)/2+float64(y)/float64(p.Height))/2
}

func (p Picture) at(x, y, band int) float64 {
	return float64(p.sample(p.Pixels[y*p.rowBytes():], x*p.Bands+band))
}

// psnr is over the colours, against the gradient, in decibels.
func psnr(p Picture) float64 {
	sum := 0.0
	for y := range p.Height {
		for x := range p.Width {
			for b := range p.colours() {
				d := p.at(x, y, b) - clean(x, y, b, p)
				sum += d * d
			}
		}
	}
	return -10 * math.Log10(sum/float64(p.Height*p.Width*p.colours()))
}

func denoise(t *testing.T, p Picture, tile int) Picture {
	t.Helper()
	network.tile = tile
	p.Pixels = append([]byte(nil), p.Pixels...)
	require.NoError(t, network.Denoise(p, func(int, int) {}))
	return p
}

func TestEveryKindOfPicture(t *testing.T) {
	for bands := 1; bands <= 4; bands++ {
		for _, deep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bands, deep %v", bands, deep), func(t *testing.T) {
				before := noisy(150, 90, bands, deep, 25)
				after := denoise(t, before, whole)
				const gain = 6.0 // dB
				require.Greater(t, psnr(after), psnr(before)+gain, "before: %.1f dB", psnr(before))
				if before.Bands > before.colours() {
					for y := range before.Height {
						for x := range before.Width {
							require.Equal(t, before.at(x, y, bands-1), after.at(x, y, bands-1), "alpha at %d, %d", x, y)
						}
					}
				}
			})
		}
	}
}

// In 16 bits the result is finer than 8 bits can tell.
func TestDeepResultsAreFine(t *testing.T) {
	after := denoise(t, noisy(64, 64, 3, true, 10), whole)
	seen := map[uint16]bool{}
	for i := 0; i < len(after.Pixels); i += 2 {
		seen[binary.NativeEndian.Uint16(after.Pixels[i:])] = true
	}
	require.Greater(t, len(seen), 1000)
}

func TestTinyPictures(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {1, 2}, {2, 1}, {1, 50}, {50, 1}, {3, 3}, {7, 9}, {8, 8}, {9, 8}, {17, 5}} {
		for bands := 1; bands <= 4; bands++ {
			before := noisy(size[0], size[1], bands, false, 0)
			after := denoise(t, before, whole)
			for y := range before.Height {
				for x := range before.Width {
					for b := range bands {
						require.InDelta(t, before.at(x, y, b), after.at(x, y, b), 0.15, "%v bands %d at %d, %d", size, bands, x, y)
					}
				}
			}
		}
	}
}

// Put together, tiles are the whole picture, to the bit: the runtime computes a pixel in
// the same way, wherever it lies in a tile, as long as tiles begin at the multiple. That
// was seen on x86-64; elsewhere one 8-bit step is allowed.
func TestTilesAreTheWhole(t *testing.T) {
	least := 2*network.model.Halo + 2*network.model.Multiple
	for _, test := range []struct{ width, height, bands, tile int }{
		{512, 400, 3, least + 64}, {505, 399, 3, least + 128}, {700, 250, 1, least}, {241, 703, 4, least + 200},
	} {
		p := noisy(test.width, test.height, test.bands, true, 25)
		want, got := denoise(t, p, whole), denoise(t, p, test.tile)
		if runtime.GOARCH == "amd64" {
			require.Equal(t, want.Pixels, got.Pixels, "%+v", test)
			continue
		}
		for at := range len(want.Pixels) / 2 {
			require.InDelta(t, want.sample(want.Pixels, at), got.sample(got.Pixels, at), 1.0/math.MaxUint8, "%+v", test)
		}
	}
}

// A halo that is too small is seen: so the test above can fail.
func TestTooSmallAHaloIsSeen(t *testing.T) {
	p := noisy(512, 400, 3, true, 25)
	want := denoise(t, p, whole)
	halo := network.model.Halo
	defer func() { network.model.Halo = halo }()
	network.model.Halo = network.model.Multiple
	require.NotEqual(t, want.Pixels, denoise(t, p, 256).Pixels)
}

func TestProgressIsTold(t *testing.T) {
	network.tile = 2*network.model.Halo + 64
	p := noisy(500, 300, 3, false, 10)
	var told []int
	require.NoError(t, network.Denoise(p, func(done, total int) {
		require.Equal(t, len(spans(500, network.tile, network.model.Halo, 8))*len(spans(300, network.tile, network.model.Halo, 8)), total)
		told = append(told, done)
	}))
	require.Greater(t, len(told), 9)
	for i, done := range told {
		require.Equal(t, i, done)
	}
}

func TestMistakesAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Picture){
		"no width": func(p *Picture) { p.Width = 0 }, "five bands": func(p *Picture) { p.Bands = 5 }, "a byte too few": func(p *Picture) { p.Pixels = p.Pixels[1:] },
		"other depth": func(p *Picture) { p.Deep = true },
	} {
		p := noisy(10, 10, 3, false, 0)
		change(&p)
		require.Error(t, network.Denoise(p, func(int, int) {}), name)
	}
}

func TestConfig(t *testing.T) {
	byDefault, err := env.ParseAs[Config]()
	require.NoError(t, err)
	require.NoError(t, byDefault.Validate())
	require.NoError(t, byDefault.Suits(network.model))
	for name, test := range map[string]struct {
		set       func(c *Config, value int)
		low, high int
		step      int
	}{
		"DENOISE_THREADS":           {func(c *Config, v int) { c.Threads = v }, 0, 256, 1},
		"DENOISE_TILE":              {func(c *Config, v int) { c.Tile = v }, 64, 4096, 8},
		"DENOISE_CONCURRENCY":       {func(c *Config, v int) { c.Concurrency = v }, 1, 64, 1},
		"DENOISE_NICE":              {func(c *Config, v int) { c.Nice = v }, 0, 19, 1},
		"DENOISE_STALL_TIMEOUT":     {func(c *Config, v int) { c.YieldFor, c.StallTimeout = 0, time.Duration(v)*time.Second }, 1, 3600, 1},
		"DENOISE_YIELD_FOR":         {func(c *Config, v int) { c.YieldFor = time.Duration(v) * time.Second }, 0, 60, 1},
		"DENOISE_YIELD_THEN":        {func(c *Config, v int) { c.YieldThen = time.Duration(v) * time.Millisecond }, 10, 3600000, 1},
		"DENOISE_YIELD_LINGER":      {func(c *Config, v int) { c.YieldLinger = time.Duration(v) * time.Millisecond }, 0, 10000, 1},
		"DENOISE_TIMEOUT":           {func(c *Config, v int) { c.Timeout = time.Duration(v) * time.Second }, 1, 86400, 1},
		"DENOISE_REBALANCE_TIMEOUT": {func(c *Config, v int) { c.RebalanceTimeout = time.Duration(v) * time.Second }, 15, 600, 1},
	} {
		for _, good := range []int{test.low, test.high} {
			c := byDefault
			test.set(&c, good)
			require.NoError(t, c.Validate(), "%s %d", name, good)
		}
		for _, bad := range []int{test.low - test.step, test.high + test.step} {
			c := byDefault
			test.set(&c, bad)
			require.ErrorContains(t, c.Validate(), name+" is", "%d", bad)
		}
	}
	c := byDefault
	c.Tile, c.Nice = 100, 20
	require.ErrorContains(t, c.Validate(), "DENOISE_TILE is 100")
	require.ErrorContains(t, c.Validate(), "DENOISE_NICE is 20", "every fault at once")
	c = byDefault
	c.StallTimeout = c.YieldFor + 1
	require.NoError(t, c.Validate())
	c.StallTimeout = c.YieldFor
	require.ErrorContains(t, c.Validate(), "DENOISE_YIELD_FOR is 10s: use less than DENOISE_STALL_TIMEOUT, 10s")

	least := 2*network.model.Halo + 2*network.model.Multiple
	c.Tile = least
	require.NoError(t, c.Suits(network.model))
	for _, bad := range []int{least - 8, least + 4} {
		c.Tile = bad
		require.ErrorContains(t, c.Suits(network.model), "DENOISE_TILE is")
	}
}

// A broken model must not pass for a black picture.
func TestNoNumber(t *testing.T) {
	p := noisy(8, 8, 3, false, 0)
	one := spans(8, whole, 0, 8)[0]
	network.out[64+9] = float32(math.NaN())
	require.ErrorContains(t, network.keep(p, one, one), "no number for the pixel at 1, 1")
}

// Weights that are no network are refused when the session is made, not at the first picture.
func TestNoNetwork(t *testing.T) {
	m := network.model
	m.Weights = []byte("these are no weights")
	_, err := session(Config{Threads: 1}, m)
	require.Error(t, err)
}
