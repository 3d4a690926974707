package processors

import (
	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/processors/engine"
)

const (
	avifQuality = 75
	avifEffort  = 3
)

var avif = Operation{Name: "avif", Request: func(source, target string, params map[string]any) engine.Request {
	return engine.Request{
		Source: source, Target: target, Format: sniff.AVIF,
		Quality: number(params, "quality", avifQuality), Effort: number(params, "effort", avifEffort),
	}
}}
