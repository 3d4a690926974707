package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pixtools/pixtools/events"
)

// Check gives every broken promise, by property and job.
func Check(h *History) []Violation {
	j := &judge{History: h, jobs: stories(h.Log), bySource: map[string][]string{}, byPlace: map[Place]*Record{}, spoilt: map[string]bool{}}
	for i := range h.Log {
		at := Place{h.Log[i].Partition, h.Log[i].Offset}
		j.byPlace[at] = &h.Log[i]
		if h.Poison[at] {
			j.spoilt[h.Log[i].Event.JobID] = true
		}
	}
	for id, s := range j.jobs {
		if len(s.requests) > 0 {
			sum := s.requests[0].Event.Message.(*events.JobRequested).GetSource().GetSha256()
			j.bySource[sum] = append(j.bySource[sum], id)
		}
	}
	for _, check := range []func(){j.accepted, j.ended, j.outcomes, j.finals, j.identity, j.artifacts, j.readModel, j.reads, j.deadLetters, j.webhooks, j.kept, j.keys, j.answers} {
		check()
	}
	order := Properties()
	slices.SortStableFunc(j.found, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Property), slices.Index(order, b.Property)), cmp.Compare(a.JobID, b.JobID))
	})
	return j.found
}

type judge struct {
	*History
	jobs map[string]*story
	// bySource are the jobs whose first request names a picture.
	bySource map[string][]string
	byPlace  map[Place]*Record
	// spoilt are jobs with a record under their key that cannot be read.
	spoilt map[string]bool
	found  []Violation
}

func (j *judge) fault(p Property, jobID, format string, args ...any) {
	j.found = append(j.found, Violation{p, jobID, fmt.Sprintf(format, args...)})
}

func (j *judge) accepted() {
	for _, r := range j.Log {
		if _, meant := j.Poison[Place{r.Partition, r.Offset}]; r.Event.Message == nil && !meant {
			j.fault(Accepted, r.Event.JobID, "the record at partition %d, offset %d is no event: %s", r.Partition, r.Offset, r.Fault)
		}
	}
	for i := range j.Calls {
		c := &j.Calls[i]
		if c.Status != 202 {
			continue
		}
		j.wrote(c)
		if c.Kind == Submit {
			j.requested(c)
		}
	}
}

// wrote looks for the event at the position that the answer carried.
func (j *judge) wrote(c *Call) {
	if c.Wrote == nil {
		if c.Kind != Submit || c.Asked.Key == "" {
			j.fault(Accepted, c.JobID, "client %d: 202 to a %s without the position of its event", c.Client, c.Kind)
		}
		return // a repeat, that wrote nothing
	}
	r := j.byPlace[Place{c.Wrote.Partition, c.Wrote.Offset}]
	if r == nil {
		j.fault(Accepted, c.JobID, "client %d: 202 to a %s, and nothing is at partition %d, offset %d", c.Client, c.Kind, c.Wrote.Partition, c.Wrote.Offset)
		return
	}
	var fits bool
	switch r.Event.Message.(type) {
	case *events.JobRequested:
		fits = c.Kind == Submit
	case *events.JobCancelRequested:
		fits = c.Kind == Cancel
	case *events.OperationRetryRequested:
		fits = c.Kind == Retry
	}
	if !fits || r.Event.JobID != c.JobID {
		j.fault(Accepted, c.JobID, "client %d: 202 to a %s, and at partition %d, offset %d is %s of job %s", c.Client, c.Kind,
			r.Partition, r.Offset, r.Event.Type(), r.Event.JobID)
	}
}

// requested compares what was accepted with the job that the log has.
func (j *judge) requested(c *Call) {
	s := j.jobs[c.JobID]
	if s == nil || len(s.requests) == 0 {
		j.fault(Accepted, c.JobID, "client %d: 202 at %s, and the log has no such job: it is lost", c.Client, short(c.Answered))
		return
	}
	m := s.requests[0].Event.Message.(*events.JobRequested)
	var names []string
	for _, op := range m.GetOperations() {
		names = append(names, op.GetName())
	}
	source := m.GetSource()
	if source.GetSha256() != c.Asked.SHA256 || source.GetFormat() != c.Asked.Format || int(source.GetWidth()) != c.Asked.Width ||
		int(source.GetHeight()) != c.Asked.Height || !slices.Equal(names, c.Asked.Operations) {
		j.fault(Accepted, c.JobID, "client %d asked for %v of %s, a %dx%d %s; the job is %v of %s, a %dx%d %s", c.Client, c.Asked.Operations, c.Asked.SHA256,
			c.Asked.Width, c.Asked.Height, c.Asked.Format, names, source.GetSha256(), source.GetWidth(), source.GetHeight(), source.GetFormat())
	}
}

func (j *judge) ended() {
	for id, s := range j.jobs {
		if len(s.requests) > 0 && s.now.outcome == "" {
			j.fault(Ended, id, "stuck: %s", s.now)
		}
	}
}

func (j *judge) outcomes() {
	broken := map[string]bool{}
	for _, c := range j.Calls {
		if c.Asked != nil && c.Asked.Broken {
			broken[c.Asked.SHA256] = true
		}
	}
	for id, s := range j.jobs {
		j.found = append(j.found, s.faults...)
		for a, all := range s.outcomes {
			for _, r := range all[1:] {
				if difference := repeats(all[0], r); difference != "" {
					j.fault(Outcomes, id, "attempt %d at %s in revision %d has two outcomes, at offsets %d and %d: %s",
						a.number, a.operation, a.revision, all[0].Offset, r.Offset, difference)
				}
			}
		}
		for a, n := range s.starts {
			if a.number == 0 && n > int(j.MaxStarts) {
				j.fault(Outcomes, id, "%s was begun %d times in revision %d; at most %d are allowed", a.operation, n, a.revision, j.MaxStarts)
			}
		}
		if len(s.requests) == 0 {
			continue
		}
		bad := broken[s.requests[0].Event.Message.(*events.JobRequested).GetSource().GetSha256()]
		for name, op := range s.now.operations {
			switch {
			case op.state == "COMPLETED" && bad:
				j.fault(Outcomes, id, "%s of a picture that cannot be decoded completed", name)
			case op.state == "FAILED" && op.code == events.CodeUndecodable && j.spoilt[id]: // nobody knows what the record told
			case op.state == "FAILED" && (!bad || op.kind != events.FailureKind_FAILURE_KIND_INPUT):
				j.fault(Outcomes, id, "%s failed: kind %s, code %s; the picture is broken: %t", name, op.kind, op.code, bad)
			case op.state == "CANCELLED" && !s.cancelled:
				j.fault(Outcomes, id, "%s is cancelled and nobody cancelled it", name)
			}
		}
	}
}

// repeats says what differs in a repeat of an outcome, which may differ in times only.
func repeats(first, again *Record) string {
	if first.Event.ID != again.Event.ID {
		return fmt.Sprintf("%s %s and %s %s", first.Event.Type(), first.Event.ID, again.Event.Type(), again.Event.ID)
	}
	switch a := first.Event.Message.(type) {
	case *events.OperationCompleted:
		b, ok := again.Event.Message.(*events.OperationCompleted)
		if !ok || !proto.Equal(a.GetArtifact(), b.GetArtifact()) {
			return fmt.Sprintf("artifacts %s and %s", a.GetArtifact(), b.GetArtifact())
		}
	case *events.OperationFailed:
		b, ok := again.Event.Message.(*events.OperationFailed)
		if !ok || a.GetCode() != b.GetCode() {
			return fmt.Sprintf("codes %s and %s", a.GetCode(), b.GetCode())
		}
	}
	return ""
}

func (j *judge) finals() {
	for id, s := range j.jobs {
		for revision, all := range s.finals {
			if len(all) > 1 {
				j.fault(Finals, id, "%d JobFinalized of revision %d for a consumer of committed records, the first at offset %d, the second at %d",
					len(all), revision, all[0].Offset, all[1].Offset)
			}
		}
	}
}

func (j *judge) identity() {
	seen := map[string]string{}
	for _, r := range j.Log {
		if r.Event.Message == nil {
			continue
		}
		want, fact := derive(r.Event.JobID, r.Event.Message)
		if want == "" {
			continue
		}
		if r.Event.ID != want {
			j.fault(Identity, r.Event.JobID, "%s at offset %d has the id %s; derived is %s", fact, r.Offset, r.Event.ID, want)
		}
		if other, ok := seen[r.Event.ID]; ok && other != fact {
			j.fault(Identity, r.Event.JobID, "%s and %s have one id, %s", other, fact, r.Event.ID)
		}
		seen[r.Event.ID] = fact
	}
}

func (j *judge) artifacts() {
	for id, s := range j.jobs {
		if len(s.requests) == 0 {
			continue
		}
		source := s.requests[0].Event.Message.(*events.JobRequested).GetSource()
		j.object(id, "the source", s.gone[""], source.GetKey(), source.GetSha256(), source.GetBytes(), source.GetFormat(), source.GetWidth(), source.GetHeight())
		for _, r := range s.artifacts {
			m := r.Event.Message.(*events.OperationCompleted)
			a := m.GetArtifact()
			format := m.GetOperation()
			if format == "denoise" {
				format = "png"
			}
			if a.GetFormat() != format || a.GetWidth() != source.GetWidth() || a.GetHeight() != source.GetHeight() {
				j.fault(Artifacts, id, "%s made a %dx%d %s of a %dx%d %s", m.GetOperation(), a.GetWidth(), a.GetHeight(), a.GetFormat(),
					source.GetWidth(), source.GetHeight(), source.GetFormat())
			}
			j.object(id, m.GetOperation(), s.gone[m.GetOperation()], a.GetKey(), a.GetSha256(), a.GetBytes(), a.GetFormat(), a.GetWidth(), a.GetHeight())
		}
	}
}

func (j *judge) object(id, what string, gone bool, key, sha256 string, bytes int64, format string, width, height int32) {
	o, ok := j.Objects[key]
	switch {
	case !ok && gone:
	case !ok:
		j.fault(Artifacts, id, "%s: there is no object %s", what, key)
	case o.SHA256 != sha256 || o.Bytes != bytes:
		j.fault(Artifacts, id, "%s: the object %s has %d bytes, SHA-256 %s; the log says %d, %s", what, key, o.Bytes, o.SHA256, bytes, sha256)
	case o.Format != format || o.Width != int(width) || o.Height != int(height):
		j.fault(Artifacts, id, "%s: the object %s is a %dx%d %s; the log says %dx%d %s", what, key, o.Width, o.Height, o.Format, width, height, format)
	}
}

// readModel folds the log as PixTools does, and compares.
func (j *judge) readModel() {
	for partition, end := range j.Ends {
		if j.Positions[partition] != end {
			j.fault(ReadModel, "", "partition %d ends at %d; the read model says it is at %d", partition, end, j.Positions[partition])
		}
	}
	folds := map[string]*events.Job{}
	for _, r := range j.Log {
		if r.Event.Message == nil {
			continue
		}
		if next := events.Fold(folds[r.Event.JobID], r.Event); next != nil {
			folds[r.Event.JobID] = next
		}
	}
	for _, row := range j.Rows {
		want := folds[row.JobID]
		delete(folds, row.JobID)
		if want == nil {
			j.fault(ReadModel, row.JobID, "there is a row of a job that the log does not have")
			continue
		}
		if !proto.Equal(row.State, want) {
			j.fault(ReadModel, row.JobID, "the state is %s; the log's fold is %s", row.State, want)
		}
		if row.Tenant != want.GetTenant() || int32(row.Phase) != int32(want.GetPhase()) || int32(row.Outcome) != int32(want.GetOutcome()) || row.Revision != want.GetRevision() ||
			!row.CreatedAt.Equal(microseconds(want.GetRequestedAt().AsTime())) || !row.UpdatedAt.Equal(microseconds(want.GetUpdatedAt().AsTime())) {
			row.State = nil
			j.fault(ReadModel, row.JobID, "the columns are not those of the state: %+v; the log's fold is %s", row, want)
		}
	}
	for id := range folds {
		j.fault(ReadModel, id, "there is no row")
	}
}

// microseconds are what Postgres keeps.
func microseconds(t time.Time) time.Time { return t.Truncate(time.Microsecond) }

// keys: the log does not tell a job's key, but each key has pictures of its own.
func (j *judge) keys() {
	type use struct {
		ids      map[string]bool // answered
		sources  map[string]bool
		requests map[string]bool // what was asked, as text
		refused  int
	}
	uses := map[string]*use{}
	for i := range j.Calls {
		c := &j.Calls[i]
		if c.Kind != Submit {
			continue
		}
		name := "key " + c.Asked.Key
		if c.Asked.Key == "" {
			name = "picture " + c.Asked.SHA256
		}
		u := uses[name]
		if u == nil {
			u = &use{map[string]bool{}, map[string]bool{}, map[string]bool{}, 0}
			uses[name] = u
		}
		u.sources[c.Asked.SHA256] = true
		u.requests[fmt.Sprint(c.Asked.SHA256, c.Asked.Operations)] = true
		switch c.Status {
		case 202:
			u.ids[c.JobID] = true
		case 422:
			if !c.Asked.Broken { // half a small picture may lack its header, and is refused at once
				u.refused++
			}
		}
	}
	known := map[string]bool{}
	for name, u := range uses {
		var jobs []string
		for sum := range u.sources {
			known[sum] = true
			jobs = append(jobs, j.bySource[sum]...)
		}
		for _, id := range jobs {
			if len(u.ids) > 0 && !u.ids[id] {
				j.fault(Keys, id, "%s: the log has this job, and the answers named %v", name, slices.Sorted(maps.Keys(u.ids)))
			}
		}
		if len(jobs) > 1 {
			j.fault(Keys, jobs[0], "%s has %d jobs: %s", name, len(jobs), strings.Join(jobs, ", "))
		}
		if len(u.ids) > 1 {
			j.fault(Keys, "", "%s was answered with %d jobs: %v", name, len(u.ids), slices.Sorted(maps.Keys(u.ids)))
		}
		if u.refused > 0 && len(u.requests) == 1 {
			j.fault(Keys, "", "%s was refused %d times, though all its requests are equal", name, u.refused)
		}
	}
	for sum, jobs := range j.bySource {
		if !known[sum] {
			j.fault(Keys, jobs[0], "a job that nobody asked for, of the picture %s", sum)
		}
	}
}

// answers: what a client may be told. 404 is judged with the reads.
func (j *judge) answers() {
	allowed := map[Kind][]int{Submit: {202, 422, 429, 503}, Read: {200, 404, 503}, Cancel: {202, 404, 409, 503}, Retry: {202, 404, 409, 503}}
	for _, c := range j.Calls {
		if c.Status != 0 && !slices.Contains(allowed[c.Kind], c.Status) {
			j.fault(Answers, c.JobID, "client %d: a %s was answered %d: %s", c.Client, c.Kind, c.Status, c.Problem)
		}
	}
}

func short(d time.Duration) string { return d.Round(time.Millisecond).String() }
