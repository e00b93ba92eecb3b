// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// selecting is a started probe with a selection.
func selecting(t *testing.T) (*Probe, *probe.Selection) {
	t.Helper()
	probetest.NeedRoot(t)
	s, err := probe.NewSelection()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	p := New(Config{Losses: new(loss.Counters), Made: func(uint64, string) {}, Selection: s})
	probetest.Start(t, p, "syscall selection: off")
	return p, s
}

// below makes a cgroup below another and returns its folder and id.
func below(t *testing.T, dir, name string) (inner string, id uint64) {
	t.Helper()
	inner = filepath.Join(dir, name)
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(inner) })
	return inner, probetest.CgroupID(t, inner)
}

// bits reads who wants a cgroup; 0 if it is not selected.
func bits(t *testing.T, s *probe.Selection, id uint64) (who uint64) {
	t.Helper()
	for _, m := range s.Maps() {
		if err := m.Lookup(id, &who); err != nil {
			return 0
		}
	}
	return who
}

// What is made below a selected cgroup is selected for the same, and no longer than it
// is there.
func TestInherit(t *testing.T) {
	_, s := selecting(t)
	dir, id := probetest.NewCgroup(t)
	if err := s.Add(id, 3); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(id, 5); err != nil {
		t.Fatal(err)
	}
	inner, innerID := below(t, dir, "inner")
	innermost, innermostID := below(t, inner, "innermost")
	_, otherID := probetest.NewCgroup(t)
	for _, id := range []uint64{innerID, innermostID} {
		if got := bits(t, s, id); got != 1<<3|1<<5 {
			t.Errorf("bits %#x of a new cgroup below a selected one", got)
		}
	}
	if got := bits(t, s, otherID); got != 0 {
		t.Errorf("bits %#x of a cgroup beside a selected one", got)
	}
	for _, gone := range []string{innermost, inner} {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Len(); err != nil || n != 1 {
		t.Errorf("%d cgroups are selected after the inner ones are gone, %v", n, err)
	}
	if !t.Failed() {
		t.Log("orb8-feature: syscall selection: works")
	}
}

func TestInheritFull(t *testing.T) {
	p, s := selecting(t)
	dir, id := probetest.NewCgroup(t)
	if err := s.Add(id, 0); err != nil {
		t.Fatal(err)
	}
	for c := range uint64(probe.MaxSelected - 1) {
		if err := s.Add(1<<50|c, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, innerID := below(t, dir, "inner")
	if got := bits(t, s, innerID); got != 0 {
		t.Errorf("bits %#x of a cgroup for which there is no room", got)
	}
	if err := p.Collect(); err != nil {
		t.Fatal(err)
	}
	if n := p.cfg.Losses.Get(loss.SelectionFull); n != 1 {
		t.Errorf("%d cgroups counted as not selected, want 1", n)
	}
}
