// SPDX-License-Identifier: Apache-2.0

// Package metrics counts records by workload and serves what was counted, and what the
// agent says of itself and of accelerators, to Prometheus.
package metrics

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/kinds"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// maxIdentities bounds the look-up by identity; when it is full, it is made anew from
// what is seen next.
const maxIdentities = 16_384

// maxRested bounds of how many workloads without series the totals are kept, at about a
// kilobyte each.
const maxRested = 2048

// Workloads counts records by workload. Observe is called for every record and
// does not allocate for a workload that it knows. Scrapes read copies.
type Workloads struct {
	pod    bool
	losses *loss.Counters

	mu sync.Mutex
	// max bounds the series by workload, used is how many there are, usedByCommands
	// how many of these commands have. commands is how many are in byLabels.
	max, used, usedByCommands, commands int

	byIdentity map[*workload.Identity]*series
	byLabels   map[labels]*series
	// rested are the series of workloads that have none now, so that their counters go on
	// from where they were when the workload comes back.
	rested map[labels]*series
	// other takes what max refuses; its own series do not count.
	other *series
	// families are those of single kinds of records, by name.
	families map[string]*kind.Family
	meter    meter
	passes   *histogram
}

// NewWorkloads returns an empty Workloads of at most maxSeries time series. pod tells pods
// of one workload apart.
func NewWorkloads(pod bool, maxSeries int, losses *loss.Counters) *Workloads {
	m := &Workloads{
		pod: pod, max: maxSeries, losses: losses, families: make(map[string]*kind.Family),
		byIdentity: make(map[*workload.Identity]*series),
		byLabels:   make(map[labels]*series),
		rested:     make(map[labels]*series),
		other:      newOther(),
		passes:     newHistogram(sampleBuckets()),
	}
	for _, f := range kinds.Families() {
		m.families[f.Name] = &f
	}
	m.meter.m = m
	return m
}

// Measure has a record count in its owner's metrics.
func Measure[T any](m *Workloads, h *record.Header, r *T, count func(*T, kind.Meter)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meter.s = m.find(h.Owner)
	m.meter.s.touched = max(m.meter.s.touched, h.Time)
	count(r, &m.meter)
}

// meter is a kind.Meter for one workload. It is used with m.mu held.
type meter struct {
	m *Workloads
	s *series
}

func (t *meter) Count(family, value string, n uint64) {
	if c := t.m.moreCell(t.s, moreKey{family, value}); c != nil {
		c.n += n
	}
}

func (t *meter) Observe(family string, ns uint64) {
	if c := t.m.moreCell(t.s, moreKey{family: family}); c != nil && c.hist != nil {
		c.hist.observe(ns)
	}
}

// moreCell returns a cell of s of a single kind's family, that of other if the cap does not
// allow one more; nil if there is no such family. It is called with m.mu held.
func (m *Workloads) moreCell(s *series, k moreKey) *cell {
	if c := s.more[k]; c != nil {
		return c
	}
	f := m.families[k.family]
	if f == nil {
		return nil
	}
	if k.value != "" && s.values(k.family) >= kind.MaxValues {
		if k.value = "other"; s.more[k] != nil {
			return s.more[k]
		}
	}
	if s.more == nil {
		s.more = make(map[moreKey]*cell)
	}
	size := seriesOfFamily(f)
	if s != m.other && !m.admit(s, size) {
		s.more[k] = m.moreCell(m.other, k)
		return s.more[k]
	}
	c := &cell{size: size}
	if f.Buckets != nil {
		c.hist = newHistogram(f.Buckets)
	}
	s.more[k] = c
	return c
}

// values is how many values of a family's label s has.
func (s *series) values(family string) (n int) {
	for k := range s.more {
		if k.family == family {
			n++
		}
	}
	return n
}

// Observe counts what r added.
func (m *Workloads) Observe(r *flow.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.find(r.Owner)
	s.touched = max(s.touched, r.Time)
	t := m.cell(s, cellTraffic+protocolIndex(r.Protocol))
	t.Counters = t.Add(r.Delta)
	if r.Peer != nil && r.Owner.Zone != "" && r.Peer.Zone != "" {
		zone := cellZoneSame
		if r.Owner.Zone != r.Peer.Zone {
			zone = cellZoneCross
		}
		z := m.cell(s, zone)
		z.Counters = z.Add(r.Delta)
	}
	if r.Protocol == record.TCP && r.TCP.Valid {
		m.observeTCP(s, r)
	}
}

func (m *Workloads) observeTCP(s *series, r *flow.Record) {
	t := &r.TCP
	if r.RTTDue {
		m.cell(s, cellRTT).hist.observe(uint64(t.RTTMicros) * 1000)
	}
	if r.Retransmitted > 0 {
		m.cell(s, cellRetransmits).n += r.Retransmitted
	}
	if r.Connected && t.ConnectNanos > 0 {
		m.cell(s, cellConnect).hist.observe(t.ConnectNanos)
	}
	if r.Event != flow.EventClose {
		return
	}
	if t.Failed {
		m.cell(s, cellFailure+reasonIndex(t.End)).n++
		return // a refusal is no reset of a connection
	}
	if t.ResetSent {
		m.cell(s, cellResetSent).n++
	}
	if t.ResetReceived {
		m.cell(s, cellResetRecv).n++
	}
}

// find returns the series of a workload; those of other when there is no room
// for another workload at all. It is called with m.mu held.
func (m *Workloads) find(id *workload.Identity) *series {
	if s := m.byIdentity[id]; s != nil {
		return s
	}
	key := labelsOf(id, m.pod)
	s := m.byLabels[key]
	transient := isCommand(id)
	switch {
	case s != nil:
	case !m.hasRoom(transient):
		s = m.other
		m.losses.Add(loss.MetricSeriesCapped, 1)
	default:
		s = m.wake(key, transient)
		m.byLabels[key] = s
		if transient {
			m.commands++
		}
	}
	if s != m.other {
		s.in(id.CgroupID)
	}
	if len(m.byIdentity) >= maxIdentities {
		clear(m.byIdentity)
	}
	m.byIdentity[id] = s
	return s
}

// wake returns the series that a workload had before, as far as the cap allows, or new
// ones. It is called with m.mu held.
func (m *Workloads) wake(key labels, transient bool) *series {
	s := m.rested[key]
	if s == nil {
		return &series{labels: key, transient: transient}
	}
	delete(m.rested, key)
	s.transient = transient
	if !m.admit(s, s.size(m.other)) {
		return &series{labels: key, transient: transient, capped: true, cappedOnce: true}
	}
	return s
}

// rest keeps the totals of series that go, those that counted last if there are too many:
// of commands a quarter, since there may be any number of names. It is called with m.mu
// held.
func (m *Workloads) rest(gone map[*series]bool) {
	for s := range gone {
		s.uncap(m.other)
		m.rested[s.labels] = s
	}
	if len(gone) == 0 {
		return
	}
	latest := slices.SortedFunc(maps.Values(m.rested), func(a, b *series) int { return cmp.Compare(b.touched, a.touched) })
	all, commands := 0, 0
	for _, s := range latest {
		if all >= maxRested || s.transient && commands >= maxRested/4 {
			delete(m.rested, s.labels)
			continue
		}
		all++
		if s.transient {
			commands++
		}
	}
}

// cell returns a cell of s, that of other if the cap does not allow one more.
// It is called with m.mu held.
func (m *Workloads) cell(s *series, i int) *cell {
	if c := s.cells[i]; c != nil {
		return c
	}
	if s != m.other && !m.admit(s, seriesOf(i)) {
		s.cells[i] = m.other.cells[i]
		return s.cells[i]
	}
	s.cells[i] = newCell(i)
	return s.cells[i]
}

// admit takes n more time series of a workload in, if the cap allows that; else it counts
// the workload as one that was refused some.
func (m *Workloads) admit(s *series, n int) bool {
	if m.used+n <= m.max && (!s.transient || m.usedByCommands+n <= m.commandShare()) {
		m.used += n
		if s.transient {
			m.usedByCommands += n
		}
		return true
	}
	s.capped = true
	if !s.cappedOnce {
		s.cappedOnce = true
		m.losses.Add(loss.MetricSeriesCapped, 1)
	}
	return false
}

// isCommand tells a workload that is named by no more than a command.
func isCommand(id *workload.Identity) bool {
	return id.Pod == "" && (id.Kind == workload.KindProcess || id.Kind == "")
}

// hasRoom tells whether one more workload may have series of its own.
func (m *Workloads) hasRoom(command bool) bool {
	return len(m.byLabels) < m.max && (!command || m.commands < m.commandShare())
}

// commandShare is how many of the series commands outside of containers and units may
// have. Anybody may make up any number of them, and they must not push workloads out.
func (m *Workloads) commandShare() int { return m.max / 4 }

// ObservePass counts how long one pass over the probes took.
func (m *Workloads) ObservePass(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.passes.observe(uint64(max(d, 0)))
}

// SetMax changes how many time series there may be.
func (m *Workloads) SetMax(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.max = n
}

// Sweep drops the series of workloads that are gone and have not had a record for as
// long as series are kept, and lets those in that had been refused as far as there is
// room again. alive says whether a cgroup exists.
func (m *Workloads) Sweep(now time.Time, keep time.Duration, alive func(cgroup uint64) bool) {
	before := now.Add(-keep).UnixNano()
	silent := m.silentSince(before)
	gone, left := make(map[*series]bool), make(map[*series][]uint64)
	for s, cgroups := range silent {
		// A look at the file system, so not under the lock.
		if left[s] = slices.DeleteFunc(cgroups, func(c uint64) bool { return !alive(c) }); len(left[s]) == 0 {
			gone[s] = true
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for s, cgroups := range left {
		if s.touched <= before {
			s.cgroups = cgroups
		}
	}
	for s := range gone {
		if s.touched > before {
			delete(gone, s)
			continue
		}
		size := s.size(m.other)
		m.used -= size
		if s.transient {
			m.usedByCommands -= size
			m.commands--
		}
		delete(m.byLabels, s.labels)
	}
	m.rest(gone)
	m.readmit(gone)
}

// silentSince returns the series without a record after before, each with the cgroups that
// keep it, of which a command has none.
func (m *Workloads) silentSince(before int64) map[*series][]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	silent := make(map[*series][]uint64)
	for _, s := range m.byLabels {
		if s.touched > before {
			continue
		}
		silent[s] = nil
		if !s.transient {
			silent[s] = slices.Clone(s.cgroups)
		}
	}
	return silent
}

// readmit forgets the series that are gone and what was refused for lack of
// room that there is now. It is called with m.mu held.
func (m *Workloads) readmit(gone map[*series]bool) {
	for id, s := range m.byIdentity {
		if gone[s] || s == m.other && m.hasRoom(isCommand(id)) {
			delete(m.byIdentity, id)
		}
	}
	for _, s := range m.byLabels {
		if s.capped && m.used < m.max && (!s.transient || m.usedByCommands < m.commandShare()) {
			s.uncap(m.other)
		}
	}
}

// copied is a copy of a workload's series and what it was copied from.
type copied struct {
	*series
	original *series
}

// copies returns the series of all workloads, other last, with how many count
// towards the cap, and the cap.
func (m *Workloads) copies() (all []copied, used, limit int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all = make([]copied, 0, len(m.byLabels)+1)
	for _, s := range m.byLabels {
		all = append(all, copied{s.clone(m.other), s})
	}
	return append(all, copied{m.other.clone(m.other), m.other}), m.used, m.max
}

func (m *Workloads) passesCopy() *histogram {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.passes.clone()
}

// shownAs returns the series under which a workload's traffic of one protocol
// is shown. It is called with m.mu held.
func (m *Workloads) shownAs(id *workload.Identity, protocol int) *series {
	s := m.byIdentity[id]
	if s == nil {
		s = m.byLabels[labelsOf(id, m.pod)]
	}
	if s == nil || s.cells[cellTraffic+protocol] == nil || s.cells[cellTraffic+protocol] == m.other.cells[cellTraffic+protocol] {
		return m.other
	}
	return s
}
