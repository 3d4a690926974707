package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/audit"
	"github.com/pixtools/pixtools/internal/blob"
	"github.com/pixtools/pixtools/processors"
)

// otherModel is the built-in model with some of its weights gone, under a hash of its own.
func otherModel(t *testing.T) (dir, hash string) {
	t.Helper()
	dir = t.TempDir()
	weights, err := os.ReadFile("../../models/denoise.onnx")
	require.NoError(t, err)
	clear(weights[len(weights)/2 : len(weights)/2+2000])
	hash = fmt.Sprintf("%x", sha256.Sum256(weights))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "denoise.onnx"), weights, 0o600))
	content, err := os.ReadFile("../../models/model.json")
	require.NoError(t, err)
	card := map[string]any{}
	require.NoError(t, json.Unmarshal(content, &card))
	card["sha256"] = hash
	content, err = json.Marshal(card)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.json"), content, 0o600))
	return dir, hash
}

// with sets variables for the commands of a program.
func (p *program) with(variables ...string) *program {
	other := *p
	other.env = append(slices.Clone(p.env), variables...)
	return &other
}

// TestReexecute: done again, operations give the same bytes; with another model, a picture
// that is compared; without its source, nothing.
func TestReexecute(t *testing.T) {
	p := run(t, embeddedEnv(t))
	first := p.submit(file("a.png", "image/png", pngOf(t, grainy(200, 150, 25))), field("operations", `["webp","denoise","jpg"]`), field("operation_params", `{"webp":{"quality":40}}`))
	second := p.submit(file("b.png", "image/png", pngOf(t, grainy(160, 150, 25))), field("operations", `["avif"]`))
	require.Equal(t, "SUCCEEDED", *p.ended(first).Outcome)
	require.Equal(t, "SUCCEEDED", *p.ended(second).Outcome)
	again := []string{"--read-model=false", "--artifacts=none", "--reexecute=100"}
	require.Equal(t, map[processors.Verdict]int64{processors.Equal: 4}, p.verify(0, again...).summary.Reexecuted)
	require.Equal(t, map[processors.Verdict]int64{processors.Equal: 2}, p.verify(0, "--reexecute=2").summary.Reexecuted)

	model, _ := otherModel(t)
	within := p.with("DENOISE_MODEL="+model, "REEXECUTE_MIN_PSNR=10").verify(0, again...).summary
	require.Equal(t, map[processors.Verdict]int64{processors.Equal: 3, processors.Within: 1}, within.Reexecuted)
	differs := p.with("DENOISE_MODEL="+model, "REEXECUTE_MIN_PSNR=100").verify(1, again...)
	require.Equal(t, map[processors.Verdict]int64{processors.Equal: 3, processors.Different: 1}, differs.summary.Reexecuted)
	require.Len(t, differs.of(audit.Reexecuted, first), 1)
	require.Contains(t, differs.findings[0].Message, "less than REEXECUTE_MIN_PSNR, 100.00 dB")

	store, err := blob.New(t.Context(), p.reach().Blob)
	require.NoError(t, err)
	require.NoError(t, store.List(t.Context(), blob.RawPrefix+second+"/", func(o blob.Object) error { return store.Delete(t.Context(), o.Key) }))
	lacking := p.verify(0, again...).summary
	require.Equal(t, map[processors.Verdict]int64{processors.Equal: 3, processors.Skipped: 1}, lacking.Reexecuted)
	require.Equal(t, map[string]int64{"source missing": 1}, lacking.Skipped)
	// A job of the past, whose source has gone in its time.
	p.kill()
	p.args = []string{"serve", "--roles=api,projector"} // nobody works at it
	p.start()
	p.healthy()
	id, then := uuid.NewString(), time.Now().Add(-40*24*time.Hour)
	gone := strings.Repeat("ab", 32)
	request := events.New(id, then, "pixtools/test", "", &events.JobRequested{Tenant: "default", Operations: []*events.Operation{{Name: "webp"}},
		Source: &events.Source{Key: "raw/" + id + "/" + gone, Sha256: gone, Bytes: 1, Format: "png"}})
	started := events.Because(request, then, "pixtools/test", &events.OperationStarted{Revision: 1, Operation: "webp", Attempt: 1})
	done := events.Because(started, then, "pixtools/test", &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1,
		Artifact: &events.Artifact{Key: "processed/" + id + "/webp/" + gone + ".webp", Sha256: gone, Bytes: 2}})
	appendRecords(t, p.reach(), request, started, done, events.Because(done, then, "pixtools/test", &events.JobFinalized{Revision: 1,
		Outcome: events.Outcome_OUTCOME_SUCCEEDED, Totals: &events.Totals{Completed: 1, ArtifactBytes: 2}}))
	lacking = p.verify(0, again...).summary
	require.Equal(t, map[string]int64{"source missing": 1, "source expired": 1}, lacking.Skipped)

	for _, bad := range []string{"9.9", "100.1", "NaN"} {
		_, complaints, status := p.with("REEXECUTE_MIN_PSNR=" + bad).command(append([]string{"verify"}, again...)...)
		require.Equal(t, 2, status)
		require.Contains(t, complaints, "REEXECUTE_MIN_PSNR")
	}
	_, complaints, status := p.command("verify", "--reexecute=-1")
	require.Equal(t, 2, status)
	require.Contains(t, complaints, "--reexecute is -1: it must be from 0 to 100000 operations")
}
