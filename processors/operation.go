// Package processors holds what PixTools makes of pictures: one file for each operation,
// and here their list. What an operation is called, which parameters it takes and what
// its artifact is named stand in commands/operations; here is how it is made.
package processors

import "github.com/pixtools/pixtools/processors/engine"

// Operation is something that the picture engine makes.
type Operation struct {
	// Name is the one in commands/operations.
	Name string
	// Request asks the engine for it, from one file to another. The parameters were
	// checked when the job was accepted; those left out have their defaults here.
	Request func(source, target string, params map[string]any) engine.Request
}

// Conversions are all operations but Denoise.
func Conversions() []Operation {
	return []Operation{jpg, png, webp, avif}
}

// number reads a parameter that is a whole number: JSON's are float64.
func number(params map[string]any, name string, byDefault int) int {
	if value, ok := params[name].(float64); ok {
		return int(value)
	}
	return byDefault
}
