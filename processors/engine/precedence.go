package engine

import (
	"sync"
	"time"

	"github.com/pixtools/pixtools/processors/denoiser"
)

// Precedence lets quick work go before denoising on the cores that both share: while there
// is some, the children that denoise are stopped. Being nice does not do it, since a core
// that works at a low priority still slows its neighbour's memory and clock, and a sleeper's
// core is not free the moment it wakes.
//
// Stopping is bounded: a budget of YieldFor runs down while children are stopped, and is
// filled again in YieldThen of not being stopped. Once it has run down, they go on until it
// is full. So denoising has YieldThen of every YieldFor + YieldThen, whatever else there is
// to do.
//
// It is for one process: roles that are processes of their own do not wait for each other.
type Precedence struct {
	yieldFor, yieldThen, linger time.Duration

	mu sync.Mutex
	// claims counts the quick work going on, and last is when there was a sign of some.
	claims int
	last   time.Time
	// working has the children that are at work, stopped or not.
	working map[*process]struct{}
	stopped bool
	// budget is for how much longer they may be stopped, as of at.
	budget time.Duration
	at     time.Time
	// spent says that the budget has run down and is not full yet.
	spent bool
	timer *time.Timer
}

// NewPrecedence is that which the settings ask for.
func NewPrecedence(cfg denoiser.Config) *Precedence {
	p := &Precedence{yieldFor: cfg.YieldFor, yieldThen: cfg.YieldThen, linger: cfg.YieldLinger,
		working: map[*process]struct{}{}, budget: cfg.YieldFor, at: time.Now()}
	p.timer = time.AfterFunc(time.Hour, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.settle()
	})
	p.timer.Stop() // settle sets it
	return p
}

// Sign says that there is quick work somewhere on its way, for as long as YieldLinger.
func (p *Precedence) Sign() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	p.settle()
}

// claim says that there is quick work until done is called.
func (p *Precedence) claim() (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claims++
	p.settle()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.claims--
		p.last = time.Now()
		p.settle()
	}
}

// yields lets a child be stopped until done is called; it then is not stopped.
func (p *Precedence) yields(child *process) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working[child] = struct{}{}
	if p.stopped {
		child.pause()
	}
	p.settle()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.working, child)
		if p.stopped {
			child.resume()
		}
		p.settle()
	}
}

// settle is called with mu held, after every change and when the timer says that there may
// be one.
func (p *Precedence) settle() {
	now := time.Now()
	p.account(now)
	left := p.linger - now.Sub(p.last) // of the last sign
	urgent := p.claims > 0 || left > 0
	stop := urgent && len(p.working) > 0 && p.yieldFor > 0 && !p.spent
	if stop != p.stopped {
		p.stopped = stop
		for child := range p.working {
			if stop {
				child.pause()
			} else {
				child.resume()
			}
		}
	}
	// What may change by itself: the budget runs down or is full, or the last sign is over.
	p.timer.Stop()
	switch {
	case p.stopped && p.claims == 0:
		p.timer.Reset(min(left, p.budget))
	case p.stopped:
		p.timer.Reset(p.budget)
	case p.spent:
		p.timer.Reset(scaled(p.yieldFor-p.budget, p.yieldThen, p.yieldFor) + 1)
	}
}

// account is called with mu held: what passed since at is taken from the budget, or put
// back.
func (p *Precedence) account(now time.Time) {
	passed := now.Sub(p.at)
	p.at = now
	if p.stopped {
		p.budget = max(p.budget-passed, 0)
		p.spent = p.budget == 0
		return
	}
	p.budget = min(p.budget+scaled(passed, p.yieldFor, p.yieldThen), p.yieldFor)
	p.spent = p.spent && p.budget < p.yieldFor
}

// scaled is d * by / of, which of whole nanoseconds would overflow.
func scaled(d, by, of time.Duration) time.Duration {
	return time.Duration(float64(d) * float64(by) / float64(of))
}
