// SPDX-License-Identifier: Apache-2.0

//go:build linux

package drop

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/Ignoramuss/orb8/internal/flow"
)

// otherReason is the name under which packets count of which no reason is known: they
// found no room in the map and theirs is a subsystem's, or see readMissed.
const otherReason = "OTHER"

// counter reads how many packets were dropped. The kernel adds to one of two maps and
// is told to take the other before that one is read, so that nothing is counted twice
// or not at all.
type counter struct {
	maps   [2]*ebpf.Map
	active *ebpf.Variable
	now    uint32 // of maps, the one that the kernel adds to
	// settle waits until every program has ended that was running when it was
	// called.
	settle func() error
	// rest is what found no room, by reason; read is what it was last time.
	rest *ebpf.Variable
	read [maxReasons]uint64

	keys   []bpfDropKey
	values []uint64
	counts []flow.DropCount
}

// collect returns the packets since the last call. They are valid until the next.
func (c *counter) collect(name func(uint32) string) ([]flow.DropCount, error) {
	c.counts = c.counts[:0]
	next := 1 - c.now
	if err := c.active.Set(next); err != nil {
		return nil, fmt.Errorf("change the map of drops: %w", err)
	}
	full := c.maps[c.now]
	c.now = next
	if err := c.settle(); err != nil {
		return nil, err
	}
	err := errors.Join(c.empty(full, name), c.readRest(name))
	return c.counts, err
}

// empty takes all out of a map that no program adds to.
func (c *counter) empty(m *ebpf.Map, name func(uint32) string) error {
	if c.keys == nil {
		// As many as there can be: a batch never has to be asked for twice.
		c.keys, c.values = make([]bpfDropKey, m.MaxEntries()), make([]uint64, m.MaxEntries())
	}
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookupAndDelete(&cursor, c.keys, c.values, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			return fmt.Errorf("read the map of drops: %w", err)
		}
		for i := range n {
			k := &c.keys[i]
			c.counts = append(c.counts, flow.DropCount{
				Reason: name(k.Reason), CgroupID: k.CgroupId,
				Src: flow.Addr(k.Src.B), Dst: flow.Addr(k.Dst.B), Ingress: k.Ingress != 0, Packets: c.values[i],
			})
		}
		if done {
			return nil
		}
	}
}

func (c *counter) readRest(name func(uint32) string) error {
	var total [maxReasons]uint64
	if err := c.rest.Get(&total); err != nil {
		return fmt.Errorf("read the drops without room in the map: %w", err)
	}
	for reason, n := range &total {
		if n == c.read[reason] {
			continue
		}
		d := flow.DropCount{Reason: otherReason, Packets: n - c.read[reason]}
		if reason != otherSlot {
			d.Reason = name(uint32(reason))
		}
		c.counts = append(c.counts, d)
	}
	c.read = total
	return nil
}
