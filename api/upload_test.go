package api

import (
	"bytes"
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// The bytes of all uploads together stay within the limit: one that just fits is taken, one that is a byte larger is
// not, and what it had taken is given back.
func TestSpooledBytesAreBounded(t *testing.T) {
	const one = 300 << 10 // more than is kept in memory
	s := &Server{cfg: Config{MaxUploadBytes: 1 << 20, MaxSpoolBytes: 2*one + 5, SpoolDir: t.TempDir()}}
	spool := func(size int) (*spooled, error) { return s.spool(bytes.NewReader(make([]byte, size))) }
	first, err := spool(one)
	require.NoError(t, err)
	require.EqualValues(t, one, s.spooled.Load())

	_, err = spool(one + 6)
	var p *Problem
	require.True(t, errors.As(err, &p), "%v", err)
	require.Equal(t, http.StatusTooManyRequests, p.Status)
	require.NotZero(t, p.RetryAfter)
	require.EqualValues(t, one, s.spooled.Load())

	for _, size := range []int{one + 4, one + 5} { // just below the limit, and at it
		fits, err := spool(size)
		require.NoError(t, err)
		require.EqualValues(t, one+size, s.spooled.Load())
		fits.Close()
	}
	inMemory, err := spool(keptInMemory - 1)
	require.NoError(t, err)
	require.EqualValues(t, one, s.spooled.Load())
	inMemory.Close()
	first.Close()
	require.Zero(t, s.spooled.Load())
}
