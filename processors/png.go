package processors

import (
	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/processors/engine"
)

// pngEffort makes it as small as Pillow's optimize=True does, in less time. A single pass
// at 6 takes a fifth of that and comes out up to a tenth larger.
const pngEffort = 9

var png = Operation{Name: "png", Request: func(source, target string, _ map[string]any) engine.Request {
	return engine.Request{Source: source, Target: target, Format: sniff.PNG, Effort: pngEffort}
}}
