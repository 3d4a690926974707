package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/pixtools/pixtools/bench/faults/history"
	"github.com/pixtools/pixtools/events"
)

// requestTimeout is when a client gives up on an answer.
const requestTimeout = 20 * time.Second

// load is clients that ask, and note what they are told.
type load struct {
	seed  uint64
	start time.Time
	http  *http.Client
	fleet *fleet
	log   *follower
	// most operations of a job, and most jobs open at once: beyond it clients wait.
	operations, backlog int
	// denoise and broken are shares of the submissions, reuse is that of the repeated keys
	// under which something else is sent.
	denoise, broken, reuse float64
	// hooks is the address to which hooked of the submissions want their outcome posted; empty:
	// none of them.
	hooks  string
	hooked float64

	mu    sync.Mutex
	calls []history.Call
	// ids are jobs that were accepted, the newest last, for anyone to read.
	ids []string
	// accepted counts distinct jobs.
	accepted map[string]bool
}

func newLoad(seed uint64, start time.Time, f *fleet, log *follower) *load {
	return &load{seed: seed, start: start, fleet: f, log: log, operations: 2, backlog: 40, denoise: .04, broken: .03, reuse: .2, hooked: .4, accepted: map[string]bool{},
		http: &http.Client{Timeout: requestTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

// remembered is how many jobs are kept to be read again.
const remembered = 300

func (l *load) note(c history.Call) history.Call {
	c.Answered = time.Since(l.start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, c)
	if c.Kind == history.Submit && c.Status == http.StatusAccepted && !l.accepted[c.JobID] {
		l.accepted[c.JobID] = true
		if l.ids = append(l.ids, c.JobID); len(l.ids) > remembered {
			l.ids = l.ids[1:]
		}
	}
	return c
}

func (l *load) counted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted)
}

func (l *load) recorded() []history.Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls
}

// run has n clients work until ctx ends.
func (l *load) run(ctx context.Context, n int) {
	var all sync.WaitGroup
	for i := range n {
		c := &client{load: l, id: i, random: rand.New(rand.NewPCG(l.seed, uint64(i)+1))}
		all.Go(func() {
			for ctx.Err() == nil && c.load.room(ctx) {
				c.act(ctx)
			}
		})
	}
	all.Wait()
}

// room waits while too many jobs are open: the faults are to meet work, not a queue.
func (l *load) room(ctx context.Context) bool {
	for l.counted()-l.log.ended() >= l.backlog {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond): // before the next look
		}
	}
	return true
}

// client does one thing after the other, so that it knows what it knew.
type client struct {
	*load
	id     int
	random *rand.Rand
	keys   int
	// last are keyed submissions, to be repeated.
	last []*submission
}

func (c *client) chance(share float64) bool { return c.random.Float64() < share }

func (c *client) act(ctx context.Context) {
	switch dice := c.random.Float64(); {
	case dice < .35:
		c.plain(ctx)
	case dice < .6:
		c.keyed(ctx)
	case dice < .7:
		c.again(ctx)
	case dice < .85:
		c.cancelled(ctx)
	default:
		c.reread(ctx)
	}
}

func (c *client) compose(key string) *submission {
	hook := ""
	if c.load.hooks != "" && c.chance(c.load.hooked) {
		hook = c.load.hooks
	}
	return compose(c.random, key, hook, c.operations, c.chance(c.load.denoise), c.chance(c.load.broken))
}

// plain submits without a key, once: whoever does not know what became of it, has lost it.
func (c *client) plain(ctx context.Context) {
	call := c.submit(ctx, c.compose(""))
	if call.Status != http.StatusAccepted {
		c.breathe(ctx)
		return
	}
	c.follow(ctx, call)
}

// follow reads a job after its submission in one of the ways that clients have.
func (c *client) follow(ctx context.Context, submitted history.Call) {
	switch c.random.IntN(4) {
	case 0: // at once, with nothing in hand
		c.read(ctx, submitted.JobID, nil, 0)
	case 1:
		c.read(ctx, submitted.JobID, submitted.Wrote, 0)
	case 2:
		c.read(ctx, submitted.JobID, submitted.Wrote, 0)
		c.read(ctx, submitted.JobID, nil, 5)
	default:
		c.read(ctx, submitted.JobID, nil, 2)
		c.read(ctx, submitted.JobID, nil, 0)
	}
}

// keyed submits under a new key until it is told what became of it.
func (c *client) keyed(ctx context.Context) {
	c.keys++
	s := c.compose(fmt.Sprintf("client %d, key %d of run %d", c.id, c.keys, c.seed))
	if call, ok := c.insist(ctx, s); ok {
		c.last = append(c.last, s)
		c.follow(ctx, call)
	}
}

// again repeats a submission of before under its key, and now and then another one.
func (c *client) again(ctx context.Context) {
	if len(c.last) == 0 {
		return
	}
	s := c.last[c.random.IntN(len(c.last))]
	if c.chance(c.load.reuse) {
		c.submit(ctx, c.compose(s.asked.Key)) // to be refused
		return
	}
	c.insist(ctx, s)
}

// insist sends a submission until it is accepted or refused.
func (c *client) insist(ctx context.Context, s *submission) (history.Call, bool) {
	return c.insistNoting(ctx, s, func() {})
}

// insistNoting calls tried after the first try.
func (c *client) insistNoting(ctx context.Context, s *submission, tried func()) (history.Call, bool) {
	for ctx.Err() == nil {
		call := c.submit(ctx, s)
		tried()
		tried = func() {}
		switch call.Status {
		case http.StatusAccepted:
			return call, true
		case 0, http.StatusServiceUnavailable, http.StatusTooManyRequests:
			c.breathe(ctx)
		default:
			return call, false
		}
	}
	return history.Call{}, false
}

// breathe is the pause before the next try.
func (c *client) breathe(ctx context.Context) {
	_ = pause(ctx, c.random, 50*time.Millisecond, 400*time.Millisecond)
}

// cancelled submits, cancels at some moment, and looks at once at what became of it.
func (c *client) cancelled(ctx context.Context) {
	call := c.submit(ctx, c.compose(""))
	if call.Status != http.StatusAccepted {
		return
	}
	if c.chance(.5) {
		_ = pause(ctx, c.random, 0, 300*time.Millisecond)
	}
	if cancel := c.cancel(ctx, call.JobID); cancel.Status == http.StatusAccepted {
		c.read(ctx, call.JobID, cancel.Wrote, 0)
	}
	if c.read(ctx, call.JobID, nil, 1); c.chance(.4) {
		c.retried(ctx, call.JobID)
	}
}

// retried asks for what did not complete once more, until it is told what became of that.
func (c *client) retried(ctx context.Context, id string) {
	for ctx.Err() == nil {
		call := c.retry(ctx, id)
		switch call.Status {
		case http.StatusAccepted:
			c.read(ctx, id, call.Wrote, 0)
			c.read(ctx, id, nil, 2)
			return
		case 0, http.StatusServiceUnavailable, http.StatusTooManyRequests:
			c.breathe(ctx)
		default:
			return // it is open, or there is nothing to do
		}
	}
}

// reread looks at any job, whoever submitted it.
func (c *client) reread(ctx context.Context) {
	c.mu.Lock()
	id := ""
	if len(c.ids) > 0 {
		id = c.ids[c.random.IntN(len(c.ids))]
	}
	c.mu.Unlock()
	if id != "" {
		c.read(ctx, id, nil, 0)
		c.read(ctx, id, nil, 0)
	}
}

// anyAPI is one of the addresses: a client is not bound to an instance.
func (c *client) anyAPI() string {
	all := c.fleet.addresses()
	return all[c.random.IntN(len(all))]
}

func (c *client) submit(ctx context.Context, s *submission) history.Call {
	call := history.Call{Client: c.id, Kind: history.Submit, Asked: &s.asked, Sent: time.Since(c.start)}
	var accepted struct {
		JobID string `json:"job_id"`
	}
	c.ask(ctx, &call, http.MethodPost, "/api/process", s.contentType, s.body, http.StatusAccepted, &accepted)
	call.JobID = accepted.JobID
	return c.note(call)
}

func (c *client) cancel(ctx context.Context, id string) history.Call {
	call := history.Call{Client: c.id, Kind: history.Cancel, JobID: id, Sent: time.Since(c.start)}
	var cancelled struct{}
	c.ask(ctx, &call, http.MethodPost, "/api/jobs/"+id+"/cancel", "", nil, http.StatusAccepted, &cancelled)
	return c.note(call)
}

func (c *client) retry(ctx context.Context, id string) history.Call {
	call := history.Call{Client: c.id, Kind: history.Retry, JobID: id, Sent: time.Since(c.start)}
	var retried struct{}
	c.ask(ctx, &call, http.MethodPost, "/api/jobs/"+id+"/retry", "", nil, http.StatusAccepted, &retried)
	return c.note(call)
}

func (c *client) read(ctx context.Context, id string, after *events.Position, wait int) history.Call {
	call := history.Call{Client: c.id, Kind: history.Read, JobID: id, After: after, Sent: time.Since(c.start)}
	path := fmt.Sprintf("/api/jobs/%s?wait=%d", id, wait)
	if after != nil {
		path += "&after=" + after.Token()
	}
	var job struct {
		Outcome  *string
		Revision int32
		Results  map[string]struct {
			State    string
			Attempt  int32
			Artifact *struct{ SHA256 string }
		} `json:"operation_results"`
	}
	c.ask(ctx, &call, http.MethodGet, path, "", nil, http.StatusOK, &job)
	if call.Status == http.StatusOK {
		call.View = &history.View{Revision: job.Revision, Operations: map[string]history.OperationView{}}
		if job.Outcome != nil {
			call.View.Outcome = *job.Outcome
		}
		for name, r := range job.Results {
			shown := history.OperationView{State: r.State, Attempt: r.Attempt}
			if r.Artifact != nil {
				shown.SHA256 = r.Artifact.SHA256
			}
			call.View.Operations[name] = shown
		}
	}
	return c.note(call)
}

// ask sends one request and fills in what was answered. An answer that cannot be read to
// its end is none.
func (c *client) ask(ctx context.Context, call *history.Call, method, path, contentType string, body []byte, want int, into any) {
	// Not ctx: a request that was sent is answered, or the history would have holes at its end.
	request, err := http.NewRequestWithContext(context.WithoutCancel(ctx), method, c.anyAPI()+path, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := c.http.Do(request)
	if err != nil {
		call.Problem = err.Error()
		return
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode == want {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		call.Problem = err.Error()
		return
	}
	call.Status = response.StatusCode
	if response.StatusCode != want {
		call.Problem = string(raw)
	}
	if token := response.Header.Get("Pixtools-Position"); token != "" {
		p, err := events.ParsePosition(token)
		if err != nil {
			call.Status, call.Problem = http.StatusInternalServerError, "the position "+token+" is none"
			return
		}
		call.Wrote = &p
	}
}
