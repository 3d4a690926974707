package processors

import (
	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/processors/engine"
)

const jpgQuality = 85

// jpg has no transparency: the engine puts the picture on white.
var jpg = Operation{Name: "jpg", Request: func(source, target string, params map[string]any) engine.Request {
	return engine.Request{
		Source: source, Target: target, Format: sniff.JPG,
		Quality: number(params, "quality", jpgQuality),
	}
}}
