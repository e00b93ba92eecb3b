// SPDX-License-Identifier: Apache-2.0

//go:build linux

package syscall

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/loss"
)

// threadBatch is how many threads are read at once: more than share a bucket of the
// kernel's hash table, or that could not be read.
const threadBatch = 512

// Flush tells a trace of the calls that still go on, as unfinished: those that it wanted
// when they began, unless it wants only errors now. If they end later they are told of
// again. It may be called from Start until Close, also while Run is at work.
func (p *Probe) Flush(trace uint) error { return p.flush(1 << trace) }

func (p *Probe) flush(traces uint32) error {
	p.mu.Lock()
	for i := range p.wanted {
		if p.wanted[i].ErrorsOnly {
			traces &^= 1 << i
		}
	}
	p.mu.Unlock()
	pending, err := p.pending(traces)
	if err != nil {
		return err
	}
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return fmt.Errorf("read the boot time: %w", err)
	}
	now := uint64(boot.Nano())
	var e Event
	for i := range pending {
		c := &pending[i].Call
		c.Flags |= uint8(bpfCallFlagFLAG_UNFINISHED)
		c.Traces = pending[i].Wanted & traces
		if begin := c.NowNs; now > begin {
			c.LatencyNs, c.NowNs = now-begin, now
		}
		if err := decode(bytesOf(c), &e, p.cfg.Clock); err != nil {
			p.cfg.Losses.Add(loss.DecodeFailed, 1)
			continue
		}
		p.cfg.Apply(&e)
	}
	return nil
}

// pending are the threads in calls that some of the traces want, but for those of
// processes that were moved to another cgroup since: what these do now was not seen.
func (p *Probe) pending(traces uint32) ([]bpfThread, error) {
	if traces == 0 {
		return nil, nil
	}
	var pending []bpfThread
	err := p.eachThread(func(m *ebpf.Map, key uint64, t *bpfThread) {
		if t.InCall == 0 || t.Wanted&traces == 0 {
			return
		}
		whole, ok := stable(m, key, t.Changes)
		var moved uint64
		if ok && (p.Core.Maps[bpfMapSyscallMoves].Lookup(whole.Call.Pid, &moved) != nil || moved < whole.Call.NowNs) {
			pending = append(pending, whole)
		}
	})
	return pending, err
}

// Forget gives back what is kept of cgroups: counts and threads. It is called once they
// are not selected any more; otherwise, if one is selected again, a call that goes on
// then is taken for the one that went on before.
func (p *Probe) Forget(cgroups ...uint64) error {
	if len(cgroups) == 0 {
		return nil
	}
	if err := p.settle.Settle(); err != nil {
		return err
	}
	var errs []error
	err := p.eachThread(func(m *ebpf.Map, key uint64, t *bpfThread) {
		if slices.Contains(cgroups, t.Call.CgroupId) {
			errs = append(errs, remove(m, key))
		}
	})
	return errors.Join(err, errors.Join(errs...), p.ForgetCounts(cgroups...))
}

// ForgetCounts gives back the counts of cgroups.
func (p *Probe) ForgetCounts(cgroups ...uint64) error {
	counts := p.Core.Maps[bpfMapSyscallCounts]
	var key bpfCountKey
	var perCPU []bpfCallCounts
	var gone []bpfCountKey
	it := counts.Iterate()
	for it.Next(&key, &perCPU) {
		if slices.Contains(cgroups, key.CgroupId) {
			gone = append(gone, key)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read the counts of system calls: %w", err)
	}
	for i := range gone {
		if err := remove(counts, &gone[i]); err != nil {
			return err
		}
	}
	return nil
}

// remove takes something out of a map. It may be gone already.
func remove(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget what is kept of a cgroup: %w", err)
	}
	return nil
}

// eachThread calls do for each thread that is kept. It may be at work while it is read.
func (p *Probe) eachThread(do func(m *ebpf.Map, key uint64, t *bpfThread)) error {
	threads := p.Core.Maps[bpfMapSyscallThreads]
	keys, values := make([]uint64, threadBatch), make([]bpfThread, threadBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := threads.BatchLookup(&cursor, keys, values, nil)
		done := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !done {
			return fmt.Errorf("read the threads that are traced: %w", err)
		}
		for i := range n {
			do(threads, keys[i], &values[i])
		}
		if done {
			return nil
		}
	}
}

// stable reads a thread again, which may be at work. What was read is whole if nothing
// has changed between a read before, whose number of changes is given, and one after.
func stable(threads *ebpf.Map, key, changes uint64) (t bpfThread, ok bool) {
	var after bpfThread
	if threads.Lookup(key, &t) != nil || threads.Lookup(key, &after) != nil {
		return t, false // it has ended
	}
	return t, changes%2 == 0 && after.Changes == changes
}
