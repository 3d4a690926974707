package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/api"
	"github.com/pixtools/pixtools/events"
	"github.com/pixtools/pixtools/internal/testenv"
)

const (
	// rolledJobs are submitted while every process is replaced.
	rolledJobs = 1000
	// jobsAround of them are submitted before the first process is replaced, and after the last.
	jobsAround = 60
	// rolledPace is the shortest time between two submissions.
	rolledPace = 25 * time.Millisecond
	// rolledOpen bounds the jobs that clients follow at once.
	rolledOpen = 100
	// drainDelay is what the balancer has to notice that a process stops.
	drainDelay = 5 * time.Second
	// graceOfStop is after which an orchestrator kills: what docs/operations.md says with drainDelay.
	graceOfStop = drainDelay + 25*time.Second + 5*time.Second
)

// rolledRoles are the processes: three of each worker, and of the others as many, but for the
// janitor, of which one works and another waits for it.
var rolledRoles = []struct {
	role string
	n    int
}{{"api", 3}, {"convert", 3}, {"ml", 3}, {"saga", 3}, {"projector", 3}, {"webhooks", 3}, {"janitor", 2}}

// rolled is the test's world.
type rolled struct {
	t        *testing.T
	env      map[string]string
	balancer *balancer
	hooks    *receiver
	jobs     []*rolledJob
	// replacing ends when every process was replaced.
	replacing context.Context

	mu     sync.Mutex
	faults []error
	// cut counts event streams that ended with their process.
	cut int
	// longest is the longest time that a submission took since somebody asked.
	longest time.Duration
}

// rolledJob is a job as its client knows it.
type rolledJob struct {
	number     int
	id         string
	operations []string
	// trace and caller are what its client sent as traceparent.
	trace, caller string
	// hook is the path of its webhook, or empty.
	hook string
	// stream says that its client follows its event stream; stays, that it does so for as long as
	// processes are replaced, as a page does that nobody closes.
	stream, stays bool
}

// TestRollingRestart replaces every process of a cluster, one after another, under load, as an
// upgrade does. Nobody notices: no client sees an error, no job is lost or ends twice, and what
// a submission led to is one trace, from the request to the webhook, over all that were replaced.
//
// Sessions of consumer groups last for longer than the test: a process that went without leaving
// would keep its partitions for all of it.
func TestRollingRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("twenty processes and three brokers")
	}
	began := time.Now()
	kafka, err := testenv.StartKafka("", 3)
	require.NoError(t, err)
	t.Cleanup(kafka.Stop)
	sink := newSpanSink(t)
	w := &rolled{t: t, env: realEnvOn(t, kafka.Brokers()), hooks: newReceiver(t, "127.0.0.2")}
	maps.Copy(w.env, map[string]string{
		"KAFKA_REPLICATION_FACTOR":       "3",
		"KAFKA_CONSUMER_SESSION_TIMEOUT": "20m",
		"DRAIN_DELAY":                    drainDelay.String(), "DATABASE_MAX_CONNS": "6", "LOG_LEVEL": "warn",
		"WEBHOOK_ALLOW_PRIVATE": "127.0.0.2/32", "WEBHOOK_COMMIT_INTERVAL": "100ms",
		"CONVERT_CONCURRENCY": "1", "DENOISE_TILE": "216", "DENOISE_THREADS": "1", "DENOISE_NICE": "0",
		"S3_CONNECT_TIMEOUT":          "20s", // like patientLimits
		"OTEL_EXPORTER_OTLP_ENDPOINT": sink.URL, "OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_BSP_MAX_QUEUE_SIZE": "20000",
	})
	var members []*program
	var bases []string
	for _, of := range rolledRoles {
		for i := range of.n {
			members = append(members, w.member(of.role, i))
			if of.role == "api" {
				bases = append(bases, members[len(members)-1].base)
			}
		}
	}
	for _, m := range members {
		m.start()
	}
	w.balancer = newBalancer(t, bases...)
	for _, m := range members {
		m.ready()
	}
	for _, base := range bases {
		w.balancer.wait(t, base)
	}
	started := time.Now()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	replacing, allReplaced := context.WithCancel(ctx)
	w.replacing = replacing
	allowed, ended := make(chan int), make(chan struct{})
	go func() {
		defer close(ended)
		w.load(ctx, allowed)
	}()
	next := 0
	allow := func(n int) {
		for range n {
			select {
			case allowed <- next:
				next++
			case <-ctx.Done():
			}
		}
	}
	allow(jobsAround)
	for i, m := range members {
		// While it is replaced, jobs come: each one an equal part of them.
		share := (rolledJobs-2*jobsAround)*(i+1)/len(members) + jobsAround - next
		coming := make(chan struct{})
		go func() {
			defer close(coming)
			allow(share)
		}()
		began := time.Now()
		w.replace(m)
		took := time.Since(began)
		<-coming
		t.Logf("%-22s replaced in %.1f s; the longest submission meanwhile took %.1f s", m.args[1], took.Seconds(), w.slowest().Seconds())
	}
	replaced := time.Now()
	allReplaced()
	allow(rolledJobs - next)
	close(allowed)
	<-ended
	over := time.Now()

	if faults := slices.Concat(w.faults, w.balancer.found()); len(faults) > 0 {
		require.NoError(t, errors.Join(faults[:min(len(faults), 10)]...), "the first of %d errors that clients saw", len(faults))
	}
	require.Len(t, w.jobs, rolledJobs)
	require.Positive(t, w.cut, "no event stream was open when its process stopped")
	posted, again := w.posted()
	w.oneFinalEach(kafka.Brokers())
	members[0].verify(0)
	for _, m := range members {
		w.stop(m)
	}
	w.oneTraceEach(sink)
	t.Logf("%d jobs, %d processes replaced, %d event streams continued; start %.0f s, replacing %.0f s, to the last job's end %.0f s, all %.0f s; %d webhooks posted, %d of them again",
		len(w.jobs), len(members), w.cut, started.Sub(began).Seconds(), replaced.Sub(started).Seconds(), over.Sub(replaced).Seconds(), time.Since(began).Seconds(), posted, again)
}

// member is a process that keeps its name and its ports over restarts.
func (w *rolled) member(role string, i int) *program {
	ports := testenv.FreePorts(2)
	variables := maps.Clone(w.env)
	variables["INSTANCE_ID"] = fmt.Sprintf("%s-%d", role, i+1)
	variables["PORT"], variables["PRIVATE_ADDR"] = strconv.Itoa(ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	p := prepare(w.t, variables, "--roles="+role)
	p.base = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	return p
}

// replace is what an upgrade does with one process.
func (w *rolled) replace(p *program) {
	w.t.Helper()
	w.stop(p)
	p.start()
	p.ready()
	if p.args[1] == "--roles=api" {
		w.balancer.wait(w.t, p.base)
	}
}

// stop asks a process to stop, and wants it to do so by itself and in order.
func (w *rolled) stop(p *program) {
	w.t.Helper()
	killed := time.AfterFunc(graceOfStop, func() { _ = p.cmd.Process.Kill() })
	defer killed.Stop()
	p.stopped()
}

func (w *rolled) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Errorf(format, args...))
}

// load has a client submit each job that is allowed, and follow it to its end.
func (w *rolled) load(ctx context.Context, allowed <-chan int) {
	var following sync.WaitGroup
	defer following.Wait()
	open, pace := make(chan struct{}, rolledOpen), time.NewTicker(rolledPace)
	defer pace.Stop()
	for number := range allowed {
		open <- struct{}{}
		<-pace.C
		job := w.jobOf(number)
		w.jobs = append(w.jobs, job)
		following.Go(func() {
			defer func() { <-open }()
			if w.submit(ctx, job) {
				w.follow(ctx, job)
			}
		})
	}
}

// jobOf says what the job of a number asks for: each something quick, some something slow,
// some two things.
func (w *rolled) jobOf(number int) *rolledJob {
	quick := []string{"jpg", "webp", "png"}
	job := &rolledJob{number: number, operations: []string{quick[number%len(quick)]}, stream: number%4 == 0, stays: number < jobsAround && number%8 == 0,
		trace: fmt.Sprintf("%032x", number+1), caller: fmt.Sprintf("%016x", number+1)}
	switch {
	case number%40 == 7:
		job.operations = append(job.operations, "denoise")
	case number%25 == 3:
		job.operations = append(job.operations, "avif")
	}
	if number%5 == 0 {
		job.hook = fmt.Sprintf("/jobs/%d", number)
	}
	return job
}

// submit says whether the job was accepted.
func (w *rolled) submit(ctx context.Context, job *rolledJob) bool {
	picture := image.NewNRGBA(image.Rect(0, 0, 8, 8))
	for i := range 64 {
		picture.SetNRGBA(i%8, i/8, color.NRGBA{uint8(job.number), uint8(job.number >> 8), uint8(i * 4), 255})
	}
	source := file("a.png", "image/png", pngOf(w.t, picture))
	if job.operations[0] == "png" {
		source = file("a.jpg", "image/jpeg", jpegOf(w.t, picture))
	}
	operations, err := json.Marshal(job.operations)
	require.NoError(w.t, err)
	parts := []part{source, field("operations", string(operations))}
	if job.hook != "" {
		parts = append(parts, field("webhook_url", w.hooks.server.URL+job.hook))
	}
	request, err := (&program{base: w.balancer.URL}).form(parts...)
	if err != nil {
		w.fault("job %d: %w", job.number, err)
		return false
	}
	request.Header.Set("Idempotency-Key", fmt.Sprintf("rolled-%d", job.number))
	request.Header.Set("Traceparent", "00-"+job.trace+"-"+job.caller+"-01")
	begun := time.Now()
	response, err := http.DefaultClient.Do(request.WithContext(ctx))
	if err != nil {
		w.fault("submission of job %d: %w", job.number, err)
		return false
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	took := time.Since(begun)
	var accepted api.Accepted
	switch {
	case err == nil && response.StatusCode != http.StatusAccepted:
		err = fmt.Errorf("%s: %s", response.Status, body)
	case err == nil:
		err = json.Unmarshal(body, &accepted)
	}
	if err != nil {
		w.fault("submission of job %d: %w", job.number, err)
		return false
	}
	job.id = accepted.JobID
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = max(w.longest, took)
	return true
}

// follow waits for the job's end: as a page does, or by asking.
func (w *rolled) follow(ctx context.Context, job *rolledJob) {
	last := ""
	for {
		var now *api.Job
		var err error
		if job.stream {
			now, last, err = w.listen(ctx, job, last)
		} else {
			now, err = w.ask(ctx, job)
		}
		if err != nil {
			w.fault("job %d (%s): %w", job.number, job.id, err)
			return
		}
		if now == nil || now.Outcome == nil {
			continue // its process stops
		}
		if *now.Outcome != "SUCCEEDED" || now.Status != "COMPLETED" || len(now.ResultURLs) != len(job.operations) {
			w.fault("job %d (%s) ended as %s, %s, with %d results", job.number, job.id, *now.Outcome, now.Status, len(now.ResultURLs))
		}
		return
	}
}

func (w *rolled) get(ctx context.Context, path, last string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.balancer.URL+path, nil)
	if err != nil {
		return nil, err
	}
	if last != "" {
		request.Header.Set("Last-Event-ID", last)
	}
	response, err := http.DefaultClient.Do(request)
	if err == nil && response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return response, err
}

// ask waits for the job's end for a while.
func (w *rolled) ask(ctx context.Context, job *rolledJob) (*api.Job, error) {
	response, err := w.get(ctx, "/api/jobs/"+job.id+"?wait=20", "")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	now := new(api.Job)
	return now, json.NewDecoder(response.Body).Decode(now)
}

// listen follows the job's event stream to the job's end, or until its process stops, or for as
// long as the client stays.
func (w *rolled) listen(ctx context.Context, job *rolledJob, last string) (*api.Job, string, error) {
	staying, leave := context.WithCancel(ctx)
	defer leave()
	if job.stays {
		defer context.AfterFunc(w.replacing, leave)()
	}
	now, last, err := w.read(staying, job, last)
	if staying.Err() != nil && ctx.Err() == nil {
		job.stays = false
		return nil, last, nil // once more, to the job's end
	}
	return now, last, err
}

// read reads an event stream. It may only end with a word on when to come back.
func (w *rolled) read(ctx context.Context, job *rolledJob, last string) (*api.Job, string, error) {
	response, err := w.get(ctx, "/api/jobs/"+job.id+"/stream", last)
	if err != nil {
		return nil, last, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	event, comeBack := "", false
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "event":
			event = value
		case name == "id":
			last = value
		case name == "retry":
			comeBack = true
		case name == "data" && event == "job":
			var now api.Job
			if err := json.Unmarshal([]byte(value), &now); err != nil || now.Outcome != nil && !job.stays {
				return &now, last, err
			}
		}
	}
	switch {
	case lines.Err() != nil:
		return nil, last, fmt.Errorf("its stream: %w", lines.Err())
	case !comeBack:
		return nil, last, errors.New("its stream ended without a word")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut++
	return nil, last, nil
}

// slowest is the longest time that a submission took since this was asked last.
func (w *rolled) slowest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := w.longest
	w.longest = 0
	return longest
}

// posted wants each webhook delivered, under one id, and counts those that were posted more than
// once: they are at-least-once.
func (w *rolled) posted() (all, again int) {
	w.t.Helper()
	through := &program{t: w.t, base: w.balancer.URL}
	for _, job := range w.jobs {
		if job.hook == "" {
			continue
		}
		through.hook(job.id, "DELIVERED")
		ids, calls := map[string]bool{}, w.hooks.of(job.hook)
		for _, call := range calls {
			ids[call.header.Get("Webhook-Id")] = true
		}
		require.Len(w.t, ids, 1, "job %s", job.id)
		if all++; len(calls) > 1 {
			again++
		}
	}
	return all, again
}

// oneFinalEach wants each job requested and ended once in the log, and no others.
func (w *rolled) oneFinalEach(brokers []string) {
	w.t.Helper()
	requested, finals := map[string]int{}, map[string]int{}
	eachCommitted(w.t, brokers, func(r *kgo.Record) {
		e, err := events.Decode(r)
		require.NoError(w.t, err)
		switch e.Message.(type) {
		case *events.JobRequested:
			requested[e.JobID]++
		case *events.JobFinalized:
			finals[e.JobID]++
		}
	})
	want := map[string]int{}
	for _, job := range w.jobs {
		want[job.id] = 1
	}
	require.Equal(w.t, want, requested)
	require.Equal(w.t, want, finals)
}

// oneTraceEach wants all that a submission led to below its client's span, in whichever process.
// All have stopped, and so have sent what they had.
func (w *rolled) oneTraceEach(sink *spanSink) {
	w.t.Helper()
	sink.mu.Lock()
	defer sink.mu.Unlock()
	traces, jobs := map[string][]receivedSpan{}, map[string]string{}
	for _, span := range sink.spans {
		traces[span.trace()] = append(traces[span.trace()], span)
	}
	for _, job := range w.jobs {
		jobs[job.id] = job.trace
		job.oneTrace(w.t, traces[job.trace])
	}
	for _, span := range sink.spans {
		if span.service == "pixtools-api" {
			continue // reading a job is in its reader's trace
		}
		for _, a := range span.GetAttributes() {
			if trace, ours := jobs[a.GetValue().GetStringValue()]; ours && a.GetKey() == "pixtools.job.id" {
				require.Equal(w.t, trace, span.trace(), "%s of %s", span.Name, span.service)
			}
		}
	}
}

func (job *rolledJob) oneTrace(t *testing.T, spans []receivedSpan) {
	t.Helper()
	byID, named := map[string]receivedSpan{}, map[string]int{}
	for _, s := range spans {
		byID[s.id()] = s
		named[strings.TrimPrefix(s.service, "pixtools-")+": "+s.Name]++
	}
	for _, s := range spans {
		if s.parent() == job.caller {
			require.Equal(t, "POST /api/process", s.Name)
			continue
		}
		require.Contains(t, byID, s.parent(), "job %s: %s of %s hangs in the air", job.id, s.Name, s.service)
	}
	want := []string{"api: POST /api/process", "saga: finalize", "projector: project"}
	for _, operation := range job.operations {
		role := "convert"
		if operation == "denoise" {
			role = "ml"
		}
		want = append(want, role+": process "+operation)
	}
	if job.hook != "" {
		want = append(want, "webhooks: webhook")
	}
	for _, name := range want {
		require.Positive(t, named[name], "job %s: no span %q among %v", job.id, name, slices.Sorted(maps.Keys(named)))
	}
	require.Equal(t, 1, named["api: POST /api/process"])
}
