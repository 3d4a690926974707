package projections

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
)

// Follower tells of events as they come, to those who watch single jobs: it reads the end
// of the log, once for all of them, and keeps nothing. What was before is asked of the
// read model.
type Follower struct {
	client *kgo.Client
	log    *slog.Logger
	// Activity counts what is told.
	Activity *Activity

	mu sync.Mutex
	// streams are those that watch a job, by job.
	streams map[string]map[*Stream]struct{}
	// passed is the offset of the last record that was read, by partition.
	passed map[int32]int64
}

// Told is an event and its offset.
type Told struct {
	events.Event
	Offset int64
}

// Stream has the events of one job. C is closed when events were lost, since they were not
// taken in time: then the job must be read anew.
type Stream struct {
	C chan Told
	// After is the offset of the last record in the job's partition of which nobody is told here
	// any more; -1 where there is none.
	After  int64
	closed bool
}

// streamBuffer is how many events a stream holds that are not taken yet.
const streamBuffer = 64

// NewFollower asks where the log ends now: what comes after is told. Run reads it.
func NewFollower(ctx context.Context, log *slog.Logger, opts ...kgo.Opt) (*Follower, error) {
	asking, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	defer asking.Close()
	ends, err := kadm.NewClient(asking).ListEndOffsets(ctx, events.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("ask where the log ends: %w", err)
	}
	from := map[int32]kgo.Offset{}
	ends.Each(func(end kadm.ListedOffset) { from[end.Partition] = kgo.NewOffset().At(end.Offset) })
	client, err := kgo.NewClient(append(slices.Clone(opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{events.Topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)...)
	if err != nil {
		return nil, err
	}
	return &Follower{client: client, log: log, Activity: newActivity(time.Now()), streams: map[string]map[*Stream]struct{}{}, passed: map[int32]int64{}}, nil
}

// Run reads until ctx is done.
func (f *Follower) Run(ctx context.Context) error {
	defer f.client.Close()
	for {
		fetches := f.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		fetches.EachError(func(_ string, partition int32, err error) {
			f.log.Warn("cannot follow the log", "partition", partition, "error", err)
		})
		fetches.EachRecord(f.tell)
	}
}

func (f *Follower) tell(r *kgo.Record) {
	e, err := events.Decode(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.passed[r.Partition] = r.Offset
	if err != nil {
		return // others tell of it
	}
	f.Activity.count(e)
	streams := f.streams[string(r.Key)]
	for s := range streams {
		select {
		case s.C <- Told{e, r.Offset}:
		default:
			f.drop(e.JobID, s)
		}
	}
}

// drop ends a stream. f.mu is held.
func (f *Follower) drop(jobID string, s *Stream) {
	if s.closed {
		return
	}
	s.closed = true
	close(s.C)
	if delete(f.streams[jobID], s); len(f.streams[jobID]) == 0 {
		delete(f.streams, jobID)
	}
}

// Watch tells of the events of a job, in whose partition it is, from now on, until stop is called.
//
// Who watches before reading the job, and reads it from a read model that has passed After, misses
// none. Without After some would be missed: an event is read here (nobody watches yet), the
// watch begins, the job is read, and only then the projector applies the event.
func (f *Follower) Watch(jobID string, partition int32) (s *Stream, stop func()) {
	s = &Stream{C: make(chan Told, streamBuffer), After: -1}
	f.mu.Lock()
	defer f.mu.Unlock()
	if passed, any := f.passed[partition]; any {
		s.After = passed
	}
	if f.streams[jobID] == nil {
		f.streams[jobID] = map[*Stream]struct{}{}
	}
	f.streams[jobID][s] = struct{}{}
	return s, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.drop(jobID, s)
	}
}
