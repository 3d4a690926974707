package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// KafkaVariable names brokers that run already; then no test starts its own.
	KafkaVariable = "PIXTOOLS_TEST_KAFKA"

	// kafkaStartTimeout allows for a loaded machine, and for the recovery after a kill.
	kafkaStartTimeout = 2 * time.Minute
	// kafkaStopTimeout, then the broker is killed.
	kafkaStopTimeout = 15 * time.Second
	kafkaHeap        = "512m"
	// kafkaPartitions of topics that are created by using them.
	kafkaPartitions = 6
	// kafkaClusterID is any UUID in Kafka's spelling; clusters never meet.
	kafkaClusterID = "cGl4dG9vbHMtdGVzdGVudg"
)

// Kafka gives the addresses of a real Apache Kafka: those in PIXTOOLS_TEST_KAFKA, or
// of a broker that this test process starts once and that ends with it. Tests share
// it, so each uses topics and groups with names of its own. Unknown topics are
// created when they are used.
func Kafka(t testing.TB) []string {
	t.Helper()
	if announced := os.Getenv(KafkaVariable); announced != "" {
		return strings.Split(announced, ",")
	}
	cluster, err := processKafka()
	if err != nil {
		t.Fatalf("Kafka for tests: %v", err)
	}
	return cluster.Brokers()
}

var processKafka = sync.OnceValues(func() (*KafkaCluster, error) { return StartKafka("", 1) })

// KafkaCluster is a running Apache Kafka, brokers and controllers combined.
type KafkaCluster struct {
	dir     string
	ownDir  bool
	libs    string
	brokers []*broker
	// formatting is what the storage is formatted with beside the usual.
	formatting []string
}

type broker struct {
	dir  string // properties, log and data
	port int

	process *os.Process   // nil while it is down
	ended   chan struct{} // closed when the process is gone
}

// StartKafka starts n brokers and returns when all of them answer. Topics have a
// replication factor of 3 where there are as many brokers, and then need 2 in sync.
// An empty dir means a directory that is removed by Stop, or by a later start.
func StartKafka(dir string, n int) (*KafkaCluster, error) {
	c, err := newCluster(dir)
	if err != nil {
		return nil, err
	}
	if err := c.configure(n); err != nil {
		return nil, err
	}
	if err := c.start(); err != nil {
		return nil, err
	}
	return c, nil
}

func newCluster(dir string) (*KafkaCluster, error) {
	libs, err := kafkaLibs()
	if err != nil {
		return nil, err
	}
	c := &KafkaCluster{dir: dir, ownDir: dir == "", libs: libs}
	if c.ownDir {
		c.dir, err = runDir(filepath.Dir(libs))
	}
	return c, err
}

// start leaves nothing behind where it fails.
func (c *KafkaCluster) start() error {
	err := c.startAll()
	if err != nil {
		c.Stop()
	}
	return err
}

// kafkaLibs installs the jars where they are missing. Test processes run side by
// side, so one installs and the others wait.
func kafkaLibs() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "build", "testenv", "kafka")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.Create(filepath.Join(dir, "install.lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close() // and with it the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	install := exec.Command("sh", filepath.Join(root, "internal", "testenv", "install.sh"), "kafka")
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("install: %w: %s", err, out)
	}
	return filepath.Join(dir, "libs"), nil
}

// moduleRoot is above the package under test, which is where go test runs it.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod above the working directory: run inside the checkout")
		}
		dir = filepath.Dir(dir)
	}
}

// runDir makes a directory that carries this process's id, and removes those whose
// process is gone: a test process that is killed cannot clean up behind itself.
func runDir(parent string) (string, error) {
	old, err := filepath.Glob(filepath.Join(parent, "run-*-*"))
	if err != nil {
		return "", err
	}
	for _, dir := range old {
		pid, err := strconv.Atoi(strings.Split(filepath.Base(dir), "-")[1])
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // somebody else may be doing the same
		}
	}
	return os.MkdirTemp(parent, fmt.Sprintf("run-%d-", os.Getpid()))
}

func (c *KafkaCluster) configure(n int) error {
	ports := FreePorts(2 * n)
	voters := make([]string, n)
	for i := range n {
		voters[i] = fmt.Sprintf("%d@127.0.0.1:%d", i+1, ports[n+i])
	}
	for i := range n {
		b := &broker{dir: filepath.Join(c.dir, "broker-"+strconv.Itoa(i)), port: ports[i]}
		if err := os.MkdirAll(b.dir, 0o755); err != nil {
			return err
		}
		properties := b.properties(i+1, ports[n+i], strings.Join(voters, ","), min(3, n))
		if err := b.write(properties); err != nil {
			return err
		}
		c.brokers = append(c.brokers, b)
	}
	return nil
}

func (b *broker) write(properties string) error {
	if err := os.WriteFile(b.file("server.properties"), []byte(properties), 0o644); err != nil {
		return err
	}
	return os.WriteFile(b.file("log4j2.properties"), []byte(kafkaLogging), 0o644)
}

const kafkaLogging = `rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c{1} %m%n
`

// properties: small internal topics and no waiting for more members, so that tests
// start quickly; short sessions are allowed, so that they need not wait for the dead.
func (b *broker) properties(id, controllerPort int, voters string, replication int) string {
	return fmt.Sprintf(`process.roles=broker,controller
node.id=%d
listeners=PLAINTEXT://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d
advertised.listeners=PLAINTEXT://127.0.0.1:%[2]d
controller.listener.names=CONTROLLER
controller.quorum.voters=%[4]s
log.dirs=%[5]s
num.partitions=%[6]d
default.replication.factor=%[7]d
min.insync.replicas=%[8]d
offsets.topic.num.partitions=4
offsets.topic.replication.factor=%[7]d
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=%[7]d
transaction.state.log.min.isr=%[8]d
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=%[7]d
share.coordinator.state.topic.min.isr=%[8]d
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
`, id, b.port, controllerPort, voters, b.file("data"), kafkaPartitions, replication, (replication+1)/2)
}

func (b *broker) file(name string) string { return filepath.Join(b.dir, name) }

// FreePorts are n ports that nobody listens on. They lie below the range from which
// outgoing connections get theirs, so that a server that is down finds its port free when
// it comes back.
func FreePorts(n int) []int {
	const first, last = 20000, 31999
	var ports []int
	taken := map[int]bool{}
	for len(ports) < n {
		port := first + rand.IntN(last-first+1)
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil || taken[port] {
			continue
		}
		_ = l.Close()
		taken[port] = true
		ports = append(ports, port)
	}
	return ports
}

func (c *KafkaCluster) startAll() error {
	errs := make([]error, len(c.brokers))
	var formatted sync.WaitGroup
	for i, b := range c.brokers {
		formatted.Go(func() {
			format := c.java(b, append([]string{"kafka.tools.StorageTool", "format", "--ignore-formatted",
				"-t", kafkaClusterID, "-c", b.file("server.properties")}, c.formatting...)...)
			if out, err := format.CombinedOutput(); err != nil {
				errs[i] = fmt.Errorf("format: %w: %s", err, out)
			}
		})
	}
	formatted.Wait()
	for i, b := range c.brokers {
		if errs[i] == nil {
			errs[i] = c.launch(b)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, b := range c.brokers {
		if err := c.awaitReady(b); err != nil {
			return err
		}
	}
	return nil
}

// java: the quick compiler and collector; these processes live for minutes.
func (c *KafkaCluster) java(b *broker, args ...string) *exec.Cmd {
	return exec.Command("java", append([]string{
		"-Xmx" + kafkaHeap, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
		"-Dlog4j2.configurationFile=" + b.file("log4j2.properties"),
		// Of a broker that is killed its libraries would stay in /tmp for ever.
		"-Dorg.xerial.snappy.tempdir=" + b.dir,
		"-cp", filepath.Join(c.libs, "*") + ":" + filepath.Join(c.dir, "classes"),
	}, args...)...)
}

// launch starts the broker's process, in a goroutine that keeps its thread until the
// process ends: the kernel's promise to kill a child with its parent is about the
// thread that started it.
func (c *KafkaCluster) launch(b *broker) error {
	log, err := os.OpenFile(b.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := c.java(b, "kafka.Kafka", b.file("server.properties"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = DieWithParent()
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer log.Close()
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
	b.process, b.ended = cmd.Process, ended
	return nil
}

func (c *KafkaCluster) awaitReady(b *broker) error {
	ctx, cancel := context.WithTimeout(context.Background(), kafkaStartTimeout)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.address()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		// A request of our own: kadm's may go on answering from the client's memory, from
		// before the last broker was there.
		request := kmsg.NewPtrMetadataRequest()
		request.Topics = []kmsg.MetadataRequestTopic{}
		metadata, err := request.RequestWith(ctx, client)
		if err == nil {
			if err = c.hasAll(metadata.Brokers); err == nil {
				return nil
			}
		}
		select {
		case <-b.ended:
			return fmt.Errorf("the broker ended: %s", b.logTail())
		case <-ctx.Done():
			return fmt.Errorf("the broker did not answer within %v (%w): %s", kafkaStartTimeout, err, b.logTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// hasAll names a broker that is meant to be up and is not known to the others.
func (c *KafkaCluster) hasAll(known []kmsg.MetadataResponseBroker) error {
	for i, b := range c.brokers {
		if b.process != nil && !slices.ContainsFunc(known, func(k kmsg.MetadataResponseBroker) bool { return k.NodeID == int32(i+1) }) {
			return fmt.Errorf("broker %d is not in the metadata", i)
		}
	}
	return nil
}

func (b *broker) logTail() string {
	const tail = 4 << 10
	content, err := os.ReadFile(b.file("log"))
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-tail):])
}

func (b *broker) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port)) }

// Brokers are the addresses of all brokers, also of those that are down.
func (c *KafkaCluster) Brokers() []string {
	var all []string
	for _, b := range c.brokers {
		all = append(all, b.address())
	}
	return all
}

// Kill ends broker i, counted from 0, as a power cut would.
func (c *KafkaCluster) Kill(i int) error {
	b := c.brokers[i]
	if b.process == nil {
		return fmt.Errorf("broker %d is down already", i)
	}
	if err := b.process.Kill(); err != nil {
		return err
	}
	<-b.ended
	b.process = nil
	return nil
}

// Freeze stops broker i where it stands: its connections stay open and nothing is
// answered. Thaw ends that.
func (c *KafkaCluster) Freeze(i int) error { return c.signal(i, syscall.SIGSTOP) }

// Thaw lets a frozen broker go on.
func (c *KafkaCluster) Thaw(i int) error { return c.signal(i, syscall.SIGCONT) }

func (c *KafkaCluster) signal(i int, sig syscall.Signal) error {
	if c.brokers[i].process == nil {
		return fmt.Errorf("broker %d is down", i)
	}
	return c.brokers[i].process.Signal(sig)
}

// Restart starts broker i where it left off, at its old port, and returns when it
// answers and knows the others that run. One that runs is stopped in order first.
func (c *KafkaCluster) Restart(i int) error {
	b := c.brokers[i]
	b.stop()
	if err := c.launch(b); err != nil {
		return err
	}
	return c.awaitReady(b)
}

// Stop ends all brokers.
func (c *KafkaCluster) Stop() {
	// Controllers that go in order wait for one another: with the data thrown away
	// anyway, nothing is worth that.
	for _, b := range c.brokers {
		if b.process == nil {
			continue
		}
		if c.ownDir {
			_ = b.process.Kill()
		}
		b.stop()
	}
	if c.ownDir {
		_ = os.RemoveAll(c.dir)
	}
}

func (b *broker) stop() {
	if b.process == nil {
		return
	}
	_ = b.process.Signal(syscall.SIGCONT)
	_ = b.process.Signal(syscall.SIGTERM)
	select {
	case <-b.ended:
	case <-time.After(kafkaStopTimeout):
		_ = b.process.Kill()
		<-b.ended
	}
	b.process = nil
}
