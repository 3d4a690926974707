package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	postgresPortVariable = "PIXTOOLS_EMBEDDED_POSTGRES_PORT"
	postmasterFile       = "postmaster.pid"
	// postgresStartTimeout covers the replay of the write-ahead log after a crash.
	postgresStartTimeout = 60 * time.Second
	// A postmaster that an earlier run left behind is asked to end (SIGINT: fast shutdown), then told
	// to (SIGQUIT: at once; the log is replayed at the next start), then made to.
	leftoverAskFor  = 5 * time.Second
	leftoverTellFor = 5 * time.Second
	leftoverKillFor = 2 * time.Second
	// postgresWatch is how often the keeper looks whether its postmaster, which is no child of its, still lives.
	postgresWatch = time.Second
	// unprivilegedID is the user and group, called nobody, that looks after Postgres when we are root.
	unprivilegedID = 65534
)

type postgresSpec struct {
	Dir        string `json:"dir"`
	CacheDir   string `json:"cache_dir"`
	Binaries   string `json:"binaries,omitempty"`
	Repository string `json:"repository,omitempty"`
	Port       int    `json:"port"`
	Password   string `json:"password"`
}

// dataDirMode lets, when we are root, the unprivileged child pass through to its own directory.
// What it must not read is 0600 or 0700 itself.
func dataDirMode() os.FileMode {
	if os.Geteuid() == 0 {
		return 0o711
	}
	return 0o700
}

func (p *Parts) startPostgres(ctx context.Context, cfg Config, st state) error {
	spec := postgresSpec{
		Dir: filepath.Join(cfg.DataDir, "postgres"), Port: st.PostgresPort, Password: st.PostgresPassword,
		Binaries: cfg.PostgresBinariesDir, Repository: cfg.PostgresRepository, CacheDir: cfg.PostgresCacheDir,
	}
	if spec.CacheDir == "" {
		var err error
		if spec.CacheDir, err = defaultPostgresCache(); err != nil {
			return err
		}
	}
	as, err := prepareForChild(spec)
	if err != nil {
		return err
	}
	c, err := startChild(ctx, "postgres", childSpec{Postgres: &spec}, as, p.log)
	if err != nil {
		return err
	}
	p.watch("postgres", c)
	p.DatabaseURL = databaseURL(spec.Port, spec.Password)
	return nil
}

func defaultPostgresCache() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/pixtools/postgres", nil // root's own cache is closed to the child
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: set PIXTOOLS_POSTGRES_CACHE_DIR", err)
	}
	return filepath.Join(dir, "pixtools", "postgres"), nil
}

// prepareForChild makes the child's directories. When we are root it gives them to the user that the
// child runs as: whom the database belongs to already, so that a user and root can take turns over one
// data directory, or else nobody.
func prepareForChild(spec postgresSpec) (*syscall.Credential, error) {
	for _, dir := range []string{spec.Dir, spec.CacheDir} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() != 0 {
		return nil, nil
	}
	as := &syscall.Credential{Uid: unprivilegedID, Gid: unprivilegedID}
	info, err := os.Stat(spec.Dir)
	if err != nil {
		return nil, err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
		as.Uid, as.Gid = owner.Uid, owner.Gid
	}
	for _, dir := range []string{spec.Dir, spec.CacheDir} {
		if err := os.Chown(dir, int(as.Uid), int(as.Gid)); err != nil {
			return nil, err
		}
	}
	return as, nil
}

// runPostgres is the child's part.
func runPostgres(ctx context.Context, spec postgresSpec, report func(error) error) error {
	server, err := openPostgres(ctx, spec)
	if err != nil {
		return report(err)
	}
	if err := report(nil); err != nil {
		return errors.Join(err, server.Stop())
	}
	pid, err := postmasterPID(filepath.Join(spec.Dir, "data", postmasterFile))
	if err != nil {
		return errors.Join(err, server.Stop())
	}
	watch := time.NewTicker(postgresWatch)
	defer watch.Stop()
	for {
		select {
		case <-ctx.Done():
			return server.Stop()
		case <-watch.C:
			if !lives(pid) {
				return fmt.Errorf("the postmaster, process %d, is gone", pid)
			}
		}
	}
}

// lives says whether there is such a process. One that has ended and was not collected, as happens in a
// container without an init, has no working directory any more.
func lives(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil {
		return false
	}
	if runtime.GOOS != "linux" {
		return true
	}
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil
}

func postmasterPID(pidFile string) (int, error) {
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	return strconv.Atoi(strings.TrimSpace(line))
}

func openPostgres(ctx context.Context, spec postgresSpec) (*embeddedpostgres.EmbeddedPostgres, error) {
	for _, dir := range []string{spec.Dir, spec.CacheDir} {
		if err := reachable(dir); err != nil {
			return nil, err
		}
	}
	if err := holdPart(ctx, filepath.Join(spec.Dir, lockFile)); err != nil {
		return nil, err
	}
	data := filepath.Join(spec.Dir, "data")
	if err := endLeftover(ctx, data); err != nil {
		return nil, err
	}
	if err := checkPort(spec.Port, postgresPortVariable); err != nil {
		return nil, err
	}
	// The library writes Postgres's first words to a temporary file of its own.
	tmp := filepath.Join(spec.Dir, "tmp")
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o700), os.Setenv("TMPDIR", tmp)); err != nil {
		return nil, err
	}

	// The library takes a database directory for complete as soon as it has a version file, which initdb
	// writes early, and unpacked programs as soon as it sees one of them. A kill in between would leave
	// halves for ever, so each has a mark that is written last.
	initialised, unpacked := filepath.Join(spec.Dir, "initialised"), filepath.Join(spec.CacheDir, "complete-"+string(embeddedpostgres.V15))
	if exists(initialised) {
		// The library would empty a database of another version and begin anew.
		if err := checkVersion(data); err != nil {
			return nil, err
		}
	} else if err := os.RemoveAll(data); err != nil {
		return nil, err
	}
	binaries := spec.Binaries
	if binaries == "" {
		binaries = filepath.Join(spec.CacheDir, string(embeddedpostgres.V15))
		// Two PixTools with data directories of their own share the cache.
		cache, err := lockPart(ctx, filepath.Join(spec.CacheDir, lockFile))
		if err != nil {
			return nil, err
		}
		defer func() { _ = cache.Close() }()
		if !exists(unpacked) {
			if err := os.RemoveAll(binaries); err != nil {
				return nil, err
			}
		}
	} else if !exists(filepath.Join(binaries, "bin", "pg_ctl")) {
		return nil, fmt.Errorf("PIXTOOLS_POSTGRES_BINARIES_DIR is %s, but there is no bin/pg_ctl in it", binaries)
	}

	server := embeddedpostgres.NewDatabase(postgresConfig(spec, binaries, data))
	if err := server.Start(); err != nil {
		return nil, err
	}
	marks := []string{initialised}
	if spec.Binaries == "" {
		marks = append(marks, unpacked)
	}
	if err := checkVersion(data); err != nil {
		return nil, errors.Join(err, server.Stop())
	}
	for _, mark := range marks {
		if !exists(mark) {
			if err := writeFileSynced(mark, nil); err != nil {
				return nil, errors.Join(err, server.Stop())
			}
		}
	}
	return server, nil
}

// checkVersion says whether the database is of the version that we run.
func checkVersion(data string) error {
	want, _, _ := strings.Cut(string(embeddedpostgres.V15), ".")
	raw, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if got := strings.TrimSpace(string(raw)); err == nil && got != want {
		err = fmt.Errorf("PG_VERSION says %q", got)
	}
	if err != nil {
		return fmt.Errorf("%s is not a whole database of Postgres %s (%w): restore it from a backup; "+
			"if PIXTOOLS_POSTGRES_BINARIES_DIR is set, it must name a Postgres %s", data, want, err, want)
	}
	return nil
}

func postgresConfig(spec postgresSpec, binaries, data string) embeddedpostgres.Config {
	c := embeddedpostgres.DefaultConfig().
		Version(embeddedpostgres.V15).
		Port(uint32(spec.Port)).
		Database(databaseName).Username(databaseUser).Password(spec.Password).
		CachePath(spec.CacheDir).BinariesPath(binaries).
		RuntimePath(filepath.Join(spec.Dir, "run")).DataPath(data).
		Locale("C").Encoding("UTF8").
		StartTimeout(postgresStartTimeout).
		Logger(os.Stdout).
		StartParameters(map[string]string{
			"listen_addresses":        loopback,
			"unix_socket_directories": "", // their paths are limited to about 100 characters
			"timezone":                "UTC",
			// A week of logs, one file a weekday. Without a collector they would grow in a temporary file.
			"logging_collector":        "on",
			"log_directory":            "log",
			"log_filename":             "%a.log",
			"log_rotation_age":         "1d",
			"log_truncate_on_rotation": "on",
		})
	if spec.Repository != "" {
		c = c.BinaryRepositoryURL(spec.Repository)
	}
	return c
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// reachable says which directory on the way keeps this user out, which the plain error does not.
func reachable(dir string) error {
	const executable = 1 // access(2): X_OK
	for at := range parents(dir) {
		if err := syscall.Access(at, executable); err != nil {
			//nolint:staticcheck // Postgres is a name
			return fmt.Errorf("Postgres does not run as root, and user %d, which it runs as instead, cannot pass through %s on the way to %s (%w): "+
				"let others pass (chmod o+x %s), or set PIXTOOLS_DATA_DIR to a directory that they can reach, such as one below /var/lib",
				os.Geteuid(), at, dir, err, at)
		}
	}
	return nil
}

// parents yields the directories from the root down to dir.
func parents(dir string) func(func(string) bool) {
	return func(yield func(string) bool) {
		at := string(filepath.Separator)
		if !yield(at) {
			return
		}
		for part := range strings.SplitSeq(strings.Trim(filepath.Clean(dir), at), at) {
			at = filepath.Join(at, part)
			if !yield(at) {
				return
			}
		}
	}
}

// endLeftover ends a Postgres whose keeper was killed, too, and which therefore goes on: postmasters
// leave their starter's session. We hold the directory's lock, so nobody else may use the database.
//
// Whose process it is shows in its working directory, which Postgres sets to the database's. The number
// in the pid file alone proves nothing: after a reboot, and in a container at almost every start, it is
// somebody else's. Postgres itself refuses to start then; so a file without a process is removed here.
func endLeftover(ctx context.Context, data string) error {
	pidFile := filepath.Join(data, postmasterFile)
	if !exists(pidFile) {
		return nil
	}
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{
		{syscall.SIGINT, leftoverAskFor}, {syscall.SIGQUIT, leftoverTellFor}, {syscall.SIGKILL, leftoverKillFor},
	} {
		left, err := processesIn(data)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			if err := os.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		for _, pid := range postmasterFirst(left, pidFile, step.signal) {
			_ = syscall.Kill(pid, step.signal) // it may have ended meanwhile
		}
		if err := waitGone(ctx, data, step.wait); err != nil {
			return err
		}
	}
	left, err := processesIn(data)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("processes %v of an earlier run still use %s: end them", left, data)
	}
	return err
}

// postmasterFirst: a fast shutdown is the postmaster's business alone, which ends its children in order.
func postmasterFirst(pids []int, pidFile string, signal syscall.Signal) []int {
	if signal != syscall.SIGINT {
		return pids
	}
	postmaster, err := postmasterPID(pidFile)
	for _, pid := range pids {
		if err == nil && pid == postmaster {
			return []int{pid}
		}
	}
	return nil // it is dead; its children get the next signal
}

func waitGone(ctx context.Context, data string, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for time.Now().Before(deadline) {
		left, err := processesIn(data)
		if err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
	}
	return nil
}

// processesIn finds the processes of this user whose working directory is dir. Where there is no /proc
// it finds none, and Postgres's own check of the pid file has to do.
func processesIn(dir string) ([]int, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cwd, err := os.Readlink("/proc/" + e.Name() + "/cwd"); err == nil && cwd == dir {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
