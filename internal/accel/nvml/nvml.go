// SPDX-License-Identifier: Apache-2.0

// Package nvml reads NVIDIA devices through the driver's own library. It has been
// tested against a library that stands in for it, not on real hardware.
package nvml

import (
	"log/slog"
	"time"
)

// Config of the backend. The zero value suits a host.
type Config struct {
	// HostRoot is where the host's root is mounted; empty for this one's.
	HostRoot string
	// Library is the path of libnvidia-ml.so.1; looked for if empty.
	Library string
	// Sys is where sysfs is mounted, default /sys.
	Sys string
	// Kmsg is the kernel's log, default /dev/kmsg. "-" for none.
	Kmsg string
	// Log gets a line where something optional is missing. Default: none.
	Log *slog.Logger
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

func (c Config) withDefaults() Config {
	if c.Kmsg == "" {
		c.Kmsg = "/dev/kmsg"
	}
	if c.Sys == "" {
		c.Sys = "/sys"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// gpmWindow is the shortest time that GPM ratios are means over.
const gpmWindow = 100 * time.Millisecond
