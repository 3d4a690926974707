// Package schemas has in the program what it tells others of the contract.
package schemas

import _ "embed" // the schema

// Events is the source of the Protobuf file of the events.
//
//go:embed pixtools/events/v1/events.proto
var Events string
