// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"
	"time"
)

// collector reads the probes. Passes never overlap, begin at least
// collectGap apart, and are shared by all who wait for one.
type collector struct {
	collect func()
	// turn holds a token while no pass runs.
	turn chan struct{}

	mu    sync.Mutex
	began time.Time
	// next is the pass that has not begun yet; it is closed when it is over.
	next chan struct{}
}

func newCollector(collect func()) *collector {
	c := &collector{collect: collect, turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	return c
}

// fresh returns after a pass that began after the call, so that what happened
// before the call is in the table. It returns early when ctx is done.
func (c *collector) fresh(ctx context.Context) error {
	c.mu.Lock()
	pass, mine := c.next, false
	if pass == nil {
		pass, mine = make(chan struct{}), true
		c.next = pass
	}
	c.mu.Unlock()
	if mine {
		// Others may wait for this pass, so it is made even if ctx ends.
		c.run(pass)
	}
	select {
	case <-pass:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *collector) run(pass chan struct{}) {
	<-c.turn
	defer func() { c.turn <- struct{}{} }()
	defer close(pass)
	c.mu.Lock()
	wait := collectGap - time.Since(c.began)
	c.mu.Unlock()
	time.Sleep(wait)
	c.mu.Lock()
	c.next, c.began = nil, time.Now()
	c.mu.Unlock()
	c.collect()
}
