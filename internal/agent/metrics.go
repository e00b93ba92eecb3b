// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// seriesLinger is how long a workload's series stay after its last record.
	seriesLinger = 60 * time.Second
	// maxIdentities bounds the look-up by identity; when it is full, it is made
	// anew from what is seen next.
	maxIdentities = 16_384
)

// rootCgroup is the inode of the root of the cgroup2 hierarchy.
const rootCgroup = 1

// metrics counts records by workload. observe is called for every record and
// does not allocate for a workload that it knows. Scrapes read copies.
type metrics struct {
	pod, peers bool
	losses     *loss.Counters

	mu sync.Mutex
	// max bounds the series by workload, used is how many there are.
	max, used  int
	byIdentity map[*workload.Identity]*series
	byLabels   map[labels]*series
	// other takes what max refuses; its own series do not count.
	other    *series
	progress progress
	// host stands for what passing is true of, where that is not told apart.
	host *workload.Identity
	// sockets are those whose cells say how many there are now.
	sockets []*series
	passes  *histogram
	// hubble is nil unless metrics.aliases asks for it.
	hubble *hubbleCounts
}

func newMetrics(cfg *Config, losses *loss.Counters) *metrics {
	return &metrics{
		pod: cfg.MetricsPod, peers: cfg.MetricsPeers, max: cfg.MetricsMaxSeries, losses: losses,
		byIdentity: make(map[*workload.Identity]*series),
		byLabels:   make(map[labels]*series),
		other:      newOther(),
		// The root's cgroup never goes, nor do the series.
		host:     &workload.Identity{Kind: "Host", Name: "host", CgroupID: rootCgroup},
		progress: newProgress(),
		passes:   newHistogram(sampleBuckets()),
		hubble:   newHubbleCounts(cfg),
	}
}

// observe counts what r added.
func (m *metrics) observe(r *flow.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if step, ok := r.Detail.(*process.Step); ok {
		m.observeStep(r, step)
		return
	}
	s := m.find(r.Local)
	s.touched = max(s.touched, r.Time)
	m.hubble.observe(r)
	if r.Detail != nil {
		m.observeDetail(s, r)
		return
	}
	t := m.cell(s, cellTraffic+protocolIndex(r.Protocol))
	t.Counters = t.Add(r.Delta)
	if r.Remote != nil && r.Local.Zone != "" && r.Remote.Zone != "" {
		zone := cellZoneSame
		if r.Local.Zone != r.Remote.Zone {
			zone = cellZoneCross
		}
		z := m.cell(s, zone)
		z.Counters = z.Add(r.Delta)
	}
	if r.Protocol == flow.TCP && r.TCP.Valid {
		m.observeTCP(s, r)
	}
}

func (m *metrics) observeTCP(s *series, r *flow.Record) {
	t := &r.TCP
	gone := r.Event == flow.EventExpire || r.Event == flow.EventEvict
	if t.RTTMicros > 0 && !gone {
		m.cell(s, cellRTT).hist.observe(uint64(t.RTTMicros) * 1000)
		if m.peers {
			m.more(s, peerKey(morePeerRTT, r.Remote)).hist.observe(uint64(t.RTTMicros) * 1000)
		}
	}
	retransmits, connected := m.progress.advance(r)
	if retransmits > 0 {
		m.cell(s, cellRetransmits).n += retransmits
		if m.peers {
			m.more(s, peerKey(morePeerRetransmits, r.Remote)).n += retransmits
		}
	}
	if connected {
		m.cell(s, cellConnect).hist.observe(t.ConnectNanos)
	}
	if r.Event != flow.EventClose {
		return
	}
	if t.Failed {
		m.cell(s, cellFailure+reasonIndex(t.End)).n++
	}
	if t.ResetSent {
		m.cell(s, cellResetSent).n++
	}
	if t.ResetReceived {
		m.cell(s, cellResetRecv).n++
	}
}

// observeDetail counts what is no change of a flow.
func (m *metrics) observeDetail(s *series, r *flow.Record) {
	switch d := r.Detail.(type) {
	case *dns.Exchange:
		m.observeDNS(s, r, d)
	case *flow.ListenOverflow:
		m.cell(s, cellListen).n += d.Drops
	}
}

// observeStep counts programs that are started.
func (m *metrics) observeStep(r *flow.Record, step *process.Step) {
	if step.What != process.Exec {
		return
	}
	id := r.Local
	if passing(id) {
		id = m.host
	}
	s := m.find(id)
	s.touched = max(s.touched, r.Time)
	m.cell(s, cellStarts).n++
}

// passing reports whether a workload has a name of which there is no end: a command of
// the host, or a session or the like, which systemd makes for it. Those that start
// programs, rather than have traffic, are nearly all there ever were.
func passing(id *workload.Identity) bool {
	switch {
	case id.Pod != "" || id.ContainerID != "":
		return false
	case id.Kind == workload.KindUnit:
		return strings.HasSuffix(id.Name, ".scope") || strings.HasPrefix(id.Name, "run-")
	}
	return id.Kind == workload.KindProcess || id.Kind == ""
}

// observeMatch counts what a rule found in a workload.
func (m *metrics) observeMatch(id *workload.Identity, rule *anomaly.Rule, at int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.find(id)
	s.touched = max(s.touched, at)
	m.more(s, moreKey{of: moreAlerts, a: rule.Name}).n++
}

func (m *metrics) observeDNS(s *series, r *flow.Record, x *dns.Exchange) {
	count, latency := cellDNS, cellDNSLatency
	if r.Role == flow.RoleServer {
		count, latency = cellServed, cellServedTime
	}
	if x.Nameless() {
		return
	}
	m.cell(s, count+rcodeIndex(x)).n++
	if x.Outcome == dns.Answered {
		m.cell(s, latency).hist.observe(uint64(max(x.Latency, 0)))
	}
	if x.SearchFailures > 0 {
		m.cell(s, cellDNSSearch).n += uint64(x.SearchFailures)
	}
}

// observeDrops counts packets of a workload that were dropped.
func (m *metrics) observeDrops(id *workload.Identity, reason string, packets uint64, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.find(id)
	s.touched = max(s.touched, now)
	m.more(s, moreKey{of: moreDrops, a: reason}).n += packets
	m.hubble.observeDrops(reason, packets)
}

// observeSockets takes how many TCP sockets there are now, and whose they are.
func (m *metrics) observeSockets(counts []flow.SocketCount, who []*workload.Identity, now int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.other.cells[cellSockets].sockets = flow.SocketCount{}
	for _, s := range m.sockets {
		if c := s.cells[cellSockets]; c != nil {
			c.sockets = flow.SocketCount{}
		}
	}
	m.sockets = m.sockets[:0]
	for i := range counts {
		s := m.find(who[i])
		s.touched = max(s.touched, now)
		c := &m.cell(s, cellSockets).sockets
		c.Established += counts[i].Established
		c.Idle += counts[i].Idle
		c.HalfOpen += counts[i].HalfOpen
		c.HalfClosed += counts[i].HalfClosed
		m.sockets = append(m.sockets, s)
	}
}

// peerKey names the other end of a connection; empty where nothing is known of it.
func peerKey(of moreOf, peer *workload.Identity) moreKey {
	if peer == nil {
		return moreKey{of: of}
	}
	if peer.Kind == workload.KindExternal { // of names there is no end
		return moreKey{of: of, c: workload.KindExternal}
	}
	if peer.Name == "" && peer.Service != "" {
		return moreKey{of, peer.Namespace, peer.Service, "Service"}
	}
	return moreKey{of, peer.Namespace, peer.Name, peer.Kind}
}

// find returns the series of a workload; those of other when there is no room
// for another workload at all. It is called with m.mu held.
func (m *metrics) find(id *workload.Identity) *series {
	if s := m.byIdentity[id]; s != nil {
		return s
	}
	key := labelsOf(id, m.pod)
	s := m.byLabels[key]
	switch {
	case s != nil:
	case len(m.byLabels) >= m.max:
		s = m.other
		m.losses.Add(loss.MetricSeriesCapped, 1)
	default:
		s = &series{labels: key}
		m.byLabels[key] = s
	}
	if s != m.other {
		if id.CgroupID != 0 { // else it is known by an address alone
			s.cgroup = id.CgroupID
			s.transient = id.Pod == "" && (id.Kind == workload.KindProcess || id.Kind == "")
		}
	}
	if len(m.byIdentity) >= maxIdentities {
		clear(m.byIdentity)
	}
	m.byIdentity[id] = s
	return s
}

// cell returns a cell of s, that of other if the cap does not allow one more.
// It is called with m.mu held.
func (m *metrics) cell(s *series, i int) *cell {
	if c := s.cells[i]; c != nil {
		return c
	}
	if n := seriesOf(i); m.used+n <= m.max {
		m.used += n
		s.cells[i] = newCell(i)
		return s.cells[i]
	}
	m.capped(s)
	s.cells[i] = m.other.cells[i]
	return s.cells[i]
}

// capped notes that the cap has refused s something.
func (m *metrics) capped(s *series) {
	s.capped = true
	if !s.cappedOnce {
		s.cappedOnce = true
		m.losses.Add(loss.MetricSeriesCapped, 1)
	}
}

// more returns a cell of s under labels that are not known beforehand, that of other
// if the cap does not allow one more. It is called with m.mu held.
func (m *metrics) more(s *series, k moreKey) *cell {
	if s == m.other {
		k = k.elsewhere()
	}
	if c := s.more[k]; c != nil {
		return c
	}
	if s.more == nil {
		s.more = make(map[moreKey]*cell)
	}
	if s != m.other {
		n := seriesOfMore(k.of)
		if m.used+n > m.max || len(s.more) >= maxMore {
			m.capped(s)
			return m.more(m.other, k)
		}
		m.used += n
	}
	s.more[k] = newMore(k.of)
	return s.more[k]
}

// maxMore bounds the cells of one workload under labels that are not known beforehand,
// so that none takes all the room there is.
const maxMore = 256

// observePass counts how long one pass over the probes took.
func (m *metrics) observePass(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.passes.observe(uint64(max(d, 0)))
}

func (m *metrics) setMax(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.max = n
}

// sweep drops the series of workloads that have been silent for 60 s and are
// gone, and lets those in that had been refused as far as there is room again.
// alive says whether a cgroup exists.
func (m *metrics) sweep(now time.Time, alive func(cgroup uint64) bool) {
	before := now.Add(-seriesLinger).UnixNano()
	silent := m.silentSince(before)
	gone := make(map[*series]bool)
	for s, cgroup := range silent {
		// A look at the file system, so not under the lock.
		if cgroup == 0 || !alive(cgroup) {
			gone[s] = true
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range gone {
		if s.touched > before {
			delete(gone, s)
			continue
		}
		m.used -= s.size(m.other)
		delete(m.byLabels, s.labels)
	}
	m.readmit(gone)
}

// silentSince returns the series without a record after before, each with the
// cgroup that keeps it, or 0 if none does.
func (m *metrics) silentSince(before int64) map[*series]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	silent := make(map[*series]uint64)
	for _, s := range m.byLabels {
		if s.touched > before {
			continue
		}
		silent[s] = s.cgroup
		if s.transient {
			silent[s] = 0
		}
	}
	return silent
}

// readmit forgets the series that are gone and what was refused for lack of
// room that there is now. It is called with m.mu held.
func (m *metrics) readmit(gone map[*series]bool) {
	room := len(m.byLabels) < m.max
	for id, s := range m.byIdentity {
		if gone[s] || room && s == m.other {
			delete(m.byIdentity, id)
		}
	}
	if m.used >= m.max {
		return
	}
	for _, s := range m.byLabels {
		if s.capped {
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
func (m *metrics) copies() (all []copied, used, limit int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all = make([]copied, 0, len(m.byLabels)+1)
	for _, s := range m.byLabels {
		all = append(all, copied{s.clone(m.other), s})
	}
	return append(all, copied{m.other.clone(m.other), m.other}), m.used, m.max
}

func (m *metrics) passesCopy() *histogram {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.passes.clone()
}

// shownAs returns the series under which a workload's traffic of one protocol
// is shown. It is called with m.mu held.
func (m *metrics) shownAs(id *workload.Identity, protocol int) *series {
	s := m.byIdentity[id]
	if s == nil {
		s = m.byLabels[labelsOf(id, m.pod)]
	}
	if s == nil || s.cells[cellTraffic+protocol] == nil || s.cells[cellTraffic+protocol] == m.other.cells[cellTraffic+protocol] {
		return m.other
	}
	return s
}
