// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/Ignoramuss/orb8/internal/loss"
)

// Object is what one probe has in the kernel: its programs and maps, what they are attached
// to, which optional parts are missing, and what they count as lost. A probe embeds one and
// so has the methods Hooks, Degraded and Close. What a method that fails has made before is
// taken back by Close.
type Object struct {
	// Core has the maps, and the programs that the probe cannot do without.
	Core *ebpf.Collection

	probe    string
	losses   *loss.Counters
	spec     *ebpf.CollectionSpec
	closers  []io.Closer // in the order in which they were made
	hooks    []string
	degraded []string
	tracing  Tracing
	counters []counters
}

// counters is a per-CPU array of the kernel's with what was lost at each of its stages.
type counters struct {
	m      *ebpf.Map
	stages []loss.Stage
	total  []uint64 // as last read
}

// NewObject returns an empty Object of a probe.
func NewObject(probe string, losses *loss.Counters) Object {
	return Object{probe: probe, losses: losses}
}

// Hooks lists what is attached.
func (o *Object) Hooks() []string { return o.hooks }

// Degraded lists the optional parts that are missing, each with its effect.
func (o *Object) Degraded() []string { return slices.Clone(o.degraded) }

// Close detaches and unloads everything.
func (o *Object) Close() error {
	err := CloseAll(o.closers)
	o.Core, o.closers, o.hooks, o.tracing, o.counters = nil, nil, nil, Tracing{}, nil
	return err
}

// Keep has Close close c, too.
func (o *Object) Keep(c io.Closer) { o.closers = append(o.closers, c) }

// Load loads all maps of spec and the programs named. Those named later stand on these maps.
func (o *Object) Load(spec *ebpf.CollectionSpec, programs ...string) error {
	return o.LoadOn(spec, nil, programs...)
}

// LoadOn is Load with some maps of others in place of the probe's own, by their names.
func (o *Object) LoadOn(spec *ebpf.CollectionSpec, shared map[string]*ebpf.Map, programs ...string) error {
	core, err := ebpf.NewCollectionWithOptions(Only(spec, programs...), ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return err
	}
	o.Core, o.spec = core, spec
	o.Keep(CloseFunc(core.Close))
	return nil
}

// LoadOne loads one more program.
func (o *Object) LoadOne(name string) (*ebpf.Program, error) {
	coll, err := LoadOne(o.spec, o.Core, name)
	if err != nil {
		return nil, err
	}
	o.Keep(CloseFunc(coll.Close))
	return coll.Programs[name], nil
}

// Walk loads one more program, an iterator that is run for its effects.
func (o *Object) Walk(name string) (*Walk, error) {
	w, err := NewWalk(o.spec, o.Core, name)
	if err != nil {
		return nil, err
	}
	o.Keep(w)
	return w, nil
}

// RunOnce loads one more program, an iterator, runs it once for its effects and unloads it.
func (o *Object) RunOnce(name string) error { return RunOnce(o.spec, o.Core, name) }

// Attached takes note of a link.
func (o *Object) Attached(l link.Link, hook string) {
	o.Keep(l)
	o.hooks = append(o.hooks, hook)
}

// AttachTracing attaches a tracing program where its section says. What the kernel leaves
// out of its runs counts as lost.
func (o *Object) AttachTracing(prog *ebpf.Program, hook string) error {
	return o.AttachCounted(&o.tracing, prog, hook)
}

// AttachCounted is AttachTracing for a program whose skips the probe itself reads from with.
func (o *Object) AttachCounted(with *Tracing, prog *ebpf.Program, hook string) error {
	l, err := with.Attach(prog)
	if err != nil {
		return Explain("attach "+hook, err)
	}
	o.Attached(l, hook)
	return nil
}

// AttachCgroup attaches a program at a cgroup and all below it.
func (o *Object) AttachCgroup(prog *ebpf.Program, at ebpf.AttachType, path, hook string) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: at, Program: prog})
	if err != nil {
		return Explain(fmt.Sprintf("attach %s at %s", hook, path), err)
	}
	o.Attached(l, hook)
	return nil
}

// Lacks notes an optional part that is missing: its effect, what it would be attached to,
// and why it is not. With a nil error nothing is missing.
func (o *Object) Lacks(effect, hook string, err error) {
	if err != nil {
		o.degraded = append(o.degraded, fmt.Sprintf("%s (%s: %s)", effect, hook, cause(err)))
	}
}

// Counts has ReadLosses add what a per-CPU array of counters counts: each of its elements is
// a stage, in their order.
func (o *Object) Counts(m *ebpf.Map, stages ...loss.Stage) {
	o.counters = append(o.counters, counters{m, stages, make([]uint64, len(stages))})
}

// ReadLosses counts what was lost since it was last called: what the programs have counted,
// and what the kernel has left out of the runs of tracing programs. It returns how much
// each stage has grown.
func (o *Object) ReadLosses() (grown map[loss.Stage]uint64, err error) {
	skips, err := o.tracing.Skips()
	if err != nil {
		return nil, err
	}
	o.losses.Add(loss.ProgramSkipped, skips)
	grown = make(map[loss.Stage]uint64)
	for i := range o.counters {
		c := &o.counters[i]
		now := make([]uint64, len(c.total))
		if err := ReadCounters(c.m, now); err != nil {
			return nil, fmt.Errorf("read the %s probe's loss counters: %w", o.probe, err)
		}
		for n, stage := range c.stages {
			d := now[n] - c.total[n]
			o.losses.Add(stage, d)
			if d > 0 {
				grown[stage] += d
			}
		}
		c.total = now
	}
	return grown, nil
}

// Undo returns err, the outcome of an attempt to start; if there is one, what the attempt
// has made is taken back.
func (o *Object) Undo(err error) error {
	if err != nil {
		err = errors.Join(err, o.Close())
	}
	return err
}
