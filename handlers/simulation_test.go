package handlers

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"testing"
	"time"

	"github.com/pixtools/pixtools/commands"
	"github.com/pixtools/pixtools/events"
)

var (
	oneSeed   = flag.Int64("seed", -1, "run TestSimulation with this seed alone")
	manySeeds = flag.Int("seeds", 10_000, "how many seeds TestSimulation runs; with -short a tenth of them")
)

// TestSimulation runs the pure core, which is what decides and folds, in worlds drawn from
// seeds: clients, workers, sagas and a projector around a log of partitions, of which
// anything may crash, be late, be told twice or know too little. Then nothing goes wrong
// any more, and when all have come to rest, check says what must hold.
//
// Decisions are the product's own: commands, events.Fold and FoldLetter, Event.Record and
// Decode for all that is appended, and of the saga everything but its session with Kafka.
// The simulation's are the effects only: the log and its transactions, the crashes, the
// clock, the table. A seed says all that happens.
func TestSimulation(t *testing.T) {
	if *oneSeed >= 0 {
		simulate(t, uint64(*oneSeed))
		return
	}
	seeds := *manySeeds
	if testing.Short() {
		seeds /= 10
	}
	const chunk = 100
	for from := 0; from < seeds; from += chunk {
		t.Run(fmt.Sprintf("from %d", from), func(t *testing.T) {
			t.Parallel()
			for seed := from; seed < min(from+chunk, seeds); seed++ {
				simulate(t, uint64(seed))
			}
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	w := newWorld(seed)
	defer func() {
		what := recover()
		if what == nil {
			return
		}
		v, ok := what.(violation)
		if !ok {
			v = violation{text: fmt.Sprintf("panic: %v\n%s", what, debug.Stack())}
		}
		t.Fatalf("seed %d: %s\nto reproduce: go test ./handlers -run 'TestSimulation$' -seed %d\n%s", seed, v.text, seed, w.tell(v.job))
	}()
	w.run()
	w.check()
}

// violation is what a check panics with.
type violation struct{ job, text string }

func violated(job, format string, args ...any) {
	panic(violation{job, fmt.Sprintf(format, args...)})
}

// world is all there is in a simulation.
type world struct {
	*rand.Rand
	now time.Time
	cfg SagaConfig
	// odds of the faults, while faulty.
	odds
	faulty                  bool
	maxStarts, maxRevisions int32

	log     simLog
	wishes  []*wish
	under   []*parcel // on the way into the log
	groups  []*group
	zombies []*task // work that goes on after its consumer has lost its place
	sagas   []*simSaga
	sagaOf  []int   // by partition
	sagaAt  []int64 // the saga's committed offset, by partition
	orphans []*transaction
	view    simProjector
	forgot  map[string]bool   // jobs that a saga has ever forgotten
	touched map[string]string // what was done with a job's artifacts
}

// odds are drawn for each world, so that some know a fault not at all and some little else.
type odds struct{ crash, abort, rebalance, repeat, lose, forget, jump float64 }

func drawOdds(r *rand.Rand) odds {
	one := func(most float64) float64 {
		switch r.IntN(3) {
		case 0:
			return 0
		case 1:
			return most / 10
		}
		return most
	}
	return odds{crash: one(0.1), abort: one(0.5), rebalance: one(0.1), repeat: one(0.5), lose: one(0.1), forget: one(0.3), jump: one(0.2)}
}

// once is true with a probability, as long as things go wrong.
func (w *world) once(probability float64) bool { return w.faulty && w.Float64() < probability }

// span is a time of up to most.
func (w *world) span(most time.Duration) time.Duration {
	return time.Duration(w.Int64N(int64(most/time.Millisecond)+1)) * time.Millisecond
}

func pick[T any](w *world, from []T) T { return from[w.IntN(len(from))] }

var began = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// everyOperation has one that Submit accepts for any source.
var everyOperation = []string{"webp", "avif", "jpg", "png", "denoise"}

func newWorld(seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 0))
	w := &world{Rand: r, now: began, odds: drawOdds(r), faulty: true, maxStarts: 1 + r.Int32N(4), maxRevisions: 1 + r.Int32N(4),
		forgot: map[string]bool{}, touched: map[string]string{}}
	partitions := 1 + w.IntN(48)
	if w.IntN(2) == 0 {
		partitions = 1 + w.IntN(3)
	}
	w.log = newSimLog(partitions, 1+w.IntN(partitions))
	w.cfg = SagaConfig{BatchRecords: 1 + w.IntN(40), CommitInterval: time.Hour, Remember: 10_000 * time.Hour, JobDeadline: time.Minute + w.span(time.Hour)}
	if w.IntN(2) == 0 {
		w.cfg.Remember = time.Minute + w.span(time.Minute)
	}
	for range 1 + w.IntN(3) {
		w.sagas = append(w.sagas, w.newSaga())
	}
	w.sagaOf, w.sagaAt = make([]int, partitions), make([]int64, partitions)
	for p := range w.sagaOf {
		w.sagaOf[p] = w.IntN(len(w.sagas))
		w.sagas[w.sagaOf[p]].take(int32(p))
	}
	for _, op := range everyOperation {
		if w.IntN(20) > 0 { // else nobody works at it, and its jobs end by their deadline
			w.groups = append(w.groups, w.newGroup(op, partitions))
		}
	}
	w.view = newSimProjector(partitions)
	w.drawWishes()
	return w
}

// wish is a job that clients ask for, in one or several requests.
type wish struct {
	id       string
	requests []commands.Submit
	// luck is how many of ten attempts at an operation go well.
	luck int
	// archived is a request that an earlier version of PixTools wrote.
	archived bool
}

func (w *world) drawWishes() {
	for i := range 1 + w.IntN(1+w.IntN(8)) {
		tenant := fmt.Sprintf("tenant %d", w.IntN(3))
		j := &wish{id: events.JobID(tenant, fmt.Sprint("key ", i)), luck: w.IntN(11), archived: w.IntN(5) == 0}
		var webhook *events.Sealed
		if w.IntN(2) == 0 {
			webhook = &events.Sealed{KeyId: "k", Ciphertext: []byte{1}}
		}
		for range 1 + w.IntN(2) {
			c := commands.Submit{JobID: j.id, Tenant: tenant, RequestID: fmt.Sprint("request ", i), WebhookURL: webhook,
				Source:   &events.Source{Key: "raw/" + j.id + "/aa", Sha256: "aa", Bytes: 10, Width: 4, Height: 3, Format: "gif"},
				FileName: &events.Sealed{KeyId: "k", Ciphertext: []byte{2}}}
			for _, n := range w.Perm(len(everyOperation))[:1+w.IntN(len(everyOperation))] {
				c.Operations = append(c.Operations, everyOperation[n])
			}
			if c.Operations[0] == "webp" && w.IntN(2) == 0 {
				c.Parameters = map[string]map[string]any{"webp": {"quality": 50.0}}
			}
			c.Fingerprint = commands.Fingerprint(c.Source.Sha256, c.Operations, c.Parameters, "")
			j.requests = append(j.requests, c)
		}
		w.wishes = append(w.wishes, j)
	}
}

// run lets everybody work in an order that is drawn, then without faults until nothing
// moves any more.
func (w *world) run() {
	// Some are quick and some slow, in each world others.
	acts := []func(){w.call, w.deliver, w.work, w.stepSaga, func() { w.project() }, w.disturb}
	var turns []func()
	for i, most := range []int{3, 6, 8, 8, 3, 2} {
		for range 1 + w.IntN(most) {
			turns = append(turns, acts[i])
		}
	}
	for range len(w.wishes) * (50 + w.IntN(150)) {
		w.now = w.now.Add(w.span(2 * time.Second))
		if w.once(w.jump) {
			w.now = w.now.Add(w.span(3 * time.Minute))
		}
		pick(w, turns)()
	}
	w.rest()
}

// rest is reached when everybody has read everything and done what follows of it, and the
// last deadline is over.
func (w *world) rest() {
	w.faulty = false
	for round, deadlines := 0, 3; ; round++ { // the first may be met in a transaction that is aborted
		if round == 1000 {
			violated("", "it does not come to rest")
		}
		w.now = w.now.Add(time.Second)
		busy := w.finishOrphans()
		for len(w.under) > 0 {
			busy = true
			w.deliver()
		}
		busy = w.finishWork() || busy
		for _, s := range w.sagas {
			busy = s.finish() || busy
		}
		busy = w.project() || busy
		busy = w.finishWebhooks() || busy
		if busy {
			continue
		}
		if deadlines--; deadlines == 0 {
			return
		}
		w.now = w.now.Add(w.cfg.JobDeadline + 2*mostSkew)
		for _, s := range w.sagas {
			s.lookAtDeadlines()
		}
	}
}

// mostSkew is how far a process's clock is from the true time, at most.
const mostSkew = 30 * time.Second

func (w *world) skew() time.Duration { return w.span(2*mostSkew) - mostSkew }

// disturb is what comes from outside.
func (w *world) disturb() {
	switch w.IntN(3) {
	case 0:
		w.finishOrphans()
	case 1:
		if w.once(w.rebalance * 5) {
			w.moveSagas()
		}
	default:
		w.log.compact(w)
	}
}
