package handlers

import (
	"maps"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
)

// subject is the job whose outcome is posted.
func subject(p *events.PendingWebhook) *events.Job {
	if p.GetEnded() != nil {
		return p.GetEnded()
	}
	return p.GetJob()
}

// awaits says whether an ended job's outcome is still to be posted, as far as its events
// tell.
func awaits(job *events.Job) bool {
	hook := job.GetWebhook()
	return job.GetPhase() == events.Phase_PHASE_ENDED && job.GetWebhookUrl() != nil &&
		(hook.GetRevision() < job.GetRevision() || !hook.GetDelivered() && !hook.GetFailed())
}

// takeIn is what is kept of a job after an event: nil where nothing is to be posted, now or
// at its end. What is given is not changed, and comes back where the event means nothing.
//
// A retry takes the outcome of the revision before it out of the job. If that is still to be
// posted it is kept beside, until the next revision ends and its own is posted instead.
func takeIn(p *events.PendingWebhook, e events.Event) *events.PendingWebhook {
	before, ended := p.GetJob(), p.GetEnded()
	job := events.Fold(before, e)
	_, retry := e.Message.(*events.OperationRetryRequested)
	switch {
	case retry && job != before && awaits(before):
		ended = before
	case !retry && ended != nil:
		ended = events.Fold(ended, e)
	}
	if ended != nil && (!awaits(ended) || job.GetPhase() != events.Phase_PHASE_OPEN) {
		ended = nil
	}
	switch {
	case job.GetWebhookUrl() == nil || job.GetPhase() != events.Phase_PHASE_OPEN && !awaits(job):
		return nil
	case job == before && ended == p.GetEnded():
		return p
	}
	next := &events.PendingWebhook{Job: job, Ended: ended, TraceParent: p.GetTraceParent()}
	if _, final := e.Message.(*events.JobFinalized); final || p == nil {
		next.TraceParent = e.TraceParent
	}
	return next
}

// begins says whether an event may be of a job that is to be kept from here on.
func begins(e events.Event) bool {
	if e.Imported() {
		return false // the service that did the job has posted its outcome, or has tried to
	}
	request, _ := e.Message.(*events.JobRequested)
	if m, ok := e.Message.(interface{ GetRequest() *events.JobRequested }); ok {
		request = m.GetRequest()
	}
	return request.GetWebhookUrl() != nil
}

// hooks is what is kept of one partition's jobs.
type hooks struct {
	jobs map[string]*events.PendingWebhook
	// next is the offset after the last record taken in; -1: none was, since the restore.
	// until is where the partition ended at the restore. What was posted before us may be
	// told up to there: until that is read nothing is decided, and nothing posted.
	next, until int64
	live        bool
}

// hookChanges is what was read of a partition since the last transaction; nothing of it is
// in the hooks before that is committed.
type hookChanges struct {
	hooks *hooks
	// jobs are the new states; nil is a job to forget. touched are those that something
	// came of since schedule.
	jobs    map[string]*events.PendingWebhook
	touched map[string]struct{}
	emitted []events.Event
	// next is the offset after the last record taken in; -1: none was.
	next int64
	// live: the partition is read to where it ended when we took it over.
	live bool
}

func newHookChanges(h *hooks) *hookChanges {
	return &hookChanges{hooks: h, jobs: map[string]*events.PendingWebhook{}, touched: map[string]struct{}{}, next: h.next, live: h.live}
}

func (c *hookChanges) state(id string) *events.PendingWebhook {
	if p, ok := c.jobs[id]; ok {
		return p
	}
	return c.hooks.jobs[id]
}

func (c *hookChanges) set(id string, p *events.PendingWebhook) {
	if p == nil && c.hooks.jobs[id] == nil {
		delete(c.jobs, id) // as if it had not been
		return
	}
	c.jobs[id] = p
}

// take folds an event.
func (c *hookChanges) take(e events.Event) {
	before := c.state(e.JobID)
	if before == nil && !begins(e) {
		return
	}
	after := takeIn(before, e)
	if after != before {
		c.set(e.JobID, after)
	}
	c.touched[e.JobID] = struct{}{}
}

// schedule decides what follows of the jobs that something came of. It is asked when all
// that was read is taken in: what follows may have been read, too.
func (c *hookChanges) schedule(policy commands.WebhookPolicy, full bool, now time.Time) error {
	for id := range c.touched {
		delete(c.touched, id)
		p := c.state(id)
		job := subject(p)
		if !awaits(job) {
			continue
		}
		decided, err := commands.ScheduleWebhook{WebhookPolicy: policy, Full: full, TraceParent: p.GetTraceParent(), At: now}.Decide(job)
		if err != nil {
			return err
		}
		for _, e := range decided {
			c.emitted = append(c.emitted, e)
			p = takeIn(p, e) // when it comes round it means nothing
		}
		if len(decided) == 0 && job.GetWebhook().GetRevision() < job.GetRevision() {
			p = nil // it is too old
			if job.GetRevision() < c.state(id).GetJob().GetRevision() {
				p = &events.PendingWebhook{Job: c.state(id).GetJob()}
			}
		}
		if p != c.state(id) {
			c.set(id, p)
		}
	}
	return nil
}

// everything has schedule look at all jobs: when a partition is read to its end.
func (c *hookChanges) everything() {
	for id := range c.hooks.jobs {
		c.touched[id] = struct{}{}
	}
	for id := range c.jobs {
		c.touched[id] = struct{}{}
	}
}

// forget lets go of jobs that are open since before t: their end was lost, or they are late
// repeats of a request whose job has long ended.
func (c *hookChanges) forget(t time.Time) {
	for id := range c.hooks.jobs {
		if job := c.state(id).GetJob(); job.GetPhase() == events.Phase_PHASE_OPEN && job.Opened().Before(t) {
			c.set(id, nil)
		}
	}
}

// records are the events to emit and the changelog's new states.
func (c *hookChanges) records(partition int32) ([]*kgo.Record, error) {
	records, err := events.Records(c.emitted)
	if err != nil {
		return nil, err
	}
	states, err := stateRecords(c.jobs, events.WebhooksTopic, partition)
	return append(records, states...), err
}

// commit brings the changes into the hooks, and says of which jobs there is news: all, where
// the partition has just been read to its end.
func (c *hookChanges) commit() map[string]*events.PendingWebhook {
	news := c.jobs
	for id, p := range c.jobs {
		if p == nil {
			delete(c.hooks.jobs, id)
		} else {
			c.hooks.jobs[id] = p
		}
	}
	if c.live && !c.hooks.live {
		news = maps.Clone(c.hooks.jobs)
	}
	c.hooks.next, c.hooks.live = c.next, c.live
	return news
}
