// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
)

// TestEnd compares how processes end with what the kernel tells their parent.
func TestEnd(t *testing.T) {
	r := shared(t)
	for name, what := range map[string]string{
		"status": "exit 3", "most": "exit 255", "killed": "kill 9", "terminated": "kill 15", "core": "core",
		"many threads": "threads 4", "first thread ends first": "leader 5",
	} {
		t.Run(name, func(t *testing.T) {
			dir, id := probetest.NewCgroup(t)
			cmd := again(t, dir, "%s", what)
			cmd.Dir = folder(t)
			cmd.Stderr = nil
			err := cmd.Run()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			want := &process.End{Code: uint8(status >> 8), Signal: uint8(status & 0x7f), CoreDumped: status.CoreDump()}
			all := r.wait(t, 3, id)
			if d := cmp.Diff(want, all[2].End); d != "" {
				t.Errorf("end, status %#x (-want +got):\n%s", status, d)
			}
			if all[2].Process.ID != all[0].Process.ID {
				t.Errorf("not of one process:\n%s", list(all))
			}
			if what == "core" && !status.CoreDump() {
				t.Log("this host writes no core dumps")
			}
		})
	}
}

// TestThreadsEndAtOnce: of many threads that end at the same moment one is the last.
func TestThreadsEndAtOnce(t *testing.T) {
	r := shared(t)
	dir, id := probetest.NewCgroup(t)
	runs := 60
	if testing.Short() {
		runs = 10
	}
	for range runs {
		if err := again(t, dir, "together").Run(); err != nil {
			t.Fatal(err)
		}
	}
	r.wait(t, runs, id, process.Exit)
	r.wait(t, runs, id, process.Fork)
}

// TestExecByThread: another thread than the first starts an executable, and takes the
// place of the first.
func TestExecByThread(t *testing.T) {
	r := shared(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(9), 0o755)
	dir, id := probetest.NewCgroup(t)
	cmd := again(t, dir, "thread-exec %s", path)
	_ = cmd.Run()
	all := r.wait(t, 4, id) // fork, exec of this binary, exec of the other, exit
	for _, e := range all {
		if e.Process.ID != all[0].Process.ID || int(e.Process.PID) != cmd.Process.Pid {
			t.Fatalf("not of one process:\n%s", list(all))
		}
	}
	if all[2].What != process.Exec || all[2].Process.Exe.Path != path || all[3].End == nil || all[3].End.Code != 9 {
		t.Errorf("want the start of %s and its end:\n%s", path, list(all))
	}
}

func TestMoved(t *testing.T) {
	r := shared(t)
	from, fromID := probetest.NewCgroup(t)
	to, toID := probetest.NewCgroup(t)
	cmd := again(t, from, "wait")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Error(err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	all := r.wait(t, 2, toID)
	before := r.wait(t, 2, fromID)
	e := all[0]
	if e.What != process.Moved || e.Process.ID != before[0].Process.ID || e.By.PID != uint32(os.Getpid()) || e.By != before[0].Process.Parent {
		t.Errorf("move: %+v", e)
	}
	if all[1].What != process.Exit {
		t.Errorf("after the move: %+v", all[1])
	}
	probetest.Works(t, "moves between cgroups")
}

// TestEndedIsNotMoved: a process that has ended and that nobody has waited for is not
// told of when its cgroup changes.
func TestEndedIsNotMoved(t *testing.T) {
	r := shared(t)
	from, fromID := probetest.NewCgroup(t)
	to, toID := probetest.NewCgroup(t)
	cmd := osexec.Command(write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755))
	probetest.InCgroup(t, cmd, from)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.wait(t, 1, fromID, process.Exit)
	err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0)
	if all := r.of(t, toID); len(all) > 0 {
		t.Errorf("moved (%v):\n%s", err, list(all))
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestCloneParent: who makes a process is its parent, also if the kernel is asked to say
// that it is another one.
func TestCloneParent(t *testing.T) {
	r := shared(t)
	dir, id := probetest.NewCgroup(t)
	cmd := again(t, dir, "clone-parent")
	out := output(t, cmd)
	pid, err := strconv.Atoi(out)
	if err != nil {
		t.Skipf("SKIP: make a process: %s", out)
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		t.Error(err)
	}
	r.wait(t, 2, id, process.Exit)
	for _, e := range r.of(t, id, process.Fork) {
		if int(e.Process.PID) == pid && int(e.Process.Parent.PID) != cmd.Process.Pid {
			t.Errorf("%d is a child of %d, want %d", pid, e.Process.Parent.PID, cmd.Process.Pid)
		}
	}
}

// TestReused: two processes with the same pid are told apart.
func TestReused(t *testing.T) {
	r := shared(t)
	dir, id := probetest.NewCgroup(t)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	pid, err := forkAs(0, fd)
	if err == nil {
		_, err = forkAs(pid, fd)
	}
	if err != nil {
		t.Skipf("SKIP: choose a pid: %v", err)
	}
	all := r.wait(t, 4, id)
	if all[0].Process.PID != all[2].Process.PID || all[0].Process.Start >= all[2].Process.Start {
		t.Errorf("want one pid and two processes:\n%s", list(all))
	}
	for i, what := range []process.What{process.Fork, process.Exit, process.Fork, process.Exit} {
		if all[i].What != what || all[i].Process.ID != all[i/2*2].Process.ID {
			t.Errorf("event %d:\n%s", i, list(all))
		}
	}
}

// forkAs makes a process with this pid in a cgroup, which ends at once, and returns
// its pid.
func forkAs(pid int, cgroup int) (int, error) {
	want := [1]int32{int32(pid)}
	args := cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(cgroup)}
	if pid != 0 {
		args.setTID, args.setTIDs = &want[0], 1
	}
	got, err := clone(&args)
	if err == nil {
		_, err = unix.Wait4(got, nil, 0, nil)
	}
	return got, err
}

type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
	setTID                                                               *int32
	setTIDs, cgroup                                                      uint64
}

// clone makes a process that ends at once, and returns its pid.
func clone(args *cloneArgs) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	got, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if got == 0 && errno == 0 {
		for {
			_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}

func TestPart(t *testing.T) {
	part, partID := probetest.NewCgroup(t)
	below := filepath.Join(part, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	belowID := probetest.CgroupID(t, below)
	t.Cleanup(func() { removeCgroup(t, below) })
	outside, outsideID := probetest.NewCgroup(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755)
	waits := again(t, part, "wait")
	in, err := waits.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	r := start(t, func(c *Config) { c.CgroupID = partID })
	for _, dir := range []string{outside, part, below} {
		cmd := osexec.Command(path)
		probetest.InCgroup(t, cmd, dir)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	}
	_ = in.Close()
	if err := waits.Wait(); err != nil {
		t.Fatal(err)
	}
	r.wait(t, 3, belowID)
	r.wait(t, 5, partID) // one was seen, and both ended
	if all := r.of(t, outsideID); len(all) > 0 {
		t.Errorf("outside of the part:\n%s", list(all))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) != 8 {
		t.Errorf("%d events, want 8 of the part", len(r.events))
	}
}

// TestAround: the lives of processes outside of the part are told of where that is asked
// for, and what they ask the kernel for is not.
func TestAround(t *testing.T) {
	_, partID := probetest.NewCgroup(t)
	outside, outsideID := probetest.NewCgroup(t)
	r := start(t, func(c *Config) { c.CgroupID, c.Around = partID, true })
	cmd := osexec.Command(write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755))
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: "/"}
	probetest.InCgroup(t, cmd, outside)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	r.wait(t, 3, outsideID)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.What == process.Privileged {
			t.Errorf("outside of the part: %+v", e)
		}
	}
}

// TestRingFull: what does not fit is counted, to the last event.
func TestRingFull(t *testing.T) {
	dir, id := probetest.NewCgroup(t)
	r := load(t, func(c *Config) { c.RingBytes, c.CgroupID = uint32(os.Getpagesize()), id })
	const runs = 30
	runIn(t, dir, write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755), runs)
	n := r.lost(t, 3*runs)
	if got := r.Received(); n == 0 || got == 0 || got+n != 3*runs {
		t.Errorf("%d events received and %d counted as lost, want %d", got, n, 3*runs)
	}
}

// TestFlood: who makes more events than there is room for loses its own, and nobody else's.
func TestFlood(t *testing.T) {
	part, partID := probetest.NewCgroup(t)
	floods, other := filepath.Join(part, "floods"), filepath.Join(part, "other")
	for _, dir := range []string{floods, other} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
	}
	r := load(t, func(c *Config) { c.RingBytes, c.CgroupID = 64<<10, partID })
	path := write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755)
	const many, few = 200, 10
	runIn(t, floods, path, many)
	runIn(t, other, path, few)
	lost := r.lost(t, 3*(many+few))
	if got, full := r.Received(), r.losses.Get(loss.ExecRingFull); full != 0 || lost == 0 || got+lost != 3*(many+few) {
		t.Errorf("%d events received and %d left out, want %d in all; the ring was full %d times", got, lost, 3*(many+few), full)
	}
	if got := len(r.of(t, probetest.CgroupID(t, other))); got != 3*few {
		t.Errorf("%d events of the others, want %d", got, 3*few)
	}
	// Once there is room again, it is there for all.
	runIn(t, floods, path, few)
	if after := r.lost(t, 3*(many+2*few)); after != lost {
		t.Errorf("%d more left out", after-lost)
	}
}

// runIn runs a program in a cgroup, one time after another.
func runIn(t *testing.T, cgroup, path string, times int) {
	t.Helper()
	for range times {
		cmd := osexec.Command(path)
		probetest.InCgroup(t, cmd, cgroup)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	}
}

// lost is how many events have been left out, once as many have been made as want says.
func (r *rig) lost(t *testing.T, want uint64) uint64 {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := r.Collect(); err != nil {
			t.Fatal(err)
		}
		lost := r.lostEvents()
		if r.Received()+lost >= want || time.Now().After(deadline) {
			return lost
		}
	}
}

// lostEvents is how many events have been left out.
func (r *rig) lostEvents() uint64 {
	return r.losses.Get(loss.ExecRingFull) + r.losses.Get(loss.ExecShareFull)
}

// removeCgroup removes a cgroup, which a process leaves a little after its end.
func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	for range 50 {
		if os.Remove(dir) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%s is not empty", dir)
}

// TestClose: nothing stays open. That nothing stays attached is tested for all probes
// together.
func TestClose(t *testing.T) {
	files := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	var after [2]int
	for i := range after { // the first time opens what stays
		r := newRig(nil)
		probetest.Start(t, r, "exec probe: off")
		during := files()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if after[i] = files(); after[i] >= during || len(r.Hooks()) != 0 {
			t.Errorf("%d open files after %d, hooks %v", after[i], during, r.Hooks())
		}
	}
	if after[1] > after[0] {
		t.Errorf("%d open files after %d", after[1], after[0])
	}
}

// child does what the test wants done in a process of its own.
func child(f []string) {
	runtime.LockOSThread()
	switch f[0] {
	case "exit":
		os.Exit(number(f[1]))
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.Signal(number(f[1])))
		select {}
	case "core":
		unlimited := unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}
		_ = unix.Setrlimit(unix.RLIMIT_CORE, &unlimited)
		standard := [4]uint64{}
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGQUIT), uintptr(unsafe.Pointer(&standard)), 0, 8, 0, 0)
		_ = unix.Kill(os.Getpid(), unix.SIGQUIT)
		select {}
	case "threads":
		manyThreads(8)
		os.Exit(number(f[1]))
	case "together":
		manyThreads(32)
	case "leader":
		leaderEnds(number(f[1]))
	case "thread-exec":
		go func() {
			runtime.LockOSThread()
			_ = syscall.Exec(f[1], f[1:], nil)
			os.Exit(1)
		}()
		select {}
	case "load": // SECONDS PROGRAM, where there is no compiler for testdata/load.c
		n, end := 0, time.Now().Add(time.Duration(number(f[1]))*time.Second)
		for ; time.Now().Before(end); n++ {
			cmd := osexec.Command(f[2])
			cmd.Args = []string{f[2], "load"}
			_ = cmd.Run()
		}
		fmt.Println(n)
	case "clone-parent":
		pid, err := clone(&cloneArgs{flags: unix.CLONE_PARENT})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(pid)
	case "wait": // for the end of the input
		_, _ = os.Stdin.Read(make([]byte, 1))
	default:
		childCall(f)
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// manyThreads returns when there are n threads more.
func manyThreads(n int) {
	there := make(chan struct{})
	for range n {
		go func() {
			runtime.LockOSThread()
			there <- struct{}{}
			select {}
		}()
	}
	for range n {
		<-there
	}
}

// leaderEnds ends the first thread, and a moment later the process.
func leaderEnds(status int) {
	gone := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(gone)
		state := fmt.Sprintf("/proc/self/task/%d/stat", os.Getpid())
		for {
			b, err := os.ReadFile(state)
			if err != nil || strings.Contains(string(b), ") Z") {
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(status), 0, 0)
			}
		}
	}()
	<-gone
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 77, 0, 0)
}
