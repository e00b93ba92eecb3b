// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func asking(pod string, at int64) *flow.Record {
	return &flow.Record{
		Sample: flow.Sample{Role: flow.RoleClient}, Time: at,
		Local: &workload.Identity{Namespace: "default", Kind: "Deployment", Name: "web", Pod: pod, CgroupID: 5},
	}
}

func answeredAfter(name string, took time.Duration) *dns.Exchange {
	return &dns.Exchange{Outcome: dns.Answered, Name: name, Type: dns.TypeA, Latency: took}
}

func TestAskedNames(t *testing.T) {
	n := newAskedNames(new(loss.Counters))
	n.add(asking("web-1", 1), answeredAfter("a.test", 2*time.Millisecond))
	n.add(asking("web-1", 2), answeredAfter("a.test", 4*time.Millisecond))
	n.add(asking("web-1", 3), &dns.Exchange{Outcome: dns.Answered, Name: "a.test", Type: dns.TypeAAAA, RCode: dns.NXDomain, SearchFailures: 3})
	n.add(asking("web-1", 4), &dns.Exchange{Outcome: dns.Timeout, Name: "a.test", Type: dns.TypeA})
	n.add(asking("web-1", 5), &dns.Exchange{Outcome: dns.Unread, Name: "a.test", Type: dns.TypeA})
	n.add(asking("web-1", 6), answeredAfter("b.test", time.Millisecond))
	n.add(asking("web-1", 7), &dns.Exchange{Outcome: dns.Unread})
	web := &orb8v1.Workload{Namespace: "default", Kind: "Deployment", Name: "web", PodName: "web-1", CgroupId: 5}
	want := []*orb8v1.Event{
		{TimeNs: 5, NodeName: "node", Event: &orb8v1.Event_DnsName{DnsName: &orb8v1.DnsName{
			Workload: web, Name: "a.test", Queries: 5, Timeouts: 1, Unread: 1, SearchFailures: 3,
			LatencySumNs: 6e6, LatencyMaxNs: 4e6, FirstSeenNs: 1, LastSeenNs: 5,
			Rcodes: map[string]uint64{"NOERROR": 2, "NXDOMAIN": 1}, Types: map[string]uint64{"A": 4, "AAAA": 1},
		}}},
		{TimeNs: 6, NodeName: "node", Event: &orb8v1.Event_DnsName{DnsName: &orb8v1.DnsName{
			Workload: web, Name: "b.test", Queries: 1, LatencySumNs: 1e6, LatencyMaxNs: 1e6, FirstSeenNs: 6, LastSeenNs: 6,
			Rcodes: map[string]uint64{"NOERROR": 1}, Types: map[string]uint64{"A": 1},
		}}},
	}
	if diff := cmp.Diff(want, n.events(nil, 0, "node"), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := n.events(nil, 1, "node"); len(got) != 1 || got[0].GetDnsName().GetName() != "a.test" {
		t.Errorf("the first of them: %v", got)
	}
	n.sweep(time.Unix(0, 5).Add(askedTime))
	if got := n.events(nil, 0, "node"); len(got) != 1 || got[0].GetDnsName().GetName() != "b.test" {
		t.Errorf("after a while: %v", got)
	}
	n.sweep(time.Unix(0, 6).Add(askedTime))
	if len(n.workloads) != 0 || n.parts != 0 {
		t.Errorf("in the end %d workloads with %d parts", len(n.workloads), n.parts)
	}
}

// TestAskedNamesFiltered: of three replicas only what a filter lets through is counted,
// and a row of several says of none that it was that one.
func TestAskedNamesFiltered(t *testing.T) {
	n := newAskedNames(new(loss.Counters))
	ask := func(pod, container, comm, from, server string, port uint16, times int) {
		r := asking(pod, 1)
		who := *r.Local
		who.ContainerID, who.CgroupID, who.Node = container, uint64(len(comm)), "node"
		r.Local = &who
		copy(r.Comm[:], comm)
		r.Key.Local, r.Key.Remote = flow.AddrOf(netip.MustParseAddr(from)), flow.AddrOf(netip.MustParseAddr(server))
		r.LocalPort, r.RemotePort, r.PID = 40000, port, 77
		for range times {
			n.add(r, answeredAfter("a.test", 0))
		}
	}
	ask("web-1", "aaaaaa", "app", "10.0.0.1", "10.96.0.10", 53, 100)
	ask("web-1", "bbbbbb", "proxy", "10.0.0.1", "10.96.0.10", 53, 20)
	ask("web-2", "cccccc", "app", "10.0.0.2", "192.0.2.53", 53, 3)
	ask("web-3", "dddddd", "app", "10.0.0.3", "10.96.0.10", 1053, 4)
	for _, tt := range []struct {
		name    string
		filter  *orb8v1.Filter
		queries uint64
		pod     string
		cgroup  uint64
	}{
		{"all", nil, 127, "", 0},
		{"pod", &orb8v1.Filter{Pods: []string{"web-1"}}, 120, "web-1", 0},
		{"another pod", &orb8v1.Filter{Pods: []string{"web-3"}}, 4, "web-3", 3},
		{"container", &orb8v1.Filter{Containers: []string{"bbbbbb"}}, 20, "web-1", 5},
		{"command", &orb8v1.Filter{Processes: []string{"app"}}, 107, "", 3},
		{"server", &orb8v1.Filter{Ips: []string{"192.0.2.53"}}, 3, "web-2", 3},
		{"client", &orb8v1.Filter{Ips: []string{"10.0.0.0/31"}}, 120, "web-1", 0},
		{"port", &orb8v1.Filter{Ports: []uint32{1053}}, 4, "web-3", 3},
		{"name", &orb8v1.Filter{DnsNames: []string{"*.test"}}, 127, "", 0},
		{"not a pod", &orb8v1.Filter{Negate: true, Pods: []string{"web-1"}}, 7, "", 3},
		{"no name", &orb8v1.Filter{DnsNames: []string{"other.test"}}, 0, "", 0},
		// Of single queries nothing is kept.
		{"client's port", &orb8v1.Filter{Ports: []uint32{40000}}, 0, "", 0},
		{"process id", &orb8v1.Filter{Processes: []string{"77"}}, 0, "", 0},
		{"code", &orb8v1.Filter{Rcodes: []string{"NOERROR"}}, 0, "", 0},
	} {
		var filters []*orb8v1.Filter
		if tt.filter != nil {
			filters = append(filters, tt.filter)
		}
		set, err := filter.Compile(filters)
		if err != nil {
			t.Fatal(err)
		}
		got := n.events(set, 0, "node")
		if tt.queries == 0 {
			if len(got) != 0 {
				t.Errorf("%s: %v", tt.name, got)
			}
			continue
		}
		if len(got) != 1 {
			t.Fatalf("%s: %d rows, want one", tt.name, len(got))
		}
		row := got[0].GetDnsName()
		w := row.GetWorkload()
		if row.GetQueries() != tt.queries || w.GetPodName() != tt.pod || w.GetCgroupId() != tt.cgroup || w.GetNodeName() != "node" {
			t.Errorf("%s: %d queries of %v, want %d of %q", tt.name, row.GetQueries(), w, tt.queries, tt.pod)
		}
	}
}

// TestAskedNamesAreBounded: who asks for names made up at random pushes out its own,
// the oldest first, and that is counted; codes, types, servers and commands are not told
// apart without end.
func TestAskedNamesAreBounded(t *testing.T) {
	losses := new(loss.Counters)
	n := newAskedNames(losses)
	quiet := asking("", 1)
	quiet.Local = &workload.Identity{Kind: "Unit", Name: "quiet.service"}
	n.add(quiet, answeredAfter("quiet.test", 0))
	for i := range maxAsked + 10 {
		n.add(asking("web-1", int64(i+1)), &dns.Exchange{Outcome: dns.Timeout, Name: fmt.Sprint("n", i), Type: dns.TypeA})
	}
	if n.parts != maxAsked || n.pushedOut() != 11 || losses.Get(loss.DNSNamesFull) != 11 {
		t.Errorf("%d parts, %d pushed out, %d counted", n.parts, n.pushedOut(), losses.Get(loss.DNSNamesFull))
	}
	find := func(name string) *orb8v1.DnsName {
		set, err := filter.Compile([]*orb8v1.Filter{{DnsNames: []string{name}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range n.events(set, 0, "n") {
			return ev.GetDnsName()
		}
		return nil
	}
	if find("quiet.test") == nil || find("n10") != nil || find("n11") == nil {
		t.Error("the wrong names are gone")
	}
	for i := range 100 {
		r := asking("web-1", maxAsked+int64(i))
		r.RemotePort = uint16(i)
		n.add(r, &dns.Exchange{Outcome: dns.Answered, Name: "kinds.test", Type: dns.Type(i), RCode: dns.RCode(i)})
	}
	got := find("kinds.test")
	if len(got.GetTypes()) != maxAskedTypes || len(got.GetRcodes()) != maxAskedCodes || got.GetQueries() != 100 {
		t.Errorf("%d queries of %d types, with %d codes", got.GetQueries(), len(got.GetTypes()), len(got.GetRcodes()))
	}
	n.sweep(time.Unix(0, n.pushedAt).Add(askedTime))
	if n.pushedOut() != 0 {
		t.Error("what was pushed out long ago is still missed")
	}
}

// TestDNSMetrics: queries by what came of them, at either end, drops, overflows and
// sockets.
func TestDNSMetrics(t *testing.T) {
	m := newMetrics(metricsConfig(false, 1000), new(loss.Counters))
	at := func(role flow.Role, d flow.Detail) {
		r := asking("web-1", 1)
		r.Role, r.Detail = role, d
		m.observe(r)
	}
	at(flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, Name: "a", RCode: dns.NoError, Latency: time.Millisecond, SearchFailures: 2})
	at(flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, Name: "a", RCode: dns.NXDomain, Latency: time.Millisecond})
	at(flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, Name: "a", RCode: 9, Latency: time.Millisecond})
	at(flow.RoleClient, &dns.Exchange{Outcome: dns.Timeout, Name: "a"})
	at(flow.RoleClient, &dns.Exchange{Outcome: dns.Unread, Name: "a"})
	at(flow.RoleClient, &dns.Exchange{Outcome: dns.Unread}) // a connection
	at(flow.RoleServer, &dns.Exchange{Outcome: dns.Answered, Name: "a", RCode: dns.NXDomain, Latency: time.Second})
	at(flow.RoleServer, &flow.ListenOverflow{Drops: 5})
	web := asking("web-1", 1).Local
	m.observeDrops(web, "NO_SOCKET", 3, 1)
	m.observeDrops(web, "NO_SOCKET", 4, 2)
	m.observeDrops(web, "NETFILTER_DROP", 1, 2)
	who := []*workload.Identity{web, web}
	m.observeSockets([]flow.SocketCount{{Established: 100}}, who[:1], 1)
	m.observeSockets([]flow.SocketCount{{Established: 5, Idle: 2, HalfOpen: 1}, {Established: 1, HalfClosed: 4}}, who, 2)
	const l = "namespace=default,"
	const w = "workload=web,workload_kind=Deployment}"
	want := []string{
		"dns_queries_total{" + l + "rcode=NOERROR," + w + " 1", "dns_queries_total{" + l + "rcode=NXDOMAIN," + w + " 1",
		"dns_queries_total{" + l + "rcode=other," + w + " 1", "dns_queries_total{" + l + "rcode=timeout," + w + " 1",
		"dns_queries_total{" + l + "rcode=unread," + w + " 1",
		"dns_search_failures_total{" + l + w + " 2", "dns_served_queries_total{" + l + "rcode=NXDOMAIN," + w + " 1",
		"drops_total{" + l + "reason=NETFILTER_DROP," + w + " 1", "drops_total{" + l + "reason=NO_SOCKET," + w + " 7",
		"tcp_connections{" + l + "state=established," + w + " 4", "tcp_connections{" + l + "state=half_closed," + w + " 4",
		"tcp_connections{" + l + "state=half_open," + w + " 1", "tcp_connections{" + l + "state=idle," + w + " 2",
		"tcp_listen_drops_total{" + l + w + " 5",
	}
	var got []string
	for _, family := range []string{"orb8_dns_queries", "orb8_dns_search", "orb8_dns_served_queries", "orb8_drops", "orb8_tcp_connections", "orb8_tcp_listen"} {
		got = append(got, gather(t, exporterOf(m), family)...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestPeersAreCapped: beyond the cap peers count as other, reasons of drops under the
// workload other with their reason.
func TestPeersAreCapped(t *testing.T) {
	cfg := metricsConfig(false, seriesOfMore(morePeerRTT))
	cfg.MetricsPeers = true
	losses := new(loss.Counters)
	m := newMetrics(cfg, losses)
	s := m.find(asking("web-1", 1).Local)
	m.more(s, peerKey(morePeerRTT, &workload.Identity{Name: "a"})).hist.observe(1)
	m.more(s, peerKey(morePeerRTT, &workload.Identity{Name: "b"})).hist.observe(1)
	m.more(s, peerKey(morePeerRTT, &workload.Identity{Name: "c"})).hist.observe(1)
	m.observeDrops(asking("web-1", 1).Local, "NO_SOCKET", 3, 1)
	if got := m.other.more[moreKey{of: morePeerRTT, b: "other", c: "Other"}].hist.counts[0]; got != 2 {
		t.Errorf("other peers have %d observations, want 2", got)
	}
	if got := m.other.more[moreKey{of: moreDrops, a: "NO_SOCKET"}].n; got != 3 {
		t.Errorf("other has %d drops, want 3", got)
	}
	if m.used != m.max || losses.Get(loss.MetricSeriesCapped) != 1 {
		t.Errorf("%d series of %d, capped %d times", m.used, m.max, losses.Get(loss.MetricSeriesCapped))
	}
	if n := m.find(asking("web-1", 1).Local).size(m.other); n != m.used {
		t.Errorf("the workload has %d series, want %d", n, m.used)
	}
	// With room they get series of their own.
	m.setMax(1000)
	m.sweep(time.Now(), func(uint64) bool { return true })
	m.more(s, peerKey(morePeerRTT, &workload.Identity{Name: "b"})).hist.observe(1)
	if s.more[moreKey{of: morePeerRTT, b: "b"}] == m.other.more[moreKey{of: morePeerRTT, b: "other", c: "Other"}] {
		t.Error("still counted as other")
	}
}

// TestDropsByAddressKeepSeries: what is known of a workload by an address alone does
// not make its series go while its cgroup is there.
func TestDropsByAddressKeepSeries(t *testing.T) {
	m := newMetrics(metricsConfig(false, 1000), new(loss.Counters))
	web := asking("web-1", 1).Local
	m.observe(&flow.Record{Local: web, Time: 1, Delta: flow.Counters{TxBytes: 7}})
	peer := *web
	peer.CgroupID = 0
	m.observeDrops(&peer, "NO_SOCKET", 1, 2)
	m.sweep(time.Now(), func(cgroup uint64) bool { return cgroup == web.CgroupID })
	if got := gather(t, exporterOf(m), "orb8_drops"); len(got) != 1 {
		t.Errorf("after a sweep: %v", got)
	}
}

// TestOtherSocketsAreOfNow: what the cap refused does not stay counted when there is
// room.
func TestOtherSocketsAreOfNow(t *testing.T) {
	m := newMetrics(metricsConfig(false, 1), new(loss.Counters))
	who := []*workload.Identity{asking("web-1", 1).Local}
	m.observeSockets([]flow.SocketCount{{Established: 5}}, who, 1)
	if got := m.other.cells[cellSockets].sockets.Established; got != 5 {
		t.Fatalf("other has %d sockets, want 5", got)
	}
	m.setMax(1000)
	m.sweep(time.Now(), func(uint64) bool { return true })
	m.observeSockets([]flow.SocketCount{{Established: 2}}, who, 2)
	if got := m.other.cells[cellSockets].sockets.Established; got != 0 {
		t.Errorf("other still has %d sockets", got)
	}
}

// TestPeersDoNotPileUp: peers without room of their own are not remembered, and names
// outside are one.
func TestPeersDoNotPileUp(t *testing.T) {
	cfg := metricsConfig(false, 100_000)
	cfg.MetricsPeers = true
	m := newMetrics(cfg, new(loss.Counters))
	s := m.find(asking("web-1", 1).Local)
	for i := range 10_000 {
		m.more(s, peerKey(morePeerRTT, &workload.Identity{Name: fmt.Sprint("w", i)}))
		m.more(s, peerKey(morePeerRTT, &workload.Identity{Kind: workload.KindExternal, Name: fmt.Sprint("n", i, ".test")}))
	}
	if len(s.more) != maxMore || len(m.other.more) != 1 {
		t.Errorf("%d cells, and %d of other", len(s.more), len(m.other.more))
	}
}

// TestLossesConcern: a stream is told of what it may have lost.
func TestLossesConcern(t *testing.T) {
	for _, tt := range []struct {
		name  string
		i     interest
		stage loss.Stage
		want  bool
	}{
		{"flows", interest{flows: true}, loss.DNSRingFull, false},
		{"flows", interest{flows: true}, loss.TCPRingFull, true},
		{"queries", interest{dns: true}, loss.DNSRingFull, true},
		{"queries", interest{dns: true}, loss.DropEventsLimited, false},
		{"drops", interest{drops: true}, loss.DropEventsLimited, true},
		{"drops", interest{drops: true}, loss.DecodeFailed, true},
	} {
		if got := tt.i.concerns(tt.stage) && isTold(tt.stage); got != tt.want {
			t.Errorf("%s are told of %s: %v", tt.name, tt.stage, got)
		}
	}
}
