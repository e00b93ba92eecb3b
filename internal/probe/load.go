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
)

// Only returns spec with all its maps and no programs but those named, so that
// a probe can load its optional programs one at a time.
func Only(spec *ebpf.CollectionSpec, names ...string) *ebpf.CollectionSpec {
	sub := spec.Copy()
	clear(sub.Programs)
	for _, n := range names {
		sub.Programs[n] = spec.Programs[n].Copy()
	}
	return sub
}

// CloseFunc makes an io.Closer of a Close without result.
type CloseFunc func()

// Close calls f.
func (f CloseFunc) Close() error { f(); return nil }

// CloseAll closes what a probe has opened, the last one first.
func CloseAll(opened []io.Closer) error {
	var errs []error
	for _, c := range slices.Backward(opened) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// LoadOne loads an optional program by itself, on the maps of core.
func LoadOne(spec *ebpf.CollectionSpec, core *ebpf.Collection, name string) (*ebpf.Collection, error) {
	coll, err := ebpf.NewCollectionWithOptions(Only(spec, name), ebpf.CollectionOptions{MapReplacements: core.Maps})
	return coll, Explain("load", err)
}

// RunOnce loads an optional iterator program like LoadOne, runs it once for its
// effects and unloads it.
func RunOnce(spec *ebpf.CollectionSpec, core *ebpf.Collection, name string) (err error) {
	w, err := NewWalk(spec, core, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	return w.Run()
}

// Walk is an iterator program that is run for its effects.
type Walk struct {
	coll *ebpf.Collection
	iter *link.Iter
}

// NewWalk loads a program like LoadOne.
func NewWalk(spec *ebpf.CollectionSpec, core *ebpf.Collection, name string) (*Walk, error) {
	coll, err := LoadOne(spec, core, name)
	if err != nil {
		return nil, err
	}
	it, err := link.AttachIter(link.IterOptions{Program: coll.Programs[name]})
	if err != nil {
		coll.Close()
		return nil, Explain("attach", err)
	}
	return &Walk{coll, it}, nil
}

// Run runs the program over all that there is.
func (w *Walk) Run() (err error) {
	r, err := w.iter.Open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = io.Copy(io.Discard, r)
	return err
}

// Close unloads the program.
func (w *Walk) Close() error {
	err := w.iter.Close()
	w.coll.Close()
	return err
}

// ReadCounters fills total with the counters of a per-CPU array, each the sum
// of all CPUs.
func ReadCounters(m *ebpf.Map, total []uint64) error {
	var perCPU []uint64
	for i := range total {
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			return err
		}
		total[i] = 0
		for _, n := range perCPU {
			total[i] += n
		}
	}
	return nil
}
