package blob

import (
	"container/list"
	"crypto/sha256"
	"io"
	"sync"
)

// largestRecent is the size in bytes of an object that is kept at most.
const largestRecent = 256 << 10

// recent keeps small sources that this process has just stored. Where it works on them
// too, each of their operations would else fetch what is still at hand; for small pictures
// that is a good part of the whole work. An object is never changed under its key, so what
// is kept stays right. The least recently used ones go first.
type recent struct {
	limit int64 // bytes in all; 0 keeps nothing

	mu    sync.Mutex
	bytes int64
	order *list.List // of *kept, the last used in front
	byKey map[string]*list.Element
}

type kept struct {
	key     string
	sum     [sha256.Size]byte
	content []byte
}

func newRecent(limit int64) *recent {
	return &recent{limit: limit, order: list.New(), byKey: map[string]*list.Element{}}
}

// add reads body again from its start, since it was just sent.
func (r *recent) add(key string, body io.ReadSeeker, size int64, sum [sha256.Size]byte) {
	if size > min(largestRecent, r.limit) {
		return
	}
	content := make([]byte, size)
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return // then it is fetched
	}
	if _, err := io.ReadFull(body, content); err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(key)
	r.byKey[key] = r.order.PushFront(&kept{key, sum, content})
	for r.bytes += size; r.bytes > r.limit; {
		r.remove(r.order.Back().Value.(*kept).key)
	}
}

// get gives the content under key if it has that hash. It must not be changed.
func (r *recent) get(key string, sum [sha256.Size]byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byKey[key]
	if e == nil || e.Value.(*kept).sum != sum {
		return nil
	}
	r.order.MoveToFront(e)
	return e.Value.(*kept).content
}

func (r *recent) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(key)
}

// remove is called with mu held.
func (r *recent) remove(key string) {
	if e := r.byKey[key]; e != nil {
		r.bytes -= int64(len(e.Value.(*kept).content))
		r.order.Remove(e)
		delete(r.byKey, key)
	}
}
