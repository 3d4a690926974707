package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-fuego/fuego"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/pixtools/pixtools/events"
)

// JobHistory is every event of a job, in the order in which they count.
type JobHistory struct {
	JobID  string         `json:"job_id" format:"uuid"`
	Events []HistoryEvent `json:"events"`
}

// HistoryEvent is one event, why it came, and the job after it.
type HistoryEvent struct {
	Position  string    `json:"position" description:"Pass it as at= to read the job as it was then"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	ID        string    `json:"id" description:"Derived: the same fact told again has the same id"`
	Type      string    `json:"type"`
	Time      time.Time `json:"time"`
	Source    string    `json:"source" description:"The part of PixTools that told it"`
	RequestID string    `json:"request_id"`

	CausedBy     *string  `json:"caused_by" description:"The id of the event that this one answers"`
	DelaySeconds *float64 `json:"delay_seconds" description:"The time since that event"`

	Effect bool            `json:"effect" description:"Whether it changed the job: repeats, and what came too late, do not"`
	Event  json.RawMessage `json:"event"`
	Job    *Job            `json:"job" description:"The job after it, without links; null where there is none"`
}

// history answers GET /api/jobs/{job_id}/events.
func (s *Server) history(c fuego.ContextNoBody) (JobHistory, error) {
	id, err := jobID(c.PathParam("job_id"))
	if err != nil {
		return JobHistory{}, err
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	if after := c.QueryParam("after"); after != "" {
		if err := s.waitFor(ctx, after); err != nil {
			return JobHistory{}, err
		}
	}
	placed, err := s.eventsOf(ctx, id)
	if err != nil {
		return JobHistory{}, err
	}
	answer := JobHistory{JobID: id, Events: []HistoryEvent{}}
	times := map[string]time.Time{}
	var state *events.Job
	for _, p := range placed {
		next := events.Fold(state, p.Event)
		e, err := s.explain(p, times)
		if err != nil {
			return JobHistory{}, err
		}
		if e.Effect = next != state; next != nil && next.GetPhase() != events.Phase_PHASE_DELETED {
			job := jobOf(next)
			e.Job = &job
		}
		answer.Events = append(answer.Events, e)
		state = next
	}
	return answer, nil
}

// placed is an event and where it lies.
type placed struct {
	events.Event
	partition int32
	offset    int64
}

// eventsOf reads a job's events from the log, those whose places the read model knows; a
// *Problem where there is no such job.
func (s *Server) eventsOf(ctx context.Context, id string) ([]placed, error) {
	state, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	offsets, err := s.Reader.History(ctx, tenantOf(ctx), id)
	if _, err := s.found(id, state, err); err != nil {
		return nil, err
	}
	partition := s.partitionOf(id)
	records, err := s.ReadLog(ctx, events.Topic, partition, offsets)
	if err != nil {
		return nil, unavailable("The job's events cannot be read from the log.", err)
	}
	var all []placed
	for _, r := range records {
		e, err := events.Decode(r)
		if errors.Is(err, events.ErrUnknownType) {
			continue // a newer version's projector has told us of it
		}
		if err != nil || e.JobID != id {
			return nil, fmt.Errorf("the record at offset %d of partition %d is no event of job %s: the read model is of another log: %w", r.Offset, partition, id, err)
		}
		all = append(all, placed{e, partition, r.Offset})
	}
	return all, nil
}

// explain shows an event; times has those of the events before it, by id.
func (s *Server) explain(p placed, times map[string]time.Time) (HistoryEvent, error) {
	e := HistoryEvent{Position: events.Position{Log: s.LogID, Partition: p.partition, Offset: p.offset}.Token(), Partition: p.partition, Offset: p.offset,
		ID: p.ID, Type: p.Name(), Time: p.Time, Source: p.Source, RequestID: p.CorrelationID}
	if p.CausationID != "" {
		e.CausedBy = &p.CausationID
		if at, known := times[p.CausationID]; known {
			delay := p.Time.Sub(at).Seconds()
			e.DelaySeconds = &delay
		}
	}
	if _, told := times[p.ID]; !told {
		times[p.ID] = p.Time
	}
	var err error
	e.Event, err = protojson.Marshal(p.Message)
	return e, err
}

// jobAt is the job as it was at a position, or at a time: after every event up to then.
func (s *Server) jobAt(c fuego.ContextNoBody, id, at string) (Job, error) {
	if c.QueryParam("wait") != "" || c.QueryParam("after") != "" {
		return Job{}, invalid("at", "at cannot be asked for together with wait or after: what was does not change")
	}
	var until func(placed) bool
	moment, timeErr := time.Parse(time.RFC3339, at)
	position, positionErr := events.ParsePosition(at)
	switch {
	case timeErr == nil:
		until = func(p placed) bool { return !p.Time.After(moment) }
	case positionErr != nil:
		return Job{}, invalid("at", "at must be a position from a job's events, or a time such as 2026-11-24T12:00:00Z")
	case position.Log != s.LogID:
		return Job{}, invalid("at", "at is a position in another log than this service's")
	case position.Partition != s.partitionOf(id):
		return Job{}, invalid("at", "at is a position in another partition than this job's")
	default:
		until = func(p placed) bool { return p.offset <= position.Offset }
	}
	ctx, stop := context.WithTimeout(c.Context(), s.cfg.WaitTimeout)
	defer stop()
	if positionErr == nil { // a stream may tell of what the read model has not applied yet
		if err := s.waitFor(ctx, at); err != nil {
			return Job{}, err
		}
	}
	all, err := s.eventsOf(ctx, id)
	if err != nil {
		return Job{}, err
	}
	var state *events.Job
	for _, p := range all {
		next := events.Fold(state, p.Event)
		if next != state && !until(p) {
			break // clocks differ, but what came after this in the log was not before it
		}
		state = next
	}
	if state == nil {
		return Job{}, problem(http.StatusNotFound, fmt.Sprintf("Job %s did not exist then", id))
	}
	return s.render(ctx, state)
}
