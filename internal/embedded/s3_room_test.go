package embedded

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/disk"
)

// TestRoomForObjects: what others are about to write counts as written, and a copy takes as much
// as what it copies. Sizes are far above what a test machine's others write meanwhile.
func TestRoomForObjects(t *testing.T) {
	const gib = int64(1) << 30
	root := t.TempDir()
	free, err := disk.Free(root)
	require.NoError(t, err)
	d := durableS3{root: root, floor: free - 4*gib, coming: &atomic.Int64{}}
	_, err = d.room(8 * gib)
	require.ErrorContains(t, err, "free ")
	done, err := d.room(2 * gib)
	require.NoError(t, err)
	_, err = d.room(3 * gib)
	require.Error(t, err, "the first is not written yet")
	done()
	done, err = d.room(3 * gib)
	require.NoError(t, err)
	done()
	require.Zero(t, d.coming.Load())

	require.NoError(t, os.MkdirAll(filepath.Join(root, "bucket", "uploads"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(root, "bucket", "uploads", "a b"), make([]byte, 12345), 0o600))
	for _, source := range []string{"bucket/uploads/a%20b", "/bucket/uploads/a%20b"} {
		require.EqualValues(t, 12345, d.sizeOf(source), source)
	}
	require.Zero(t, d.sizeOf("bucket/uploads/none"))
}
