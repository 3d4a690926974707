package events

import (
	"path/filepath"
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
	long := NewDeadLetter(testTime, "s", "r", &DeadLettered{Type: strings.Repeat("t", longestType+1), Message: strings.Repeat("m", longestMessage)}).Message.(*DeadLettered)
	require.Len(t, long.GetType(), longestType)
	require.Len(t, long.GetMessage(), longestMessage)
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

// letterExamples is one filled-in message per fact about a dead letter, as written by
// this version.
func letterExamples() []LetterEvent {
	told := NewDeadLetter(testTime, "pixtools/webp", "req-1", &DeadLettered{Group: OperationGroup + "webp",
		Origin: &Origin{Topic: Topic, Partition: 3, Offset: 9}, Type: typePrefix + "JobRequested", JobId: testJob,
		Operation: "webp", Revision: 1, Attempts: 3, Kind: FailureKind_FAILURE_KIND_INTERNAL, Code: CodePanic,
		Message: "given up after 3 attempts at which the program failed", Stack: "panic: example\n\ngoroutine 1 [running]:"})
	return []LetterEvent{told, Redriven(told.LetterID, "1fbde9ac-1f0e-52c7-b9c2-308d922cf62d", testTime), Discarded(told.LetterID, "test traffic", testTime)}
}

// letterName is the name of a fact's type in its package, and of its example.
func letterName(e LetterEvent) string { return string(e.Message.ProtoReflect().Descriptor().Name()) }

// Every fact about dead letters that this version writes has an example in the corpus,
// and this version still writes it so. A changed message gets a new file beside the old.
func TestLetterCorpusHoldsWhatWeWrite(t *testing.T) {
	found := map[string]bool{"Origin": true} // a part of one
	for _, e := range letterExamples() {
		found[letterName(e)] = true
		r, err := e.Record()
		require.NoError(t, err)
		requireExample(t, filepath.Join("deadletters", letterName(e)+".1.json"), r)
	}
	for i := range File_pixtools_deadletters_v1_deadletters_proto.Messages().Len() {
		name := string(File_pixtools_deadletters_v1_deadletters_proto.Messages().Get(i).Name())
		require.True(t, found[name], "%s has no example", name)
	}
}

// Every fact about a dead letter ever released decodes, loses nothing, and keeps its ids.
func TestLetterCorpusDecodesForEver(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(corpus, "deadletters", "*.json"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), len(letterExamples()))
	for _, file := range files {
		e, err := DecodeLetter(readExample(t, file))
		require.NoError(t, err, file)
		require.Empty(t, e.Message.ProtoReflect().GetUnknown(), file)
		again := newLetterEvent(e.LetterID, e.Time, e.Source, e.Message)
		if m, ok := e.Message.(*DeadLettered); ok {
			again = NewDeadLetter(e.Time, e.Source, e.CorrelationID, m)
		}
		require.Equal(t, again.LetterID, e.LetterID, "%s: the dead letter's derived id has changed", file)
		require.Equal(t, again.ID, e.ID, "%s: the derived id has changed", file)
	}
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
