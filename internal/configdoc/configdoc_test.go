package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNothingIsStale is `make schemas`' check; without it a test run would not tell.
func TestNothingIsStale(t *testing.T) {
	t.Parallel()
	root, err := moduleRoot()
	require.NoError(t, err)
	require.NoError(t, run(root, true))
}

// repository writes one with a configuration of two packages.
func repository(t *testing.T, own, inner string) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range map[string]string{
		"cmd/pixtools/config.go": "package main\n\nimport (\n\t\"time\"\n\n\t\"github.com/pixtools/pixtools/part\"\n)\n\ntype config struct {\n" + own + "\n}\n",
		"part/part.go":           "package part\n\nimport \"time\"\n\ntype Config struct {\n" + inner + "\n}\n\ntype Limits struct {\n\t// Most is the most.\n\tMost int `env:\"MOST\"`\n}\n",
		"part/part_test.go":      "package part\n",
		"docs/x":                 "",
	} {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return root
}

const (
	described1 = "// Port is where it listens.\n// Beyond it: it ends.\nPort int `env:\"PORT\" envDefault:\"8000\" range:\"1 to 65535\"`\n\n// The part\nPart part.Config\n"
	described2 = "// Wait bounds one call,\n// as PORT does not; see Tries.\n// Beyond it: again, Tries times.\nWait time.Duration `env:\"PART_WAIT\" envDefault:\"3s\"`\n" +
		"// Tries is how many.\nTries int `env:\"PART_TRIES\" unit:\"tries\" envDefault:\"3\"`\n// URL of it.\nURL string `env:\"PART_URL\" secret:\"url\" example:\"a b\"`\n"
)

func TestWritten(t *testing.T) {
	t.Parallel()
	root := repository(t, described1, described2)
	require.NoError(t, run(root, false))
	require.NoError(t, run(root, true))
	document, err := os.ReadFile(filepath.Join(root, "docs", "configuration.md"))
	require.NoError(t, err)
	for _, line := range []string{
		"## The program (`cmd/pixtools/config.go`)",
		"| `PORT` | 8000 | 1 to 65535 | Where it listens. | it ends |",
		"## The part (`part/part.go`)",
		"| `PART_WAIT` | 3s | – | Bounds one call, as `PORT` does not; see `PART_TRIES`. | again, `PART_TRIES` times |",
		"| `PART_TRIES` | 3 tries | – | How many. | – |",
		"| `PART_URL` † | none | – | Of it. | – |",
	} {
		require.Contains(t, string(document), line+"\n")
	}
	example, err := os.ReadFile(filepath.Join(root, ".env.example"))
	require.NoError(t, err)
	require.Contains(t, string(example), "\n# Of it. Or PART_URL_FILE, a file that holds it.\n#PART_URL=\"a b\"\n")
	require.Contains(t, string(example), "\n# ---- The part\n\n# Bounds one call, as PORT does not; see PART_TRIES.\n#PART_WAIT=3s\n")

	// A changed default is stale.
	path := filepath.Join(root, "part", "part.go")
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(content, "\n// unused\n"...), 0o600))
	require.NoError(t, run(root, true))
	require.NoError(t, os.WriteFile(filepath.Join(root, ".env.example"), example[:len(example)-1], 0o600))
	require.ErrorContains(t, run(root, true), ".env.example is stale: a Config has changed; run make generate")
}

func TestFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ own, inner, says string }{
		"no comment at a field":  {described1, described2 + "More int `env:\"PART_MORE\"`\n", "part/part.go: Config.More (PART_MORE) has no comment"},
		"only what is beyond":    {described1, "// Beyond it: nothing.\nMore int `env:\"PART_MORE\"`\n", "Config.More (PART_MORE) has no comment"},
		"no comment at a struct": {"Part part.Config\n", described2, "the field Part has no comment"},
		"another kind of secret": {described1, "// More of it.\nMore int `env:\"PART_MORE\" secret:\"true\"`\n", "the tag secret is \"true\""},
		"two defaults":           {described1, "// More of it.\nMore int `env:\"PORT\" envDefault:\"1\"`\n", `has the default "1", and "8000" elsewhere`},
		"no such struct":         {"// The part\nPart part.Settings\n", "", "part: there is no struct Settings"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorContains(t, run(repository(t, c.own, c.inner), false), c.says)
		})
	}
}

// TestInnerStructs: what a Config has of another is told with it, once.
func TestInnerStructs(t *testing.T) {
	t.Parallel()
	root := repository(t, described1, "Inner limits.Limits\nAlso *limits.Limits\n")
	path := filepath.Join(root, "part", "part.go")
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte("package part\n\nimport limits \"github.com/pixtools/pixtools/part\"\n"+string(content[len("package part\n\nimport \"time\"\n"):])), 0o600))
	sections, err := read(root)
	require.NoError(t, err)
	require.Len(t, sections, 2)
	require.Len(t, sections[1].Settings, 1)
	require.Equal(t, "MOST", sections[1].Settings[0].Variable)
}
