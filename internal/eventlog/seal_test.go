package eventlog

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Seal writes another manifest over an export's.
func Seal(t *testing.T, m *Manifest, dir string) {
	for _, name := range []string{manifestFile, manifestSum} {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
	}
	require.NoError(t, m.seal(dir))
}
