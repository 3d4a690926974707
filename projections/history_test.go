package projections

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHistory(t *testing.T) {
	var h history
	var want []int64
	for offset := int64(0); len(want) < longestHistory; offset += 1 + offset%300 {
		want = append(want, offset)
		h = h.add(offset)
	}
	have, err := readHistory(h.raw)
	require.NoError(t, err)
	require.Equal(t, want, have)
	again, err := loadHistory(h.raw)
	require.NoError(t, err)
	require.Equal(t, h, again)
	require.Equal(t, h, h.add(1<<40), "at its limit it stays as it is")
	_, err = readHistory([]byte{0x80})
	require.ErrorIs(t, err, errHistory)
	none, err := readHistory(nil)
	require.NoError(t, err)
	require.Empty(t, none)
}
