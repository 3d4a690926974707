package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pixtools/pixtools/internal/testenv"
)

// What is here is as much of a container engine as a test of a compose file needs: each
// container has name spaces of its own for the network, mounts, processes and its name, the
// root of this machine below a layer of its own, its volumes, its user, and a name that the
// others find it by. There are no images: a service's program is this machine's.

const (
	// specVariable tells this test's binary that it is to become a container.
	specVariable = "PIXTOOLS_TEST_CONTAINER"
	// networkVariable tells it that it has name spaces of its own, in which containers may be made.
	networkVariable = "PIXTOOLS_TEST_NETWORK"
	bridgeName      = "pixtools"
	bridgeAddress   = "10.77.0.1/24"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(specVariable); path != "" {
		fmt.Fprintln(os.Stderr, "container:", becomeContainer(path))
		os.Exit(125)
	}
	os.Exit(m.Run())
}

// spec is what a container is made of.
type spec struct {
	Name    string
	Address string // with the length of its prefix
	Hosts   string // the file /etc/hosts
	Dir     string // for its layer
	// Binds are directories and files of this machine, by where they lie inside.
	Binds    map[string]string
	Tmpfs    map[string]string // options, by place
	ReadOnly bool
	UID, GID int
	// NoNewPrivileges is what security_opt says.
	NoNewPrivileges bool
	Env, Argv       []string
}

// becomeContainer does not return but with an error.
func becomeContainer(path string) error {
	runtime.LockOSThread() // no_new_privs is a thread's, and exec takes it along
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s spec
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	// The other end of its network is being attached.
	if _, err := os.NewFile(3, "go").Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("nobody attached a network: %w", err)
	}
	for _, step := range []func(spec) error{joinNetwork, makeRoot, func(s spec) error { return unix.Sethostname([]byte(s.Name)) }, becomeUser} {
		if err := step(s); err != nil {
			return err
		}
	}
	program, err := lookPath(s.Argv[0], s.Env)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", program, unix.Exec(program, s.Argv, s.Env))
}

func joinNetwork(s spec) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "eth0" {
			address, err := netlink.ParseAddr(s.Address)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

// makeRoot has this machine's root below a layer that is thrown away, and goes there.
func makeRoot(s spec) error {
	mount := func(source, target, kind string, flags uintptr, options string) error {
		if err := unix.Mount(source, target, kind, flags, options); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		return nil
	}
	layer := filepath.Join(s.Dir, "layer")
	root := filepath.Join(layer, "root")
	if err := errors.Join(mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), os.MkdirAll(layer, 0o755), mount("tmpfs", layer, "tmpfs", 0, "")); err != nil {
		return err
	}
	for _, dir := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(layer, dir), 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", layer, layer)); err != nil {
		return err
	}
	if err := errors.Join(mount("proc", filepath.Join(root, "proc"), "proc", 0, ""), mount("/dev", filepath.Join(root, "dev"), "", unix.MS_BIND|unix.MS_REC, ""),
		os.WriteFile(filepath.Join(root, "etc", "hosts"), []byte(s.Hosts), 0o644)); err != nil {
		return err
	}
	for inside, outside := range s.Binds {
		target := filepath.Join(root, inside)
		about, err := os.Stat(outside)
		if err != nil {
			return err
		}
		if about.IsDir() {
			err = os.MkdirAll(target, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
			err = os.WriteFile(target, nil, 0o644)
		}
		if err != nil {
			return err
		}
		if err := mount(outside, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for inside, options := range s.Tmpfs {
		if err := mount("tmpfs", filepath.Join(root, inside), "tmpfs", 0, options); err != nil {
			return err
		}
	}
	if s.ReadOnly {
		if err := mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root lies over the new one then, and is taken away.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return errors.Join(unix.Unmount(".", unix.MNT_DETACH), os.Chdir("/"))
}

func becomeUser(s spec) error {
	if s.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	if s.UID == 0 {
		return nil
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(s.GID), syscall.Setuid(s.UID)) // and with it all capabilities
}

// lookPath finds a program by the PATH that it will have.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, v := range env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			for _, dir := range filepath.SplitList(path) {
				if about, err := os.Stat(filepath.Join(dir, name)); err == nil && !about.IsDir() && about.Mode()&0o111 != 0 {
					return filepath.Join(dir, name), nil
				}
			}
		}
	}
	return "", fmt.Errorf("%s is not on the container's PATH", name)
}

// inNetwork runs this test once more in name spaces of its own, where it may make networks
// and containers, and all that it starts ends with it. It says whether that is here.
func inNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(networkVariable) != "" {
		if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, "")); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("containers need root here: name spaces, mounts and a network")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), networkVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		t.Skipf("this machine lets nobody make name spaces: %v", err)
	}
	t.Logf("%s", out)
	require.NoError(t, err)
	return false
}

// network is a bridge, and containers that hang on it.
type network struct {
	t      *testing.T
	bridge netlink.Link
	hosts  string
	dir    string
	made   int
}

func newNetwork(t *testing.T, names []string) *network {
	t.Helper()
	n := &network{t: t, dir: t.TempDir(), hosts: "127.0.0.1 localhost\n"}
	for i, name := range names {
		n.hosts += fmt.Sprintf("%s %s\n", n.address(i), name)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = bridgeName
	n.bridge = &netlink.Bridge{LinkAttrs: attributes}
	require.NoError(t, netlink.LinkAdd(n.bridge))
	address, err := netlink.ParseAddr(bridgeAddress)
	require.NoError(t, err)
	require.NoError(t, netlink.AddrAdd(n.bridge, address))
	require.NoError(t, netlink.LinkSetUp(n.bridge))
	loopback, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(loopback))
	return n
}

func (n *network) address(i int) string { return fmt.Sprintf("10.77.0.%d", 10+i) }

// container is one that runs, or has run.
type container struct {
	spec
	cmd    *exec.Cmd
	output testenv.Buffer
	stdout testenv.Buffer
	ended  chan error
}

// start makes a container and has it run.
func (n *network) start(s spec) *container {
	n.t.Helper()
	n.made++
	s.Hosts = n.hosts
	s.Dir = filepath.Join(n.dir, strconv.Itoa(n.made))
	require.NoError(n.t, os.Mkdir(s.Dir, 0o755))
	text, err := json.Marshal(s)
	require.NoError(n.t, err)
	file := filepath.Join(s.Dir, "spec.json")
	require.NoError(n.t, os.WriteFile(file, text, 0o600))
	c := &container{spec: s, ended: make(chan error, 1)}
	attached, attach, err := os.Pipe()
	require.NoError(n.t, err)
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = []string{specVariable + "=" + file}
	c.cmd.ExtraFiles = []*os.File{attached}
	c.cmd.Stderr, c.cmd.Stdout = &c.output, &c.stdout
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	require.NoError(n.t, c.cmd.Start())
	require.NoError(n.t, attached.Close())
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MasterIndex = fmt.Sprintf("c%d", n.made), n.bridge.Attrs().Index
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsPid(c.cmd.Process.Pid)}
	require.NoError(n.t, netlink.LinkAdd(pair))
	require.NoError(n.t, netlink.LinkSetUp(pair))
	_, err = attach.Write([]byte{1})
	require.NoError(n.t, err)
	require.NoError(n.t, attach.Close())
	go func() { c.ended <- c.cmd.Wait() }()
	n.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		if n.t.Failed() {
			n.t.Logf("--- %s\n%s%s", s.Name, c.stdout.String(), tail(c.output.String()))
		}
	})
	return c
}

func tail(text string) string { return text[max(0, len(text)-4000):] }

// execute runs a program inside, with the container's user and environment.
func (c *container) execute(ctx context.Context, argv ...string) (string, error) {
	program, err := lookPath(argv[0], c.Env)
	if err != nil {
		return "", err
	}
	args := []string{"--target", strconv.Itoa(c.cmd.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--pid",
		"--setuid", strconv.Itoa(c.UID), "--setgid", strconv.Itoa(c.GID), "--", program}
	cmd := exec.CommandContext(ctx, "nsenter", append(args, argv[1:]...)...)
	cmd.Env = c.Env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// stop asks it to end, as an engine does, and says how it ended.
func (c *container) stop(within time.Duration) error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return c.wait(within)
}

func (c *container) wait(within time.Duration) error {
	select {
	case err := <-c.ended:
		return err
	case <-time.After(within):
		return fmt.Errorf("%s did not end within %s", c.Name, within)
	}
}

// dialer reaches published ports where their containers are.
func dialer(published map[string]string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, kind, address string) (net.Conn, error) {
		if inside, ok := published[address]; ok {
			address = inside
		}
		return (&net.Dialer{}).DialContext(ctx, kind, address)
	}
}
