package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// shortKills is what a run of all tests has time for; make faults does more.
const shortKills = 20

// TestKills: processes of every role are killed under load, and nothing is lost, doubled or
// stuck.
func TestKills(t *testing.T) {
	o := options{scenario: "kills", seed: 1, kills: shortKills, clients: 4, patience: 2 * time.Minute, logLevel: "warn", out: t.Output(), dir: t.TempDir()}
	var err error
	o.binary, err = build(t.Context(), o.dir, "")
	require.NoError(t, err)
	noBugIsBuiltIn(t, o.binary)
	require.NoError(t, play(t.Context(), o))
}

// noBugIsBuiltIn: each deliberate bug has its one switch in the source, and without the
// build tag nothing of it is in the program.
func noBugIsBuiltIn(t *testing.T, binary string) {
	program, err := os.ReadFile(binary)
	require.NoError(t, err)
	switches := map[string]int{}
	root := os.DirFS("../..")
	require.NoError(t, fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (path == "build" || path == "data") {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(root, path)
		for _, b := range bugs() {
			switches[b.name] += strings.Count(string(source), `bug.On("`+b.name+`")`)
		}
		return err
	}))
	for _, b := range bugs() {
		require.Equal(t, 1, switches[b.name], b.name)
		require.False(t, bytes.Contains(program, []byte(b.name)), b.name)
	}
}
