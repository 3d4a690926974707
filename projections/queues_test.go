package projections_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

// ofJob writes an event of a job at a second of an hour.
func (w *world) ofJob(job, second int, m proto.Message) {
	w.produce(events.New(events.JobID("test", fmt.Sprint(job)), at(second), "test", "req", m))
}

func at(second int) time.Time { return time.Date(2026, 11, 24, 12, 0, second, 0, time.UTC) }

// queues waits for the projection, then gives the work of open jobs.
func (w *world) queues() map[string]projections.Queue {
	w.t.Helper()
	w.caughtUp()
	queues, err := w.reader.Queues(w.ctx())
	require.NoError(w.t, err)
	for name, q := range queues {
		if !q.Oldest.IsZero() {
			q.Oldest = q.Oldest.UTC()
			queues[name] = q
		}
	}
	return queues
}

// What waits and what runs is what the log says, and so is since when: a retry waits from its own time on. Rows of
// the version before, which do not say so, are filled in.
func TestQueues(t *testing.T) {
	w := newWorld(t)
	w.projector()
	require.Empty(t, w.queues())
	both := &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}, {Name: "denoise"}}, Source: &events.Source{Sha256: "aa"}}
	w.ofJob(1, 1, both)
	w.ofJob(2, 2, both)
	w.ofJob(3, 3, &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, Source: &events.Source{Sha256: "aa"}})
	require.Equal(t, map[string]projections.Queue{"webp": {Waiting: 3, Oldest: at(1)}, "denoise": {Waiting: 2, Oldest: at(1)}}, w.queues())

	w.ofJob(1, 4, &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1})
	require.Equal(t, map[string]projections.Queue{"webp": {Waiting: 2, Running: 1, Oldest: at(2)}, "denoise": {Waiting: 2, Oldest: at(1)}}, w.queues())

	w.ofJob(1, 5, &events.OperationFailed{Revision: 1, Operation: "webp", Attempt: 1})
	w.ofJob(2, 6, &events.JobCancelRequested{Revision: 1})
	w.ofJob(3, 7, &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1})
	require.Equal(t, map[string]projections.Queue{"webp": {Running: 1}, "denoise": {Waiting: 1, Oldest: at(1)}}, w.queues())

	w.ofJob(1, 8, &events.OperationFailed{Revision: 1, Operation: "denoise", Attempt: 1})
	w.ofJob(1, 9, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_FAILED})
	require.Equal(t, map[string]projections.Queue{"webp": {Running: 1}}, w.queues())

	w.ofJob(1, 20, &events.OperationRetryRequested{Revision: 2, Operations: []string{"webp", "denoise"}})
	w.ofJob(4, 21, both)
	now := map[string]projections.Queue{"webp": {Waiting: 2, Running: 1, Oldest: at(20)}, "denoise": {Waiting: 2, Oldest: at(20)}}
	require.Equal(t, now, w.queues())
	w.ofJob(1, 30, &events.OperationStarted{Revision: 2, Operation: "webp", Attempt: 1})
	now["webp"] = projections.Queue{Waiting: 1, Running: 2, Oldest: at(21)}
	require.Equal(t, now, w.queues(), "denoise waits since the retry, whatever happens to webp")
}
