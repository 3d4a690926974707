package engine

import (
	"os"
	"syscall"
)

// rlimitData is RLIMIT_DATA: writable private memory. Unlike RLIMIT_AS it leaves out
// what Go reserves and never touches.
const rlimitData = 2

// outOfMemoryScore makes the kernel, when memory runs out, kill a child and not the
// parent that would have to start anew with everything.
const outOfMemoryScore = "500"

// confine bounds this process. A limit that the system refuses is left as it is: the
// parent's limits are then stricter. A priority is a thread's own and passes to those it
// starts; here it is the thread that will start libvips' and the network's.
func confine(s settings) {
	limit := func(what int, value uint64) { _ = syscall.Setrlimit(what, &syscall.Rlimit{Cur: value, Max: value}) }
	limit(rlimitData, uint64(s.MemoryBytes))
	limit(syscall.RLIMIT_CORE, 0) // a core dump would hold somebody's picture
	if s.Denoise != nil {
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, s.Denoise.Nice)
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(outOfMemoryScore), 0)
}

// childAttributes has the kernel kill the child when the thread that started it ends.
// Closing standard input does it too, but not before the conversion at hand is done.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// ownProgram names the program that runs, even after its file was replaced by a newer
// one: so parent and child always speak the same messages.
const ownProgram = "/proc/self/exe"
