// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/exec"
	"github.com/Ignoramuss/orb8/internal/probe/packet"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/probe/syscall"
	"github.com/Ignoramuss/orb8/internal/probe/tcp"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const lifecycleEnv = "ORB8_LIFECYCLE_TEST_CHILD"

// newProbes returns a manager with the real probes.
func newProbes(t *testing.T) *probe.Manager {
	t.Helper()
	probetest.NeedRoot(t)
	mount, err := workload.FindCgroupMount("/proc", "")
	if err != nil {
		t.Logf("no cgroup2 hierarchy: %v", err) // the packet probe then stays off
	}
	m := probe.NewManager(slog.New(slog.DiscardHandler))
	losses, clock := new(loss.Counters), probe.NewClock()
	apply := func(*flow.Sample) {}
	m.Add(tcp.New(tcp.Config{Apply: apply, Losses: losses, Clock: clock, CgroupRoot: probetest.CgroupRoot(t)}))
	m.Add(packet.New(packet.Config{
		Apply: apply, Losses: losses, Clock: clock, CgroupRoot: mount.Path,
		CountTCP: func() bool { return !m.Running("tcp") },
	}))
	m.Add(exec.New(exec.Config{Apply: func(*process.Event) {}, Losses: losses, Clock: clock}))
	// Where the kernel has no selection the probe has an empty one of its own.
	m.Add(syscall.New(syscall.Config{Apply: func(*syscall.Event) {}, Losses: losses, Clock: clock}))
	return m
}

// startProbes starts m or, where the kernel takes none of its probes, skips.
func startProbes(t *testing.T, m *probe.Manager) {
	t.Helper()
	err := m.Start()
	if _, ok := errors.AsType[*probe.Unsupported](err); ok {
		t.Skipf("no probe runs here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// objects are what a process holds in the kernel, by id: programs, maps, links.
type objects struct {
	programs map[ebpf.ProgramID]bool
	maps     map[ebpf.MapID]bool
	links    map[link.ID]bool
}

// heldBy reads the objects from the process's open files. Looking for names
// instead would take those of other orb8 processes for its own.
func heldBy(t *testing.T, pid int) objects {
	t.Helper()
	o := objects{make(map[ebpf.ProgramID]bool), make(map[ebpf.MapID]bool), make(map[link.ID]bool)}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if err != nil {
				continue
			}
			switch key {
			case "prog_id":
				o.programs[ebpf.ProgramID(id)] = true
			case "map_id":
				o.maps[ebpf.MapID(id)] = true
			case "link_id":
				o.links[link.ID(id)] = true
			}
		}
	}
	return o
}

// alive returns those of o that are in the kernel.
func (o objects) alive(t *testing.T) objects {
	t.Helper()
	now := objects{make(map[ebpf.ProgramID]bool), make(map[ebpf.MapID]bool), make(map[link.ID]bool)}
	walk(t, ebpf.ProgramGetNextID, func(id ebpf.ProgramID) { now.programs[id] = o.programs[id] })
	walk(t, ebpf.MapGetNextID, func(id ebpf.MapID) { now.maps[id] = o.maps[id] })
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		now.links[it.ID] = o.links[it.ID]
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(now.programs, func(_ ebpf.ProgramID, ours bool) bool { return !ours })
	maps.DeleteFunc(now.maps, func(_ ebpf.MapID, ours bool) bool { return !ours })
	maps.DeleteFunc(now.links, func(_ link.ID, ours bool) bool { return !ours })
	return now
}

// walk calls see with every id that next knows.
func walk[ID ~uint32](t *testing.T, next func(ID) (ID, error), see func(ID)) {
	t.Helper()
	for id := ID(0); ; see(id) {
		var err error
		if id, err = next(id); errors.Is(err, os.ErrNotExist) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func (o objects) count() int { return len(o.programs) + len(o.maps) + len(o.links) }

func (o objects) String() string {
	return fmt.Sprintf("%d programs, %d maps, %d links", len(o.programs), len(o.maps), len(o.links))
}

// wantGone waits for the kernel to have freed all: it does so a little later.
func wantGone(t *testing.T, o objects) {
	t.Helper()
	left := o
	for range 100 {
		if left = o.alive(t); left.count() == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("left in the kernel: %v: %+v", left, left)
}

func TestNothingStaysAttached(t *testing.T) {
	if os.Getenv(lifecycleEnv) != "" {
		runUntilTold(t)
		return
	}
	for _, how := range []string{"exit", "SIGKILL"} {
		t.Run(how, func(t *testing.T) {
			startProbesOnce(t)
			cmd := probetest.Command(t, "/proc/self/exe", "-test.run=^TestNothingStaysAttached$")
			cmd.Env = append(os.Environ(), lifecycleEnv+"=1")
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := out.(*os.File).SetReadDeadline(time.Now().Add(testwait.Limit)); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil || line != "running\n" {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				t.Fatalf("child says %q: %v", line, err)
			}
			held := heldBy(t, cmd.Process.Pid)
			if alive := held.alive(t); len(held.programs) == 0 || len(held.maps) == 0 || len(held.links) == 0 || alive.count() != held.count() {
				t.Errorf("child holds %v, the kernel has %v of them: the end of its probes cannot be seen", held, alive)
			}
			t.Logf("child holds %v", held)
			if how == "exit" {
				_ = in.Close()
			} else if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); (err == nil) != (how == "exit") {
				t.Errorf("child ended with %v", err)
			}
			wantGone(t, held)
			if !t.Failed() {
				t.Logf("orb8-feature: nothing stays attached after %s: works", how)
			}
		})
	}
}

// startProbesOnce skips the test where no probe runs.
func startProbesOnce(t *testing.T) {
	t.Helper()
	m := newProbes(t)
	startProbes(t, m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// runUntilTold is the child: it runs the probes until its input ends.
func runUntilTold(t *testing.T) {
	m := newProbes(t)
	startProbes(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.Collect()
	fmt.Println("running")
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	if err := errors.Join(testwait.Receive(t, "the end of Run", done), m.Close()); err != nil {
		t.Error(err)
	}
}

// cycle starts the probes, uses them and closes them.
func cycle(t *testing.T) {
	t.Helper()
	m := newProbes(t)
	startProbes(t, m)
	useTCP(t, 200) // so that rings have something when both begin to read them
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.Collect()
	m.Collect()
	cancel()
	if err := errors.Join(testwait.Receive(t, "the end of Run", done), m.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	for _, s := range m.Status() {
		if m.Running(s.Name) {
			t.Errorf("%s runs after Close", s.Name)
		}
	}
}

// useTCP makes n connections to a listener of its own.
func useTCP(t *testing.T, n int) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range n {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Close(), s.Close()
	}
}

func openFiles(t *testing.T) []string {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			all = append(all, to)
		}
	}
	slices.Sort(all)
	return all
}

func TestNothingLeaks(t *testing.T) {
	cycle(t) // what is opened once and kept: the poller, the kernel's BTF
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	cycles := 5
	if testing.Short() {
		cycles = 2
	}
	for range cycles {
		cycle(t)
	}
	if now := openFiles(t); len(now) > len(files) {
		t.Errorf("open files before %q, after %d cycles %q", files, cycles, now)
	}
	for range 50 {
		if runtime.NumGoroutine() <= goroutines {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > goroutines {
		t.Errorf("%d goroutines before, %d after %d cycles", goroutines, now, cycles)
	}
}

// A program that is no more referenced than by its link must stay attached.
func TestStaysAttachedThroughGarbageCollection(t *testing.T) {
	m := newProbes(t)
	startProbes(t, m)
	defer m.Close()
	held := heldBy(t, os.Getpid())
	for range 3 {
		runtime.GC()
	}
	time.Sleep(50 * time.Millisecond)
	if alive := held.alive(t); len(held.links) == 0 || alive.count() != held.count() {
		t.Errorf("%v held, %v after garbage collection", held, alive)
	}
}
