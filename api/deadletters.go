package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-fuego/fuego"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/telemetry"
	"github.com/pixtools/pixtools/projections"
)

const (
	// defaultPage and largestPage bound the dead letters that one request lists or acts on.
	defaultPage = 100
	largestPage = 1000
	// longestReason bounds the reason of a discard, in bytes.
	longestReason = 1000
)

// DeadLetter is something that was given up.
type DeadLetter struct {
	ID        string    `json:"id" format:"uuid"`
	State     string    `json:"state" description:"OPEN, REDRIVEN or DISCARDED"`
	At        time.Time `json:"at" description:"When it was given up"`
	Group     string    `json:"group" description:"The consumer group that gave it up"`
	Origin    *Origin   `json:"origin" description:"The record that could not be handled; null where none was the cause"`
	Type      string    `json:"type" description:"The record's ce_type"`
	JobID     string    `json:"job_id"`
	Operation string    `json:"operation" description:"Empty where the record as a whole could not be handled"`
	Revision  int32     `json:"revision"`
	Attempts  int32     `json:"attempts"`
	Kind      string    `json:"kind" description:"WORLD or INTERNAL"`
	Code      string    `json:"code"`
	Message   string    `json:"message"`
	Stack     string    `json:"stack"`
	RequestID string    `json:"request_id"`

	ClosedAt      *time.Time `json:"closed_at"`
	RedrivenBy    string     `json:"redriven_by" description:"The id of the event that asks for its work again"`
	DiscardReason string     `json:"discard_reason"`
}

// Origin is a record's place.
type Origin struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// DeadLetterPage is one page of them, the oldest first.
type DeadLetterPage struct {
	DeadLetters []DeadLetter `json:"dead_letters"`
	More        int          `json:"more" description:"How many follow"`
	Next        *string      `json:"next" description:"Pass it as after= to get those"`
}

// DeadLetterDetail is a dead letter with its record.
type DeadLetterDetail struct {
	DeadLetter
	Record *Record `json:"record" description:"null where it cannot be read from the log"`
	// RecordFault says why.
	RecordFault string `json:"record_fault,omitempty"`
}

// Record is a record of the log.
type Record struct {
	Key      string            `json:"key"`
	Headers  map[string]string `json:"headers"`
	Event    json.RawMessage   `json:"event,omitempty" description:"The value as JSON, where it can be decoded"`
	ValueHex string            `json:"value_hex,omitempty" description:"The value as it is, where it cannot"`
	Fault    string            `json:"fault,omitempty" description:"Why it cannot be decoded"`
}

// Selection says which open dead letters are meant.
type Selection struct {
	IDs       []string   `json:"ids,omitempty"`
	Operation string     `json:"operation,omitempty"`
	Type      string     `json:"type,omitempty"`
	Code      string     `json:"code,omitempty"`
	Group     string     `json:"group,omitempty"`
	JobID     string     `json:"job_id,omitempty"`
	Since     *time.Time `json:"since,omitempty" description:"Given up at this time or later"`
	Until     *time.Time `json:"until,omitempty" description:"Given up before this time"`
	All       bool       `json:"all,omitempty" description:"All of them; needed where nothing else is named"`

	After  string `json:"after,omitempty" description:"Begin after this one: the answer's next"`
	Limit  int    `json:"limit,omitempty" description:"At most so many in this request, 1 to 1000, default 100"`
	DryRun bool   `json:"dry_run,omitempty" description:"Say what would be done, and do nothing"`
}

// DiscardRequest is a selection with a reason.
type DiscardRequest struct {
	Selection
	Reason string `json:"reason" description:"Kept with the dead letter"`
}

// Treated says what was done, or would be.
type Treated struct {
	DryRun  bool            `json:"dry_run"`
	Results []TreatedLetter `json:"results"`
	More    int             `json:"more" description:"How many follow that are meant, too"`
	Next    *string         `json:"next" description:"Pass it as after to go on with those"`
}

// TreatedLetter is what was done with one, or would be.
type TreatedLetter struct {
	ID        string `json:"id" format:"uuid"`
	JobID     string `json:"job_id"`
	Operation string `json:"operation"`
	Action    string `json:"action" description:"retry: its operations run again; append: its record is appended again; discard; none: see detail"`
	Detail    string `json:"detail"`
}

// deadLetters answers GET /api/dead-letters.
func (s *Server) deadLetters(c fuego.ContextNoBody) (DeadLetterPage, error) {
	given := c.Request().URL.Query()
	for name := range given {
		if !slices.Contains([]string{"state", "operation", "type", "code", "group", "job_id", "since", "until", "limit", "after"}, name) {
			return DeadLetterPage{}, invalid(name, name+" is nothing that dead letters are picked by; see /docs")
		}
	}
	q := given.Get
	if id := q("job_id"); id != "" && !events.IsJobID(id) {
		return DeadLetterPage{}, invalid("job_id", "job_id is not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
	}
	f := projections.LetterFilter{Operation: q("operation"), Type: q("type"), Code: q("code"), Group: q("group"), JobID: q("job_id"), After: q("after")}
	var err error
	if f.Since, err = moment("since", q("since")); err != nil {
		return DeadLetterPage{}, err
	}
	if f.Until, err = moment("until", q("until")); err != nil {
		return DeadLetterPage{}, err
	}
	switch q("state") {
	case "", "open":
		f.Open = true
	case "all":
	default:
		return DeadLetterPage{}, invalid("state", "state must be open or all")
	}
	limit := 0
	if text := q("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit == 0 {
			return DeadLetterPage{}, badLimit()
		}
	}
	page, more, err := s.selectLetters(c.Context(), f, limit)
	if err != nil {
		return DeadLetterPage{}, err
	}
	answer := DeadLetterPage{DeadLetters: []DeadLetter{}, More: more, Next: nextAfter(page, more)}
	for _, letter := range page {
		answer.DeadLetters = append(answer.DeadLetters, renderLetter(letter))
	}
	return answer, nil
}

func badLimit() *Problem {
	return invalid("limit", fmt.Sprintf("limit must be a number from 1 to %d", largestPage))
}

func moment(field, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, invalid(field, field+" must be a time such as 2026-11-24T12:00:00Z")
	}
	return at, nil
}

// selectLetters reads the view, once it has what is in the topic now.
func (s *Server) selectLetters(ctx context.Context, f projections.LetterFilter, limit int) ([]*events.DeadLetter, int, error) {
	if limit == 0 {
		limit = defaultPage
	}
	if limit < 1 || limit > largestPage {
		return nil, 0, badLimit()
	}
	ctx, stop := context.WithTimeout(ctx, s.cfg.WaitTimeout)
	defer stop()
	if err := s.DeadLetters.Await(ctx); err != nil {
		return nil, 0, unavailable("The dead letters cannot be read to their end.", err)
	}
	if err := s.pickable("operation", f.Operation, operations.Names(), projections.LetterFilter{Operation: f.Operation}); err != nil {
		return nil, 0, err
	}
	if err := s.pickable("type", f.Type, events.Types(), projections.LetterFilter{Type: f.Type}); err != nil {
		return nil, 0, err
	}
	page, more, err := s.DeadLetters.List(f, limit)
	if errors.Is(err, projections.ErrNotFound) {
		return nil, 0, invalid("after", "after is the id of no dead letter that is still kept")
	}
	return page, more, err
}

// pickable refuses a value that is none of those that there are. A letter may have another one all
// the same, of another version or of a record that is broken: then it may be picked by that.
func (s *Server) pickable(field, value string, known []string, having projections.LetterFilter) error {
	if value == "" || slices.Contains(known, value) {
		return nil
	}
	if found, _, err := s.DeadLetters.List(having, 1); err != nil || len(found) > 0 {
		return err
	}
	return invalid(field, fmt.Sprintf("%s must be one of %s, or what a dead letter has", field, strings.Join(known, ", ")))
}

func nextAfter(page []*events.DeadLetter, more int) *string {
	if more == 0 || len(page) == 0 {
		return nil
	}
	return &page[len(page)-1].ID
}

func renderLetter(l *events.DeadLetter) DeadLetter {
	d := DeadLetter{ID: l.ID, State: "OPEN", At: l.At, Group: l.GetGroup(), Type: l.GetType(), JobID: l.GetJobId(), Operation: l.GetOperation(),
		Revision: l.GetRevision(), Attempts: l.GetAttempts(), Kind: word(l.GetKind().String(), "FAILURE_KIND_"), Code: l.GetCode(),
		Message: l.GetMessage(), Stack: l.GetStack(), RequestID: l.CorrelationID, RedrivenBy: l.RedrivenBy, DiscardReason: l.DiscardReason}
	if o := l.GetOrigin(); o != nil {
		d.Origin = &Origin{o.GetTopic(), o.GetPartition(), o.GetOffset()}
	}
	if !l.ClosedAt.IsZero() {
		d.ClosedAt, d.State = &l.ClosedAt, "REDRIVEN"
		if l.Discarded {
			d.State = "DISCARDED"
		}
	}
	return d
}

// deadLetter answers GET /api/dead-letters/{id}.
func (s *Server) deadLetter(c fuego.ContextNoBody) (DeadLetterDetail, error) {
	id := strings.ToLower(c.PathParam("id"))
	if !events.IsJobID(id) {
		return DeadLetterDetail{}, invalid("id", "id is not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")
	}
	page, _, err := s.selectLetters(c.Context(), projections.LetterFilter{IDs: []string{id}}, 1)
	if err != nil {
		return DeadLetterDetail{}, err
	}
	if len(page) == 0 {
		return DeadLetterDetail{}, problem(http.StatusNotFound, fmt.Sprintf("Dead letter %s not found", id))
	}
	d := DeadLetterDetail{DeadLetter: renderLetter(page[0])}
	d.Record, d.RecordFault = s.record(c.Context(), page[0])
	return d, nil
}

func (s *Server) originOf(ctx context.Context, l *events.DeadLetter) (*kgo.Record, error) {
	o := l.GetOrigin()
	found, err := s.ReadLog(ctx, o.GetTopic(), o.GetPartition(), []int64{o.GetOffset()})
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

// record reads a letter's record from the log.
func (s *Server) record(ctx context.Context, l *events.DeadLetter) (*Record, string) {
	if l.GetOrigin() == nil {
		return nil, "no one record was the cause"
	}
	ctx, stop := context.WithTimeout(ctx, s.cfg.WaitTimeout)
	defer stop()
	r, err := s.originOf(ctx, l)
	if err != nil {
		s.Log.WarnContext(telemetry.With(ctx, telemetry.About{JobID: l.GetJobId()}), "a dead letter's record cannot be read", "dead_letter", l.ID, "error", err)
		return nil, "it cannot be read from the log: " + err.Error()
	}
	record := &Record{Key: string(r.Key), Headers: map[string]string{}}
	for _, h := range r.Headers {
		record.Headers[h.Key] = string(h.Value)
	}
	e, err := events.Decode(r)
	if err == nil {
		record.Event, err = protojson.Marshal(e.Message)
	}
	if err != nil {
		record.Event, record.ValueHex, record.Fault = nil, hex.EncodeToString(r.Value), err.Error()
	}
	return record, ""
}

// filter checks a selection.
func (s Selection) filter() (projections.LetterFilter, error) {
	f := projections.LetterFilter{IDs: s.IDs, Open: len(s.IDs) == 0, Operation: s.Operation, Type: s.Type, Code: s.Code, Group: s.Group, JobID: s.JobID, After: s.After}
	if s.Since != nil {
		f.Since = *s.Since
	}
	if s.Until != nil {
		f.Until = *s.Until
	}
	named := len(s.IDs) > 0 || s.Operation+s.Type+s.Code+s.Group+s.JobID != "" || s.Since != nil || s.Until != nil
	switch {
	case !named && !s.All:
		return f, invalid("ids", "name dead letters by ids, operation, type, code, group, job_id, since or until, or set all to true")
	case len(s.IDs) > largestPage:
		return f, invalid("ids", fmt.Sprintf("ids has %d entries; the limit is %d", len(s.IDs), largestPage))
	}
	return f, nil
}

// treat does something with each letter of a selection. What stands in one's way is told
// with it; what stands in all their ways ends it.
func (s *Server) treat(ctx context.Context, selection Selection, one func(l *events.DeadLetter, page []*events.DeadLetter) (TreatedLetter, error)) (Treated, error) {
	f, err := selection.filter()
	if err != nil {
		return Treated{}, err
	}
	if len(f.IDs) > 0 && selection.Limit == 0 {
		selection.Limit = largestPage
	}
	page, more, err := s.selectLetters(ctx, f, selection.Limit)
	if err != nil {
		return Treated{}, err
	}
	answer := Treated{DryRun: selection.DryRun, Results: []TreatedLetter{}, More: more, Next: nextAfter(page, more)}
	missing := map[string]bool{}
	for _, id := range selection.IDs {
		missing[id] = true
	}
	for i, letter := range page {
		delete(missing, letter.ID)
		result, err := one(letter, page)
		var conflict *commands.Conflict
		if errors.As(err, &conflict) {
			result.Action, result.Detail, err = "none", conflict.Message, nil
		}
		if err != nil && i > 0 {
			// What was done is told; who goes on from there hears of this.
			s.Log.WarnContext(ctx, "dead letters: not all of a page", "error", err)
			answer.More, answer.Next = more+len(page)-i, &page[i-1].ID
			return answer, nil
		}
		if err != nil {
			return Treated{}, err
		}
		result.ID, result.JobID, result.Operation = letter.ID, letter.GetJobId(), letter.GetOperation()
		answer.Results = append(answer.Results, result)
	}
	if more == 0 && selection.After == "" {
		for _, id := range selection.IDs {
			if missing[id] {
				answer.Results = append(answer.Results, TreatedLetter{ID: id, Action: "none", Detail: "there is no such dead letter among those that are meant"})
			}
		}
	}
	return answer, nil
}

// redrive answers POST /api/dead-letters/redrive.
func (s *Server) redrive(c fuego.ContextNoBody) (Treated, error) {
	var selection Selection
	if err := readBody(c.Response(), c.Request(), &selection); err != nil {
		return Treated{}, err
	}
	s.retrying.Lock()
	defer s.retrying.Unlock()
	r := redriving{Server: s, ctx: c.Context(), selection: selection, traceParent: telemetry.TraceParent(c.Context()),
		jobs: map[string]*events.Job{}, appended: map[string]bool{}}
	return s.treat(r.ctx, selection, r.one)
}

// redriving is one request to redrive.
type redriving struct {
	*Server
	ctx         context.Context
	selection   Selection
	traceParent string
	// jobs are those read so far; appended are the ids of the events written.
	jobs     map[string]*events.Job
	appended map[string]bool
}

func (r *redriving) one(l *events.DeadLetter, page []*events.DeadLetter) (TreatedLetter, error) {
	command := commands.Redrive{Letter: l, MaxRevisions: r.cfg.MaxRevisions, TraceParent: r.traceParent, At: time.Now()}
	for _, other := range page {
		if other != l && other.GetJobId() == l.GetJobId() && other.ClosedAt.IsZero() {
			command.Together = append(command.Together, other)
		}
	}
	state, err := r.stateFor(&command)
	if err != nil {
		return TreatedLetter{}, err
	}
	e, action, err := command.Decide(state)
	if err != nil {
		return TreatedLetter{}, err
	}
	detail := "its record is appended to the log again: " + e.Type()
	if m, ok := e.Message.(*events.OperationRetryRequested); ok {
		detail = fmt.Sprintf("revision %d begins: %s", m.GetRevision(), strings.Join(m.GetOperations(), ", "))
	}
	result := TreatedLetter{Action: action, Detail: detail}
	if r.selection.DryRun {
		return result, nil
	}
	if !r.appended[e.ID] {
		if _, err := r.append(r.ctx, e); err != nil {
			return result, err
		}
		r.appended[e.ID] = true
	}
	r.Log.InfoContext(telemetry.With(r.ctx, telemetry.About{JobID: l.GetJobId()}), "dead letter redriven", "dead_letter", l.ID, "event", e.ID)
	return result, r.close(r.ctx, events.Redriven(l.ID, e.ID, time.Now()))
}

// stateFor finds what a redrive is decided on: the job, and the letter's record where
// the letter is about the whole of it.
func (r *redriving) stateFor(command *commands.Redrive) (*events.Job, error) {
	ctx, stop := context.WithTimeout(r.ctx, r.cfg.WaitTimeout)
	defer stop()
	l := command.Letter
	if l.GetOperation() == "" && l.GetOrigin() != nil {
		record, err := r.originOf(ctx, l)
		if err == nil {
			var e events.Event
			if e, err = events.Decode(record); err == nil {
				command.Origin = &e
			}
		}
		if err != nil {
			command.OriginFault = err.Error()
		}
	}
	id := l.GetJobId()
	if state, known := r.jobs[id]; known || id == "" {
		return state, nil
	}
	state, err := r.findOfAnyTenant(ctx, id)
	var missing *Problem
	if errors.As(err, &missing) && missing.Status == http.StatusNotFound {
		state, err = nil, nil
	}
	if err == nil {
		r.jobs[id] = state
	}
	return state, err
}

// discard answers POST /api/dead-letters/discard.
func (s *Server) discard(c fuego.ContextNoBody) (Treated, error) {
	var request DiscardRequest
	if err := readBody(c.Response(), c.Request(), &request); err != nil {
		return Treated{}, err
	}
	if request.Reason == "" || len(request.Reason) > longestReason {
		return Treated{}, invalid("reason", fmt.Sprintf("reason must have 1 to %d bytes: it is kept with the dead letter", longestReason))
	}
	ctx := c.Context()
	return s.treat(ctx, request.Selection, func(l *events.DeadLetter, _ []*events.DeadLetter) (TreatedLetter, error) {
		if !l.ClosedAt.IsZero() {
			return TreatedLetter{}, &commands.Conflict{Field: "id", Message: "it was redriven or discarded already"}
		}
		result := TreatedLetter{Action: "discard", Detail: "nobody will ask for its work again"}
		if request.DryRun {
			return result, nil
		}
		s.Log.InfoContext(telemetry.With(ctx, telemetry.About{JobID: l.GetJobId()}), "dead letter discarded", "dead_letter", l.ID)
		return result, s.close(ctx, events.Discarded(l.ID, request.Reason, time.Now()))
	})
}

func (s *Server) close(ctx context.Context, e events.LetterEvent) error {
	record, err := e.Record()
	if err != nil {
		return err
	}
	if err := s.Publisher.Append(ctx, record); err != nil {
		return unavailable("The dead letter could not be marked.", err)
	}
	return nil
}
