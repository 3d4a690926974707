// Package progress tells how far a running operation has come. It goes through Redis, beside
// the log: it may be lost, nothing depends on it, and it is gone a while after the work.
//
// The last state of each operation lies under a key, for those who ask, and each state is
// published on the job's channel, for those who listen.
package progress

import (
	"context"
	"encoding/json"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// perSecond bounds how often one attempt is told of. The first and the last state
	// always are.
	perSecond = 4
	// keptFor is longer than any part of the work takes.
	keptFor = 10 * time.Minute

	prefix = "pixtools:progress:"
)

// State is how far an attempt at an operation is.
type State struct {
	Operation string `json:"operation"`
	Attempt   int32  `json:"attempt"`
	Done      int    `json:"done"`
	Total     int    `json:"total"`
}

// Share is the part that is done, from 0 to 1.
func (s State) Share() float64 {
	if s.Total < 1 {
		return 0
	}
	return min(max(float64(s.Done)/float64(s.Total), 0), 1)
}

// Channel is where a job's states are published, as JSON.
func Channel(jobID string) string { return prefix + jobID }

func key(jobID, operation string) string { return prefix + jobID + ":" + operation }

// Reporter tells of one attempt. It asks no more of Redis than a call takes by the
// client's timeouts, and says nothing of failures.
func Reporter(ctx context.Context, client *redis.Client, jobID, operation string, attempt int32) func(done, total int) {
	var last time.Time
	return func(done, total int) {
		now := time.Now()
		if done < total && now.Sub(last) < time.Second/perSecond {
			return
		}
		last = now
		state, err := json.Marshal(State{operation, attempt, done, total})
		if err != nil {
			return
		}
		_, _ = client.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, key(jobID, operation), state, keptFor)
			p.Publish(ctx, Channel(jobID), state)
			return nil
		})
	}
}

// Read gives the last states of a job's operations, by name; those of which nothing is
// known, or nothing can be learnt now, are left out.
func Read(ctx context.Context, client *redis.Client, jobID string, operations ...string) map[string]State {
	if len(operations) == 0 {
		return nil
	}
	keys := make([]string, len(operations))
	for i, operation := range operations {
		keys[i] = key(jobID, operation)
	}
	values, err := client.MGet(ctx, keys...).Result()
	if err != nil {
		return nil
	}
	states := map[string]State{}
	for i, value := range values {
		text, _ := value.(string)
		var s State
		if json.Unmarshal([]byte(text), &s) == nil {
			states[operations[i]] = s
		}
	}
	return states
}
