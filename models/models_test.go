package models

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBuiltIn(t *testing.T) {
	m, err := Load("")
	require.NoError(t, err)
	require.NotEmpty(t, m.Name)
	require.Len(t, m.Weights, int(m.Bytes))
	require.Less(t, m.MACsPerPixel, 667e3/6, "DnCNN's 667 kMAC by six")
}

// folder holds a copy of the built-in model, with fields of its description replaced.
func folder(t *testing.T, replaced map[string]any) string {
	dir := t.TempDir()
	for _, name := range []string{cardName, "denoise.onnx"} {
		content, err := embedded.ReadFile(name)
		require.NoError(t, err)
		if name == cardName {
			var card map[string]any
			require.NoError(t, json.Unmarshal(content, &card))
			for field, value := range replaced {
				card[field] = value
			}
			content, err = json.Marshal(card)
			require.NoError(t, err)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	return dir
}

func TestLoadFromDisk(t *testing.T) {
	builtIn, err := Load("")
	require.NoError(t, err)
	dir := folder(t, nil)
	for _, path := range []string{dir, filepath.Join(dir, cardName)} {
		m, err := Load(path)
		require.NoError(t, err)
		require.Equal(t, builtIn, m)
	}
}

func TestTamperedWeights(t *testing.T) {
	dir := folder(t, nil)
	path := filepath.Join(dir, "denoise.onnx")
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, tamper := range map[string]func() []byte{
		"one bit": func() []byte { c := append([]byte(nil), content...); c[len(c)/2] ^= 1; return c },
		"cut off": func() []byte { return content[:len(content)-1] },
	} {
		require.NoError(t, os.WriteFile(path, tamper(), 0o600))
		_, err = Load(dir)
		require.Error(t, err, name)
		wanted, loadErr := Load("")
		require.NoError(t, loadErr)
		for _, word := range []string{dir, "denoise.onnx", wanted.SHA256, "anew"} {
			require.ErrorContains(t, err, word, name)
		}
	}
}

func TestRefusedDescriptions(t *testing.T) {
	for field, values := range map[string][]any{
		"file":     {"", ".", "..", "../denoise.onnx", "a/denoise.onnx"},
		"sha256":   {"", "abc", "ZZ" + string(make([]byte, 62))},
		"bytes":    {0, maxWeightBytes + 1},
		"input":    {""},
		"output":   {""},
		"multiple": {0, -8, maxMultiple + 1},
		"halo":     {-8, 12, maxHalo + 8},
	} {
		for _, value := range values {
			_, err := Load(folder(t, map[string]any{field: value}))
			require.ErrorContains(t, err, cardName, "%s %v", field, value)
			require.ErrorContains(t, err, field+" is", "%s %v", field, value)
		}
	}
	_, err := Load(folder(t, map[string]any{"multiple": maxMultiple, "halo": maxHalo}))
	require.NoError(t, err, "at the limits")
	_, err = Load(folder(t, map[string]any{"bytes": 0, "halo": -8}))
	require.ErrorContains(t, err, "bytes is 0", "every fault at once")
	require.ErrorContains(t, err, "halo is -8")
}

func TestNoModel(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, cardName), make([]byte, maxCardBytes+1), 0o600))
	_, err = Load(dir)
	require.ErrorContains(t, err, "more than 1048576 bytes")
	require.NoError(t, os.WriteFile(filepath.Join(dir, cardName), []byte("no json"), 0o600))
	_, err = Load(dir)
	require.ErrorContains(t, err, cardName)
}
