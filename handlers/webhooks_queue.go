package handlers

import (
	"container/heap"
	"sync"
	"time"

	"github.com/pixtools/pixtools/events"
)

// attempt is one try at posting an outcome, from when it is known that it will be due until
// what it came to has come round in the log.
type attempt struct {
	job              string
	partition        int32
	revision, number int32
	due              time.Time
	// state is the job whose outcome is posted.
	state       *events.Job
	traceParent string

	// at is when to look at it: when it is due, or when its host may be called again.
	at time.Time
	// host is known once the address was opened. The address is not kept: its key may be
	// destroyed meanwhile.
	host  string
	place place
	index int // in the timers
	// dropped: it is not wanted any more. If it runs, it ends all the same.
	dropped bool
	// hopeless: its host could not be called for so long that it is given up.
	hopeless bool
}

// place is where an attempt is.
type place int

const (
	inTimers place = iota
	atHost         // in its host's line
	running
	told // what it came to is written, and has not come round yet
)

// hookHost is a receiver's host.
type hookHost struct {
	running int
	// line are attempts that are due and find as many running as may, the first first.
	line []*attempt
	// until: its breaker is open until then.
	until time.Time
}

// hookQueue says which attempt is to be made when. It holds what the changelog holds of our
// partitions, so nothing waits in it that is not bounded by MaxPending.
type hookQueue struct {
	// most may run at once, mostPerHost to one host; giveUpAfter is for how long one waits
	// for a host whose breaker is open.
	most, mostPerHost int
	giveUpAfter       time.Duration
	// wake tells that next may say something else now.
	wake chan struct{}

	mu       sync.Mutex
	attempts map[string]*attempt // by job
	timers   timers
	hosts    map[string]*hookHost
	running  int
}

func newHookQueue(most, mostPerHost int, giveUpAfter time.Duration) *hookQueue {
	return &hookQueue{most: most, mostPerHost: mostPerHost, giveUpAfter: giveUpAfter, wake: make(chan struct{}, 1),
		attempts: map[string]*attempt{}, hosts: map[string]*hookHost{}}
}

func (q *hookQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// put has an attempt be made when it is due, in the place of an earlier one of its job.
func (q *hookQueue) put(a *attempt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if there := q.attempts[a.job]; there != nil {
		if there.revision == a.revision && there.number == a.number {
			if there.place != running {
				there.state = a.state // an artifact may have been replaced, or have expired
			}
			return
		}
		q.remove(there)
	}
	q.attempts[a.job] = a
	q.wait(a, a.due)
}

// drop forgets the attempt of a job, if there is one.
func (q *hookQueue) drop(job string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if a := q.attempts[job]; a != nil {
		q.remove(a)
	}
}

// dropPartition forgets all that is of a partition.
func (q *hookQueue) dropPartition(partition int32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, a := range q.attempts {
		if a.partition == partition {
			q.remove(a)
		}
	}
}

func (q *hookQueue) remove(a *attempt) {
	a.dropped = true
	delete(q.attempts, a.job)
	if a.place == inTimers {
		heap.Remove(&q.timers, a.index)
		q.promote(a.host) // it may have been called out of the line, and then nobody else was
	}
}

// promote calls the first of a host's line.
func (q *hookQueue) promote(name string) {
	host := q.hosts[name]
	if host == nil || host.running >= q.mostPerHost {
		return
	}
	for len(host.line) > 0 {
		first := host.line[0]
		host.line = host.line[1:]
		if !first.dropped {
			q.wait(first, first.due)
			return
		}
	}
	if host.running == 0 && host.until.IsZero() {
		delete(q.hosts, name)
	}
}

// wait puts an attempt among the timers.
func (q *hookQueue) wait(a *attempt, at time.Time) {
	a.place, a.at = inTimers, at
	heap.Push(&q.timers, a)
	q.signal()
}

// waiting is how many attempts there are.
func (q *hookQueue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.attempts)
}

// next is the attempt to make now, or nil; then there is nothing to do before pause is over,
// or wake tells.
func (q *hookQueue) next(now time.Time) (a *attempt, pause time.Duration) {
	const longest = time.Hour
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.timers) > 0 && q.running < q.most {
		a := q.timers[0]
		if a.at.After(now) {
			return nil, min(a.at.Sub(now), longest)
		}
		heap.Pop(&q.timers)
		if q.claim(a, now) {
			return a, 0
		}
	}
	return nil, longest
}

// claim has an attempt run, or puts it where it waits for its host. One whose host is not
// known yet runs until that is: see at.
func (q *hookQueue) claim(a *attempt, now time.Time) bool {
	if a.host != "" {
		host := q.host(a.host)
		switch {
		case host.until.After(now) && now.Sub(a.due) > q.giveUpAfter:
			a.hopeless = true
		case host.until.After(now):
			q.wait(a, host.until)
			return false
		case host.running >= q.mostPerHost:
			a.place = atHost
			host.line = append(host.line, a)
			return false
		}
		host.running++
	}
	q.running++
	a.place = running
	return true
}

func (q *hookQueue) host(name string) *hookHost {
	host := q.hosts[name]
	if host == nil {
		host = &hookHost{}
		q.hosts[name] = host
	}
	return host
}

// at tells which host a running attempt is for, now that its address is open. False: it
// waits for that host, and is not running any more.
func (q *hookQueue) at(a *attempt, host string, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.host = host
	q.running--
	if q.claim(a, now) {
		return true
	}
	q.signal() // there is room for another
	return false
}

// hold has nothing be sent to a host before a time.
func (q *hookQueue) hold(host string, until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.host(host).until = until
}

// postpone has a running attempt wait: it was not made.
func (q *hookQueue) postpone(a *attempt, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release(a)
	if !a.dropped {
		q.wait(a, at)
	}
}

// done ends a running attempt: what it came to is written.
func (q *hookQueue) done(a *attempt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release(a)
	a.place = told
}

func (q *hookQueue) release(a *attempt) {
	q.running--
	q.signal()
	if host := q.hosts[a.host]; host != nil {
		host.running--
		q.promote(a.host)
	}
}

// freeHosts forgets hosts that nobody waits for and whose breaker was open once.
func (q *hookQueue) freeHosts(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, host := range q.hosts {
		if host.running == 0 && len(host.line) == 0 && host.until.Before(now) {
			delete(q.hosts, name)
		}
	}
}

// timers is a heap: the attempt to look at first is the first.
type timers []*attempt

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].at.Before(t[j].at) }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].index, t[j].index = i, j
}

// Push is heap.Interface's.
func (t *timers) Push(x any) {
	a := x.(*attempt)
	a.index = len(*t)
	*t = append(*t, a)
}

// Pop is heap.Interface's.
func (t *timers) Pop() any {
	old := *t
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return a
}
