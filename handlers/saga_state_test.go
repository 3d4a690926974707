package handlers

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
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

// A job that was retried may still be listed as one that ended, behind another. Its next
// end may come in a batch that reaches further than it is remembered, as after a long stop.
func TestEndsAndIsForgottenInOneBatch(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	m := newMemory()
	var c *changeSet
	tell := func(job string, at time.Time, all ...proto.Message) {
		for _, e := range all {
			_, err := c.take(events.New(job, at, "test", "req", e))
			require.NoError(t, err)
		}
	}
	batch := func(all func()) {
		c = newChangeSet(m)
		all()
		c.expire(time.Minute)
		c.commit()
	}
	requested, failed := &events.JobRequested{Operations: []*events.Operation{{Name: "webp"}}}, &events.OperationFailed{Revision: 1, Operation: "webp"}
	batch(func() { tell("other", now, requested, failed) })
	batch(func() { tell("job", now, requested, failed) })
	batch(func() { tell("job", now, &events.OperationRetryRequested{Revision: 2, Operations: []string{"webp"}}) })
	require.Equal(t, []string{"other", "job"}, m.ended)
	require.Contains(t, m.open, "job")
	batch(func() {
		tell("job", now, &events.OperationCompleted{Revision: 2, Operation: "webp"})
		tell("third", now.Add(time.Hour), requested)
	})
	require.NotContains(t, m.jobs, "job", "it is forgotten")
	require.NotContains(t, m.open, "job")
}

// A partition that comes back is read anew: others may have had it meanwhile, and what we
// read of it after its loss, for records that were polled before, is not what they made of it.
func TestOwningForgets(t *testing.T) {
	s := NewSaga(SagaConfig{}, "id", 2, 1, nil)
	parts := map[string][]int32{events.Topic: {1}}
	s.own(t.Context(), nil, parts)
	s.note(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: events.Topic, Partitions: []kgo.FetchPartition{{Partition: 1, Records: []*kgo.Record{{Partition: 1, Offset: 5}}}}}}}})
	require.Equal(t, int64(6), s.read[1])
	s.forget(t.Context(), nil, parts)
	require.Empty(t, s.read)
	s.partitions[1] = newMemory()
	s.own(t.Context(), nil, parts)
	require.False(t, s.remembers(1))
}

// A partition that is assigned anew is read anew, whether or not its loss was told: kgo's
// session passes on one loss between two ends of transactions, and no second one.
func TestAssignedAnewIsReadAnew(t *testing.T) {
	s := NewSaga(SagaConfig{}, "id", 6, 6, slog.New(slog.DiscardHandler))
	assigned := map[string][]int32{events.Topic: {5}}
	s.own(t.Context(), nil, assigned)
	s.partitions[5], s.partitions[4] = newMemory(), newMemory()
	before := s.losses
	s.own(t.Context(), nil, assigned)
	require.False(t, s.remembers(5))
	require.True(t, s.remembers(4), "it was ours all the time")
	require.NotEqual(t, before, s.losses, "what is being restored just now is out of date, too")
}
