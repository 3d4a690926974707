package processors

import (
	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/processors/engine"
)

// denoisePNGEffort packs once: a picture that comes out of a network gains nothing from
// png's several ways.
const denoisePNGEffort = 6

// Denoise has a role and a group of its own: one picture keeps most of the cores busy for a while.
var Denoise = Operation{Name: "denoise", Request: func(source, target string, _ map[string]any) engine.Request {
	return engine.Request{Source: source, Target: target, Format: sniff.PNG, Effort: denoisePNGEffort, Denoise: true}
}}
