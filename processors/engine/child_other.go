//go:build !linux

package engine

import (
	"os"
	"syscall"
)

// confine does nothing here: macOS, where PixTools is developed and not run for others,
// has no limit on memory that holds.
func confine(settings) {}

func childAttributes() *syscall.SysProcAttr { return nil }

var ownProgram = func() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}()
