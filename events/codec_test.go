package events

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

var update = flag.Bool("update", false, "write golden files of events that have none; existing ones are never changed")

const corpus = "../schemas/corpus"

// examples is one filled-in message per event, as written by this version.
func examples(t testing.TB) []proto.Message {
	params, err := structpb.NewStruct(map[string]any{"quality": 80})
	require.NoError(t, err)
	artifact := &Artifact{Key: "processed/" + testJob + "/bb.webp", Sha256: "bb", Bytes: 7, Width: 4, Height: 3, Format: "webp"}
	return []proto.Message{
		&JobRequested{Tenant: "default", Operations: []*Operation{{Name: "webp", Parameters: params}, {Name: "avif"}},
			Source:   &Source{Key: "raw/" + testJob + "/aa", Sha256: "aa", Bytes: 10, Width: 4, Height: 3, Format: "png"},
			FileName: &Sealed{KeyId: "k1", Ciphertext: []byte{1, 2, 3}}, WebhookUrl: &Sealed{KeyId: "k1", Ciphertext: []byte{4, 5}},
			IdempotencyFingerprint: []byte{9, 8, 7}, IdempotencyJobId: "0f1e2d3c-0000-5000-8000-000000000001"},
		&OperationStarted{Revision: 1, Operation: "webp", Attempt: 1, Worker: "host/1"},
		&OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1, Artifact: artifact,
			Duration: durationpb.New(20 * time.Millisecond), CpuTime: durationpb.New(12 * time.Millisecond), Engine: "libvips 8.18.7", ModelSha256: "cc"},
		&OperationFailed{Revision: 1, Operation: "avif", Attempt: 2, Kind: FailureKind_FAILURE_KIND_INPUT, Code: "corrupt_image", Message: "the file ends early"},
		&JobFinalized{Revision: 1, Outcome: Outcome_OUTCOME_PARTIAL, Totals: &Totals{Completed: 1, Failed: 1, ArtifactBytes: 7, CpuTime: durationpb.New(time.Second)}},
		&OperationRetryRequested{Revision: 2, Operations: []string{"avif"}, RequestedAt: timestamppb.New(testTime), Request: &JobRequested{Tenant: "default",
			Operations: []*Operation{{Name: "webp"}, {Name: "avif"}, {Name: "png"}, {Name: "jpg"}},
			Source:     &Source{Key: "raw/" + testJob + "/aa", Sha256: "aa", Bytes: 10, Width: 4, Height: 3, Format: "png"}},
			Completed: []*OperationCompleted{{Revision: 1, Operation: "webp", Attempt: 1, Artifact: artifact}},
			Failed:    []*OperationFailed{{Revision: 1, Operation: "png", Attempt: 1, Kind: FailureKind_FAILURE_KIND_INPUT, Code: "corrupt", Message: "the file ends early"}},
			Cancelled: []string{"jpg"}},
		&JobCancelRequested{Revision: 1, Reason: "not wanted"},
		&ArtifactReplaced{Revision: 1, Operation: "webp", Artifact: artifact, ReplacedSha256: "dd", Campaign: "c1", ModelSha256: "ee", Engine: "libvips 8.18.7"},
		&WebhookScheduled{Revision: 1, Attempt: 1, Due: timestamppb.New(testTime), RequestedAt: timestamppb.New(testTime), FinalizedAt: timestamppb.New(testTime),
			Request: &JobRequested{Tenant: "default", Operations: []*Operation{{Name: "webp"}, {Name: "png"}, {Name: "jpg"}},
				Source:     &Source{Key: "raw/" + testJob + "/aa", Sha256: "aa", Bytes: 10, Width: 4, Height: 3, Format: "png"},
				WebhookUrl: &Sealed{KeyId: "k1", Ciphertext: []byte{4, 5}}},
			Outcome:   Outcome_OUTCOME_PARTIAL,
			Completed: []*OperationCompleted{{Revision: 1, Operation: "webp", Attempt: 1, Artifact: artifact}},
			Failed:    []*OperationFailed{{Revision: 1, Operation: "png", Attempt: 1, Kind: FailureKind_FAILURE_KIND_INPUT, Code: "corrupt", Message: "the file ends early"}},
			Cancelled: []string{"jpg"}},
		&WebhookDelivered{Revision: 1, Attempt: 1, HttpStatus: 204},
		&WebhookFailed{Revision: 1, Attempt: 1, HttpStatus: 500, Code: "status", Message: "answered 500", Final: true},
		&ArtifactsExpired{Operations: []string{"webp"}, Source: true, Revision: 1, Sha256: []string{"bb"}},
		&JobDeleted{Reason: "asked by its owner"},
	}
}

// golden is a record as a file: everything a consumer sees.
type golden struct {
	Key     string            `json:"key"`
	Headers map[string]string `json:"headers"`
	Value   string            `json:"value_hex"`
}

func goldenOf(r *kgo.Record) golden {
	g := golden{Key: string(r.Key), Headers: map[string]string{}, Value: hex.EncodeToString(r.Value)}
	for _, h := range r.Headers {
		g.Headers[h.Key] = string(h.Value)
	}
	return g
}

// readExample is a golden record of the corpus as a consumer gets it.
func readExample(t *testing.T, file string) *kgo.Record {
	t.Helper()
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	var g golden
	require.NoError(t, json.Unmarshal(raw, &g), file)
	value, err := hex.DecodeString(g.Value)
	require.NoError(t, err)
	r := &kgo.Record{Key: []byte(g.Key), Value: value}
	for k, v := range g.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
	}
	return r
}

// version of an event's example: raised when the message gets a field, so that the new
// file lies beside the old.
var version = map[string]int{"JobRequested": 2, "OperationRetryRequested": 2, "ArtifactReplaced": 2, "ArtifactsExpired": 2, "WebhookScheduled": 2}

// Every event that this version writes has an example in the corpus, and this
// version still writes it so. A changed message gets a new file beside the old.
func TestCorpusHoldsWhatWeWrite(t *testing.T) {
	found := map[string]bool{}
	for _, m := range examples(t) {
		e := at(m)
		e.CausationID, e.TraceParent = "cause", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		found[e.Type()] = true
		r, err := e.Record()
		require.NoError(t, err)
		name := strings.TrimPrefix(e.Type(), typePrefix)
		requireExample(t, fmt.Sprintf("%s.%d.json", name, max(1, version[name])), r)
	}
	for _, m := range Catalogue() {
		require.True(t, found[string(m.ProtoReflect().Descriptor().FullName())], "%T has no example", m)
	}
}

// requireExample says that the record is the example that the corpus has under this name.
func requireExample(t *testing.T, name string, r *kgo.Record) {
	t.Helper()
	file := filepath.Join(corpus, name)
	want, err := json.MarshalIndent(goldenOf(r), "", "  ")
	require.NoError(t, err)
	have, err := os.ReadFile(file)
	if os.IsNotExist(err) && *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, append(want, '\n'), 0o644))
		return
	}
	require.NoError(t, err, "no example; run go test ./events -update")
	require.JSONEq(t, string(have), string(want), file)
}

// Every event ever released decodes, loses nothing, and keeps its id.
func TestCorpusDecodesForEver(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(corpus, "*.json"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), len(Catalogue()))
	for _, file := range files {
		e, err := Decode(readExample(t, file))
		require.NoError(t, err, file)
		require.Empty(t, e.Message.ProtoReflect().GetUnknown(), file)
		require.Equal(t, e.ID, eventID(e.JobID, e.Message), "%s: the derived id has changed", file)
	}
}

func TestDecodeNamesWhatIsWrong(t *testing.T) {
	good := func() *kgo.Record {
		r, err := at(requested()).Record()
		require.NoError(t, err)
		return r
	}
	set := func(key, value string) func(*kgo.Record) {
		return func(r *kgo.Record) {
			for i := range r.Headers {
				if r.Headers[i].Key == key {
					r.Headers[i].Value = []byte(value)
				}
			}
		}
	}
	_, err := Decode(good())
	require.NoError(t, err)
	for name, c := range map[string]struct {
		change func(*kgo.Record)
		says   string
	}{
		"no id":         {set(HeaderID, ""), HeaderID},
		"no type":       {set(HeaderType, ""), HeaderType},
		"other version": {set(HeaderSpecVersion, "0.3"), HeaderSpecVersion},
		"other subject": {set(HeaderSubject, "x"), HeaderSubject},
		"time":          {set(HeaderTime, "yesterday"), HeaderTime},
		"no headers":    {func(r *kgo.Record) { r.Headers = nil }, HeaderSpecVersion},
		"value":         {func(r *kgo.Record) { r.Value = []byte{0xff, 0xff} }, "value"},
		"key in capitals": {func(r *kgo.Record) {
			id := "018F0000-0000-7000-8000-000000000001"
			r.Key = []byte(id)
			set(HeaderSubject, id)(r)
		}, "is no id"},
		"key":             {func(r *kgo.Record) { r.Key = []byte("x"); set(HeaderSubject, "x")(r) }, "is no id"},
		"part of events":  {set(HeaderType, "pixtools.events.v1.Source"), "not an event"},
		"missing payload": {func(r *kgo.Record) { r.Value = []byte{0x0a} }, "value"},
	} {
		r := good()
		c.change(r)
		_, err := Decode(r)
		var malformed *MalformedError
		require.ErrorAs(t, err, &malformed, name)
		require.ErrorContains(t, err, c.says, name)
	}
	for _, kind := range []string{"pixtools.events.v1.FromTheFuture", "google.protobuf.Duration"} {
		r := good()
		set(HeaderType, kind)(r)
		_, err := Decode(r)
		require.ErrorIs(t, err, ErrUnknownType, kind)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("pixtools.events.v1.JobRequested", []byte{0x0a, 1, 'x'})
	f.Fuzz(func(t *testing.T, kind string, value []byte) {
		r, err := at(requested()).Record()
		require.NoError(t, err)
		r.Value = value
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: HeaderType, Value: []byte(kind)})
		if e, err := Decode(r); err == nil {
			Fold(nil, e)
		}
	})
}

func TestIdentityIsDerived(t *testing.T) {
	require.Equal(t, JobID("a", "k"), JobID("a", "k"))
	require.NotEqual(t, JobID("a", "b/c"), JobID("a/b", "c"))
	require.Equal(t, at(started(1, "webp", 1)).ID, New(testJob, testTime.Add(time.Hour), "elsewhere", "other", started(1, "webp", 1)).ID)
	seen := map[string]string{}
	for _, m := range []proto.Message{started(1, "webp", 1), started(1, "webp", 2), started(2, "webp", 1), started(1, "avif", 1),
		completed(1, "webp", "a"), failed(1, "webp"), final(1, 1), final(2, 1)} {
		id := at(m).ID
		require.Empty(t, seen[id])
		seen[id] = at(m).Type()
	}
}

func TestPositionTokens(t *testing.T) {
	p := Position{Log: [16]byte{1, 2, 3}, Partition: 47, Offset: 1 << 40}
	back, err := ParsePosition(p.Token())
	require.NoError(t, err)
	require.Equal(t, p, back)
	for _, bad := range []string{"", "x", "!", p.Token() + "AA", p.Token()[:20]} {
		_, err := ParsePosition(bad)
		require.ErrorIs(t, err, ErrPosition, bad)
	}
}
