package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/bench/faults/history"
	"github.com/pixtools/pixtools/events"
)

// poisonPause is the mean pause between two poisoned records; every killEach of them a
// process is killed, too.
const (
	poisonPause    = time.Second
	poisonPauseMin = 100 * time.Millisecond
	killEach       = 5
	largePoison    = 300 << 10 // bytes
)

// playPoison puts records into the log that are no events, most of them under the keys of
// jobs that are at work: each such record becomes one dead letter, its job ends, and what
// it cost can be retried.
func playPoison(ctx context.Context, o options) (result, error) {
	return execute(ctx, o.settings(), func(ctx context.Context, r *run) error {
		client, err := r.parts.client()
		if err != nil {
			return err
		}
		defer client.Close()
		spoilt := map[string]bool{}
		for i := range o.poison {
			if err := pause(ctx, r.random, poisonPauseMin, 2*poisonPause-poisonPauseMin); err != nil {
				return err
			}
			if err := r.spoil(ctx, client, spoilt); err != nil {
				return err
			}
			if i%killEach == 0 {
				if err := r.kills(ctx, 1, poisonPause, ""); err != nil {
					return err
				}
			}
		}
		return r.mend(ctx, o, spoilt)
	})
}

// spoil writes one poisoned record.
func (r *run) spoil(ctx context.Context, client *kgo.Client, spoilt map[string]bool) error {
	id := r.load.latest()
	if id == "" || r.random.IntN(5) == 0 {
		id = uuid.NewString() // a job that is not
	}
	record, what, unreadable := poisoned(r.random, id)
	if err := r.putPoison(ctx, client, record, unreadable); err != nil {
		return err
	}
	r.fault("poison: " + what)
	if unreadable && string(record.Key) == id {
		spoilt[id] = true
	}
	return nil
}

// spoilOne writes a record under the job's key that nobody can read.
func (r *run) spoilOne(ctx context.Context, client *kgo.Client, id string) (what string, err error) {
	for {
		record, what, unreadable := poisoned(r.random, id)
		if unreadable && string(record.Key) == id {
			return what, r.putPoison(ctx, client, record, unreadable)
		}
	}
}

func (r *run) putPoison(ctx context.Context, client *kgo.Client, record *kgo.Record, unreadable bool) error {
	// Not ctx: what is written must be known.
	if err := client.ProduceSync(context.WithoutCancel(ctx), record).FirstErr(); err != nil {
		return fmt.Errorf("write a poisoned record: %w", err)
	}
	r.poison[history.Place{Partition: record.Partition, Offset: record.Offset}] = unreadable
	return nil
}

// poisoned makes a record that is not what its reader hopes for. A type that nobody knows
// can be read: a newer version may have written it.
func poisoned(random *rand.Rand, id string) (r *kgo.Record, what string, unreadable bool) {
	outcome := events.New(id, time.Now(), "poison", "", &events.OperationCompleted{Revision: 1, Operation: "webp", Attempt: 1})
	r, err := outcome.Record()
	if err != nil {
		panic(err) // of an event as any other
	}
	header := func(key, value string) {
		for i, h := range r.Headers {
			if h.Key == key {
				r.Headers[i].Value = []byte(value)
			}
		}
	}
	switch random.IntN(9) {
	case 0:
		what, r.Value = "value is no message", []byte("\xff\xff\xff")
	case 1:
		what, r.Headers = "no headers", nil
	case 2:
		what, r.Key = "key is no job id", []byte("not-a-job")
	case 3:
		what, r.Key, r.Value, r.Headers = "nothing at all", nil, nil, nil
	case 4:
		what = "another version of CloudEvents"
		header(events.HeaderSpecVersion, "9.9")
	case 5:
		what = "subject is another job"
		header(events.HeaderSubject, uuid.NewString())
	case 6:
		what = "no time"
		header(events.HeaderTime, "yesterday")
	case 7:
		what, r.Value = "large", []byte(strings.Repeat("\xff", largePoison))
	default:
		header(events.HeaderType, "pixtools.events.v1.OperationDreamt")
		return r, "unknown type", false
	}
	return r, what, true
}

// latest is a job that was accepted a moment ago.
func (l *load) latest() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ids) == 0 {
		return ""
	}
	return l.ids[len(l.ids)-1]
}

// mend retries what the poison cost. Jobs that had ended before lost nothing.
func (r *run) mend(ctx context.Context, o options, spoilt map[string]bool) error {
	c := &client{load: r.load, id: o.clients, random: rand.New(rand.NewPCG(o.seed, 1<<32))}
	retried := 0
	for id := range spoilt {
		call := c.read(ctx, id, nil, 30)
		if call.Status == http.StatusNotFound || call.View != nil && call.View.Outcome == "SUCCEEDED" {
			continue
		}
		c.retried(ctx, id)
		retried++
	}
	r.figure("%d jobs had a record under their key that cannot be read; %d of them were retried", len(spoilt), retried)
	return ctx.Err()
}
