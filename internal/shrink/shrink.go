// SPDX-License-Identifier: Apache-2.0

// Package shrink gives back the memory of maps that were larger once.
package shrink

// least is the size below which a map is not worth it.
const least = 1024

// Peak is how large a map has been since it was made.
type Peak int

// Map returns m or, where it has been more than four times as large, a copy of it that
// takes no more memory than it needs: a Go map never shrinks. It is to be called now and
// then; what it costs is less than what filling the map has cost.
func Map[K comparable, V any](m map[K]V, peak *Peak) (_ map[K]V, shrunk bool) {
	*peak = max(*peak, Peak(len(m)))
	if *peak < least || len(m) > int(*peak)/4 {
		return m, false
	}
	*peak = Peak(len(m))
	c := make(map[K]V, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c, true
}
