package processors

import (
	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/processors/engine"
)

const (
	webpQuality = 80
	webpEffort  = 4
)

var webp = Operation{Name: "webp", Request: func(source, target string, params map[string]any) engine.Request {
	lossless, _ := params["lossless"].(bool)
	return engine.Request{
		Source: source, Target: target, Format: sniff.WebP,
		Quality: number(params, "quality", webpQuality), Lossless: lossless, Effort: webpEffort,
	}
}}
