// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Tracing attaches the tracing programs of a probe and counts how often the kernel
// left one out. It does so where an event interrupts the program that an earlier one
// runs on the same CPU: bpf_prog_inc_misses_counter in __bpf_trace_run, since Linux
// 6.1, and in the trampolines of tp_btf programs, since 5.12. That counter is a lower
// bound: on Linux 6.18 about twice as many events were missing as it said.
type Tracing struct {
	programs []*ebpf.Program
	skips    uint64 // as last told
}

// Attach attaches a program where its section says. The program must stay open for as
// long as Skips is called.
func (t *Tracing) Attach(prog *ebpf.Program) (link.Link, error) {
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return nil, err
	}
	t.programs = append(t.programs, prog)
	return l, nil
}

// Skips returns how many runs were left out since it was last called. Kernels before
// 5.12 do not count them.
func (t *Tracing) Skips() (n uint64, err error) {
	var all uint64
	for _, p := range t.programs {
		s, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("read how often %s was left out: %w", p, err)
		}
		all += s.RecursionMisses
	}
	n = all - t.skips
	t.skips = all
	return n, nil
}
