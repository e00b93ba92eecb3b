// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/Ignoramuss/orb8/internal/loss"
)

// Attachments are what a probe has opened and attached. Probes embed it. The zero value
// is empty.
type Attachments struct {
	closers []io.Closer // in the order in which they were made
	hooks   []string
}

// Keep holds what must be closed with the rest.
func (a *Attachments) Keep(opened io.Closer) { a.closers = append(a.closers, opened) }

// Attached holds a link, or what else keeps a program attached, and shows its hook.
func (a *Attachments) Attached(l io.Closer, hook string) {
	a.Keep(l)
	a.hooks = append(a.hooks, hook)
}

// AttachTracing attaches a program to the BTF tracepoint or function that it was loaded
// for. The error is an *Unsupported where the kernel or the privileges lack something.
func (a *Attachments) AttachTracing(prog *ebpf.Program, hook string) error {
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return Explain("attach "+hook, err)
	}
	a.Attached(l, hook)
	return nil
}

// Open is how much is, links included.
func (a *Attachments) Open() int { return len(a.closers) }

// Hooks lists what is attached, as the user should see it.
func (a *Attachments) Hooks() []string { return a.hooks }

// Close closes everything, the last first, and forgets it.
func (a *Attachments) Close() error {
	err := CloseAll(a.closers)
	a.closers, a.hooks = nil, nil
	return err
}

// SetVariables sets variables of a probe's programs by name. Each value has the size of
// its variable.
func SetVariables[V interface{ Set(value any) error }](vars map[string]V, probe string, values map[string]any) error {
	for name, value := range values {
		if err := vars[name].Set(value); err != nil {
			return fmt.Errorf("set %s of the %s probe's programs: %w", name, probe, err)
		}
	}
	return nil
}

// Missed is how often programs were not run since one of them was at work on the same
// CPU: since 6.1 the kernel does not run it again within itself.
func Missed(probe string, progs ...*ebpf.Program) (uint64, error) {
	var missed uint64
	for _, p := range progs {
		s, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("read how often the %s probe's programs were not run: %w", probe, err)
		}
		missed += s.RecursionMisses
	}
	return missed, nil
}

// CountLosses reads the counters of a probe's per-CPU array, and counts as lost what was
// added to those with a stage since last, which it brings up to date.
func CountLosses[S ~uint32](probe string, m *ebpf.Map, last []uint64, losses *loss.Counters, stages map[S]loss.Stage) error {
	total := make([]uint64, len(last))
	if err := ReadCounters(m, total); err != nil {
		return fmt.Errorf("read the %s probe's loss counters: %w", probe, err)
	}
	for stat, stage := range stages {
		losses.Add(stage, total[stat]-last[stat])
	}
	copy(last, total)
	return nil
}
