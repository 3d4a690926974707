package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pixtools/pixtools/bench/faults/history"
)

// seeded is a deliberate bug (internal/bug), and which properties must find it.
type seeded struct {
	name, what string
	// aim is the role that every other kill takes.
	aim   string
	finds []history.Property
}

func bugs() []seeded {
	return []seeded{
		{"api-does-not-wait", "the API answers 202 whether or not Kafka has acknowledged the event", "api", []history.Property{history.Accepted}},
		{"key-draws-id", "a keyed submission draws its job's id", "api", []history.Property{history.Keys}},
		{"read-ignores-after", "a read does not wait for the position in after=", "projector", []history.Property{history.Reads}},
		{"read-remembers", "an API process answers from its memory", "api", []history.Property{history.Reads}},
		{"worker-acks-early", "a worker takes a message as done before its outcome is acknowledged, and keeps that in memory for a while", "convert", []history.Property{history.Ended}},
		{"commit-skips-open", "a group's offset passes over records that are in work", "convert", []history.Property{history.Ended}},
		{"event-ids-drawn", "a worker draws the ids of its events", "convert", []history.Property{history.Identity}},
		{"artifact-not-stored", "an artifact is not stored", "convert", []history.Property{history.Artifacts}},
		{"artifact-wrong-hash", "an artifact's SHA-256 in the log is not that of its bytes", "convert", []history.Property{history.Artifacts}},
		{"saga-emits-twice", "the saga writes each end twice", "saga", []history.Property{history.Finals}},
		{"saga-outside-transaction", "the saga writes ends outside its transaction", "saga", []history.Property{history.Finals}},
		{"saga-starts-empty", "a saga does not read its state when it gets a partition", "saga", []history.Property{history.Ended}},
		{"projector-skips-event", "the projector passes over some events", "projector", []history.Property{history.ReadModel}},
		{"webhook-told-early", "a webhook is told to be delivered before it is sent", "webhooks", []history.Property{history.Webhooks}},
		{"janitor-ignores-grace", "the janitor takes young objects without an event for old ones", "janitor", []history.Property{history.Kept}},
		{"projector-offsets-alone", "the projector moves its offsets before it writes the rows", "projector", []history.Property{history.ReadModel}},
	}
}

// What a run of a bug is made of: short, with what each of the bugs needs to show itself.
const (
	bugKills    = 16
	bugWork     = 4 * time.Second // without faults, so that there is work when Kafka dies
	bugPause    = 1200 * time.Millisecond
	bugAway     = 8 * time.Second // Kafka is, longer than KAFKA_DELIVERY_TIMEOUT
	bugSlow     = 700 * time.Millisecond
	bugPatience = 25 * time.Second
	bugTakes    = 70 * time.Second
)

// verdict is what came of one bug.
type verdict struct {
	seeded
	found  map[history.Property]int
	faults int
	caught bool
}

// playBugs makes each bug in turn, in a run of its own, and first none.
func playBugs(ctx context.Context, o options) (result, error) {
	binary, err := o.buggy(ctx)
	if err != nil {
		return result{}, err
	}
	chosen := slices.DeleteFunc(bugs(), func(b seeded) bool { return o.bug != "" && b.name != o.bug })
	var all []verdict
	var broken []string
	for _, b := range append([]seeded{{name: "none", what: "as it is"}}, chosen...) {
		fmt.Fprintf(o.out, "\n--- bug %s: %s\n", b.name, b.what)
		v, err := playBug(ctx, o, binary, b)
		if err != nil {
			return result{}, fmt.Errorf("bug %s: %w", b.name, err)
		}
		all = append(all, v)
		if !v.caught {
			broken = append(broken, "bug "+b.name+": "+v.String())
		}
	}
	fmt.Fprintln(o.out)
	for _, v := range all {
		fmt.Fprintf(o.out, "%-26s %2d faults  %s\n", v.name, v.faults, v)
	}
	return result{broken: broken}, nil
}

func (v verdict) String() string {
	var told []string
	for _, p := range history.Properties() {
		if v.found[p] > 0 {
			told = append(told, fmt.Sprintf("%s (%d)", p, v.found[p]))
		}
	}
	switch {
	case v.name == "none" && v.caught:
		return "clean: no promise was broken"
	case v.caught:
		return "caught by " + strings.Join(told, ", ")
	case len(told) == 0:
		return "NOT CAUGHT"
	}
	return "broke " + strings.Join(told, ", ") + fmt.Sprintf("; to be found by %v", v.finds)
}

func playBug(ctx context.Context, o options, binary string, b seeded) (verdict, error) {
	s := o.settings()
	s.binary, s.patience, s.out = binary, bugPatience, io.Discard
	s.discard = b.name != "none"
	s.env = []string{"PIXTOOLS_BUG=" + b.name, "PIXTOOLS_SLOW=" + bugSlow.String(), "KAFKA_CONSUMER_COMMIT_INTERVAL=500ms"}
	done, err := execute(ctx, s, func(ctx context.Context, r *run) error {
		if err := r.kills(ctx, bugKills/2, bugPause, b.aim); err != nil {
			return err
		}
		if err := pause(ctx, r.random, bugWork, bugWork); err != nil {
			return err
		}
		// Dead, not frozen: what was sent to a frozen broker, it writes when it thaws.
		r.fault("kafka dead")
		err := r.parts.kafka.Kill(0)
		if err == nil {
			// What the role in question holds in memory alone, since Kafka is away, goes with it.
			err = errors.Join(pause(ctx, r.random, bugAway/2, bugAway/2), r.killOne(b.aim),
				pause(ctx, r.random, bugAway/2, bugAway/2), r.parts.kafka.Restart(0))
		}
		return errors.Join(err, r.kills(ctx, bugKills/2, bugPause, b.aim), pause(ctx, r.random, killPause, killPause))
	})
	if err != nil {
		return verdict{}, err
	}
	v := verdict{seeded: b, found: map[history.Property]int{}, faults: done.faults}
	shown := map[history.Property]bool{}
	for _, found := range done.violations {
		v.found[found.Property]++
		if !shown[found.Property] {
			shown[found.Property] = true
			fmt.Fprintf(o.out, "%s: job %s: %s\n", found.Property, found.JobID, clip(found.Message))
		}
	}
	for _, line := range done.broken {
		fmt.Fprintln(o.out, clip(line))
	}
	v.caught = slices.ContainsFunc(b.finds, func(p history.Property) bool { return v.found[p] > 0 })
	if b.name == "none" {
		v.caught = !done.failed()
	}
	fmt.Fprintln(o.out, v)
	return v, nil
}
