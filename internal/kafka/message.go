package kafka

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// MetadataKey is the metadata entry that becomes a record's key, and that carries
	// it in a received message. All other entries are headers.
	MetadataKey = "kafka_key"
	// HeaderID carries a message's UUID: a CloudEvent's id.
	HeaderID = "ce_id"
)

type contextKey int

const (
	recordKey contextKey = iota
	attemptKey
)

// RecordFrom gives the record behind a message, from the message's context: its
// topic, partition, offset, time and all of its headers. It is shared: read only.
func RecordFrom(ctx context.Context) (*kgo.Record, bool) {
	r, ok := ctx.Value(recordKey).(*kgo.Record)
	return r, ok
}

// Attempt is how many times this process delivered the record since it was assigned
// its partition, this time included.
func Attempt(ctx context.Context) int {
	n, _ := ctx.Value(attemptKey).(int)
	return n
}

// newMessage makes a fresh message for each delivery: a message can be acked once.
func newMessage(ctx context.Context, r *kgo.Record, attempt int) *message.Message {
	metadata := make(message.Metadata, len(r.Headers)+1)
	// Without the header the id is the record's place, so that a redelivery has it too.
	id := fmt.Sprintf("%s-%d-%d", r.Topic, r.Partition, r.Offset)
	for _, h := range r.Headers {
		metadata[h.Key] = string(h.Value)
		if h.Key == HeaderID {
			id = string(h.Value)
		}
	}
	if r.Key != nil {
		metadata[MetadataKey] = string(r.Key)
	}
	msg := message.NewMessage(id, r.Value)
	msg.Metadata = metadata
	ctx = context.WithValue(ctx, recordKey, r)
	msg.SetContext(context.WithValue(ctx, attemptKey, attempt))
	return msg
}

func newRecord(topic string, msg *message.Message) *kgo.Record {
	r := &kgo.Record{Topic: topic, Value: msg.Payload}
	if key, ok := msg.Metadata[MetadataKey]; ok {
		r.Key = []byte(key)
	}
	if _, ok := msg.Metadata[HeaderID]; !ok {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: HeaderID, Value: []byte(msg.UUID)})
	}
	for key, value := range msg.Metadata {
		if key != MetadataKey {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
		}
	}
	return r
}
