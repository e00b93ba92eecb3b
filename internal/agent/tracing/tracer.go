// SPDX-License-Identifier: Apache-2.0

// Package tracing has the traces of system calls that clients run: which cgroups each wants,
// what the kernel is to do for it, its sums and what it has lost.
package tracing

import "context"

// MaxTraces is how many traces there may be at a time.
const MaxTraces = 16

// Tracer traces system calls from Start to Close, for several traces at a time: each is a
// number below MaxTraces. It is used by one goroutine at a time, but for Run.
type Tracer interface {
	Start() error
	// Run hands over calls until ctx is done; then it detaches and hands over what is
	// left: calls that have ended, and as unfinished those that go on.
	Run(ctx context.Context) error
	// Collect hands over the calls that have ended until now, and counts losses.
	Collect() error
	// Flush hands over the calls that go on, as unfinished, for one trace.
	Flush(trace uint) error
	Close() error
	// Want says what a trace is to have of the cgroups that are selected for it.
	Want(trace uint, w Want) error
	// Select and Drop say which these are.
	Select(cgroup uint64, trace uint) error
	Drop(cgroup uint64, trace uint) error
	// Selected has a bit for each trace by cgroup, those included that the kernel has
	// selected since they are below another; SelectedFor is that of one cgroup.
	Selected() (map[uint64]uint64, error)
	SelectedFor(cgroup uint64) (uint64, error)
	// End drops all cgroups of a trace, hands over what it had still to be told, and
	// returns which cgroups they were.
	End(trace uint) ([]uint64, error)
	// Forget gives back what is kept of cgroups that are not selected any more, and
	// ForgetCounts their counts only.
	Forget(cgroups ...uint64) error
	ForgetCounts(cgroups ...uint64) error
	// Lost is what a trace has lost since Start, as of the last Collect.
	Lost(trace uint) Lost
	// Hooks lists what is attached.
	Hooks() []string
	// Summary returns the counts, which go on for as long as a cgroup is selected for
	// anybody who wants them.
	Summary() ([]CallCount, error)
}

// Want is what a trace is to have.
type Want struct {
	// Events: each call.
	Events bool
	// Calls are names; nil means all, empty none.
	Calls []string
	// Refused calls are wanted whatever they are.
	Refused    bool
	ErrorsOnly bool
	// Rate is how many a second, by and large.
	Rate uint32
	// Count the calls.
	Count bool
}

// Lost is what a trace has lost, by stage.
type Lost struct {
	RingFull, Limited, PendingFull, Uncounted uint64
	// Missed begins and ends of calls are those of the whole node.
	Missed uint64
}

// CallCount is how often a cgroup made a system call.
type CallCount struct {
	CgroupID      uint64
	Name, ABI     string
	Calls, Errors uint64
	// Time and Max are from begin to end of the calls, in nanoseconds.
	Time, Max uint64
	// ByTime is how many calls took how long, see CallBucket.
	ByTime [CallBuckets]uint64
}

// CallBuckets is how many buckets there are for the time that a call takes.
const CallBuckets = 64

// CallBucket is the middle of a bucket, in nanoseconds: 128 for the first, which has all
// below 256, then two for each power of two.
func CallBucket(i int) uint64 {
	if i == 0 {
		return 128
	}
	low := uint64(256) << ((i - 1) / 2)
	return low + low/4 + uint64((i-1)%2)*low/2
}
