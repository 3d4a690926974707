// Package models holds the denoiser's weights and their description, and reads others
// that an operator brings. The code that trains and imports them is in training/.
package models

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed denoise.onnx model.json
var embedded embed.FS

// cardName is the description's name, in a model's folder.
const cardName = "model.json"

// Bounds of a model. What lies beyond is a mistake, or a file that is none.
const (
	maxCardBytes   = 1 << 20
	maxWeightBytes = 512 << 20
	maxMultiple    = 256  // pixels
	maxHalo        = 1024 // pixels
)

// Model is a network for denoising, as its model.json describes it. What that says of
// training, data and quality is for people, and is not read here.
type Model struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// File holds the weights, in the folder of model.json.
	File       string `json:"file"`
	SHA256     string `json:"sha256"`
	Bytes      int64  `json:"bytes"`
	Parameters int64  `json:"parameters"`
	// MACsPerPixel is the cost: multiply-adds for each pixel.
	MACsPerPixel float64 `json:"macs_per_pixel"`
	// Input and Output are float32, 1 x 3 x height x width, with values from 0 to 1.
	Input  string `json:"input"`
	Output string `json:"output"`
	// Multiple divides every width and height that the network takes, in pixels.
	Multiple int `json:"multiple"`
	// Halo is how far a pixel's result depends on others, in pixels; a multiple of Multiple.
	Halo int `json:"halo"`

	Weights []byte `json:"-"`
}

// Load reads the model that path names: a model.json or its folder, or, where path is
// empty, the one built into this program. Weights that are not those the description
// promises are refused: their results would carry another model's name.
func Load(path string) (Model, error) {
	if path == "" {
		model, err := load(embedded, cardName)
		if err != nil {
			return Model{}, fmt.Errorf("the model built into this program: %w", err)
		}
		return model, nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, cardName)
	}
	folder := filepath.Dir(path)
	model, err := load(os.DirFS(folder), filepath.Base(path))
	if err != nil {
		return Model{}, fmt.Errorf("the model in %s: %w", folder, err)
	}
	return model, nil
}

func load(folder fs.FS, card string) (Model, error) {
	content, err := read(folder, card, maxCardBytes)
	if err != nil {
		return Model{}, err
	}
	var m Model
	if err := json.Unmarshal(content, &m); err != nil {
		return Model{}, fmt.Errorf("%s: %w", card, err)
	}
	if err := m.check(); err != nil {
		return Model{}, fmt.Errorf("%s: %w", card, err)
	}
	if m.Weights, err = read(folder, m.File, maxWeightBytes); err != nil {
		return Model{}, err
	}
	found := sha256.Sum256(m.Weights)
	if hex.EncodeToString(found[:]) != m.SHA256 {
		return Model{}, fmt.Errorf("%s has %d bytes with SHA-256 %x, and %s promises %d bytes with %s: "+
			"one of the two was changed or cut off; bring both anew from where the model was made",
			m.File, len(m.Weights), found, card, m.Bytes, m.SHA256)
	}
	return m, nil
}

// read bounds what is read before it is held in memory.
func read(folder fs.FS, name string, most int64) ([]byte, error) {
	file, err := folder.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return content, err
}

// check names every field that is out of range.
func (m Model) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if m.File == "" || m.File != filepath.Base(m.File) || !fs.ValidPath(m.File) || m.File == "." {
		fault("file is %q: it must be the name of a file in the same folder", m.File)
	}
	if sum, err := hex.DecodeString(m.SHA256); err != nil || len(sum) != sha256.Size || hex.EncodeToString(sum) != m.SHA256 {
		fault("sha256 is %q: it must be %d lower-case hexadecimal digits", m.SHA256, 2*sha256.Size)
	}
	if m.Bytes < 1 || m.Bytes > maxWeightBytes {
		fault("bytes is %d: it must be from 1 to %d", m.Bytes, maxWeightBytes)
	}
	if m.Input == "" {
		fault("input is empty: it must name the network's input")
	}
	if m.Output == "" {
		fault("output is empty: it must name the network's output")
	}
	if m.Multiple < 1 || m.Multiple > maxMultiple {
		fault("multiple is %d: it must be from 1 to %d pixels", m.Multiple, maxMultiple)
	} else if m.Halo < 0 || m.Halo > maxHalo || m.Halo%m.Multiple != 0 {
		fault("halo is %d: it must be from 0 to %d pixels and a multiple of %d, the field multiple", m.Halo, maxHalo, m.Multiple)
	}
	return errors.Join(faults...)
}
