// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"slices"
	"testing"
	"time"
)

func TestSeeds(t *testing.T) {
	begin := time.Unix(1000, 0)
	for _, tt := range []struct {
		name    string
		listens func(second int) uint64
		want    []int // the seconds at which the probe looks, of ten minutes
	}{
		{"no listeners", func(int) uint64 { return 0 }, []int{2, 10, 30, 60, 120, 300}},
		{"one", func(s int) uint64 { return map[bool]uint64{true: 1}[s >= 400] }, []int{2, 10, 30, 60, 120, 300, 402, 410, 430}},
		{"two", func(s int) uint64 { return map[bool]uint64{true: 1}[s >= 400] + map[bool]uint64{true: 1}[s >= 405] },
			[]int{2, 10, 30, 60, 120, 300, 402, 410, 415, 435}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSeeds(begin)
			var got []int
			for i := range 600 {
				if s.due(begin.Add(time.Duration(i)*time.Second), tt.listens(i)) {
					got = append(got, i)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("looked at %v, want %v", got, tt.want)
			}
		})
	}
	// However many listen, there is time between two looks.
	s, looks := newSeeds(begin), 0
	for i := range 600 {
		if s.due(begin.Add(time.Duration(i)*time.Second), uint64(i)) {
			looks++
		}
	}
	if looks > 70 {
		t.Errorf("%d looks in ten minutes", looks)
	}
}
