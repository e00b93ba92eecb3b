// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
)

// TestSeen: a process that is older than the probe is told of with all that is known
// of one that starts.
func TestSeen(t *testing.T) {
	dir, id := probetest.NewCgroup(t)
	cmd := again(t, dir, "wait")
	cmd.Args = []string{"a name", "an argument", ""}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := start(t, nil)
	seen := r.wait(t, 1, id)[0]
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &seen.Process
	if seen.What != process.Seen || !p.Seeded || int(p.PID) != cmd.Process.Pid || p.Parent.PID != uint32(os.Getpid()) ||
		p.Exe.Path != self || p.Exe.Changed != changed(t, self) || p.Execed != 0 || p.CgroupID != id || p.UserNS == 0 {
		t.Errorf("%+v", p)
	}
	if d := cmp.Diff(cmd.Args, p.Args); d != "" || p.ArgsTruncated {
		t.Errorf("arguments (-want +got):\n%s", d)
	}
	if s := seen.Start; s == nil || s.NSPID != p.PID || !s.HostPID || s.Stdin != nil {
		t.Errorf("start %+v", s)
	}
	if all := r.wait(t, 2, id); all[1].What != process.Exit || all[1].Process.ID != p.ID {
		t.Errorf("its end:\n%s", list(all))
	}
	probetest.Works(t, "processes that are older than the probe")
}

// TestSeedArguments reads those of this process as they are for one that is another.
func TestSeedArguments(t *testing.T) {
	r := load(t, nil)
	if err := r.Collect(); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.events, func(e process.Event) bool { return int(e.Process.PID) == os.Getpid() })
	if i < 0 {
		t.Fatal("this process is not seen")
	}
	self := r.events[i].Process.ID
	args, truncated := readArgs("/proc", self, 4096)
	if d := cmp.Diff(os.Args, args); d != "" || truncated {
		t.Errorf("own (-want +got):\n%s", d)
	}
	if args, truncated = readArgs("/proc", self, 3); len(args) != 1 || args[0] != os.Args[0][:3] || !truncated {
		t.Errorf("cut off %q, truncated %v", args, truncated)
	}
	for name, other := range map[string]process.ID{
		"another of that pid": {PID: self.PID, Start: self.Start - 1e9}, "nobody": {PID: 1 << 30, Start: 1},
	} {
		if args, truncated = readArgs("/proc", other, 4096); args != nil || truncated {
			t.Errorf("%s: %q", name, args)
		}
	}
}

// TestForksWhileSeeding: of processes that are made all the time while the probe
// starts, each is told of once, as seen or as a fork.
func TestForksWhileSeeding(t *testing.T) {
	dir, id := probetest.NewCgroup(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755)
	cmd := osexec.Command(path)
	probetest.InCgroup(t, cmd, dir)
	rounds := 5
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { forkUntil(t, stop, path, cmd.SysProcAttr) })
		}
		r := load(t, func(c *Config) { c.RingBytes = 32 << 20 })
		time.Sleep(50 * time.Millisecond)
		close(stop)
		wg.Wait()
		wantOnce(t, r, id)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func forkUntil(t *testing.T, stop <-chan struct{}, path string, attr *syscall.SysProcAttr) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		cmd := osexec.Command(path)
		cmd.SysProcAttr = attr
		if err := cmd.Run(); err != nil {
			t.Error(err)
			return
		}
	}
}

// wantOnce: each process begins once, before its end, and all end. Those that ended
// while the probe started may be told of by their end alone.
func wantOnce(t *testing.T, r *rig, cgroup uint64) {
	t.Helper()
	begun := make(map[process.ID]int)
	ended := make(map[process.ID]int)
	alone := 0
	for _, e := range r.of(t, cgroup) {
		switch e.What {
		case process.Seen, process.Fork:
			begun[e.Process.ID]++
			if ended[e.Process.ID] > 0 {
				t.Errorf("process %v begins after its end", e.Process.ID)
			}
		case process.Exit:
			ended[e.Process.ID]++
			if begun[e.Process.ID] == 0 {
				alone++
			}
		}
	}
	for id, n := range begun {
		if n != 1 || ended[id] != 1 {
			t.Errorf("process %v begins %d times and ends %d times", id, n, ended[id])
		}
	}
	if lost := r.losses.Get(loss.ExecRingFull); lost > 0 || len(begun) == 0 {
		t.Errorf("%d processes, %d events lost", len(begun), lost)
	}
	t.Logf("%d processes, and the end of %d more", len(begun), alone)
}

// TestRingIsReadWhileSeeding: however long it takes to tell of what was there before,
// what happens meanwhile is not lost, and is told of after it.
func TestRingIsReadWhileSeeding(t *testing.T) {
	dir, id := probetest.NewCgroup(t)
	path := write(t, filepath.Join(folder(t), "quick"), quick(0), 0o755)
	// Less than all that happens; with a quarter of that a slow machine's reader comes too late.
	r := newRig(func(c *Config) { c.RingBytes = 256 << 10 })
	begun, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.cfg.Apply = func(e *process.Event) {
		once.Do(func() { close(begun); <-proceed })
		r.apply(e)
	}
	probetest.Start(t, r, "exec probe: off")
	r.run(t)
	<-begun
	const runs = 300
	for range runs {
		cmd := osexec.Command(path)
		probetest.InCgroup(t, cmd, dir)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	}
	close(proceed)
	r.wait(t, runs, id, process.Exec)
	if n := r.lostEvents(); n > 0 {
		t.Errorf("%d events lost", n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	other := false
	for _, e := range r.events {
		if other = other || e.What != process.Seen; other && e.What == process.Seen {
			t.Fatal("a process that was there is told of after what happened since")
		}
	}
}

// TestSeedsInOrder: parents before children, whatever their pids.
func TestSeedsInOrder(t *testing.T) {
	r := load(t, nil)
	if err := r.Collect(); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for _, e := range r.events {
		if e.What != process.Seen {
			break
		}
		if e.Process.Start < last {
			t.Fatalf("process %v comes after one of %d", e.Process.ID, last)
		}
		last = e.Process.Start
	}
	if last == 0 {
		t.Error("nothing is seen")
	}
}

func TestRunning(t *testing.T) {
	r := load(t, nil)
	dir, id := probetest.NewCgroup(t)
	cmd := again(t, dir, "wait")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := r.wait(t, 1, id, process.Exec)[0].Process.ID
	if !Running("/proc", p) || Running("/proc", process.ID{PID: p.PID, Start: p.Start - 1e9}) {
		t.Error("a process that runs, or another one of its pid")
	}
	_ = in.Close()
	r.wait(t, 1, id, process.Exit)
	for deadline := time.Now().Add(10 * time.Second); Running("/proc", p); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a process that nobody has waited for is alive")
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if Running("/proc", p) {
		t.Error("a process that is gone is alive")
	}
}
