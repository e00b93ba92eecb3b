// SPDX-License-Identifier: Apache-2.0

package shrink

import (
	"maps"
	"runtime"
	"testing"
)

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func TestMap(t *testing.T) {
	var peak Peak
	m := make(map[int][16]uint64)
	fill := func(n int) {
		for i := range n {
			m[i] = [16]uint64{uint64(i)}
		}
	}
	call := func(want bool) {
		t.Helper()
		before := maps.Clone(m)
		var shrunk bool
		if m, shrunk = Map(m, &peak); shrunk != want || !maps.Equal(m, before) {
			t.Errorf("with %d entries: shrunk %v, want %v", len(m), shrunk, want)
		}
	}
	fill(1000)
	call(false)
	clear(m)
	call(false) // too small to matter
	fill(100_000)
	call(false)
	full := heap()
	for i := range 100_000 - 100 {
		delete(m, i)
	}
	call(true)
	call(false)
	if now := heap(); now > full/4 {
		t.Errorf("%d bytes before, %d after", full, now)
	}
	runtime.KeepAlive(m)
}
