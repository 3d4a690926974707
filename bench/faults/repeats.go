package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pixtools/pixtools/events"
)

// execution is one attempt at an operation, from its begin until its outcome, or the next
// attempt, came.
type execution struct {
	member     string
	begun, end time.Time
	// again says that the operation was begun before in its revision.
	again bool
	// before is the attempt that this one repeats.
	before *execution
}

// executions are all attempts in the log.
func executions(done result) []*execution {
	type place struct {
		job, operation string
		revision       int32
	}
	last := map[place]*execution{}
	var all []*execution
	finish := func(p place, at time.Time) {
		if e := last[p]; e != nil && e.end.IsZero() {
			e.end = at
		}
	}
	for _, record := range done.history.Log {
		job := record.Event.JobID
		switch m := record.Event.Message.(type) {
		case *events.OperationStarted:
			p := place{job, m.GetOperation(), m.GetRevision()}
			finish(p, record.Event.Time)
			member, _, _ := strings.Cut(m.GetWorker(), "/")
			e := &execution{member: member, begun: record.Event.Time, again: last[p] != nil, before: last[p]}
			all, last[p] = append(all, e), e
		case *events.OperationCompleted:
			finish(place{job, m.GetOperation(), m.GetRevision()}, record.Event.Time)
		case *events.OperationFailed:
			finish(place{job, m.GetOperation(), m.GetRevision()}, record.Event.Time)
		}
	}
	return all
}

func (e *execution) underWay(at time.Time) bool {
	return !e.begun.After(at) && (e.end.IsZero() || e.end.After(at))
}

// judgeRepeats: what was executed again must have been in work when the membership
// changed, and there must not be more of it. Where a member went, more is asked: what is
// executed again was in work at that member, or on a partition that moved.
func judgeRepeats(done *result, changes []change, out io.Writer) error {
	all := executions(*done)
	inFlight, atLeavers := 0, 0
	for _, c := range changes {
		for _, e := range all {
			if e.underWay(c.at) {
				inFlight++
				if e.member == c.left {
					atLeavers++
				}
			}
		}
	}
	again, left, unexplained := 0, 0, 0
	for _, e := range all {
		if !e.again {
			continue
		}
		again++
		if slices.ContainsFunc(changes, func(c change) bool { return c.left == e.before.member && e.before.underWay(c.at) }) {
			left++
		}
		if !slices.ContainsFunc(changes, func(c change) bool { return e.before.underWay(c.at) }) {
			unexplained++
		}
	}
	_, err := fmt.Fprintf(out, "%d changes of the membership; %d executions, %d of them repeated: %d after their member went, %d after their partition moved\n"+
		"in flight at all changes together %d, of them at members that went %d\n", len(changes), len(all), again, left, again-left, inFlight, atLeavers)
	if again > inFlight {
		done.broken = append(done.broken, fmt.Sprintf("%d repeated executions, and only %d were in flight when the membership changed", again, inFlight))
	}
	if unexplained > 0 {
		done.broken = append(done.broken, fmt.Sprintf("%d executions were repeated that no change of the membership interrupted", unexplained))
	}
	for _, line := range done.broken {
		_, _ = fmt.Fprintf(out, "  BROKEN: %s\n", clip(line))
	}
	return err
}
