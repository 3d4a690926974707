package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// openers are the processes that have a file open.
func openers(t *testing.T, path string) []int {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/fd/*")
	require.NoError(t, err)
	if len(names) == 0 {
		t.Skip("this system does not show its processes in /proc")
	}
	var pids []int
	for _, name := range names {
		if target, err := os.Readlink(name); err == nil && target == path {
			pid, err := strconv.Atoi(strings.Split(name, "/")[2])
			require.NoError(t, err)
			pids = append(pids, pid)
		}
	}
	return pids
}

// childOf is the process that looks after Postgres or S3: it holds the lock of that part.
func childOf(t *testing.T, cfg Config, part string) int {
	t.Helper()
	pids := openers(t, filepath.Join(cfg.DataDir, part, lockFile))
	require.Len(t, pids, 1)
	return pids[0]
}

func serversOf(t *testing.T, cfg Config) []int {
	t.Helper()
	pids, err := processesIn(filepath.Join(cfg.DataDir, "postgres", "data"))
	require.NoError(t, err)
	return pids
}

// family is all processes of an embedded PixTools but the first.
func family(t *testing.T, cfg Config) []int {
	t.Helper()
	servers := serversOf(t, cfg)
	require.NotEmpty(t, servers)
	return append(servers, childOf(t, cfg, "postgres"), childOf(t, cfg, "s3"))
}

// status is what the kernel says of a process, or nil when it has ended, collected by its parent or not.
func status(pid int) map[string]string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	if strings.HasPrefix(fields["State"], "Z") {
		return nil
	}
	return fields
}

func living(pids []int) []int {
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return status(pid) == nil })
}

// requireRefused: no port answers. A socket that this process has closed may live on for a moment in a
// child that another test is just starting.
func requireRefused(t *testing.T, p *Parts) {
	t.Helper()
	for _, at := range []string{p.Brokers[0], hostPort(p.DatabaseURL), hostPort(p.RedisURL), hostPort(p.S3Endpoint)} {
		require.Eventually(t, func() bool { return refused(at) }, deadline, pollInterval, "something answers at %s", at)
	}
}

var everything = Needs{Kafka: true, Postgres: true, Redis: true, S3: true}

func TestStopEndsEverything(t *testing.T) {
	t.Parallel()
	spec := helperSpec{Config: testConfig(t), Needs: everything}
	h := startHelper(t, spec, nil)
	pids := family(t, spec.Config)
	h.stop(t)
	require.Empty(t, living(pids))
	requireRefused(t, h.Parts)
}

func TestKillLeavesNothing(t *testing.T) {
	t.Parallel()
	spec := helperSpec{Config: testConfig(t), Needs: everything}
	h := startHelper(t, spec, nil)
	pids := family(t, spec.Config)
	h.kill(t)
	require.Eventually(t, func() bool { return len(living(pids)) == 0 }, deadline, pollInterval)
	requireRefused(t, h.Parts)
}

// TestFailedStartLeavesNothing: one part cannot start when the others do already.
func TestFailedStartLeavesNothing(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	parts, err := Start(testContext(t), cfg, everything, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, parts.Stop(testContext(t)))
	requireRefused(t, parts)

	taken, err := net.Listen("tcp", parts.Brokers[0])
	require.NoError(t, err)
	_, err = Start(testContext(t), cfg, everything, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "embedded kafka: port")
	require.NoError(t, taken.Close())
	requireRefused(t, parts)
	require.Empty(t, serversOf(t, cfg))

	again, err := Start(testContext(t), cfg, everything, slog.New(slog.DiscardHandler))
	require.NoError(t, err, "the directory is free again")
	require.NoError(t, again.Stop(testContext(t)))
}

// TestRestartWaitsForChildren: the old server may still be stopping when the program is started again.
func TestRestartWaitsForChildren(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	spec := helperSpec{Config: testConfig(t), Needs: Needs{S3: true}}
	h := startHelper(t, spec, nil)
	old := childOf(t, spec.Config, "s3")
	require.NoError(t, syscall.Kill(old, syscall.SIGSTOP))
	t.Cleanup(func() { _ = syscall.Kill(old, syscall.SIGKILL) })
	require.Eventually(t, func() bool { return strings.HasPrefix(status(old)["State"], "T") }, deadline, pollInterval)
	h.kill(t)
	type started struct {
		parts *Parts
		err   error
	}
	done := make(chan started, 1)
	go func() {
		parts, err := Start(ctx, spec.Config, spec.Needs, slog.New(slog.DiscardHandler))
		done <- started{parts, err}
	}()
	require.Eventually(t, func() bool {
		return len(done) > 0 || len(openers(t, filepath.Join(spec.Config.DataDir, "s3", lockFile))) == 2
	}, deadline, pollInterval)
	require.NoError(t, syscall.Kill(old, syscall.SIGCONT))
	s := <-done
	require.NoError(t, s.err)
	require.NoError(t, s.parts.Stop(ctx))
}

// TestFailedTells of parts that somebody killed.
func TestFailedTells(t *testing.T) {
	t.Parallel()
	for part, needs := range map[string]Needs{"s3": {S3: true}, "postgres": {Postgres: true}} {
		t.Run(part, func(t *testing.T) {
			cfg := testConfig(t)
			parts, err := Start(testContext(t), cfg, needs, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			defer func() { _ = parts.Stop(context.Background()) }()
			if part == "s3" {
				killProcess(t, childOf(t, cfg, "s3"))
			} else {
				killProcess(t, postmaster(t, cfg))
			}
			select {
			case err := <-parts.Failed():
				require.ErrorContains(t, err, "the embedded "+part+" ended by itself")
			case <-time.After(deadline):
				t.Fatal("nobody was told")
			}
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
}

// TestRootsPostgresIsUnprivileged: and so is its keeper, while the S3 server, which can, stays ours.
func TestRootsPostgresIsUnprivileged(t *testing.T) {
	needRoot(t)
	t.Parallel()
	spec := helperSpec{Config: testConfig(t), Needs: everything}
	h := startHelper(t, spec, nil)
	const nobody, root = "65534\t65534\t65534\t65534", "0\t0\t0\t0"
	require.Equal(t, root, status(childOf(t, spec.Config, "s3"))["Uid"])
	for _, pid := range append(serversOf(t, spec.Config), childOf(t, spec.Config, "postgres")) {
		p := status(pid)
		require.Equal(t, nobody, p["Uid"], p["Name"])
		require.Equal(t, nobody, p["Gid"], p["Name"])
		require.Empty(t, p["Groups"], p["Name"])
	}
	h.stop(t)
}

func TestUnreachableDirectory(t *testing.T) {
	needRoot(t)
	t.Parallel()
	cfg := testConfig(t)
	closed := filepath.Dir(cfg.DataDir)
	require.NoError(t, os.Chmod(closed, 0o700))
	_, err := Start(testContext(t), cfg, Needs{Postgres: true}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, fmt.Sprintf("user %d, which it runs as instead, cannot pass through %s on the way to", unprivilegedID, closed))
	require.ErrorContains(t, err, "chmod o+x "+closed)
	require.ErrorContains(t, err, "set PIXTOOLS_DATA_DIR to a directory that they can reach")

	require.NoError(t, os.Chmod(closed, 0o711)) // as it told us
	parts, err := Start(testContext(t), cfg, Needs{Postgres: true}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, parts.Stop(testContext(t)))
}

// TestOrdinaryUser: and root may take over that user's database, and give it back.
func TestOrdinaryUser(t *testing.T) {
	needRoot(t)
	t.Parallel()
	const daemon = 1 // not whom root's Postgres would run as by default
	cfg := testConfig(t)
	require.NoError(t, os.Chown(filepath.Dir(cfg.DataDir), daemon, daemon))
	// The cache that other tests use is nobody's. Debian's Postgres, if it is there, saves a download.
	cfg.PostgresCacheDir = filepath.Join(filepath.Dir(cfg.DataDir), "cache")
	const debians = "/usr/lib/postgresql/15"
	if cfg.PostgresBinariesDir == "" && exists(debians) {
		cfg.PostgresBinariesDir = debians
	}
	user := &syscall.Credential{Uid: daemon, Gid: daemon}
	h := startHelper(t, helperSpec{Config: cfg, Needs: everything}, user)
	for _, pid := range family(t, cfg) {
		require.Equal(t, "1\t1\t1\t1", status(pid)["Uid"])
	}
	ctx := testContext(t)
	count := func(h *helper) (n int) {
		conn, err := pgx.Connect(ctx, h.DatabaseURL)
		require.NoError(t, err)
		defer func() { _ = conn.Close(ctx) }()
		_, err = conn.Exec(ctx, "create table if not exists starts (at timestamptz default now())")
		require.NoError(t, err)
		_, err = conn.Exec(ctx, "insert into starts default values")
		require.NoError(t, err)
		require.NoError(t, conn.QueryRow(ctx, "select count(*) from starts").Scan(&n))
		return n
	}
	require.Equal(t, 1, count(h))
	h.stop(t)
	if cfg.PostgresBinariesDir != "" {
		// A mark there would let the next start take a half unpacked Postgres for a whole one.
		marks, err := filepath.Glob(filepath.Join(cfg.PostgresCacheDir, "complete-*"))
		require.NoError(t, err)
		require.Empty(t, marks, "nothing was unpacked")
	}
	for i, as := range []*syscall.Credential{nil, user} {
		h = startHelper(t, helperSpec{Config: cfg, Needs: Needs{Postgres: true}}, as)
		require.Equal(t, 2+i, count(h))
		h.stop(t)
	}
}

// TestAnotherVersionsDatabase: the library would take its directory for empty.
func TestAnotherVersionsDatabase(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	dir := filepath.Join(cfg.DataDir, "postgres")
	version := filepath.Join(dir, "data", "PG_VERSION")
	require.NoError(t, os.MkdirAll(filepath.Dir(version), 0o755))
	require.NoError(t, os.Chmod(cfg.DataDir, dataDirMode()))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "initialised"), nil, 0o644))
	for _, content := range []string{"14\n", "16\n", ""} {
		require.NoError(t, os.WriteFile(version, []byte(content), 0o644))
		_, err := Start(testContext(t), cfg, Needs{Postgres: true}, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "is not a whole database of Postgres 15")
		require.ErrorContains(t, err, "restore it from a backup")
		require.FileExists(t, version)
	}
}
