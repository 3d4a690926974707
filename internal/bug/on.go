//go:build bugs

// Package bug holds the switches of deliberate bugs; see off.go, which is what is built
// without the tag.
package bug

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Variable names the bugs that are on, with commas between.
const Variable = "PIXTOOLS_BUG"

// SlowVariable is by how much a conversion is made longer, as a Go duration.
const SlowVariable = "PIXTOOLS_SLOW"

// PanicVariable is the width, in pixels, of the pictures at which a worker panics.
const PanicVariable = "PIXTOOLS_PANIC_WIDTH"

var (
	on            = strings.Split(os.Getenv(Variable), ",")
	slow, _       = time.ParseDuration(os.Getenv(SlowVariable)) // 0 where unset
	panicWidth, _ = strconv.Atoi(os.Getenv(PanicVariable))      // as well
)

// On says whether the bug of that name is to be made.
func On(name string) bool { return slices.Contains(on, name) }

// Slow makes an operation as long as PIXTOOLS_SLOW says, or ends with ctx. It is no bug:
// what membership changes do to long work should not depend on how fast this machine is.
func Slow(ctx context.Context) error {
	if slow <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(slow):
		return nil
	}
}

// Panic does so at a picture of the width that PIXTOOLS_PANIC_WIDTH says. It is no bug: what
// one costs others should be seen.
func Panic(width int32) {
	if panicWidth > 0 && int(width) == panicWidth {
		panic("asked for by " + PanicVariable)
	}
}
