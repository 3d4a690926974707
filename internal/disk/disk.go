// Package disk tells how much room is left where files are written.
package disk

import (
	"errors"
	"fmt"
	"syscall"
)

// Full says that a disk has less room than must stay free on it.
type Full struct {
	Dir string
	// Free is what is left, Least what must be, in bytes.
	Free, Least int64
}

func (f *Full) Error() string {
	return fmt.Sprintf("the disk is full: free %d bytes at %s, where %d are free and %d must be", f.Least-f.Free, f.Dir, max(f.Free, 0), f.Least)
}

// Free is how many bytes a directory's disk has left for us.
func Free(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("ask how much room is left in %s: %w", dir, err)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil //nolint:unconvert // of other types on other systems
}

// Check is a *Full where fewer bytes than least are free.
func Check(dir string, least int64) error {
	free, err := Free(dir)
	if err == nil && free < least {
		err = &Full{Dir: dir, Free: free, Least: least}
	}
	return err
}

// IsFull says whether it was for want of room that something could not be written.
func IsFull(err error) bool {
	var full *Full
	return errors.As(err, &full) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
