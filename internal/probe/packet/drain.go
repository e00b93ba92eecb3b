// SPDX-License-Identifier: Apache-2.0

//go:build linux

package packet

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/shrink"
)

// drainer reads the kernel's flow map. The kernel's counters stay cumulative;
// what has been reported of each entry is kept here, and only idle entries are
// deleted. Before their last reading they are retired, so that no program adds to
// them afterwards, see retire.
type drainer struct {
	cfg      Config
	kernel   kernel
	keys     []bpfPacketKey
	values   []bpfPacketFlow
	reported map[bpfPacketKey]reported
	peak     shrink.Peak
	idleFor  uint64      // after so many nanoseconds an entry goes, as of this drain
	idle     []idleEntry // scratch
	sums     int         // entries of kernel.others, as of this drain
	// retired is when entries were last taken out.
	retired uint64
	sample  flow.Sample
}

// kernel is what the drainer shares with the programs.
type kernel struct {
	flows, late, others *ebpf.Map
	retireBefore        *ebpf.Variable
	// settle waits until every program has ended that was running when it was
	// called.
	settle func() error
}

type reported struct {
	start uint64
	total flow.Counters
	// late is what came while the entry was taken out; not in total.
	late flow.Counters
}

type idleEntry struct {
	in   *ebpf.Map
	key  bpfPacketKey
	last uint64
}

const (
	// retireMargin is how long an entry has been without packets at least when it
	// is taken out: more than the clocks that the programs read are apart, one of
	// which moves with the kernel's tick.
	retireMargin = uint64(20 * time.Millisecond)
	// retireEvery is the longest time between two rounds of taking entries out:
	// in each the kernel is waited for twice.
	retireEvery = 4 * time.Second
)

func newDrainer(k kernel, cfg Config) drainer {
	return drainer{
		cfg: cfg, kernel: k,
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
	return news, d.takeOut(now)
}

// crowded reports whether there are so many entries that the longest idle go
// early.
func (d *drainer) crowded() bool { return d.entries() > int(d.cfg.MapEntries)/4*3 }

// entries is how many the flow map has.
func (d *drainer) entries() int { return len(d.reported) - d.sums }

// read makes one pass over the flow map and the sums. It reports what has news and
// notes in idle the entries that may be deleted: those without traffic for the idle
// time, of flows any if anyAge.
func (d *drainer) read(now uint64, anyAge bool) (news uint64, err error) {
	d.idle = d.idle[:0]
	news, _, err = d.readMap(d.kernel.flows, now, anyAge)
	if err != nil {
		return news, err
	}
	more, n, err := d.readMap(d.kernel.others, now, false)
	d.sums = n
	return news + more, err
}

func (d *drainer) readMap(m *ebpf.Map, now uint64, anyAge bool) (news uint64, entries int, err error) {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, d.keys, d.values, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if errors.Is(err, unix.ENOSPC) {
			d.grow()
			continue
		}
		if err != nil && !done {
			return news, entries, fmt.Errorf("read the packet probe's map %s: %w", m, err)
		}
		entries += n
		for i := range n {
			k, f := &d.keys[i], &d.values[i]
			if d.report(k, f) {
				news++
			}
			if anyAge || f.LastNs+d.idleFor <= now {
				d.idle = append(d.idle, idleEntry{m, *k, f.LastNs})
			}
		}
		if done {
			return news, entries, nil
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
		old = reported{start: f.StartNs}
	}
	total := counters(f)
	if total == old.total {
		return false
	}
	d.apply(k, f, old, reported{f.StartNs, total, old.late})
	return true
}

func (d *drainer) apply(k *bpfPacketKey, f *bpfPacketFlow, from, to reported) {
	decode(k, f, from.total.Add(from.late), &d.sample, d.cfg.Clock)
	d.sample.Total = to.total.Add(to.late)
	d.cfg.Apply(&d.sample)
	d.reported[*k] = to
}

// takeOut removes the entries without traffic for the idle time; while the map is
// filling up also younger ones, the longest idle first, down to half.
func (d *drainer) takeOut(now uint64) error {
	slices.SortFunc(d.idle, func(a, b idleEntry) int { return cmp.Compare(a.last, b.last) })
	before := now - min(max(d.idleFor, retireMargin), now)
	surplus := min(d.entries()-int(d.cfg.MapEntries)/2, len(d.idle))
	n, _ := slices.BinarySearchFunc(d.idle, before+1, func(e idleEntry, t uint64) int { return cmp.Compare(e.last, t) })
	crowded := surplus > n
	if crowded {
		n, before = surplus, d.idle[surplus-1].last
		if age := now - min(before, now); age < retireMargin {
			time.Sleep(time.Duration(retireMargin - age))
		}
	}
	rest := min(uint64(retireEvery), d.idleFor/8)
	if n == 0 || surplus <= 0 && now-d.retired < rest {
		return nil
	}
	d.retired = now
	err := d.retire(before, d.idle[:n])
	var shrunk bool
	if d.reported, shrunk = shrink.Map(d.reported, &d.peak); shrunk {
		d.idle = nil
	}
	return err
}

// retire takes out entries that had no packet after before. From when every
// program knows of that, nothing is added to such entries: these are read for the
// last time and deleted. What comes for them in the meantime is counted in another
// map, and that is read when no program writes to it any more.
func (d *drainer) retire(before uint64, entries []idleEntry) (err error) {
	set := func(t uint64) error {
		if err := d.kernel.retireBefore.Set(t); err != nil {
			return fmt.Errorf("set which flows are taken out of the packet map: %w", err)
		}
		return d.kernel.settle()
	}
	// Whatever happens, the programs must not be left with entries retired.
	gone := make(map[bpfPacketKey]bpfPacketFlow, len(entries))
	err = set(before)
	for i := 0; err == nil && i < len(entries); i++ {
		err = d.delete(&entries[i], before, gone)
	}
	if err = errors.Join(err, set(0)); err != nil {
		return err
	}
	err = d.readLate(gone)
	for k, f := range gone {
		// It may have a new entry already, which has another start.
		if d.reported[k].start == f.StartNs {
			delete(d.reported, k)
		}
	}
	return err
}

// delete takes an entry out, unless there has been traffic, and reports what came
// in since it was read. It puts the last reading into gone.
func (d *drainer) delete(e *idleEntry, before uint64, gone map[bpfPacketKey]bpfPacketFlow) error {
	var last bpfPacketFlow
	k := &e.key
	err := e.in.Lookup(k, &last)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		delete(d.reported, *k)
		return nil
	}
	if err == nil && last.LastNs > before {
		return nil
	}
	if err == nil {
		d.report(k, &last)
		err = e.in.Delete(k)
	}
	if err != nil {
		return fmt.Errorf("delete an idle entry of the packet probe's map %s: %w", e.in, err)
	}
	gone[*k] = last
	return nil
}

// readLate reports what came for entries while they were taken out, as theirs.
func (d *drainer) readLate(gone map[bpfPacketKey]bpfPacketFlow) error {
	var (
		k    bpfPacketKey
		late bpfPacketFlow
		keys []bpfPacketKey
	)
	all := d.kernel.late.Iterate()
	for all.Next(&k, &late) {
		f, ok := gone[k]
		if !ok && d.kernel.flows.Lookup(&k, &f) != nil { // one that was as old, but not to go
			f = late
		}
		f.LastNs = max(f.LastNs, late.LastNs)
		old := d.reported[k]
		if old.start != f.StartNs {
			old = reported{start: f.StartNs}
		}
		to := old
		to.late = old.late.Add(counters(&late))
		d.apply(&k, &f, old, to)
		keys = append(keys, k)
	}
	err := all.Err()
	for i := range keys {
		err = errors.Join(err, d.kernel.late.Delete(&keys[i]))
	}
	if err != nil {
		return fmt.Errorf("read late packets: %w", err)
	}
	return nil
}

func bootNow() (uint64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read the boot-time clock: %w", err)
	}
	return uint64(ts.Nano()), nil
}
