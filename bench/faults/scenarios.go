package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pixtools/pixtools/internal/testenv"
)

// scenario is one kind of fault, under load.
type scenario struct {
	name, what string
	// takes is about how long it takes, waiting for the end included.
	takes func(o options) time.Duration
	play  func(ctx context.Context, o options) (result, error)
	// apart says that it is none of all, since it is not PixTools that it judges.
	apart bool
}

// scenarios in the order in which all of them run.
func scenarios() []scenario {
	return []scenario{
		{"kills", "kill -9 of random processes of every role",
			func(o options) time.Duration { return time.Duration(o.kills)*killPause + startAndEnd }, playKills, false},
		{"brokers", "three brokers, replication factor 3, killed in turn",
			func(o options) time.Duration { return time.Duration(o.rounds*3)*brokerTakes + startAndEnd }, playBrokers, false},
		{"parts", "Postgres, Redis, S3 and Kafka away, each once dead and once frozen",
			func(o options) time.Duration { return 8*(o.outage+partTakes) + startAndEnd }, playParts, false},
		{"membership", "processes come and go while operations take long",
			func(o options) time.Duration { return o.changing + 2*startAndEnd }, playMembership, false},
		{"keys", "one idempotency key, many requests at once, with Redis up, down and dying",
			func(o options) time.Duration {
				return time.Duration(o.rounds*len(redisModes)*2)*keysTake + startAndEnd
			}, playKeys, false},
		{"poison", "records that are no events among the others, and kill -9 meanwhile",
			func(o options) time.Duration { return time.Duration(o.poison)*poisonPause + startAndEnd }, playPoison, false},
		{"parking", "poisoned keys among others: what they cost those, and that a redrive finishes them",
			func(o options) time.Duration { return parkingTakes + startAndEnd }, playParking, false},
		{"bugs", "deliberate bugs, to show that the checker finds each of them",
			func(o options) time.Duration {
				if o.bug != "" {
					return 2 * bugTakes
				}
				return time.Duration(len(bugs())+1) * bugTakes
			}, playBugs, true},
	}
}

// About what parts of the scenarios take, for the estimate.
const (
	startAndEnd = time.Minute // the servers' start, the last job, the judge
	brokerTakes = 25 * time.Second
	partTakes   = 15 * time.Second
	keysTake    = 5 * time.Second
)

// killPause is the mean pause between two kills.
const (
	killPause    = 2 * time.Second
	killPauseMin = 200 * time.Millisecond
)

func playKills(ctx context.Context, o options) (result, error) {
	return execute(ctx, o.settings(), func(ctx context.Context, r *run) error {
		return errors.Join(r.kills(ctx, o.kills, killPause, ""), pause(ctx, r.random, killPause, killPause))
	})
}

// kills takes a random process away and starts the next one in its place, again and again:
// first one of each role, then whatever comes, and every other time one of the role aim, if
// there is one.
func (r *run) kills(ctx context.Context, n int, mean time.Duration, aim string) error {
	order := shuffled(r.random, slices.Sorted(maps.Keys(r.roles)))
	for i := range n {
		if err := pause(ctx, r.random, killPauseMin, 2*mean-killPauseMin); err != nil {
			return err
		}
		role := ""
		switch {
		case i < len(order):
			role = order[i]
		case i%2 == 0:
			role = aim
		}
		if err := r.killOne(role); err != nil {
			return err
		}
	}
	return nil
}

// killOne kills a process of a role, of any if that is "".
func (r *run) killOne(role string) error {
	victims := r.fleet.of(role)
	victim := victims[r.random.IntN(len(victims))]
	if err := victim.kill(); err != nil {
		return err
	}
	r.fault("kill -9 " + victim.role)
	return nil
}

// The pauses of the scenario brokers: with one away, and with all there.
const (
	brokerDownMin, brokerDownMax = 3 * time.Second, 12 * time.Second
	brokerUpMin, brokerUpMax     = 2 * time.Second, 6 * time.Second
	inSyncTimeout                = 3 * time.Minute
)

func playBrokers(ctx context.Context, o options) (result, error) {
	s := o.settings()
	s.brokers = 3
	s.env = []string{"KAFKA_REPLICATION_FACTOR=3"}
	return execute(ctx, s, func(ctx context.Context, r *run) error {
		for range o.rounds {
			for _, i := range shuffled(r.random, []int{0, 1, 2}) {
				if err := r.breakBroker(ctx, i); err != nil {
					return err
				}
			}
		}
		return pause(ctx, r.random, killPause, killPause)
	})
}

// breakBroker kills one, lets the others go on without it for a while, and waits until the
// next one may go: with two of three away nothing could be written.
func (r *run) breakBroker(ctx context.Context, i int) error {
	if err := r.parts.kafka.Kill(i); err != nil {
		return err
	}
	r.fault("kill -9 broker")
	if err := pause(ctx, r.random, brokerDownMin, brokerDownMax); err != nil {
		return err
	}
	if err := r.parts.kafka.Restart(i); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, inSyncTimeout)
	defer cancel()
	if err := r.parts.inSync(waiting); err != nil {
		return fmt.Errorf("broker %d came back: %w", i, err)
	}
	return pause(ctx, r.random, brokerUpMin, brokerUpMax)
}

// outage is a way for a part to be away.
type outage struct {
	part, how  string
	begin, end func() error
}

func (p *parts) outages() []outage {
	of := func(part string, s *testenv.Service) []outage {
		return []outage{{part, "dead", s.Kill, s.Restart}, {part, "frozen", s.Freeze, s.Thaw}}
	}
	k := p.kafka
	return slices.Concat(of("postgres", p.postgres.Service), of("redis", p.redis.Service), of("s3", p.s3.Service), []outage{
		{"kafka", "dead", func() error { return k.Kill(0) }, func() error { return k.Restart(0) }},
		{"kafka", "frozen", func() error { return k.Freeze(0) }, func() error { return k.Thaw(0) }},
	})
}

// recoveryTimeout bounds how long the first job after an outage may take.
const recoveryTimeout = 3 * time.Minute

func playParts(ctx context.Context, o options) (result, error) {
	return execute(ctx, o.settings(), func(ctx context.Context, r *run) error {
		probe := &client{load: r.load, id: o.clients, random: rand.New(rand.NewPCG(o.seed, 1<<32))}
		for _, away := range shuffled(r.random, r.parts.outages()) {
			if err := pause(ctx, r.random, killPause, 2*killPause); err != nil {
				return err
			}
			if err := r.outage(ctx, probe, away, o.outage); err != nil {
				return err
			}
		}
		return nil
	})
}

// outage takes a part away and brings it back, and sees how long a job then takes. Nobody
// touches the roles.
func (r *run) outage(ctx context.Context, probe *client, away outage, long time.Duration) error {
	accepted, ended := r.load.counted(), r.log.ended()
	if err := away.begin(); err != nil {
		return err
	}
	r.fault(away.part + " " + away.how)
	if err := pause(ctx, r.random, long, long); err != nil {
		return errors.Join(err, away.end())
	}
	accepted, ended = r.load.counted()-accepted, r.log.ended()-ended
	if err := away.end(); err != nil {
		return err
	}
	back := time.Now()
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	probe.keys++
	call, ok := probe.insist(ctx, compose(probe.random, fmt.Sprintf("probe %d of run %d", probe.keys, r.seed), "", 1, false, false))
	if !ok {
		r.breach("%s %s for %s: no submission was accepted within %s of its return: %d %s", away.part, away.how, long, recoveryTimeout, call.Status, call.Problem)
		return nil
	}
	took := time.Since(back)
	for {
		if at, over := r.log.endOf(call.JobID); over {
			r.figure("%-8s %-6s for %s: %d jobs accepted and %d ended meanwhile; after it, %.1f s to the first acceptance, %.1f s to that job's end",
				away.part, away.how, long, accepted, ended, took.Seconds(), at.Sub(back).Seconds())
			return nil
		}
		select {
		case <-ctx.Done():
			r.breach("%s %s for %s: job %s, accepted after its return, did not end within %s", away.part, away.how, long, call.JobID, recoveryTimeout)
			return nil
		case <-time.After(20 * time.Millisecond): // before the next look
		}
	}
}

// What the scenario membership runs with.
const (
	longOperation              = 10 * time.Second
	changeEvery                = 2 * time.Second
	fewestMembers, mostMembers = 2, 5
	openAtOnce                 = 30
)

func playMembership(ctx context.Context, o options) (result, error) {
	s := o.settings()
	var err error
	if s.binary, err = o.buggy(ctx); err != nil {
		return result{}, err
	}
	s.roles = map[string]int{"api": 1, "convert": 3, "saga": 1, "projector": 1}
	s.env = []string{"PIXTOOLS_SLOW=" + longOperation.String(), "CONVERT_CONCURRENCY=8"}
	s.shape = func(l *load) { l.denoise, l.backlog = 0, openAtOnce } // no process has the role ml
	var changes []change
	done, err := execute(ctx, s, func(ctx context.Context, r *run) error {
		var leaving sync.WaitGroup
		defer leaving.Wait()
		for end := time.Now().Add(o.changing); time.Now().Before(end); {
			if err := pause(ctx, r.random, changeEvery, changeEvery); err != nil {
				return err
			}
			c, err := r.change(&leaving)
			if err != nil {
				return err
			}
			changes = append(changes, c)
		}
		return nil
	})
	if err == nil {
		err = judgeRepeats(&done, changes, o.out)
	}
	return done, err
}

// change is one of the membership: who came, or went, and when.
type change struct {
	at   time.Time
	left string // name of the member that was told to go, or killed; empty where one came
}

// change has one process come, or one go: most of them in order.
func (r *run) change(leaving *sync.WaitGroup) (change, error) {
	members := r.fleet.of("convert")
	c := change{at: time.Now()}
	if len(members) <= fewestMembers || len(members) < mostMembers && r.random.IntN(2) == 0 {
		r.fault("member came")
		_, err := r.fleet.add("convert")
		return c, err
	}
	m := members[r.random.IntN(len(members))]
	c.left = m.name
	sig := syscall.SIGTERM
	if r.random.IntN(4) == 0 {
		sig = syscall.SIGKILL
		r.fault("member killed")
	} else {
		r.fault("member went")
	}
	leaving.Go(func() {
		if err := m.leave(sig); err != nil {
			r.breach("%v", err)
		}
	})
	return c, nil
}

// Ways for Redis to be, while many requests with one key are under way.
var redisModes = []string{"up", "down", "dying", "coming back", "freezing"}

const (
	atOnce     = 50
	keyTimeout = 2 * time.Minute
)

func playKeys(ctx context.Context, o options) (result, error) {
	s := o.settings()
	s.roles = map[string]int{"api": 3, "convert": 1, "saga": 1, "projector": 1}
	s.clients = 2
	s.shape = func(l *load) { l.denoise = 0 } // no process has the role ml
	return execute(ctx, s, func(ctx context.Context, r *run) error {
		for _, mode := range redisModes {
			for round := range o.rounds {
				for _, conflict := range []bool{false, true} {
					if err := r.oneKey(ctx, mode, round, conflict); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

// oneKey sends many requests with one key at once; in the conflict, half of them want
// something else under it.
func (r *run) oneKey(ctx context.Context, mode string, round int, conflict bool) error {
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	key := fmt.Sprintf("Redis %s, round %d, conflict %t of run %d", mode, round, conflict, r.seed)
	wanted := []*submission{compose(r.random, key, "", 2, false, false)}
	if conflict {
		wanted = append(wanted, compose(r.random, key, "", 2, false, false))
	}
	if err := r.redisBefore(mode); err != nil {
		return err
	}
	var answered atomic.Int64
	half := make(chan struct{})
	var all sync.WaitGroup
	var mu sync.Mutex
	ids, refused, lost := map[string]int{}, 0, 0
	for i := range atOnce {
		c := &client{load: r.load, id: 1000 + i, random: rand.New(rand.NewPCG(r.seed, r.random.Uint64()))}
		all.Go(func() {
			call, ok := c.insistNoting(ctx, wanted[i%len(wanted)], func() {
				if answered.Add(1) == atOnce/2 {
					close(half)
				}
			})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case ok:
				ids[call.JobID]++
			case call.Status == http.StatusUnprocessableEntity:
				refused++
			default:
				lost++
			}
		})
	}
	select {
	case <-half:
	case <-ctx.Done():
	}
	if err := r.redisHalfWay(mode); err != nil {
		return err
	}
	all.Wait()
	if lost > 0 {
		r.breach("Redis %s, round %d: %d of %d requests had no answer within %s", mode, round, lost, atOnce, keyTimeout)
	}
	if len(ids) > 1 {
		r.breach("Redis %s, round %d: %d jobs for one key", mode, round, len(ids))
	}
	r.figure("Redis %-11s round %d, %d requests at once, %d payloads: %d job, %d times accepted, %d refused", mode, round, atOnce, len(wanted), len(ids), atOnce-refused-lost, refused)
	return r.redisAfter(mode)
}

func (r *run) redisBefore(mode string) error {
	if mode == "down" || mode == "coming back" {
		r.fault("redis dead")
		return r.parts.redis.Kill()
	}
	return nil
}

func (r *run) redisHalfWay(mode string) error {
	switch mode {
	case "dying":
		r.fault("redis dead")
		return r.parts.redis.Kill()
	case "coming back":
		return r.parts.redis.Restart()
	case "freezing":
		r.fault("redis frozen")
		return r.parts.redis.Freeze()
	}
	return nil
}

func (r *run) redisAfter(mode string) error {
	switch mode {
	case "down", "dying":
		return r.parts.redis.Restart()
	case "freezing":
		return r.parts.redis.Thaw()
	}
	return nil
}

func shuffled[T any](random *rand.Rand, all []T) []T {
	random.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
	return all
}
