package testenv

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// Variables that name services which run already; then no test starts its own.
const (
	// PostgresVariable is the URL of a database whose user may create databases.
	PostgresVariable = "PIXTOOLS_TEST_POSTGRES"
	// RedisVariable is a host:port. Tests then share it, so they use keys of their own.
	RedisVariable = "PIXTOOLS_TEST_REDIS"
	// S3Variable is what S3Server.Announce says.
	S3Variable = "PIXTOOLS_TEST_S3"
)

const (
	serviceStartTimeout = time.Minute
	serviceStopTimeout  = 15 * time.Second // then it is killed
	serviceProbe        = 20 * time.Millisecond
	probeTimeout        = 5 * time.Second
	serviceLogTail      = 4 << 10 // bytes of a log that an error quotes
	nobody              = 65534
)

// Service is a server process that a test may kill and start again, as often as it likes, at the same
// address and with the same data.
type Service struct {
	name  string
	dir   string
	argv  []string
	env   []string
	as    *syscall.Credential // nil: as ourselves
	stop  syscall.Signal      // ends it in order
	ready func(context.Context) error

	mu      sync.Mutex
	process *os.Process   // nil while it is down
	ended   chan struct{} // closed when the process is gone
}

// Kill ends it as a crash does.
func (s *Service) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return fmt.Errorf("%s is down already", s.name)
	}
	_ = s.process.Kill()
	<-s.ended
	s.process = nil
	return nil
}

// Down ends it in order; its data stay.
func (s *Service) Down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down()
}

func (s *Service) down() {
	if s.process == nil {
		return
	}
	if children, err := childrenOf(s.process.Pid); err == nil { // they may be frozen
		for _, pid := range append(children, s.process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	_ = s.process.Signal(s.stop)
	select {
	case <-s.ended:
	case <-time.After(serviceStopTimeout):
		_ = s.process.Kill()
		<-s.ended
	}
	s.process = nil
}

// Restart starts it where it left off and returns when it answers. One that runs is ended in order first.
func (s *Service) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down()
	return s.up()
}

// Freeze keeps its connections open and answers nothing, as a machine does that swaps; Thaw ends that.
func (s *Service) Freeze() error { return s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen service go on.
func (s *Service) Thaw() error { return s.signal(syscall.SIGCONT) }

// signal goes to the service's children, too: PostgreSQL has one for each connection. They come after it, so
// that none is born in between, and go on before it.
func (s *Service) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return fmt.Errorf("%s is down", s.name)
	}
	if sig == syscall.SIGCONT {
		defer func() { _ = s.process.Signal(sig) }()
	} else if err := s.process.Signal(sig); err != nil {
		return err
	}
	children, err := childrenOf(s.process.Pid)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := syscall.Kill(child, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// childrenOf asks ps, which is on every system.
func childrenOf(pid int) ([]int, error) {
	out, err := exec.Command("ps", "-A", "-o", "ppid=,pid=").Output()
	if err != nil {
		return nil, fmt.Errorf("ps: %w", err)
	}
	var children []int
	for line := range strings.Lines(string(out)) {
		var parent, child int
		if _, err := fmt.Sscan(line, &parent, &child); err == nil && parent == pid {
			children = append(children, child)
		}
	}
	return children, nil
}

// Stop ends it and removes its data.
func (s *Service) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil { // the data go anyway: no need for order
		_ = s.process.Kill()
		<-s.ended
		s.process = nil
	}
	_ = os.RemoveAll(s.dir)
}

// up launches until it is ready. One that ends at once is launched again: after a kill, Postgres refuses
// to start while a child of the dead one still lives, which is for some milliseconds.
func (s *Service) up() error {
	ctx, cancel := context.WithTimeout(context.Background(), serviceStartTimeout)
	defer cancel()
	for {
		if err := s.launch(); err != nil {
			return fmt.Errorf("start %s: %w", s.name, err)
		}
		if s.awaitReady(ctx) {
			return nil
		}
		if ctx.Err() != nil {
			if s.process != nil {
				_ = s.process.Kill()
				<-s.ended
				s.process = nil
			}
			return fmt.Errorf("%s did not answer within %s: %s", s.name, serviceStartTimeout, s.logTail())
		}
	}
}

// launch starts the process in a goroutine that keeps its thread until the process ends: the kernel's
// promise to kill a child with its parent is about the thread that started it.
func (s *Service) launch() error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = DieWithParent()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = s.as
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer func() { _ = log.Close() }()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, as a rule
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.process, s.ended = cmd.Process, ended
	return nil
}

func (s *Service) awaitReady(ctx context.Context) bool {
	for {
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		err := s.ready(probe)
		cancel()
		if err == nil {
			return true
		}
		select {
		case <-s.ended:
			s.process = nil
			time.Sleep(serviceProbe) //nolint:forbidigo // the pause before the next try; the caller counts them
			return false
		case <-ctx.Done():
			return false
		case <-time.After(serviceProbe):
		}
	}
}

func (s *Service) logTail() string {
	content, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-serviceLogTail):])
}

// install runs install.sh for one service. Test processes run side by side, so one installs and the
// others wait.
func install(service string) (build string, err error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	build = filepath.Join(root, "build", "testenv")
	if err := os.MkdirAll(build, 0o755); err != nil {
		return "", err
	}
	lock, err := os.Create(filepath.Join(build, service+".lock"))
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }() // and with it the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	script := exec.Command("sh", filepath.Join(root, "internal", "testenv", "install.sh"), service)
	if out, err := script.CombinedOutput(); err != nil {
		return "", fmt.Errorf("install %s: %w: %s", service, err, out)
	}
	return build, nil
}

// Python gives an interpreter that has the packages of the example consumer.
func Python(t testing.TB) string {
	t.Helper()
	build, err := install("python")
	if err != nil {
		t.Fatalf("Python for tests: %v", err)
	}
	return filepath.Join(build, "python", "bin", "python")
}

// Boto3 gives an interpreter that has Amazon's S3 client for Python.
func Boto3(t testing.TB) string {
	t.Helper()
	build, err := install("boto3")
	if err != nil {
		t.Fatalf("boto3 for tests: %v", err)
	}
	return filepath.Join(build, "boto3", "bin", "python")
}

// Schemathesis gives the program that tries what an OpenAPI document says.
func Schemathesis(t testing.TB) string {
	t.Helper()
	build, err := install("schemathesis")
	if err != nil {
		t.Fatalf("schemathesis: %v", err)
	}
	return filepath.Join(build, "schemathesis", "bin", "schemathesis")
}

// JavaConsumer gives the jar of the example consumer, built of what is in the checkout.
func JavaConsumer(t testing.TB) string {
	t.Helper()
	build, err := install("java")
	if err != nil {
		t.Fatalf("the consumer in Java: %v", err)
	}
	return filepath.Join(build, "java", "finals.jar")
}

// serviceDir makes a directory that an unprivileged server can reach, which one below the checkout
// need not be, and gives it to as.
func serviceDir(as *syscall.Credential) (string, error) {
	parent := filepath.Join(os.TempDir(), fmt.Sprintf("pixtools-testenv-%d", os.Getuid()))
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return "", err
	}
	dir, err := runDir(parent)
	if err != nil || as == nil {
		return dir, err
	}
	return dir, os.Chown(dir, int(as.Uid), int(as.Gid))
}

func localAddress(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// ---- PostgreSQL

// PostgresServer is a PostgreSQL of its own.
type PostgresServer struct {
	*Service
	URL string // of the database postgres, as its superuser
}

// StartPostgres starts one on an empty directory. It does not sync to disk: what it committed survives
// the death of its processes, not of the machine.
func StartPostgres() (*PostgresServer, error) {
	return startPostgres(func(string, *syscall.Credential) (postgresOptions, error) {
		return postgresOptions{initdb: []string{"-A", "trust"}, login: "postgres", parameters: "sslmode=disable"}, nil
	})
}

// postgresOptions are how a server lets its clients in.
type postgresOptions struct {
	initdb, server    []string // arguments
	login, parameters string   // of its URL
}

// startPostgres has prepare fill the server's directory.
func startPostgres(prepare func(dir string, as *syscall.Credential) (postgresOptions, error)) (*PostgresServer, error) {
	if _, err := install("postgres"); err != nil {
		return nil, err
	}
	bin, err := postgresBinaries()
	if err != nil {
		return nil, err
	}
	var as *syscall.Credential
	if os.Getuid() == 0 { // it refuses root
		as = unprivileged("postgres")
	}
	dir, err := serviceDir(as)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	options, err := prepare(dir, as)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), append(options.initdb, "-D", data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")...)
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	port := FreePorts(1)[0]
	p := &PostgresServer{URL: fmt.Sprintf("postgres://%s@%s/postgres?%s", options.login, localAddress(port), options.parameters)}
	p.Service = &Service{
		name: "postgres", dir: dir, as: as, stop: syscall.SIGINT,
		argv: append([]string{
			filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(port),
			"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
			"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200", "-c", "timezone=UTC",
		}, options.server...),
		ready: func(ctx context.Context) error {
			conn, err := pgx.Connect(ctx, p.URL)
			if err != nil {
				return err
			}
			return errors.Join(conn.Ping(ctx), conn.Close(ctx))
		},
	}
	if err := p.up(); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// postgresBinaries is where Debian puts the newest installed server; elsewhere it is in the path.
func postgresBinaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		version := func(path string) int {
			n, _ := strconv.Atoi(strings.Split(path, "/")[4])
			return n
		}
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	path, err := exec.LookPath("initdb")
	return filepath.Dir(path), err
}

// unprivileged is the named user where there is one, else nobody.
func unprivileged(name string) *syscall.Credential {
	cred := &syscall.Credential{Uid: nobody, Gid: nobody}
	u, err := user.Lookup(name)
	if err != nil {
		return cred
	}
	uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
	if errUID == nil && errGID == nil {
		cred.Uid, cred.Gid = uint32(uid), uint32(gid)
	}
	return cred
}

var processPostgres = sync.OnceValues(StartPostgres)

// Postgres gives the URL of a fresh database on a real PostgreSQL: the one in PIXTOOLS_TEST_POSTGRES, or
// one that this test process starts once and that ends with it. The database is dropped after the test.
func Postgres(t testing.TB) string {
	t.Helper()
	admin := os.Getenv(PostgresVariable)
	if admin == "" {
		server, err := processPostgres()
		if err != nil {
			t.Fatalf("Postgres for tests: %v", err)
		}
		admin = server.URL
	}
	name := "test_" + strings.ToLower(rand.Text())
	execute := func(sql string) error {
		ctx, cancel := context.WithTimeout(context.Background(), serviceStartTimeout)
		defer cancel()
		conn, err := pgx.Connect(ctx, admin)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, sql)
		return errors.Join(err, conn.Close(ctx))
	}
	if err := execute("CREATE DATABASE " + name); err != nil {
		t.Fatalf("Postgres for tests: %v", err)
	}
	t.Cleanup(func() {
		if err := execute("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Logf("drop the test's database: %v", err)
		}
	})
	cfg, err := pgx.ParseConfig(admin)
	if err != nil {
		t.Fatalf("%s: %v", PostgresVariable, err)
	}
	// Not "/postgres": a user may have the database's name.
	host, rest, _ := strings.Cut(admin, "@")
	return host + "@" + strings.Replace(rest, "/"+cfg.Database, "/"+name, 1)
}

// ---- Redis

// RedisServer is a Redis of its own. It keeps nothing over a restart, as a cache does.
type RedisServer struct {
	*Service
	Addr string
}

// StartRedis starts one.
func StartRedis() (*RedisServer, error) {
	if _, err := install("redis"); err != nil {
		return nil, err
	}
	dir, err := serviceDir(nil)
	if err != nil {
		return nil, err
	}
	port := FreePorts(1)[0]
	r := &RedisServer{Addr: localAddress(port)}
	r.Service = &Service{
		name: "redis", dir: dir, stop: syscall.SIGTERM,
		argv: []string{"redis-server", "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--save", "", "--appendonly", "no"},
		ready: func(ctx context.Context) error {
			client := redis.NewClient(&redis.Options{Addr: r.Addr, MaxRetries: -1})
			defer func() { _ = client.Close() }()
			return client.Ping(ctx).Err()
		},
	}
	if err := r.up(); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

// Redis gives the host:port of a real Redis: the one in PIXTOOLS_TEST_REDIS, or an empty one that starts
// in a moment and ends with the test.
func Redis(t testing.TB) string {
	t.Helper()
	if announced := os.Getenv(RedisVariable); announced != "" {
		return announced
	}
	server, err := StartRedis()
	if err != nil {
		t.Fatalf("Redis for tests: %v", err)
	}
	t.Cleanup(server.Stop)
	return server.Addr
}

// ---- S3

// S3Server is a MinIO of its own, or one that was announced.
type S3Server struct {
	*Service  `json:"-"`
	Endpoint  string
	AccessKey string
	SecretKey string
	Region    string
}

// Announce is what S3Variable has to hold for other processes to use this server.
func (s *S3Server) Announce() string {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err) // four strings
	}
	return string(raw)
}

// StartS3 starts one on an empty directory.
func StartS3() (*S3Server, error) {
	return startS3(func(string) (s3Options, error) { return s3Options{user: "pixtools", password: rand.Text()}, nil })
}

// s3Options are how a server lets its clients in.
type s3Options struct {
	args           []string
	user, password string
	trusting       *tls.Config // nil: without TLS
}

// startS3 has prepare fill the server's directory.
func startS3(prepare func(dir string) (s3Options, error)) (*S3Server, error) {
	build, err := install("minio")
	if err != nil {
		return nil, err
	}
	dir, err := serviceDir(nil)
	if err != nil {
		return nil, err
	}
	ports := FreePorts(2)
	options, err := prepare(dir)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	s := &S3Server{Endpoint: "http://" + localAddress(ports[0]), AccessKey: options.user, SecretKey: options.password, Region: "us-east-1"}
	if options.trusting != nil {
		s.Endpoint = "https://" + localAddress(ports[0])
	}
	asking := &http.Client{Transport: &http.Transport{TLSClientConfig: options.trusting}}
	s.Service = &Service{
		name: "minio", dir: dir, stop: syscall.SIGTERM,
		argv: append([]string{
			filepath.Join(build, "bin", "minio"), "server", "--quiet",
			"--address", localAddress(ports[0]), "--console-address", localAddress(ports[1]), filepath.Join(dir, "data"),
		}, options.args...),
		env: []string{
			"MINIO_ROOT_USER=" + s.AccessKey, "MINIO_ROOT_PASSWORD=" + s.SecretKey,
			"MINIO_BROWSER=off", "MINIO_UPDATE=off", "HOME=" + dir,
		},
		ready: func(ctx context.Context) error { return answersOK(ctx, asking, s.Endpoint+"/minio/health/cluster") },
	}
	if err := s.up(); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func answersOK(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

var processS3 = sync.OnceValues(StartS3)

// S3 gives a real S3 server: the one in PIXTOOLS_TEST_S3, or a MinIO that this test process starts once
// and that ends with it. Tests share it, so each uses a bucket with a name of its own.
func S3(t testing.TB) *S3Server {
	t.Helper()
	if announced := os.Getenv(S3Variable); announced != "" {
		s := new(S3Server)
		if err := json.Unmarshal([]byte(announced), s); err != nil {
			t.Fatalf("%s: %v", S3Variable, err)
		}
		return s
	}
	server, err := processS3()
	if err != nil {
		t.Fatalf("S3 for tests: %v", err)
	}
	return server
}
