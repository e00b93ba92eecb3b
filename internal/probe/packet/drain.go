// SPDX-License-Identifier: Apache-2.0

//go:build linux

package packet

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
)

// drainer reads the kernel's flow map. The kernel's counters stay cumulative;
// what has been reported of each entry is kept here, and only idle entries are
// deleted, in one step with their last reading. Only a packet in the instant in
// which its entry, idle until then, is taken out can go uncounted: its program has
// looked the entry up and adds to it afterwards.
type drainer struct {
	cfg      Config
	flows    *ebpf.Map
	keys     []bpfPacketKey
	values   []bpfPacketFlow
	reported map[bpfPacketKey]reported
	idleFor  uint64      // after so many nanoseconds an entry goes, as of this drain
	idle     []idleEntry // scratch
	sample   flow.Sample
	// twoSteps is set where the kernel cannot look up and delete in one step
	// (hash maps before 5.14): a packet in between is not counted.
	twoSteps bool
}

type reported struct {
	start uint64
	total flow.Counters
}

type idleEntry struct {
	key  bpfPacketKey
	last uint64
}

func newDrainer(flows *ebpf.Map, cfg Config) drainer {
	return drainer{
		cfg: cfg, flows: flows,
		keys: make([]bpfPacketKey, cfg.Batch), values: make([]bpfPacketFlow, cfg.Batch),
		reported: make(map[bpfPacketKey]reported),
	}
}

// drain returns how many entries had news.
func (d *drainer) drain() (news uint64, err error) {
	now, err := bootNow()
	if err != nil {
		return 0, err
	}
	d.idleFor = uint64(d.cfg.Idle())
	crowded := d.crowded()
	news, err = d.read(now, crowded)
	if err == nil && !crowded && d.crowded() {
		// Room is made now, not in the next pass: until then new flows
		// would find none.
		var more uint64
		more, err = d.read(now, true)
		news += more
	}
	if err != nil {
		return news, err
	}
	return news, d.deleteIdle(now)
}

// crowded reports whether there are so many entries that the longest idle go
// early.
func (d *drainer) crowded() bool { return len(d.reported) > int(d.cfg.MapEntries)/4*3 }

// read makes one pass over the map. It reports what has news and notes in idle
// the entries that may be deleted: those without traffic for the idle time, or
// any of them.
func (d *drainer) read(now uint64, anyAge bool) (news uint64, err error) {
	d.idle = d.idle[:0]
	var cursor ebpf.MapBatchCursor
	for {
		n, err := d.flows.BatchLookup(&cursor, d.keys, d.values, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if errors.Is(err, unix.ENOSPC) {
			d.grow()
			continue
		}
		if err != nil && !done {
			return news, fmt.Errorf("read the packet map: %w", err)
		}
		for i := range n {
			k, f := &d.keys[i], &d.values[i]
			if d.report(k, f) {
				news++
			}
			if anyAge || f.LastNs+d.idleFor <= now {
				d.idle = append(d.idle, idleEntry{*k, f.LastNs})
			}
		}
		if done {
			return news, nil
		}
	}
}

// grow makes room for a hash bucket that holds more than a batch.
func (d *drainer) grow() {
	d.cfg.Losses.Add(loss.PacketBatchRetried, 1)
	d.keys = make([]bpfPacketKey, 2*len(d.keys))
	d.values = make([]bpfPacketFlow, len(d.keys))
}

// report applies an entry if it has news.
func (d *drainer) report(k *bpfPacketKey, f *bpfPacketFlow) bool {
	old := d.reported[*k]
	if old.start != f.StartNs {
		old = reported{}
	}
	total := counters(f)
	if total == old.total {
		return false
	}
	decode(k, f, old.total, &d.sample, d.cfg.Clock)
	d.cfg.Apply(&d.sample)
	d.reported[*k] = reported{f.StartNs, total}
	return true
}

// deleteIdle removes the entries without traffic for the idle time; while the
// map is filling up also younger ones, the longest idle first, down to half.
func (d *drainer) deleteIdle(now uint64) error {
	slices.SortFunc(d.idle, func(a, b idleEntry) int { return cmp.Compare(a.last, b.last) })
	surplus := len(d.reported) - int(d.cfg.MapEntries)/2
	for i, e := range d.idle {
		expired := e.last+d.idleFor <= now
		if !expired && i >= surplus {
			break
		}
		if err := d.delete(&e.key); err != nil {
			return err
		}
	}
	if len(d.reported) == 0 {
		d.reported = make(map[bpfPacketKey]reported) // a Go map never shrinks
	}
	return nil
}

// delete takes an entry out and reports what came in since it was read.
func (d *drainer) delete(k *bpfPacketKey) error {
	var last bpfPacketFlow
	err := d.lookupAndDelete(k, &last)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		delete(d.reported, *k)
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete an idle flow from the packet map: %w", err)
	}
	d.report(k, &last)
	delete(d.reported, *k)
	return nil
}

func (d *drainer) lookupAndDelete(k *bpfPacketKey, last *bpfPacketFlow) error {
	if !d.twoSteps {
		err := d.flows.LookupAndDelete(k, last)
		if !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		d.twoSteps = true
	}
	if err := d.flows.Lookup(k, last); err != nil {
		return err
	}
	return d.flows.Delete(k)
}

func bootNow() (uint64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read the boot-time clock: %w", err)
	}
	return uint64(ts.Nano()), nil
}
