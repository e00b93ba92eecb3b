// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCounters(t *testing.T) {
	a, b := Counters{5, 6, 7, math.MaxUint64}, Counters{1, 10, 7, 1}
	for name, c := range map[string]struct{ got, want Counters }{
		"sub": {a.Sub(b), Counters{4, 0, 0, math.MaxUint64 - 1}},
		"max": {a.Max(b), Counters{5, 10, 7, math.MaxUint64}},
		"min": {a.Min(b), Counters{1, 6, 7, 1}},
		"add": {b.Add(b), Counters{2, 20, 14, 2}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}
