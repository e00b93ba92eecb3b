// SPDX-License-Identifier: Apache-2.0

package syscalls

import "testing"

func TestSet(t *testing.T) {
	s := SetOf(0, 63, 64, MaxNumber-1, MaxNumber, -1)
	want := Set{0: 1 | 1<<63, 1: 1, MaxNumber/64 - 1: 1 << 63}
	if s != want {
		t.Errorf("got %x, want %x", s, want)
	}
	if s.Add(MaxNumber) || s.Add(-1) || !s.Add(5) || s[0]&(1<<5) == 0 {
		t.Errorf("adding one by one: %x", s)
	}
}
