package events

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const testJob = "018f0000-0000-7000-8000-000000000001"

var testTime = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func at(m proto.Message) Event { return New(testJob, testTime, "pixtools/test", "req-1", m) }

func requested() *JobRequested {
	return &JobRequested{
		Tenant:     "default",
		Operations: []*Operation{{Name: "webp"}, {Name: "avif"}},
		Source:     &Source{Key: "raw/" + testJob + "/aa", Sha256: "aa", Bytes: 10, Width: 4, Height: 3, Format: "png"},
		WebhookUrl: &Sealed{KeyId: "k", Ciphertext: []byte{1}},
	}
}

func started(rev int32, op string, n int32) *OperationStarted {
	return &OperationStarted{Revision: rev, Operation: op, Attempt: n}
}

func completed(rev int32, op, sha string) *OperationCompleted {
	return &OperationCompleted{Revision: rev, Operation: op, Attempt: 1, Artifact: &Artifact{Key: "processed/" + sha, Sha256: sha, Bytes: 5}}
}

func failed(rev int32, op string) *OperationFailed {
	return &OperationFailed{Revision: rev, Operation: op, Attempt: 1, Kind: FailureKind_FAILURE_KIND_INPUT, Code: "corrupt_image", Message: "corrupt"}
}

func final(rev int32, o Outcome) *JobFinalized { return &JobFinalized{Revision: rev, Outcome: o} }

func foldAll(ms ...proto.Message) *Job {
	var s *Job
	for _, m := range ms {
		s = Fold(s, at(m))
	}
	return s
}

// Every event in every state: true where the event changes the state. The events
// are those of revision 1 unless their name says otherwise.
func TestEveryCellOfTheStateMachine(t *testing.T) {
	states := []struct {
		name  string
		state *Job
	}{
		{"none", nil},
		{"pending", foldAll(requested())},
		{"running", foldAll(requested(), started(1, "webp", 1))},
		{"settled", foldAll(requested(), completed(1, "webp", "w"), failed(1, "avif"))},
		{"ended", foldAll(requested(), completed(1, "webp", "w"), failed(1, "avif"), final(1, Outcome_OUTCOME_PARTIAL))},
		{"retried", foldAll(requested(), completed(1, "webp", "w"), failed(1, "avif"), final(1, Outcome_OUTCOME_PARTIAL),
			&OperationRetryRequested{Revision: 2, Operations: []string{"avif"}})},
		{"deleted", foldAll(requested(), &JobDeleted{})},
	}
	cells := []struct {
		name    string
		m       proto.Message
		changes string // one letter per state above: x changes, . ignored
	}{
		{"requested", requested(), "x......"},
		{"started 1", started(1, "webp", 1), ".x....."},
		{"started 2", started(1, "webp", 2), ".xx...."},
		{"started of revision 2", started(2, "avif", 1), ".....x."},
		{"started of an unknown operation", started(1, "gif", 1), "......."},
		{"completed", completed(1, "webp", "z"), ".xx...."},
		{"completed of revision 2", completed(2, "avif", "z"), ".....x."},
		{"completed again in revision 2", completed(2, "webp", "z"), "......."},
		{"failed", failed(1, "webp"), ".xx...."},
		{"failed of revision 2", failed(2, "avif"), ".....x."},
		{"finalized", final(1, Outcome_OUTCOME_PARTIAL), "...x..."},
		{"finalized of revision 2", final(2, Outcome_OUTCOME_PARTIAL), "......."},
		{"retry to revision 2", &OperationRetryRequested{Revision: 2, Operations: []string{"avif"}}, "....x.."},
		{"retry that tells the job", &OperationRetryRequested{Revision: 2, Operations: []string{"avif"}, Request: requested(),
			Completed: []*OperationCompleted{completed(1, "webp", "w")}}, "xxxxx.."},
		{"retry that tells the job, of what completed", &OperationRetryRequested{Revision: 2, Operations: []string{"webp"}, Request: requested(),
			Completed: []*OperationCompleted{completed(1, "webp", "w")}}, "......."},
		{"retry of what completed", &OperationRetryRequested{Revision: 2, Operations: []string{"webp"}}, "......."},
		{"retry to a revision too far", &OperationRetryRequested{Revision: 3, Operations: []string{"avif"}}, "......."},
		{"cancel", &JobCancelRequested{Revision: 1}, ".xx...."},
		{"cancel of revision 2", &JobCancelRequested{Revision: 2}, ".....x."},
		{"replaced", &ArtifactReplaced{Revision: 1, Operation: "webp", ReplacedSha256: "w", Artifact: &Artifact{Sha256: "n"}}, "....x.."},
		{"replaced another", &ArtifactReplaced{Revision: 1, Operation: "webp", ReplacedSha256: "q", Artifact: &Artifact{Sha256: "n"}}, "......."},
		{"replaced by the same", &ArtifactReplaced{Revision: 1, Operation: "webp", ReplacedSha256: "w", Artifact: &Artifact{Sha256: "w"}}, "......."},
		{"webhook scheduled", &WebhookScheduled{Revision: 1, Attempt: 1}, "....xx."},
		{"webhook scheduled that tells the job", &WebhookScheduled{Revision: 1, Attempt: 1, Request: requested(), Outcome: Outcome_OUTCOME_PARTIAL,
			Completed: []*OperationCompleted{completed(1, "webp", "w")}, Failed: []*OperationFailed{failed(1, "avif")}}, "xxxxxx."},
		{"webhook delivered", &WebhookDelivered{Revision: 1, Attempt: 1}, "....xx."},
		{"webhook failed", &WebhookFailed{Revision: 1, Attempt: 1, Final: true}, "....xx."},
		{"webhook failed, to be tried again", &WebhookFailed{Revision: 1, Attempt: 1, Code: "timeout"}, "....xx."},
		{"expired source", &ArtifactsExpired{Source: true}, ".xxxxx."},
		{"expired artifact", &ArtifactsExpired{Operations: []string{"webp"}}, "...xxx."},
		{"expired source of revision 1", &ArtifactsExpired{Revision: 1, Source: true}, "....x.."},
		{"expired source of revision 2", &ArtifactsExpired{Revision: 2, Source: true}, "......."},
		{"expired artifact of revision 1", &ArtifactsExpired{Revision: 1, Operations: []string{"webp"}, Sha256: []string{"w"}}, "....x.."},
		{"expired artifact that was replaced", &ArtifactsExpired{Revision: 1, Operations: []string{"webp"}, Sha256: []string{"q"}}, "......."},
		{"expired artifact without its hash", &ArtifactsExpired{Revision: 1, Operations: []string{"avif", "webp"}, Sha256: []string{"w"}}, "......."},
		{"deleted", &JobDeleted{}, ".xxxxx."},
	}
	covered := map[string]bool{}
	for _, c := range cells {
		e := at(c.m)
		covered[e.Type()] = true
		for i, s := range states {
			before := proto.Clone(s.state)
			next := Fold(s.state, e)
			want := c.changes[i] == 'x'
			require.Equal(t, want, next != s.state, "%s in state %s", c.name, s.name)
			require.True(t, proto.Equal(before, s.state), "%s in state %s changed its input", c.name, s.name)
			require.Same(t, next, Fold(next, e), "%s in state %s is not idempotent", c.name, s.name)
		}
	}
	for _, m := range Catalogue() {
		require.True(t, covered[at(m.ProtoReflect().New().Interface()).Type()], "%T has no row", m)
	}
}

// Who has forgotten a job and then takes a late repeat of its beginning for a new one is
// put right by the next retry, whatever it has made of the job meanwhile.
func TestRetryTellsTheTruth(t *testing.T) {
	retry := &OperationRetryRequested{Revision: 3, Operations: []string{"avif"}, Request: requested(), RequestedAt: timestamppb.New(testTime),
		Completed: []*OperationCompleted{completed(2, "webp", "w")}}
	end := final(1, Outcome_OUTCOME_FAILED)
	whole := foldAll(requested(), completed(1, "webp", "w"), failed(1, "avif"), final(1, Outcome_OUTCOME_PARTIAL),
		&OperationRetryRequested{Revision: 2, Operations: []string{"avif"}}, failed(2, "avif"), final(2, Outcome_OUTCOME_PARTIAL), retry)
	for name, misled := range map[string]*Job{
		"forgot it":        foldAll(retry),
		"thinks it open":   foldAll(requested(), retry),
		"thinks it failed": foldAll(requested(), failed(1, "webp"), failed(1, "avif"), end, retry),
		"completed it again": foldAll(requested(), &OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, CpuTime: durationpb.New(time.Second)},
			failed(1, "avif"), end, &OperationRetryRequested{Revision: 2, Operations: []string{"avif"}}, failed(2, "avif"), final(2, Outcome_OUTCOME_PARTIAL), retry),
		"failed, and again": foldAll(requested(), failed(1, "webp"), failed(1, "avif"), end,
			&OperationRetryRequested{Revision: 2, Operations: []string{"avif"}}, failed(2, "avif"), final(2, Outcome_OUTCOME_FAILED), retry),
	} {
		for _, s := range []*Job{whole, misled} {
			s.GetOperations()[0].EndedAt = nil
		}
		require.True(t, proto.Equal(whole, misled), "%s:\n%v\n%v", name, whole, misled)
	}
}

// A redelivery tells the job to who has forgotten it, or takes it for a new one.
func TestRedeliveryTellsTheTruth(t *testing.T) {
	redelivery := &WebhookScheduled{Revision: 1, Attempt: 2, Request: requested(), RequestedAt: timestamppb.New(testTime), FinalizedAt: timestamppb.New(testTime),
		Outcome: Outcome_OUTCOME_PARTIAL, Completed: []*OperationCompleted{completed(1, "webp", "w")}, Failed: []*OperationFailed{failed(1, "avif")}}
	whole := foldAll(requested(), completed(1, "webp", "w"), failed(1, "avif"), final(1, Outcome_OUTCOME_PARTIAL),
		&WebhookScheduled{Revision: 1, Attempt: 1}, &WebhookFailed{Revision: 1, Attempt: 1, Final: true}, redelivery)
	whole.Webhook.FailureCode, whole.Totals = "", nil
	for name, misled := range map[string]*Job{
		"forgot it":      foldAll(redelivery),
		"thinks it open": foldAll(requested(), completed(1, "webp", "another"), redelivery),
	} {
		for _, s := range []*Job{whole, misled} {
			for _, op := range s.GetOperations() {
				op.EndedAt = nil
			}
		}
		require.True(t, proto.Equal(whole, misled), "%s:\n%v\n%v", name, whole, misled)
	}
}

func TestTheFirstOutcomeInTheLogWins(t *testing.T) {
	s := foldAll(requested(), failed(1, "webp"), completed(1, "webp", "late"), completed(1, "avif", "a"))
	require.Equal(t, OperationPhase_OPERATION_PHASE_FAILED, s.GetOperations()[0].GetPhase())
	require.Equal(t, "a", s.GetOperations()[1].GetArtifact().GetSha256())
	require.True(t, s.Settled())
}

func TestCancelAndCompletionAreSettledByOrder(t *testing.T) {
	cancel := &JobCancelRequested{Revision: 1, Reason: "not wanted"}
	first := foldAll(requested(), completed(1, "webp", "w"), cancel, completed(1, "avif", "a"))
	require.Equal(t, OperationPhase_OPERATION_PHASE_COMPLETED, first.GetOperations()[0].GetPhase())
	require.Equal(t, OperationPhase_OPERATION_PHASE_CANCELLED, first.GetOperations()[1].GetPhase())
	require.True(t, first.Settled())
}

// A consumer that is told facts again, any number of times, at any later place,
// ends in the same state. Events of revision 2 are repeated too.
func TestRepeatsMeanNothing(t *testing.T) {
	life := []proto.Message{
		requested(), started(1, "webp", 1), started(1, "avif", 1), completed(1, "webp", "w"), started(1, "avif", 2),
		failed(1, "avif"), final(1, Outcome_OUTCOME_PARTIAL), &WebhookScheduled{Revision: 1, Attempt: 1},
		&WebhookFailed{Revision: 1, Attempt: 1}, &WebhookScheduled{Revision: 1, Attempt: 2},
		&WebhookDelivered{Revision: 1, Attempt: 2}, &OperationRetryRequested{Revision: 2, Operations: []string{"avif"}},
		started(2, "avif", 1), completed(2, "avif", "a"), final(2, Outcome_OUTCOME_SUCCEEDED),
	}
	want := foldAll(life...)
	require.Equal(t, Outcome_OUTCOME_SUCCEEDED, want.GetOutcome())
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 0))
		var s *Job
		for i, m := range life {
			s = Fold(s, at(m))
			for range random.IntN(4) {
				s = Fold(s, at(life[random.IntN(i+1)]))
			}
		}
		require.True(t, proto.Equal(want, s), "seed %d", seed)
	}
}

// The clocks of those who tell differ: a job's time is the latest that it was told.
func TestTimeDoesNotGoBack(t *testing.T) {
	s := Fold(nil, at(requested()))
	late, early := at(started(1, "webp", 1)), at(completed(1, "webp", "w"))
	late.Time, early.Time = late.Time.Add(time.Hour), early.Time.Add(time.Minute)
	for _, e := range []Event{late, early} {
		s = Fold(s, e)
		require.Equal(t, late.Time, s.GetUpdatedAt().AsTime())
	}
	require.Equal(t, early.Time, s.GetOperations()[0].GetEndedAt().AsTime())
}

// FuzzFold reads bytes as events: a kind, a length, a value. Whatever they are, and in
// whatever state, Fold does not panic, does not change the state that it is given, and
// takes an event in once.
func FuzzFold(f *testing.F) {
	kinds := Catalogue()
	encode := func(ms ...proto.Message) (all []byte) {
		for _, m := range ms {
			kind := slices.IndexFunc(kinds, func(k proto.Message) bool { return k.ProtoReflect().Descriptor() == m.ProtoReflect().Descriptor() })
			value, err := proto.Marshal(m)
			require.NoError(f, err)
			all = append(append(all, byte(kind), byte(len(value)), byte(len(value)>>8)), value...)
		}
		return all
	}
	retry := &OperationRetryRequested{Revision: 2, Operations: []string{"avif"}, Request: requested(), Completed: []*OperationCompleted{completed(1, "webp", "w")},
		Failed: []*OperationFailed{failed(1, "avif")}, Cancelled: []string{"avif"}}
	end := final(1, Outcome_OUTCOME_PARTIAL)
	f.Add(encode(requested(), started(1, "webp", 1), completed(1, "webp", "w"), failed(1, "avif"), end, retry, started(2, "avif", 1), completed(2, "avif", "a")))
	f.Add(encode(requested(), &JobCancelRequested{Revision: 1}, end, &WebhookScheduled{Revision: 1, Attempt: 1, Due: timestamppb.New(testTime)},
		&WebhookFailed{Revision: 1, Attempt: 1, Code: "timeout"}, &WebhookDelivered{Revision: 1, Attempt: 1}, &JobDeleted{}))
	f.Add(encode(retry, completed(2, "avif", "a"), final(2, Outcome_OUTCOME_SUCCEEDED), &ArtifactsExpired{Operations: []string{"webp"}},
		&ArtifactReplaced{Revision: 2, Operation: "webp", ReplacedSha256: "w", Artifact: &Artifact{Sha256: "n"}}, &ArtifactsExpired{Source: true}))
	for _, m := range examples(f) {
		f.Add(encode(requested(), m))
	}
	f.Fuzz(func(t *testing.T, all []byte) {
		var s *Job
		for len(all) >= 3 {
			m := kinds[int(all[0])%len(kinds)].ProtoReflect().New().Interface()
			n := min(int(all[1])|int(all[2])<<8, len(all)-3)
			value := all[3 : 3+n]
			if all = all[3+n:]; proto.Unmarshal(value, m) != nil {
				continue
			}
			e, before := at(m), proto.Clone(s)
			next := Fold(s, e)
			require.True(t, proto.Equal(before, s), "%v changed its input", m)
			if !namesTwice(next) {
				require.Same(t, next, Fold(next, e), "%v takes effect twice", m)
			}
			if next != nil {
				_, _, _ = next.Settled(), next.Opened(), eventID(testJob, m)
			}
			s = next
		}
	})
}

// namesTwice says whether a job has an operation twice, which Submit refuses.
func namesTwice(s *Job) bool {
	seen := map[string]bool{}
	for _, op := range s.GetOperations() {
		if seen[op.GetName()] {
			return true
		}
		seen[op.GetName()] = true
	}
	return false
}

// A copy has every field of a job, of its operations and of its webhook: a field that the
// schema gets and copyOf does not fails here.
func TestCopyOfIsWhole(t *testing.T) {
	full := &Job{}
	fill(full.ProtoReflect(), 4)
	next := copyOf(full)
	require.True(t, proto.Equal(full, next), "%v\n%v", full, next)
	// What a fold sets is not the original's.
	next.Phase, next.Webhook.Attempt, next.Operations[0].Attempt = 0, 99, 99
	next.Operations[1] = nil
	require.NotEqual(t, full.GetPhase(), next.GetPhase())
	require.NotEqual(t, full.GetWebhook().GetAttempt(), next.GetWebhook().GetAttempt())
	require.NotEqual(t, full.GetOperations()[0].GetAttempt(), next.GetOperations()[0].GetAttempt())
	require.NotNil(t, full.GetOperations()[1])
	require.True(t, proto.Equal(&Job{}, copyOf(&Job{})))
}

// fill sets every field, down to a depth; lists get two elements.
func fill(m protoreflect.Message, depth int) {
	m.SetUnknown([]byte{0xf8, 0x3f, 1}) // field 1023, which nobody has
	for i := range m.Descriptor().Fields().Len() {
		field := m.Descriptor().Fields().Get(i)
		switch {
		case field.IsMap() || field.ContainingOneof() != nil:
		case field.IsList() && field.Message() != nil:
			for range 2 {
				fill(m.Mutable(field).List().AppendMutable().Message(), depth-1)
			}
		case field.Message() != nil:
			if depth > 0 {
				fill(m.Mutable(field).Message(), depth-1)
			}
		case field.Kind() == protoreflect.StringKind:
			m.Set(field, protoreflect.ValueOfString(field.TextName()))
		case field.Kind() == protoreflect.BytesKind:
			m.Set(field, protoreflect.ValueOfBytes([]byte(field.TextName())))
		case field.Kind() == protoreflect.BoolKind:
			m.Set(field, protoreflect.ValueOfBool(true))
		case field.Kind() == protoreflect.EnumKind:
			m.Set(field, protoreflect.ValueOfEnum(1))
		case field.Kind() == protoreflect.Int32Kind:
			m.Set(field, protoreflect.ValueOfInt32(int32(i)+1))
		case field.Kind() == protoreflect.Int64Kind:
			m.Set(field, protoreflect.ValueOfInt64(int64(i)+1))
		default:
			panic(field.Kind())
		}
	}
}
