// SPDX-License-Identifier: Apache-2.0

// Package calls is the kind of record that tells of system calls, one by one, while somebody
// traces them.
package calls

import (
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// Record is a system call of a traced container. Its header's time is that of its end, or
// when it was told of.
type Record struct {
	record.Header
	syscalls.Call
	// Traces has a bit for each trace that is told of it.
	Traces uint32
	// TID is the thread, and Parent the process's parent, in the host's pid namespace.
	TID, Parent uint32
	// Latency is from its begin to its end, or for as long as it has gone on.
	Latency time.Duration
	// Unfinished: it has not returned.
	Unfinished bool
	// Name of the call, and of the rules that flag it.
	Name  string
	Rules []string
}

// RuleNames are those of the rules that flag the call.
func (r *Record) RuleNames() []string { return r.Rules }

// Event is a record as an event.
func Event(r *Record, node string) *orb8v1.Event {
	x := &orb8v1.Syscall{
		Workload: kind.Workload(r.Owner), Process: kind.Process(&r.Header), ThreadId: r.TID, ParentProcessId: r.Parent,
		Name: r.Name, Number: uint32(r.Number), Abi: r.ABI.String(), Arguments: kind.Arguments(&r.Call),
		Unfinished: r.Unfinished, NoResult: !r.Returned, Refused: r.Refused, LatencyNs: int64(r.Latency), Rules: r.Rules,
	}
	if r.Returned {
		x.ReturnValue, x.Error = r.Return, syscalls.Errno(r.Return)
	}
	return &orb8v1.Event{TimeNs: r.Time, NodeName: node, Event: &orb8v1.Event_Syscall{Syscall: x}}
}
