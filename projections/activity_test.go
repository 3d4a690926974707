package projections

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

func TestActivity(t *testing.T) {
	start := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	a := newActivity(start)
	told := func(id string, at time.Time, m proto.Message) { a.count(events.Event{ID: id, Time: at, Message: m}) }
	told("1", start, &events.JobRequested{})
	told("2", start.Add(ActivityStep-1), &events.OperationCompleted{Operation: "webp"})
	told("2", start.Add(ActivityStep-1), &events.OperationCompleted{Operation: "webp"}) // again
	told("3", start.Add(ActivityStep), &events.OperationFailed{Operation: "webp", Kind: events.FailureKind_FAILURE_KIND_WORLD})
	told("4", start.Add(ActivityStep), &events.JobFinalized{})
	since, steps := a.Steps(start.Add(time.Minute))
	require.Equal(t, start, since)
	require.Equal(t, []Step{
		{At: start, Accepted: 1, Completed: map[string]int64{"webp": 1}, Failed: map[events.FailureKind]int64{}},
		{At: start.Add(ActivityStep), Completed: map[string]int64{}, Failed: map[events.FailureKind]int64{events.FailureKind_FAILURE_KIND_WORLD: 1}},
	}, steps)

	_, steps = a.Steps(start.Add(activityKept))
	require.Len(t, steps, 1, "the first is an hour old")
	for i := range 3 * int(activityKept/ActivityStep) {
		told(fmt.Sprint("more", i), start.Add(time.Duration(i)*ActivityStep), &events.JobRequested{})
	}
	require.LessOrEqual(t, len(a.steps), int(activityKept/ActivityStep))
}
