package api

import (
	"context"
	"net/http"
	"time"

	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/telemetry"
)

// delete answers DELETE /api/jobs/{job_id}. What the job has stored is removed a moment
// later, by the role janitor.
func (s *Server) delete(c fuego.ContextNoBody) (any, error) {
	id, err := jobID(c.PathParam("job_id"))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	state, err := s.findLatest(ctx, id) // a job that was deleted before is 404, as for whoever reads it
	if err != nil {
		return nil, err
	}
	decided, err := commands.Delete{Reason: "deleted by the client", Source: "pixtools/api", TraceParent: telemetry.TraceParent(c.Context()), At: time.Now()}.Decide(state)
	if err != nil {
		return nil, stateConflict(err)
	}
	token, err := s.append(c.Context(), decided[0])
	if err != nil {
		return nil, err
	}
	// Who reads the job now should be told that it is gone, without a word of the position.
	// Where the read model is behind, it is deleted all the same.
	if position, err := events.ParsePosition(token); err == nil {
		_ = s.Reader.Wait(ctx, position.Partition, position.Offset)
	}
	s.Log.InfoContext(ctx, "job deleted")
	c.Response().Header().Set(PositionHeader, token)
	c.Response().WriteHeader(http.StatusNoContent)
	return nil, nil
}
