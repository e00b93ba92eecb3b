// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// second is a cgroup that trace 1 has selected, and what it is told of.
func (r *rig) second(t *testing.T, w Wanted) (dir string, id uint64) {
	t.Helper()
	dir, id = probetest.NewCgroup(t)
	if err := r.selection.Add(id, testBit+1); err != nil {
		t.Fatal(err)
	}
	if err := r.Tell(1, w); err != nil {
		t.Fatal(err)
	}
	return dir, id
}

// toldOf matches what a trace is told of.
func toldOf(trace uint) func(*Event) bool {
	return func(e *Event) bool { return e.Traces>>trace&1 != 0 }
}

// Each trace has its own limit: what a noisy one has lost is no other's loss.
func TestTracesApart(t *testing.T) {
	r := start(t, nil)
	closes := []Kind{{abis()[0], unix.SYS_CLOSE}}
	if err := r.Tell(0, Wanted{PerSecond: 10, Calls: closes, ErrorsOnly: true}); err != nil {
		t.Fatal(err)
	}
	quiet, id := r.second(t, Wanted{PerSecond: 100_000, Calls: []Kind{{abis()[0], unix.SYS_FSYNC}, {abis()[0], unix.SYS_CLOSE}}, ErrorsOnly: true})
	r.run(t, "many", "5000")
	cmd := r.command(t, "many", "300")
	probetest.InCgroup(t, cmd, quiet)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	r.stop(t)
	if err := r.readStats(); err != nil {
		t.Fatal(err)
	}
	first, second := r.of(toldOf(0)), r.of(toldOf(1))
	if len(second) != 300 || r.Lost(1) != (Lost{}) {
		t.Errorf("the quiet one is told of %d calls and has lost %+v, want 300", len(second), r.Lost(1))
	}
	if n := r.Lost(0).Limited; n == 0 || n+uint64(len(first)) != 5000 || r.losses.Get(loss.SyscallLimited) != n {
		t.Errorf("the noisy one is told of %d calls and has lost %d, want 5000 together; %d lost in all", len(first), n, r.losses.Get(loss.SyscallLimited))
	}
	for _, e := range r.of(nil) {
		if e.Traces != 1 && e.CgroupID != id || e.Traces != 2 && e.CgroupID == id {
			t.Errorf("told to %b: %s", e.Traces, show(&e))
		}
	}
}

// Two traces of the same cgroup each have what they ask for, and a count is one for both.
func TestTracesTogether(t *testing.T) {
	r := start(t, nil)
	if err := r.selection.Add(r.cgroup, testBit+MaxTraces-1); err != nil {
		t.Fatal(err)
	}
	if err := r.Tell(MaxTraces-1, Wanted{PerSecond: 1000, Calls: []Kind{{abis()[0], unix.SYS_CLOSE}}, Count: true}); err != nil {
		t.Fatal(err)
	}
	r.run(t, "errno")
	e := r.wait(t, 1, call(unix.SYS_CLOSE, 0x7ffffff1))[0]
	if e.Traces != 1|1<<(MaxTraces-1) {
		t.Errorf("told to %b", e.Traces)
	}
	if c := r.summary(t)[Kind{abis()[0], unix.SYS_CLOSE}]; c.Errors != 1 {
		t.Errorf("counted: %+v", c)
	}
	for _, e := range r.of(toldOf(MaxTraces - 1)) {
		if e.Number != unix.SYS_CLOSE {
			t.Errorf("told to %b: %s", e.Traces, show(&e))
		}
	}
}

// Calls that are named in vain are none, refused ones come whatever they are, and a
// flood of others takes nothing away from them.
func TestRefusedOnly(t *testing.T) {
	r := start(t, nil)
	if err := r.Tell(0, Wanted{PerSecond: 10, Calls: []Kind{}, Refused: true}); err != nil {
		t.Fatal(err)
	}
	_, _, end := r.background(t, "flood")
	r.run(t, "seccomp")
	r.one(t, unix.SYS_FSYNC, 0x7ffffff1)
	end()
	r.stop(t)
	if all := r.of(nil); len(all) != 2 || !all[0].Refused || !all[1].Refused {
		t.Errorf("told of:\n%s", list(all))
	}
	if all, err := r.Summary(); err != nil || len(all) != 0 {
		t.Errorf("counted though nobody asked: %v, %v", all, err)
	}
}

// What is asked for by name comes beside a flood of other calls.
func TestNamedInFlood(t *testing.T) {
	r := start(t, nil)
	if err := r.Tell(0, Wanted{PerSecond: 100, Calls: []Kind{{abis()[0], unix.SYS_CHROOT}}}); err != nil {
		t.Fatal(err)
	}
	r.background(t, "flood")
	r.run(t, "chroots", "20")
	r.wait(t, 20, func(e *Event) bool { return e.Number == unix.SYS_CHROOT && e.Strings[0] == "/nowhere/at/all" })
	r.stop(t)
	if n := len(r.of(nil)); n != 20 || r.losses.Dropped() != 0 {
		t.Errorf("%d calls told of, %d lost, want 20 and 0", n, r.losses.Dropped())
	}
}

// The end of the trace refuses nothing.
func TestEndOfFlood(t *testing.T) {
	r := start(t, nil)
	if err := r.Tell(0, Wanted{PerSecond: 1000, Calls: []Kind{}, Refused: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 * runtime.NumCPU() {
		r.background(t, "flood")
	}
	time.Sleep(100 * time.Millisecond)
	r.stop(t)
	if all := r.of(func(e *Event) bool { return e.Refused }); len(all) != 0 {
		t.Errorf("refused:\n%s", list(all))
	}
}

func TestOpenHow(t *testing.T) {
	r := start(t, nil)
	r.run(t, "openat2")
	want := syscalls.OpenHow{Given: true, Flags: unix.O_CREAT | unix.O_EXCL | unix.O_RDWR, Mode: 0o640, Resolve: unix.RESOLVE_BENEATH}
	for i, want := range []syscalls.OpenHow{want, {Given: true, Flags: want.Flags}, {}} {
		if e := r.one(t, unix.SYS_OPENAT2, 0x7ffffff1+uint64(i)); e.How != want || e.Strings[1] != "none" {
			t.Errorf("want %+v: %s", want, show(e))
		}
	}
}

// reader is a child that reads byte by byte.
type reader struct {
	t    *testing.T
	r    *rig
	pid  int
	out  *bufio.Reader
	in   *os.File
	wait func() error
}

func (r *rig) reader(t *testing.T) *reader {
	t.Helper()
	cmd := r.command(t, "bytes")
	in, fd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = in
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	c := &reader{t, r, cmd.Process.Pid, bufio.NewReader(out), fd, cmd.Wait}
	t.Cleanup(func() { _ = fd.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c.ready()
	return c
}

// ready waits until it is about to read, and a little until it does.
func (c *reader) ready() {
	c.t.Helper()
	if _, err := c.out.ReadString('\n'); err != nil {
		c.t.Fatal(err)
	}
	for range 1000 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", c.pid))
		if err == nil && len(b) > 4 && string(b[:4]) == "0 0x" {
			return
		}
		time.Sleep(time.Millisecond)
	}
	c.t.Fatal("it does not read")
}

func (c *reader) next() {
	c.t.Helper()
	if _, err := c.in.Write([]byte{1}); err != nil {
		c.t.Fatal(err)
	}
	c.ready()
}

func (c *reader) move(dir string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(c.pid)), 0); err != nil {
		c.t.Fatal(err)
	}
}

// reads are those that were told of.
func (c *reader) reads() []Event {
	c.t.Helper()
	if err := c.r.Collect(); err != nil {
		c.t.Fatal(err)
	}
	return c.r.of(func(e *Event) bool { return int(e.PID) == c.pid && e.Number == unix.SYS_READ && e.Args[0] == 0 })
}

// A call in which a process comes back is not the one in which it left.
func TestMovedAway(t *testing.T) {
	r := start(t, nil)
	other, _ := probetest.NewCgroup(t)
	c := r.reader(t)
	c.move(other)
	c.next() // ends what began in the selected cgroup, unseen
	if err := r.Flush(0); err != nil {
		t.Fatal(err)
	}
	c.move(r.dir)
	time.Sleep(50 * time.Millisecond)
	c.next()
	if all := c.reads(); len(all) != 0 {
		t.Errorf("told of calls that began or ended elsewhere:\n%s", list(all))
	}
	c.next()
	if all := c.reads(); len(all) != 1 || all[0].Refused || all[0].Latency > 40*time.Millisecond {
		t.Errorf("after it has come back:\n%s", list(all))
	}
	c.move(other)
	_ = c.in.Close()
	if err := c.wait(); err != nil {
		t.Fatal(err)
	}
	if all := c.reads(); len(all) != 1 {
		t.Errorf("it has ended elsewhere:\n%s", list(all))
	}
}

// A call that is killed elsewhere than where it began is not told of.
func TestKilledElsewhere(t *testing.T) {
	r := start(t, nil)
	other, _ := probetest.NewCgroup(t)
	c := r.reader(t)
	c.move(other)
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = c.wait()
	if all := c.reads(); len(all) != 0 {
		t.Errorf("told of:\n%s", list(all))
	}
}

// What one trace is told of as going on is nothing to another.
func TestFlushOne(t *testing.T) {
	r := start(t, nil)
	if err := r.selection.Add(r.cgroup, testBit+1); err != nil {
		t.Fatal(err)
	}
	if err := r.Tell(1, Wanted{PerSecond: 1000}); err != nil {
		t.Fatal(err)
	}
	c := r.reader(t)
	if err := r.Flush(1); err != nil {
		t.Fatal(err)
	}
	if all := c.reads(); len(all) != 1 || all[0].Traces != 2 || !all[0].Unfinished {
		t.Errorf("flushed:\n%s", list(all))
	}
	if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = c.wait()
	if all := c.reads(); len(all) != 2 || all[1].Traces != 3 {
		t.Errorf("killed:\n%s", list(all))
	}
}

// Of a call that had begun before its cgroup was selected nothing is kept either, so that
// the next one is not taken for refused.
func TestForgetUnknownCall(t *testing.T) {
	r := start(t, nil)
	if err := r.selection.Drop(r.cgroup, testBit); err != nil {
		t.Fatal(err)
	}
	_, _, tell := r.background(t, "computes")
	time.Sleep(50 * time.Millisecond) // it reads
	if err := r.selection.Add(r.cgroup, testBit); err != nil {
		t.Fatal(err)
	}
	tell()
	time.Sleep(100 * time.Millisecond)
	if had, err := r.selection.Clear(testBit); err != nil || len(had) != 1 {
		t.Fatalf("selected were %v, %v", had, err)
	}
	kept := func() (n int) {
		t.Helper()
		if err := r.eachThread(func(*ebpf.Map, uint64, *bpfThread) { n++ }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := kept()
	if err := r.Forget(r.cgroup); err != nil {
		t.Fatal(err)
	}
	if n := kept(); before == 0 || n != 0 {
		t.Errorf("of %d threads %d are kept", before, n)
	}
}

// What a trace was told of is not off the limit of the next one with its number.
func TestBudgetBeginsAnew(t *testing.T) {
	r := start(t, nil)
	if err := r.Tell(0, Wanted{PerSecond: 10}); err != nil {
		t.Fatal(err)
	}
	r.run(t, "many", "100")
	told := func() uint64 {
		t.Helper()
		var b bpfTraceBudget
		if err := r.Core.Maps[bpfMapSyscallBudgets].Lookup(uint32(0), &b); err != nil {
			t.Fatal(err)
		}
		return b.Told
	}
	if told() == 0 {
		t.Fatal("told of nothing")
	}
	if err := r.Tell(0, Wanted{PerSecond: 20}); err != nil {
		t.Fatal(err)
	}
	if told() == 0 {
		t.Error("one that changes its wishes begins anew")
	}
	for _, w := range []Wanted{{}, {PerSecond: 10}} {
		if err := r.Tell(0, w); err != nil {
			t.Fatal(err)
		}
	}
	if n := told(); n != 0 {
		t.Errorf("%d calls are off the limit of another trace", n)
	}
}

// What the kernel has not shown is nobody's in particular, and none of the calls for which
// there was no room.
func TestMissed(t *testing.T) {
	r := start(t, nil)
	r.Probe.mu.Lock()
	r.missed = 7
	r.Probe.mu.Unlock()
	for _, trace := range []uint{0, 3} {
		if l := r.Lost(trace); l != (Lost{Missed: 7}) {
			t.Errorf("trace %d has lost %+v", trace, l)
		}
	}
}

// Counts of cgroups that have ended make room for others.
func TestForgetCounts(t *testing.T) {
	r := start(t, nil)
	r.run(t, "errno")
	r.summary(t)
	if err := r.ForgetCounts(r.cgroup); err != nil {
		t.Fatal(err)
	}
	if n := len(r.summary(t)); n != 0 {
		t.Errorf("%d kinds are left", n)
	}
}

func TestKindsFor(t *testing.T) {
	var all []uint32
	for _, cpus := range []int{1, 2, 64, 512} {
		all = append(all, kindsFor(cpus))
	}
	if want := []uint32{32768, 32768, 1820, 1024}; !slices.Equal(all, want) {
		t.Errorf("kinds by CPUs %v, want %v", all, want)
	}
}
