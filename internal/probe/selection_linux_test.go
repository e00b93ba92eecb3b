// SPDX-License-Identifier: Apache-2.0

package probe_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

func newSelection(t *testing.T) *probe.Selection {
	t.Helper()
	probetest.NeedRoot(t)
	s, err := probe.NewSelection()
	if u, ok := errors.AsType[*probe.Unsupported](err); ok {
		t.Skipf("SKIP: %v", u)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// who reads who wants a cgroup; 0 if it is not selected.
func who(t *testing.T, s *probe.Selection, cgroup uint64) (bits uint64) {
	t.Helper()
	for _, m := range s.Maps() {
		if err := m.Lookup(cgroup, &bits); err != nil {
			return 0
		}
	}
	return bits
}

func wantLen(t *testing.T, s *probe.Selection, want int) {
	t.Helper()
	n, err := s.Len()
	must(t, err)
	if n != want {
		t.Errorf("%d cgroups are selected, want %d", n, want)
	}
}

func TestSelection(t *testing.T) {
	s := newSelection(t)
	wantLen(t, s, 0)
	must(t, s.Add(7, 0))
	must(t, s.Add(7, 63))
	must(t, s.Add(8, 63))
	must(t, s.Add(9, 1))
	wantLen(t, s, 3)
	if got := who(t, s, 7); got != 1|1<<63 {
		t.Errorf("bits %#x of a cgroup that two want", got)
	}
	if all, err := s.All(); err != nil || len(all) != 3 || all[7] != 1|1<<63 || all[8] != 1<<63 || all[9] != 2 {
		t.Errorf("selected are %v, %v", all, err)
	}
	if got, err := s.Bits(5); err != nil || got != 0 {
		t.Errorf("bits %#x of a cgroup that is not selected, %v", got, err)
	}
	wantCleared(t, s, []uint64{7, 8}, 63)
	wantLen(t, s, 2)
	if got := who(t, s, 7); got != 1 {
		t.Errorf("bits %#x after one of two does not want it any more", got)
	}
	must(t, s.Drop(9, 0)) // somebody else's
	must(t, s.Drop(7, 0))
	must(t, s.Drop(7, 0))
	wantLen(t, s, 1)
	must(t, s.Remove(9))
	must(t, s.Remove(9))
	wantLen(t, s, 0)
}

func TestSelectionFull(t *testing.T) {
	s := newSelection(t)
	for c := range uint64(probe.MaxSelected) {
		must(t, s.Add(c+1, 0))
	}
	if err := s.Add(1<<40, 0); !errors.Is(err, probe.ErrSelectionFull) {
		t.Errorf("one too many: %v", err)
	}
	must(t, s.Add(1, 1)) // no new one
	wantLen(t, s, probe.MaxSelected)
	if had, err := s.Clear(0); err != nil || len(had) != probe.MaxSelected {
		t.Errorf("%d were selected, %v", len(had), err)
	}
	wantLen(t, s, 1)
	must(t, s.Add(2, 3))
	wantCleared(t, s, []uint64{1, 2}, 1, 3)
	wantLen(t, s, 0)
}

func TestNoSelection(t *testing.T) {
	var s *probe.Selection
	if m := s.Maps(); m != nil {
		t.Errorf("maps %v of none", m)
	}
}

// wantCleared clears, and checks which cgroups it was that had a bit.
func wantCleared(t *testing.T, s *probe.Selection, want []uint64, bits ...uint) {
	t.Helper()
	had, err := s.Clear(bits...)
	slices.Sort(had)
	if err != nil || !slices.Equal(had, want) {
		t.Errorf("cleared %v, %v, want %v", had, err, want)
	}
}
