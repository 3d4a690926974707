package api

import (
	"context"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// RetryRequest says what to run again.
type RetryRequest struct {
	Operations []string `json:"operations,omitempty" description:"Operations that did not complete; left out: all of them"`
}

// Retried answers a retry.
type Retried struct {
	JobID      string   `json:"job_id" format:"uuid"`
	Status     string   `json:"status" description:"Always PENDING: the state at acceptance"`
	Revision   int32    `json:"revision" description:"The revision that begins"`
	Operations []string `json:"operations" description:"What runs again"`
}

// retry answers POST /api/jobs/{job_id}/retry.
func (s *Server) retry(c fuego.ContextNoBody) (Retried, error) {
	id, err := jobID(c.PathParam("job_id"))
	if err != nil {
		return Retried{}, err
	}
	var request RetryRequest
	if err := readBody(c.Response(), c.Request(), &request); err != nil {
		return Retried{}, err
	}
	s.retrying.Lock()
	defer s.retrying.Unlock()
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	state, err := s.findLatest(ctx, id)
	if err != nil {
		return Retried{}, err
	}
	decided, err := commands.Retry{Operations: request.Operations, MaxRevisions: s.cfg.MaxRevisions, TraceParent: telemetry.TraceParent(c.Context()), At: time.Now()}.Decide(state)
	if err != nil {
		return Retried{}, stateConflict(err)
	}
	if err := s.accept(c, decided[0]); err != nil {
		return Retried{}, err
	}
	m := decided[0].Message.(*events.OperationRetryRequested)
	s.Log.InfoContext(c.Context(), "retry requested", "revision", m.GetRevision(), "operations", m.GetOperations())
	return Retried{JobID: id, Status: "PENDING", Revision: m.GetRevision(), Operations: m.GetOperations()}, nil
}
