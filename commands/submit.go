package commands

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
)

// Submit asks for a job on an uploaded picture.
type Submit struct {
	JobID, Tenant string
	// RequestID becomes the correlation id of everything that follows.
	RequestID, TraceParent string
	// Operations in the order of the request; Parameters by operation name, with
	// the numbers of JSON.
	Operations []string
	Parameters map[string]map[string]any
	Source     *events.Source
	// FileName and WebhookURL are sealed already, so that deciding needs no key.
	FileName, WebhookURL *events.Sealed
	// Fingerprint is that of the request: see Fingerprint.
	Fingerprint []byte
	At          time.Time
}

// Fingerprint tells a repeat of a request from another request: SHA-256 over the
// source's digest, the operations with their parameters, and the webhook address.
func Fingerprint(sourceSHA256 string, ops []string, parameters map[string]map[string]any, webhookURL string) []byte {
	// No parameters are no parameters, however they were written.
	var given map[string]map[string]any
	for name, values := range parameters {
		if len(values) > 0 {
			if given == nil {
				given = map[string]map[string]any{}
			}
			given[name] = values
		}
	}
	// Maps are written in the order of their keys, so equal requests give equal bytes.
	canonical, err := json.Marshal([]any{sourceSHA256, ops, given, webhookURL})
	if err != nil {
		panic(fmt.Sprintf("commands: parameters that came from JSON do not go back: %v", err))
	}
	sum := sha256.Sum256(canonical)
	return sum[:]
}

// KeyConflict says that an idempotency key stands for another request.
func KeyConflict() *Conflict {
	return &Conflict{Field: "idempotency_key",
		Message: "idempotency_key was used before with another file, other operations, other parameters or another webhook; use a new key"}
}

// Decide gives JobRequested; nothing if the job was requested before by an equal
// request; Invalid or *Conflict if it cannot be.
func (c Submit) Decide(state *events.Job) ([]events.Event, error) {
	if state.GetPhase() == events.Phase_PHASE_DELETED { // its id would be answered, and found never
		return nil, &Conflict{Field: "idempotency_key", Message: "the job of this idempotency_key was deleted; use a new key"}
	}
	if state != nil {
		known := state.GetIdempotencyFingerprint() // of some jobs that came from elsewhere it is not
		if len(known) > 0 && !bytes.Equal(known, c.Fingerprint) {
			return nil, KeyConflict()
		}
		return nil, nil
	}
	if faults := CheckOperations(c.Operations, c.Parameters, c.Source.GetFormat()); faults != nil {
		return nil, faults
	}
	m := &events.JobRequested{
		Tenant: c.Tenant, Source: c.Source, FileName: c.FileName, WebhookUrl: c.WebhookURL,
		IdempotencyFingerprint: c.Fingerprint,
	}
	for _, name := range c.Operations {
		op := &events.Operation{Name: name}
		if given := c.Parameters[name]; len(given) > 0 {
			parameters, err := structpb.NewStruct(given)
			if err != nil {
				return nil, Invalid{{"operation_params", fmt.Sprintf("Invalid operation_params: %s: %v", name, err)}}
			}
			op.Parameters = parameters
		}
		m.Operations = append(m.Operations, op)
	}
	e := events.New(c.JobID, c.At, "pixtools/api", c.RequestID, m)
	e.TraceParent = c.TraceParent
	return []events.Event{e}, nil
}

// CheckOperations says what is wrong with a list of operations and their
// parameters for a source of sourceFormat ("" where that is not known yet). The
// API calls it before it stores a byte.
func CheckOperations(names []string, parameters map[string]map[string]any, sourceFormat string) Invalid {
	if len(names) == 0 {
		return Invalid{{"operations", "At least one operation is required"}}
	}
	var faults Invalid
	seen := map[string]bool{}
	for _, name := range names {
		op, known := operations.Find(name)
		switch {
		case !known:
			faults = append(faults, Fault{"operations", fmt.Sprintf("Invalid operations: unknown operation %q; known are %s",
				clip(name), strings.Join(operations.Names(), ", "))})
		case seen[name]:
			faults = append(faults, Fault{"operations", fmt.Sprintf("Invalid operations: %q is named more than once", name)})
		case op.Converts && op.Format == sourceFormat:
			faults = append(faults, Fault{"operations",
				fmt.Sprintf("Cannot convert %s to %s — source and target formats are the same", sourceFormat, name)})
		}
		seen[name] = true
		for _, fault := range op.Check(parameters[name]) {
			if known {
				faults = append(faults, Fault{"operation_params", "Invalid operation_params: " + fault})
			}
		}
	}
	for name := range parameters {
		if !seen[name] {
			faults = append(faults, Fault{"operation_params",
				fmt.Sprintf("Invalid operation_params: %q is not among the operations of this request", clip(name))})
		}
	}
	return faults
}

// clip keeps what a client wrote from filling an answer or a log.
func clip(s string) string {
	const longest = 64 // runes
	if r := []rune(s); len(r) > longest {
		return string(r[:longest]) + "…"
	}
	return s
}
