package api

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

const (
	// queuesStaleAfter is how far behind the log the read model may be for its queues to count: older
	// ones say nothing of now, and nobody is refused for them.
	queuesStaleAfter = time.Minute
	// overdueRetryAfter is what we ask clients to wait after 429 for a queue: it does not shorten in a moment.
	overdueRetryAfter = 30 * time.Second
)

// Queues is what is to be done, as the read model has it.
type Queues struct {
	// AsOf is a time up to which everything that had happened is in these numbers.
	AsOf   time.Time        `json:"as_of"`
	MaxAge float64          `json:"max_age_seconds" description:"Submissions of an operation whose oldest work waits for longer are answered 429"`
	Queues map[string]Queue `json:"queues" description:"By operation"`
}

// Queue is what is to be done of one operation.
type Queue struct {
	Waiting int64    `json:"waiting"`
	Running int64    `json:"running"`
	Oldest  *float64 `json:"oldest_waiting_seconds" description:"For how long the oldest waiting work waits; null where none does"`
}

// seen are the queues as they were at a time.
type seen struct {
	at     time.Time
	queues map[string]projections.Queue
}

// watcher looks at the queues beside the requests, which take what it saw last.
type watcher struct {
	last atomic.Pointer[seen]
	// ends are where the log ended, at times of which the read model may not have heard yet.
	ends []endsAt
}

type endsAt struct {
	at   time.Time
	ends map[int32]int64
}

// WatchQueues works until ctx is done.
func (s *Server) WatchQueues(ctx context.Context) error {
	look := time.NewTicker(s.cfg.QueueRefresh)
	defer look.Stop()
	for failing := false; ; {
		err := s.lookAtQueues(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			s.Log.WarnContext(ctx, "the queues cannot be looked at; nobody is refused for their age", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// lookAtQueues asks the read model. What it says is as old as the read model is: so each look notes
// where the log ends, and what is seen is dated with the newest note that the read model has passed.
// With a projector that stands still the ages stand still, too, however long ago that was.
func (s *Server) lookAtQueues(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitTimeout)
	defer cancel()
	now := time.Now()
	ends, err := s.ends(ctx)
	if err != nil {
		return fmt.Errorf("ask Kafka for the log's end: %w", err)
	}
	note := endsAt{now, map[int32]int64{}}
	for partition, end := range ends[events.Topic] {
		if end.Err != nil {
			return fmt.Errorf("ask Kafka for the log's end: %w", end.Err)
		}
		note.ends[partition] = end.Offset
	}
	w := &s.watcher
	w.ends = append(w.ends, note)
	for len(w.ends) > 1 && now.Sub(w.ends[0].at) > queuesStaleAfter {
		w.ends = w.ends[1:]
	}
	// Before the query: what the read model hears of in between is in its answer, but not in its date.
	passed := -1
	for i, e := range w.ends {
		if s.Reader.Passed(e.ends) {
			passed = i
		}
	}
	if passed < 0 {
		return nil // what was seen last stays, with its date
	}
	queues, err := s.Reader.Queues(ctx)
	if err != nil {
		return err
	}
	at := w.ends[passed].at
	w.last.Store(&seen{at, queues})
	w.ends = w.ends[passed:]
	return s.tellBacklog(ctx, at, queues)
}

// current is what is known of the queues, or nil.
func (w *watcher) current() *seen {
	last := w.last.Load()
	if last == nil || time.Since(last.at) > queuesStaleAfter {
		return nil
	}
	return last
}

// admit refuses work for queues that stand still. What cannot be known is no reason to refuse.
func (s *Server) admit(names []string) error {
	last := s.watcher.current()
	if last == nil {
		return nil
	}
	oldest := map[string]time.Time{}
	for name, q := range last.queues {
		if q.Waiting > 0 {
			oldest[name] = q.Oldest
		}
	}
	overdue := commands.Admit{Operations: names, Oldest: oldest, At: last.at, MaxAge: s.cfg.QueueMaxAge}.Decide()
	if len(overdue) == 0 {
		return nil
	}
	p := problem(http.StatusTooManyRequests, "")
	for _, o := range overdue {
		p.Errors = append(p.Errors, commands.Fault{Field: "operations", Message: o.Error()})
	}
	p.Detail = commands.Invalid(p.Errors).Error() + ". Send the same request again later, or without this operation."
	p.RetryAfter = overdueRetryAfter
	return p
}

// queues answers GET /api/queues.
func (s *Server) queues(c fuego.ContextNoBody) (Queues, error) {
	last := s.watcher.current()
	if last == nil {
		return Queues{}, unavailable("The read model does not tell of the queues now.", nil)
	}
	answer := Queues{AsOf: last.at, MaxAge: s.cfg.QueueMaxAge.Seconds(), Queues: map[string]Queue{}}
	for _, name := range operations.Names() {
		q := last.queues[name]
		one := Queue{Waiting: q.Waiting, Running: q.Running}
		if q.Waiting > 0 {
			age := max(last.at.Sub(q.Oldest), 0).Round(time.Millisecond).Seconds()
			one.Oldest = &age
		}
		answer.Queues[name] = one
	}
	return answer, nil
}
