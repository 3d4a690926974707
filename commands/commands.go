// Package commands decides: Decide takes a job's state and a command and says
// which events follow, or why none may. It does no I/O, reads no clock and draws
// no random numbers; time comes in with the command.
//
// Kafka cannot append on condition, so a decision is advisory: two may be taken on
// the same state. events.Fold settles which of them counts.
package commands

import "strings"

// Fault is one thing wrong with a command.
type Fault struct {
	// Field is the request's field as clients know it, for instance "operations".
	Field string `json:"field"`
	// Message names what is wrong and the limit.
	Message string `json:"message"`
}

// Invalid says that a command can never be accepted as it is.
type Invalid []Fault

func (e Invalid) Error() string {
	var all []string
	for _, f := range e {
		all = append(all, f.Message)
	}
	return strings.Join(all, "; ")
}

// Conflict says that a command contradicts what has happened.
type Conflict struct {
	Field, Message string
}

func (e *Conflict) Error() string { return e.Message }
