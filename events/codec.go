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
	return envelope{id: e.ID, key: e.JobID, time: e.Time, source: e.Source, correlation: e.CorrelationID,
		causation: e.CausationID, trace: e.TraceParent}.record(Topic, e.Message)
}

// Records are events as Kafka records, in their order.
func Records(all []Event) ([]*kgo.Record, error) {
	var records []*kgo.Record
	for _, e := range all {
		r, err := e.Record()
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

// envelope is what stands around a message, on any of our topics.
type envelope struct {
	id, key, kind, source, subject, version string
	time                                    time.Time
	correlation, causation, trace           string
}

// record encodes an envelope whose kind, subject and version follow from the rest.
func (e envelope) record(topic string, m proto.Message) (*kgo.Record, error) {
	kind := string(m.ProtoReflect().Descriptor().FullName())
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	r := &kgo.Record{Topic: topic, Key: []byte(e.key), Value: value}
	for _, h := range []struct{ key, value string }{
		{HeaderSpecVersion, specVersion},
		{HeaderID, e.id},
		{HeaderType, kind},
		{HeaderSource, e.source},
		{HeaderSubject, e.key},
		{HeaderTime, e.time.UTC().Format(time.RFC3339Nano)},
		{HeaderCorrelation, e.correlation},
		{HeaderCausation, e.causation},
		{HeaderTrace, e.trace},
		{HeaderContent, contentType},
	} {
		if h.value != "" { // CloudEvents: an absent attribute has no header
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.key, Value: []byte(h.value)})
		}
	}
	return r, nil
}

// open reads a record's envelope; the error is a *MalformedError.
func open(r *kgo.Record) (envelope, error) {
	e := envelope{key: string(r.Key)}
	at := ""
	for _, h := range r.Headers {
		switch value := string(h.Value); h.Key {
		case HeaderID:
			e.id = value
		case HeaderType:
			e.kind = value
		case HeaderSource:
			e.source = value
		case HeaderSubject:
			e.subject = value
		case HeaderTime:
			at = value
		case HeaderSpecVersion:
			e.version = value
		case HeaderCorrelation:
			e.correlation = value
		case HeaderCausation:
			e.causation = value
		case HeaderTrace:
			e.trace = value
		}
	}
	if err := e.check(); err != nil {
		return e, err
	}
	var err error
	if e.time, err = time.Parse(time.RFC3339Nano, at); err != nil {
		return e, &MalformedError{Reason: HeaderTime + " is no RFC 3339 time", Cause: err}
	}
	e.time = e.time.UTC()
	return e, nil
}

// longestQuoted bounds what an error quotes of a record, in bytes.
const longestQuoted = 100

func (e envelope) check() error {
	switch {
	case e.version != specVersion:
		return &MalformedError{Reason: fmt.Sprintf("%s is %q, not %q", HeaderSpecVersion, told(e.version, longestQuoted), specVersion)}
	case e.id == "":
		return &MalformedError{Reason: HeaderID + " is missing"}
	case e.kind == "":
		return &MalformedError{Reason: HeaderType + " is missing"}
	case e.subject != e.key:
		return &MalformedError{Reason: fmt.Sprintf("%s %q is not the record's key %q", HeaderSubject, told(e.subject, longestQuoted), told(e.key, longestQuoted))}
	case !IsJobID(e.key):
		return &MalformedError{Reason: fmt.Sprintf("key %q is no id: a UUID in text form", told(e.key, longestQuoted))}
	}
	return nil
}

// IsJobID says whether text is a UUID in the form that keys have: two keys are never
// the same UUID.
func IsJobID(text string) bool {
	_, err := uuid.Parse(text)
	return err == nil && len(text) == 36 && text == strings.ToLower(text)
}

// message reads a value of the kind that the envelope names, if that begins with prefix.
func (e envelope) message(value []byte, prefix string) (proto.Message, error) {
	// The global registry holds every linked message; the prefix keeps it to ours.
	known, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(e.kind))
	if err != nil || !strings.HasPrefix(e.kind, prefix) {
		return nil, fmt.Errorf("%w: %s", ErrUnknownType, told(e.kind, longestQuoted))
	}
	m := known.New().Interface()
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, &MalformedError{Reason: "value is no " + e.kind, Cause: err}
	}
	return m, nil
}

// Decode reads a record of Topic. It is the one place where older versions of a
// message would be brought up to date. The error is ErrUnknownType or a
// *MalformedError.
func Decode(r *kgo.Record) (Event, error) {
	e, err := open(r)
	if err != nil {
		return Event{}, err
	}
	m, err := e.message(r.Value, typePrefix)
	if err != nil {
		return Event{}, err
	}
	if !isEvent(m) {
		return Event{}, &MalformedError{Reason: e.kind + " is a part of an event, not an event"}
	}
	return Event{ID: e.id, JobID: e.key, Time: e.time, Source: e.source, CorrelationID: e.correlation,
		CausationID: e.causation, TraceParent: e.trace, Message: m}, nil
}

func isEvent(m proto.Message) bool {
	for _, e := range Catalogue() {
		if e.ProtoReflect().Descriptor() == m.ProtoReflect().Descriptor() {
			return true
		}
	}
	return false
}

// Types are the ce_type of every event there is, in the order of the Catalogue.
func Types() (types []string) {
	for _, m := range Catalogue() {
		types = append(types, Event{Message: m}.Type())
	}
	return types
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
