package handlers

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/events"
)

// A deadline is met until it is over, and not beyond.
func TestOpenSince(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	m := newMemory()
	for id, at := range map[string]time.Time{"younger": now.Add(-time.Hour + 1), "exactly": now.Add(-time.Hour), "older": now.Add(-time.Hour - 1)} {
		m.jobs[id] = &events.Job{Id: id, Phase: events.Phase_PHASE_OPEN, RequestedAt: timestamppb.New(at)} // as states of the first version are
	}
	m.jobs["retried"] = &events.Job{Phase: events.Phase_PHASE_OPEN, RequestedAt: timestamppb.New(now.Add(-5 * time.Hour)), OpenedAt: timestamppb.New(now)}
	m.jobs["ended"] = &events.Job{Phase: events.Phase_PHASE_ENDED, RequestedAt: timestamppb.New(now.Add(-5 * time.Hour))}
	m.order()
	require.Equal(t, []string{"exactly", "older"}, m.openSince(now.Add(-time.Hour)))
}
