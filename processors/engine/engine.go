// Package engine converts pictures with libvips, in child processes.
//
// Pictures are hostile. A decoder that crashes, loops or eats memory over one must take
// nothing with it but the attempt at that one, so none runs in the process that talks to
// Kafka, Postgres and S3. The children are this same program, started again; they get
// paths and settings, no secrets (their environment is made from nothing), and a limit
// on memory. Killing a child is how a conversion is stopped: libvips cannot be
// interrupted from outside, and a killed process always gives everything back.
//
// A pool whose Config.Denoise is set has children of another kind: they give way to the
// others (nice), load a network before they serve, denoise where a request asks for it,
// and tell how far they are. One that falls silent is killed.
//
// Reading guide: pool.go hands requests to children, process.go is the parent's end of
// one child, child.go the child's own main loop, frame.go the bytes on the pipes,
// libvips.go the pictures (through govips), compare.go how far two are apart, denoise.go the way from libvips to the network
// and savepng.go the way back; the network itself is in package denoiser.
package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/processors/denoiser"
)

// Config bounds the children.
type Config struct {
	// Threads is how many threads libvips uses inside one child. Many pictures at once
	// go through many children, each with one thread, at the least cost a picture; more
	// threads make a single large one quicker.
	Threads int `env:"ENGINE_THREADS" envDefault:"1" range:"1 to 64" unit:"threads"`
	// MemoryBytes is the most writable memory that a child may have (on Linux).
	// Beyond it: the child dies; the attempt counts.
	MemoryBytes int64 `env:"ENGINE_MEMORY_BYTES" envDefault:"4294967296" range:"512 MiB or more" unit:"bytes"`
	// RecycleAfter is the number of conversions after which a child is replaced, so that a codec's
	// leak stays small.
	RecycleAfter int `env:"ENGINE_RECYCLE_AFTER" envDefault:"500" range:"1 to 1000000" unit:"conversions"`
	// Limits hold for requests that bring none of their own.
	Limits sniff.Limits
	// Denoise, where it is set, makes children that can denoise. It comes from variables of
	// its own; Concurrency and Timeout in it are for those who use the pool.
	Denoise *denoiser.Config
	// Precedence, where it is set, is shared by the pools of a process: those that denoise
	// give way to the others.
	Precedence *Precedence
	// Operation is what metrics call a pool; it is set in code.
	Operation string
}

// Bounds of the settings.
const (
	maxThreads      = 64
	minMemoryBytes  = 512 << 20 // below it Go's own reservation does not fit beside a picture
	maxRecycleAfter = 1_000_000
)

// Validate reports every fault at once, by the name of the variable.
func (c Config) Validate() error {
	var faults []error
	if c.Threads < 1 || c.Threads > maxThreads {
		faults = append(faults, fmt.Errorf("ENGINE_THREADS is %d: use 1 to %d", c.Threads, maxThreads))
	}
	if c.MemoryBytes < minMemoryBytes {
		faults = append(faults, fmt.Errorf("ENGINE_MEMORY_BYTES is %d: use %d or more", c.MemoryBytes, minMemoryBytes))
	}
	if c.RecycleAfter < 1 || c.RecycleAfter > maxRecycleAfter {
		faults = append(faults, fmt.Errorf("ENGINE_RECYCLE_AFTER is %d: use 1 to %d conversions", c.RecycleAfter, maxRecycleAfter))
	}
	if c.Denoise != nil {
		faults = append(faults, c.Denoise.Validate())
	}
	return errors.Join(append(faults, c.Limits.Validate())...)
}

// Request asks for one conversion.
type Request struct {
	// Source and Target are absolute paths. Target is written over, and is gone after a
	// failure.
	Source, Target string
	// Format is the target's: one of sniff's names. The source's is found out.
	Format string
	// Quality is 1 to 100, for jpg, webp and avif.
	Quality int
	// Lossless is for webp.
	Lossless bool
	// Effort is how hard the encoder tries: png 0 to 9, webp 0 to 6, avif 0 to 9. For png
	// it is the deflate level, and 9 tries others beside it.
	Effort int
	// Limits of the source; the zero value stands for the pool's.
	Limits sniff.Limits
	// Denoise asks for the noise to be taken out, of a pool that can; then Format is png.
	Denoise bool
	// Against, for Compare, is the other picture; then nothing is made.
	Against string `json:",omitempty"`
	// OnTurn, which may be nil, is called when a child is free and before it is asked. Its
	// error is Convert's, and then the child is not asked.
	OnTurn func() error `json:"-"`
	// Timeout bounds the work from then on; 0 is for ever.
	Timeout time.Duration `json:"-"`
	// OnProgress, which may be nil, is told how many parts of the work are done, of how
	// many. The next is not read before it returns.
	OnProgress func(done, total int) `json:"-"`
}

// Result says what was made.
type Result struct {
	Width, Height int
	Bytes         int64
	// CPUTime is the processor time it took, of all threads.
	CPUTime time.Duration
	// Engine names the libraries that made it, with their versions.
	Engine string
	// ModelSHA256 is that of the weights which denoised it.
	ModelSHA256 string `json:",omitempty"`
	// Squares is for Compare: the mean square of the difference.
	Squares float64 `json:",omitempty"`
}

// Corrupt is the code of a picture that has a good header and bad pixels. The other
// codes of InputError are those of sniff.Error.
const Corrupt = "corrupt"

// InputError says that the picture is at fault, for good: every attempt would end so.
// Any other error of Convert is worth another attempt.
type InputError struct{ Code, Message string }

func (e *InputError) Error() string { return e.Message }

// Greatest efforts, by format.
var maxEffort = map[string]int{sniff.JPG: 0, sniff.PNG: 9, sniff.WebP: 6, sniff.AVIF: 9}

// check finds mistakes of the program that asks. They are no InputError.
func (r Request) check() error {
	most, known := maxEffort[r.Format]
	switch {
	case r.Against != "":
		return nil // makes nothing
	case !known:
		return fmt.Errorf("engine: unknown format %q", r.Format)
	case r.Effort < 0 || r.Effort > most:
		return fmt.Errorf("engine: effort %d for %s: use 0 to %d", r.Effort, r.Format, most)
	case r.Denoise && r.Format != sniff.PNG:
		return fmt.Errorf("engine: a denoised picture becomes %s, not %s", sniff.PNG, r.Format)
	case r.Format != sniff.PNG && (r.Quality < 1 || r.Quality > 100):
		return fmt.Errorf("engine: quality %d for %s: use 1 to 100", r.Quality, r.Format)
	}
	return nil
}
