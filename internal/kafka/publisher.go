package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/internal/telemetry"
)

var (
	// ErrClosed is the answer of a closed publisher or subscriber.
	ErrClosed = errors.New("kafka: closed")

	// ErrNotAcknowledged says that Kafka did not confirm within the limit. The records
	// may be in the log or not: a request may have been on its way. So a caller repeats
	// the publish with the same event ids, or gives up; either is safe.
	ErrNotAcknowledged = errors.New("kafka did not acknowledge in time")
)

// Publisher waits for the acknowledgement of what it publishes.
type Publisher struct {
	client  *kgo.Client
	timeout time.Duration

	mu     sync.Mutex // guards closed, and sends against Close's Wait
	closed bool
	sends  sync.WaitGroup
}

// NewPublisher publishes through a client made by NewProducerClient, which stays the
// caller's and may be shared. After deliveryTimeout without an acknowledgement a
// publish is an error. Publishers of one client should agree on it: records of one
// partition are sent in order, so they fail together with the oldest.
func NewPublisher(client *kgo.Client, deliveryTimeout time.Duration) *Publisher {
	return &Publisher{client: client, timeout: deliveryTimeout}
}

// Publish is PublishContext with the context of the first message.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	return p.PublishContext(msgs[0].Context(), topic, msgs...)
}

// PublishContext returns when Kafka has acknowledged all messages.
func (p *Publisher) PublishContext(ctx context.Context, topic string, msgs ...*message.Message) error {
	records := make([]*kgo.Record, len(msgs))
	for i, msg := range msgs {
		records[i] = newRecord(topic, msg)
	}
	return p.Append(ctx, records...)
}

// Append writes records, each to its Topic, and returns when Kafka has acknowledged
// all of them; Partition and Offset of each then say where it is. Records of one
// partition are appended in the order given.
//
// After an error some may be in the log. The records must not be touched then: the
// client may still hold them for a moment. It does not send them again after the
// delivery timeout, so nothing appears out of a dead request's past when a broker
// comes back.
func (p *Publisher) Append(ctx context.Context, records ...*kgo.Record) error {
	return p.Begin(ctx, records...)()
}

// Begin is Append in two steps: it hands the records over and returns, and what it
// returns waits. What is appended in between to the same partition comes after them.
// Close waits for them also where the caller does not.
func (p *Publisher) Begin(ctx context.Context, records ...*kgo.Record) func() error {
	if err := ctx.Err(); err != nil || len(records) == 0 {
		return func() error { return err }
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return func() error { return ErrClosed }
	}
	p.sends.Add(1)
	p.mu.Unlock() // before sending, which waits where too much is on its way
	return p.send(ctx, records)
}

// send gives the records a context apart from the caller's: one caller going away
// would otherwise cancel the request that carries other callers' records too.
func (p *Publisher) send(ctx context.Context, records []*kgo.Record) (wait func() error) {
	span := telemetry.Publish(ctx, records)
	limit, release := context.WithTimeout(context.WithoutCancel(ctx), p.timeout)
	var (
		left sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	left.Add(len(records))
	for _, r := range records {
		p.client.Produce(limit, r, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			left.Done()
		})
	}
	done := make(chan struct{})
	go func() {
		left.Wait()
		if len(errs) > 0 {
			telemetry.Fault(telemetry.Kafka)
		}
		telemetry.End(span, errors.Join(errs...))
		close(done)
		release()
		p.sends.Done() // here, since nobody need wait for the records' fate
	}()
	return func() error {
		select {
		case <-done:
		case <-ctx.Done():
		case <-limit.Done(): // the limit, or release, which follows done
		}
		select {
		case <-done: // also when more than one was ready
			return p.verdict(errs)
		default:
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %w", ErrNotAcknowledged, err)
		}
		return fmt.Errorf("%w: %v passed", ErrNotAcknowledged, p.timeout)
	}
}

func (p *Publisher) verdict(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	err := errs[0] // one cause fails a whole request: the others say the same
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %v passed: %w", ErrNotAcknowledged, p.timeout, err)
	}
	return fmt.Errorf("publish: %w", err)
}

// Close waits for publishes under way; later ones fail with ErrClosed.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.sends.Wait()
	return nil
}
