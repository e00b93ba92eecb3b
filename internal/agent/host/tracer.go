// SPDX-License-Identifier: Apache-2.0

//go:build linux

package host

import (
	"errors"
	"maps"

	"github.com/Ignoramuss/orb8/internal/agent/tracing"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/syscall"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// traceBit says in a probe.Selection that a trace wants a cgroup: it is that of trace 0,
// and those of the others follow.
const traceBit = 0

const traceBits = 1<<tracing.MaxTraces - 1

// There are as many traces and buckets as the probe knows.
var (
	_ [syscall.MaxTraces - tracing.MaxTraces]struct{}
	_ [tracing.MaxTraces - syscall.MaxTraces]struct{}
	_ [syscall.Buckets - tracing.CallBuckets]struct{}
	_ [tracing.CallBuckets - syscall.Buckets]struct{}
)

// tracer is the syscall probe as a Tracer.
type tracer struct {
	*syscall.Probe
	selection *probe.Selection
}

func newTracer(selection *probe.Selection, clock *probe.Clock, losses *loss.Counters, apply func(*calls.Record)) *tracer {
	return &tracer{
		selection: selection,
		Probe: syscall.New(syscall.Config{
			Selection: selection, Bit: traceBit, Losses: losses, Clock: clock,
			Apply: func(e *syscall.Event) {
				apply(&calls.Record{
					Header: record.Header{
						CgroupID: e.CgroupID, PID: e.PID, Comm: record.Comm(e.Comm), Time: e.Time, First: e.Time, Last: e.Time,
					},
					Call: e.Call, Traces: e.Traces, TID: e.TID, Parent: e.Parent, Latency: e.Latency, Unfinished: e.Unfinished,
				})
			},
		}),
	}
}

// Select implements Tracer.
func (t *tracer) Select(cgroup uint64, trace uint) error {
	return t.selection.Add(cgroup, traceBit+trace)
}

// Drop implements Tracer.
func (t *tracer) Drop(cgroup uint64, trace uint) error {
	return t.selection.Drop(cgroup, traceBit+trace)
}

// Selected implements Tracer.
func (t *tracer) Selected() (map[uint64]uint64, error) {
	all, err := t.selection.All()
	for id, who := range all {
		all[id] = who >> traceBit & traceBits
	}
	maps.DeleteFunc(all, func(_, who uint64) bool { return who == 0 })
	return all, err
}

// SelectedFor implements Tracer.
func (t *tracer) SelectedFor(cgroup uint64) (uint64, error) {
	who, err := t.selection.Bits(cgroup)
	return who >> traceBit & traceBits, err
}

// End implements Tracer. What is still in the ring is told before another trace has the
// same number.
func (t *tracer) End(trace uint) ([]uint64, error) {
	told := t.Tell(trace, syscall.Wanted{})
	had, err := t.selection.Clear(traceBit + trace)
	return had, errors.Join(told, err, t.Collect())
}

// Want implements Tracer.
func (t *tracer) Want(trace uint, w tracing.Want) error {
	wanted := syscall.Wanted{Refused: w.Refused, ErrorsOnly: w.ErrorsOnly, Count: w.Count}
	if w.Events {
		wanted.PerSecond = w.Rate
	}
	if w.Calls != nil {
		wanted.Calls = []syscall.Kind{} // none, if the names are none of this machine's
		for _, abi := range []process.ABI{syscalls.Native(), syscalls.Compat()} {
			for _, nr := range syscalls.Numbers(abi, w.Calls...) {
				wanted.Calls = append(wanted.Calls, syscall.Kind{ABI: abi, Number: nr})
			}
		}
	}
	return t.Tell(trace, wanted)
}

// Lost implements Tracer.
func (t *tracer) Lost(trace uint) tracing.Lost { return tracing.Lost(t.Probe.Lost(trace)) }

// Summary implements Tracer.
func (t *tracer) Summary() ([]tracing.CallCount, error) {
	counts, err := t.Probe.Summary()
	all := make([]tracing.CallCount, len(counts))
	for i, c := range counts {
		all[i] = tracing.CallCount{
			CgroupID: c.CgroupID, Name: syscalls.Name(c.ABI, c.Number), ABI: c.ABI.String(),
			Calls: c.Calls, Errors: c.Errors, Time: uint64(c.Time), Max: uint64(c.Max), ByTime: c.ByTime,
		}
	}
	return all, err
}

// Close implements Tracer.
func (t *tracer) Close() error {
	bits := make([]uint, tracing.MaxTraces)
	for i := range bits {
		bits[i] = traceBit + uint(i)
	}
	_, err := t.selection.Clear(bits...)
	return errors.Join(err, t.Probe.Close())
}
