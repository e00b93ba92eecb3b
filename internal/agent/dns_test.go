// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/record"
)

// query is one of cgroup 42 with its answer.
func queryOf(name string, role record.Role, code dns.RCode) *dns.Record {
	s := flowtest.UDP(40000, 0, 0)
	return &dns.Record{
		Header: record.Header{
			CgroupID: s.CgroupID, PID: s.PID, Comm: s.Comm, Local: s.Local, Remote: s.Remote, LocalPort: 40000, RemotePort: 53,
			Protocol: record.UDP, Role: role, First: flowtest.Second(0), Last: flowtest.Second(1), Time: flowtest.Second(1),
		},
		Exchange: dns.Exchange{Outcome: dns.Answered, Name: name, Type: dns.TypeA, RCode: code, Latency: 3 * time.Millisecond},
	}
}

// askedNames are the names of the queries that a request brings.
func (r *rig) askedNames(t *testing.T, req *orb8v1.ObserveRequest) (names []string) {
	t.Helper()
	req.SinceNs = 1
	stream, err := r.client.Observe(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = until(t, "the end", stream.Recv, func(ev *orb8v1.Event) bool {
		if ev.GetDns() != nil {
			names = append(names, fmt.Sprint(ev.GetSequence(), " ", ev.GetDns().GetName(), " ", ev.GetDns().GetLocal().GetWorkload().GetName()))
		}
		return false
	})
	return names
}

// Queries come only where they are asked for, in the view that is asked for, with
// a sequence and a history like everything else, and count in metrics.
func TestQueries(t *testing.T) {
	r := startRig(t)
	r.submit(queryOf("a.test", record.RoleClient, dns.NoError), queryOf("a.test", record.RoleServer, dns.NoError))
	own := queryOf("own.test", record.RoleClient, dns.NoError)
	own.PID = selfPID
	r.submit(own, queryOf("b.test", record.RoleClient, dns.NXDomain))
	ofDNS := []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_DNS}
	for name, tt := range map[string]struct {
		req  *orb8v1.ObserveRequest
		want []string
	}{
		"unasked":     {&orb8v1.ObserveRequest{}, nil},
		"clients":     {&orb8v1.ObserveRequest{Kinds: ofDNS}, []string{"1 a.test curl", "3 b.test curl"}},
		"servers":     {&orb8v1.ObserveRequest{Kinds: ofDNS, DnsView: orb8v1.DnsView_DNS_VIEW_SERVER}, []string{"2 a.test curl"}},
		"that failed": {&orb8v1.ObserveRequest{Kinds: ofDNS, Filters: []*orb8v1.Filter{{Types: []string{"failed"}}}}, []string{"3 b.test curl"}},
		"by name":     {&orb8v1.ObserveRequest{Kinds: ofDNS, Filters: []*orb8v1.Filter{{DnsNames: []string{"a*"}}}}, []string{"1 a.test curl"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, r.askedNames(t, tt.req)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	// What was asked for lately is a snapshot of its own.
	stream, err := r.client.Observe(t.Context(), &orb8v1.ObserveRequest{
		Snapshot: true, Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_DNS_NAME},
	})
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	_, _ = until(t, "the end", stream.Recv, func(ev *orb8v1.Event) bool {
		if ev.GetNodeStatus() == nil {
			rows = append(rows, fmt.Sprint(ev.GetDnsName().GetName(), " ", ev.GetDnsName().GetQueries(), " ", ev.GetDnsName().GetRcodes()))
		}
		return false
	})
	if diff := cmp.Diff([]string{"a.test 1 map[NOERROR:1]", "b.test 1 map[NXDOMAIN:1]"}, rows); diff != "" {
		t.Errorf("names (-want +got)\n%s", diff)
	}
	got := body(r.http.Handler, "/metrics")
	for _, want := range []string{
		`orb8_dns_queries_total{namespace="",rcode="NOERROR",workload="curl",workload_kind="Process"} 1`,
		`orb8_dns_queries_total{namespace="",rcode="NXDOMAIN",workload="curl",workload_kind="Process"} 1`,
		`orb8_dns_served_queries_total{namespace="",rcode="NOERROR",workload="curl",workload_kind="Process"} 1`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no line %s in\n%s", want, got)
		}
	}
}

func (r *rig) submit(all ...*dns.Record) {
	for _, q := range all {
		r.Agent.query(q)
	}
}
