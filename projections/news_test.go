package projections

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// TestNews: whatever the number of partitions and jobs, no notification is larger than
// Postgres takes, and all of it arrives.
func TestNews(t *testing.T) {
	for _, c := range []struct{ partitions, jobs int }{{0, 0}, {1, 0}, {0, 1}, {48, 10}, {10_000, 2000}} {
		sent := news{moves: map[int32]int64{}}
		for p := range int32(c.partitions) {
			sent.moves[p] = int64(p) * 1_000_000_007
		}
		for range c.jobs {
			sent.ended = append(sent.ended, uuid.NewString())
		}
		heard := news{moves: map[int32]int64{}}
		for _, payload := range sent.encode() {
			require.NotEmpty(t, payload)
			require.Less(t, len(payload), 8000)
			part, err := decodeNews(payload)
			require.NoError(t, err)
			for p, next := range part.moves {
				heard.moves[p] = next
			}
			heard.ended = append(heard.ended, part.ended...)
		}
		require.Equal(t, sent, heard)
	}
	for _, bad := range []string{"x:1", "1:x", "99999999999:1"} {
		_, err := decodeNews(bad)
		require.Error(t, err)
	}
}
