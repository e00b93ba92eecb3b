// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"fmt"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
)

// TestLoad starts programs as fast as this host does. Each is told of from its fork
// to its end, by the right parent, or counted as lost.
func TestLoad(t *testing.T) {
	dir, id := probetest.NewCgroup(t)
	r := start(t, func(c *Config) { c.CgroupID = id })
	path := write(t, filepath.Join(folder(t), "quick"), quick(3), 0o755)
	seconds := 10
	if testing.Short() {
		seconds = 1
	}
	var loaders []*osexec.Cmd
	var said []*strings.Builder
	load := loader(t)
	for range 2 {
		var cmd *osexec.Cmd
		if load == "" {
			cmd = again(t, dir, "load %d %s", seconds, path)
		} else {
			cmd = osexec.Command(load, fmt.Sprint(seconds), path)
			probetest.InCgroup(t, cmd, dir)
		}
		out := new(strings.Builder)
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		loaders, said = append(loaders, cmd), append(said, out)
	}
	began := time.Now()
	want := make(map[uint32]int) // how many programs each loader has started
	for i, cmd := range loaders {
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		want[uint32(cmd.Process.Pid)] = number(strings.TrimSpace(said[i].String()))
	}
	took := time.Since(began)
	waitUntilTold(t, r, id, want)
	got, broken := whole(r, path)
	total, missing := 0, 0
	for parent, n := range want {
		total += n
		missing += n - got[parent]
		if got[parent] > n {
			t.Errorf("%d programs of %d, which started %d", got[parent], parent, n)
		}
	}
	lost := r.lostEvents()
	if uint64(missing) > lost || uint64(broken) > lost {
		t.Errorf("%d programs, %d not told of from fork to end, %d in another order; %d events counted as lost", total, missing, broken, lost)
	}
	t.Logf("%d programs, %.0f a second, %d events lost", total, float64(total)/took.Seconds(), lost)
}

// loader builds testdata/load.c. It returns nothing where no compiler is.
func loader(t *testing.T) string {
	t.Helper()
	to := filepath.Join(folder(t), "load")
	for _, cc := range []string{"cc", "gcc", "clang", "clang-16"} {
		if osexec.Command(cc, "-O2", "-o", to, "testdata/load.c").Run() == nil {
			return to
		}
	}
	return ""
}

func waitUntilTold(t *testing.T, r *rig, cgroup uint64, want map[uint32]int) {
	t.Helper()
	ends := len(want)
	for _, n := range want {
		ends += n
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if len(r.of(t, cgroup, process.Exit)) >= ends || r.lostEvents() > 0 {
			return
		}
	}
}

// whole counts, by parent, the runs of path that were told of in the order fork,
// start, end, and those that were not.
func whole(r *rig, path string) (byParent map[uint32]int, broken int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := map[process.ID]process.What{}
	byParent = make(map[uint32]int)
	for i := range r.events {
		e := &r.events[i]
		switch at := next[e.Process.ID]; {
		case e.What == process.Fork && at == 0:
			next[e.Process.ID] = process.Exec
		case e.What == process.Exec && at == process.Exec && e.Process.Exe.Path == path && len(e.Process.Args) == 2:
			next[e.Process.ID] = process.Exit
		case e.What == process.Exit && at == process.Exit && e.End.Code == 3:
			byParent[e.Process.Parent.PID]++
			delete(next, e.Process.ID)
		case e.Process.Exe.Path == path || e.What == process.Exit && e.End.Code == 3:
			broken++
		}
	}
	return byParent, broken
}
