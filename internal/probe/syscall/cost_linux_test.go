// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"flag"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

var cost = flag.Bool("cost", false, "measure what calls cost while others are traced")

const (
	costRounds = 400  // of a block each with and without
	costCalls  = 3000 // in a block
)

// TestCost measures what the calls of a process that is not traced cost while another
// is, when asked: go test ./internal/probe/syscall -run TestCost -cost -v
func TestCost(t *testing.T) {
	if !*cost {
		t.Skip("only with -cost")
	}
	r := start(t, func(c *Config) { c.Apply = func(*Event) {} })
	if err := r.detach(); err != nil {
		t.Fatal(err)
	}
	zero, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(zero)
	buf := make([]byte, 8)
	attached := func(f func() error) func() {
		return func() {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, call := range []struct {
		name string
		nr   uintptr
		args [3]uintptr
	}{
		{"getpid", unix.SYS_GETPID, [3]uintptr{}},
		{"read", unix.SYS_READ, [3]uintptr{uintptr(zero), uintptr(unsafe.Pointer(&buf[0])), 1}},
	} {
		off, on := paired(attached(r.attach), attached(r.detach), call.nr, call.args)
		t.Logf("%s: %.0f ns, with the trace of another cgroup %.0f ns, %+.0f ns", call.name, off, on, on-off)
		if bare := emptyPrograms(t); bare != nil {
			off, on := paired(bare.attach, bare.detach, call.nr, call.args)
			t.Logf("%s: %.0f ns, with programs that do nothing %.0f ns, %+.0f ns", call.name, off, on, on-off)
		}
	}
	runtime.KeepAlive(buf)
	if err := r.attach(); err != nil {
		t.Fatal(err)
	}
	for _, w := range []struct {
		what   string
		wanted Wanted
	}{
		{"counted", Wanted{Count: true}},
		{"told of", Wanted{PerSecond: 1 << 30}},
	} {
		if err := r.Tell(0, w.wanted); err != nil {
			t.Fatal(err)
		}
		said := r.run(t, "cost")
		if err := r.Collect(); err != nil {
			t.Fatal(err)
		}
		t.Logf("a process that is traced, calls are %s: %s(%d read, %d lost)", w.what, said, r.Received(), r.losses.Dropped())
	}
}

// ownCost says what calls of this process cost.
func ownCost([]string) error {
	name, err := unix.BytePtrFromString("/nowhere/at/all")
	if err != nil {
		return err
	}
	at := unix.AT_FDCWD
	for _, call := range []struct {
		name string
		nr   uintptr
		args [3]uintptr
	}{
		{"getpid", unix.SYS_GETPID, [3]uintptr{}},
		{"openat", unix.SYS_OPENAT, [3]uintptr{uintptr(at), uintptr(unsafe.Pointer(name)), 0}},
		{"fsync", unix.SYS_FSYNC, [3]uintptr{1}},
	} {
		var all []float64
		for range 100 {
			all = append(all, oneBlock(call.nr, call.args))
		}
		slices.Sort(all)
		fmt.Printf("%s %.0f ns ", call.name, all[len(all)/4])
	}
	return nil
}

// paired measures short blocks of calls in turn without and with something attached and
// returns the 25th percentile of each, in nanoseconds of the thread's time per call.
func paired(attach, detach func(), nr uintptr, args [3]uintptr) (off, on float64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var offs, ons []float64
	for range costRounds / 20 {
		for range 20 {
			offs = append(offs, oneBlock(nr, args))
		}
		attach()
		for range 20 {
			ons = append(ons, oneBlock(nr, args))
		}
		detach()
	}
	slices.Sort(offs)
	slices.Sort(ons)
	return offs[len(offs)/4], ons[len(ons)/4]
}

func oneBlock(nr uintptr, args [3]uintptr) float64 {
	begin := threadTime()
	for range costCalls {
		_, _, _ = unix.RawSyscall(nr, args[0], args[1], args[2])
	}
	return float64(threadTime()-begin) / costCalls
}

func threadTime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return ts.Nano()
}

// bare are programs on the same hooks that do nothing.
type bare struct {
	attach, detach func()
}

func emptyPrograms(t *testing.T) *bare {
	t.Helper()
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bpfProgSyscallEnter, bpfProgSyscallExit} {
		p := spec.Programs[name]
		p.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol(name), asm.Return()}
	}
	delete(spec.Programs, bpfProgSyscallThreadEnd)
	delete(spec.Programs, bpfProgSyscallSelf)
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Logf("programs that do nothing: %v", err)
		return nil
	}
	t.Cleanup(coll.Close)
	var links []link.Link
	return &bare{
		attach: func() {
			for _, name := range []string{bpfProgSyscallExit, bpfProgSyscallEnter} {
				l, err := link.AttachTracing(link.TracingOptions{Program: coll.Programs[name]})
				if err != nil {
					t.Fatal(err)
				}
				links = append(links, l)
			}
		},
		detach: func() {
			for _, l := range links {
				_ = l.Close()
			}
			links = nil
		},
	}
}
