package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/pixtools/pixtools/bench/faults/history"
	"github.com/pixtools/pixtools/events"
)

// What the scenario parking runs with. By turns there is a window with poison and one with
// as many harmless jobs in its place: what the machine does meanwhile is then in both.
const (
	parkingRounds  = 10
	parkingClients = 4
	parkingJobs    = 100 // of the others, in each window
	parkingSide    = 64  // pixels, of the others' pictures
	victimEvery    = 250 * time.Millisecond
	victimHeight   = 200 // pixels: some of them are to be in work when their poison comes
	panicWidth     = smallestSide - 1
	parkingTakes   = 2 * time.Minute
	// mostAttempts is PROCESS_MAX_ATTEMPTS, as it is by default.
	mostAttempts   = 3
	redriveTimeout = time.Minute
)

// parking is the scenario under way.
type parking struct {
	*run
	others []*client
	victim *client
	// victims are jobs that were poisoned: true where it is the picture at which workers
	// panic, false where a record under their key cannot be read.
	victims map[string]bool
}

// playParking measures the jobs of other keys while some keys are poisoned: by pictures at
// which workers panic, and by records that nobody can read. Then workers come that do not
// panic, and a redrive must finish every job.
func playParking(ctx context.Context, o options) (result, error) {
	s := o.settings()
	var err error
	if s.binary, err = o.buggy(ctx); err != nil {
		return result{}, err
	}
	s.clients = 0 // the scenario has its own
	s.roles = map[string]int{"api": 1, "saga": 1, "projector": 1}
	p := &parking{victims: map[string]bool{}}
	done, err := execute(ctx, s, func(ctx context.Context, r *run) error {
		p.run = r
		return p.play(ctx, o.seed)
	})
	if err == nil {
		p.judgeAttempts(&done)
	}
	return done, err
}

func (p *parking) play(ctx context.Context, seed uint64) error {
	for i := range parkingClients + 1 {
		p.others = append(p.others, &client{load: p.load, id: i, random: rand.New(rand.NewPCG(seed, uint64(i)+1))})
	}
	p.victim, p.others = p.others[0], p.others[1:]
	for range 2 {
		if _, err := p.fleet.add("convert", fmt.Sprintf("PIXTOOLS_PANIC_WIDTH=%d", panicWidth)); err != nil {
			return err
		}
	}
	if _, err := p.window(ctx, false); err != nil { // to warm up
		return err
	}
	var calm, poisoned []time.Duration
	for range parkingRounds {
		for _, w := range []struct {
			poison bool
			times  *[]time.Duration
		}{{false, &calm}, {true, &poisoned}} {
			times, err := p.window(ctx, w.poison)
			if err != nil {
				return err
			}
			*w.times = append(*w.times, times...)
		}
	}
	p.figure("jobs of other keys, from submission to end: without poison %s; with it %s; ratio of the p99 %.2f, of the p50 %.2f",
		spread(calm), spread(poisoned), float64(at(poisoned, .99))/float64(at(calm, .99)), float64(at(poisoned, .5))/float64(at(calm, .5)))
	return p.redrive(ctx)
}

// window measures some jobs of the others, and poisons keys meanwhile, or not; it ends when
// all jobs have.
func (p *parking) window(ctx context.Context, poison bool) ([]time.Duration, error) {
	measuring, over := context.WithCancel(ctx)
	var disturbing, all sync.WaitGroup
	var disturbed error
	disturbing.Go(func() { disturbed = p.disturb(measuring, poison) })
	var mu sync.Mutex
	var times []time.Duration
	for _, c := range p.others {
		all.Go(func() {
			for range parkingJobs / parkingClients {
				begun := time.Now()
				if !c.finished(ctx, composed(c.random, parkingSide, parkingSide, "webp")) {
					return
				}
				mu.Lock()
				times = append(times, time.Since(begun))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	over()
	disturbing.Wait()
	p.idle(ctx)
	return times, errors.Join(disturbed, ctx.Err())
}

// finished submits, and says whether the job then succeeded.
func (c *client) finished(ctx context.Context, s *submission) bool {
	call, ok := c.insist(ctx, s)
	for ok && ctx.Err() == nil {
		if read := c.read(ctx, call.JobID, nil, 10); read.View != nil && read.View.Outcome != "" {
			return read.View.Outcome == "SUCCEEDED"
		}
	}
	return false
}

// disturb submits a job now and then, and poisons every one, or none.
func (p *parking) disturb(ctx context.Context, poison bool) error {
	client, err := p.parts.client()
	if err != nil {
		return err
	}
	defer client.Close()
	for i := 0; ctx.Err() == nil; i++ {
		panics, width := i%2 == 0, smallestSide
		if poison && panics {
			width = panicWidth
		}
		call, ok := p.victim.insist(ctx, composed(p.victim.random, width, victimHeight, "avif"))
		if ok && poison {
			p.victims[call.JobID] = panics
			what := "a picture at which workers panic"
			if !panics {
				if what, err = p.spoilOne(ctx, client, call.JobID); err != nil {
					return err
				}
			}
			p.fault("poison: " + what)
		}
		_ = pause(ctx, p.random, victimEvery, victimEvery)
	}
	return nil
}

// judgeAttempts: a picture at which workers panic is begun so often and no more.
func (p *parking) judgeAttempts(done *result) {
	begun := map[string]int{}
	for _, record := range done.history.Log {
		if m, ok := record.Event.Message.(*events.OperationStarted); ok && m.GetRevision() == 1 && p.victims[record.Event.JobID] {
			begun[record.Event.JobID]++
		}
	}
	most := 0
	for id, n := range begun {
		if most = max(most, n); n > mostAttempts {
			done.broken = append(done.broken, fmt.Sprintf("job %s, at whose picture workers panic, was begun %d times; %d are allowed", id, n, mostAttempts))
		}
	}
	p.say("%d jobs at whose pictures workers panic, each begun at most %d times", len(begun), most)
}

// treated is the answer to a redrive.
type treated struct {
	Results []struct {
		JobID  string `json:"job_id"`
		Action string
		Detail string
	}
	Next *string
}

// redrive brings workers that do not panic, has all dead letters redriven, and waits until
// every victim has succeeded.
func (p *parking) redrive(ctx context.Context) error {
	if err := p.fleet.stop("convert"); err != nil {
		return err
	}
	for range 2 {
		if _, err := p.fleet.add("convert"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, redriveTimeout)
	defer cancel()
	lettered, next := map[string]bool{}, ""
	for more := true; more; {
		answer, err := p.redrivePage(ctx, next)
		if err != nil {
			return err
		}
		for _, r := range answer.Results {
			lettered[r.JobID] = true
		}
		if more = answer.Next != nil; more {
			next = *answer.Next
		}
	}
	for id, panics := range p.victims {
		if !lettered[id] {
			p.breach("job %s was poisoned (a panic: %t) and has no dead letter", id, panics)
		}
		if !p.succeeds(ctx, id) {
			p.breach("job %s was poisoned (a panic: %t) and did not succeed within %s of the redrive", id, panics, redriveTimeout)
		}
	}
	p.figure("%d poisoned keys: %d dead letters' jobs, all redriven", len(p.victims), len(lettered))
	return nil
}

func (p *parking) succeeds(ctx context.Context, id string) bool {
	for ctx.Err() == nil {
		if read := p.victim.read(ctx, id, nil, 10); read.View != nil && read.View.Outcome == "SUCCEEDED" {
			return true
		}
	}
	return false
}

func (p *parking) redrivePage(ctx context.Context, after string) (treated, error) {
	var answer treated
	body, err := json.Marshal(map[string]any{"all": true, "limit": 1000, "after": after})
	if err != nil {
		return answer, err
	}
	call := history.Call{}
	p.victim.ask(ctx, &call, http.MethodPost, "/api/dead-letters/redrive", "application/json", body, http.StatusOK, &answer)
	if call.Status != http.StatusOK {
		return answer, fmt.Errorf("redrive: %d %s", call.Status, call.Problem)
	}
	return answer, nil
}

// at is the time below which a share of all lies.
func at(all []time.Duration, share float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[int(share*float64(len(sorted)-1))]
}

func spread(all []time.Duration) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d jobs", len(all))
	for _, share := range []float64{.5, .95, .99} {
		fmt.Fprintf(&b, ", p%.0f %.0f ms", share*100, float64(at(all, share))/float64(time.Millisecond))
	}
	return b.String()
}
