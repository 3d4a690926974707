package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/pixtools/pixtools/processors/denoiser"
)

// childVariable marks a child, and carries its settings.
const childVariable = "PIXTOOLS_ENGINE_CHILD"

// repliesFD is where a child writes its replies. Not standard output: libraries print
// there when they feel like it.
const repliesFD = 3

// settings is what a child is told once.
type settings struct {
	Threads     int
	MemoryBytes int64
	// Denoise is nil in a child that only converts.
	Denoise *denoiser.Config `json:",omitempty"`
}

// reply is a frame from the child. Any number of them with Progress come before the one
// that answers the request.
type reply struct {
	Progress *progress `json:",omitempty"`

	Result Result
	Input  *InputError `json:",omitempty"`
	// Failure is any other error.
	Failure string `json:",omitempty"`
}

type progress struct{ Done, Total int }

// ChildMain turns this process into an engine's child if it was started as one, and
// then never returns. Otherwise it does nothing. A program that makes a Pool calls it
// first thing in main, and in TestMain.
func ChildMain() {
	text, child := os.LookupEnv(childVariable)
	if !child {
		return
	}
	if err := serve(text); err != nil {
		fmt.Fprintln(os.Stderr, "engine child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers requests until the parent closes standard input, which the kernel does
// for it however it ends.
func serve(text string) error {
	// A terminal's Ctrl-C and a service manager's stop reach the children as well, but
	// the parent decides when its conversions end.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// libvips keeps buffers by thread; so one thread calls it.
	runtime.LockOSThread()

	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fmt.Errorf("%s is for the engine's own use: %w", childVariable, err)
	}
	confine(s)
	startLibvips(s.Threads)
	network, err := openNetwork(s.Denoise)
	if err != nil {
		return err
	}
	replies := os.NewFile(repliesFD, "replies")
	for {
		var req Request
		err := readFrame(os.Stdin, &req)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		// If it cannot be written, neither can the answer.
		tell := func(done, total int) { _ = writeFrame(replies, reply{Progress: &progress{done, total}}) }
		if err := writeFrame(replies, answer(req, network, tell)); err != nil {
			return fmt.Errorf("writing a reply: %w", err)
		}
		if req.Denoise {
			debug.FreeOSMemory() // the picture's, before the next picture's is added to it
		}
	}
}

func answer(req Request, network *denoiser.Network, tell func(done, total int)) reply {
	before := cpuTime()
	var result Result
	var err error
	if req.Against != "" {
		result, err = compare(req)
	} else {
		result, err = convert(req, network, tell)
	}
	result.CPUTime = cpuTime() - before
	if err == nil {
		return reply{Result: result}
	}
	var input *InputError
	if errors.As(err, &input) {
		return reply{Input: input}
	}
	return reply{Failure: err.Error()}
}

// cpuTime is what all threads of this process have used so far.
func cpuTime() time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return 0
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
