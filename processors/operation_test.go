package processors

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/processors/engine"
)

// What clients can ask for and what is made here are two lists, and must agree.
func TestEveryOperationIsMade(t *testing.T) {
	var offered, made []string
	for _, op := range operations.All() {
		offered = append(offered, op.Name)
	}
	for _, op := range append(Conversions(), Denoise) {
		made = append(made, op.Name)
		described, ok := operations.Find(op.Name)
		require.True(t, ok, op.Name)
		require.Equal(t, described.Format, op.Request("a", "b", nil).Format)
	}
	require.Equal(t, offered, made)
}

func TestRequests(t *testing.T) {
	base := func(format string) engine.Request { return engine.Request{Source: "in", Target: "out", Format: format} }
	with := func(r engine.Request, change func(*engine.Request)) engine.Request { change(&r); return r }
	for _, test := range []struct {
		name   string
		op     Operation
		params map[string]any
		want   engine.Request
	}{
		{"jpg", jpg, nil, with(base("jpg"), func(r *engine.Request) { r.Quality = 85 })},
		{"jpg 40", jpg, map[string]any{"quality": 40.0}, with(base("jpg"), func(r *engine.Request) { r.Quality = 40 })},
		{"png", png, nil, with(base("png"), func(r *engine.Request) { r.Effort = 9 })},
		{"webp", webp, nil, with(base("webp"), func(r *engine.Request) { r.Quality, r.Effort = 80, 4 })},
		{"webp lossless", webp, map[string]any{"lossless": true, "quality": 1.0},
			with(base("webp"), func(r *engine.Request) { r.Quality, r.Effort, r.Lossless = 1, 4, true })},
		{"avif", avif, nil, with(base("avif"), func(r *engine.Request) { r.Quality, r.Effort = 75, 3 })},
		{"avif 100 9", avif, map[string]any{"quality": 100.0, "effort": 9.0},
			with(base("avif"), func(r *engine.Request) { r.Quality, r.Effort = 100, 9 })},
		{"denoise", Denoise, nil, with(base("png"), func(r *engine.Request) { r.Effort, r.Denoise = 6, true })},
	} {
		require.Equal(t, test.want, test.op.Request("in", "out", test.params), test.name)
	}
}
