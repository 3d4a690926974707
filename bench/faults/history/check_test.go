package history

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pixtools/pixtools/events"
)

const (
	jobA = "018f0000-0000-7000-8000-00000000000a"
	jobB = "018f0000-0000-7000-8000-00000000000b"
	jobC = "018f0000-0000-5000-8000-00000000000c" // under a key
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 123_456_789, time.UTC)

// tale writes a history as it should be.
type tale struct {
	h     *History
	clock time.Duration
}

func (t *tale) log(job string, m proto.Message) *events.Position {
	offset := int64(len(t.h.Log) * 2) // with holes, as transactions leave
	at := noon.Add(time.Duration(offset) * time.Second)
	t.h.Log = append(t.h.Log, Record{Offset: offset, Written: at, Event: events.New(job, at, "test", "", m)})
	t.h.Ends[0] = offset + 1
	t.h.Positions[0] = offset + 1
	return &events.Position{Offset: offset}
}

func (t *tale) call(c Call) {
	c.Sent = t.clock
	t.clock += 10 * time.Millisecond
	c.Answered = t.clock
	t.clock += time.Millisecond
	t.h.Calls = append(t.h.Calls, c)
}

func asked(job, key string, operations ...string) *Asked {
	return &Asked{Key: key, SHA256: "sum of " + job, Format: "png", Width: 30, Height: 20, Operations: operations}
}

func (t *tale) request(job string, operations ...string) *events.Position {
	source := &events.Source{Key: "raw/" + job, Sha256: "sum of " + job, Bytes: 7, Width: 30, Height: 20, Format: "png"}
	t.h.Objects[source.GetKey()] = Object{Bytes: 7, SHA256: source.GetSha256(), Format: "png", Width: 30, Height: 20}
	m := &events.JobRequested{Tenant: "default", Source: source, IdempotencyFingerprint: []byte(job)}
	if job == jobA {
		m.WebhookUrl = &events.Sealed{KeyId: "key"}
	}
	for _, name := range operations {
		m.Operations = append(m.Operations, &events.Operation{Name: name})
	}
	return t.log(job, m)
}

func (t *tale) start(job, operation string, attempt int32) {
	t.log(job, &events.OperationStarted{Revision: 1, Operation: operation, Attempt: attempt})
}

func (t *tale) complete(job, operation string, attempt int32) {
	a := &events.Artifact{Key: "processed/" + job + "/" + operation, Sha256: operation + " of " + job, Bytes: 5, Width: 30, Height: 20, Format: operation}
	t.h.Objects[a.GetKey()] = Object{Bytes: 5, SHA256: a.GetSha256(), Format: operation, Width: 30, Height: 20}
	t.log(job, &events.OperationCompleted{Revision: 1, Operation: operation, Attempt: attempt, Artifact: a})
}

func (t *tale) view(job, outcome string, operations map[string]OperationView) *View {
	return &View{Revision: 1, Outcome: outcome, Operations: operations}
}

// good is a history with nothing wrong: A completes, with a repeated attempt whose outcome
// is told twice; B is cancelled half way; C is under a key, asked for twice, and once with
// something else, which is refused; B is retried; a record that is no event has its dead
// letter. Indexes of Log and Calls are used below.
func good() *History {
	t := &tale{h: &History{Ends: map[int32]int64{0: 0, 1: 0}, Positions: map[int32]int64{0: 0, 1: 0}, Objects: map[string]Object{}, MaxStarts: 3}}
	at := t.request(jobA, "webp", "jpg")                                                                                                                                   // log 0
	t.call(Call{Kind: Submit, Status: 202, JobID: jobA, Wrote: at, Asked: asked(jobA, "", "webp", "jpg")})                                                                 // call 0
	t.call(Call{Kind: Read, Status: 200, JobID: jobA, After: at, View: t.view(jobA, "", map[string]OperationView{"webp": {State: "PENDING"}, "jpg": {State: "PENDING"}})}) // call 1
	t.start(jobA, "webp", 1)                                                                                                                                               // log 1
	t.start(jobA, "webp", 2)                                                                                                                                               // log 2
	t.complete(jobA, "webp", 2)                                                                                                                                            // log 3
	t.complete(jobA, "webp", 2)                                                                                                                                            // log 4
	t.start(jobA, "jpg", 1)                                                                                                                                                // log 5
	t.call(Call{Kind: Read, Status: 200, JobID: jobA, View: t.view(jobA, "", map[string]OperationView{
		"webp": {State: "COMPLETED", Attempt: 2, SHA256: "webp of " + jobA}, "jpg": {State: "RUNNING", Attempt: 1}})}) // call 2
	t.complete(jobA, "jpg", 1)                                                                // log 6
	t.log(jobA, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED}) // log 7
	done := map[string]OperationView{"webp": {State: "COMPLETED", Attempt: 2, SHA256: "webp of " + jobA}, "jpg": {State: "COMPLETED", Attempt: 1, SHA256: "jpg of " + jobA}}
	t.call(Call{Kind: Read, Client: 1, Status: 200, JobID: jobA, View: t.view(jobA, "SUCCEEDED", done)}) // call 3

	at = t.request(jobB, "webp", "avif")                                                                    // log 8
	t.call(Call{Kind: Submit, Status: 202, JobID: jobB, Wrote: at, Asked: asked(jobB, "", "webp", "avif")}) // call 4
	t.start(jobB, "webp", 1)                                                                                // log 9
	t.complete(jobB, "webp", 1)                                                                             // log 10
	at = t.log(jobB, &events.JobCancelRequested{Revision: 1})                                               // log 11
	t.call(Call{Kind: Cancel, Status: 202, JobID: jobB, Wrote: at})                                         // call 5
	partial := map[string]OperationView{"webp": {State: "COMPLETED", Attempt: 1, SHA256: "webp of " + jobB}, "avif": {State: "CANCELLED"}}
	t.call(Call{Kind: Read, Status: 200, JobID: jobB, After: at, View: t.view(jobB, "", partial)}) // call 6
	t.log(jobB, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_PARTIAL})        // log 12

	at = t.request(jobC, "webp")                                                                       // log 13
	t.call(Call{Kind: Submit, Status: 0, Asked: asked(jobC, "key", "webp")})                           // call 7
	t.call(Call{Kind: Submit, Status: 202, JobID: jobC, Wrote: at, Asked: asked(jobC, "key", "webp")}) // call 8
	t.call(Call{Kind: Submit, Status: 202, JobID: jobC, Asked: asked(jobC, "key", "webp")})            // call 9
	t.call(Call{Kind: Submit, Status: 422, Asked: asked("other", "key", "webp")})                      // call 10
	t.start(jobC, "webp", 1)                                                                           // log 14
	t.complete(jobC, "webp", 1)                                                                        // log 15
	t.log(jobC, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED})          // log 16
	t.call(Call{Kind: Cancel, Status: 409, JobID: jobC})                                               // call 11

	at = t.log(jobB, &events.OperationRetryRequested{Revision: 2, Operations: []string{"avif"}}) // log 17
	t.call(Call{Kind: Retry, Status: 202, JobID: jobB, Wrote: at})                               // call 12
	again := map[string]OperationView{"webp": partial["webp"], "avif": {State: "PENDING"}}
	t.call(Call{Kind: Read, Status: 200, JobID: jobB, After: at, View: &View{Revision: 2, Operations: again}}) // call 13
	t.log(jobB, &events.OperationStarted{Revision: 2, Operation: "avif", Attempt: 1})                          // log 18
	a := &events.Artifact{Key: "processed/again", Sha256: "again", Bytes: 5, Width: 30, Height: 20, Format: "avif"}
	t.h.Objects[a.GetKey()] = Object{Bytes: 5, SHA256: "again", Format: "avif", Width: 30, Height: 20}
	t.log(jobB, &events.OperationCompleted{Revision: 2, Operation: "avif", Attempt: 1, Artifact: a}) // log 19
	t.log(jobB, &events.JobFinalized{Revision: 2, Outcome: events.Outcome_OUTCOME_SUCCEEDED})        // log 20

	t.log(jobA, &events.WebhookScheduled{Revision: 1, Attempt: 1, Due: timestamppb.New(noon)}) // log 21
	t.log(jobA, &events.WebhookFailed{Revision: 1, Attempt: 1, Code: "status"})                // log 22
	t.log(jobA, &events.WebhookScheduled{Revision: 1, Attempt: 2, Due: timestamppb.New(noon)}) // log 23
	t.log(jobA, &events.WebhookDelivered{Revision: 1, Attempt: 2})                             // log 24
	id, _ := derive(jobA, t.h.Log[7].Event.Message)
	for _, d := range []struct{ status, before int }{{503, 22}, {204, 24}} {
		t.h.Deliveries = append(t.h.Deliveries, Delivery{ID: id, Signed: true, At: t.h.Log[d.before].Written.Add(-time.Millisecond), Status: d.status,
			JobID: jobA, Revision: 1, Outcome: "SUCCEEDED"})
	}
	t.h.Planted = []string{"raw/planted"}
	t.h.Objects["raw/planted"] = Object{}

	t.h.Log = append(t.h.Log, Record{Offset: 100, Event: events.Event{JobID: jobC}, Fault: "malformed"}) // log 25
	t.h.Poison = map[Place]bool{{0, 100}: true}
	t.h.Letters = []Letter{{ID: "letter", JobID: jobC, Origin: &Place{0, 100}}}
	t.h.Ends[0], t.h.Positions[0] = 101, 101
	t.h.project()
	return t.h
}

// project makes the rows that the log asks for.
func (h *History) project() {
	h.Rows = nil
	states := map[string]*events.Job{}
	for _, r := range h.Log {
		if r.Event.Message != nil {
			states[r.Event.JobID] = events.Fold(states[r.Event.JobID], r.Event)
		}
	}
	for id, s := range states {
		if s != nil {
			h.Rows = append(h.Rows, Row{JobID: id, Tenant: s.GetTenant(), Phase: int16(s.GetPhase()), Outcome: int16(s.GetOutcome()), Revision: s.GetRevision(),
				CreatedAt: s.GetRequestedAt().AsTime().Truncate(time.Microsecond), UpdatedAt: s.GetUpdatedAt().AsTime().Truncate(time.Microsecond), State: s})
		}
	}
	slices.SortFunc(h.Rows, func(a, b Row) int { return strings.Compare(a.JobID, b.JobID) })
}

func TestNothingWrong(t *testing.T) { require.Empty(t, Check(good())) }

// without takes records out of the log, and makes the rows follow, so that only the log is
// wrong.
func (h *History) without(indexes ...int) {
	slices.Sort(indexes)
	slices.Reverse(indexes)
	for _, i := range indexes {
		h.Log = slices.Delete(h.Log, i, i+1)
	}
	h.project()
}

// insert puts one more fact into the log, at the odd offset behind that of index i.
func (h *History) insert(i int, m proto.Message) *Record {
	r := Record{Offset: h.Log[i].Offset + 1, Event: events.New(h.Log[i].Event.JobID, noon, "test", "", m)}
	h.Log = slices.Insert(h.Log, i+1, r)
	h.project()
	return &h.Log[i+1]
}

// change alters a message without touching the one of another history.
func change[M proto.Message](h *History, i int, how func(M)) {
	m := proto.Clone(h.Log[i].Event.Message).(M)
	how(m)
	h.Log[i].Event.Message = m
	h.project()
}

// What the log says has expired, of the revision and the artifact that are there, is not missing.
func TestExpiredIsNotMissing(t *testing.T) {
	for name, c := range map[string]struct {
		gone    string
		told    proto.Message
		missing bool
	}{
		"the source":           {"raw/" + jobA, &events.ArtifactsExpired{Revision: 1, Source: true}, false},
		"a result":             {"processed/" + jobA + "/webp", &events.ArtifactsExpired{Revision: 1, Operations: []string{"webp"}, Sha256: []string{"webp of " + jobA}}, false},
		"all of a deleted job": {"processed/" + jobA + "/webp", &events.JobDeleted{}, false},
		"another result":       {"processed/" + jobA + "/webp", &events.ArtifactsExpired{Revision: 1, Operations: []string{"webp"}, Sha256: []string{"other"}}, true},
		"another revision":     {"raw/" + jobA, &events.ArtifactsExpired{Revision: 2, Source: true}, true},
	} {
		h := good()
		delete(h.Objects, c.gone)
		final := slices.IndexFunc(h.Log, func(r Record) bool {
			_, is := r.Event.Message.(*events.JobFinalized)
			return is && r.Event.JobID == jobA
		})
		h.insert(final, c.told)
		missing := false
		for _, v := range Check(h) {
			require.NotEqual(t, Identity, v.Property, "%s: %s", name, v)
			missing = missing || v.Property == Artifacts
		}
		require.Equal(t, c.missing, missing, name)
	}
}

// TestEachPropertyFails: one thing is wrong, and the property that it breaks says so.
func TestEachPropertyFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		wrong func(*History)
		want  Property
		says  string
		// alone says that nothing else is broken by it.
		alone bool
	}{
		{"an accepted job is not in the log", func(h *History) { h.without(13, 14, 15, 16) }, Accepted, "lost", false},
		{"accepted at a place where another event is", func(h *History) { h.Calls[0].Wrote = &events.Position{Offset: h.Log[1].Offset} }, Accepted, "OperationStarted", true},
		{"accepted at a place where nothing is", func(h *History) { h.Calls[0].Wrote = &events.Position{Offset: 999} }, Accepted, "nothing is at", true},
		{"a cancellation that was accepted is not there", func(h *History) { h.without(11) }, Accepted, "nothing is at", false},
		{"accepted without a position", func(h *History) { h.Calls[0].Wrote = nil }, Accepted, "without the position", true},
		{"other operations than were asked for", func(h *History) { h.Calls[0].Asked.Operations = []string{"webp"} }, Accepted, "asked for", true},
		{"another picture than was sent", func(h *History) { h.Calls[0].Asked.Width = 31 }, Accepted, "asked for", true},
		{"a record that is no event", func(h *History) { h.Log[4].Event.Message, h.Log[4].Fault = nil, "no event"; h.project() }, Accepted, "no event", true},
		{"a retry that was accepted is not there", func(h *History) { h.without(17, 18, 19, 20) }, Accepted, "nothing is at", false},
		{"a retried job has no end", func(h *History) { h.without(20) }, Ended, "stuck: revision 2", true},
		{"no end", func(h *History) { h.without(16) }, Ended, "stuck", true},
		{"an outcome is missing", func(h *History) { h.without(15, 16) }, Ended, "webp RUNNING", true},

		{"an attempt completes twice, with another artifact", func(h *History) {
			change(h, 4, func(m *events.OperationCompleted) { m.Artifact.Sha256 = "other" })
		}, Outcomes, "two outcomes", false},
		{"an attempt completes and fails", func(h *History) {
			h.insert(3, &events.OperationFailed{Revision: 1, Operation: "webp", Attempt: 2, Kind: events.FailureKind_FAILURE_KIND_INPUT})
		}, Outcomes, "two outcomes", true},
		{"completed and never begun", func(h *History) { h.without(14) }, Outcomes, "never begun", true},
		{"begun too often", func(h *History) { h.MaxStarts = 1 }, Outcomes, "begun 2 times", true},
		{"begun and not asked for", func(h *History) { h.insert(1, &events.OperationStarted{Revision: 1, Operation: "png", Attempt: 1}) }, Outcomes, "does not ask for it", true},
		{"a sound picture fails", func(h *History) {
			h.Log[15].Event = events.New(jobC, noon, "test", "", &events.OperationFailed{Revision: 1, Operation: "webp", Attempt: 1, Kind: events.FailureKind_FAILURE_KIND_INTERNAL})
			change(h, 16, func(m *events.JobFinalized) { m.Outcome = events.Outcome_OUTCOME_FAILED })
		}, Outcomes, "failed", false},
		{"a broken picture completes", func(h *History) { h.Calls[0].Asked.Broken = true }, Outcomes, "cannot be decoded", true},

		{"ended twice", func(h *History) {
			h.insert(16, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_SUCCEEDED})
		}, Finals, "2 JobFinalized", true},
		{"ended too early", func(h *History) {
			h.insert(9, &events.JobFinalized{Revision: 1, Outcome: events.Outcome_OUTCOME_PARTIAL})
		}, Finals, "were open", false},
		{"ended with a wrong outcome", func(h *History) {
			change(h, 16, func(m *events.JobFinalized) { m.Outcome = events.Outcome_OUTCOME_PARTIAL })
		}, Finals, "the outcomes before it say SUCCEEDED", true},

		{"an id that was drawn", func(h *History) { h.Log[6].Event.ID = "00000000-0000-4000-8000-000000000000" }, Identity, "derived is", true},
		{"a repeat with an id of its own", func(h *History) { h.Log[4].Event.ID = "00000000-0000-4000-8000-000000000000" }, Identity, "derived is", false},
		{"two facts with one id", func(h *History) { h.Log[6].Event.ID = h.Log[3].Event.ID }, Identity, "have one id", true},

		{"an artifact is missing", func(h *History) { delete(h.Objects, "processed/"+jobA+"/jpg") }, Artifacts, "no object", true},
		{"a source is missing", func(h *History) { delete(h.Objects, "raw/"+jobA) }, Artifacts, "no object", true},
		{"an artifact is another one", func(h *History) {
			h.Objects["processed/"+jobA+"/jpg"] = Object{Bytes: 5, SHA256: "other", Format: "jpg", Width: 30, Height: 20}
		}, Artifacts, "SHA-256", true},
		{"an artifact of another format", func(h *History) {
			h.Objects["processed/"+jobA+"/jpg"] = Object{Bytes: 5, SHA256: "jpg of " + jobA, Format: "png", Width: 30, Height: 20}
		}, Artifacts, "is a 30x20 png", true},
		{"an artifact of another picture", func(h *History) {
			change(h, 6, func(m *events.OperationCompleted) { m.Artifact.Width = 99 })
			h.Objects["processed/"+jobA+"/jpg"] = Object{Bytes: 5, SHA256: "jpg of " + jobA, Format: "jpg", Width: 99, Height: 20}
		}, Artifacts, "made a 99x20", true},

		{"a row is missing", func(h *History) { h.Rows = h.Rows[1:] }, ReadModel, "no row", true},
		{"a row too many", func(h *History) { h.Rows = append(h.Rows, Row{JobID: "ghost"}) }, ReadModel, "does not have", true},
		{"a row's state is behind", func(h *History) {
			h.Rows[0].State = proto.Clone(h.Rows[0].State).(*events.Job)
			h.Rows[0].State.Operations[0].Attempt = 9
		}, ReadModel, "the log's fold", true},
		{"a row's columns are not its state's", func(h *History) { h.Rows[0].Outcome++ }, ReadModel, "columns", true},
		{"the read model is behind", func(h *History) { h.Positions[0]-- }, ReadModel, "partition 0 ends", true},

		{"found, then not", func(h *History) { h.Calls[1].Status, h.Calls[1].View = 404, nil }, Reads, "404", true},
		{"an operation goes back", func(h *History) {
			h.Calls[3].View.Outcome, h.Calls[3].View.Operations["webp"] = "", OperationView{State: "RUNNING", Attempt: 1}
		}, Reads, "webp is shown RUNNING", true},
		{"an attempt goes back", func(h *History) {
			h.Calls[1].View.Operations["jpg"], h.Calls[2].View.Operations["jpg"] = OperationView{State: "RUNNING", Attempt: 2}, OperationView{State: "RUNNING", Attempt: 1}
		}, Reads, "jpg is shown RUNNING", true},
		{"the end goes back", func(h *History) { h.Calls[2].View.Outcome = "SUCCEEDED"; h.Calls[3].View.Outcome = "" }, Reads, "is shown open", true},
		{"older than what it was to wait for", func(h *History) { h.Calls[6].View.Operations["avif"] = OperationView{State: "PENDING"} }, Reads, "with after=", true},
		{"an artifact that is not the job's", func(h *History) {
			h.Calls[3].View.Operations["jpg"] = OperationView{State: "COMPLETED", Attempt: 1, SHA256: "other"}
		}, Reads, "the log says", true},
		{"an outcome that was not", func(h *History) { h.Calls[3].View.Outcome = "PARTIAL" }, Reads, "the log says", true},
		{"a job that is not", func(h *History) { h.Calls[3].JobID = "ghost" }, Reads, "no such job", true},

		{"an older revision is shown", func(h *History) { h.Calls[13].View = h.Calls[6].View }, Reads, "older revision", true},

		{"no letter for what cannot be read", func(h *History) { h.Letters = nil }, DeadLetters, "has 0 letters", true},
		{"two letters for one record", func(h *History) { h.Letters = append(h.Letters, h.Letters[0]) }, DeadLetters, "has 2 letters", true},
		{"a letter of a record that can be read", func(h *History) {
			h.Letters = append(h.Letters, Letter{ID: "other", JobID: jobA, Origin: &Place{0, 0}})
		}, DeadLetters, "can be read", true},
		{"two letters for one operation", func(h *History) {
			h.Letters = append(h.Letters, Letter{ID: "one", JobID: jobA, Operation: "webp", Revision: 1}, Letter{ID: "two", JobID: jobA, Operation: "webp", Revision: 1})
		}, DeadLetters, "ids of their own", true},
		{"given up without a letter", func(h *History) {
			h.insert(6, &events.OperationFailed{Revision: 1, Operation: "jpg", Attempt: 2, Kind: events.FailureKind_FAILURE_KIND_WORLD})
		}, DeadLetters, "has no letter", true},

		{"never posted", func(h *History) { h.Deliveries = nil; h.without(21, 22, 23, 24) }, Webhooks, "never taken", true},
		{"posted, and not told", func(h *History) { h.without(24) }, Webhooks, "does not say so", true},
		{"told, and not posted", func(h *History) { h.Deliveries = h.Deliveries[:1] }, Webhooks, "did not take it", true},
		{"told before it is posted", func(h *History) { h.Log[24].Written = h.Log[23].Written }, Webhooks, "to be delivered 1.999s before it was", true},
		{"told and not scheduled", func(h *History) { h.without(23) }, Webhooks, "was not scheduled", true},
		{"posted before the end", func(h *History) { h.Log[7].Written = h.Log[24].Written }, Webhooks, "before it was", true},
		{"posted, and there is no end", func(h *History) { h.Deliveries[0].Revision = 2 }, Webhooks, "did not end", true},
		{"not signed", func(h *History) { h.Deliveries[1].Signed = false }, Webhooks, "not signed", true},
		{"another outcome is posted", func(h *History) { h.Deliveries[0].Outcome = "PARTIAL" }, Webhooks, "was SUCCEEDED", true},
		{"an id that is not the end's", func(h *History) { h.Deliveries[0].ID = "other" }, Webhooks, "its end's is", true},

		{"a source expires", func(h *History) { h.insert(7, &events.ArtifactsExpired{Revision: 1, Source: true}) }, Kept, "nobody asked", true},
		{"a young object is removed", func(h *History) { delete(h.Objects, "raw/planted") }, Kept, "while it was young", true},

		{"two jobs for a key", func(h *History) {
			t := &tale{h: h}
			t.request(jobB, "webp") // a repeat, that changes nothing
			h.Log[len(h.Log)-1].Event = events.New("018f0000-0000-5000-8000-00000000000d", noon, "test", "", h.Log[13].Event.Message)
			h.project()
		}, Keys, "has 2 jobs", false},
		{"two answers for a key", func(h *History) { h.Calls[9].JobID = jobA }, Keys, "answered with 2 jobs", false},
		{"equal requests, one refused", func(h *History) { h.Calls[10].Asked = asked(jobC, "key", "webp") }, Keys, "all its requests are equal", true},
		{"a sound picture is refused", func(h *History) { h.Calls[7].Asked, h.Calls[7].Status = asked("unkept", "", "webp"), 422 }, Keys, "all its requests are equal", true},
		{"accepted for what is not the key's", func(h *History) { h.Calls[10].Status, h.Calls[10].JobID = 202, jobC }, Accepted, "asked for", true},
		{"a job that nobody asked for", func(h *History) { h.Calls = h.Calls[:7] }, Keys, "nobody asked for", true},

		{"an answer that is none", func(h *History) { h.Calls[7].Status = 500 }, Answers, "500", true},
	} {
		t.Run(strings.ReplaceAll(c.name, ",", ""), func(t *testing.T) {
			h := good()
			c.wrong(h)
			found := Check(h)
			require.True(t, slices.ContainsFunc(found, func(v Violation) bool { return v.Property == c.want && strings.Contains(v.Message, c.says) }), "found: %v", found)
			if c.alone {
				for _, v := range found {
					require.Equal(t, c.want, v.Property, fmt.Sprint(v))
				}
			}
		})
	}
}
