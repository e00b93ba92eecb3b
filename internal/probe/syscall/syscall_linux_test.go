// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

func TestArguments(t *testing.T) {
	r := start(t, nil)
	r.run(t, "args")
	r.run(t, "errno")
	e := r.one(t, unix.SYS_PRCTL, mark&0xffffffff)
	if want := [6]uint64{mark & 0xffffffff, 2, 3, 4, 5, 6}; e.Args != want || !e.Returned || e.Return != -int64(unix.EINVAL) {
		t.Errorf("prctl: %s", show(e))
	}
	e = r.one(t, unix.SYS_PREADV2, ^uint64(6))
	if want := [6]uint64{^uint64(6), 1 << 63, 0, 1<<40 | 4, 1<<33 | 5, 1<<62 | 6}; e.Args != want || e.Return != -int64(unix.EBADF) {
		t.Errorf("preadv2: %s", show(e))
	}
	e = r.one(t, unix.SYS_CLOSE, 0x7ffffff1)
	if e.Return != -int64(unix.EBADF) || !e.Returned || e.Refused || e.Unfinished || e.Latency <= 0 || e.Latency > time.Second {
		t.Errorf("close: %s", show(e))
	}
	if age := time.Since(time.Unix(0, e.Time)); age < -time.Second || age > time.Minute {
		t.Errorf("the time is %v ago", age)
	}
	if comm := string(e.Comm[:]); comm != "syscall.test\x00\x00\x00\x00" && !strings.HasPrefix(comm, "pkg.test\x00") && !strings.HasPrefix(comm, "exe\x00") {
		t.Errorf("command %q", comm)
	}
	probetest.Works(t, "syscall trace")
}

func TestStrings(t *testing.T) {
	r := start(t, nil)
	r.run(t, "strings")
	for _, n := range []int{0, 254, 255, 256, 3000} {
		e := r.one(t, unix.SYS_OPENAT, 0x7fff0000+uint64(n))
		if want := strings.Repeat("x", min(n, 255)); e.Strings[1] != want || e.Read != 2 || (e.Cut == 2) != (n > 255) {
			t.Errorf("of %d bytes: %s", n, show(e))
		}
	}
}

// A text that cannot be read before the call is read after it, if it can be then.
func TestUnreadable(t *testing.T) {
	r := start(t, nil)
	r.run(t, "unread", t.TempDir())
	e := r.one(t, unix.SYS_OPENAT, 0x7ffffff1)
	if e.Read != 0 || e.Strings[1] != "" || e.Return != -int64(unix.EFAULT) {
		t.Errorf("name that nobody can read: %s", show(e))
	}
	e = r.one(t, unix.SYS_OPENAT, 0x7ffffff2)
	if e.Read != 2 || e.Strings[1] != "/dev/zero" || e.Return < 0 {
		t.Errorf("name that was not in memory: %s", show(e))
	}
}

// resolved is a folder for the test with no links in its path.
func resolved(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFiles(t *testing.T) {
	r := start(t, nil)
	dir := resolved(t)
	known := map[string]string{
		"plain": dir + "/plain", "dir": dir, "gone": dir + "/gone (deleted)", "epoll": "anon_inode:[eventpoll]",
		"memfd": "memfd:some name", "pidfd": "anon_inode:[pidfd]", "none": "",
	}
	for line := range strings.Lines(r.run(t, "files", dir)) {
		what, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		fd, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		want, ok := known[what]
		if !ok {
			want = what
		}
		if e := r.one(t, unix.SYS_FSYNC, fd); e.Files[0] != want {
			t.Errorf("%s is %q, want %q: %s", what, e.Files[0], want, show(e))
		}
	}
	probetest.Works(t, "syscall fds")
}

// A path through a mount, one that is longer than is kept, and one through too many
// folders.
func TestPaths(t *testing.T) {
	r := start(t, nil)
	dir := resolved(t)
	long := dir
	for range 3 {
		long = filepath.Join(long, strings.Repeat("y", 200))
	}
	deep := dir + strings.Repeat("/d", 200)
	for _, d := range []string{long, deep} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := r.run(t, "paths", "/", "/proc/version", long, deep)
	var fds []uint64
	for f := range strings.FieldsSeq(out) {
		fd, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	for i, want := range []string{"/", "/proc/version", long[:255] + "...", ""} {
		got := r.one(t, unix.SYS_FSYNC, fds[i]).Files[0]
		if i < 3 && got != want {
			t.Errorf("path %q, want %q", got, want)
		}
		if i == 3 && (len(got) < 200 || !strings.HasPrefix(got, "...") || !strings.HasSuffix(deep, got[3:])) {
			t.Errorf("path %q, want the end of %q", got, deep)
		}
	}
}

func TestSockets(t *testing.T) {
	r := start(t, nil)
	dir, err := os.MkdirTemp("", "s") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	addrs := map[string]bool{}
	for line := range strings.Lines(r.run(t, "sockets", dir)) {
		number, what, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		fd, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		got := r.one(t, unix.SYS_FSYNC, fd).Files[0]
		if addr, ok := strings.CutPrefix(what, "listening "); ok {
			addrs[addr] = true
			if got != "TCP "+addr && got != "MPTCP "+addr {
				t.Errorf("listener at %s is %q", addr, got)
			}
			continue
		}
		if got != what {
			t.Errorf("%s is %q", what, got)
		}
	}
	// Addresses that were passed to the kernel, and that it has filled in.
	for addr := range addrs {
		r.wait(t, 2, func(e *Event) bool { return e.Number == unix.SYS_CONNECT && e.Addr == addr }) // TCP and UDP
		if len(r.of(func(e *Event) bool { return e.Number == unix.SYS_GETSOCKNAME && e.Addr == addr })) == 0 {
			t.Errorf("no getsockname has the address %s", addr)
		}
	}
	for _, want := range []string{"unix:" + dir + "/s", "unix:@orb8-" + filepath.Base(dir)} {
		r.wait(t, 1, func(e *Event) bool { return e.Number == unix.SYS_BIND && e.Addr == want })
	}
	probetest.Works(t, "syscall socket addresses")
}

func TestLatency(t *testing.T) {
	r := start(t, nil)
	r.run(t, "sleep")
	e := r.wait(t, 1, func(e *Event) bool { return e.Number == unix.SYS_CLOCK_NANOSLEEP && e.Args[4] == mark&0xffff })[0]
	if e.Latency < 200*time.Millisecond || e.Latency > 20*time.Second || e.Return != 0 {
		t.Errorf("%s", show(&e))
	}
	counts := r.summary(t)
	c := counts[Kind{abis()[0], unix.SYS_CLOCK_NANOSLEEP}]
	if c.Max < e.Latency || c.Time < c.Max || c.Calls == 0 {
		t.Errorf("counted: %+v", c)
	}
}

// summary returns the counts of the traced cgroup.
func (r *rig) summary(t *testing.T) map[Kind]Count {
	t.Helper()
	all, err := r.Summary()
	if err == nil {
		err = r.Collect()
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Lost(0).Uncounted; n != 0 {
		t.Errorf("%d calls were not counted", n)
	}
	mine := make(map[Kind]Count)
	for _, c := range all {
		if c.CgroupID == r.cgroup {
			mine[c.Kind] = c
		}
	}
	return mine
}

// background starts a child and returns the first line that it says, and what it
// listens to.
func (r *rig) background(t *testing.T, args ...string) (cmd *exec.Cmd, line string, tell func()) {
	t.Helper()
	cmd = r.command(t, args...)
	in, out := probetest.Pipes(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(line), func() {
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
	}
}

// erestartsys is what a call returns to the kernel that a signal has interrupted.
const erestartsys = -512

// A call that goes on is told of by Flush, and again when its end comes: here by a
// signal.
func TestUnfinished(t *testing.T) {
	r := start(t, nil)
	cmd, line, _ := r.background(t, "block")
	fd, err := strconv.ParseUint(line, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	blocked := func(e *Event) bool {
		return e.Number == unix.SYS_READ && e.Args[0] == fd && e.Args[2] == 77 && e.PID == uint32(cmd.Process.Pid)
	}
	var told []Event
	for deadline := time.Now().Add(10 * time.Second); len(told) == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := r.Flush(0); err != nil {
			t.Fatal(err)
		}
		told = r.of(blocked)
	}
	if len(told) != 1 || !told[0].Unfinished || told[0].Returned || told[0].Latency <= 0 || !strings.HasPrefix(told[0].Files[0], "pipe:[") {
		t.Fatalf("flushed: %s", list(told))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	e := r.wait(t, 2, blocked)[1]
	if e.Return != erestartsys || e.Latency < told[0].Latency {
		t.Errorf("killed: %s", show(&e))
	}
	r.stop(t)
	if n := len(r.of(blocked)); n != 2 {
		t.Errorf("the call was told of %d times, want 2", n)
	}
}

// What goes on at the end of the trace is told of then.
func TestUnfinishedAtEnd(t *testing.T) {
	r := start(t, nil)
	cmd, _, _ := r.background(t, "wait")
	reads := func(e *Event) bool {
		return e.Number == unix.SYS_READ && e.Args[0] == 0 && e.PID == uint32(cmd.Process.Pid)
	}
	var flushed int
	for deadline := time.Now().Add(10 * time.Second); flushed == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := r.Flush(0); err != nil { // to know that it has come so far
			t.Fatal(err)
		}
		flushed = len(r.of(reads))
	}
	r.stop(t)
	all := r.of(reads)
	if len(all) != flushed+1 || !all[flushed].Unfinished {
		t.Errorf("at the end: %s", list(all))
	}
	if hooks := r.Hooks(); len(hooks) != 0 {
		t.Errorf("still attached: %v", hooks)
	}
}

func TestExec(t *testing.T) {
	r := start(t, nil)
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	r.run(t, "exec", self, "true")
	e := r.wait(t, 1, func(e *Event) bool { return e.Number == unix.SYS_EXECVE && e.Return == 0 && e.Strings[0] == self })[0]
	if e.Read&1 == 0 || !e.Returned || e.Unfinished || e.PID != e.TID {
		t.Errorf("execve: %s", show(&e))
	}
	r.run(t, "failed", "/nowhere/at/all")
	e = r.wait(t, 1, func(e *Event) bool { return e.Number == unix.SYS_EXECVE && e.Strings[0] == "/nowhere/at/all" })[0]
	if e.Return != -int64(unix.ENOENT) {
		t.Errorf("failed execve: %s", show(&e))
	}
	for _, e := range r.of(func(e *Event) bool { return e.Refused }) {
		t.Errorf("refused: %s", show(&e))
	}
}

func TestExit(t *testing.T) {
	r := start(t, nil)
	cmd := r.command(t, "exit")
	err := cmd.Run()
	if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.ExitCode() != 42 {
		t.Fatal(err)
	}
	e := r.one(t, unix.SYS_EXIT_GROUP, 42)
	if !e.Unfinished || e.Returned || e.Return != 0 {
		t.Errorf("exit_group: %s", show(e))
	}
	if c := r.summary(t)[Kind{abis()[0], unix.SYS_EXIT_GROUP}]; c.Calls != 1 || c.Errors != 0 {
		t.Errorf("counted: %+v", c)
	}
}

func TestThreads(t *testing.T) {
	r := start(t, nil)
	r.run(t, "threads")
	mine := func(e *Event) bool {
		return e.Number == unix.SYS_CLOSE && e.Args[0] >= 0x7f000000 && e.Args[0] < 0x7f000000+5000
	}
	seen, tids := map[uint64]bool{}, map[uint32]bool{}
	for _, e := range r.wait(t, 1000, mine) {
		seen[e.Args[0]], tids[e.TID] = true, true
		if e.Return != -int64(unix.EBADF) || e.PID == e.TID && len(tids) == 0 {
			t.Errorf("%s", show(&e))
		}
	}
	if len(seen) != 1000 || len(tids) != 50 {
		t.Errorf("%d calls of %d threads, want 1000 of 50", len(seen), len(tids))
	}
	kept := func() (n int) {
		var key uint64
		var value bpfThread
		for it := r.Core.Maps[bpfMapSyscallThreads].Iterate(); it.Next(&key, &value); {
			n++
		}
		return n
	}
	for deadline := time.Now().Add(10 * time.Second); kept() > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := kept(); n > 0 {
		t.Errorf("%d threads are kept that have ended", n)
	}
}

// A handler's return takes other registers with it; it is no error and no refusal.
func TestSignal(t *testing.T) {
	r := start(t, nil)
	r.run(t, "signal")
	all := r.of(func(e *Event) bool { return e.Number == unix.SYS_RT_SIGRETURN })
	for deadline := time.Now().Add(10 * time.Second); len(all) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		all = r.of(func(e *Event) bool { return e.Number == unix.SYS_RT_SIGRETURN })
	}
	if len(all) == 0 {
		t.Fatal("no rt_sigreturn")
	}
	for _, e := range all {
		if e.Returned || e.Unfinished || e.Refused {
			t.Errorf("%s", show(&e))
		}
	}
	if c := r.summary(t)[Kind{abis()[0], unix.SYS_RT_SIGRETURN}]; c.Errors != 0 || c.Calls == 0 {
		t.Errorf("counted: %+v", c)
	}
}

func TestRefused(t *testing.T) {
	r := start(t, nil)
	if out := r.run(t, "seccomp"); out != strconv.Itoa(-int(unix.EACCES)) {
		t.Fatalf("the filter answers %s", out)
	}
	e := r.one(t, unix.SYS_FSYNC, 0x7ffffff1)
	if !e.Refused || !e.Returned || e.Return != -int64(unix.EACCES) || e.Args[2] != 3 || e.Latency != 0 {
		t.Errorf("%s", show(e))
	}
	if c := r.summary(t)[Kind{abis()[0], unix.SYS_FSYNC}]; c.Calls != 2 || c.Errors != 2 {
		t.Errorf("counted: %+v", c)
	}
	if e := r.one(t, unix.SYS_FSYNC, 1); !e.Refused || !strings.HasPrefix(e.Files[0], "pipe:[") {
		t.Errorf("of a file: %s", show(e))
	}
	r.mu.Lock()
	r.events = nil
	r.mu.Unlock()
	cmd := r.command(t, "trap")
	cmd.Stderr = nil // the trace of a process that dies
	if err := cmd.Run(); err == nil {
		t.Fatal("the filter did not end the process")
	}
	e = r.one(t, unix.SYS_FSYNC, 0x7ffffff1)
	if !e.Refused || e.Returned {
		t.Errorf("by a signal: %s", show(e))
	}
	for _, e := range r.of(func(e *Event) bool { return e.Refused && e.Number != unix.SYS_FSYNC }) {
		t.Errorf("refused: %s", show(&e))
	}
	probetest.Works(t, "syscall refusals")
}

// A call that had begun before the trace is not taken for one that was refused.
func TestBegunBefore(t *testing.T) {
	r := start(t, nil)
	if err := r.selection.Remove(r.cgroup); err != nil {
		t.Fatal(err)
	}
	cmd, _, tell := r.background(t, "wait", "errno")
	if err := r.selection.Add(r.cgroup, testBit); err != nil {
		t.Fatal(err)
	}
	tell()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	r.one(t, unix.SYS_CLOSE, 0x7ffffff1)
	for _, e := range r.of(func(e *Event) bool { return e.Refused }) {
		t.Errorf("refused: %s", show(&e))
	}
}

// Nothing is told of a cgroup that is not selected, or selected for somebody else.
func TestNotSelected(t *testing.T) {
	r := start(t, nil)
	for _, bit := range []int{-1, testBit + 1} {
		if err := r.selection.Remove(r.cgroup); err != nil {
			t.Fatal(err)
		}
		if bit >= 0 {
			if err := r.selection.Add(r.cgroup, uint(bit)); err != nil {
				t.Fatal(err)
			}
		}
		r.run(t, "many", "10")
	}
	if err := r.selection.Add(r.cgroup, testBit); err != nil {
		t.Fatal(err)
	}
	r.run(t, "errno")
	r.wait(t, 1, call(unix.SYS_CLOSE, 0x7ffffff1)) // not the ones before
	if n := r.summary(t)[Kind{abis()[0], unix.SYS_CLOSE}]; n.Errors != 1 {
		t.Errorf("counted: %+v", n)
	}
}

// What is kept of a cgroup is gone once it is forgotten, and a call that began before is
// not taken for one that begins later.
func TestForget(t *testing.T) {
	r := start(t, nil)
	cmd, _, tell := r.background(t, "wait", "errno")
	waiting := func(e *Event) bool {
		return e.PID == uint32(cmd.Process.Pid) && e.Number == unix.SYS_READ && e.Args[0] == 0
	}
	for deadline := time.Now().Add(10 * time.Second); len(r.of(waiting)) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err := r.Flush(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.selection.Remove(r.cgroup); err != nil {
		t.Fatal(err)
	}
	before := len(r.wait(t, len(r.of(waiting)), waiting))
	if err := r.Forget(r.cgroup); err != nil {
		t.Fatal(err)
	}
	if n := r.summary(t); len(n) != 0 {
		t.Errorf("counts of a cgroup that was forgotten: %v", n)
	}
	if err := r.selection.Add(r.cgroup, testBit); err != nil {
		t.Fatal(err)
	}
	tell()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	r.one(t, unix.SYS_CLOSE, 0x7ffffff1)
	if n := len(r.of(waiting)); n != before {
		t.Errorf("a call of which the begin was forgotten was told of")
	}
}

// What this process does is left alone.
func TestSelf(t *testing.T) {
	r := start(t, nil)
	procs, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var own string
	for line := range strings.Lines(string(procs)) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			own = filepath.Join(probetest.CgroupRoot(t), strings.TrimSpace(p))
		}
	}
	if own == "" {
		t.Skip("SKIP: this process is in no cgroup of cgroup2")
	}
	if err := r.selection.Add(probetest.CgroupID(t, own), testBit); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		_ = unix.Close(0x7ffffff1)
	}
	r.run(t, "errno")
	r.one(t, unix.SYS_CLOSE, 0x7ffffff1)
}

func TestTell(t *testing.T) {
	r := start(t, nil)
	if err := r.Tell(0, Wanted{PerSecond: 1 << 30, Calls: []Kind{{abis()[0], unix.SYS_CLOSE}}, ErrorsOnly: true, Count: true}); err != nil {
		t.Fatal(err)
	}
	r.run(t, "open", "/dev/null")
	r.run(t, "errno")
	r.one(t, unix.SYS_CLOSE, 0x7ffffff1)
	r.background(t, "wait") // what goes on is no error
	r.stop(t)
	for _, e := range r.of(nil) {
		if e.Number != unix.SYS_CLOSE || e.Return >= 0 {
			t.Errorf("%s", show(&e))
		}
	}
	if c := r.summary(t)[Kind{abis()[0], unix.SYS_OPENAT}]; c.Calls == 0 {
		t.Error("what is not told of was not counted")
	}
	if err := r.Tell(0, Wanted{Calls: []Kind{{abis()[0], 512}}}); err == nil {
		t.Error("a number that is too large was taken")
	}
}

// More calls than the limit are counted as lost, and counted in the summary.
func TestLimit(t *testing.T) {
	r := start(t, nil)
	if err := r.Tell(0, Wanted{PerSecond: 10, Calls: []Kind{{abis()[0], unix.SYS_CLOSE}}, ErrorsOnly: true, Count: true}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r.run(t, "many", "5000")
	seconds := int(time.Since(begin)/time.Second) + 2
	r.stop(t)
	c := r.summary(t)[Kind{abis()[0], unix.SYS_CLOSE}]
	told := len(r.of(nil))
	if told == 0 || told > 20*seconds {
		t.Errorf("%d told of in %d seconds with a limit of 10", told, seconds)
	}
	if c.Errors != 5000 || uint64(told)+r.losses.Get(loss.SyscallLimited) != 5000 {
		t.Errorf("%d told of, %d beyond the limit, counted: %+v; want 5000", told, r.losses.Get(loss.SyscallLimited), c)
	}
}

func TestRingFull(t *testing.T) {
	r := load(t, func(c *Config) { c.RingBytes = uint32(os.Getpagesize()) })
	if err := r.Tell(0, Wanted{PerSecond: 1 << 30, Calls: []Kind{{abis()[0], unix.SYS_CLOSE}}, ErrorsOnly: true, Count: true}); err != nil {
		t.Fatal(err)
	}
	r.run(t, "many", "1000") // nobody reads
	if err := r.Collect(); err != nil {
		t.Fatal(err)
	}
	lost := r.losses.Get(loss.SyscallRingFull)
	if lost == 0 || lost >= 1000 {
		t.Errorf("%d of 1000 counted as lost", lost)
	}
	if err := r.ring.Settle(); err != nil {
		t.Fatal(err)
	}
	if told := uint64(len(r.of(nil))); told+lost != 1000 {
		t.Errorf("%d told of, %d lost, want 1000", told, lost)
	}
}

func TestThreadsFull(t *testing.T) {
	r := start(t, func(c *Config) { c.Threads = 1 })
	r.run(t, "threads")
	if err := r.Collect(); err != nil {
		t.Fatal(err)
	}
	if r.losses.Get(loss.SyscallPendingFull) == 0 {
		t.Error("calls of more threads than there is room for were not counted as lost")
	}
}

func TestKindsFull(t *testing.T) {
	r := start(t, func(c *Config) { c.Kinds = 2 })
	r.run(t, "many", "10")
	if err := r.Collect(); err != nil {
		t.Fatal(err)
	}
	all, err := r.Summary()
	if err != nil {
		t.Fatal(err)
	}
	uncounted := r.Lost(0).Uncounted
	if len(all) != 2 || uncounted == 0 || r.losses.Get(loss.SyscallUncounted) != uncounted {
		t.Errorf("%d kinds, %d calls not counted, %d lost", len(all), uncounted, r.losses.Get(loss.SyscallUncounted))
	}
}

// What is told of is what is counted.
func TestSummary(t *testing.T) {
	r := start(t, nil)
	r.run(t, "threads")
	r.run(t, "files", t.TempDir())
	r.run(t, "signal")
	r.stop(t)
	type tally struct{ calls, errors uint64 }
	told := map[Kind]tally{}
	var latency = map[Kind]time.Duration{}
	for _, e := range r.of(nil) {
		k := Kind{e.ABI, e.Number}
		n := told[k]
		n.calls++
		if e.Returned && e.Return < 0 && e.Return >= -4095 {
			n.errors++
		}
		told[k] = n
		latency[k] += e.Latency
	}
	counted := r.summary(t)
	if len(counted) != len(told) {
		t.Errorf("%d kinds counted, %d told of", len(counted), len(told))
	}
	for k, c := range counted {
		if got := (tally{c.Calls, c.Errors}); got != told[k] || c.Time != latency[k] || c.Max > c.Time {
			t.Errorf("%v: counted %+v, told of %+v in %v", k, c, told[k], latency[k])
		}
	}
	for _, s := range loss.Stages() {
		if n := r.losses.Get(s); n != 0 {
			t.Errorf("%d lost: %v", n, s)
		}
	}
	if !t.Failed() {
		t.Log("orb8-feature: syscall counts: works")
	}
}

// After Close nothing is there any more, and the probe can be started again.
func TestClose(t *testing.T) {
	before := openFiles(t)
	r := load(t, nil)
	if hooks := strings.Join(r.Hooks(), " "); hooks != "tp_btf/cgroup_attach_task tp_btf/sched_process_exit tp_btf/sys_exit tp_btf/sys_enter" {
		t.Errorf("hooks %s", hooks)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.selection.Close(); err != nil {
		t.Fatal(err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
	if err := r.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
