package projections

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/pixtools/pixtools/events"
)

// DeadLetterConfig bounds the view of the dead letters.
type DeadLetterConfig struct {
	// Kept is how many dead letters are in the view.
	// Beyond it: the oldest leave it, those that are closed first; they stay in the topic.
	Kept int `env:"DEAD_LETTERS_KEPT" envDefault:"100000" range:"1 to 10000000" unit:"dead letters"`
	// Retention is how long the topic keeps them. It applies when the topic is made.
	// Beyond it: Kafka removes them.
	Retention time.Duration `env:"DEAD_LETTERS_RETENTION" envDefault:"2160h" range:"1h or more"`
}

// Validate names every value out of range.
func (c DeadLetterConfig) Validate() error {
	if c.Kept < 1 || c.Kept > 10_000_000 {
		return fmt.Errorf("DEAD_LETTERS_KEPT is %d: it must be from 1 to 10000000 dead letters", c.Kept)
	}
	if c.Retention < time.Hour {
		return fmt.Errorf("DEAD_LETTERS_RETENTION is %s: it must be 1h or more", c.Retention)
	}
	return nil
}

var deadLettersOpen = promauto.NewGauge(prometheus.GaugeOpts{Name: "pixtools_dead_letters_open",
	Help: "Dead letters that were neither redriven nor discarded, as far as this process has read."})

// DeadLetters is the projection of the dead letter topic. It is small, so it is kept in
// memory and made anew at each start, and PostgreSQL may be away.
type DeadLetters struct {
	cfg    DeadLetterConfig
	client *kgo.Client
	log    *slog.Logger

	mu      sync.Mutex
	letters map[string]*events.DeadLetter
	// order lists the ids, the oldest first.
	order []string
	// next is the offset that is read next; changed is closed, and replaced, when it grows.
	next    int64
	changed chan struct{}
}

// NewDeadLetters makes an empty view; opts must name the brokers. Run fills it.
func NewDeadLetters(cfg DeadLetterConfig, log *slog.Logger, opts ...kgo.Opt) (*DeadLetters, error) {
	client, err := kgo.NewClient(append(slices.Clone(opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{events.DeadLetterTopic: {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // they are offsets, too: see Await
	)...)
	if err != nil {
		return nil, err
	}
	return &DeadLetters{cfg: cfg, client: client, log: log, letters: map[string]*events.DeadLetter{}, changed: make(chan struct{})}, nil
}

// Run reads the topic until ctx is done.
func (d *DeadLetters) Run(ctx context.Context) error {
	defer d.client.Close()
	for {
		fetches := d.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		fetches.EachError(func(_ string, _ int32, err error) { d.log.Warn("cannot read the dead letters", "error", err) })
		fetches.EachRecord(d.take)
	}
}

func (d *DeadLetters) take(r *kgo.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next = r.Offset + 1
	close(d.changed)
	d.changed = make(chan struct{})
	if r.Attrs.IsControl() {
		return
	}
	e, err := events.DecodeLetter(r)
	if err != nil {
		d.log.Warn("passing over what is no dead letter", "offset", r.Offset, "error", err)
		return
	}
	before := d.letters[e.LetterID]
	after := events.FoldLetter(before, e)
	if after == nil {
		return
	}
	d.letters[e.LetterID] = after
	deadLettersOpen.Add(openOnes(after) - openOnes(before))
	if before == nil {
		d.order = append(d.order, e.LetterID)
		d.shrink()
	}
}

// shrink lets one letter go where there is one too many.
func (d *DeadLetters) shrink() {
	if len(d.order) <= d.cfg.Kept {
		return
	}
	at := slices.IndexFunc(d.order, func(id string) bool { return !d.letters[id].ClosedAt.IsZero() })
	at = max(at, 0)
	deadLettersOpen.Sub(openOnes(d.letters[d.order[at]]))
	delete(d.letters, d.order[at])
	d.order = slices.Delete(d.order, at, at+1)
}

// openOnes is 1 for a letter that is open.
func openOnes(l *events.DeadLetter) float64 {
	if l == nil || !l.ClosedAt.IsZero() {
		return 0
	}
	return 1
}

// Await returns once the view has what is in the topic now.
func (d *DeadLetters) Await(ctx context.Context) error {
	ends, err := kadm.NewClient(d.client).ListEndOffsets(ctx, events.DeadLetterTopic)
	if err != nil {
		return fmt.Errorf("ask how many dead letters there are: %w", err)
	}
	end, ok := ends.Lookup(events.DeadLetterTopic, 0)
	if !ok || end.Err != nil {
		return fmt.Errorf("ask how many dead letters there are: %w", end.Err)
	}
	reached, changed := d.reached(end.Offset)
	if reached {
		return nil
	}
	starts, err := kadm.NewClient(d.client).ListStartOffsets(ctx, events.DeadLetterTopic)
	if err != nil {
		return fmt.Errorf("ask how many dead letters there are: %w", err)
	}
	if start, ok := starts.Lookup(events.DeadLetterTopic, 0); ok && start.Offset == end.Offset {
		return nil // all have expired: none will come that moves next
	}
	for !reached {
		select {
		case <-ctx.Done():
			return ErrBehind
		case <-changed:
		}
		reached, changed = d.reached(end.Offset)
	}
	return nil
}

// reached says whether all before an offset is read; changed is closed when more is.
func (d *DeadLetters) reached(end int64) (reached bool, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.next >= end, d.changed
}

// LetterFilter says which dead letters are meant; empty members mean all.
type LetterFilter struct {
	// IDs of letters.
	IDs []string
	// Open says that only those are meant that are neither redriven nor discarded.
	Open bool
	// Operation, Type, Code, Group and JobID are as in events.DeadLettered.
	Operation, Type, Code, Group, JobID string
	// Since and Until are times at which they were given up: from Since, before Until.
	Since, Until time.Time
	// After is the id of the letter after which to begin.
	After string
}

func (f LetterFilter) matches(l *events.DeadLetter) bool {
	is := func(wanted, value string) bool { return wanted == "" || wanted == value }
	return (len(f.IDs) == 0 || slices.Contains(f.IDs, l.ID)) && (!f.Open || l.ClosedAt.IsZero()) &&
		is(f.Operation, l.GetOperation()) && is(f.Type, l.GetType()) && is(f.Code, l.GetCode()) && is(f.Group, l.GetGroup()) && is(f.JobID, l.GetJobId()) &&
		(f.Since.IsZero() || !l.At.Before(f.Since)) && (f.Until.IsZero() || l.At.Before(f.Until))
}

// List gives the first letters that are meant, the oldest first, and how many there are
// beyond those. ErrNotFound: there is no letter to begin after.
func (d *DeadLetters) List(f LetterFilter, limit int) (page []*events.DeadLetter, more int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	order := d.order
	if f.After != "" {
		at := slices.Index(order, f.After)
		if at < 0 {
			return nil, 0, ErrNotFound
		}
		order = order[at+1:]
	}
	for _, id := range order {
		letter := d.letters[id]
		switch {
		case !f.matches(letter):
		case len(page) < limit:
			page = append(page, letter)
		default:
			more++
		}
	}
	return page, more, nil
}
