// SPDX-License-Identifier: Apache-2.0

//go:build linux

package syscall

import (
	"fmt"
	"time"
)

// Count is what is known of one kind of call in one cgroup, for as long as it was counted
// for any trace.
type Count struct {
	CgroupID uint64
	Kind
	// Calls that have ended, refused ones and those that never return included.
	Calls, Errors uint64
	// Time from the calls' begin to their end, also while they wait.
	Time, Max time.Duration
	// ByTime is how many calls took how long: in the first bucket those below 256 ns,
	// then two buckets for each power of two.
	ByTime [Buckets]uint64
}

// Buckets is BUCKETS of the programs.
const Buckets = 64

// Summary returns the counts in no order. It may be called from Start until Close, also
// while Run is at work.
func (p *Probe) Summary() ([]Count, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Count
	var key bpfCountKey
	var perCPU []bpfCallCounts
	it := p.Core.Maps[bpfMapSyscallCounts].Iterate()
	for it.Next(&key, &perCPU) {
		all = append(all, sum(key, perCPU))
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read the counts of system calls: %w", err)
	}
	return all, nil
}

func sum(key bpfCountKey, perCPU []bpfCallCounts) Count {
	c := Count{CgroupID: key.CgroupId, Kind: Kind{abis()[key.Compat&1], key.Nr}}
	for i := range perCPU {
		n := &perCPU[i]
		c.Calls += n.Calls
		c.Errors += n.Errors
		c.Time += time.Duration(n.TimeNs)
		c.Max = max(c.Max, time.Duration(n.MaxNs))
		for b := range n.ByTime {
			c.ByTime[b] += uint64(n.ByTime[b])
		}
	}
	return c
}
