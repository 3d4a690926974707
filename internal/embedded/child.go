package embedded

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// childRole names, in a child's environment, which part it is to run.
	childRole = "PIXTOOLS_EMBEDDED_CHILD"
	// statusFD is where a child says that it is ready, or why not. Standard output is not used for it:
	// the libraries print there.
	statusFD = 3
	// lockWait bounds how long a child waits for the one before it, which is still cleaning up after
	// a kill -9 of its parent.
	lockWait = 20 * time.Second
	// lastLines is how much of a child's output an error quotes.
	lastLines = 10
)

// childSpec is what a child is told, as one JSON document on its standard input: not in its environment
// or its arguments, where others on the machine could read the secrets.
type childSpec struct {
	Postgres *postgresSpec `json:"postgres,omitempty"`
	S3       *s3Spec       `json:"s3,omitempty"`
}

type childStatus struct {
	Error string `json:"error,omitempty"`
}

// ChildMain runs this process as a child if it was started as one, and then does not return. It must be
// the first thing in main, and in TestMain of a package whose tests call Start.
func ChildMain() {
	role := os.Getenv(childRole)
	if role == "" {
		return
	}
	_ = os.Unsetenv(childRole) // the child's own children are no children of this kind
	// A terminal or a service manager signals the whole group. The parent then stops in its order,
	// clients before servers, and closes our input; ending before that would pull servers from under it.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := childRun(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func childRun() error {
	status := os.NewFile(statusFD, "status")
	in := json.NewDecoder(os.Stdin)
	var spec childSpec
	if err := in.Decode(&spec); err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	// Closed input is the order to stop. It comes while starting, too.
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, in.Buffered())
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()

	report := func(err error) error {
		var s childStatus
		if err != nil {
			s.Error = err.Error()
		}
		return errors.Join(json.NewEncoder(status).Encode(s), status.Close())
	}
	var err error
	switch {
	case spec.Postgres != nil:
		err = runPostgres(ctx, *spec.Postgres, report)
	case spec.S3 != nil:
		err = runS3(ctx, *spec.S3, report)
	default:
		err = errors.New("told to run nothing")
	}
	return err
}

// child is a running child, seen from its parent.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	output *tail
	ended  chan struct{} // closed when the process is gone; then err is set
	err    error
}

// startChild starts this program again as a child, as uid and gid if that is not nil, and waits until it is ready.
func startChild(ctx context.Context, role string, spec childSpec, as *syscall.Credential, log *slog.Logger) (*child, error) {
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = statusR.Close() }()

	self, err := selfPath()
	if err != nil {
		return nil, err
	}
	c := &child{output: &tail{log: log.With("part", role)}, ended: make(chan struct{})}
	c.cmd = exec.Command(self)
	c.cmd.Args[0] = os.Args[0] + " (embedded " + role + ")"
	c.cmd.Env = append(os.Environ(), childRole+"="+role)
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	c.cmd.ExtraFiles = []*os.File{statusW}
	c.cmd.Dir = "/" // it may not be allowed into ours
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: as}
	// What the child leaves behind, a postmaster say, may hold the output pipe for a moment.
	c.cmd.WaitDelay = time.Second
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		_ = statusW.Close()
		return nil, err
	}
	c.stdin = stdin
	if err := c.cmd.Start(); err != nil {
		_ = statusW.Close()
		return nil, fmt.Errorf("start this program again as a child: %w", err)
	}
	_ = statusW.Close() // or the read below would not end with the child
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()

	ready := make(chan error, 1)
	go func() {
		if err := json.NewEncoder(stdin).Encode(spec); err != nil {
			ready <- fmt.Errorf("tell the child what to run: %w", err)
			return
		}
		ready <- c.readStatus(statusR)
	}()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		_ = c.stop(stopCtx)
		return nil, err
	}
	return c, nil
}

func (c *child) readStatus(r io.Reader) error {
	var s childStatus
	err := json.NewDecoder(r).Decode(&s)
	if err == nil && s.Error != "" {
		return errors.New(s.Error)
	}
	if err != nil {
		<-c.ended // the pipe closed without a word, so it died, or is about to
		//nolint:errorlint // the error may be nil: a child may exit in good order
		return fmt.Errorf("the child ended before it was ready (%v); it said: %s", c.err, c.output.last())
	}
	return nil
}

// stop closes the child's input and waits; when ctx runs out the child is killed.
func (c *child) stop(ctx context.Context) error {
	_ = c.stdin.Close()
	select {
	case <-c.ended:
		return c.err
	case <-ctx.Done():
		_ = c.cmd.Process.Kill()
		<-c.ended
		return ctx.Err()
	}
}

// watch reports a child that ends although nobody asked it to.
func (p *Parts) watch(part string, c *child) {
	stopping := make(chan struct{})
	p.onStop(part, func(ctx context.Context) error {
		close(stopping)
		return c.stop(ctx)
	})
	go func() {
		select {
		case <-stopping:
		case <-c.ended:
			//nolint:errorlint // the error may be nil: a child may exit in good order
			p.fail(fmt.Errorf("the embedded %s ended by itself (%v); it said: %s", part, c.err, c.output.last()))
		}
	}()
}

// selfPath names this program so that an unprivileged child can execute it even where the directory
// it lies in is closed to that user, as /root and the Go tool's build directories are: on Linux the
// link below leads to the file itself, past the directories.
func selfPath() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// lockPart waits until the child before this one is gone. When a killed PixTools is started again at
// once, its old children have seen their input close but may still be stopping: without the wait the
// new Postgres would meet the old one in its data directory, the new S3 server the old one on its port.
func lockPart(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("%s is still held by an earlier run after %s: end its processes (ps shows them as 'embedded'): %w", path, lockWait, err)
		case <-time.After(pollInterval):
		}
	}
}

// heldLocks are referred to for as long as the process lives: the garbage collector closes a file that
// nobody refers to, and with it the lock.
var heldLocks []*os.File

// holdPart is lockPart until the process ends.
func holdPart(ctx context.Context, path string) error {
	f, err := lockPart(ctx, path)
	if err == nil {
		heldLocks = append(heldLocks, f)
	}
	return err
}

// pollInterval is how often a condition in another process is looked at while starting or stopping.
const pollInterval = 10 * time.Millisecond

// tail hands a child's output to the log, line by line, and keeps the last lines for error messages.
type tail struct {
	log *slog.Logger

	mu      sync.Mutex
	partial []byte
	lines   []string
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.partial = append(t.partial, b...)
	for {
		line, rest, found := bytes.Cut(t.partial, []byte("\n"))
		if !found && len(t.partial) < bufio.MaxScanTokenSize {
			return len(b), nil
		}
		t.add(string(line))
		t.partial = append(t.partial[:0], rest...)
	}
}

func (t *tail) add(line string) {
	if strings.TrimSpace(line) == "" {
		return
	}
	t.log.Debug("embedded part says", "line", line)
	t.lines = append(t.lines, line)
	if len(t.lines) > lastLines {
		t.lines = t.lines[1:]
	}
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == 0 {
		return "nothing"
	}
	return strings.Join(t.lines, " | ")
}
