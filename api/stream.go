package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/projections"
)

// heartbeat is how often a stream without news says that it is there, so that what lies
// between does not take it for dead.
const heartbeat = 15 * time.Second

// writeTimeout bounds writing one piece of news to a client that does not read.
const writeTimeout = 10 * time.Second

// stream answers GET /api/jobs/{job_id}/stream with server-sent events:
//
//	event: job       the job, as GET /api/jobs/{job_id} has it; at once, and after each change
//	event: progress  how far an operation is; without an id, since it is not in the log
//
// The id of a job's news is the position of the last event in it. As every piece of news is
// the whole job, a client that connects again has missed nothing. A stream that ends with its
// process says when to come back.
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	if err := s.serveStream(w, r); err != nil {
		s.sendError(w, r, err)
	}
}

func (s *Server) serveStream(w http.ResponseWriter, r *http.Request) error {
	id, err := jobID(r.PathValue("job_id"))
	if err != nil {
		return err
	}
	leave, err := take(s.streams, streamsOpen, fmt.Sprintf("%d streams are open, the limit (MAX_STREAMS); ask with wait= instead, or try again shortly", s.cfg.MaxStreams))
	if err != nil {
		return err
	}
	defer leave()
	told, stop := s.Follower.Watch(id, s.partitionOf(id)) // before reading the job
	defer func() { stop() }()
	listening, silence := s.Progress.Listen(id)
	defer silence()
	state, place, err := s.findWithPlace(r.Context(), id, told.After)
	if err != nil {
		return err
	}
	out := &eventStream{w: w, control: connectionOf(r)}
	out.begin()
	if err := s.sendJob(r.Context(), out, state, place); err != nil {
		return nil // the client is gone
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-s.Stopping:
			_ = out.write(comeBack()) // it ends here in any case
			return nil
		case <-beat.C:
			if s.keyEnded(r.Context()) {
				return nil
			}
			err = out.comment("still here")
		case p := <-listening:
			err = out.send("progress", "", p)
		case e, ok := <-told.C:
			if !ok { // too many at once: the job is read anew
				stop()
				told, stop = s.Follower.Watch(id, s.partitionOf(id))
				if state, place, err = s.findWithPlace(r.Context(), id, told.After); err == nil {
					err = s.sendJob(r.Context(), out, state, place)
				}
				break
			}
			next := events.Fold(state, e.Event)
			if e.Offset <= place || next == state {
				break // it was in what we read, or means nothing
			}
			if next.GetPhase() == events.Phase_PHASE_DELETED {
				return nil // who asks again is told that there is no such job
			}
			if s.keyEnded(r.Context()) {
				return nil // who asks again is told so
			}
			state, place = next, e.Offset
			err = s.sendJob(r.Context(), out, state, place)
		}
		if err != nil {
			return nil // the client is gone, or comes again for what we cannot read now
		}
	}
}

// comeBack has the client of a stream that ends with its process connect anew, to another one:
// soon, but not all clients in the same moment. The spread is in milliseconds.
func comeBack() string {
	const soonest, spread = 200, 800
	return fmt.Sprintf("retry: %d\n: this process stops, come back\n\n", soonest+rand.IntN(spread))
}

// findWithPlace is find, from a read model that has passed the offset after, with the offset of
// the last event in the job.
func (s *Server) findWithPlace(ctx context.Context, id string, after int64) (*events.Job, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitTimeout)
	defer cancel()
	if after >= 0 {
		if err := s.Reader.Wait(ctx, s.partitionOf(id), after); err != nil {
			return nil, 0, unavailable("The read model has not caught up with the log yet.", err)
		}
	}
	state, place, err := s.Reader.JobAndPlace(ctx, tenantOf(ctx), id)
	if errors.Is(err, projections.ErrNotFound) {
		if _, err = s.lookAgain(ctx, id); err == nil {
			state, place, err = s.Reader.JobAndPlace(ctx, tenantOf(ctx), id)
		}
	}
	state, err = s.found(id, state, err)
	return state, place, err
}

func (s *Server) sendJob(ctx context.Context, out *eventStream, state *events.Job, place int64) error {
	job, err := s.render(ctx, state)
	if err != nil {
		return err
	}
	position := events.Position{Log: s.LogID, Partition: s.partitionOf(state.GetId()), Offset: place}
	return out.send("job", position.Token(), job)
}

// eventStream writes server-sent events (WHATWG HTML, section 9.2).
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

func (o *eventStream) begin() {
	h := o.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies that collect answers would hold the news back
	o.w.WriteHeader(http.StatusOK)
}

func (o *eventStream) send(name, id string, value any) error {
	data, err := json.Marshal(value) // no line break in it
	if err != nil {
		return err
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	return o.write(fmt.Sprintf("event: %s\n%sdata: %s\n\n", name, id, data))
}

func (o *eventStream) comment(text string) error { return o.write(": " + text + "\n\n") }

func (o *eventStream) write(text string) error {
	_ = o.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := o.w.Write([]byte(text)); err != nil {
		return err
	}
	return o.control.Flush()
}
