package telemetry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/pixtools/pixtools/events"
)

// tracer follows what StartTracing sets.
var tracer = otel.Tracer("github.com/pixtools/pixtools")

// sending is set once spans are sent.
var sending atomic.Bool

// Sending says whether spans are sent: who would begin many for nothing asks first.
func Sending() bool { return sending.Load() }

// StartTracing has spans sent from now on, where cfg says to whom. Without that, spans cost
// next to nothing: contexts keep the ids that came with the request or the record, so that
// log lines and events have them all the same. stop sends what is left.
func StartTracing(ctx context.Context, cfg Config, roles []string, instance string, log *slog.Logger) (stop func(context.Context) error, err error) {
	otel.SetTextMapPropagator(propagation.TraceContext{})
	if !cfg.Traces() {
		return func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracehttp.New(ctx) // by the variables
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	name := "pixtools"
	if len(roles) == 1 {
		name += "-" + roles[0]
	}
	version, _ := Version()
	described, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(semconv.ServiceName(name), semconv.ServiceInstanceID(instance), semconv.ServiceVersion(version),
			attribute.StringSlice("pixtools.roles", roles)),
		resource.WithFromEnv()) // last: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces are not sent", "error", err) }))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(described)) // the sampler is the variables'
	otel.SetTracerProvider(provider)
	sending.Store(true)
	return provider.Shutdown, nil
}

// Version is what was built: of the module, and of the source.
func Version() (version, revision string) {
	version, revision = "unknown", "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, revision
	}
	if info.Main.Version != "" {
		version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	return version, revision
}

// OfRequest is ctx in the trace of its caller, and in one of its own where that brings none:
// so every line about a request has a trace, also where no spans are sent. Our own id is not
// sampled; whoever sends spans draws another.
func OfRequest(ctx context.Context, header http.Header) context.Context {
	if trace.SpanContextFromContext(ctx).IsValid() {
		return ctx // a span is under way
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(header))
	if trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	var c trace.SpanContextConfig
	_, _ = rand.Read(c.TraceID[:]) // never fails
	_, _ = rand.Read(c.SpanID[:])
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(c))
}

// OfEvent is ctx about an event: its job and its request, and in its trace, as the record
// carries them.
func OfEvent(ctx context.Context, e events.Event) context.Context {
	ctx = With(ctx, About{JobID: e.JobID, RequestID: e.CorrelationID})
	if span := parse(e.TraceParent); span.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, span)
	}
	return ctx
}

// OfKey is ctx about a record's key, which may be no job's id.
func OfKey(ctx context.Context, key string) context.Context {
	if !events.IsJobID(key) {
		return ctx
	}
	return With(ctx, About{JobID: key})
}

// parse reads the W3C's header; what is none is an invalid context.
func parse(traceParent string) trace.SpanContext {
	if traceParent == "" {
		return trace.SpanContext{}
	}
	carrier := propagation.MapCarrier{events.HeaderTrace: traceParent}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}

// TraceParent is the span of ctx in the form of the W3C's header, version 00, or empty. What
// follows from the span is told to hang below it by an event with this.
func TraceParent(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return ""
	}
	return "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-" + span.TraceFlags().String()
}

// Start begins a span about what ctx is about. End ends it.
func Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	ctx, span := tracer.Start(ctx, name, opts...)
	if span.IsRecording() {
		a := of(ctx)
		for _, id := range []struct{ key, value string }{{"pixtools.request.id", a.RequestID}, {"pixtools.job.id", a.JobID}, {"pixtools.operation", a.Operation}} {
			if id.value != "" {
				span.SetAttributes(attribute.String(id.key, id.value))
			}
		}
	}
	return ctx, span
}

// End ends a span, with the error that it was for.
func End(span trace.Span, err error) {
	if err != nil && span.IsRecording() {
		span.RecordError(err)
		span.SetStatus(codes.Error, firstLine(err.Error()))
	}
	span.End()
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// Span tells of something that is over already.
func Span(ctx context.Context, name string, begun, ended time.Time) {
	_, span := Start(ctx, name, trace.WithTimestamp(begun))
	span.End(trace.WithTimestamp(ended))
}

// Process begins the span of a consumer's work on a record, begun at that time, in the trace
// that the record carries: over restarts, redeliveries and other processes it is the same.
// The webhooks' deliveries use it, too.
func Process(ctx context.Context, name, group string, e events.Event, r *kgo.Record, begun time.Time) (context.Context, trace.Span) {
	ctx, span := Start(OfEvent(ctx, e), name, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(begun))
	if span.IsRecording() {
		span.SetAttributes(semconv.MessagingSystemKafka, semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process"),
			semconv.MessagingDestinationName(r.Topic), semconv.MessagingConsumerGroupName(group), semconv.MessagingMessageID(e.ID),
			semconv.MessagingDestinationPartitionID(strconv.Itoa(int(r.Partition))), semconv.MessagingKafkaOffset(int(r.Offset)),
			semconv.MessagingKafkaMessageKey(e.JobID), attribute.String("pixtools.event", e.Name()))
	}
	return ctx, span
}

// Publish begins the span of publishing records of one cause, and has them carry it. Where
// ctx is in no trace they keep what they have.
func Publish(ctx context.Context, records []*kgo.Record) trace.Span {
	if !trace.SpanContextFromContext(ctx).IsValid() || len(records) == 0 {
		return trace.SpanFromContext(context.Background())
	}
	ctx, span := Start(ctx, "send "+records[0].Topic, trace.WithSpanKind(trace.SpanKindProducer))
	if span.IsRecording() {
		span.SetAttributes(semconv.MessagingSystemKafka, semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("send"),
			semconv.MessagingDestinationName(records[0].Topic), semconv.MessagingBatchMessageCount(len(records)))
	}
	header := []byte(TraceParent(ctx))
	for _, r := range records {
		carry(r, header)
	}
	return span
}

func carry(r *kgo.Record, traceParent []byte) {
	for i := range r.Headers {
		if r.Headers[i].Key == events.HeaderTrace {
			r.Headers[i].Value = traceParent
			return
		}
	}
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: events.HeaderTrace, Value: traceParent})
}
