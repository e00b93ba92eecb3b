// SPDX-License-Identifier: Apache-2.0

// Package queries is the kind of record that tells of DNS queries and what came of them:
// how the API shows them, what only they can be filtered by, and their metrics.
package queries

import (
	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// Event is a record as an event.
func Event(r *dns.Record, node string) *orb8v1.Event {
	return &orb8v1.Event{TimeNs: r.Time, NodeName: node, Event: &orb8v1.Event_Dns{Dns: exchange(r)}}
}

func exchange(r *dns.Record) *orb8v1.DnsExchange {
	x := &orb8v1.DnsExchange{
		Outcome: orb8v1.DnsOutcome(r.Outcome), View: View(r),
		Local: endpoint(r.Local, r.LocalPort, r.Owner), Remote: endpoint(r.Remote, r.RemotePort, r.Peer),
		Process: kind.Process(&r.Header), Protocol: r.Protocol.String(), Loopback: r.Loopback, Self: r.Self, Netns: r.NetNS,
		Id: uint32(r.ID), Name: r.Name, Repeats: r.Repeats, QueryTimeNs: r.First, SearchFailures: r.SearchFailures,
	}
	if r.Name != "" {
		x.Type = r.Type.String()
	}
	if r.Outcome != dns.Answered {
		return x
	}
	x.Rcode, x.LatencyNs, x.AnswerBytes = r.RCode.String(), int64(r.Latency), r.AnswerBytes
	x.Truncated, x.Authoritative, x.MoreAnswers = r.Truncated, r.Authoritative, r.More
	for _, a := range r.Answers {
		x.Answers = append(x.Answers, &orb8v1.DnsAnswer{Name: a.Name, Type: a.Type.String(), TtlSeconds: a.TTL, Data: a.Data})
	}
	return x
}

func endpoint(a record.Addr, port uint16, id *workload.Identity) *orb8v1.Endpoint {
	return &orb8v1.Endpoint{Ip: a.IP().String(), Port: uint32(port), Workload: kind.Workload(id)}
}

// View is the end at which a query was seen.
func View(r *dns.Record) orb8v1.DnsView {
	if r.Role == record.RoleServer {
		return orb8v1.DnsView_DNS_VIEW_SERVER
	}
	return orb8v1.DnsView_DNS_VIEW_CLIENT
}

// Seen reports whether a stream that asks for a view takes the record: without a view it
// takes the client's. What is seen at both ends of this node is thus told of once.
func Seen(r *dns.Record, asked orb8v1.DnsView) bool {
	return (View(r) == orb8v1.DnsView_DNS_VIEW_SERVER) == (asked == orb8v1.DnsView_DNS_VIEW_SERVER)
}

// The families of metrics.
const (
	queriesTotal   = "orb8_dns_queries_total"
	latency        = "orb8_dns_latency_seconds"
	searchFailures = "orb8_dns_search_failures_total"
	servedTotal    = "orb8_dns_served_queries_total"
	servedLatency  = "orb8_dns_served_latency_seconds"
)

// Families are the metrics that only queries have.
func Families() []kind.Family {
	return []kind.Family{
		{Name: queriesTotal, Unit: "queries", Label: "rcode", Help: "DNS queries of the workload that were answered, by the answer's code, those that were not (timeout), and those of which that is not known (unread). A query that is sent again counts once."},
		{Name: latency, Unit: "seconds", Buckets: buckets(), Help: "Time from a DNS query of the workload to its answer."},
		{Name: searchFailures, Unit: "queries", Help: "DNS queries of the workload that failed only because a search domain was appended to a name that was found without it, or with another (ndots); they are also in orb8_dns_queries_total."},
		{Name: servedTotal, Unit: "queries", Label: "rcode", Help: "DNS queries to the workload, by the code of its answer; timeout where it gave none, unread where that is not known."},
		{Name: servedLatency, Unit: "seconds", Buckets: buckets(), Help: "Time from a DNS query to the workload to its answer."},
	}
}

// buckets go on past what resolvers commonly wait.
func buckets() []uint64 {
	return []uint64{100e3, 250e3, 500e3, 1e6, 2500e3, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 500e6, 1e9, 2e9, 5e9}
}

// Measure counts what a record adds to its owner's metrics.
func Measure(r *dns.Record, m kind.Meter) {
	if r.Nameless() { // a connection, not a query
		return
	}
	count, took := queriesTotal, latency
	if r.Role == record.RoleServer {
		count, took = servedTotal, servedLatency
	}
	m.Count(count, outcome(r), 1)
	if r.Outcome == dns.Answered {
		m.Observe(took, uint64(max(r.Latency, 0)))
	}
	if r.SearchFailures > 0 && r.Role == record.RoleClient {
		m.Count(searchFailures, "", uint64(r.SearchFailures))
	}
}

// outcome is the answer's code, or timeout or unread.
func outcome(r *dns.Record) string {
	switch r.Outcome {
	case dns.Timeout:
		return "timeout"
	case dns.Unread:
		return "unread"
	}
	return r.RCode.String()
}
