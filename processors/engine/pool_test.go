package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/pixtools/pixtools/internal/sniff"
)

// longRequest takes many seconds: 4 megapixels of noise, AVIF, as hard as it can.
func longRequest(t *testing.T) Request {
	req := request(t, write(t, "long.png", pngBytes(t, noise(2500, 1600))), sniff.AVIF)
	req.Effort = 9
	return req
}

func shortRequest(t *testing.T) Request {
	return request(t, write(t, "short.png", pngBytes(t, noise(32, 32))), sniff.WebP)
}

// idleChild is the one child of a pool that does nothing.
func idleChild(t *testing.T, pool *Pool) *process {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	require.Len(t, pool.idle, 1)
	return pool.idle[0]
}

func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, testDeadline, 5*time.Millisecond, what)
}

func TestChildIsReusedAndRecycled(t *testing.T) {
	cfg := testConfig
	cfg.RecycleAfter = 3
	pool := newPool(t, cfg, 4)
	var pids []int
	for range 5 {
		mustConvert(t, pool, shortRequest(t))
		if len(pool.idle) == 1 {
			pids = append(pids, idleChild(t, pool).cmd.Process.Pid)
		}
	}
	require.Len(t, pids, 4, "after the third there is no child")
	require.Equal(t, pids[0], pids[1])
	require.NotEqual(t, pids[1], pids[2])
	require.Equal(t, pids[2], pids[3])
	require.True(t, gone(pids[0]))
}

func TestTimeoutKillsTheChild(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	mustConvert(t, pool, shortRequest(t))
	child := idleChild(t, pool)

	req := longRequest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := pool.Convert(ctx, req)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.True(t, gone(child.cmd.Process.Pid))
	require.NoFileExists(t, req.Target)

	mustConvert(t, pool, shortRequest(t))
}

func TestWaitingForASlotIsBounded(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	req := longRequest(t)
	go func() { _, err := pool.Convert(ctx, req); done <- err }()
	eventually(t, "the slot is taken", func() bool { return len(pool.slots) == 1 })

	waiting, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	_, err := pool.Convert(waiting, shortRequest(t))
	require.ErrorIs(t, err, context.DeadlineExceeded)

	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

// TestLostChildren: the metric, of which an alert is made, counts what ends a child but a cancel.
func TestLostChildren(t *testing.T) {
	cfg := testConfig
	cfg.Operation = "lost"
	pool := newPool(t, cfg, 1)
	lost := func() float64 {
		var m dto.Metric
		require.NoError(t, childrenLost.WithLabelValues(cfg.Operation).Write(&m))
		return m.GetCounter().GetValue()
	}
	begin := func(ctx context.Context, req Request) (*process, chan error) {
		mustConvert(t, pool, shortRequest(t))
		child, done := idleChild(t, pool), make(chan error, 1)
		go func() { _, err := pool.Convert(ctx, req); done <- err }()
		eventually(t, "the child is at work", func() bool {
			pool.mu.Lock()
			defer pool.mu.Unlock()
			return len(pool.idle) == 0
		})
		return child, done
	}
	ctx, cancel := context.WithCancel(deadline(t))
	_, done := begin(ctx, longRequest(t))
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Zero(t, lost())
	child, done := begin(deadline(t), longRequest(t))
	require.NoError(t, child.cmd.Process.Kill())
	require.Error(t, <-done)
	require.EqualValues(t, 1, lost())
	slow := longRequest(t)
	slow.Timeout = 100 * time.Millisecond
	_, done = begin(deadline(t), slow)
	require.ErrorContains(t, <-done, "it took longer")
	require.EqualValues(t, 2, lost())
}

// A child that is killed or crashes takes its own request with it, and no other.
func TestChildKilledAtWork(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGABRT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t, testConfig, 2)
			mustConvert(t, pool, shortRequest(t))
			victim := idleChild(t, pool) // the next request gets it

			done := make(chan error)
			req := longRequest(t)
			go func() { _, err := pool.Convert(t.Context(), req); done <- err }()
			eventually(t, "the child is at work", func() bool {
				pool.mu.Lock()
				defer pool.mu.Unlock()
				return len(pool.idle) == 0
			})
			var others sync.WaitGroup
			for range 10 {
				short := shortRequest(t)
				others.Go(func() {
					if _, err := pool.Convert(deadline(t), short); err != nil {
						t.Error(err)
					}
				})
			}
			require.NoError(t, victim.cmd.Process.Signal(signal))
			err := <-done
			others.Wait()
			require.Error(t, err)
			var fault *InputError
			require.NotErrorAs(t, err, &fault, "another attempt may do")
			require.NoFileExists(t, req.Target)
		})
	}
}

func TestChildKilledWhileIdle(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	mustConvert(t, pool, shortRequest(t))
	child := idleChild(t, pool)
	child.kill()
	<-child.exited
	mustConvert(t, pool, shortRequest(t))
	require.NotSame(t, child, idleChild(t, pool))
}

// A terminal sends Ctrl-C to the children too. The parent decides when they end.
func TestChildOutlivesAnInterrupt(t *testing.T) {
	pool := newPool(t, testConfig, 1)
	mustConvert(t, pool, shortRequest(t))
	child := idleChild(t, pool)
	for _, signal := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		require.NoError(t, child.cmd.Process.Signal(signal))
	}
	mustConvert(t, pool, shortRequest(t))
	require.Same(t, child, idleChild(t, pool))
}

// Programs that are no engine stand for one whose memory was overwritten.
func TestGarbageReplies(t *testing.T) {
	for name, script := range map[string]string{
		"huge length":  `printf '\377\377\377\377' >&3; exec cat >/dev/null`,
		"no json":      `printf '\000\000\000\004abcd' >&3; exec cat >/dev/null`,
		"cut off":      `printf '\000\000\000\004ab' >&3; exit 0`,
		"exit":         `echo "something went wrong" >&2; exit 3`,
		"half closed":  `exec 3>&-; exec cat >/dev/null`,
		"never starts": "",
	} {
		t.Run(name, func(t *testing.T) {
			pool := newPool(t, testConfig, 1)
			pool.program = write(t, "child", []byte("#!/bin/sh\n"+script+"\n"))
			require.NoError(t, os.Chmod(pool.program, 0o700))
			if script == "" {
				pool.program += ".missing"
			}
			_, err := pool.Convert(deadline(t), shortRequest(t))
			require.Error(t, err)
			if name == "exit" {
				require.ErrorContains(t, err, "something went wrong")
				require.ErrorContains(t, err, "exit status 3")
			}
			pool.program = ownProgram
			mustConvert(t, pool, shortRequest(t))
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	const workers, requests = 3, 60
	pool := newPool(t, testConfig, workers)
	bad := write(t, "bad.png", pngHeader(10, 10))
	var all sync.WaitGroup
	for i := range requests {
		req := shortRequest(t)
		if i%4 == 0 {
			req.Source = bad
		}
		all.Go(func() {
			_, err := pool.Convert(deadline(t), req)
			if fault := new(InputError); errors.As(err, &fault) != (req.Source == bad) {
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, len(pool.idle), workers)
}

func TestClose(t *testing.T) {
	pool := newPool(t, testConfig, 2)
	mustConvert(t, pool, shortRequest(t))
	pid := idleChild(t, pool).cmd.Process.Pid
	done := make(chan error)
	req := longRequest(t)
	go func() { _, err := pool.Convert(t.Context(), req); done <- err }()
	eventually(t, "the slot is taken", func() bool { return len(pool.slots) == 1 })
	go pool.Close() // twice at once does no harm
	pool.Close()
	require.ErrorIs(t, <-done, ErrClosed)
	require.True(t, gone(pid))
	_, err := pool.Convert(t.Context(), shortRequest(t))
	require.ErrorIs(t, err, ErrClosed)
}

// A picture that needs more memory than allowed costs its own child.
func TestMemoryIsBounded(t *testing.T) {
	cfg := testConfig
	cfg.MemoryBytes = minMemoryBytes
	pool := newPool(t, cfg, 1)
	req := request(t, write(t, "large.png", pngBytes(t, quadrants(7000, 5000, upright[1]))), sniff.AVIF)
	_, err := pool.Convert(deadline(t), req)
	require.Error(t, err)
	var fault *InputError
	require.NotErrorAs(t, err, &fault)
	mustConvert(t, pool, shortRequest(t))
}

func TestChildHasNoSecrets(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
	pool := newPool(t, testConfig, 1)
	mustConvert(t, pool, shortRequest(t))
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", idleChild(t, pool).cmd.Process.Pid))
	require.NoError(t, err)
	require.Contains(t, string(environ), childVariable)
	require.NotContains(t, string(environ), "a-secret")
}

const doomedVariable = "PIXTOOLS_ENGINE_TEST_DOOMED"

// doomedParent, in a process made for it, starts a long conversion, tells the child's
// id, and waits to be killed.
func doomedParent() {
	source := os.Getenv(doomedVariable)
	if source == "" {
		return
	}
	pool := New(testConfig, 1, slog.New(slog.DiscardHandler))
	req := Request{Source: source, Target: source + ".avif", Format: sniff.AVIF, Quality: 50, Effort: 9}
	small := req
	small.Limits = sniff.Limits{MaxPixels: 1, MaxSide: 1}
	_, _ = pool.Convert(context.Background(), small) // refused; now there is a child
	fmt.Println(pool.idle[0].cmd.Process.Pid)
	_, _ = pool.Convert(context.Background(), req)
	os.Exit(0)
}

// The kernel ends a child that is at work when its parent is killed.
func TestChildEndsWithItsParent(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), doomedVariable+"="+longRequest(t).Source)
	output, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	line, err := bufio.NewReader(output).ReadString('\n')
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	eventually(t, "the child is at work", func() bool { return cpuTicks(pid) > 10 })

	require.NoError(t, parent.Process.Kill())
	_ = parent.Wait()
	_, _ = io.Copy(io.Discard, output)
	eventually(t, "the child is gone", func() bool { return gone(pid) || zombie(pid) })
}

func stat(pid int) []string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(content), ") ")
	return strings.Fields(rest)
}

// cpuTicks is the time a process has computed, in hundredths of a second.
func cpuTicks(pid int) int {
	const userTime = 11
	fields := stat(pid)
	if len(fields) <= userTime {
		return 0
	}
	n, _ := strconv.Atoi(fields[userTime])
	return n
}

func zombie(pid int) bool {
	fields := stat(pid)
	return len(fields) > 0 && fields[0] == "Z"
}

func BenchmarkConvert64(b *testing.B) {
	pool := New(testConfig, 1, slog.New(slog.DiscardHandler))
	defer pool.Close()
	source := b.TempDir() + "/source.png"
	file, err := os.Create(source)
	require.NoError(b, err)
	require.NoError(b, png.Encode(file, quadrants(64, 64, upright[1])))
	require.NoError(b, file.Close())
	for _, format := range []string{sniff.WebP, sniff.JPG, sniff.AVIF} {
		b.Run(format, func(b *testing.B) {
			req := Request{Source: source, Target: b.TempDir() + "/result", Format: format, Quality: 80}
			switch format {
			case sniff.WebP:
				req.Effort = 4
			case sniff.AVIF:
				req.Effort = 3
			}
			for b.Loop() {
				if _, err := pool.Convert(context.Background(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
