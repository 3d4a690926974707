package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pixtools/pixtools/internal/testenv"
)

const (
	// stopTimeout is more than STOP_TIMEOUT: a role that is asked to stop is killed then.
	stopTimeout = 40 * time.Second
	// restartPause is how long a role that ended by itself stays down.
	restartPause = 500 * time.Millisecond
	logTail      = 2 << 10 // bytes of a role's log that are shown
)

// fleet is the roles, each a process of its own.
type fleet struct {
	binary string
	dir    string
	env    []string

	mu      sync.Mutex
	members []*member
	// ends are those of processes that were not asked to end.
	ends []string
}

// member is one process of a role. After a kill the next process has its name, port,
// INSTANCE_ID and log file.
type member struct {
	fleet    *fleet
	name     string
	role     string
	env      []string
	port     int // of the API; else 0
	logPath  string
	stopping bool // guarded by fleet.mu: its end is wanted

	mu      sync.Mutex
	process *os.Process
	ended   chan struct{}
}

// add starts one more process of a role.
func (f *fleet) add(role string, env ...string) (*member, error) {
	f.mu.Lock()
	n := 1
	for _, m := range f.members {
		if m.role == role {
			n++
		}
	}
	m := &member{fleet: f, name: fmt.Sprintf("%s-%d", role, n), role: role}
	f.members = append(f.members, m)
	f.mu.Unlock()
	m.logPath = filepath.Join(f.dir, m.name+".log")
	m.env = append(slices.Clone(f.env), "INSTANCE_ID="+m.name, "SPOOL_DIR="+filepath.Join(f.dir, "spool"))
	m.env = append(m.env, env...)
	if role == "api" {
		m.port = testenv.FreePorts(1)[0]
		m.env = append(m.env, fmt.Sprintf("PORT=%d", m.port))
	}
	err := m.start()
	return m, err
}

// of are the members of a role whose end is not wanted.
func (f *fleet) of(role string) []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*member
	for _, m := range f.members {
		if !m.stopping && (role == "" || m.role == role) {
			found = append(found, m)
		}
	}
	return found
}

// start launches the process in a goroutine that keeps its thread until it ends: the
// kernel's promise to kill a child with its parent is about the thread that started it.
func (m *member) start() error {
	log, err := os.OpenFile(m.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command(m.fleet.binary, "serve", "--roles="+m.role)
	cmd.Env, cmd.Stdout, cmd.Stderr = m.env, log, log
	cmd.SysProcAttr = testenv.DieWithParent()
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer log.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
			close(ended)
			m.exited(cmd.Process, err)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.process, m.ended = cmd.Process, ended
	return nil
}

// exited starts a process again that nobody asked to end, and takes a note of it.
func (m *member) exited(p *os.Process, how error) {
	m.mu.Lock()
	unasked := m.process == p
	if unasked {
		m.process = nil
	}
	m.mu.Unlock()
	if !unasked {
		return
	}
	m.fleet.mu.Lock()
	m.fleet.ends = append(m.fleet.ends, fmt.Sprintf("%s ended by itself: %v\n%s", m.name, how, tailOf(m.logPath)))
	m.fleet.mu.Unlock()
	time.AfterFunc(restartPause, func() {
		m.fleet.mu.Lock()
		stopping := m.stopping
		m.fleet.mu.Unlock()
		if !stopping {
			_ = m.start() // the run's end finds what is missing
		}
	})
}

// errDown says that a process has just ended by itself; it is being started again.
var errDown = errors.New("it is down already")

// kill is kill -9, with the next process at once.
func (m *member) kill() error {
	if err := m.end(syscall.SIGKILL); errors.Is(err, errDown) {
		return nil
	} else if err != nil {
		return err
	}
	return m.start()
}

// end takes the process away and waits for its end; it does not start another.
func (m *member) end(sig syscall.Signal) error {
	m.mu.Lock()
	process, ended := m.process, m.ended
	m.process = nil
	m.mu.Unlock()
	if process == nil {
		return errDown
	}
	_ = process.Signal(sig) // it may have ended just now
	select {
	case <-ended:
		return nil
	case <-time.After(stopTimeout):
	}
	_ = process.Signal(syscall.SIGQUIT) // Go's way to end: with all goroutines in the log
	select {
	case <-ended:
	case <-time.After(stopTimeout):
		_ = process.Kill()
		<-ended
	}
	return fmt.Errorf("%s did not end within %s of %s:\n%s", m.name, stopTimeout, sig, tailOf(m.logPath))
}

// leave ends the member for good.
func (m *member) leave(sig syscall.Signal) error {
	m.fleet.mu.Lock()
	m.stopping = true
	m.fleet.mu.Unlock()
	if err := m.end(sig); !errors.Is(err, errDown) {
		return err
	}
	return nil
}

// stop asks all members of the roles to end, and waits for them.
func (f *fleet) stop(roles ...string) error {
	var all sync.WaitGroup
	var mu sync.Mutex
	var faults []error
	for _, role := range roles {
		for _, m := range f.of(role) {
			all.Go(func() {
				err := m.leave(syscall.SIGTERM)
				mu.Lock()
				defer mu.Unlock()
				faults = append(faults, err)
			})
		}
	}
	all.Wait()
	return errors.Join(faults...)
}

// unasked are the ends of processes that nobody asked to end.
func (f *fleet) unasked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ends)
}

// addresses are those of the APIs.
func (f *fleet) addresses() []string {
	var all []string
	for _, m := range f.of("api") {
		all = append(all, fmt.Sprintf("http://127.0.0.1:%d", m.port))
	}
	return all
}

func tailOf(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(content[max(0, len(content)-logTail):]))
}

// pause waits for a random time between two limits, or until ctx ends.
func pause(ctx context.Context, random *rand.Rand, low, high time.Duration) error {
	timer := time.NewTimer(low + time.Duration(random.Int64N(int64(high-low)+1)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
