// SPDX-License-Identifier: Apache-2.0

package tracing

import "testing"

// TestQuantile: within a quarter of what it was, whatever it was.
func TestQuantile(t *testing.T) {
	for i := range CallBuckets {
		c := CallCount{Max: 1 << 62}
		c.ByTime[i] = 1
		got := uint64(c.quantile(50))
		low, high := uint64(0), uint64(256)
		if i > 0 {
			low = uint64(256)<<((i-1)/2) + uint64((i-1)%2)<<(7+(i-1)/2)
			high = low + uint64(128)<<((i-1)/2)
		}
		if got < low || got >= high || i > 0 && (got*4 > low*5 || got*4 < high*3) {
			t.Errorf("bucket %d: %d, want something from %d to %d", i, got, low, high)
		}
	}
	var c CallCount
	c.ByTime[1], c.ByTime[21], c.Max = 98, 2, 300_000
	if half, most := c.quantile(50), c.quantile(99); half != 320 || most != 300_000 {
		t.Errorf("half within %d, 99 of 100 within %d", half, most)
	}
	if got := (&CallCount{}).quantile(99); got != 0 {
		t.Errorf("of nothing %d", got)
	}
}
