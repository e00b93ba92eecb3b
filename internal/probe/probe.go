// SPDX-License-Identifier: Apache-2.0

// Package probe runs the kernel side of orb8: it loads, attaches, degrades and
// detaches probes, and says of each what it does. It knows nothing of what the
// probes measure; that is the business of the packages below it.
package probe

import (
	"context"
	"strings"
)

// Probe is one instrument in the kernel. A probe is used by one Manager, which
// calls Start once, then Run and Collect from different goroutines, and Close
// last, after Run has returned. To add one, see docs/adding-a-probe.md.
type Probe interface {
	// Name is short, lower-case and stable: a metric label and an API value.
	Name() string

	// Start loads and attaches. It returns an *Unsupported error where the
	// kernel or the privileges lack something, and leaves nothing behind on any
	// error. It may leave parts out; then Degraded tells.
	Start() error

	// Run moves events out of the kernel until ctx is done, then returns nil.
	// A probe without events of its own waits for ctx.
	Run(ctx context.Context) error

	// Collect reads once what the kernel has gathered since the last call.
	Collect() error

	// Hooks lists what is attached, as program type and target.
	Hooks() []string

	// Degraded lists optional parts that are missing, each with its effect.
	Degraded() []string

	// Close detaches and unloads everything. It is safe after a failed Start.
	Close() error
}

// Unsupported says that a probe cannot run here, why, and what would help. The
// agent goes on without that probe.
type Unsupported struct {
	// Reason, for instance "kernel has no BTF (/sys/kernel/btf/vmlinux)".
	Reason string
	// Remedy is an instruction to the user, or empty.
	Remedy string
	// Err is the cause, or nil.
	Err error
}

func (e *Unsupported) Error() string {
	if e.Err != nil {
		return e.Reason + ": " + cause(e.Err)
	}
	return e.Reason
}

func (e *Unsupported) Unwrap() error { return e.Err }

// cause is the text of an error of loading, without advice that does not hold here: the
// bound on locked memory is raised before anything is loaded, and `orb8 doctor` tells where
// that cannot be.
func cause(err error) string {
	return strings.ReplaceAll(err.Error(), " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", "")
}

// State says how much of a probe works; the numbers are those of the API.
type State int

// The states of a probe.
const (
	StateRunning State = iota + 1
	StateFallback
	StateOff
)

// String returns running, fallback or off.
func (s State) String() string {
	switch s {
	case StateRunning:
		return "running"
	case StateFallback:
		return "fallback"
	}
	return "off"
}

// Status is what is said of one probe in GetStatus, the metrics and
// `orb8 doctor`.
type Status struct {
	Name     string
	State    State
	Reason   string
	Remedy   string
	Hooks    []string
	Degraded []string
	// Disabled: the configuration keeps it from being started.
	Disabled bool
	// Helper: it serves other probes and sees nothing itself.
	Helper bool
	// ReadErrors is how many readings have failed, Failing how many in a row, the last
	// one included.
	ReadErrors uint64
	Failing    int
}

// Unreadable reports whether a running probe cannot be read: one reading that fails may be
// an accident.
func (s *Status) Unreadable() bool { return s.State == StateRunning && s.Failing > 1 }
