package events

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
)

func TestDeadLetterRecords(t *testing.T) {
	e := NewDeadLetter(testTime, "pixtools/saga", "req-1", &DeadLettered{Group: SagaGroup, Origin: &Origin{Topic: Topic, Partition: 3, Offset: 9},
		Type: "x\xff", JobId: "no id", Message: "y\xff", Stack: strings.Repeat("é", longestStack)})
	m := e.Message.(*DeadLettered)
	require.Equal(t, "x?", m.GetType())
	require.Empty(t, m.GetJobId())
	require.LessOrEqual(t, len(m.GetStack()), longestStack)
	for _, e := range []LetterEvent{e, Redriven(e.LetterID, "e", testTime), Discarded(e.LetterID, "why", testTime)} {
		r, err := e.Record()
		require.NoError(t, err)
		require.Equal(t, DeadLetterTopic, r.Topic)
		back, err := DecodeLetter(r)
		require.NoError(t, err)
		require.True(t, proto.Equal(e.Message, back.Message))
		back.Message = e.Message
		require.Equal(t, e, back)
	}
	event, err := at(requested()).Record()
	require.NoError(t, err)
	_, err = DecodeLetter(event)
	require.ErrorIs(t, err, ErrUnknownType)
	_, err = DecodeLetter(&kgo.Record{})
	var malformed *MalformedError
	require.ErrorAs(t, err, &malformed)
}

func TestDeadLetterIdentity(t *testing.T) {
	id := func(m *DeadLettered) string { return NewDeadLetter(testTime, "s", "r", m).LetterID }
	operation := DeadLettered{Group: "g", JobId: testJob, Revision: 1, Operation: "webp", Origin: &Origin{Offset: 1}}
	same := proto.Clone(&operation).(*DeadLettered)
	same.Group, same.Message, same.Origin = "other", "other", nil // who tells it, and how, is no part of it
	require.Equal(t, id(&operation), id(same))
	seen := map[string]bool{id(same): true}
	for _, m := range []*DeadLettered{{JobId: testJob, Revision: 2, Operation: "webp"}, {JobId: testJob, Revision: 1, Operation: "avif"},
		{Group: "g", Origin: &Origin{Topic: "t", Partition: 1, Offset: 1}}, {Group: "g", Origin: &Origin{Topic: "t", Partition: 1, Offset: 2}},
		{Group: "g", Origin: &Origin{Topic: "t", Partition: 2, Offset: 1}}, {Group: "h", Origin: &Origin{Topic: "t", Partition: 1, Offset: 1}}} {
		require.False(t, seen[id(m)])
		seen[id(m)] = true
	}
}

// A dead letter is told once and closed once; the first of each counts.
func TestFoldLetter(t *testing.T) {
	told := NewDeadLetter(testTime, "s", "r", &DeadLettered{Code: "first"})
	again := NewDeadLetter(testTime.Add(time.Hour), "s", "r", &DeadLettered{Code: "second"})
	redriven, discarded := Redriven(told.LetterID, "e", testTime), Discarded(told.LetterID, "why", testTime)
	require.Nil(t, FoldLetter(nil, redriven), "of nothing")
	open := FoldLetter(nil, told)
	require.Equal(t, "first", open.GetCode())
	require.Same(t, open, FoldLetter(open, again))
	closed := FoldLetter(open, redriven)
	require.Equal(t, "e", closed.RedrivenBy)
	require.True(t, open.ClosedAt.IsZero(), "the given state stays")
	for _, e := range []LetterEvent{told, redriven, discarded} {
		require.Same(t, closed, FoldLetter(closed, e))
	}
	require.Equal(t, "why", FoldLetter(open, discarded).DiscardReason)
}
