// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"
	"time"
)

// TestRetry: the back-off grows with failures, up to half a minute and as long again by chance.
// The first answer after failures ends it, one that comes to nothing each time does not.
func TestRetry(t *testing.T) {
	now := time.Unix(1000, 0)
	r := retry{now: func() time.Time { return now }}
	wait := func(step string, times int) {
		t.Helper()
		least, d := time.Duration(times*int(firstRetry)), r.delay()
		if d < least || d > 2*least {
			t.Errorf("%s: waits %v, want %v to %v", step, d, least, 2*least)
		}
		now = now.Add(d)
	}
	for _, times := range []int{1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60} {
		wait("while nobody answers", times)
	}
	r.success() // but it has nothing as old as what was known: expired
	wait("after the first answer", 1)
	for _, times := range []int{2, 4, 8} {
		r.success()
		wait("while each answer comes to nothing", times)
	}
	r.success()
	now = now.Add(time.Minute)
	wait("after a watch that stood for a while", 1)
	wait("and nobody answers", 2)
}
