package disk_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/disk"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	free, err := disk.Free(dir)
	require.NoError(t, err)
	require.Positive(t, free)
	require.NoError(t, disk.Check(dir, 0))
	err = disk.Check(dir, math.MaxInt64)
	var full *disk.Full
	require.ErrorAs(t, err, &full)
	require.ErrorContains(t, err, fmt.Sprintf("free %d bytes at %s", math.MaxInt64-full.Free, dir))
	require.True(t, disk.IsFull(err))
	err = disk.Check(filepath.Join(dir, "none"), 0)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.False(t, disk.IsFull(err))
	require.True(t, disk.IsFull(fmt.Errorf("write: %w", &fs.PathError{Err: syscall.ENOSPC})))
	require.False(t, disk.IsFull(errors.New("no")))
}
