package projections_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/projections"
)

// Others see how far a replay is while it is at work, and see when it is not any more.
func TestReplaysSayHowFarTheyAre(t *testing.T) {
	w := newWorld(t)
	w.randomly(200, 0, 20, rand.New(rand.NewPCG(21, 1)))
	w.mutedProjector()
	w.caughtUp()
	reader := projections.NewReader(w.cfg, w.pool, w.logID, muted)
	seen := func(name string) (found projections.SchemaInfo) {
		all, err := reader.ReadModels(w.ctx())
		require.NoError(t, err)
		for _, m := range all {
			if m.Name == name {
				found = m
			}
		}
		return found
	}
	r := w.replayer()
	end, err := r.Begin(w.ctx())
	require.NoError(t, err)
	var reading projections.Progress
	var during projections.SchemaInfo
	built, err := r.Build(w.ctx(), projections.Until{}, func(p projections.Progress) {
		switch p.Phase {
		case "reading the log":
			if reading.Total == 0 {
				reading = p
			}
		case "making indexes":
			during = seen("pixtools_read_1")
		}
	})
	require.NoError(t, err)
	require.Equal(t, projections.StateBuilding, during.State)
	require.True(t, during.AtWork)
	require.False(t, during.CutOff())
	require.Equal(t, "reading the log", during.Progress.Phase)
	require.Equal(t, reading.Total, during.Progress.Total)
	require.GreaterOrEqual(t, during.Progress.Done, reading.Done)
	require.GreaterOrEqual(t, reading.Total, built.Records)
	require.False(t, during.Progress.At.Before(during.Progress.Began))
	whole := seen(built.Name)
	require.Equal(t, projections.StateReady, whole.State)
	require.Nil(t, whole.Progress, "it is over")
	require.False(t, whole.CutOff())

	// What is done with it later is told, too.
	_, err = r.Diff(w.ctx(), built.Name, func(p projections.Progress) {
		if p.Phase == "comparing" {
			during = seen(built.Name)
		}
	}, func(projections.Change) error { return nil })
	require.NoError(t, err)
	require.Equal(t, projections.StateReady, during.State)
	require.True(t, during.AtWork)
	require.Equal(t, "waiting for the live read model", during.Progress.Phase)
	_, err = r.Promote(w.ctx(), built.Name, silent)
	require.NoError(t, err)
	require.Nil(t, seen(projections.Schema).Progress)
	require.False(t, seen(projections.Schema).AtWork)

	// One that has lost the lock is not at work: another may begin any time.
	_, err = r.Build(w.ctx(), projections.Until{}, func(p projections.Progress) {
		if p.Phase == "making indexes" {
			end()
			during = seen("pixtools_read_1")
		}
	})
	require.NoError(t, err)
	require.True(t, during.CutOff())
	require.NotNil(t, during.Progress)
}

func TestNoted(t *testing.T) {
	t.Parallel()
	began := testDay
	n := projections.Noted{Done: 100, Total: 400, Began: began, At: began.Add(10 * time.Second)}
	require.InDelta(t, 10.0, n.Rate(), 1e-9)
	require.Equal(t, began.Add(40*time.Second), n.Ends())
	for name, n := range map[string]projections.Noted{
		"nothing done":    {Total: 400, Began: began, At: began.Add(time.Second)},
		"no time went by": {Done: 1, Total: 400, Began: began, At: began},
		"not counted":     {Began: began, At: began.Add(time.Second)},
	} {
		require.Zero(t, n.Rate(), name)
		require.True(t, n.Ends().IsZero(), name)
	}
}
