// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
)

// counts reads what the kernel counts of the sockets during a pass.
type counts struct {
	byCgroup *ebpf.Map
	pass     *ebpf.Variable
	now      uint64 // boot time at which the latest pass began

	ids     []uint64
	values  []bpfTcpCount
	stale   []uint64
	sockets []flow.SocketCount
}

func newCounts(core *ebpf.Collection) *counts {
	return &counts{byCgroup: core.Maps[bpfMapTcpCounts], pass: core.Variables[bpfVarPassNs]}
}

// begin tells the kernel that a pass begins.
func (c *counts) begin() error {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return fmt.Errorf("read the boot clock: %w", err)
	}
	c.now = max(c.now+1, uint64(boot.Nano()))
	if err := c.pass.Set(c.now); err != nil {
		return fmt.Errorf("begin a pass over the sockets: %w", err)
	}
	return nil
}

// read returns what the pass since begin has counted, and deletes what it has not
// met again. The result is valid until the next call.
func (c *counts) read() ([]flow.SocketCount, error) {
	if c.ids == nil {
		// All of the map at once: a batch is never too small for one of its buckets.
		n := c.byCgroup.MaxEntries()
		c.ids, c.values = make([]uint64, n), make([]bpfTcpCount, n)
	}
	var cursor ebpf.MapBatchCursor
	n, err := c.byCgroup.BatchLookup(&cursor, c.ids, c.values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // that is the map's end
		return nil, fmt.Errorf("read the numbers of sockets: %w", err)
	}
	c.sockets, c.stale = c.sockets[:0], c.stale[:0]
	for i := range n {
		v := &c.values[i]
		if v.PassNs != c.now {
			c.stale = append(c.stale, c.ids[i])
			continue
		}
		c.sockets = append(c.sockets, flow.SocketCount{
			CgroupID: c.ids[i], Established: v.Established, Idle: v.Idle,
			HalfOpen: v.HalfOpen, HalfClosed: v.HalfClosed,
		})
	}
	if len(c.stale) > 0 {
		if _, err := c.byCgroup.BatchDelete(c.stale, nil); err != nil {
			return nil, fmt.Errorf("delete old numbers of sockets: %w", err)
		}
	}
	return c.sockets, nil
}
