package commands

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/events"
)

func TestReplace(t *testing.T) {
	job := ended(t)
	other := &events.Artifact{Key: "k2", Sha256: "bb", Bytes: 6}
	promote := Replace{Operation: "webp", Replaced: "aa", Artifact: other, Engine: "e2", ModelSHA256: "m2", Campaign: "c/promote", At: noon.Add(time.Hour)}
	back := Replace{Operation: "webp", Replaced: "bb", Artifact: job.GetOperations()[0].GetArtifact(), Engine: "e", Campaign: "c/rollback", At: noon.Add(2 * time.Hour)}
	first := apply(t, &job, promote)
	op := job.GetOperations()[0]
	require.Equal(t, []string{"bb", "e2", "m2"}, []string{op.GetArtifact().GetSha256(), op.GetEngine(), op.GetModelSha256()})
	none, err := promote.Decide(job)
	require.NoError(t, err)
	require.Empty(t, none, "it is there already")
	require.Same(t, job, events.Fold(job, first), "a repeat")
	second := apply(t, &job, back)
	op = job.GetOperations()[0]
	require.Equal(t, []string{"aa", "e", ""}, []string{op.GetArtifact().GetSha256(), op.GetEngine(), op.GetModelSha256()})
	require.NotEqual(t, first.ID, second.ID)

	cause, waits := open(t, "webp")
	gone := events.Fold(job, events.New(job.GetId(), noon, "t", "", &events.ArtifactsExpired{Operations: []string{"webp"}}))
	deleted := events.Fold(job, events.New(job.GetId(), noon, "t", "", &events.JobDeleted{}))
	for _, c := range []struct {
		state   *events.Job
		command Replace
		why     string
	}{
		{waits, promote, "the job is open"},
		{deleted, promote, "the job was deleted"},
		{nil, promote, "the job was deleted"},
		{gone, promote, "the result has expired"},
		{job, Replace{Operation: "webp", Replaced: "cc", Artifact: other}, "another result than the one to replace"},
		{job, Replace{Operation: "avif", Replaced: "aa", Artifact: other}, "avif has no result"},
		{job, Replace{Operation: "png", Replaced: "aa", Artifact: other}, "does not ask for png"},
	} {
		_, err := c.command.Decide(c.state)
		var conflict *Conflict
		require.ErrorAs(t, err, &conflict, c.why)
		require.Contains(t, conflict.Message, c.why)
	}
	require.NotEmpty(t, cause.ID)
}

// A retry that was decided before a replacement, and comes after it, tells of the artifact
// that was replaced: the job keeps the new one, and what made it.
func TestRetryBesideAReplacement(t *testing.T) {
	job := ended(t)
	retry, err := Retry{MaxRevisions: 2, At: noon}.Decide(job)
	require.NoError(t, err)
	apply(t, &job, Replace{Operation: "webp", Replaced: "aa", Artifact: &events.Artifact{Key: "k2", Sha256: "bb"}, Engine: "e2", ModelSHA256: "m2", Campaign: "c", At: noon})
	job = events.Fold(job, retry[0])
	require.Equal(t, int32(2), job.GetRevision())
	op := job.GetOperations()[0]
	require.Equal(t, []string{"bb", "e2", "m2"}, []string{op.GetArtifact().GetSha256(), op.GetEngine(), op.GetModelSha256()})
}

func TestWhere(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	made := &events.OperationState{Engine: "libvips 8.18.7, onnxruntime 1.30.0", ModelSha256: hash}
	for text, want := range map[string]bool{
		"":                 true,
		"  ":               true,
		"model = " + hash:  true,
		"model!=" + hash:   false,
		"model != ''":      true,
		`model = ""`:       false,
		"engine = libvips": false,
		"engine != 'libvips 8.18.7' and model=" + hash:  true,
		`engine = "libvips 8.18.7, onnxruntime 1.30.0"`: true,
		"model != " + hash + " and engine != x":         false,
	} {
		where, err := ParseWhere(text)
		require.NoError(t, err, text)
		require.Equal(t, want, where.Match(made), text)
	}
	for text, want := range map[string]string{
		"modell != x":              `at "modell", at character 1: model or engine must stand there`,
		"model":                    "at its end: = or != must stand there",
		"model ! x":                `at "!", at character 7: = or != must stand there`,
		"model =":                  "at its end: a value must stand there",
		"model = abc":              `at "abc", at character 9: a model is named by its SHA-256`,
		"model = " + hash + "0":    "a model is named by its SHA-256",
		"model = " + hash[1:]:      "a model is named by its SHA-256",
		"engine = libvips 8.18.7":  `at "8.18.7", at character 18: and must stand there`,
		"engine = a and":           "at its end: model or engine must stand there",
		"engine = a or engine = b": `at "or", at character 12: and must stand there`,
		"engine = 'a":              "the quote at character 10 is not closed",
		"engine == a":              `at "=", at character 9: a value must stand there`,
		"engine = " + strings.Repeat("x", MaxWhereBytes-8): "it has 1001 bytes; 1000 are the most",
	} {
		_, err := ParseWhere(text)
		require.ErrorContains(t, err, want, text)
	}
	for _, n := range []int{MaxWhereBytes - 10, MaxWhereBytes - 9} {
		_, err := ParseWhere("engine = " + strings.Repeat("x", n))
		require.NoError(t, err)
	}
}

func FuzzParseWhere(f *testing.F) {
	f.Add("model != '' and engine=\"a b\"")
	f.Fuzz(func(t *testing.T, text string) {
		where, err := ParseWhere(text)
		if err != nil {
			require.Nil(t, where)
		}
	})
}
