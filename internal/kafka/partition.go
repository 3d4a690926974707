package kafka

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// partition holds what one assignment of one partition has read and not finished.
// Losing and regaining the partition makes a new one.
//
// Its life, each step at most once and in this order, possibly skipping some:
//
//	prepare  catch-up, and waiting for handlers of an earlier life; records queue up
//	open     lanes are worked
//	halt     no further delivery starts; handlers may finish and their acks count
//	cancel   the handlers' contexts end
//	seal     acks no longer count; the group's position is final
//
// A revoke halts, waits for idle within DrainTimeout, cancels and waits a little more, seals, commits. A
// Close halts, waits, and cancels only what is left. A loss does as a revoke, but
// without the commit: the next owner may have moved the position already.
type partition struct {
	sub    *subscription
	number int32

	taking   context.Context // ends at halt
	halt     context.CancelFunc
	handling context.Context // ends at cancel; parent of every message's context
	cancel   context.CancelFunc

	// previous is the idle channel of this partition's earlier life in this process, if
	// that still has handlers. Waiting for it keeps two handlers of one key apart.
	previous <-chan struct{}

	mu      sync.Mutex
	track   tracker
	lanes   map[laneKey]*lane // keys with a record that is not done
	ready   []*lane           // with a record to deliver now, oldest claim first
	busy    int               // workers, plus one while preparing
	pending int               // records read and not done
	bytes   int               // of them
	paused  bool
	started bool // prepare was begun
	open    bool
	halted  bool
	sealed  bool
	idle    chan struct{} // closed when halted and not busy
}

// A laneKey is a record's key. Records without one have no order to keep, so each gets
// a lane of its own, by its offset; those with one have offset -1.
type laneKey struct {
	key    string
	offset int64
}

func laneKeyOf(r *kgo.Record) laneKey {
	if r.Key == nil {
		return laneKey{offset: r.Offset}
	}
	return laneKey{key: string(r.Key), offset: -1}
}

// lane is the queue of one key. It is in exactly one place: in ready, with a worker,
// or waiting out a backoff. That is what makes a key's records go one at a time.
type lane struct {
	key        laneKey
	records    []*kgo.Record // the first is the one being delivered
	deliveries int           // of the first
}

func newPartition(sub *subscription, number int32, previous <-chan struct{}) *partition {
	p := &partition{sub: sub, number: number, previous: previous, lanes: map[laneKey]*lane{}, idle: make(chan struct{})}
	p.taking, p.halt = context.WithCancel(context.Background())
	p.handling, p.cancel = context.WithCancel(sub.ctx)
	return p
}

// add queues records that were polled. It never waits: it runs between a poll and
// AllowRebalance, where waiting would hold up the whole group.
func (p *partition) add(records []*kgo.Record) {
	wanted := make([]bool, len(records))
	for i, r := range records {
		wanted[i] = p.sub.cfg.Filter == nil || p.sub.cfg.Filter(r)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.halted {
		return // closing: never marked, so the next owner reads them
	}
	grew := false
	for i, r := range records {
		p.track.add(r.Offset, r.LeaderEpoch)
		if wanted[i] {
			p.enqueue(r)
		} else if p.track.done(r.Offset) {
			grew = true
		}
	}
	if grew {
		p.mark()
	}
	p.start(records[0].Offset)
	p.spawn()
	p.throttle()
}

func (p *partition) enqueue(r *kgo.Record) {
	p.pending++
	p.bytes += size(r)
	key := laneKeyOf(r)
	l, known := p.lanes[key]
	if !known {
		l = &lane{key: key}
		p.lanes[key] = l
		p.ready = append(p.ready, l)
	}
	l.records = append(l.records, r)
}

func size(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// start opens the partition at its first record, at once or after preparing.
func (p *partition) start(first int64) {
	if p.started {
		return
	}
	p.started = true
	if p.previous == nil && p.sub.cfg.CatchUp == nil {
		p.open = true
		return
	}
	p.busy++
	p.sub.workers.Go(func() { p.prepare(first) })
}

func (p *partition) prepare(first int64) {
	ready := p.afterPrevious() && p.sub.catchUp(p.taking, p.number, first)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = ready
	p.leave()
	p.spawn()
}

func (p *partition) afterPrevious() bool {
	if p.previous == nil {
		return true
	}
	select {
	case <-p.previous:
		return true
	case <-p.taking.Done():
		return false
	}
}

// spawn starts workers for ready lanes. p.mu is held.
func (p *partition) spawn() {
	for p.open && !p.halted && len(p.ready) > 0 && p.busy < p.sub.cfg.WorkersPerPartition {
		l := p.next()
		p.busy++
		p.sub.workers.Go(func() { p.work(l) })
	}
}

func (p *partition) next() *lane {
	l := p.ready[0]
	p.ready[0] = nil
	p.ready = p.ready[1:]
	return l
}

// leave is the end of a worker, or of preparing. p.mu is held.
func (p *partition) leave() {
	p.busy--
	if p.halted && p.busy == 0 {
		close(p.idle)
	}
}

// work delivers one record of a lane, then goes on with the lane that waits longest,
// so that a key with a long queue does not keep others waiting.
func (p *partition) work(l *lane) {
	for l != nil {
		result := p.attempt(l)
		l = p.settle(l, result)
	}
}

type outcome int

const (
	acked outcome = iota
	nacked
	abandoned // nobody took it, or nobody will answer; not done
)

// attempt delivers the first record of the lane and waits for the answer. The lane is
// the caller's alone, but for its records, which add extends under p.mu.
func (p *partition) attempt(l *lane) outcome {
	select {
	case p.sub.slots <- struct{}{}:
	case <-p.taking.Done():
		return abandoned
	}
	// A handler that overran a hand-over keeps its slot: it still uses the machine.
	defer func() { <-p.sub.slots }()
	p.mu.Lock()
	l.deliveries++
	r, deliveries := l.records[0], l.deliveries
	p.mu.Unlock()
	result := p.sub.deliver(p, r, deliveries)
	if limit := p.sub.cfg.MaxDeliveries; result == nacked && limit > 0 && deliveries >= limit {
		result = p.giveUp(r, deliveries)
	}
	return result
}

func (p *partition) giveUp(r *kgo.Record, deliveries int) outcome {
	if p.taking.Err() != nil {
		return abandoned // nacked because it was cancelled: not the record's fault
	}
	if err := p.sub.cfg.GiveUp(p.handling, r, deliveries); err != nil {
		p.sub.log.Error("record could not be given up, it is tried again", "partition", p.number,
			"offset", r.Offset, "deliveries", deliveries, "err", err)
		return nacked
	}
	return acked
}

// settle books the outcome and returns the next lane to work on, nil to end.
//
// An ack and the end of an assignment may come at the same moment. Both take p.mu. If
// the ack is first, the mark is made before seal returns, and the commit of a revoke,
// which follows seal, includes it. If seal is first, the ack finds sealed and marks
// nothing, so a position is never moved for a partition that has another owner; the
// record is delivered again there.
func (p *partition) settle(l *lane, result outcome) *lane {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch result {
	case acked:
		p.finish(l)
	case nacked:
		p.later(l)
	}
	if p.halted || len(p.ready) == 0 {
		p.leave()
		return nil
	}
	return p.next()
}

// finish takes the first record of the lane as done. p.mu is held.
func (p *partition) finish(l *lane) {
	r := l.records[0]
	l.records[0] = nil
	l.records, l.deliveries = l.records[1:], 0
	p.pending--
	p.bytes -= size(r)
	if p.track.done(r.Offset) && !p.sealed {
		p.mark()
	}
	if len(l.records) > 0 {
		p.ready = append(p.ready, l)
	} else {
		delete(p.lanes, l.key)
	}
	p.throttle()
}

// later brings the lane back after a backoff. Meanwhile it holds its key, but no
// worker and no slot: failing keys do not keep others waiting. p.mu is held.
func (p *partition) later(l *lane) {
	if p.halted {
		return
	}
	time.AfterFunc(backoff(p.sub.cfg.RedeliveryMin, p.sub.cfg.RedeliveryMax, l.deliveries), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ready = append(p.ready, l)
		p.spawn() // nothing, once halted
	})
}

// backoff is random between low and a ceiling that doubles with each failure, so that
// what failed together does not come again together.
func backoff(low, high time.Duration, failures int) time.Duration {
	ceiling := low
	for range failures {
		if ceiling >= high/2 {
			ceiling = high
			break
		}
		ceiling *= 2
	}
	return low + rand.N(ceiling-low+1)
}

// mark lets the next commit include the finished prefix. p.mu is held.
func (p *partition) mark() {
	p.sub.client.MarkCommitOffsets(map[string]map[int32]kgo.EpochOffset{
		p.sub.topic: {p.number: {Epoch: p.track.head.epoch, Offset: p.track.head.next}},
	})
}

// throttle pauses fetching at a limit and resumes at half of all limits; a pause
// throws away what the client had fetched ahead, so it should not flutter. p.mu is held.
//
// The poll loop may be holding records of this partition already when it is paused;
// add takes them: that is the overshoot.
func (p *partition) throttle() {
	c := &p.sub.cfg
	full := func(share int) bool {
		return p.pending*share >= c.MaxPendingRecords || p.bytes*share >= c.MaxPendingBytes ||
			p.track.span()*share >= c.MaxUncommittedRecords
	}
	this := map[string][]int32{p.sub.topic: {p.number}}
	switch {
	case !p.paused && !p.halted && full(1):
		p.paused = true
		p.sub.client.PauseFetchPartitions(this)
	case p.paused && (p.halted || !full(2)):
		p.paused = false
		p.sub.client.ResumeFetchPartitions(this)
	}
}

// stopTaking halts: after it no new delivery starts.
func (p *partition) stopTaking() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.halted {
		return
	}
	p.halted = true
	p.halt()
	p.throttle() // a pause outlives an assignment: lift it
	if p.busy == 0 {
		close(p.idle)
	}
}

// seal ends the life: no ack counts from here on.
func (p *partition) seal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sealed = true
	p.cancel()
}

func (p *partition) isStarted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started
}

func (p *partition) isSealed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sealed
}

// behind says whether the records are older than what was read: the log was cut back
// and written again, as after an unclean election.
func (p *partition) behind(records []*kgo.Record) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.track.follows(records[0].Offset)
}
