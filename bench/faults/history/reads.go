package history

import (
	"slices"
	"time"
)

func (j *judge) reads() {
	byJob := map[string][]*Call{}
	found := map[string]time.Duration{} // when the first 202 had told of a job
	for i := range j.Calls {
		c := &j.Calls[i]
		switch {
		case c.Kind == Submit && c.Status == 202:
			if at, ok := found[c.JobID]; !ok || c.Answered < at {
				found[c.JobID] = c.Answered
			}
		case c.Kind != Submit:
			byJob[c.JobID] = append(byJob[c.JobID], c)
		}
	}
	for id, calls := range byJob {
		accepted, ok := found[id]
		for _, c := range calls {
			if c.Status == 404 && ok && c.Sent >= accepted {
				j.fault(Reads, id, "client %d: a %s sent at %s was answered 404; the job was accepted at %s", c.Client, c.Kind, short(c.Sent), short(accepted))
			}
		}
		calls = slices.DeleteFunc(calls, func(c *Call) bool { return c.View == nil })
		for _, c := range calls {
			j.shown(id, c)
		}
		j.monotonic(id, calls)
	}
}

// shown compares one read with the log: it is as new as what it was to wait for, and what
// it says of an end is what the log says.
func (j *judge) shown(id string, c *Call) {
	s := j.jobs[id]
	if s == nil || len(s.requests) == 0 {
		j.fault(Reads, id, "client %d: shown at %s, and the log has no such job", c.Client, short(c.Answered))
		return
	}
	if c.After != nil && c.After.Partition == s.records[0].Partition {
		if least, ok := s.at(c.After.Offset); ok {
			if older := c.View.olderThan(viewOf(least)); older != "" {
				j.fault(Reads, id, "client %d, sent at %s, with after= partition %d, offset %d: %s", c.Client, short(c.Sent), c.After.Partition, c.After.Offset, older)
			}
		}
	}
	of, ok := s.past[c.View.Revision]
	if c.View.Revision == s.now.revision {
		of, ok = s.now, true
	}
	if !ok || c.View.Outcome != "" && c.View.Outcome != of.outcome {
		j.fault(Reads, id, "client %d was shown at %s revision %d, outcome %q; the log says %q", c.Client, short(c.Answered), c.View.Revision, c.View.Outcome, of.outcome)
		return
	}
	for name, op := range c.View.Operations {
		was := of.operations[name]
		if rankOf(op.State) == settled && (op.State != was.state || op.SHA256 != was.sha256) {
			j.fault(Reads, id, "client %d was shown at %s %s %s %s; the log says %s %s", c.Client, short(c.Answered), name, op.State, op.SHA256, was.state, was.sha256)
		}
	}
}

// monotonic: a read that was sent after another was answered shows no older state,
// whoever sent the two and whoever answered them.
func (j *judge) monotonic(id string, calls []*Call) {
	bySent := slices.Clone(calls)
	slices.SortFunc(bySent, func(a, b *Call) int { return int(a.Sent - b.Sent) })
	byAnswer := calls
	slices.SortFunc(byAnswer, func(a, b *Call) int { return int(a.Answered - b.Answered) })
	var newest *View
	for _, c := range bySent {
		for len(byAnswer) > 0 && byAnswer[0].Answered < c.Sent {
			newest = newest.with(byAnswer[0].View)
			byAnswer = byAnswer[1:]
		}
		if newest == nil {
			continue
		}
		if older := c.View.olderThan(newest); older != "" {
			j.fault(Reads, id, "client %d, sent at %s: %s", c.Client, short(c.Sent), older)
		}
	}
}

func rankOf(state string) int {
	switch state {
	case "PENDING":
		return pending
	case "RUNNING":
		return running
	}
	return settled
}

func viewOf(c chapter) *View {
	v := &View{Revision: c.revision, Outcome: c.outcome, Operations: map[string]OperationView{}}
	for name, op := range c.operations {
		v.Operations[name] = OperationView{State: op.state, Attempt: op.attempt, SHA256: op.sha256}
	}
	return v
}

// olderThan says how v falls behind other, or nothing.
func (v *View) olderThan(other *View) string {
	switch {
	case v.Revision != other.Revision:
		if v.Revision < other.Revision {
			return "an older revision is shown than was known"
		}
		return ""
	case v.Outcome == "" && other.Outcome != "":
		return "it is shown open, and was known to have ended: " + other.Outcome
	}
	for name, known := range other.Operations {
		shown := v.Operations[name]
		if rankOf(shown.State) < rankOf(known.State) || rankOf(known.State) < settled && shown.Attempt < known.Attempt && rankOf(shown.State) < settled {
			return name + " is shown " + shown.State + ", and was known to be " + known.State
		}
	}
	return ""
}

// with is the newest of two views in each part; where reads are monotonic, one of them.
func (v *View) with(other *View) *View {
	if v == nil || other.Revision > v.Revision {
		return other
	}
	if other.Revision < v.Revision || other.olderThan(v) != "" {
		return v
	}
	return other
}
