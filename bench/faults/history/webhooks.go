package history

import (
	"net/http"

	"github.com/pixtools/pixtools/events"
)

// webhooks compares what was received with what the log tells.
func (j *judge) webhooks() {
	type ending struct {
		job      string
		revision int32
	}
	taken := map[ending]Delivery{} // the first that its receiver took
	for _, d := range j.Deliveries {
		s := j.jobs[d.JobID]
		if !d.Signed {
			j.fault(Webhooks, d.JobID, "what was posted of revision %d is not signed with a secret of its tenant", d.Revision)
		}
		if s == nil || len(s.finals[d.Revision]) == 0 {
			j.fault(Webhooks, d.JobID, "the outcome of revision %d was posted, which did not end", d.Revision)
			continue
		}
		final := s.finals[d.Revision][0]
		switch id, _ := derive(d.JobID, final.Event.Message); {
		case d.At.Before(final.Written):
			j.fault(Webhooks, d.JobID, "the outcome of revision %d was posted %s before it was", d.Revision, final.Written.Sub(d.At))
		case d.ID != id:
			j.fault(Webhooks, d.JobID, "what was posted of revision %d has the id %s; its end's is %s", d.Revision, d.ID, id)
		case d.Outcome != s.past[d.Revision].outcome:
			j.fault(Webhooks, d.JobID, "revision %d was posted as %s, and was %s", d.Revision, d.Outcome, s.past[d.Revision].outcome)
		}
		if at := (ending{d.JobID, d.Revision}); d.Status < http.StatusMultipleChoices {
			if _, before := taken[at]; !before {
				taken[at] = d
			}
		}
	}
	for id, s := range j.jobs {
		scheduled, told := map[attempt]bool{}, map[int32]bool{}
		attempted := func(r *Record, revision, number int32) {
			if !scheduled[attempt{revision, "", number}] {
				j.fault(Webhooks, id, "attempt %d at posting revision %d is told (offset %d) and was not scheduled", number, revision, r.Offset)
			}
		}
		for _, r := range s.records {
			switch m := r.Event.Message.(type) {
			case *events.WebhookScheduled:
				scheduled[attempt{m.GetRevision(), "", m.GetAttempt()}] = true
			case *events.WebhookFailed:
				attempted(r, m.GetRevision(), m.GetAttempt())
			case *events.WebhookDelivered:
				attempted(r, m.GetRevision(), m.GetAttempt())
				told[m.GetRevision()] = true
				d, came := taken[ending{id, m.GetRevision()}]
				switch {
				case !came:
					j.fault(Webhooks, id, "the outcome of revision %d is told (offset %d) to be delivered, and its receiver did not take it", m.GetRevision(), r.Offset)
				case d.At.After(r.Written):
					j.fault(Webhooks, id, "the outcome of revision %d is told (offset %d) to be delivered %s before it was", m.GetRevision(), r.Offset, d.At.Sub(r.Written))
				}
			}
		}
		if len(s.requests) == 0 || s.now.outcome == "" || s.requests[0].Event.Message.(*events.JobRequested).GetWebhookUrl() == nil {
			continue
		}
		if _, came := taken[ending{id, s.now.revision}]; !came {
			j.fault(Webhooks, id, "the outcome of revision %d was never taken by its receiver", s.now.revision)
		} else if !told[s.now.revision] {
			j.fault(Webhooks, id, "the outcome of revision %d was delivered, and the log does not say so", s.now.revision)
		}
	}
}

// kept: the retention is far longer than a run.
func (j *judge) kept() {
	for _, r := range j.Log {
		switch r.Event.Message.(type) {
		case *events.ArtifactsExpired, *events.JobDeleted:
			j.fault(Kept, r.Event.JobID, "%s (offset %d), and nobody asked for it", r.Event.Name(), r.Offset)
		}
	}
	for _, key := range j.Planted {
		if _, there := j.Objects[key]; !there {
			j.fault(Kept, "", "the object %s, which no event names, was removed while it was young", key)
		}
	}
}
