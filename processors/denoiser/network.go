// Package denoiser takes noise out of pictures, with a network in ONNX Runtime.
//
// A picture is worked on in tiles, so that memory is bounded by the tile: see tiles.go for
// where they lie, picture.go for the pixels, network.go for the runtime. It runs in a
// child of the picture engine, never in the process that serves others.
package denoiser

import (
	"errors"
	"fmt"
	"runtime"

	onnx "github.com/yalue/onnxruntime_go"

	"github.com/pixtools/pixtools/models"
)

// library is found as libvips is: by the rpath of the program, beside it or, for tests,
// in build/bin/lib.
var library = map[string]string{"linux": "libonnxruntime.so.1", "darwin": "@rpath/libonnxruntime.1.dylib"}[runtime.GOOS]

// channels that the network sees: red, green, blue.
const channels = 3

// Network is a model, ready to work. One goroutine at a time uses it.
type Network struct {
	model   models.Model
	tile    int
	session *onnx.DynamicAdvancedSession
	// in and out are the tile that is worked on, by channel, row and column.
	in, out []float32
}

// Open loads a model into the runtime and runs it once, on the largest tile there is: the
// runtime never gives memory back, and after the largest all others fit in what it has.
// It is called once in a process, for the runtime has one environment.
func Open(cfg Config, m models.Model) (*Network, error) {
	if err := cfg.Suits(m); err != nil {
		return nil, err
	}
	onnx.SetSharedLibraryPath(library)
	if err := onnx.InitializeEnvironment(onnx.WithLogLevelError()); err != nil {
		return nil, fmt.Errorf("loading ONNX Runtime (run make native): %w", err)
	}
	n := &Network{model: m, tile: cfg.Tile}
	var err error
	if n.session, err = session(cfg, m); err != nil {
		return nil, fmt.Errorf("the model %s %s: %w", m.Name, m.Version, err)
	}
	n.model.Weights = nil // the runtime has a copy
	n.in = make([]float32, channels*cfg.Tile*cfg.Tile)
	n.out = make([]float32, channels*cfg.Tile*cfg.Tile)
	if err := n.run(cfg.Tile, cfg.Tile); err != nil {
		return nil, fmt.Errorf("the model %s %s: %w", m.Name, m.Version, err)
	}
	return n, nil
}

func session(cfg Config, m models.Model) (*onnx.DynamicAdvancedSession, error) {
	options, err := onnx.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer options.Destroy()
	threads := cfg.Threads
	if threads == 0 {
		threads = max(1, runtime.NumCPU()-1) // a child's Go is told that there is one core
	}
	err = errors.Join(
		options.SetIntraOpNumThreads(threads),
		// Threads that spin while they wait took a third more CPU, from others.
		options.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"),
		// A pattern plans a size's memory beside what the arena has already: twice as much.
		options.SetMemPattern(false),
		options.SetCpuMemArena(true),
	)
	if err != nil {
		return nil, err
	}
	return onnx.NewDynamicAdvancedSessionWithONNXData(m.Weights, []string{m.Input}, []string{m.Output}, options)
}

// Version names the runtime.
func (n *Network) Version() string { return "onnxruntime " + onnx.GetVersion() }

// Model is the SHA-256 of the weights, in hexadecimal.
func (n *Network) Model() string { return n.model.SHA256 }

// run makes out of in, for a tile of that size.
func (n *Network) run(width, height int) error {
	shape := onnx.NewShape(1, channels, int64(height), int64(width))
	in, err := onnx.NewTensor(shape, n.in)
	if err != nil {
		return err
	}
	defer in.Destroy()
	out, err := onnx.NewTensor(shape, n.out)
	if err != nil {
		return err
	}
	defer out.Destroy()
	return n.session.Run([]onnx.Value{in}, []onnx.Value{out})
}
