package embedded

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// state is what must be the same at every start over one data directory: ports, because clients and
// signed links name them, and secrets, because Postgres keeps its password and old links their signature.
type state struct {
	KafkaPort    int `json:"kafka_port"`
	PostgresPort int `json:"postgres_port"`
	RedisPort    int `json:"redis_port"`
	S3Port       int `json:"s3_port"`

	PostgresPassword string `json:"postgres_password"`
	S3AccessKey      string `json:"s3_access_key"`
	S3SecretKey      string `json:"s3_secret_key"`
}

const (
	stateFile = "embedded.json"
	lockFile  = "lock"

	// Ports are drawn below the range from which Linux, macOS and Windows give outgoing connections
	// theirs: in that range the port could be somebody's outgoing end at the next start.
	firstPort    = 20000
	lastPort     = 29999
	portAttempts = 100
)

// loadState reads the state, fills in what is missing, and writes it before any part starts: a part
// never runs with a password or a port that a crash could forget. Configured ports win and are not kept.
func loadState(cfg Config) (state, error) {
	path := filepath.Join(cfg.DataDir, stateFile)
	var st state
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return st, fmt.Errorf("read ports and secrets: %w", err)
	default:
		if err := json.Unmarshal(raw, &st); err != nil {
			return st, fmt.Errorf("%s is damaged (%w): restore it from a backup; without its password the database beside it cannot be opened", path, err)
		}
	}
	before := st
	if err := st.complete(); err != nil {
		return st, err
	}
	if st != before {
		raw, err := json.MarshalIndent(st, "", "  ")
		if err != nil {
			return st, err
		}
		if err := writeFileSynced(path, append(raw, '\n')); err != nil {
			return st, fmt.Errorf("write ports and secrets: %w", err)
		}
	}
	st.configured(cfg)
	return st, nil
}

// configured sets the ports that were, for this run.
func (s *state) configured(cfg Config) {
	for configured, port := range map[*int]*int{
		&cfg.KafkaPort: &s.KafkaPort, &cfg.PostgresPort: &s.PostgresPort,
		&cfg.RedisPort: &s.RedisPort, &cfg.S3Port: &s.S3Port,
	} {
		if *configured != 0 {
			*port = *configured
		}
	}
}

func (s *state) complete() error {
	for _, secret := range []*string{&s.PostgresPassword, &s.S3AccessKey, &s.S3SecretKey} {
		if *secret == "" {
			*secret = rand.Text()
		}
	}
	ports := []*int{&s.KafkaPort, &s.PostgresPort, &s.RedisPort, &s.S3Port}
	taken := map[int]bool{}
	for _, p := range ports {
		taken[*p] = true
	}
	for _, p := range ports {
		if *p != 0 {
			continue
		}
		free, err := freePort(taken)
		if err != nil {
			return err
		}
		*p, taken[free] = free, true
	}
	return nil
}

func freePort(taken map[int]bool) (int, error) {
	for range portAttempts {
		port := firstPort + mathrand.IntN(lastPort-firstPort+1)
		if taken[port] || portTaken(port) != nil {
			continue
		}
		return port, nil
	}
	return 0, fmt.Errorf("no free port in %d tries between %d and %d: set PIXTOOLS_EMBEDDED_*_PORT", portAttempts, firstPort, lastPort)
}

func portTaken(port int) error {
	l, err := net.Listen("tcp", address(port))
	if err != nil {
		return err
	}
	return l.Close()
}

// portError says what to do about a port that somebody else holds. It is not swapped for another one:
// clients and links outside this process know the old one.
func portError(port int, variable string, err error) error {
	return fmt.Errorf("port %d is taken (%w): end the program that listens there, or set %s to a free one", port, err, variable)
}

// checkPort tells a taken port from the other reasons for which a server does not start.
func checkPort(port int, variable string) error {
	if err := portTaken(port); err != nil {
		return portError(port, variable, err)
	}
	return nil
}

// dirLock keeps a second process away from the data directory. The kernel drops it when this process
// ends, and the children do not inherit it, so a kill -9 leaves no stale lock.
type dirLock struct{ file *os.File }

func lockDir(dir string) (*dirLock, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path) // only for the message
		_ = f.Close()
		return nil, fmt.Errorf("the data directory %s is in use by %s: stop that one, or set PIXTOOLS_DATA_DIR to another directory",
			dir, strings.TrimSpace(string(holder)))
	}
	holder := fmt.Sprintf("process %d (since %s)\n", os.Getpid(), time.Now().Format(time.RFC3339))
	err = errors.Join(f.Truncate(0), writeAt0(f, holder))
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return &dirLock{f}, nil
}

func writeAt0(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// release leaves the file: removing it would let two processes lock two files of one name.
func (l *dirLock) release() { _ = l.file.Close() }

// writeFileSynced replaces a file so that after a crash it holds the old or the new content, never half.
func writeFileSynced(path string, content []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*") // mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
