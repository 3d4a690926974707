// Package history holds what a fault run recorded, and judges it.
//
// The judge is pure, and is no part of PixTools on purpose: it counts outcomes, ends and
// repeats by rules of its own, as docs/kafka.md states them, and derives event ids by
// itself. Of PixTools it takes the generated messages, and events.Fold where the question
// is whether the read model is the fold of the log.
package history

import (
	"time"

	"github.com/pixtools/pixtools/events"
)

// History is one run: what clients asked and were told, and what was there at the end,
// when nothing moved any more.
type History struct {
	Calls []Call
	// Log is the topic as a consumer of committed records reads it from the start, each
	// partition in order.
	Log []Record
	// Ends are the log's ends by partition; Positions how far the read model says it is.
	Ends, Positions map[int32]int64
	Rows            []Row
	// Objects are all of the bucket, by key.
	Objects map[string]Object
	// Poison are records that were put into the log to do harm, by place; true where they
	// cannot be read, so that they must become dead letters.
	Poison map[Place]bool
	// Letters are all that the topic of dead letters tells, to a consumer of committed records.
	Letters []Letter
	// Deliveries are what the receiver of webhooks got, as it came.
	Deliveries []Delivery
	// Planted are keys of objects that no event names, and that are young.
	Planted []string
	// MaxStarts is PROCESS_MAX_STARTS: how often an operation may be begun in one revision.
	MaxStarts int32
}

// Kind is what a call asks for.
type Kind string

// The kinds of calls.
const (
	Submit Kind = "submit"
	Read   Kind = "read"
	Cancel Kind = "cancel"
	Retry  Kind = "retry"
)

// Call is one request and what came of it. Times are those of one clock, from the run's
// start.
type Call struct {
	Client         int
	Kind           Kind
	Sent, Answered time.Duration
	// Status is the answer's, 0 where there was none: the request may have had its effect
	// or not.
	Status int
	// Problem is the body of an answer that is not the one hoped for, or the error.
	Problem string
	// JobID is the one asked about, or the one that a submission was answered with.
	JobID string
	// Wrote is the position that the answer carried.
	Wrote *events.Position
	// Asked is what a submission was for.
	Asked *Asked
	// After is the position that a read was to wait for; View what it was told.
	After *events.Position
	View  *View
}

// Asked is the content of a submission. Key is empty where it had none. Each submission
// without a key has a picture of its own, and so has each key: so the log tells which job
// came of which.
type Asked struct {
	Key           string
	SHA256        string
	Format        string
	Width, Height int
	Operations    []string
	// Hook is where the outcome is to be posted; empty where nowhere.
	Hook string
	// Broken says that the picture's pixels cannot be decoded, though its header can.
	Broken bool
}

// View is a job as a read showed it.
type View struct {
	Revision   int32
	Outcome    string // empty while it is open
	Operations map[string]OperationView
}

// OperationView is one operation of it.
type OperationView struct {
	State   string // PENDING, RUNNING, COMPLETED, FAILED, CANCELLED
	Attempt int32
	SHA256  string // of the artifact
}

// Record is one record of the log. Event has no message where it could not be decoded;
// Fault says why.
type Record struct {
	Partition int32
	Offset    int64
	Event     events.Event
	Fault     string
	// Written is when its producer wrote it, in whole milliseconds; it became visible later.
	Written time.Time
}

// Delivery is one webhook as its receiver got it, on the clock of those who write records.
type Delivery struct {
	// ID is the header webhook-id; Signed says whether the signature is one of the tenant's.
	ID     string
	Signed bool
	At     time.Time
	// Status is what the receiver answered.
	Status int
	// JobID, Revision and Outcome are those of the body.
	JobID    string
	Revision int32
	Outcome  string
}

// Place is one in the log.
type Place struct {
	Partition int32
	Offset    int64
}

// Letter is one fact of the topic of dead letters that says that something was given up:
// an operation of a job's revision, or else a record.
type Letter struct {
	ID, JobID, Operation string
	Revision             int32
	Origin               *Place
}

// Row is one row of the read model.
type Row struct {
	JobID, Tenant        string
	Phase, Outcome       int16
	Revision             int32
	CreatedAt, UpdatedAt time.Time
	State                *events.Job
}

// Object is a stored object, by its content.
type Object struct {
	Bytes         int64
	SHA256        string
	Format        string
	Width, Height int
}

// Property is one of the promises that are checked.
type Property string

// The properties, in the order in which they are told.
const (
	// Accepted: every 202 has its event in the log, where the answer said, with what was asked.
	Accepted Property = "accepted"
	// Ended: every job in the log has ended.
	Ended Property = "ended"
	// Outcomes: of each operation one outcome counts; repeats of an attempt's outcome are
	// equal in id and artifact; an attempt that completed was begun before; a sound picture's
	// operation does not fail.
	Outcomes Property = "outcomes"
	// Finals: one JobFinalized for each revision, when nothing was open, and it says what was.
	Finals Property = "finals"
	// Identity: event ids are derived, so that a repeat has the id of the first.
	Identity Property = "identity"
	// Artifacts: every object that an event names is there, with its SHA-256, and is a
	// picture of the format and size that were asked for.
	Artifacts Property = "artifacts"
	// ReadModel: the rows are the fold of the log, as far as its end.
	ReadModel Property = "read model"
	// Reads: no read is older than one that was answered before it, nor than what was
	// waited for; what was accepted is found; what was shown was so.
	Reads Property = "reads"
	// DeadLetters: one for each record that cannot be read, one for each operation that was
	// given up for another reason than the picture, and none for anything else.
	DeadLetters Property = "dead letters"
	// Webhooks: the outcome of each ended job with an address was taken by its receiver, and the log
	// says so; nothing was posted before its revision ended, unsigned, or with another outcome; no
	// attempt is told that was not scheduled, or before it was made.
	Webhooks Property = "webhooks"
	// Kept: nothing expires before its time, and what is young stays stored, though no event names it.
	Kept Property = "kept"
	// Keys: one job for each key, and for each submission without one at most one.
	Keys Property = "keys"
	// Answers: every answer is one of those that the contract has.
	Answers Property = "answers"
)

// Properties are all of them.
func Properties() []Property {
	return []Property{Accepted, Ended, Outcomes, Finals, Identity, Artifacts, ReadModel, Reads, DeadLetters, Webhooks, Kept, Keys, Answers}
}

// Violation is a broken promise. JobID is empty where it is about no one job.
type Violation struct {
	Property Property
	JobID    string
	Message  string
}
