package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is the parent's end of one child. One goroutine at a time uses it; kill, pause and
// resume may come from others.
type process struct {
	cmd      *exec.Cmd
	requests io.WriteCloser
	replies  *os.File
	buffered *bufio.Reader
	stderr   *tail
	exited   chan struct{} // closed when the child is gone; then failure may be read
	failure  error
	served   int
}

// keptVariables pass from the parent's environment to the child's: where temporary
// files go, where libraries are, and what `go test -cover` needs. All else, keys and
// passwords above all, stays out of the process that reads hostile files.
var keptVariables = []string{"TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "GOCOVERDIR"}

func environment(s settings) ([]string, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	env := []string{
		childVariable + "=" + string(text),
		"VIPS_BLOCK_UNTRUSTED=1", // loaders that are not made for hostile files
		"MALLOC_ARENA_MAX=2",     // with one arena a thread, glibc keeps much of what it frees
		"GOMAXPROCS=1",           // the Go in a child only waits
	}
	for _, name := range keptVariables {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env, nil
}

// start starts a child. The caller's thread must live as long as the child (Pdeathsig).
func start(program string, s settings) (*process, error) {
	env, err := environment(s)
	if err != nil {
		return nil, err
	}
	replies, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p := &process{
		cmd: exec.Command(program), replies: replies, buffered: bufio.NewReader(replies),
		stderr: &tail{}, exited: make(chan struct{}),
	}
	p.cmd.Args = []string{"pixtools-engine"}
	p.cmd.Env = env
	p.cmd.Stderr = p.stderr
	p.cmd.ExtraFiles = []*os.File{theirs} // the first of them is repliesFD
	p.cmd.SysProcAttr = childAttributes()
	p.requests, err = p.cmd.StdinPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		_ = replies.Close()
		return nil, fmt.Errorf("starting an engine child: %w", err)
	}
	go func() {
		p.failure = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// ErrStalled is the error of a conversion whose child fell silent and was killed.
var ErrStalled = errors.New("the engine's child was silent for too long")

// call sends one request and waits for its reply; silence for longer than patience (0: no
// limit) ends it. After an error, or once ctx is done, the child is dead or dying and must
// not be used again: usable is false.
//
// ctx may end at any point, and the watchdog ends it as well. Before the reply: kill makes
// the read end with EOF. While the reply is read: it is read whole and valid, or cut off
// and an error. After it: stop says false, kill may come at any later time, and the child,
// though it did its work, is given up. So kill never hits a child that has been handed to
// the next request.
func (p *process) call(ctx context.Context, req Request, patience time.Duration) (rep reply, usable bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, p.kill)
	p.served++
	heard := func() {}
	if patience > 0 {
		watchdog := time.AfterFunc(patience, func() {
			cancel(fmt.Errorf("%w: %s, the limit that DENOISE_STALL_TIMEOUT sets", ErrStalled, patience))
		})
		defer watchdog.Stop()
		heard = func() { watchdog.Reset(patience) }
	}
	err = writeFrame(p.requests, req)
	if err == nil {
		rep, err = p.reply(req, heard)
	}
	if err != nil {
		stop()
		p.end()
		return reply{}, false, p.explain(ctx, err)
	}
	return rep, stop(), nil
}

// reply reads frames up to the one that answers, and passes progress on.
func (p *process) reply(req Request, heard func()) (reply, error) {
	for {
		var rep reply
		if err := readFrame(p.buffered, &rep); err != nil || rep.Progress == nil {
			return rep, err
		}
		heard()
		if req.OnProgress != nil {
			req.OnProgress(rep.Progress.Done, rep.Progress.Total)
		}
	}
}

// explain says why a call failed, once the child is gone.
func (p *process) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("the conversion was stopped: %w", context.Cause(ctx))
	}
	status := "it exited without a reply"
	if p.failure != nil {
		status = p.failure.Error()
	}
	text := fmt.Sprintf("the engine's child failed: %s", status)
	if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
		text += fmt.Sprintf(" (%v)", err)
	}
	if said := p.stderr.String(); said != "" {
		text += "; it said: " + said
	}
	return errors.New(text)
}

func (p *process) kill() { _ = p.cmd.Process.Kill() }

// pause stops the child where it is, until resume. A child that is gone by now has no use
// for either; one that is stopped can be killed.
func (p *process) pause()  { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// end kills the child and waits until it is gone.
func (p *process) end() {
	p.kill()
	<-p.exited
	_ = p.replies.Close()
}

// retireGrace is how long a child may take to notice that it is no longer needed.
const retireGrace = 2 * time.Second

// retire lets an idle child exit by itself.
func (p *process) retire() {
	_ = p.requests.Close()
	timer := time.AfterFunc(retireGrace, p.kill)
	defer timer.Stop()
	<-p.exited
	_ = p.replies.Close()
}

// tail keeps the last bytes of what a child says on standard error.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const maxTailBytes = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if excess := len(t.text) - maxTailBytes; excess > 0 {
		t.text = append(t.text[:0], t.text[excess:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.text), "?"))
}
