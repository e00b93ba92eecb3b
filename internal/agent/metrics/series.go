// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"maps"
	"slices"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// A workload's time series are kept in cells, each of which makes one or more
// series of the same families. The cells of a workload, in order:
const (
	cellTraffic     = 0
	cellRTT         = cellTraffic + numProtocols
	cellConnect     = cellRTT + 1
	cellFailure     = cellConnect + 1
	cellRetransmits = cellFailure + numReasons
	cellResetSent   = cellRetransmits + 1
	cellResetRecv   = cellResetSent + 1
	cellZoneSame    = cellResetRecv + 1
	cellZoneCross   = cellZoneSame + 1
	numCells        = cellZoneCross + 1

	numProtocols = 5
	numReasons   = 6
)

// cell is one of traffic (the counters), a counter (n) or a histogram.
type cell struct {
	flow.Counters
	n    uint64
	hist *histogram
	size int // of a cell of more, how many time series it makes
}

func (c *cell) clone() *cell {
	cp := *c
	if cp.hist != nil {
		cp.hist = cp.hist.clone()
	}
	return &cp
}

func newCell(i int) *cell {
	switch i {
	case cellRTT:
		return &cell{hist: newHistogram(rttBuckets())}
	case cellConnect:
		return &cell{hist: newHistogram(connectBuckets())}
	}
	return new(cell)
}

// seriesOf is how many time series cell i makes: bytes and packets both ways and
// the active flows for traffic; one per bound, +Inf, sum and count for a
// histogram.
func seriesOf(i int) int {
	switch {
	case i < cellTraffic+numProtocols:
		return 5
	case i == cellRTT:
		return len(rttBuckets()) + 3
	case i == cellConnect:
		return len(connectBuckets()) + 3
	case i == cellZoneSame || i == cellZoneCross:
		return 2 // both directions
	}
	return 1
}

// protocolLabels are the values of the label protocol; any other protocol shares
// the last, so that the number of series stays bounded.
func protocolLabels() [numProtocols]string {
	return [numProtocols]string{"TCP", "UDP", "ICMP", "ICMPv6", "other"}
}

func protocolIndex(p record.Protocol) int {
	switch p {
	case record.TCP:
		return 0
	case record.UDP:
		return 1
	case record.ICMP:
		return 2
	case record.ICMPv6:
		return 3
	}
	return 4
}

// reasonLabels are the values of the label reason.
func reasonLabels() [numReasons]string {
	return [numReasons]string{"refused", "timeout", "unreachable", "reset", "aborted", "error"}
}

func reasonIndex(e flow.End) int {
	switch e {
	case flow.EndRefused:
		return 0
	case flow.EndTimeout:
		return 1
	case flow.EndUnreachable:
		return 2
	case flow.EndResetLocal, flow.EndResetRemote:
		return 3
	case flow.EndAborted:
		return 4
	}
	return 5
}

// histogram counts observations of nanoseconds; counts has one more element than
// bounds, for what is above the last.
type histogram struct {
	bounds []uint64
	counts []uint64
	sum    uint64
}

func newHistogram(bounds []uint64) *histogram {
	return &histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(ns uint64) {
	i, _ := slices.BinarySearch(h.bounds, ns)
	h.counts[i]++
	h.sum += ns
}

func (h *histogram) empty() bool {
	for _, n := range h.counts {
		if n != 0 {
			return false
		}
	}
	return true
}

func (h *histogram) clone() *histogram {
	return &histogram{h.bounds, slices.Clone(h.counts), h.sum}
}

func rttBuckets() []uint64 {
	return []uint64{50e3, 100e3, 250e3, 500e3, 1e6, 2500e3, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 500e6, 1e9}
}

// connectBuckets follows the SYN's retries after 1, 3, 7 and 15 seconds.
func connectBuckets() []uint64 {
	return []uint64{100e3, 250e3, 500e3, 1e6, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 500e6, 1e9, 3e9, 7e9, 15e9}
}

func sampleBuckets() []uint64 {
	return []uint64{250e3, 500e3, 1e6, 2500e3, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 1e9}
}

// labels identify a workload in the metrics.
type labels struct {
	namespace, name, kind, pod string
}

func labelsOf(id *workload.Identity, pod bool) labels {
	l := labels{namespace: id.Namespace, name: id.Name, kind: id.Kind}
	if pod {
		l.pod = id.Pod
	}
	return l
}

func (l labels) values(pod bool, extra ...string) []string {
	v := []string{l.namespace, l.name, l.kind}
	if pod {
		v = append(v, l.pod)
	}
	return append(v, extra...)
}

// series are the time series of one workload. A cell that has not been needed is
// nil; one that the cap refused is that of the workload "other".
type series struct {
	labels labels
	cells  [numCells]*cell
	// more are the cells of families that single kinds of records have.
	more map[moreKey]*cell
	// cgroups are those of the workload's identities, some of them if there are many.
	cgroups []uint64
	// transient workloads, those named by a command, have no end of their own.
	transient bool
	// touched is when something was counted last, in Unix nanoseconds.
	touched int64
	capped  bool
	// cappedOnce is set for good, so that a workload is counted as capped once.
	cappedOnce bool
}

// newOther returns the complete series of what the cap refuses.
func newOther() *series {
	s := &series{labels: labels{name: "other", kind: "Other"}}
	for i := range s.cells {
		s.cells[i] = newCell(i)
	}
	return s
}

// maxCgroups is how many cgroups of a workload keep its series.
const maxCgroups = 64

// in notes a cgroup of the workload. One that is gone makes room when series are swept.
func (s *series) in(cgroup uint64) {
	if cgroup != 0 && len(s.cgroups) < maxCgroups && !slices.Contains(s.cgroups, cgroup) {
		s.cgroups = append(s.cgroups, cgroup)
	}
}

// moreKey is a family and the value of its label.
type moreKey struct{ family, value string }

// seriesOfFamily is how many time series one value of a family makes.
func seriesOfFamily(f *kind.Family) int {
	if f.Buckets != nil {
		return len(f.Buckets) + 3
	}
	return 1
}

// size is how many time series s makes that are not those of other.
func (s *series) size(other *series) int {
	n := 0
	for k, c := range s.more {
		if c != other.more[k] {
			n += c.size
		}
	}
	for i, c := range s.cells {
		if c != nil && c != other.cells[i] {
			n += seriesOf(i)
		}
	}
	return n
}

// uncap forgets what the cap refused, so that it is asked for again.
func (s *series) uncap(other *series) {
	for i := range s.cells {
		if s.cells[i] == other.cells[i] {
			s.cells[i] = nil
		}
	}
	maps.DeleteFunc(s.more, func(k moreKey, c *cell) bool { return c == other.more[k] })
	s.capped = false
}

// prune drops the cells in which nothing has been counted.
func (s *series) prune(flows [numProtocols]int) {
	for i, c := range s.cells {
		switch {
		case i < cellTraffic+numProtocols && flows[i] > 0:
		case c.n == 0 && c.Counters == (flow.Counters{}) && (c.hist == nil || c.hist.empty()):
			s.cells[i] = nil
		}
	}
	// Those of more are made when something is counted in them.
}

// clone copies s, without what belongs to other unless s is that.
func (s *series) clone(other *series) *series {
	c := *s
	c.more = maps.Clone(s.more)
	if s != other {
		c.uncap(other)
	}
	for k, old := range c.more {
		c.more[k] = old.clone()
	}
	for i, old := range c.cells {
		if old == nil {
			continue
		}
		c.cells[i] = old.clone()
	}
	return &c
}
