package events

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// later are the bytes of a field that no version has yet.
func later(number protowire.Number) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), "later")
}

// TestUnknownIsNamed has events of a later version read by this one.
func TestUnknownIsNamed(t *testing.T) {
	parameters, err := structpb.NewStruct(map[string]any{"quality": 80})
	require.NoError(t, err)
	parameters.ProtoReflect().SetUnknown(later(1000)) // not ours to know
	artifact := &Artifact{Key: "processed/x"}
	artifact.ProtoReflect().SetUnknown(append(later(1001), later(1001)...))
	completed := &OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: artifact}
	completed.ProtoReflect().SetUnknown(later(1002))
	retry := &OperationRetryRequested{Revision: 2, Operations: []string{"jpg"}, Completed: []*OperationCompleted{completed},
		Request: &JobRequested{Operations: []*Operation{{Name: "webp", Parameters: parameters}}}}
	for name, c := range map[string]struct {
		message proto.Message
		want    []string
	}{
		"all known":       {&JobRequested{Operations: []*Operation{{Name: "webp", Parameters: parameters}}}, nil},
		"fields":          {completed, []string{"pixtools.events.v1.OperationCompleted#1002", "pixtools.events.v1.Artifact#1001"}},
		"fields in lists": {retry, []string{"pixtools.events.v1.OperationCompleted#1002", "pixtools.events.v1.Artifact#1001"}},
		"a value":         {&JobFinalized{Revision: 1, Outcome: 77}, []string{"pixtools.events.v1.Outcome=77"}},
		"known values":    {&JobFinalized{Revision: 1, Outcome: Outcome_OUTCOME_PARTIAL}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Event{ID: "x", JobID: JobID("t", "k"), Message: c.message}.Record()
			require.NoError(t, err)
			e, err := Decode(r)
			require.NoError(t, err)
			require.Equal(t, c.want, Unknown(r, e, err))
			for _, name := range c.want {
				require.False(t, Knows(name), name)
			}
		})
	}
	t.Run("a type", func(t *testing.T) {
		r, err := Event{ID: "x", JobID: JobID("t", "k"), Message: &JobDeleted{}}.Record()
		require.NoError(t, err)
		for i, h := range r.Headers {
			if h.Key == HeaderType {
				r.Headers[i] = kgo.RecordHeader{Key: h.Key, Value: []byte(typePrefix + "JobPraised")}
			}
		}
		e, err := Decode(r)
		require.ErrorIs(t, err, ErrUnknownType)
		require.Equal(t, []string{typePrefix + "JobPraised"}, Unknown(r, e, err))
		require.False(t, Knows(typePrefix+"JobPraised"))
	})
	t.Run("a type that no version will have", func(t *testing.T) {
		for _, name := range []string{"org.example.Thing", typePrefix + "Job\x00", typePrefix + "Job\xff", typePrefix, typePrefix + strings.Repeat("J", longestType)} {
			r := &kgo.Record{Headers: []kgo.RecordHeader{{Key: HeaderType, Value: []byte(name)}}}
			require.Empty(t, Unknown(r, Event{}, ErrUnknownType), "%q", name)
		}
	})
	t.Run("no more than so many", func(t *testing.T) {
		m := &JobDeleted{}
		var raw []byte
		for n := range mostUnknown + 1 {
			raw = append(raw, later(protowire.Number(1000+n))...)
		}
		m.ProtoReflect().SetUnknown(raw)
		require.Len(t, Unknown(nil, Event{Message: m}, nil), mostUnknown)
	})
	for _, known := range []string{typePrefix + "JobDeleted", typePrefix + "JobRequested#1", typePrefix + "Outcome=1"} {
		require.True(t, Knows(known), known)
	}
	for _, never := range []string{"", "pixtools.state.v1.Job", typePrefix + "Artifact", typePrefix + "JobRequested#", typePrefix + "JobRequested=1", typePrefix + "Outcome#1", typePrefix + "Outcome=x"} {
		require.False(t, Knows(never), never)
	}
}

// TestWithoutIsWhatAnOlderVersionRead: to fold it is to fold as that version did.
func TestWithoutIsWhatAnOlderVersionRead(t *testing.T) {
	whole := &OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &Artifact{Key: "k", Sha256: "aa", Bytes: 7}, Engine: "e"}
	sha := whole.GetArtifact().ProtoReflect().Descriptor().Fields().ByName("sha256").Number()
	engine := whole.ProtoReflect().Descriptor().Fields().ByName("engine").Number()
	e := Event{Message: whole}
	less := e.Without([]string{string(whole.GetArtifact().ProtoReflect().Descriptor().FullName()) + fmt.Sprint("#", sha), typePrefix + fmt.Sprint("OperationCompleted#", engine)})
	require.True(t, proto.Equal(&OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: &Artifact{Key: "k", Bytes: 7}}, less.Message), "%v", less.Message)
	require.Equal(t, "e", whole.GetEngine(), "the event itself stays")
}

// TestFoldKeepsWhatItDoesNotKnow folds a whole life over a state that a later version has stored.
func TestFoldKeepsWhatItDoesNotKnow(t *testing.T) {
	artifact := &Artifact{Key: "k", Sha256: "aa"}
	artifact.ProtoReflect().SetUnknown(later(1003))
	state := &Job{Id: JobID("t", "k"), Phase: Phase_PHASE_OPEN, Revision: 1, WebhookUrl: &Sealed{KeyId: "k"}, Webhook: &Webhook{Revision: 1},
		Source: &Source{Key: "raw/x"}, Operations: []*OperationState{{Name: "webp", Phase: OperationPhase_OPERATION_PHASE_PENDING}, {Name: "jpg", Phase: OperationPhase_OPERATION_PHASE_PENDING}}}
	for _, m := range []proto.Message{state, state.GetSource(), state.GetWebhook(), state.GetOperations()[0], state.GetOperations()[1]} {
		m.ProtoReflect().SetUnknown(later(1000))
	}
	for _, m := range []proto.Message{
		&OperationStarted{Revision: 1, Operation: "webp", Attempt: 1},
		&OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: artifact},
		&OperationFailed{Revision: 1, Operation: "jpg", Attempt: 1},
		&JobFinalized{Revision: 1, Outcome: Outcome_OUTCOME_PARTIAL},
		&WebhookScheduled{Revision: 1, Attempt: 1, Due: timestamppb.Now()}, &WebhookFailed{Revision: 1, Attempt: 1},
		&WebhookScheduled{Revision: 1, Attempt: 2, Due: timestamppb.Now()}, &WebhookDelivered{Revision: 1, Attempt: 2},
		&ArtifactReplaced{Revision: 1, Operation: "webp", ReplacedSha256: "aa", Artifact: &Artifact{Key: "l", Sha256: "bb"}},
		&ArtifactsExpired{Revision: 1, Source: true},
	} {
		next := Fold(state, Event{JobID: state.GetId(), Message: m})
		require.NotSame(t, state, next, "%T", m)
		state = next
		for _, kept := range []proto.Message{state, state.GetSource(), state.GetWebhook(), state.GetOperations()[0], state.GetOperations()[1]} {
			require.EqualValues(t, later(1000), kept.ProtoReflect().GetUnknown(), "%T of the state after %T", kept, m)
		}
		if m, ok := m.(*OperationCompleted); ok {
			require.EqualValues(t, later(1003), state.GetOperations()[0].GetArtifact().ProtoReflect().GetUnknown(), "of %T", m)
		}
	}
	require.Empty(t, Fold(state, Event{JobID: state.GetId(), Message: &JobDeleted{}}).ProtoReflect().GetUnknown(), "what is deleted is gone, known or not")
}
