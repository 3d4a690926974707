package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrNotRunning says that no process holds the data directory.
var ErrNotRunning = errors.New("no PixTools runs in the data directory")

// Running gives the addresses of the parts that another process runs in the data
// directory, without touching them. Whether that process runs each of them nobody knows
// but itself: a part that is configured there does not answer here. Holder says who it is.
func Running(cfg Config, needs Needs) (p *Parts, holder string, err error) {
	if holder, err = heldBy(cfg.DataDir); err != nil {
		return nil, "", err
	}
	path := filepath.Join(cfg.DataDir, stateFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("%s has just begun to start in %s: try again", holder, cfg.DataDir)
	}
	var st state
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		return nil, "", fmt.Errorf("read ports and secrets from %s: %w", path, err)
	}
	st.configured(cfg)
	p = &Parts{}
	if needs.Kafka {
		p.Brokers = []string{address(st.KafkaPort)}
	}
	if needs.Postgres {
		p.DatabaseURL = databaseURL(st.PostgresPort, st.PostgresPassword)
	}
	if needs.S3 {
		p.useS3(cfg, st)
	}
	return p, holder, nil
}

// Exists says whether the data directory has an embedded log.
func Exists(cfg Config) bool { return exists(filepath.Join(cfg.DataDir, "kafka")) }

// heldBy names the process that has locked the directory. It looks with a shared lock,
// for as long as the look takes.
func heldBy(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrNotRunning
	}
	if err != nil {
		return "", fmt.Errorf("look at the data directory's lock: %w", err)
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if err == nil {
		return "", ErrNotRunning
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return "", fmt.Errorf("look at the data directory's lock: %w", err)
	}
	holder, err := os.ReadFile(f.Name()) // only for messages
	return strings.TrimSpace(string(holder)), err
}
