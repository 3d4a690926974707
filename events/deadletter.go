package events

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
)

// letterSpace is the name space of dead letters' ids, a part of their topic's format.
var letterSpace = uuid.MustParse("4b0f63d2-91f5-5d0a-a1cf-6465616c6574")

// What a dead letter tells is bounded, in bytes, and its beginning says most: it must fit
// into a record, whatever the broken one was like.
const (
	longestStack   = 16 << 10
	longestMessage = 1 << 10
	longestType    = 256
)

// told is what may be told of a broken record, which may hold anything: text in Protobuf
// must be UTF-8.
func told(text string, longest int) string {
	if len(text) > longest {
		text = text[:longest]
	}
	return strings.ToValidUTF8(text, "?")
}

// Codes of failures that more than one part of PixTools tells.
const (
	// CodeUndecodable: a record is no event.
	CodeUndecodable = "undecodable"
	// CodePanic: the program failed at it.
	CodePanic = "panic"
	// CodeDeadline: there was no outcome in time.
	CodeDeadline = "deadline"
)

// TypeOf is a record's ce_type, as far as it has one.
func TypeOf(r *kgo.Record) string {
	for _, h := range r.Headers {
		if h.Key == HeaderType {
			return string(h.Value)
		}
	}
	return ""
}

// LetterEvent is a fact about a dead letter, with its envelope.
type LetterEvent struct {
	ID string
	// LetterID is the record's key.
	LetterID string
	// Time is when the fact happened, Source the part of PixTools that told it.
	Time   time.Time
	Source string
	// CorrelationID is that of the request which began the job, if it is known.
	CorrelationID string
	// Message is *DeadLettered, *DeadLetterRedriven or *DeadLetterDiscarded.
	Message proto.Message
}

// NewDeadLetter tells that something was given up: an operation of a job's revision, or
// else a record as a whole. Whoever tells the same gives it the same id.
func NewDeadLetter(at time.Time, source, correlationID string, m *DeadLettered) LetterEvent {
	name := fmt.Sprintf("record/%s/%s/%d/%d", m.GetGroup(), m.GetOrigin().GetTopic(), m.GetOrigin().GetPartition(), m.GetOrigin().GetOffset())
	if m.GetOperation() != "" {
		name = fmt.Sprintf("operation/%s/%d/%s", m.GetJobId(), m.GetRevision(), m.GetOperation())
	}
	m = proto.Clone(m).(*DeadLettered)
	m.Type, m.Message, m.Stack = told(m.GetType(), longestType), told(m.GetMessage(), longestMessage), told(m.GetStack(), longestStack)
	if !IsJobID(m.GetJobId()) {
		m.JobId = ""
	}
	e := newLetterEvent(uuid.NewSHA1(letterSpace, []byte(name)).String(), at, source, m)
	e.CorrelationID = correlationID
	return e
}

// Redriven tells that the work of a dead letter was asked for again, by that event.
func Redriven(letterID, eventID string, at time.Time) LetterEvent {
	return newLetterEvent(letterID, at, "pixtools/api", &DeadLetterRedriven{EventId: eventID})
}

// Discarded tells that a dead letter is let be.
func Discarded(letterID, reason string, at time.Time) LetterEvent {
	return newLetterEvent(letterID, at, "pixtools/api", &DeadLetterDiscarded{Reason: reason})
}

func newLetterEvent(letterID string, at time.Time, source string, m proto.Message) LetterEvent {
	kind := m.ProtoReflect().Descriptor().FullName()
	return LetterEvent{ID: uuid.NewSHA1(letterSpace, []byte(letterID+"/"+string(kind))).String(), LetterID: letterID,
		Time: at.UTC(), Source: source, Message: m}
}

// Record is the fact as a Kafka record on DeadLetterTopic.
func (e LetterEvent) Record() (*kgo.Record, error) {
	return envelope{id: e.ID, key: e.LetterID, time: e.Time, source: e.Source, correlation: e.CorrelationID}.record(DeadLetterTopic, e.Message)
}

// DecodeLetter reads a record of DeadLetterTopic; errors are those of Decode.
func DecodeLetter(r *kgo.Record) (LetterEvent, error) {
	e, err := open(r)
	if err != nil {
		return LetterEvent{}, err
	}
	m, err := e.message(r.Value, "pixtools.deadletters.v1.")
	if err != nil {
		return LetterEvent{}, err
	}
	return LetterEvent{ID: e.id, LetterID: e.key, Time: e.time, Source: e.source, CorrelationID: e.correlation, Message: m}, nil
}

// DeadLetter is the state of a dead letter. It is open until it is closed.
type DeadLetter struct {
	ID string
	// At is when it was given up.
	At time.Time
	*DeadLettered
	CorrelationID string
	// ClosedAt is when it was redriven or discarded; zero while it is open.
	ClosedAt time.Time
	// RedrivenBy is the id of the event that asked for its work again.
	RedrivenBy string
	// Discarded says that it was, DiscardReason why.
	Discarded     bool
	DiscardReason string
}

// FoldLetter is the state after e; nil is that of a letter nobody told of. As with Fold,
// the first of its kind counts, and what is illegal changes nothing.
func FoldLetter(state *DeadLetter, e LetterEvent) *DeadLetter {
	if m, ok := e.Message.(*DeadLettered); ok {
		if state == nil {
			return &DeadLetter{ID: e.LetterID, At: e.Time, DeadLettered: m, CorrelationID: e.CorrelationID}
		}
		return state
	}
	if state == nil || !state.ClosedAt.IsZero() {
		return state
	}
	next := *state
	next.ClosedAt = e.Time
	switch m := e.Message.(type) {
	case *DeadLetterRedriven:
		next.RedrivenBy = m.GetEventId()
	case *DeadLetterDiscarded:
		next.Discarded, next.DiscardReason = true, m.GetReason()
	default:
		return state
	}
	return &next
}
