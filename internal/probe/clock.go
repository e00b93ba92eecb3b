// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// setEvery is how long a correction of the wall clock may go unnoticed.
const setEvery = 5 * time.Second

// Clock turns the kernel's boot-time nanoseconds into Unix nanoseconds. Its
// methods may be called from any goroutine.
type Clock struct {
	offset atomic.Int64
	due    atomic.Uint64 // boot time at which to read the clocks again
}

// NewClock returns a Clock that is set.
func NewClock() *Clock {
	c := new(Clock)
	c.Set()
	return c
}

// Set reads both clocks again. Unix does so by itself, so that corrections of
// the wall clock are followed.
func (c *Clock) Set() {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return // an old offset is better than none; Linux 2.6.39 has this clock
	}
	c.offset.Store(time.Now().UnixNano() - boot.Nano())
	c.due.Store(uint64(boot.Nano() + int64(setEvery)))
}

// Unix converts; 0 stays 0.
func (c *Clock) Unix(boot uint64) int64 {
	if boot == 0 {
		return 0
	}
	if boot >= c.due.Load() {
		c.Set()
	}
	return int64(boot) + c.offset.Load()
}
