package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pixtools/pixtools/bench/faults/history"
	"github.com/pixtools/pixtools/events"
)

// settings are those of one run.
type settings struct {
	binary   string
	seed     uint64
	clients  int
	logLevel string
	// patience is how long nothing may happen before what is open counts as stuck.
	patience time.Duration
	// brokers of Kafka, and how many processes of each role.
	brokers int
	roles   map[string]int
	env     []string // on top of that of every role
	// shape changes what the clients ask for, before they begin.
	shape func(*load)
	out   io.Writer
	// keep says that the roles' logs are kept also where nothing is violated, discard that
	// they are removed also where something is.
	keep, discard bool
}

// everyRole is how many processes there are of each, where a scenario says nothing else.
var everyRole = map[string]int{"api": 2, "convert": 2, "ml": 1, "saga": 2, "projector": 2, "webhooks": 1, "janitor": 1}

// run is a cluster, its load and its faults.
type run struct {
	settings
	random *rand.Rand // of the faults, in their order
	dir    string
	start  time.Time
	parts  *parts
	fleet  *fleet
	log    *follower
	load   *load
	hooks  *receiver
	// planted are objects that no event names, and that are too young to be removed.
	planted []string

	mu     sync.Mutex
	faults map[string]int
	// figures are lines that a scenario adds to the report.
	figures []string
	// poison is where records were put that no consumer should mind.
	poison map[history.Place]bool
	// broken are violations that no history shows.
	broken []string
}

// readyTimeout bounds the start of all servers and roles; collectTimeout reading all that
// is there at the end.
const (
	readyTimeout   = 3 * time.Minute
	collectTimeout = 5 * time.Minute
	progressEvery  = 5 * time.Second
	// warmUp is for the load alone: what has never worked cannot be seen to go on.
	warmUp = 3 * time.Second
)

// result is what a run has shown.
type result struct {
	history    *history.History
	violations []history.Violation
	// broken are faults that are no job's.
	broken []string
	faults int
}

func (r result) failed() bool { return len(r.violations)+len(r.broken) > 0 }

// execute starts everything, has the load run while inject makes its faults, waits until
// nothing moves any more, and judges.
func execute(ctx context.Context, s settings, inject func(context.Context, *run) error) (result, error) {
	dir, err := os.MkdirTemp("", "pixtools-faults-")
	if err != nil {
		return result{}, err
	}
	r := &run{settings: s, random: rand.New(rand.NewPCG(s.seed, 0)), dir: dir, faults: map[string]int{}, poison: map[history.Place]bool{}}
	done, err := r.execute(ctx, inject)
	if err != nil || done.failed() && !s.discard || s.keep {
		r.say("the roles' logs are in %s", dir)
	} else {
		err = os.RemoveAll(dir)
	}
	return done, err
}

func (r *run) execute(ctx context.Context, inject func(context.Context, *run) error) (result, error) {
	var err error
	if r.parts, err = startParts(r.brokers); err != nil {
		return result{}, err
	}
	defer r.parts.stop()
	r.fleet = &fleet{binary: r.binary, dir: r.dir, env: append(r.parts.environment(r.logLevel), r.env...)}
	defer func() { _ = r.fleet.stop("") }()
	for _, role := range slices.Sorted(maps.Keys(r.roles)) {
		for range r.roles[role] {
			if _, err := r.fleet.add(role); err != nil {
				return result{}, err
			}
		}
	}
	if err := r.healthy(ctx); err != nil {
		return result{}, err
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	if r.log, err = follow(following, r.parts); err != nil {
		return result{}, err
	}
	if r.planted, err = r.parts.plant(ctx); err != nil {
		return result{}, fmt.Errorf("plant orphans: %w", err)
	}
	if r.hooks, err = receive(r.seed); err != nil {
		return result{}, err
	}
	defer r.hooks.server.Close()
	r.start = time.Now()
	r.load = newLoad(r.seed, r.start, r.fleet, r.log)
	if r.roles["webhooks"] > 0 {
		r.load.hooks = r.hooks.address
	}
	if r.shape != nil {
		r.shape(r.load)
	}
	if err := r.injure(ctx, inject); err != nil {
		return result{}, err
	}
	r.settle(ctx)
	return r.judge(ctx)
}

// healthy waits until every API reaches every part.
func (r *run) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, base := range r.fleet.addresses() {
		for {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/api/health", nil)
			if err != nil {
				return err
			}
			response, err := http.DefaultClient.Do(request)
			if err == nil {
				response.Body.Close()
				if response.StatusCode == http.StatusOK {
					break
				}
				err = errors.New(response.Status)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s is not healthy within %s: %w\n%s", base, readyTimeout, err, strings.Join(r.fleet.unasked(), "\n"))
			case <-time.After(100 * time.Millisecond): // before the next look
			}
		}
	}
	return nil
}

// injure has the load run as long as inject makes its faults.
func (r *run) injure(ctx context.Context, inject func(context.Context, *run) error) error {
	loading, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { r.load.run(loading, r.clients) })
	all.Go(func() { r.progress(loading) })
	err := pause(ctx, r.random, warmUp, warmUp)
	if err == nil {
		err = inject(ctx, r)
	}
	stop()
	all.Wait()
	return err
}

// progress says now and then how far the run is.
func (r *run) progress(ctx context.Context) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.say("%s", r.standing())
		}
	}
}

func (r *run) standing() string {
	open, _ := r.log.waiting()
	return fmt.Sprintf("%5.0fs  accepted %d, ended %d, open %d; faults %d: %s", time.Since(r.start).Seconds(), r.load.counted(), r.log.ended(), open,
		r.injected(), r.listed())
}

func (r *run) say(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

func (r *run) fault(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[what]++
}

func (r *run) figure(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures = append(r.figures, fmt.Sprintf(format, args...))
}

// breach notes a broken promise that no job's history shows.
func (r *run) breach(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = append(r.broken, fmt.Sprintf(format, args...))
}

func (r *run) injected() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, times := range r.faults {
		n += times
	}
	return n
}

func (r *run) listed() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(r.faults)) {
		parts = append(parts, fmt.Sprintf("%s %d", what, r.faults[what]))
	}
	return strings.Join(parts, ", ")
}

// settle waits until every job in the log has ended, or nothing happens any more, and tells
// how long that took.
func (r *run) settle(ctx context.Context) {
	r.figure("after the load, the last job ended in %.0f s", r.idle(ctx).Seconds())
}

func (r *run) idle(ctx context.Context) time.Duration {
	begun, said := time.Now(), time.Now()
	for {
		open, quiet := r.log.waiting()
		if open == 0 && quiet > time.Second || quiet > r.patience || ctx.Err() != nil {
			return max(0, time.Since(begun)-quiet)
		}
		if time.Since(said) >= progressEvery {
			said = time.Now()
			r.say("%s; no more load, nothing came for %.0fs", r.standing(), quiet.Seconds())
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // before the next look
		}
	}
}

// judge stops what works, lets the read model come to the log's end, and judges.
func (r *run) judge(ctx context.Context) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	if err := r.fleet.stop("api", "convert", "ml", "saga", "webhooks", "janitor"); err != nil {
		r.breach("%v", err)
	}
	ends, err := r.parts.ends(ctx, events.Topic)
	if err != nil {
		return result{}, err
	}
	r.project(ctx, ends)
	if err := r.fleet.stop("projector"); err != nil {
		r.breach("%v", err)
	}
	h, err := r.collect(ctx)
	if err != nil {
		return result{}, err
	}
	audited, err := r.parts.audited(ctx, h)
	if err != nil {
		return result{}, fmt.Errorf("audit the log: %w", err)
	}
	for _, line := range audited {
		r.breach("%s", line)
	}
	done := result{history: h, violations: history.Check(h), broken: append(r.broken, r.fleet.unasked()...), faults: r.injected()}
	r.report(done)
	return done, nil
}

// project waits for the read model; if it does not come, that is for the judge.
func (r *run) project(ctx context.Context, ends map[int32]int64) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	for {
		positions, err := r.parts.positions(ctx)
		if err == nil && maps.Equal(positions, ends) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond): // before the next look
		}
	}
}

// shownViolations of each property; all are counted.
const shownViolations = 3

func (r *run) report(done result) {
	h := done.history
	r.say("seed %d: %d faults injected: %s", r.seed, done.faults, r.listed())
	r.say("%s", r.counts(h))
	for _, line := range r.figures {
		r.say("%s", line)
	}
	for _, p := range history.Properties() {
		found := slices.DeleteFunc(slices.Clone(done.violations), func(v history.Violation) bool { return v.Property != p })
		if len(found) == 0 {
			r.say("  %-12s  holds", p)
			continue
		}
		r.say("  %-12s  VIOLATED %d times", p, len(found))
		for _, v := range found[:min(len(found), shownViolations)] {
			r.say("    job %s: %s\n%s", v.JobID, clip(v.Message), lifeOf(h, v.JobID))
		}
	}
	for _, line := range done.broken {
		r.say("  BROKEN: %s", clip(line))
	}
	if !done.failed() {
		return
	}
	var b strings.Builder
	for _, v := range done.violations {
		fmt.Fprintf(&b, "%s: job %s: %s\n%s", v.Property, v.JobID, v.Message, lifeOf(h, v.JobID))
	}
	for name, content := range map[string]string{"violations.txt": b.String(), "log.txt": logOf(h)} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o644); err != nil {
			r.say("%v", err)
		}
	}
}

// counts are of what happened.
func (r *run) counts(h *history.History) string {
	answers := map[string]int{}
	for _, c := range h.Calls {
		answers[fmt.Sprintf("%s %d", c.Kind, c.Status)]++
	}
	types, outcomes := map[string]int{}, map[string]int{}
	jobs := map[string]bool{}
	for _, record := range h.Log {
		if record.Event.Message == nil {
			continue
		}
		types[record.Event.Name()]++
		jobs[record.Event.JobID] = true
		if m, ok := record.Event.Message.(*events.JobFinalized); ok {
			outcomes[strings.TrimPrefix(m.GetOutcome().String(), "OUTCOME_")]++
		}
	}
	posted := map[string]int{}
	for _, d := range h.Deliveries {
		posted[fmt.Sprint(d.Status)]++
	}
	return fmt.Sprintf("%d jobs accepted, %d in the log, ended: %s\nanswers: %s (0: none)\nevents: %s\nwebhooks received, by our answer: %s\n%s\nlongest time without an accepted submission: %.1f s",
		r.load.counted(), len(jobs), inOrder(outcomes), inOrder(answers), inOrder(types), inOrder(posted), repeated(h), drought(h).Seconds())
}

// drought is the longest time in which no submission was accepted.
func drought(h *history.History) time.Duration {
	var last, longest time.Duration
	for _, c := range h.Calls { // in the order of their answers
		if c.Kind == history.Submit && c.Status == http.StatusAccepted {
			longest, last = max(longest, c.Answered-last), c.Answered
		}
	}
	return longest
}

// repeated counts what was done more than once.
func repeated(h *history.History) string {
	type place struct {
		job, operation string
		revision       int32
	}
	starts, outcomes, first := map[place]int{}, map[place]int{}, 0
	for _, record := range h.Log {
		switch m := record.Event.Message.(type) {
		case *events.OperationStarted:
			starts[place{record.Event.JobID, m.GetOperation(), m.GetRevision()}]++
		case *events.OperationCompleted:
			outcomes[place{record.Event.JobID, m.GetOperation(), m.GetRevision()}]++
		case *events.OperationFailed:
			outcomes[place{record.Event.JobID, m.GetOperation(), m.GetRevision()}]++
		}
	}
	again, told := 0, 0
	for _, n := range starts {
		again += n - 1
		first++
	}
	for _, n := range outcomes {
		told += n - 1
	}
	return fmt.Sprintf("operations begun %d, begun again %d, outcomes told again %d", first, again, told)
}

func inOrder(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}
