// SPDX-License-Identifier: Apache-2.0

package queries

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func asking(pod string, at int64) *dns.Record {
	return &dns.Record{Header: record.Header{
		Role: record.RoleClient, Time: at,
		Owner: &workload.Identity{Namespace: "default", Kind: "Deployment", Name: "web", Pod: pod, CgroupID: 5},
	}}
}

func add(n *Names, r *dns.Record, x dns.Exchange) {
	r.Exchange = x
	n.Add(r)
}

func answeredAfter(name string, took time.Duration) dns.Exchange {
	return dns.Exchange{Outcome: dns.Answered, Name: name, Type: dns.TypeA, Latency: took}
}

func TestAskedNames(t *testing.T) {
	n := NewNames(new(loss.Counters))
	add(n, asking("web-1", 1), answeredAfter("a.test", 2*time.Millisecond))
	add(n, asking("web-1", 2), answeredAfter("a.test", 4*time.Millisecond))
	add(n, asking("web-1", 3), dns.Exchange{Outcome: dns.Answered, Name: "a.test", Type: dns.TypeAAAA, RCode: dns.NXDomain, SearchFailures: 3})
	add(n, asking("web-1", 4), dns.Exchange{Outcome: dns.Timeout, Name: "a.test", Type: dns.TypeA})
	add(n, asking("web-1", 5), dns.Exchange{Outcome: dns.Unread, Name: "a.test", Type: dns.TypeA})
	add(n, asking("web-1", 6), answeredAfter("b.test", time.Millisecond))
	add(n, asking("web-1", 7), dns.Exchange{Outcome: dns.Unread})
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
	if diff := cmp.Diff(want, n.Events(nil, 0, "node"), protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := n.Events(nil, 1, "node"); len(got) != 1 || got[0].GetDnsName().GetName() != "a.test" {
		t.Errorf("the first of them: %v", got)
	}
	n.Sweep(time.Unix(0, 5).Add(askedTime))
	if got := n.Events(nil, 0, "node"); len(got) != 1 || got[0].GetDnsName().GetName() != "b.test" {
		t.Errorf("after a while: %v", got)
	}
	n.Sweep(time.Unix(0, 6).Add(askedTime))
	if len(n.workloads) != 0 || n.parts != 0 {
		t.Errorf("in the end %d workloads with %d parts", len(n.workloads), n.parts)
	}
}

// TestAskedNamesFiltered: of three replicas only what a filter lets through is counted,
// and a row of several says of none that it was that one.
func TestAskedNamesFiltered(t *testing.T) {
	n := NewNames(new(loss.Counters))
	ask := func(pod, container, comm, from, server string, port uint16, times int) {
		r := asking(pod, 1)
		who := *r.Owner
		who.ContainerID, who.CgroupID, who.Node = container, uint64(len(comm)), "node"
		r.Owner = &who
		copy(r.Comm[:], comm)
		r.Local, r.Remote = addr(from), addr(server)
		r.LocalPort, r.RemotePort, r.PID = 40000, port, 77
		for range times {
			add(n, r, answeredAfter("a.test", 0))
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
		set, err := filter.Compile(filters, filter.WithFields(Fields()...))
		if err != nil {
			t.Fatal(err)
		}
		got := n.Events(set, 0, "node")
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
	n := NewNames(losses)
	quiet := asking("", 1)
	quiet.Owner = &workload.Identity{Kind: "Unit", Name: "quiet.service"}
	add(n, quiet, answeredAfter("quiet.test", 0))
	for i := range maxAsked + 10 {
		add(n, asking("web-1", int64(i+1)), dns.Exchange{Outcome: dns.Timeout, Name: fmt.Sprint("n", i), Type: dns.TypeA})
	}
	if n.parts != maxAsked || n.PushedOut() != 11 || losses.Get(loss.DNSNamesFull) != 11 {
		t.Errorf("%d parts, %d pushed out, %d counted", n.parts, n.PushedOut(), losses.Get(loss.DNSNamesFull))
	}
	find := func(name string) *orb8v1.DnsName {
		set, err := filter.Compile([]*orb8v1.Filter{{DnsNames: []string{name}}}, filter.WithFields(Fields()...))
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range n.Events(set, 0, "n") {
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
		add(n, r, dns.Exchange{Outcome: dns.Answered, Name: "kinds.test", Type: dns.Type(i), RCode: dns.RCode(i)})
	}
	got := find("kinds.test")
	if len(got.GetTypes()) != maxAskedTypes || len(got.GetRcodes()) != maxAskedCodes || got.GetQueries() != 100 {
		t.Errorf("%d queries of %d types, with %d codes", got.GetQueries(), len(got.GetTypes()), len(got.GetRcodes()))
	}
	n.Sweep(time.Unix(0, n.pushedAt).Add(askedTime))
	if n.PushedOut() != 0 {
		t.Error("what was pushed out long ago is still missed")
	}
}
