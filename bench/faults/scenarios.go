package main

import (
	"context"
	"time"
)

// scenario is one kind of fault, under load.
type scenario struct {
	name, what string
	// takes is about how long it takes, waiting for the end included.
	takes func(o options) time.Duration
	play  func(ctx context.Context, o options) (result, error)
}

// scenarios in the order in which all of them run.
func scenarios() []scenario {
	return []scenario{
		{"kills", "kill -9 of random processes of every role", func(o options) time.Duration {
			return time.Duration(o.kills)*killPause + startAndEnd
		}, playKills},
	}
}

// startAndEnd is about what the servers' start, the wait for the last job and the judge take.
const startAndEnd = time.Minute

// killPause is the mean pause between two kills.
const (
	killPause    = 2 * time.Second
	killPauseMin = 200 * time.Millisecond
)

func playKills(ctx context.Context, o options) (result, error) {
	return execute(ctx, o.settings(), func(ctx context.Context, r *run) error { return r.kills(ctx, o.kills) })
}

// kills takes a random process away and starts the next one in its place, again and again:
// first one of each role, then whatever comes.
func (r *run) kills(ctx context.Context, n int) error {
	order := []string{"api", "convert", "ml", "saga", "projector"}
	r.random.Shuffle(len(order), func(a, b int) { order[a], order[b] = order[b], order[a] })
	for i := range n {
		if err := pause(ctx, r.random, killPauseMin, 2*killPause-killPauseMin); err != nil {
			return err
		}
		role := ""
		if i < len(order) {
			role = order[i]
		}
		victims := r.fleet.of(role)
		victim := victims[r.random.IntN(len(victims))]
		if err := victim.kill(); err != nil {
			return err
		}
		r.fault("kill -9 " + victim.role)
	}
	return pause(ctx, r.random, killPause, killPause)
}
