// SPDX-License-Identifier: Apache-2.0

package agent

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

// facts is what the agent says of itself in the metrics.
type facts struct {
	version, node, kernel  string
	interval               time.Duration
	events, panics         uint64
	reloads, reloadsFailed uint64
	subscribers            int
	flows, maxFlows        int
	history, maxHistory    int
	probes                 []probe.Status
	includeSelf            bool
	waiting                int
	messages               dns.Counts
	// cluster is nil outside Kubernetes.
	cluster *kube.Status
	// gpus is nil where no accelerators are read.
	gpus *gpuFacts
}

// exporter is what Prometheus collects. Everything is made at scrape time from
// copies, so that a slow scrape holds nothing up.
type exporter struct {
	metrics *metrics
	losses  *loss.Counters
	descs   [numFamilies]*prometheus.Desc
	more    map[string]*prometheus.Desc // of single kinds' families, by name
	facts   func() facts
	// rows calls its argument with each row of the flow table.
	rows func(func(*flow.Record))
}

func newExporter(m *metrics, losses *loss.Counters, about func() facts, rows func(func(*flow.Record))) *exporter {
	e := &exporter{metrics: m, losses: losses, facts: about, rows: rows, more: make(map[string]*prometheus.Desc)}
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
func (e *exporter) Describe(ch chan<- *prometheus.Desc) {
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
func (e *exporter) Collect(ch chan<- prometheus.Metric) {
	s := scrape{exporter: e, ch: ch}
	f := e.facts()
	s.workloads(&f)
	s.accelerators(f.gpus)
	s.health(&f)
	s.agent(&f)
}

// scrape is one pass of an exporter.
type scrape struct {
	*exporter
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

func (s scrape) workloads(f *facts) {
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
func (s scrape) activeFlows(f *facts) map[*series][numProtocols]int {
	counts := make(map[*series][numProtocols]int)
	s.rows(func(r *flow.Record) {
		ended := r.Event == flow.EventClose
		if ended || r.Self && !f.includeSelf {
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

func (s scrape) health(f *facts) {
	for result, n := range map[string]uint64{
		"query": f.messages.Queries, "answer": f.messages.Answers, "unmatched": f.messages.Unmatched,
		"malformed": f.messages.Malformed, "other": f.messages.Other, "unread": f.messages.Unread,
	} {
		s.counter(dnsMessages, n, result)
	}
	for _, stage := range loss.Stages() {
		s.counter(lostEvents, s.losses.Get(stage), stage.String())
	}
	for _, p := range f.probes {
		s.gauge(probeUp, truth(p.State == probe.StateRunning), p.Name)
		s.counter(probeReadErrors, p.ReadErrors, p.Name)
		for _, state := range []probe.State{probe.StateRunning, probe.StateFallback, probe.StateOff} {
			s.gauge(probeState, truth(p.State == state), p.Name, state.String())
		}
	}
}

func (s scrape) agent(f *facts) {
	s.gauge(agentInfo, 1, f.version, f.node, f.kernel)
	s.gauge(agentInterval, f.interval.Seconds())
	s.histogram(agentSampleDuration, s.metrics.passesCopy())
	s.counter(agentEvents, f.events)
	s.gauge(agentSubscribers, float64(f.subscribers))
	s.gauge(agentFlows, float64(f.flows))
	s.gauge(agentFlowsMax, float64(f.maxFlows))
	s.gauge(agentHistory, float64(f.history))
	s.gauge(agentHistoryMax, float64(f.maxHistory))
	s.gauge(agentWaiting, float64(f.waiting))
	if f.cluster != nil {
		s.gauge(agentPods, float64(f.cluster.Pods), "node")
		s.gauge(agentPods, float64(f.cluster.Peers), "peer")
		s.gauge(agentKubernetes, truth(f.cluster.Synced && f.cluster.Degraded == ""))
	}
	s.counter(agentReloads, f.reloads, "ok")
	s.counter(agentReloads, f.reloadsFailed, "error")
	s.counter(agentPanics, f.panics)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
