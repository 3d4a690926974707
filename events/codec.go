package events

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Header names: CloudEvents 1.0, Kafka protocol binding, binary mode.
const (
	HeaderID          = "ce_id"
	HeaderType        = "ce_type"
	HeaderSource      = "ce_source"
	HeaderSubject     = "ce_subject"
	HeaderTime        = "ce_time"
	HeaderSpecVersion = "ce_specversion"
	HeaderCorrelation = "ce_correlationid"
	HeaderCausation   = "ce_causationid"
	HeaderTrace       = "traceparent"
	HeaderContent     = "content-type"

	specVersion = "1.0"
	contentType = "application/protobuf"
	typePrefix  = "pixtools.events.v1."
)

// ErrUnknownType marks a well-formed event of a type that this version does not
// know: written by a newer one. A consumer passes over it.
var ErrUnknownType = errors.New("event type is not known to this version")

// MalformedError marks a record that is no event of ours; Reason names the header
// or the part. It belongs in the dead letter topic.
type MalformedError struct {
	Reason string
	Cause  error
}

func (e *MalformedError) Error() string {
	if e.Cause != nil {
		return "malformed event: " + e.Reason + ": " + e.Cause.Error()
	}
	return "malformed event: " + e.Reason
}

func (e *MalformedError) Unwrap() error { return e.Cause }

// Record is the event as a Kafka record on Topic. Equal events give equal bytes.
func (e Event) Record() (*kgo.Record, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(e.Message)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Type(), err)
	}
	r := &kgo.Record{Topic: Topic, Key: []byte(e.JobID), Value: value}
	for _, h := range []struct{ key, value string }{
		{HeaderSpecVersion, specVersion},
		{HeaderID, e.ID},
		{HeaderType, e.Type()},
		{HeaderSource, e.Source},
		{HeaderSubject, e.JobID},
		{HeaderTime, e.Time.UTC().Format(time.RFC3339Nano)},
		{HeaderCorrelation, e.CorrelationID},
		{HeaderCausation, e.CausationID},
		{HeaderTrace, e.TraceParent},
		{HeaderContent, contentType},
	} {
		if h.value != "" { // CloudEvents: an absent attribute has no header
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.key, Value: []byte(h.value)})
		}
	}
	return r, nil
}

// Decode reads a record of Topic. It is the one place where older versions of a
// message would be brought up to date. The error is ErrUnknownType or a
// *MalformedError.
func Decode(r *kgo.Record) (Event, error) {
	var e Event
	var kind, version, subject, at string
	for _, h := range r.Headers {
		switch value := string(h.Value); h.Key {
		case HeaderID:
			e.ID = value
		case HeaderType:
			kind = value
		case HeaderSource:
			e.Source = value
		case HeaderSubject:
			subject = value
		case HeaderTime:
			at = value
		case HeaderSpecVersion:
			version = value
		case HeaderCorrelation:
			e.CorrelationID = value
		case HeaderCausation:
			e.CausationID = value
		case HeaderTrace:
			e.TraceParent = value
		}
	}
	e.JobID = string(r.Key)
	if err := checkEnvelope(e, kind, version, subject); err != nil {
		return Event{}, err
	}
	var err error
	if e.Time, err = time.Parse(time.RFC3339Nano, at); err != nil {
		return Event{}, &MalformedError{Reason: HeaderTime + " is no RFC 3339 time", Cause: err}
	}
	e.Time = e.Time.UTC()
	// The global registry holds every linked message; the prefix keeps it to ours.
	known, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(kind))
	if err != nil || !strings.HasPrefix(kind, typePrefix) {
		return Event{}, fmt.Errorf("%w: %s", ErrUnknownType, kind)
	}
	e.Message = known.New().Interface()
	if !isEvent(e.Message) {
		return Event{}, &MalformedError{Reason: kind + " is a part of an event, not an event"}
	}
	if err := proto.Unmarshal(r.Value, e.Message); err != nil {
		return Event{}, &MalformedError{Reason: "value is no " + kind, Cause: err}
	}
	return e, nil
}

func checkEnvelope(e Event, kind, version, subject string) error {
	switch {
	case version != specVersion:
		return &MalformedError{Reason: fmt.Sprintf("%s is %q, not %q", HeaderSpecVersion, version, specVersion)}
	case e.ID == "":
		return &MalformedError{Reason: HeaderID + " is missing"}
	case kind == "":
		return &MalformedError{Reason: HeaderType + " is missing"}
	case subject != e.JobID:
		return &MalformedError{Reason: fmt.Sprintf("%s %q is not the record's key %q", HeaderSubject, subject, e.JobID)}
	}
	if _, err := uuid.Parse(e.JobID); err != nil || len(e.JobID) != 36 {
		return &MalformedError{Reason: fmt.Sprintf("key %q is no job id", e.JobID), Cause: err}
	}
	return nil
}

func isEvent(m proto.Message) bool {
	for _, e := range Catalogue() {
		if e.ProtoReflect().Descriptor() == m.ProtoReflect().Descriptor() {
			return true
		}
	}
	return false
}

// Catalogue is an empty message of every event there is, in the order of a job's life.
func Catalogue() []proto.Message {
	return []proto.Message{
		(*JobRequested)(nil), (*OperationStarted)(nil), (*OperationCompleted)(nil),
		(*OperationFailed)(nil), (*JobFinalized)(nil), (*OperationRetryRequested)(nil),
		(*JobCancelRequested)(nil), (*ArtifactReplaced)(nil), (*WebhookScheduled)(nil),
		(*WebhookDelivered)(nil), (*WebhookFailed)(nil), (*ArtifactsExpired)(nil), (*JobDeleted)(nil),
	}
}
