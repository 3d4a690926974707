package telemetry

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// About is what a context, and so a log line and a span, is about; what is empty is not known.
type About struct {
	RequestID, JobID, Operation string
}

type aboutKey struct{}

// With is ctx about these things, too.
func With(ctx context.Context, a About) context.Context {
	before := of(ctx)
	if a.RequestID == "" {
		a.RequestID = before.RequestID
	}
	if a.JobID == "" {
		a.JobID = before.JobID
	}
	if a.Operation == "" {
		a.Operation = before.Operation
	}
	return context.WithValue(ctx, aboutKey{}, a)
}

func of(ctx context.Context) About {
	a, _ := ctx.Value(aboutKey{}).(About)
	return a
}

// NewHandler has every line of inner that is logged with a context say what that is about,
// and in which trace it is.
func NewHandler(inner slog.Handler) slog.Handler { return handler{inner} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	a := of(ctx)
	for _, id := range []struct{ key, value string }{{"request_id", a.RequestID}, {"job_id", a.JobID}, {"operation", a.Operation}} {
		if id.value != "" {
			r.AddAttrs(slog.String(id.key, id.value))
		}
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
