package main

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
)

// follower reads the log while the run goes on, to show progress and to see its end. What
// is judged is read anew at the end.
type follower struct {
	client *kgo.Client

	mu sync.Mutex
	// open has the revision of each job that has not ended; over when a job last did.
	open map[string]int32
	over map[string]time.Time
	seen map[string]bool
	// hooked are jobs whose outcome is to be posted, posting those of which it is not yet, by the
	// revision that ended.
	hooked  map[string]bool
	posting map[string]int32
	// last is when a record came.
	last time.Time
}

func follow(ctx context.Context, p *parts) (*follower, error) {
	client, err := p.client(kgo.ConsumeTopics(events.Topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, err
	}
	f := &follower{client: client, open: map[string]int32{}, over: map[string]time.Time{}, seen: map[string]bool{}, hooked: map[string]bool{}, posting: map[string]int32{}, last: time.Now()}
	go func() {
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(f.take)
		}
		client.Close()
	}()
	return f, nil
}

func (f *follower) take(r *kgo.Record) {
	e, err := events.Decode(r)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = time.Now()
	switch m := e.Message.(type) {
	case *events.JobRequested:
		if !f.seen[e.JobID] {
			f.seen[e.JobID], f.open[e.JobID] = true, 1
			f.hooked[e.JobID] = m.GetWebhookUrl() != nil
		}
	case *events.OperationRetryRequested:
		if _, open := f.open[e.JobID]; !open {
			f.open[e.JobID] = m.GetRevision()
		}
	case *events.JobFinalized:
		if f.open[e.JobID] <= m.GetRevision() {
			delete(f.open, e.JobID)
			f.over[e.JobID] = f.last
			if f.hooked[e.JobID] {
				f.posting[e.JobID] = m.GetRevision()
			}
		}
	case *events.WebhookDelivered:
		f.posted(e.JobID, m.GetRevision())
	case *events.WebhookFailed:
		if m.GetFinal() {
			f.posted(e.JobID, m.GetRevision())
		}
	}
}

func (f *follower) ended() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.over)
}

// posted takes in that nothing more is to be posted of a revision. f.mu is held.
func (f *follower) posted(id string, revision int32) {
	if f.posting[id] == revision {
		delete(f.posting, id)
	}
}

// waiting is how many jobs are open, or have an outcome to be posted, and for how long nothing
// came.
func (f *follower) waiting() (open int, quiet time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.open) + len(f.posting), time.Since(f.last)
}

// endOf is when a job's end was seen.
func (f *follower) endOf(id string) (time.Time, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.over[id]
	return at, ok
}
