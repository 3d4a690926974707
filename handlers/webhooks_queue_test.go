package handlers

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var hooksNow = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// due puts attempts that are due, and says to which hosts they go.
func (q *hookQueue) due(hosts ...string) {
	for i, host := range hosts {
		q.put(&attempt{job: fmt.Sprint(host, " ", i, " ", q.waiting()), revision: 1, number: 1, due: hooksNow.Add(time.Duration(i-len(hosts)) * time.Second), host: host})
	}
}

// take is what may run now.
func (q *hookQueue) take(now time.Time) (all []*attempt) {
	for {
		a, _ := q.next(now)
		if a == nil {
			return all
		}
		all = append(all, a)
	}
}

func hostsOf(all []*attempt) (hosts string) {
	for _, a := range all {
		hosts += a.host
	}
	return hosts
}

// A host gets its share and no more, and does not hold up others; the whole has a limit, too.
func TestHookQueueIsFair(t *testing.T) {
	q := newHookQueue(4, 2, time.Hour)
	q.due("a", "a", "a", "a", "a", "b", "c", "d")
	running := q.take(hooksNow)
	require.Equal(t, "aabc", hostsOf(running), "two of a; d is one too many")
	q.done(running[2])
	require.Equal(t, "d", hostsOf(q.take(hooksNow)))
	q.done(running[0])
	require.Equal(t, "a", hostsOf(q.take(hooksNow)), "the next of its line")
	require.Empty(t, q.take(hooksNow))
}

func TestHookQueueWaits(t *testing.T) {
	q := newHookQueue(4, 2, time.Hour)
	q.put(&attempt{job: "x", number: 1, due: hooksNow.Add(time.Minute)})
	a, pause := q.next(hooksNow)
	require.Nil(t, a)
	require.Equal(t, time.Minute, pause)
	q.put(&attempt{job: "x", number: 2, due: hooksNow.Add(time.Second)})
	q.put(&attempt{job: "x", number: 2, due: hooksNow}) // the same, once more
	_, pause = q.next(hooksNow)
	require.Equal(t, time.Second, pause, "in the place of the first")
	require.Empty(t, q.take(hooksNow))
	running := q.take(hooksNow.Add(time.Second))
	require.Len(t, running, 1)

	// While it runs nothing else of its job does, and what it came to ends it.
	q.put(&attempt{job: "x", number: 2, due: hooksNow})
	require.Empty(t, q.take(hooksNow.Add(time.Hour)))
	q.done(running[0])
	require.Empty(t, q.take(hooksNow.Add(time.Hour)))
	q.put(&attempt{job: "x", number: 3, due: hooksNow})
	require.Len(t, q.take(hooksNow), 1)
}

// What is dropped does not run again, wherever it was, and takes nobody else with it.
func TestHookQueueDrops(t *testing.T) {
	q := newHookQueue(4, 1, time.Hour)
	for i, job := range []string{"1", "2", "3", "4"} {
		q.put(&attempt{job: job, partition: int32(i % 2), number: 1, due: hooksNow, host: "a"})
	}
	first := q.take(hooksNow)
	require.Len(t, first, 1)
	q.drop(first[0].job)
	q.postpone(first[0], hooksNow) // it ran, and finds itself dropped: it calls the next of the line
	for id := range q.attempts {
		if q.attempts[id].place == inTimers { // the one that was called
			q.drop(id)
			break
		}
	}
	require.Len(t, q.take(hooksNow), 1, "its place is not lost")

	q = newHookQueue(4, 4, time.Hour)
	for i := range 8 {
		q.put(&attempt{job: fmt.Sprint(i), partition: int32(i % 2), number: 1, due: hooksNow})
	}
	q.dropPartition(1)
	require.Equal(t, 4, q.waiting())
	require.Len(t, q.take(hooksNow), 4)
}

// While a host's breaker is open its attempts wait, others do not, and after too long a time
// they are hopeless.
func TestHookQueueHolds(t *testing.T) {
	q := newHookQueue(4, 2, time.Hour)
	q.hold("a", hooksNow.Add(time.Minute))
	q.due("a", "a", "b")
	require.Equal(t, "b", hostsOf(q.take(hooksNow)))
	require.Equal(t, "aa", hostsOf(q.take(hooksNow.Add(time.Minute))))
	q.hold("c", hooksNow.Add(3*time.Hour))
	q.put(&attempt{job: "late", number: 1, due: hooksNow.Add(-time.Hour), host: "c"})
	require.Empty(t, q.take(hooksNow), "an hour, and no more")
	q.put(&attempt{job: "later", number: 1, due: hooksNow.Add(-time.Hour - 1), host: "c"})
	hopeless := q.take(hooksNow)
	require.Len(t, hopeless, 1)
	require.True(t, hopeless[0].hopeless)
	q.hold("c", time.Time{})
	q.done(hopeless[0])
	require.NotContains(t, q.hosts, "c", "who is well and has nothing to get is forgotten")
	q.hold("d", hooksNow)
	q.freeHosts(hooksNow.Add(1))
	require.NotContains(t, q.hosts, "d")
}

// An attempt whose host is known only now takes its place in that host's line.
func TestHookQueueOpens(t *testing.T) {
	q := newHookQueue(4, 1, time.Hour)
	for i := range 3 {
		q.put(&attempt{job: fmt.Sprint(i), number: 1, due: hooksNow})
	}
	opened := q.take(hooksNow)
	require.Len(t, opened, 3)
	require.True(t, q.at(opened[0], "a", hooksNow))
	require.False(t, q.at(opened[1], "a", hooksNow))
	require.True(t, q.at(opened[2], "b", hooksNow))
	require.Equal(t, 2, q.running)
	q.done(opened[0])
	require.Equal(t, []*attempt{opened[1]}, q.take(hooksNow))
}
