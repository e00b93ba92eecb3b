// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Settler waits for programs. When user space replaces a map within a map, the
// kernel waits for every program that may still have the old one, which is every
// one that runs (maybe_wait_bpf_programs in kernel/bpf/syscall.c, since 5.0).
type Settler struct {
	outer, inner *ebpf.Map
}

// NewSettler makes the two maps, of one entry each.
func NewSettler() (*Settler, error) {
	spec := &ebpf.MapSpec{Name: "orb8_settle", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make a map: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "orb8_settler", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a map of maps: %w", err), inner.Close())
	}
	return &Settler{outer, inner}, nil
}

// Settle returns when every program has ended that was running when it was
// called, sleepable ones aside. That takes some milliseconds. Programs that start
// later see what was written before.
func (s *Settler) Settle() error {
	if err := s.outer.Update(uint32(0), s.inner, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("wait for programs in the kernel to end: %w", err)
	}
	return nil
}

// Close gives the maps back.
func (s *Settler) Close() error { return errors.Join(s.outer.Close(), s.inner.Close()) }
