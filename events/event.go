// Package events holds the facts PixTools keeps: the messages (generated from
// schemas/), the envelope around them, their derived identity, their form as
// Kafka records, and Fold, which makes a job's state of them. It does no I/O,
// reads no clock and draws no random numbers.
package events

import (
	"time"

	"google.golang.org/protobuf/proto"
)

// Names of the log and of the consumer groups that read it.
const (
	// Topic is the one truth: every event of every job, keyed by job id.
	Topic = "pixtools.jobs.v1"
	// SagaTopic is the saga's changelog: compacted, rebuildable from Topic.
	SagaTopic = "pixtools.saga.v1"
	// WebhooksTopic is the changelog of the role webhooks: compacted, rebuildable from Topic.
	WebhooksTopic = "pixtools.webhooks.v1"
	// DeadLetterTopic holds what was given up, and what operators made of it. It has
	// one partition: there is little of it, and so its order is that of time.
	DeadLetterTopic = "pixtools.deadletters.v1"
	// SagaGroup, ProjectorGroup, WebhooksGroup, JanitorGroup and OperationGroup name the consumer
	// groups; an operation's group is OperationGroup followed by the operation's name.
	SagaGroup      = "pixtools.saga"
	ProjectorGroup = "pixtools.projector"
	WebhooksGroup  = "pixtools.webhooks"
	JanitorGroup   = "pixtools.janitor"
	OperationGroup = "pixtools.op."
)

// ImportSource is the Source of events about what was done elsewhere, before it was brought
// here.
const ImportSource = "pixtools/import-legacy"

// Event is a fact with its envelope.
type Event struct {
	// ID is derived: the same fact told twice has the same id.
	ID string
	// JobID is the aggregate's id and the record's key.
	JobID string
	// Time is when the fact happened, on the clock of whoever observed it.
	Time time.Time
	// Source names the part of PixTools that emitted it, for instance "pixtools/api".
	Source string
	// CorrelationID is the id of the request that began the job.
	CorrelationID string
	// CausationID is the id of the event that this one answers; empty at the start.
	CausationID string
	// TraceParent is the W3C trace context, or empty.
	TraceParent string
	// Message is one of the generated event messages.
	Message proto.Message
}

// New is an event about a job, not caused by another event.
func New(jobID string, at time.Time, source, correlationID string, m proto.Message) Event {
	return Event{
		ID: eventID(jobID, m), JobID: jobID, Time: at.UTC(), Source: source,
		CorrelationID: correlationID, Message: m,
	}
}

// Because is an event that answers cause: the same job, request and trace.
func Because(cause Event, at time.Time, source string, m proto.Message) Event {
	e := New(cause.JobID, at, source, cause.CorrelationID, m)
	e.CausationID, e.TraceParent = cause.ID, cause.TraceParent
	return e
}

// Imported says that the event tells of what was done elsewhere. Whoever answers events, with
// work, ends or messages, leaves it alone: what answers it is told beside it, or was done
// long ago.
func (e Event) Imported() bool { return e.Source == ImportSource }

// Name is the message's name without its package.
func (e Event) Name() string { return string(e.Message.ProtoReflect().Descriptor().Name()) }

// Type is the message's full name, the value of ce_type.
func (e Event) Type() string { return string(e.Message.ProtoReflect().Descriptor().FullName()) }
