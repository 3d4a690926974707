package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/pixtools/pixtools/internal/sniff"
)

// ErrClosed is the error of a conversion asked of a closed pool, or cut off by Close.
var ErrClosed = errors.New("the picture engine is shut down")

// Pool hands requests to at most workers children, one request to a child at a time.
//
// A child is in one of three places: in idle, in the hands of the one Convert that took
// it from there, or gone. Whoever holds a slot may hold one child; so there are never
// more children than slots, and a Convert never waits for a child, only for a slot.
type Pool struct {
	cfg     Config
	program string
	log     *slog.Logger
	slots   chan struct{}
	orders  chan chan started

	// ctx ends when the pool closes; every conversion ends with it.
	ctx    context.Context
	cancel context.CancelCauseFunc
	once   sync.Once

	mu   sync.Mutex
	idle []*process // the last used is the next used: others stay unstarted, or cold
}

// New makes a pool. Children are started when they are first needed. cfg must be valid.
func New(cfg Config, workers int, log *slog.Logger) *Pool {
	p := &Pool{
		cfg: cfg, program: ownProgram, log: log,
		slots:  make(chan struct{}, max(workers, 1)),
		orders: make(chan chan started),
	}
	childrenStarted.WithLabelValues(cfg.Operation)
	childrenLost.WithLabelValues(cfg.Operation)
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	go p.starter()
	return p
}

// Convert makes req.Target out of req.Source. It waits for a free child; ctx bounds the
// waiting and the work, and ending it kills the child. An *InputError is final, any other
// error is worth another attempt. After an error there is no target.
func (p *Pool) Convert(ctx context.Context, req Request) (Result, error) {
	if err := req.check(); err != nil {
		return Result{}, err
	}
	if req.Denoise && p.cfg.Denoise == nil {
		return Result{}, errors.New("engine: this pool's children cannot denoise: its Config has no Denoise")
	}
	if req.Limits == (sniff.Limits{}) {
		req.Limits = p.cfg.Limits
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.ctx, func() { cancel(ErrClosed) })()

	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return Result{}, fmt.Errorf("waiting for a free engine child: %w", context.Cause(ctx))
	}
	if req.OnTurn != nil {
		if err := req.OnTurn(); err != nil {
			return Result{}, err
		}
	}
	if req.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, req.Timeout, fmt.Errorf("it took longer than %s", req.Timeout))
		defer stop()
	}
	result, err := p.run(ctx, req)
	if err != nil {
		_ = os.Remove(req.Target) // it may have been begun
	}
	return result, err
}

// run is called with a slot held.
func (p *Pool) run(ctx context.Context, req Request) (Result, error) {
	child, err := p.take()
	if err != nil {
		return Result{}, err
	}
	goOn := p.precede(child)
	rep, usable, err := child.call(ctx, req, p.patience())
	goOn()
	if err != nil && errors.Is(ctx.Err(), context.Canceled) { // by a cancel, or a stop: nothing is wrong
		p.log.InfoContext(ctx, "engine child ended with its work", "pid", child.cmd.Process.Pid, "error", err)
		return Result{}, err
	}
	if err != nil {
		childrenLost.WithLabelValues(p.cfg.Operation).Inc()
		p.log.WarnContext(ctx, "engine child lost", "pid", child.cmd.Process.Pid, "served", child.served, "error", err)
		return Result{}, err
	}
	// The child goes back before the slot does, so the next holder of the slot finds it.
	p.put(child, usable)
	switch {
	case rep.Input != nil:
		return Result{}, rep.Input
	case rep.Failure != "":
		return Result{}, errors.New(rep.Failure)
	}
	return rep.Result, nil
}

// precede says that a child begins, and what it returns that it is done.
func (p *Pool) precede(child *process) (done func()) {
	switch {
	case p.cfg.Precedence == nil:
		return func() {}
	case p.cfg.Denoise == nil:
		return p.cfg.Precedence.claim()
	}
	return p.cfg.Precedence.yields(child)
}

// patience is how long a child may be silent at work; 0 is for ever. A child that only
// converts says nothing before it is done.
func (p *Pool) patience() time.Duration {
	if p.cfg.Denoise == nil {
		return 0
	}
	return p.cfg.Denoise.StallTimeout
}

// take returns an idle child that is alive, or starts one.
func (p *Pool) take() (*process, error) {
	for {
		child := p.pop()
		if child == nil {
			return p.startChild()
		}
		select {
		case <-child.exited: // killed while it was idle
			childrenLost.WithLabelValues(p.cfg.Operation).Inc()
			p.log.Warn("idle engine child lost", "pid", child.cmd.Process.Pid, "error", child.failure)
			child.end()
		default:
			// It may die from here on as well; then the call fails, as for any crash.
			return child, nil
		}
	}
}

func (p *Pool) pop() *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil
	}
	child := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return child
}

// put keeps a child for the next request, or ends it where it is used up.
func (p *Pool) put(child *process, usable bool) {
	switch {
	case !usable:
		child.end()
		return
	case child.served >= p.cfg.RecycleAfter:
		child.retire()
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, child)
}

// started is what came of starting a child.
type started struct {
	child *process
	err   error
}

// starter starts all children, on a thread of its own that lives as long as the pool.
// The kernel kills a child when the thread that started it ends (Pdeathsig), and Go ends
// threads: that of any goroutine which locked itself to one and returned.
func (p *Pool) starter() {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	for order := range p.orders {
		child, err := start(p.program, settings{Threads: p.cfg.Threads, MemoryBytes: p.cfg.MemoryBytes, Denoise: p.cfg.Denoise})
		order <- started{child, err}
	}
}

// startChild is called with a slot held, so Close has not closed orders yet. Starting
// takes milliseconds and ctx is not asked: a child nobody waits for would be lost.
func (p *Pool) startChild() (*process, error) {
	order := make(chan started)
	p.orders <- order
	s := <-order
	if s.err == nil {
		running.add(s.child, p.cfg.Operation)
		p.log.Debug("engine child started", "pid", s.child.cmd.Process.Pid)
	}
	return s.child, s.err
}

// Close ends every conversion with ErrClosed, and returns when no child is left.
//
// Cancelling makes each running Convert kill its child and give its slot back, and each
// later one fail before it has a slot. Taking all slots, for good, therefore waits for
// the running ones; then nobody else touches idle or orders.
func (p *Pool) Close() {
	p.once.Do(func() {
		p.cancel(ErrClosed)
		for range cap(p.slots) {
			p.slots <- struct{}{}
		}
		for child := p.pop(); child != nil; child = p.pop() {
			child.retire()
		}
		close(p.orders)
	})
}
