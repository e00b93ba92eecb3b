// SPDX-License-Identifier: Apache-2.0

package tcp

import "testing"

func TestOlder(t *testing.T) {
	type pass struct{ there, ends, skips, lost uint64 }
	for name, passes := range map[string][]pass{
		"none":                  {{0, 0, 5, 0}, {0, 0, 9, 0}},
		"all stay":              {{3, 0, 5, 0}, {3, 0, 9, 0}, {3, 0, 0, 0}},
		"all end":               {{3, 0, 5, 0}, {1, 2, 9, 0}, {0, 3, 0, 0}, {0, 3, 0, 0}},
		"an end comes late":     {{3, 0, 5, 0}, {2, 0, 1, 0}, {2, 1, 1, 0}, {2, 1, 1, 0}},
		"two vanish":            {{3, 0, 5, 0}, {1, 0, 1, 0}, {1, 0, 0, 2}, {1, 0, 0, 0}},
		"one vanishes, one not": {{3, 0, 0, 0}, {1, 1, 1, 0}, {1, 1, 0, 1}},
		"vanished unskipped":    {{3, 0, 0, 0}, {1, 0, 0, 0}, {1, 0, 0, 0}, {1, 0, 0, 0}},
		"one comes":             {{1, 0, 1, 0}, {2, 0, 1, 0}, {2, 0, 0, 0}},
	} {
		var o older
		for i, p := range passes {
			if got := o.pass(p.there, p.ends, p.skips); got != p.lost {
				t.Errorf("%s: pass %d: %d lost, want %d", name, i, got, p.lost)
			}
		}
	}
}
