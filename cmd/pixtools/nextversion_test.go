package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	"github.com/pixtools/pixtools/events"
)

// The next version of the program differs from this one as a next version may (docs/adr, "What may
// change between two versions"): it knows an event type more, JobNoted, a field more in
// JobRequested and two more in the state, keeps what they tell in a column of a migration of its
// own, and writes them with each submission.
//
// It is this source, with what follows laid over it by `go build -overlay`: so it is always next
// to what is here, and nothing of it is in the program. What is generated from the schema is
// generated from the changed one, by the generator that we use.

// edits are texts that stand once in a file, and what the next version has in their place.
var edits = []struct{ file, here, next string }{
	{"commands/submit.go", `	e := events.New(c.JobID, c.At, "pixtools/api", c.RequestID, m)
`, `	m.Note = "noted at once"
	e := events.New(c.JobID, c.At, "pixtools/api", c.RequestID, m)
`},
	{"commands/submit.go", "	return []events.Event{e}, nil\n", `	return []events.Event{e, events.Because(e, c.At, e.Source, &events.JobNoted{Text: "noted later"})}, nil
`},
	{"api/process.go", "	token, err := s.append(ctx, decided[0])\n", `	token, err := s.append(ctx, decided[0])
	if err == nil {
		token, err = s.append(ctx, decided[1])
	}
`},
	{"events/identity.go", "	case *JobDeleted:\n", "	case *JobNoted:\n		return 1, \"\", 0, \"\"\n	case *JobDeleted:\n"},
	{"events/codec.go", "(*JobDeleted)(nil),\n", "(*JobDeleted)(nil), (*JobNoted)(nil),\n"},
	{"events/fold.go", "	case *JobDeleted:\n", "	case *JobNoted:\n		return foldNoted(s, m)\n	case *JobDeleted:\n"},
	{"events/fold.go", "	next := &Job{\n		Id: s.Id,", "	next := &Job{\n		Note: s.Note, Noted: s.Noted, Id: s.Id,"},
	{"events/fold.go", "	next := &Job{\n		Id: e.JobID,", "	next := &Job{\n		Note: m.GetNote(), Id: e.JobID,"},
	{"projections/projector.go", `		return fmt.Errorf("write the states of %d jobs: %w", len(ids), err)
	}
	return nil
`, `		return fmt.Errorf("write the states of %d jobs: %w", len(ids), err)
	}
	return writeNoted(ctx, tx, changed)
`},
	{"projections/rebuild.go", `"results_since", "key_id"}`, `"results_since", "key_id", "noted"}`},
	{"projections/rebuild.go", "keyID(job)}, nil\n", "keyID(job), noted(job)}, nil\n"},
}

// nextVersion builds it and gives the path of the program.
func nextVersion(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	work := t.TempDir()
	texts := nextSchema(t, root)
	for _, e := range edits {
		if _, have := texts[e.file]; !have {
			raw, err := os.ReadFile(filepath.Join(root, e.file))
			require.NoError(t, err)
			texts[e.file] = string(raw)
		}
		require.Equal(t, 1, strings.Count(texts[e.file], e.here), "%s has changed: see to it that the next version still differs as described; it is to stand there once:\n%s", e.file, e.here)
		texts[e.file] = strings.Replace(texts[e.file], e.here, e.next, 1)
	}
	migrations, err := filepath.Glob(filepath.Join(root, "projections", "migrations", "*.sql"))
	require.NoError(t, err)
	for at, from := range map[string]string{"events/next.go": "fold.go", "projections/next.go": "projection.go",
		fmt.Sprintf("projections/migrations/%05d_next.sql", len(migrations)+1): "migration.sql"} {
		raw, err := os.ReadFile(filepath.Join("testdata", "nextversion", from))
		require.NoError(t, err)
		texts[at] = string(raw)
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for name, text := range texts {
		beside := filepath.Join(work, strings.ReplaceAll(name, "/", "_"))
		require.NoError(t, os.WriteFile(beside, []byte(text), 0o644))
		overlay.Replace[filepath.Join(root, name)] = beside
	}
	raw, err := json.Marshal(overlay)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(work, "overlay.json"), raw, 0o644))
	binary := filepath.Join(work, "pixtools-next")
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(work, "overlay.json"), "-o", binary, "./cmd/pixtools")
	build.Dir = root
	said, err := build.CombinedOutput()
	require.NoError(t, err, "%s", said)
	return binary
}

// nextSchema generates the Go code of the next version's schema.
func nextSchema(t *testing.T, root string) map[string]string {
	t.Helper()
	text := func(name string, number int32) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{Name: &name, JsonName: &name, Number: &number,
			Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()}
	}
	message := func(of *descriptorpb.FileDescriptorProto, name string) *descriptorpb.DescriptorProto {
		i := slices.IndexFunc(of.GetMessageType(), func(m *descriptorpb.DescriptorProto) bool { return m.GetName() == name })
		return of.GetMessageType()[i]
	}
	told, state := protodesc.ToFileDescriptorProto(events.File_pixtools_events_v1_events_proto), protodesc.ToFileDescriptorProto(events.File_pixtools_state_v1_job_proto)
	requested, job := message(told, "JobRequested"), message(state, "Job")
	requested.Field = append(requested.Field, text("note", 100))
	job.Field = append(job.Field, text("note", 100), text("noted", 101))
	told.MessageType = append(told.MessageType, &descriptorpb.DescriptorProto{Name: proto.String("JobNoted"), Field: []*descriptorpb.FieldDescriptorProto{text("text", 1)}})

	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: []string{told.GetName(), state.GetName()}, Parameter: proto.String("module=github.com/pixtools/pixtools")}
	for i := range events.File_pixtools_events_v1_events_proto.Imports().Len() {
		request.ProtoFile = append(request.ProtoFile, protodesc.ToFileDescriptorProto(protoreflect.FileDescriptor(events.File_pixtools_events_v1_events_proto.Imports().Get(i))))
	}
	request.ProtoFile = append(request.ProtoFile, told, state)
	raw, err := proto.Marshal(request)
	require.NoError(t, err)
	generator := exec.CommandContext(t.Context(), "go", "run", "google.golang.org/protobuf/cmd/protoc-gen-go")
	generator.Dir, generator.Stdin = root, bytes.NewReader(raw)
	var complaints bytes.Buffer
	generator.Stderr = &complaints
	out, err := generator.Output()
	require.NoError(t, err, "%s", complaints.String())
	var generated pluginpb.CodeGeneratorResponse
	require.NoError(t, proto.Unmarshal(out, &generated))
	require.Empty(t, generated.GetError())
	texts := map[string]string{}
	for _, f := range generated.GetFile() {
		texts[f.GetName()] = f.GetContent()
	}
	return texts
}
