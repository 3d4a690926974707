package projections_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// TestDue: what is due is found a page at a time, the oldest first; what is open, was deleted or
// has expired is not. A ledger says at which positions it says something.
func TestDue(t *testing.T) {
	w := newWorld(t)
	defer w.projector()()
	const jobs = 7
	ids := make([]string, jobs)
	for i := range jobs {
		ids[i] = events.JobID("test", fmt.Sprint(i))
		for step, m := range []proto.Message{
			&events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, Source: &events.Source{Key: "raw/x"}},
			&events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &events.Artifact{Key: "k", Sha256: "aa"}},
			&events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED},
		} {
			if i == 6 && step > 0 {
				break // it is open
			}
			w.produce(events.New(ids[i], testDay.Add(time.Duration(i)*time.Hour+time.Duration(step)*time.Minute), "test", "req", m))
		}
	}
	w.produce(events.New(ids[1], testDay.Add(30*time.Hour), "test", "req", &events.JobDeleted{}))
	w.produce(events.New(ids[2], testDay.Add(30*time.Hour), "test", "req", &events.ArtifactsExpired{Revision: 1, Source: true}))
	w.produce(events.New(ids[3], testDay.Add(30*time.Hour), "test", "req", &events.ArtifactsExpired{Revision: 1, Operations: []string{"webp"}, Sha256: []string{"aa"}}))
	w.produce(events.New(ids[4], testDay.Add(30*time.Hour), "test", "req", &events.ArtifactReplaced{Revision: 1, Operation: "webp", ReplacedSha256: "aa", Artifact: &events.Artifact{Key: "k2", Sha256: "bb"}, Campaign: "c"}))
	w.caughtUp()
	due := func(source bool, until time.Duration, page int) (found []int) {
		require.NoError(t, w.reader.EachDue(w.ctx(), source, testDay.Add(until), page, func(job *events.Job) error {
			for i, id := range ids {
				if id == job.GetId() {
					found = append(found, i)
				}
			}
			return nil
		}))
		return found
	}
	for page := 1; page < 4; page++ {
		require.Equal(t, []int{0, 3, 4, 5}, due(true, 100*time.Hour, page))
		require.Equal(t, []int{0, 2, 5, 4}, due(false, 100*time.Hour, page), "a result counts from when it took another's place")
		require.Equal(t, []int{0, 3}, due(true, 3*time.Hour, page), "to the moment")
		require.Equal(t, []int{0, 2}, due(false, 5*time.Hour+time.Minute-time.Microsecond, page))
	}
	unknown := events.JobID("test", "nobody")
	ledger, err := w.reader.Ledger(w.ctx(), []string{ids[1], ids[6], unknown})
	require.NoError(t, err)
	require.Len(t, ledger.Jobs, 2)
	require.Equal(t, events.Phase_PHASE_DELETED, ledger.Jobs[ids[1]].GetPhase())
	for partition, last := range w.last {
		require.True(t, ledger.Passed(partition, last+1))
		require.False(t, ledger.Passed(partition, last+2))
	}
	w.exec("TRUNCATE jobs, positions, usage") // as a migration does
	ledger, err = w.reader.Ledger(w.ctx(), []string{ids[1]})
	require.NoError(t, err)
	require.False(t, ledger.Passed(0, 1), "it knows nothing, and says so")
	var mine int
	require.NoError(t, w.reader.EachOf(w.ctx(), "test", func(*events.Job) error { mine++; return nil }))
	require.LessOrEqual(t, mine, jobs-1)
}
