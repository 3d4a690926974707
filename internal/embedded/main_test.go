package embedded

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// helperRole makes the test binary a small PixTools: it starts the parts and waits to be killed.
const helperRole = "PIXTOOLS_TEST_HELPER"

// deadline is how long a test waits for something that should happen soon, on the slowest machine.
const deadline = 60 * time.Second

func TestMain(m *testing.M) {
	ChildMain()
	if spec := os.Getenv(helperRole); spec != "" {
		os.Exit(helperMain(spec))
	}
	os.Exit(m.Run())
}

type helperSpec struct {
	Config Config
	Needs  Needs
	// Debug shows what the parts say.
	Debug bool
}

type helperAnswer struct {
	Parts Parts
	Error string
}

func helperMain(raw string) int {
	_ = os.Unsetenv(helperRole)
	var spec helperSpec
	if err := json.Unmarshal([]byte(raw), &spec); err != nil {
		panic(err)
	}
	level := slog.LevelInfo
	if spec.Debug {
		level = slog.LevelDebug
	}
	parts, err := Start(context.Background(), spec.Config, spec.Needs, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	var answer helperAnswer
	if err != nil {
		answer.Error = err.Error()
	} else {
		answer.Parts = Parts{
			Brokers: parts.Brokers, DatabaseURL: parts.DatabaseURL, RedisURL: parts.RedisURL,
			S3Endpoint: parts.S3Endpoint, S3AccessKey: parts.S3AccessKey, S3SecretKey: parts.S3SecretKey,
			S3Bucket: parts.S3Bucket, S3Region: parts.S3Region,
		}
	}
	out, _ := json.Marshal(&answer)
	fmt.Println(string(out))
	if err != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it, or kills us
	if err := parts.Stop(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// helper is a PixTools in a process of its own.
type helper struct {
	*Parts
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}
	err   error
}

// startHelper starts one, as another user if as is not nil, and fails the test if it does not come up.
func startHelper(t *testing.T, spec helperSpec, as *syscall.Credential) *helper {
	t.Helper()
	h, failure := tryHelper(t, spec, as)
	require.Empty(t, failure)
	return h
}

func tryHelper(t *testing.T, spec helperSpec, as *syscall.Credential) (*helper, string) {
	t.Helper()
	spec.Debug = testing.Verbose()
	raw, err := json.Marshal(spec)
	require.NoError(t, err)
	self, err := selfPath()
	require.NoError(t, err)
	h := &helper{cmd: exec.Command(self), ended: make(chan struct{})}
	h.cmd.Env = append(os.Environ(), helperRole+"="+string(raw))
	h.cmd.Dir = "/"
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if as != nil {
		h.cmd.Env = append(h.cmd.Env, "HOME="+spec.Config.DataDir, "XDG_CACHE_HOME=")
	}
	stdout, err := h.cmd.StdoutPipe()
	require.NoError(t, err)
	h.stdin, err = h.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, h.cmd.Start())

	late := time.AfterFunc(deadline, func() { _ = h.cmd.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewReader(stdout)
	line, readErr := lines.ReadString('\n')
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		h.err = h.cmd.Wait()
		close(h.ended)
	}()
	t.Cleanup(func() { h.kill(t) })
	require.NoError(t, readErr, "the helper said nothing")
	var answer helperAnswer
	require.NoError(t, json.Unmarshal([]byte(line), &answer))
	h.Parts = &answer.Parts
	return h, answer.Error
}

// kill ends it as a crash does.
func (h *helper) kill(t *testing.T) {
	t.Helper()
	_ = h.cmd.Process.Signal(syscall.SIGKILL)
	h.wait(t)
}

// stop ends it in order.
func (h *helper) stop(t *testing.T) {
	t.Helper()
	_ = h.stdin.Close()
	h.wait(t)
	require.NoError(t, h.err)
}

func (h *helper) wait(t *testing.T) {
	t.Helper()
	select {
	case <-h.ended:
	case <-time.After(deadline):
		t.Fatal("the helper did not end")
	}
}

// testConfig has a data directory that any user can reach, unlike t.TempDir for root, and shares the
// Postgres programs, which take seconds to download, among all tests and runs.
func testConfig(t *testing.T) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "pixtools-embedded-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, dataDirMode()))
	return Config{
		DataDir: filepath.Join(dir, "data"), DiskReserve: leastReserve, Bucket: "pixtools", Region: "us-east-1",
		PostgresRepository: os.Getenv("PIXTOOLS_POSTGRES_REPOSITORY"), PostgresBinariesDir: os.Getenv("PIXTOOLS_POSTGRES_BINARIES_DIR"),
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func hostPort(url string) string {
	_, rest, _ := strings.Cut(url, "://")
	if _, after, found := strings.Cut(rest, "@"); found {
		rest = after
	}
	rest, _, _ = strings.Cut(rest, "/")
	return rest
}

// refused: nothing listens there any more.
func refused(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return true
	}
	_ = conn.Close()
	return false
}
