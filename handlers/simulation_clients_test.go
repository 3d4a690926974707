package handlers

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
)

// parcel is a record that somebody has decided to append. It may come late, and again.
type parcel struct {
	record *kgo.Record
	times  int
}

func (w *world) send(e events.Event) {
	r, err := e.Record()
	if err != nil {
		panic(err)
	}
	w.sendRecord(r)
}

func (w *world) sendRecord(r *kgo.Record) {
	if w.once(w.lose) {
		return // its sender died with it
	}
	w.under = append(w.under, &parcel{record: r, times: 1})
	w.sendAgain(r)
}

// sendAgain may have a record come once more, later.
func (w *world) sendAgain(r *kgo.Record) {
	if w.once(w.repeat) {
		w.under = append(w.under, &parcel{record: r, times: 1 + w.IntN(2)})
	}
}

func (w *world) deliver() {
	if len(w.under) == 0 {
		return
	}
	i := w.IntN(len(w.under))
	p := w.under[i]
	w.log.append(p.record, w.now, nil)
	if p.times--; p.times == 0 {
		w.under = slices.Delete(w.under, i, i+1)
	}
}

// call is what a client, or an operator, asks for. It is decided on what the projector has
// made of the log so far.
func (w *world) call() {
	j := pick(w, w.wishes)
	state := w.view.job(j.id)
	at := w.now.Add(w.skew())
	var decided []events.Event
	switch n := w.IntN(20); {
	case state == nil || n < 3:
		if j.archived && state == nil {
			w.sendRecord(adopt("JobRequested.1", j.id, w))
			return
		}
		c := pick(w, j.requests)
		c.At = at
		decided, _ = c.Decide(state)
	case n < 6:
		decided, _ = commands.Cancel{Reason: "not wanted", At: at}.Decide(state)
	case n < 11:
		decided, _ = commands.Retry{Operations: w.someOf(state), MaxRevisions: w.maxRevisions, At: at}.Decide(state)
	case n < 13:
		w.redrive(j)
	case n < 14:
		w.poison(j.id)
	case n < 17:
		decided = w.webhook(state)
	case n < 18 && w.touch(j.id, "replaced"):
		w.replace(state)
	default:
		w.writeAsBefore(state)
	}
	for _, e := range decided {
		w.send(e)
	}
}

// someOf are operations to retry: at times all, and at times what cannot be.
func (w *world) someOf(state *events.Job) (names []string) {
	for _, op := range state.GetOperations() {
		if w.IntN(2) == 0 && (w.IntN(10) == 0 || op.GetPhase() != events.OperationPhase_OPERATION_PHASE_COMPLETED) {
			names = append(names, op.GetName())
		}
	}
	return names
}

// redrive is what an operator does with a dead letter.
func (w *world) redrive(j *wish) {
	var open []*events.DeadLetter
	for _, id := range w.log.letterOrder {
		if l := w.log.letters[id]; l.ClosedAt.IsZero() && l.GetJobId() == j.id {
			open = append(open, l)
		}
	}
	if len(open) == 0 {
		return
	}
	letter := pick(w, open)
	if w.IntN(5) == 0 {
		w.log.tell(events.Discarded(letter.ID, "not wanted", w.now))
		return
	}
	c := commands.Redrive{Letter: letter, OriginFault: "it is broken", MaxRevisions: w.maxRevisions, At: w.now}
	for _, l := range open {
		if l != letter && w.IntN(2) == 0 {
			c.Together = append(c.Together, l)
		}
	}
	if o := letter.GetOrigin(); o != nil {
		if origin := w.log.partitions[o.GetPartition()][o.GetOffset()]; origin.fault == nil {
			c.Origin, c.OriginFault = &origin.event, ""
		}
	}
	e, _, err := c.Decide(w.view.job(j.id))
	if err != nil {
		return
	}
	w.send(e)
	if !w.once(w.lose) {
		w.log.tell(events.Redriven(letter.ID, e.ID, w.now))
	}
}

// poison is a record that is no event, in one of several ways; or one of a newer version.
func (w *world) poison(id string) {
	r := adopt("OperationCompleted.1", id, w)
	switch w.IntN(5) {
	case 0:
		r.Headers = nil
	case 1:
		r.Value = []byte{0xff, 0xff}
	case 2:
		setHeader(r, events.HeaderSubject, "another")
	case 3:
		r.Key = []byte("no job")
		setHeader(r, events.HeaderSubject, "no job")
	default:
		setHeader(r, events.HeaderType, "pixtools.events.v1.FromTheFuture")
	}
	w.sendRecord(r)
}

// webhookPolicy is that of every world.
var webhookPolicy = commands.WebhookPolicy{MaxAttempts: 3, BackoffMin: time.Second, BackoffMax: time.Minute, MaxAge: 1000 * time.Hour}

// webhook is what a process of that role makes of what it knows, which may be long past, or
// what an operator asks for.
func (w *world) webhook(state *events.Job) (decided []events.Event) {
	at := w.now.Add(w.skew())
	hook := state.GetWebhook()
	switch {
	case w.once(0.1):
		decided, _ = commands.RedeliverWebhook{At: at}.Decide(state)
	case hook.GetDue() != nil && hook.GetRevision() == state.GetRevision() && state.GetPhase() == events.Phase_PHASE_ENDED && !hook.GetDelivered():
		c := commands.WebhookAttempted{WebhookPolicy: webhookPolicy, Revision: hook.GetRevision(), Attempt: hook.GetAttempt(), At: at, HTTPStatus: 200}
		if w.IntN(3) > 0 {
			c.HTTPStatus, c.Code, c.Final = 500, "status", w.IntN(5) == 0
		}
		decided, _ = c.Decide(state)
	default:
		decided, _ = commands.ScheduleWebhook{WebhookPolicy: webhookPolicy, Full: w.once(0.05), At: at}.Decide(state)
	}
	return decided
}

// finishWebhooks does what there is to do of all jobs' webhooks.
func (w *world) finishWebhooks() (busy bool) {
	for _, j := range w.wishes {
		state := w.view.job(j.id)
		if !awaits(state) {
			continue
		}
		for _, e := range w.webhook(state) {
			w.send(e)
			busy = true
		}
	}
	return busy
}

// touch says whether a job's artifacts may be dealt with in a way. Fold cannot tell a late
// repeat from a new fact where an artifact goes and comes back, so here a job's artifacts
// are either replaced or expire.
func (w *world) touch(id, how string) bool {
	if w.touched[id] == "" {
		w.touched[id] = how
	}
	return w.touched[id] == how
}

// replace puts another artifact in the place of one.
func (w *world) replace(state *events.Job) {
	for _, op := range state.GetOperations() {
		if state.GetPhase() != events.Phase_PHASE_ENDED || op.GetPhase() != events.OperationPhase_OPERATION_PHASE_COMPLETED || w.IntN(2) == 0 {
			continue
		}
		with := w.artifact()
		with.Sha256 = fmt.Sprintf("%016x", w.Uint64()) // never what was there before
		decided, err := commands.Replace{Operation: op.GetName(), Replaced: op.GetArtifact().GetSha256(), Artifact: with, Engine: "another",
			Campaign: "c", At: w.now.Add(w.skew())}.Decide(state)
		var conflict *commands.Conflict
		if err != nil && !errors.As(err, &conflict) {
			violated(state.GetId(), "replace: %v", err)
		}
		for _, e := range decided {
			w.send(e)
		}
	}
}

// writeAsBefore sends a record of the corpus, its bytes as some version wrote them. It
// must be one that somebody could have decided on this state.
func (w *world) writeAsBefore(state *events.Job) {
	name := pick(w, corpusNames())
	switch name {
	case "JobFinalized.1": // the saga's alone
		return
	case "OperationRetryRequested.2", "WebhookScheduled.2": // what it tells of its job is not so
		return
	case "OperationRetryRequested.1": // tells nothing of its job: who has forgotten that cannot go on
		if w.cfg.Remember < 1000*time.Hour {
			return
		}
	case "ArtifactsExpired.2": // the artifact that it names is none of these jobs'
		return
	case "ArtifactsExpired.1":
		// Of a job that has ended, with the artifact that it names.
		if state.GetPhase() != events.Phase_PHASE_ENDED || !slices.ContainsFunc(state.GetOperations(), func(op *events.OperationState) bool {
			return op.GetName() == "webp" && op.GetArtifact() != nil
		}) || !w.touch(state.GetId(), "expired") {
			return
		}
	case "ArtifactReplaced.1", "ArtifactReplaced.2":
		if !w.touch(state.GetId(), "replaced") {
			return
		}
	case "JobDeleted.1":
		if w.IntN(4) > 0 {
			return // it hides what could be seen otherwise
		}
	}
	r := adopt(name, state.GetId(), w)
	e, err := events.Decode(r)
	if err != nil {
		violated(state.GetId(), "the corpus's %s cannot be read: %v", name, err)
	}
	if events.Fold(state, e) == state {
		return
	}
	w.sendRecord(r)
}

// corpusFile is a record as schemas/corpus has it.
type corpusFile struct {
	Key     string            `json:"key"`
	Headers map[string]string `json:"headers"`
	Value   string            `json:"value_hex"`
}

var corpus = sync.OnceValue(func() map[string]corpusFile {
	paths, err := filepath.Glob("../schemas/corpus/*.json")
	if err != nil || len(paths) == 0 {
		panic("no schemas/corpus")
	}
	all := map[string]corpusFile{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		var f corpusFile
		if err := json.Unmarshal(raw, &f); err != nil {
			panic(path + ": " + err.Error())
		}
		all[strings.TrimSuffix(filepath.Base(path), ".json")] = f
	}
	return all
})

var corpusNames = sync.OnceValue(func() (names []string) {
	for name := range corpus() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
})

// adopt is a record of the corpus as one of a job here: the value is untouched, the
// envelope another.
func adopt(name, id string, w *world) *kgo.Record {
	f, ok := corpus()[name]
	if !ok {
		panic("schemas/corpus has no " + name)
	}
	value, err := hex.DecodeString(f.Value)
	if err != nil {
		panic(err)
	}
	r := &kgo.Record{Topic: events.Topic, Key: []byte(f.Key), Value: value}
	for k, v := range f.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
	}
	e, err := events.Decode(r)
	if err != nil {
		panic(name + ": " + err.Error())
	}
	at := w.now.Add(w.skew())
	r.Key = []byte(id)
	setHeader(r, events.HeaderSubject, id)
	setHeader(r, events.HeaderTime, at.Format("2006-01-02T15:04:05.999999999Z07:00"))
	setHeader(r, events.HeaderID, events.New(id, at, e.Source, "", e.Message).ID)
	return r
}

func setHeader(r *kgo.Record, key, value string) {
	for i := range r.Headers {
		if r.Headers[i].Key == key {
			r.Headers[i].Value = []byte(value)
		}
	}
}
