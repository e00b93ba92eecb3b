// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"maps"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/syscall"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// traceBit says in a probe.Selection that a trace wants a cgroup: it is that of trace 0,
// and those of the others follow.
const traceBit = 0

const traceBits = 1<<maxTraces - 1

// There are as many traces as the probe knows.
var (
	_ [syscall.MaxTraces - maxTraces]struct{}
	_ [maxTraces - syscall.MaxTraces]struct{}
)

// tracer is the syscall probe as a Tracer.
type tracer struct {
	*syscall.Probe
	selection *probe.Selection
}

func newTracer(s Sink, selection *probe.Selection, apply func(*TracedCall)) *tracer {
	return &tracer{
		selection: selection,
		Probe: syscall.New(syscall.Config{
			Selection: selection, Bit: traceBit, Losses: s.Losses, Clock: probe.NewClock(),
			Apply: func(e *syscall.Event) {
				apply(&TracedCall{
					Call: e.Call, Time: e.Time, CgroupID: e.CgroupID, Traces: e.Traces, PID: e.PID, TID: e.TID, Comm: flow.Comm(e.Comm),
					Latency: e.Latency, Unfinished: e.Unfinished,
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
func (t *tracer) Want(trace uint, w TraceWant) error {
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
func (t *tracer) Lost(trace uint) TraceLost { return TraceLost(t.Probe.Lost(trace)) }

// Summary implements Tracer.
func (t *tracer) Summary() ([]CallCount, error) {
	counts, err := t.Probe.Summary()
	all := make([]CallCount, len(counts))
	for i, c := range counts {
		all[i] = CallCount{
			CgroupID: c.CgroupID, Name: syscalls.Name(c.ABI, c.Number), ABI: c.ABI.String(),
			Calls: c.Calls, Errors: c.Errors, Time: uint64(c.Time), Max: uint64(c.Max),
		}
	}
	return all, err
}

// Close implements Tracer.
func (t *tracer) Close() error {
	bits := make([]uint, maxTraces)
	for i := range bits {
		bits[i] = traceBit + uint(i)
	}
	_, err := t.selection.Clear(bits...)
	return errors.Join(err, t.Probe.Close())
}
