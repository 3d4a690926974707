package blob

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRecent(t *testing.T) {
	r := newRecent(1000)
	put := func(key string, size int) [sha256.Size]byte {
		content := bytes.Repeat([]byte(key), size)[:size]
		sum := sha256.Sum256(content)
		body := bytes.NewReader(content)
		_, err := body.Seek(0, 2) // it was sent
		require.NoError(t, err)
		r.add(key, body, int64(size), sum)
		return sum
	}
	a, b := put("a", 400), put("b", 400)
	require.Len(t, r.get("a", a), 400) // b is the one that was used longer ago now
	require.Nil(t, r.get("a", b), "another hash")
	c := put("c", 201)
	require.Nil(t, r.get("b", b))
	require.Len(t, r.get("a", a), 400)
	require.Equal(t, c, sha256.Sum256(r.get("c", c)))

	put("over", 1001)
	require.Len(t, r.get("a", a), 400, "one that does not fit changes nothing")
	whole := put("whole", 1000)
	require.Len(t, r.get("whole", whole), 1000)
	require.Nil(t, r.get("a", a))
	r.forget("whole")
	require.Nil(t, r.get("whole", whole))
	require.Zero(t, r.bytes)

	for i := range 10_000 {
		put(fmt.Sprint(i%50), i%300)
	}
	var sum int64
	for e := r.order.Front(); e != nil; e = e.Next() {
		sum += int64(len(e.Value.(*kept).content))
	}
	require.Equal(t, sum, r.bytes)
	require.Len(t, r.byKey, r.order.Len())

	large := newRecent(10 << 20)
	r = large
	require.NotNil(t, r.get("l", put("l", largestRecent)))
	require.Nil(t, r.get("m", put("m", largestRecent+1)))
	r = newRecent(0)
	require.Nil(t, r.get("n", put("n", 1)))
}
