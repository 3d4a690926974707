package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/blob"
)

// object is one that an event names, and where.
type object struct {
	events.Object
	JobID string
	Told  time.Time
	// Imported: an event about what was done elsewhere names it.
	Imported bool
	Place
	// why says what is wrong with it.
	why string
}

func (o object) what() string {
	if o.Operation == "" {
		return "the source"
	}
	return "the result of " + o.Operation
}

// removed says whether the log tells that the object is gone.
func (o object) removed(state *events.Job) bool {
	if state.GetPhase() == events.Phase_PHASE_DELETED || o.Operation == "" && state.GetSourceExpired() {
		return true
	}
	for _, op := range state.GetOperations() {
		if op.GetName() == o.Operation && op.GetArtifactExpired() {
			return true
		}
	}
	return false
}

// checker reads objects, some side by side. In memory are those that are not as they must
// be, until they are told.
type checker struct {
	store                      *blob.Store
	retention, sourceRetention time.Duration
	now                        time.Time
	sample                     *Sample[object]
	progress                   func(done, total int64)
	ctx                        context.Context
	limit                      int
	group                      *errgroup.Group
	working                    context.Context

	mu sync.Mutex
	Objects
	lost    map[uuid.UUID][]object
	damaged []object
}

func newChecker(ctx context.Context, a Audit) *checker {
	c := &checker{store: a.Store, retention: a.Retention, sourceRetention: a.SourceRetention, now: a.Now, ctx: ctx, limit: a.Downloads, progress: a.Progress, lost: map[uuid.UUID][]object{}}
	if a.SampleObjects > 0 {
		c.sample = NewSample[object](a.SampleObjects, a.Seed)
	}
	c.begin()
	return c
}

// kept is for how long the store keeps an object.
func (c *checker) kept(o object) time.Duration {
	if o.Operation == "" {
		return c.sourceRetention
	}
	return c.retention
}

func (c *checker) begin() {
	c.group, c.working = errgroup.WithContext(c.ctx)
	c.group.SetLimit(c.limit)
}

// wait ends what is under way.
func (c *checker) wait() error {
	err := c.group.Wait()
	c.begin()
	return err
}

// check looks at an object, now or when the sample is drawn. An error is that of another
// object, which could not be read.
func (c *checker) check(o object) error {
	switch {
	case c.store == nil:
		c.Left++
		return nil
	case c.sample != nil:
		if c.sample.Offer(o.Key, o) {
			c.Left++
		}
		return nil
	}
	if c.start(o); c.working.Err() != nil {
		return c.wait()
	}
	return nil
}

// checkSample looks at what was drawn.
func (c *checker) checkSample() {
	if c.sample == nil {
		return
	}
	drawn := c.sample.All()
	c.sample = nil
	for i, o := range drawn {
		c.start(o) // waits for its turn
		c.progress(int64(i), int64(len(drawn)))
	}
}

// spoilt takes the damaged objects that were found since the last time.
func (c *checker) spoilt() []object {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.damaged
	c.damaged = nil
	return found
}

func (c *checker) start(o object) {
	working := c.working
	c.group.Go(func() error { return c.read(working, o) })
}

// read compares an object with what the log says of it. An error is that it could not be
// read.
func (c *checker) read(ctx context.Context, o object) error {
	var want [sha256.Size]byte
	size := int64(0)
	n, err := hex.Decode(want[:], []byte(o.SHA256))
	switch {
	case o.SHA256 == "" && o.Imported:
		err = blob.ErrNotFound // it was gone when its job was brought in, which the log must tell, too
	case err != nil || n != len(want):
		err = fmt.Errorf("%w: the log has no SHA-256 of it", blob.ErrChecksum)
	default:
		size, err = c.store.Download(ctx, o.Key, io.Discard, want)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil && size == o.Bytes:
		c.Intact++
		c.Bytes += size
	case err == nil:
		o.why = fmt.Sprintf("it has %d bytes, and the log says %d", size, o.Bytes)
		c.Damaged++
		c.damaged = append(c.damaged, o)
	case errors.Is(err, blob.ErrChecksum):
		o.why = err.Error()
		c.Damaged++
		c.damaged = append(c.damaged, o)
	case errors.Is(err, blob.ErrNotFound) && c.now.Sub(o.Told) > c.kept(o):
		c.Expired++
	case errors.Is(err, blob.ErrNotFound):
		id := uuid.MustParse(o.JobID)
		c.lost[id] = append(c.lost[id], o)
	default:
		return fmt.Errorf("read %s: %w", o.Key, err)
	}
	return nil
}
