// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// Facts is what the agent says of itself in the metrics.
type Facts struct {
	Version, Node, Kernel  string
	Interval               time.Duration
	Events, Panics         uint64
	Reloads, ReloadsFailed uint64
	Subscribers            int
	// Traces of system calls that clients run now.
	Traces              int
	Flows, MaxFlows     int
	History, MaxHistory int
	Probes              []probe.Status
	IncludeSelf         bool
	Waiting             int
	Messages            dns.Counts
	// Cluster is nil outside Kubernetes.
	Cluster *kube.Status
	// GPUs is nil where no accelerators are read.
	GPUs *GPUFacts
}

// Exporter is what Prometheus collects. Everything is made at scrape time from
// copies, so that a slow scrape holds nothing up.
type Exporter struct {
	metrics *Workloads
	losses  *loss.Counters
	descs   [numFamilies]*prometheus.Desc
	more    map[string]*prometheus.Desc // of single kinds' families, by name
	facts   func() Facts
	// rows calls its argument with each row of the flow table.
	rows func(func(*flow.Record))
}

// NewExporter returns an exporter of m and losses, of what about returns at each scrape, and
// of the rows of the flow table, with each of which rows calls its argument.
func NewExporter(m *Workloads, losses *loss.Counters, about func() Facts, rows func(func(*flow.Record))) *Exporter {
	e := &Exporter{metrics: m, losses: losses, facts: about, rows: rows, more: make(map[string]*prometheus.Desc)}
	for _, f := range kindFamilies(m.pod) {
		e.more[f.Name] = prometheus.NewDesc(f.Name, f.Help, f.Labels, nil)
	}
	for i, f := range families(m.pod) {
		if f.Name == "" {
			continue
		}
		e.descs[i] = prometheus.NewDesc(f.Name, f.Help, f.Labels, nil)
	}
	return e
}

// Describe implements prometheus.Collector.
func (e *Exporter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range &e.descs {
		if d != nil {
			ch <- d
		}
	}
	for _, d := range e.more {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (e *Exporter) Collect(ch chan<- prometheus.Metric) {
	s := scrape{Exporter: e, ch: ch}
	f := e.facts()
	s.workloads(&f)
	s.accelerators(f.GPUs)
	s.health(&f)
	s.agent(&f)
}

// scrape is one pass of an exporter.
type scrape struct {
	*Exporter
	ch chan<- prometheus.Metric
}

// send sends a series. One that is refused costs itself only, not the page.
func (s scrape) send(desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels []string) {
	s.ch <- constMetric(desc, kind, v, labels)
}

func constMetric(desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels []string) prometheus.Metric {
	m, err := prometheus.NewConstMetric(desc, kind, v, labels...)
	if err != nil {
		return prometheus.NewInvalidMetric(desc, err)
	}
	return m
}

func (s scrape) counter(f familyID, v uint64, labels ...string) {
	s.send(s.descs[f], prometheus.CounterValue, float64(v), labels)
}

func (s scrape) gauge(f familyID, v float64, labels ...string) {
	s.send(s.descs[f], prometheus.GaugeValue, v, labels)
}

func (s scrape) histogram(f familyID, h *histogram, labels ...string) {
	s.sendHistogram(s.descs[f], h, labels)
}

func (s scrape) sendHistogram(desc *prometheus.Desc, h *histogram, labels []string) {
	buckets := make(map[float64]uint64, len(h.bounds))
	var count uint64
	for i, bound := range h.bounds {
		count += h.counts[i]
		buckets[float64(bound)/1e9] = count
	}
	count += h.counts[len(h.bounds)]
	m, err := prometheus.NewConstHistogram(desc, count, float64(h.sum)/1e9, buckets, labels...)
	if err != nil {
		m = prometheus.NewInvalidMetric(desc, err)
	}
	s.ch <- m
}

func (s scrape) workloads(f *Facts) {
	flows := s.activeFlows(f)
	all, used, limit := s.metrics.copies()
	for _, w := range all {
		if w.original == s.metrics.other {
			w.prune(flows[w.original])
		}
		s.workload(w.series, flows[w.original])
	}
	s.gauge(agentSeries, float64(used))
	s.gauge(agentSeriesMax, float64(limit))
}

func (s scrape) workload(w *series, active [numProtocols]int) {
	values := func(extra ...string) []string { return w.labels.values(s.metrics.pod, extra...) }
	for i, protocol := range protocolLabels() {
		c := w.cells[cellTraffic+i]
		if c == nil {
			continue
		}
		s.counter(networkBytes, c.TxBytes, values(flows.DirEgress, protocol)...)
		s.counter(networkBytes, c.RxBytes, values(flows.DirIngress, protocol)...)
		s.counter(networkPackets, c.TxPackets, values(flows.DirEgress, protocol)...)
		s.counter(networkPackets, c.RxPackets, values(flows.DirIngress, protocol)...)
		s.gauge(activeFlows, float64(active[i]), values(protocol)...)
	}
	for i, zone := range []string{"same", "cross"} {
		if c := w.cells[cellZoneSame+i]; c != nil {
			s.counter(networkZoneBytes, c.TxBytes, values(flows.DirEgress, zone)...)
			s.counter(networkZoneBytes, c.RxBytes, values(flows.DirIngress, zone)...)
		}
	}
	if c := w.cells[cellRTT]; c != nil {
		s.histogram(tcpRTT, c.hist, values()...)
	}
	if c := w.cells[cellConnect]; c != nil {
		s.histogram(tcpConnect, c.hist, values()...)
	}
	for i, reason := range reasonLabels() {
		if c := w.cells[cellFailure+i]; c != nil {
			s.counter(tcpConnectFailures, c.n, values(reason)...)
		}
	}
	if c := w.cells[cellRetransmits]; c != nil {
		s.counter(tcpRetransmits, c.n, values()...)
	}
	if c := w.cells[cellResetSent]; c != nil {
		s.counter(tcpResets, c.n, values(flows.DirEgress)...)
	}
	if c := w.cells[cellResetRecv]; c != nil {
		s.counter(tcpResets, c.n, values(flows.DirIngress)...)
	}
	for k, c := range w.more {
		labels := values()
		if s.metrics.families[k.family].Label != "" {
			labels = append(labels, k.value)
		}
		if c.hist != nil {
			s.sendHistogram(s.more[k.family], c.hist, labels)
			continue
		}
		s.send(s.more[k.family], prometheus.CounterValue, float64(c.n), labels)
	}
}

// activeFlows counts the table's rows that have not ended, by workload and
// protocol.
func (s scrape) activeFlows(f *Facts) map[*series][numProtocols]int {
	counts := make(map[*series][numProtocols]int)
	s.rows(func(r *flow.Record) {
		ended := r.Event == flow.EventClose
		if ended || r.Self && !f.IncludeSelf {
			return
		}
		p := protocolIndex(r.Protocol)
		s.metrics.mu.Lock()
		w := s.metrics.shownAs(r.Owner, p)
		s.metrics.mu.Unlock()
		n := counts[w]
		n[p]++
		counts[w] = n
	})
	return counts
}

func (s scrape) health(f *Facts) {
	for result, n := range map[string]uint64{
		"query": f.Messages.Queries, "answer": f.Messages.Answers, "unmatched": f.Messages.Unmatched,
		"malformed": f.Messages.Malformed, "other": f.Messages.Other, "unread": f.Messages.Unread,
	} {
		s.counter(dnsMessages, n, result)
	}
	for _, stage := range loss.Stages() {
		s.counter(lostEvents, s.losses.Get(stage), stage.String())
	}
	for _, p := range f.Probes {
		s.gauge(probeUp, truth(p.State == probe.StateRunning), p.Name)
		s.counter(probeReadErrors, p.ReadErrors, p.Name)
		for _, state := range []probe.State{probe.StateRunning, probe.StateFallback, probe.StateOff} {
			s.gauge(probeState, truth(p.State == state), p.Name, state.String())
		}
	}
}

func (s scrape) agent(f *Facts) {
	s.gauge(agentInfo, 1, f.Version, f.Node, f.Kernel)
	s.gauge(agentInterval, f.Interval.Seconds())
	s.histogram(agentSampleDuration, s.metrics.passesCopy())
	s.counter(agentEvents, f.Events)
	s.gauge(agentSubscribers, float64(f.Subscribers))
	s.gauge(syscallTraces, float64(f.Traces))
	s.gauge(agentFlows, float64(f.Flows))
	s.gauge(agentFlowsMax, float64(f.MaxFlows))
	s.gauge(agentHistory, float64(f.History))
	s.gauge(agentHistoryMax, float64(f.MaxHistory))
	s.gauge(agentWaiting, float64(f.Waiting))
	if f.Cluster != nil {
		s.gauge(agentPods, float64(f.Cluster.Pods), "node")
		s.gauge(agentPods, float64(f.Cluster.Peers), "peer")
		s.gauge(agentKubernetes, truth(f.Cluster.Synced && f.Cluster.Degraded == ""))
	}
	s.counter(agentReloads, f.Reloads, "ok")
	s.counter(agentReloads, f.ReloadsFailed, "error")
	s.counter(agentPanics, f.Panics)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
