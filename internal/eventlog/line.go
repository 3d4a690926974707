package eventlog

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/pixtools/pixtools/events"
)

// Line is a record as it is shown: its place, its CloudEvents attributes, the event.
type Line struct {
	// Position is the token that the API speaks of.
	Position  string `json:"position"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	// Written is the record's own time; Time is the event's.
	Written time.Time `json:"written"`

	SpecVersion     string `json:"specversion,omitempty"`
	ID              string `json:"id,omitempty"`
	Type            string `json:"type,omitempty"`
	FullType        string `json:"full_type,omitempty"`
	Source          string `json:"source,omitempty"`
	Subject         string `json:"subject,omitempty"`
	Time            string `json:"time,omitempty"`
	CorrelationID   string `json:"correlationid,omitempty"`
	CausationID     string `json:"causationid,omitempty"`
	TraceParent     string `json:"traceparent,omitempty"`
	DataContentType string `json:"datacontenttype,omitempty"`

	Data json.RawMessage `json:"data,omitempty"`

	// Fault says why the record is no event that this version can read; Key and ValueHex
	// are then the record as it is.
	Fault    string `json:"fault,omitempty"`
	Key      string `json:"key,omitempty"`
	ValueHex string `json:"value_hex,omitempty"`
}

// lineOf shows any record; e and fault are what decoding it gave.
func lineOf(log [16]byte, r *kgo.Record, e events.Event, fault error) Line {
	l := Line{
		Position:  events.Position{Log: log, Partition: r.Partition, Offset: r.Offset}.Token(),
		Partition: r.Partition, Offset: r.Offset, Written: r.Timestamp.UTC(),
	}
	for _, h := range r.Headers {
		value := strings.ToValidUTF8(string(h.Value), "�")
		switch h.Key {
		case events.HeaderSpecVersion:
			l.SpecVersion = value
		case events.HeaderID:
			l.ID = value
		case events.HeaderType:
			l.FullType, l.Type = value, value[strings.LastIndexByte(value, '.')+1:]
		case events.HeaderSource:
			l.Source = value
		case events.HeaderSubject:
			l.Subject = value
		case events.HeaderTime:
			l.Time = value
		case events.HeaderCorrelation:
			l.CorrelationID = value
		case events.HeaderCausation:
			l.CausationID = value
		case events.HeaderTrace:
			l.TraceParent = value
		case events.HeaderContent:
			l.DataContentType = value
		}
	}
	if fault == nil {
		l.Data, fault = protojson.Marshal(e.Message)
	}
	if fault != nil {
		l.Fault, l.Key, l.ValueHex = fault.Error(), strings.ToValidUTF8(string(r.Key), "�"), hex.EncodeToString(r.Value)
	}
	return l
}
