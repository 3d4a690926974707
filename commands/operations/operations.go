// Package operations lists what can be asked of a picture, and checks parameters.
// It is pure and imports nothing of ours: commands validate with it, processors
// run by it, and the API describes it. Adding an operation is one entry here and
// one file in processors.
package operations

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Operation is one thing that can be made of a picture.
type Operation struct {
	// Name is what clients write and what the consumer group is called after.
	Name string `json:"name"`
	// Format is the artifact's format; Extension and ContentType follow from it.
	Format      string `json:"format"`
	Extension   string `json:"-"`
	ContentType string `json:"-"`
	// Converts is true where the point is another format: then a source that has
	// it already is refused.
	Converts bool `json:"converts"`
	// Parameters are those a client may set, each at most once.
	Parameters []Parameter `json:"parameters,omitempty"`
}

// Parameter is one named setting of an operation.
type Parameter struct {
	Name string `json:"name"`
	// Boolean parameters take true or false; the others whole numbers from Min to Max.
	Boolean bool `json:"boolean"`
	Min     int  `json:"min"`
	Max     int  `json:"max"`
	// Help says what it does, and its default.
	Help string `json:"help"`
}

// All is every operation, in the order in which they are shown.
func All() []Operation {
	quality := func(byDefault int) Parameter {
		return Parameter{Name: "quality", Min: 1, Max: 100, Help: fmt.Sprintf("1 smallest to 100 best; default %d", byDefault)}
	}
	return []Operation{
		{Name: "jpg", Format: "jpg", Extension: "jpg", ContentType: "image/jpeg", Converts: true,
			Parameters: []Parameter{quality(85)}},
		{Name: "png", Format: "png", Extension: "png", ContentType: "image/png", Converts: true},
		{Name: "webp", Format: "webp", Extension: "webp", ContentType: "image/webp", Converts: true,
			Parameters: []Parameter{quality(80), {Name: "lossless", Boolean: true, Help: "keep every pixel; default false"}}},
		{Name: "avif", Format: "avif", Extension: "avif", ContentType: "image/avif", Converts: true,
			Parameters: []Parameter{quality(75), {Name: "effort", Min: 1, Max: 9, Help: "1 fastest to 9 smallest; default 3"}}},
		{Name: "denoise", Format: "png", Extension: "png", ContentType: "image/png"},
	}
}

// Find is the operation of that name.
func Find(name string) (Operation, bool) {
	for _, op := range All() {
		if op.Name == name {
			return op, true
		}
	}
	return Operation{}, false
}

// Names are the names of all operations.
func Names() []string {
	var names []string
	for _, op := range All() {
		names = append(names, op.Name)
	}
	return names
}

// Check returns a sentence for each parameter that is unknown, of the wrong type
// or out of range, in the order of their names. Numbers are those of JSON.
func (o Operation) Check(parameters map[string]any) []string {
	var faults []string
	for name, value := range parameters {
		i := slices.IndexFunc(o.Parameters, func(p Parameter) bool { return p.Name == name })
		if i < 0 {
			faults = append(faults, fmt.Sprintf("%s has no parameter %q; it takes %s", o.Name, name, o.takes()))
			continue
		}
		if fault := o.Parameters[i].check(value); fault != "" {
			faults = append(faults, fmt.Sprintf("%s.%s %s", o.Name, name, fault))
		}
	}
	slices.Sort(faults)
	return faults
}

func (p Parameter) check(value any) string {
	if p.Boolean {
		if _, ok := value.(bool); !ok {
			return "must be true or false"
		}
		return ""
	}
	number, ok := value.(float64)
	if !ok || number != math.Trunc(number) || number < float64(p.Min) || number > float64(p.Max) {
		return fmt.Sprintf("must be a whole number from %d to %d", p.Min, p.Max)
	}
	return ""
}

func (o Operation) takes() string {
	if len(o.Parameters) == 0 {
		return "none"
	}
	var names []string
	for _, p := range o.Parameters {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}
