package denoiser

import (
	"errors"
	"fmt"
	"time"

	"github.com/pixtools/pixtools/models"
)

// Config is how pictures are denoised: in which children, and at what cost.
type Config struct {
	// Model is a `model.json` or its directory. Empty: the one built in.
	// Beyond it: one that is not what it says ends a process with the role `ml`.
	Model string `env:"DENOISE_MODEL"`
	// Threads is how many compute one picture; 0: one a core that the container may
	// use but one, which is left to conversions. On
	// two cores with 50 denoise jobs waiting, a small conversion took 1.9 times as long as
	// alone with both threads, 1.3 times with one, and 1.2 times with one at the default of
	// Nice (make bench prints the ratio). Where nothing else runs, give them all.
	Threads int `env:"DENOISE_THREADS" envDefault:"0" range:"0 to 256" unit:"threads"`
	// Tile is the longest side, in pixels, of what the network sees at once, its halo included. Memory
	// grows with its square, and what is computed twice shrinks. Measured over 12 megapixels: with 512
	// 38 CPU-s and 220 MB for the whole child, with 768 24 and 280, with 1024 26 and 380. A multiple
	// of 8; for the model, at least twice its halo and twice its `multiple`, and a multiple of that.
	// Beyond it: the program ends; with the model's: a process with the role `ml`.
	Tile int `env:"DENOISE_TILE" envDefault:"768" range:"64 to 4096" unit:"pixels"`
	// Concurrency is how many pictures are denoised at once, each in its own child.
	// Beyond it: further ones wait.
	Concurrency int `env:"DENOISE_CONCURRENCY" envDefault:"1" range:"1 to 64" unit:"pictures"`
	// Nice is by how much the children give way to others, conversions above all, as in nice(1) (on
	// Linux).
	Nice int `env:"DENOISE_NICE" envDefault:"19" range:"0 to 19"`
	// StallTimeout is how long a child may be silent while it works: longer than a tile
	// takes, and than decoding or encoding the largest picture.
	// Beyond it: the child is killed; the attempt counts.
	StallTimeout time.Duration `env:"DENOISE_STALL_TIMEOUT" envDefault:"2m" range:"1s to 1h"`
	// Timeout bounds one picture, in place of PROCESS_TIMEOUT: the largest picture takes
	// minutes on a few cores.
	// Beyond it: as with StallTimeout.
	Timeout time.Duration `env:"DENOISE_TIMEOUT" envDefault:"30m" range:"1s to 24h"`
	// YieldFor is for how long children that denoise are stopped, in one go or in parts, for quick
	// work of the same process; 0: never. On two cores with 50 denoise jobs waiting it is what leaves
	// a small conversion as quick as alone (make bench prints the ratio). StallTimeout and Timeout
	// count the time for which a child is stopped. With many cores, or with denoising on machines of
	// its own, 0 wastes nothing.
	YieldFor time.Duration `env:"DENOISE_YIELD_FOR" envDefault:"10s" range:"0s to 1m"`
	// YieldThen is for how long they then go on, whatever there is to do.
	YieldThen time.Duration `env:"DENOISE_YIELD_THEN" envDefault:"1s" range:"10ms to 1h"`
	// YieldLinger is how long a sign of quick work counts, an upload or a conversion that is
	// done: about as long as the steps of a small job that are not in a conversion.
	YieldLinger time.Duration `env:"DENOISE_YIELD_LINGER" envDefault:"100ms" range:"0s to 10s"`
	// RebalanceTimeout is how long a hand-over of partitions waits for the pictures in work.
	// Beyond it: 10 s before it, handlers are cancelled; the next owner begins anew.
	RebalanceTimeout time.Duration `env:"DENOISE_REBALANCE_TIMEOUT" envDefault:"5m" range:"15s to 10m"`
}

// Bounds of the settings.
const (
	maxThreads     = 256
	tileStep       = 8 // pixels
	minTile        = 64
	maxTile        = 4096
	maxConcurrency = 64
	maxNice        = 19
	minStall       = time.Second
	maxStall       = time.Hour
	minTimeout     = time.Second
	maxTimeout     = 24 * time.Hour
	maxYieldFor    = time.Minute
	minYieldThen   = 10 * time.Millisecond
	maxYieldThen   = time.Hour
	maxYieldLinger = 10 * time.Second
	minRebalance   = 15 * time.Second
	maxRebalance   = 10 * time.Minute
)

// Validate reports every fault at once, by the name of the variable.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Threads < 0 || c.Threads > maxThreads {
		fault("DENOISE_THREADS is %d: use 0 to %d, where 0 is one a core but one", c.Threads, maxThreads)
	}
	if c.Tile < minTile || c.Tile > maxTile || c.Tile%tileStep != 0 {
		fault("DENOISE_TILE is %d: use %d to %d pixels, a multiple of %d", c.Tile, minTile, maxTile, tileStep)
	}
	if c.Concurrency < 1 || c.Concurrency > maxConcurrency {
		fault("DENOISE_CONCURRENCY is %d: use 1 to %d", c.Concurrency, maxConcurrency)
	}
	if c.Nice < 0 || c.Nice > maxNice {
		fault("DENOISE_NICE is %d: use 0 to %d", c.Nice, maxNice)
	}
	if c.StallTimeout < minStall || c.StallTimeout > maxStall {
		fault("DENOISE_STALL_TIMEOUT is %s: use %s to %s", c.StallTimeout, minStall, maxStall)
	}
	if c.Timeout < minTimeout || c.Timeout > maxTimeout {
		fault("DENOISE_TIMEOUT is %s: use %s to %s", c.Timeout, minTimeout, maxTimeout)
	}
	if c.YieldFor < 0 || c.YieldFor > maxYieldFor {
		fault("DENOISE_YIELD_FOR is %s: use 0s, which is never, to %s", c.YieldFor, maxYieldFor)
	} else if c.YieldFor >= c.StallTimeout {
		fault("DENOISE_YIELD_FOR is %s: use less than DENOISE_STALL_TIMEOUT, %s, since a child that is stopped is silent", c.YieldFor, c.StallTimeout)
	}
	if c.YieldThen < minYieldThen || c.YieldThen > maxYieldThen {
		fault("DENOISE_YIELD_THEN is %s: use %s to %s", c.YieldThen, minYieldThen, maxYieldThen)
	}
	if c.YieldLinger < 0 || c.YieldLinger > maxYieldLinger {
		fault("DENOISE_YIELD_LINGER is %s: use 0s to %s", c.YieldLinger, maxYieldLinger)
	}
	if c.RebalanceTimeout < minRebalance || c.RebalanceTimeout > maxRebalance {
		fault("DENOISE_REBALANCE_TIMEOUT is %s: use %s to %s", c.RebalanceTimeout, minRebalance, maxRebalance)
	}
	return errors.Join(faults...)
}

// Suits says whether a model can work with the settings. A tile must leave something
// beside its halo, and as much as is reflected at a picture's far edges.
func (c Config) Suits(m models.Model) error {
	if least := 2*m.Halo + 2*m.Multiple; c.Tile < least || c.Tile%m.Multiple != 0 {
		return fmt.Errorf("DENOISE_TILE is %d: the model %s %s, with %d pixels of halo, needs %d or more, and a multiple of %d",
			c.Tile, m.Name, m.Version, m.Halo, least, m.Multiple)
	}
	return nil
}
