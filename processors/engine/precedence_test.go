package engine

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/sniff"
	"github.com/pixtools/pixtools/processors/denoiser"
)

// stateOf is a process's state as ps(1) shows it: T is stopped.
func stateOf(t *testing.T, child *process) string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child.cmd.Process.Pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(content), ") ")
	return rest[:1]
}

// yieldingPool has one child that gives way, and is at work when this returns: done says
// what became of that.
func yieldingPool(t *testing.T, ctx context.Context, cfg denoiser.Config) (p *Precedence, child *process, done <-chan error, target string) {
	p = NewPrecedence(cfg)
	pool, _ := denoisingPool(t)
	pool.cfg.Precedence = p
	mustConvert(t, pool, shortRequest(t))
	child = idleChild(t, pool)
	req := denoiseRequest(t, large(t))
	begun, ended := make(chan struct{}), make(chan error, 1)
	req.OnProgress = func(done, _ int) {
		if done == 2 {
			close(begun)
		}
	}
	go func() {
		_, err := pool.Convert(ctx, req)
		ended <- err
	}()
	<-begun
	return p, child, ended, req.Target
}

// While a conversion runs in a pool of the same process, the child that denoises is
// stopped; what it makes is what it makes undisturbed.
func TestConversionsGoBeforeDenoising(t *testing.T) {
	undisturbed, _ := denoisingPool(t)
	req := denoiseRequest(t, large(t))
	mustConvert(t, undisturbed, req)
	want, err := os.ReadFile(req.Target)
	require.NoError(t, err)

	slow := request(t, write(t, "slow.png", pngBytes(t, noisy(1500, 1500, 20))), sniff.AVIF)
	p, child, done, target := yieldingPool(t, deadline(t), denoiser.Config{YieldFor: testDeadline, YieldThen: time.Second})
	cfg := testConfig
	cfg.Precedence = p
	quick := newPool(t, cfg, 1)
	converted := make(chan error, 1)
	go func() {
		_, err := quick.Convert(deadline(t), slow)
		converted <- err
	}()
	eventually(t, "a child that is stopped", func() bool { return stateOf(t, child) == "T" })
	require.NoError(t, <-converted)
	require.NoError(t, <-done)
	got, err := os.ReadFile(target)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.NotEqual(t, "T", stateOf(t, child))
}

// What never ends holds denoising up for a part of the time only.
func TestYieldingIsBounded(t *testing.T) {
	for name, urgent := range map[string]func(p *Precedence, over <-chan struct{}){
		"one that lasts": func(p *Precedence, over <-chan struct{}) {
			done := p.claim()
			<-over
			done()
		},
		"many signs": func(p *Precedence, over <-chan struct{}) {
			ticks := time.NewTicker(time.Millisecond)
			defer ticks.Stop()
			for {
				p.Sign()
				select {
				case <-over:
					return
				case <-ticks.C:
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, child, done, _ := yieldingPool(t, deadline(t), denoiser.Config{YieldFor: 30 * time.Millisecond, YieldThen: 30 * time.Millisecond, YieldLinger: time.Second})
			over, ended := make(chan struct{}), make(chan struct{})
			go func() {
				urgent(p, over)
				close(ended)
			}()
			require.NoError(t, <-done)
			close(over)
			<-ended
			require.NotEqual(t, "T", stateOf(t, child))
		})
	}
}

// A child that is stopped can be ended.
func TestStoppedChildIsEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(deadline(t))
	p, child, done, target := yieldingPool(t, ctx, denoiser.Config{YieldFor: testDeadline, YieldThen: time.Second})
	defer p.claim()()
	eventually(t, "a child that is stopped", func() bool { return stateOf(t, child) == "T" })
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.True(t, gone(child.cmd.Process.Pid))
	require.NoFileExists(t, target)
}

// The budget: it runs down while children are stopped, must then be filled whole, and
// short stops count as long ones do.
func TestBudgetOfYielding(t *testing.T) {
	start := time.Now()
	p := &Precedence{yieldFor: 3 * time.Second, yieldThen: time.Second, budget: 3 * time.Second, at: start}
	for _, step := range []struct {
		stopped bool
		until   time.Duration // since the start
		budget  time.Duration
		spent   bool
	}{
		{true, 2 * time.Second, time.Second, false},
		{false, 2100 * time.Millisecond, 1300 * time.Millisecond, false},
		{true, 3399 * time.Millisecond, time.Millisecond, false},
		{true, 3400 * time.Millisecond, 0, true},
		{true, 4 * time.Second, 0, true},
		{false, 4900 * time.Millisecond, 2700 * time.Millisecond, true},
		{false, 5 * time.Second, 3 * time.Second, false},
		{false, 9 * time.Second, 3 * time.Second, false},
	} {
		p.stopped = step.stopped
		p.account(start.Add(step.until))
		require.Equal(t, step.budget, p.budget, "at %s", step.until)
		require.Equal(t, step.spent, p.spent, "at %s", step.until)
	}
}

// 0 is never.
func TestNoYielding(t *testing.T) {
	p, child, done, _ := yieldingPool(t, deadline(t), denoiser.Config{YieldThen: time.Second, YieldLinger: testDeadline})
	defer p.claim()()
	require.NoError(t, <-done)
	require.NotEqual(t, "T", stateOf(t, child))
}
