// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
)

// aliasHubble is the value of metrics.aliases that serves Hubble's names.
const aliasHubble = "hubble"

// maxHubbleResponses bounds what DNS answers are told apart by.
const maxHubbleResponses = 1000

const (
	hubbleFlows = iota
	hubbleDrops
	hubbleTCPFlags
	hubbleQueries
	hubbleResponses
	numHubble
)

// HubbleFamilies lists the families that metrics.aliases adds, in the order of
// docs/metrics.md. A label that Hubble has and that is not here is not known.
func HubbleFamilies() []Family {
	all := hubbleFamilies()
	return all[:]
}

func hubbleFamilies() [numHubble]Family {
	return [numHubble]Family{
		hubbleFlows:     {"hubble_flows_processed_total", "counter", "events", []string{"protocol", "type", "subtype", "verdict"}, "Events. FORWARDED of the type Trace counts the beginning of a flow, each sampling interval in which it changed, and its end, for each end at this node; FORWARDED of the type L7 counts DNS messages as in hubble_dns_queries_total and hubble_dns_responses_total; DROPPED counts packets as in hubble_drop_total, without a protocol.", groupHubble},
		hubbleDrops:     {"hubble_drop_total", "counter", "packets", []string{"reason"}, "Packets that the kernel dropped, by the kernel's reason, not by Cilium's. Their protocol is not known.", groupHubble},
		hubbleTCPFlags:  {"hubble_tcp_flags_total", "counter", "connections", []string{"flag", "family"}, "Only the flag RST: ends at this node of connections, established or not, that a reset ended, one for each reset sent and one for each received.", groupHubble},
		hubbleQueries:   {"hubble_dns_queries_total", "counter", "messages", []string{"rcode", "qtypes", "ips_returned"}, "DNS queries of this node's workloads, with those that were sent again, counted when the answer is there or is given up; rcode is empty and ips_returned 0, as a query has neither.", groupHubble},
		hubbleResponses: {"hubble_dns_responses_total", "counter", "messages", []string{"rcode", "qtypes", "ips_returned"}, "Answers to DNS queries of this node's workloads, by Hubble's words for the code and by the number of addresses, which is empty where more than 32 records came. Answers that came too late are not counted.", groupHubble},
	}
}

// hubbleResponse is what DNS answers are told apart by.
type hubbleResponse struct{ rcode, qtypes, ips string }

// hubbleCounts are sums over all workloads. The series of a workload go with it, and a
// sum of them would go back. The methods do nothing without the counts.
type hubbleCounts struct {
	flows     map[string]uint64 // by protocol
	drops     map[string]uint64 // by reason
	resets    map[string]uint64 // by family
	queries   map[string]uint64 // by type
	responses map[hubbleResponse]uint64
}

// newHubbleCounts returns nil where they are not served.
func newHubbleCounts(cfg *Config) *hubbleCounts {
	if cfg.MetricsAliases != aliasHubble {
		return nil
	}
	return &hubbleCounts{
		flows: make(map[string]uint64), drops: make(map[string]uint64), resets: make(map[string]uint64),
		queries: make(map[string]uint64), responses: make(map[hubbleResponse]uint64),
	}
}

func (h *hubbleCounts) observe(r *flow.Record) {
	if h == nil {
		return
	}
	if x, ok := r.Detail.(*dns.Exchange); ok && r.Role == flow.RoleClient {
		h.observeDNS(x)
	}
	if r.Detail != nil || r.Event == flow.EventExpire || r.Event == flow.EventEvict {
		return
	}
	h.flows[hubbleProtocol(r.Protocol)]++
	if r.Event != flow.EventClose || !r.TCP.Valid {
		return
	}
	for _, reset := range []bool{r.TCP.ResetSent, r.TCP.ResetReceived} {
		if reset {
			h.resets[hubbleFamily(r.Key.Local)]++
		}
	}
}

func (h *hubbleCounts) observeDNS(x *dns.Exchange) {
	if x.Nameless() {
		return
	}
	qtypes := hubbleType(x.Type)
	h.queries[qtypes] += 1 + uint64(x.Repeats)
	if x.Outcome != dns.Answered {
		return
	}
	k := hubbleResponse{hubbleRCode(x.RCode), qtypes, hubbleIPs(x)}
	if _, known := h.responses[k]; !known && len(h.responses) >= maxHubbleResponses {
		k = hubbleResponse{rcode: k.rcode, qtypes: "other"}
	}
	h.responses[k]++
}

func (h *hubbleCounts) observeDrops(reason string, packets uint64) {
	if h != nil {
		h.drops[reason] += packets
	}
}

func (h *hubbleCounts) clone() *hubbleCounts {
	return &hubbleCounts{
		maps.Clone(h.flows), maps.Clone(h.drops), maps.Clone(h.resets), maps.Clone(h.queries), maps.Clone(h.responses),
	}
}

// hubbleProtocol is Hubble's word for a protocol.
func hubbleProtocol(p flow.Protocol) string {
	switch p {
	case flow.TCP, flow.UDP, flow.ICMPv6:
		return p.String()
	case flow.ICMP:
		return "ICMPv4"
	case 132:
		return "SCTP"
	}
	return "Unknown L4"
}

func hubbleFamily(a flow.Addr) string {
	if a.IP().Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// hubbleType keeps types that nobody uses from making series.
func hubbleType(t dns.Type) string {
	if name := t.String(); name != "TYPE"+strconv.Itoa(int(t)) {
		return name
	}
	return "other"
}

// hubbleRCode is Hubble's word for a code, where it has one.
func hubbleRCode(r dns.RCode) string {
	words := [...]string{"No Error", "Format Error", "Server Failure", "Non-Existent Domain", "Not Implemented", "Query Refused"}
	if int(r) < len(words) {
		return words[r]
	}
	return r.String()
}

// hubbleIPs is the number of addresses in an answer.
func hubbleIPs(x *dns.Exchange) string {
	if x.More > 0 {
		return ""
	}
	n := 0
	for i := range x.Answers {
		if t := x.Answers[i].Type; t == dns.TypeA || t == dns.TypeAAAA {
			n++
		}
	}
	return strconv.Itoa(n)
}

// hubbleExporter serves what orb8 counts under the names of Cilium's Hubble, for
// dashboards that are there already.
type hubbleExporter struct {
	metrics *metrics
	descs   [numHubble]*prometheus.Desc
}

func newHubbleExporter(m *metrics) *hubbleExporter {
	e := &hubbleExporter{metrics: m}
	for i, f := range hubbleFamilies() {
		e.descs[i] = prometheus.NewDesc(f.Name, f.Help, f.Labels, nil)
	}
	return e
}

// Describe implements prometheus.Collector.
func (e *hubbleExporter) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range e.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (e *hubbleExporter) Collect(ch chan<- prometheus.Metric) {
	h := e.metrics.hubbleCopy()
	emit := func(f int, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(e.descs[f], prometheus.CounterValue, float64(n), labels...)
	}
	var dropped, messages uint64
	for protocol, n := range h.flows {
		emit(hubbleFlows, n, protocol, "Trace", "", "FORWARDED")
	}
	for reason, n := range h.drops {
		emit(hubbleDrops, n, reason)
		dropped += n
	}
	for family, n := range h.resets {
		emit(hubbleTCPFlags, n, "RST", family)
	}
	for qtypes, n := range h.queries {
		emit(hubbleQueries, n, "", qtypes, "0")
		messages += n
	}
	for k, n := range h.responses {
		emit(hubbleResponses, n, k.rcode, k.qtypes, k.ips)
		messages += n
	}
	if dropped > 0 {
		emit(hubbleFlows, dropped, "", "Drop", "", "DROPPED")
	}
	if messages > 0 {
		emit(hubbleFlows, messages, "DNS", "L7", "DNS", "FORWARDED")
	}
}

// hubbleCopy is for metrics that have the counts.
func (m *metrics) hubbleCopy() *hubbleCounts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hubble.clone()
}
