package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/pixtools/pixtools/commands"
)

// Problem is an error answer: RFC 9457, with detail as existing clients read it.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Detail says what is wrong and what to do, in a sentence.
	Detail string `json:"detail"`
	// Errors has one entry per wrong field.
	Errors     []commands.Fault `json:"errors,omitempty"`
	RetryAfter time.Duration    `json:"-"`
	cause      error
}

func (p *Problem) Error() string { return p.Detail }
func (p *Problem) Unwrap() error { return p.cause }

func problem(status int, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// wrong answers what is wrong with one field, and names it.
func wrong(status int, field, message string) *Problem {
	p := problem(status, message)
	p.Errors = []commands.Fault{{Field: field, Message: message}}
	return p
}

// invalid is wrong with 422.
func invalid(field, message string) *Problem {
	return wrong(http.StatusUnprocessableEntity, field, message)
}

// unavailable answers 503: the same request may succeed after a pause.
func unavailable(what string, cause error) *Problem {
	p := problem(http.StatusServiceUnavailable, what+" Nothing was lost; send the same request again.")
	p.RetryAfter, p.cause = retryAfter, cause
	return p
}

// full answers 507: the same request succeeds when somebody has made room.
func full(what string, cause error) *Problem {
	p := unavailable(what, cause)
	p.Status, p.Title = http.StatusInsufficientStorage, http.StatusText(http.StatusInsufficientStorage)
	return p
}

// room refuses new work while a disk of ours is full. What was accepted goes on in the room
// that is kept for it.
func (s *Server) room() error {
	if err := s.Room(); err != nil {
		return full("PixTools takes no new work: "+err.Error()+".", err)
	}
	return nil
}

// busy answers 429: too much is under way, and the same request may succeed after a pause.
func busy(what string) *Problem {
	p := problem(http.StatusTooManyRequests, what)
	p.RetryAfter = retryAfter
	return p
}

// take takes one of a bounded number of places, and what it returns gives it back; where
// there is none left, it is busy with what. taken tells how many are.
func take(places chan struct{}, taken prometheus.Gauge, what string) (leave func(), err error) {
	select {
	case places <- struct{}{}:
		taken.Inc()
		return func() { <-places; taken.Dec() }, nil
	default:
		return nil, busy(what)
	}
}

// stateConflict answers 409 where a command contradicts what has become of its job.
func stateConflict(err error) error {
	var conflict *commands.Conflict
	if errors.As(err, &conflict) {
		return problem(http.StatusConflict, conflict.Message)
	}
	return err
}

// retryAfter is what we ask clients to wait after 503.
const retryAfter = 2 * time.Second

// asProblem is the answer for any error. What we did not foresee is shown without
// its text, which may hold what is nobody's business.
func asProblem(err error) *Problem {
	var p *Problem
	var faults commands.Invalid
	var conflict *commands.Conflict
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &faults):
		p = problem(http.StatusUnprocessableEntity, faults.Error())
		p.Errors = faults
	case errors.As(err, &conflict):
		p = invalid(conflict.Field, conflict.Message)
	default:
		p = problem(http.StatusInternalServerError, "Something went wrong on our side; the log has it under this request's X-Request-ID.")
		p.cause = err
	}
	return p
}

// write sends the problem.
func (p *Problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/problem+json")
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter.Seconds())))
	}
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
