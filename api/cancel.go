package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/bug"
	"github.com/pixtools/pixtools/internal/kafka"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// Cancelled answers a cancellation. The job ends a moment later, as the log decides: an
// operation whose outcome came first keeps it.
type Cancelled struct {
	JobID string `json:"job_id" format:"uuid"`
}

// cancel answers POST /api/jobs/{job_id}/cancel.
func (s *Server) cancel(c fuego.ContextNoBody) (Cancelled, error) {
	id, err := jobID(c.PathParam("job_id"))
	if err != nil {
		return Cancelled{}, err
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	state, err := s.find(ctx, id)
	if err != nil {
		return Cancelled{}, err
	}
	decided, err := commands.Cancel{TraceParent: telemetry.TraceParent(c.Context()), Reason: "cancelled by the client", At: time.Now()}.Decide(state)
	if err != nil {
		return Cancelled{}, stateConflict(err)
	}
	if err := s.accept(c, decided[0]); err != nil {
		return Cancelled{}, err
	}
	s.Log.InfoContext(c.Context(), "cancellation requested")
	return Cancelled{JobID: id}, nil
}

// accept writes an event and makes the answer one that says so: 202, with its position.
func (s *Server) accept(c fuego.ContextNoBody, e events.Event) error {
	token, err := s.append(c.Context(), e)
	if err != nil {
		return err
	}
	accepted(c, token)
	return nil
}

// accepted makes the answer 202. The token is empty where nothing was written.
func accepted(c fuego.ContextNoBody, token string) {
	h := c.Response().Header()
	if token != "" {
		h.Set(PositionHeader, token)
	}
	// Before the status: the framework would send its headers without it.
	h.Set("Content-Type", "application/json")
	c.SetStatus(http.StatusAccepted)
}

// append writes an event, and returns its position.
func (s *Server) append(ctx context.Context, e events.Event) (token string, err error) {
	record, err := e.Record()
	if err != nil {
		return "", err
	}
	err = s.Publisher.Append(telemetry.OfEvent(ctx, e), record)
	if bug.On("api-does-not-wait") {
		err = nil
	}
	if errors.Is(err, kafka.ErrNotAcknowledged) {
		p := unavailable("Kafka did not acknowledge the event in time.", err)
		p.Detail = "Kafka did not acknowledge the event in time, and may have it or not. Send the same request again; under an idempotency key it is one job either way."
		return "", p
	}
	if err != nil {
		return "", unavailable("The event could not be written to the log.", err)
	}
	return events.Position{Log: s.LogID, Partition: record.Partition, Offset: record.Offset}.Token(), nil
}
