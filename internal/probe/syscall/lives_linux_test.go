// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/cgroup"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// A new process returns from the call that its parent has made. That is not told of.
func TestFork(t *testing.T) {
	r := start(t, nil)
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(r.run(t, "spawn", self, "true"))
	if err != nil {
		t.Fatal(err)
	}
	forks := syscalls.Numbers(abis()[0], "clone", "clone3", "vfork", "fork")
	forked := func(e *Event) bool {
		for _, n := range forks {
			if e.Number == n && !e.Refused {
				return true
			}
		}
		return false
	}
	e := r.wait(t, 1, func(e *Event) bool { return forked(e) && e.Return == int64(pid) })[0]
	if int(e.PID) == pid || e.Latency <= 0 {
		t.Errorf("fork: %s", show(&e))
	}
	parent := e.PID
	e = r.wait(t, 1, func(e *Event) bool { return int(e.PID) == pid && e.Number == unix.SYS_EXECVE })[0]
	if e.Return != 0 || e.Strings[0] != self || e.Parent != parent {
		t.Errorf("execve: %s of a child of %d, want of %d", show(&e), e.Parent, parent)
	}
	r.wait(t, 1, func(e *Event) bool { return int(e.PID) == pid && e.Number == unix.SYS_EXIT_GROUP })
	for _, e := range r.of(func(e *Event) bool { return e.Refused || forked(e) && e.Return == 0 }) {
		t.Errorf("%s", show(&e))
	}
}

// A call that a signal stops goes on as another one.
func TestRestart(t *testing.T) {
	r := start(t, nil)
	cmd, line, _ := r.background(t, "restart")
	tid, err := strconv.ParseUint(line, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	sleeps := func(e *Event) bool { return e.TID == uint32(tid) && e.Number == unix.SYS_CLOCK_NANOSLEEP }
	for deadline := time.Now().Add(10 * time.Second); len(r.of(sleeps)) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err := r.Flush(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	const erestartRestartblock = -516
	e := r.wait(t, 1, func(e *Event) bool { return sleeps(e) && !e.Unfinished })[0]
	if e.Return != erestartRestartblock {
		t.Errorf("stopped: %s", show(&e))
	}
	e = r.wait(t, 1, func(e *Event) bool { return e.TID == uint32(tid) && e.Number == unix.SYS_RESTART_SYSCALL })[0]
	if e.Return != 0 || e.Refused {
		t.Errorf("restarted: %s", show(&e))
	}
}

// What starts in a new cgroup below a selected one is traced from its first call on.
func TestNewCgroupBelow(t *testing.T) {
	r := start(t, nil)
	p := cgroup.New(cgroup.Config{Losses: new(loss.Counters), Made: func(uint64, string) {}, Selection: r.selection})
	probetest.Start(t, p, "syscall selection: off")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	inner := filepath.Join(r.dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, inner) })
	id := probetest.CgroupID(t, inner)
	cmd := r.command(t, "errno")
	probetest.InCgroup(t, cmd, inner)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	e := r.wait(t, 1, call(unix.SYS_CLOSE, 0x7ffffff1))[0]
	if e.CgroupID != id {
		t.Errorf("%s", show(&e))
	}
	r.wait(t, 1, func(e *Event) bool { return e.CgroupID == id && e.Number == unix.SYS_EXECVE && e.Return == 0 })
	if !t.Failed() {
		t.Log("orb8-feature: syscall trace of new cgroups: works")
	}
}

// removeCgroup removes a cgroup, which a process leaves a little after its end.
func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	var err error
	for range 50 {
		if err = os.Remove(dir); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error(err)
}
