// SPDX-License-Identifier: Apache-2.0

package testwait

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// failing is a test that notes how it fails.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// Every wait ends in time, and says what it waited for.
func TestLimit(t *testing.T) {
	for want, wait := range map[string]func(testing.TB){
		"waited 30s for a: 3 of 4":       func(t testing.TB) { Until(t, "a", func() error { return errors.New("3 of 4") }) },
		"waited 30s for b: not so yet":   func(t testing.TB) { True(t, "b", func() bool { return false }) },
		"waited 30s for c: nothing came": func(t testing.TB) { Receive(t, "c", make(chan int)) },
		"waited 30s for d: nothing came": func(t testing.TB) { Return(t, "d", func() { time.Sleep(time.Hour) }) },
	} {
		synctest.Test(t, func(t *testing.T) {
			f, began := &failing{TB: t}, time.Now()
			done := make(chan struct{})
			go func() { defer close(done); wait(f) }()
			<-done
			if took := time.Since(began); f.said != want || took < Limit || took > Limit+time.Second {
				t.Errorf("%q after %v, want %q", f.said, took, want)
			}
			time.Sleep(time.Hour) // what was waited for ends too
		})
	}
}

func TestDone(t *testing.T) {
	looks := 0
	True(t, "a third look", func() bool { looks++; return looks == 3 })
	c := make(chan int, 1)
	c <- 7
	if got := Receive(t, "7", c); got != 7 || looks != 3 {
		t.Errorf("%d after %d looks", got, looks)
	}
	Return(t, "nothing", func() {})
	if end, ok := Context(t).Deadline(); !ok || time.Until(end) > Limit {
		t.Errorf("context until %v", end)
	}
}
