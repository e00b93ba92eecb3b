// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestFreshSharesPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var passes atomic.Int64
		c := newCollector(func() { passes.Add(1); time.Sleep(50 * time.Millisecond) })
		begin := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := c.fresh(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// The first caller's pass begins at once; those who came too late for
		// it share the next.
		if n := passes.Load(); n < 1 || n > 2 {
			t.Errorf("%d passes for 20 callers, want 1 or 2", n)
		}
		if took := time.Since(begin); took > collectGap+50*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

// TestFreshIsFresh: a caller that comes while a pass runs waits for the next
// one, because that pass may already be past what the caller wants to see.
func TestFreshIsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var began atomic.Int64
		c := newCollector(func() { began.Store(time.Now().UnixNano()); time.Sleep(10 * time.Millisecond) })
		var others sync.WaitGroup
		defer others.Wait()
		for i := range 50 {
			time.Sleep(time.Duration(i*7) * time.Millisecond)
			called := time.Now().UnixNano()
			others.Go(func() { _ = c.fresh(t.Context()) })
			if err := c.fresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if began.Load() < called {
				t.Fatalf("the pass began %v before the call", time.Duration(called-began.Load()))
			}
		}
	})
}

func TestPassesKeepTheirDistance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last time.Time
		c := newCollector(func() {
			if d := time.Since(last); d < collectGap {
				t.Errorf("a pass %v after the last", d)
			}
			last = time.Now()
			time.Sleep(300 * time.Millisecond) // longer than the distance
		})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 20 {
					time.Sleep(time.Duration(i*13) * time.Millisecond)
					_ = c.fresh(t.Context())
				}
			})
		}
		wg.Wait()
	})
}

func TestFreshEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollector(func() { time.Sleep(time.Minute) })
		go func() { _ = c.fresh(context.WithoutCancel(t.Context())) }()
		synctest.Wait()
		go func() { _ = c.fresh(context.WithoutCancel(t.Context())) }() // leads the next pass
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.fresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.Sleep(3 * time.Minute)
	})
}

func TestPanickingPassLetsOthersGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := true
		c := newCollector(func() {
			if fail {
				fail = false
				panic("a fault")
			}
		})
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = c.fresh(t.Context())
		}()
		if err := c.fresh(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
