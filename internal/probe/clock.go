// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how long a step of the wall clock may go unnoticed.
	lookEvery = time.Second
	// apart is how far apart two clocks may have been read.
	apart = 50 * time.Microsecond
)

// Clock turns the kernel's boot time into Unix nanoseconds that never jump: boot time
// and what lay between the two clocks when the Clock was made. A step of the wall clock
// later on, either way, changes neither the order of events nor how long ago they were;
// Correction says what to add for the wall clock's time. Methods may be called from any
// goroutine.
type Clock struct {
	offset     int64 // Unix time less boot time, in the beginning
	correction atomic.Int64
	due        atomic.Int64 // boot time at which to look at the wall clock again
	read       func() (boot, wall int64)
}

// NewClock returns a Clock that begins with the wall clock's time.
func NewClock() *Clock { return newClock(readClocks) }

func newClock(read func() (boot, wall int64)) *Clock {
	boot, wall := read()
	return &Clock{offset: wall - boot, read: read}
}

// readClocks reads both clocks at the same time. A pause of the process in between is
// noticed, and they are read again.
func readClocks() (boot, wall int64) {
	for range 10 {
		before := bootTime()
		wall = time.Now().UnixNano()
		after := bootTime()
		boot = before + (after-before)/2
		if after-before < int64(apart) {
			break
		}
	}
	return boot, wall
}

func bootTime() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // does not happen: Linux 2.6.39 has this clock
	}
	return t.Nano()
}

// Unix converts boot-time nanoseconds; 0 stays 0.
func (c *Clock) Unix(boot uint64) int64 {
	if boot == 0 {
		return 0
	}
	return int64(boot) + c.offset
}

// Now is the present time as Unix has it.
func (c *Clock) Now() time.Time {
	boot, wall := c.read()
	c.look(boot, wall)
	return time.Unix(0, boot+c.offset)
}

// Correction is what to add to times of this clock to have the wall clock's, as of a
// second ago at most.
func (c *Clock) Correction() time.Duration {
	if boot := bootTime(); boot >= c.due.Load() {
		c.look(c.read())
	}
	return time.Duration(c.correction.Load())
}

func (c *Clock) look(boot, wall int64) {
	c.due.Store(boot + int64(lookEvery))
	d := time.Duration(wall - boot - c.offset)
	if d.Abs() < apart {
		d = 0 // no step
	}
	c.correction.Store(int64(d))
}
