package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSpool: what a killed process left is removed, what a living one has is not.
func TestSpool(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "spool")
	living, err := openSpool(parent)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(living.dir, "file"), nil, 0o600))
	dead, err := openSpool(parent)
	require.NoError(t, err)
	require.NoError(t, dead.lock.Close()) // as the kernel does for a killed one

	next, err := openSpool(parent)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(living.dir, "file"))
	require.NoDirExists(t, dead.dir)
	next.close()
	living.close()
	left, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSpoolOfAnother(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make a directory that is another user's")
	}
	parent := t.TempDir()
	require.NoError(t, os.Chown(parent, 65534, 65534))
	_, err := openSpool(parent)
	require.ErrorContains(t, err, "belongs to user 65534")
}
