package projections_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/events"
)

// Every job that has ended comes once, in the order of the ids, over as many pages as it
// takes; open ones do not.
func TestEachEnded(t *testing.T) {
	w := newWorld(t)
	w.projector()
	const ended = 503 // more than a page
	var want []string
	for i := range ended + 5 {
		w.ofJob(i, 1, &events.JobRequested{Tenant: "test", Operations: []*events.Operation{{Name: "webp"}}, Source: &events.Source{Sha256: "aa"}})
		if i < ended {
			w.ofJob(i, 2, &events.JobCancelRequested{Revision: 1})
			w.ofJob(i, 3, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_CANCELLED})
			want = append(want, events.JobID("test", fmt.Sprint(i)))
		}
	}
	w.caughtUp()
	slices.Sort(want)
	var got []string
	require.NoError(t, w.reader.EachEnded(w.ctx(), func(job *events.Job) error {
		got = append(got, job.GetId())
		require.Equal(t, events.Phase_PHASE_ENDED, job.GetPhase())
		return nil
	}))
	require.Equal(t, want, got)
	enough := errors.New("enough")
	require.ErrorIs(t, w.reader.EachEnded(w.ctx(), func(*events.Job) error { return enough }), enough)
}
