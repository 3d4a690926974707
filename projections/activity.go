package projections

import (
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/pixtools/pixtools/events"
)

const (
	// ActivityStep is the time that one step of the activity covers.
	ActivityStep = 10 * time.Second
	// activityKept is for how long, in event time, steps are kept.
	activityKept = time.Hour
	// activityIDs is how many events are remembered: what the log tells again counts once.
	activityIDs = 20000
)

// Activity counts what the log tells, by time of the event: for operators' charts. It begins
// to count when the process starts, and is no fold: an outcome that comes too late to count
// for its job is counted here.
type Activity struct {
	mu    sync.Mutex
	since time.Time
	seen  *lru.Cache[string, struct{}]
	// steps by their beginning, in units of ActivityStep since 1970.
	steps map[int64]*Step
}

// Step is what happened from At until ActivityStep later.
type Step struct {
	At time.Time
	// Accepted are jobs; Completed are results, by operation; Failed are operations, by FailureKind.
	Accepted  int64
	Completed map[string]int64
	Failed    map[events.FailureKind]int64
}

func newActivity(since time.Time) *Activity {
	seen, err := lru.New[string, struct{}](activityIDs)
	if err != nil {
		panic(err) // the size is a constant
	}
	return &Activity{since: since, seen: seen, steps: map[int64]*Step{}}
}

// count takes an event in.
func (a *Activity) count(e events.Event) {
	var into func(s *Step)
	switch m := e.Message.(type) {
	case *events.JobRequested:
		into = func(s *Step) { s.Accepted++ }
	case *events.OperationCompleted:
		into = func(s *Step) { s.Completed[m.GetOperation()]++ }
	case *events.OperationFailed:
		into = func(s *Step) { s.Failed[m.GetKind()]++ }
	default:
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if again, _ := a.seen.ContainsOrAdd(e.ID, struct{}{}); again {
		return
	}
	at := e.Time.UnixNano() / int64(ActivityStep)
	step := a.steps[at]
	if step == nil {
		step = &Step{At: time.Unix(0, at*int64(ActivityStep)).UTC(), Completed: map[string]int64{}, Failed: map[events.FailureKind]int64{}}
		a.steps[at] = step
		// An event may be dated far off; the number of steps stays bounded all the same.
		if most := int64(activityKept / ActivityStep); int64(len(a.steps)) > most {
			oldest := at
			for other := range a.steps {
				oldest = min(oldest, other)
			}
			delete(a.steps, oldest)
		}
	}
	into(step)
}

// Steps are those in which something happened, of the hour before now, the oldest first, and
// since when there is counting.
func (a *Activity) Steps(now time.Time) (since time.Time, steps []Step) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first, last := now.Add(-activityKept).UnixNano()/int64(ActivityStep), now.UnixNano()/int64(ActivityStep)
	for at := first + 1; at <= last; at++ {
		if s := a.steps[at]; s != nil {
			steps = append(steps, s.clone())
		}
	}
	return a.since, steps
}

func (s *Step) clone() Step {
	c := Step{At: s.At, Accepted: s.Accepted, Completed: map[string]int64{}, Failed: map[events.FailureKind]int64{}}
	for name, n := range s.Completed {
		c.Completed[name] = n
	}
	for kind, n := range s.Failed {
		c.Failed[kind] = n
	}
	return c
}
