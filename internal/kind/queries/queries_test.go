// SPDX-License-Identifier: Apache-2.0

package queries

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func addr(s string) record.Addr { return record.AddrOf(netip.MustParseAddr(s)) }

func full() *dns.Record {
	return &dns.Record{
		Header: record.Header{
			CgroupID: 42, NetNS: 9, PID: 7, Comm: record.Comm{'c', 'u', 'r', 'l'},
			Local: addr("10.244.1.5"), Remote: addr("10.96.0.10"), LocalPort: 40000, RemotePort: 53, Protocol: record.UDP,
			Role: record.RoleClient, Loopback: true, Self: true, Time: 300, First: 100, Last: 300,
			Owner: &workload.Identity{Namespace: "shop", Pod: "web-1"}, Peer: &workload.Identity{Namespace: "kube-system", Service: "kube-dns"},
		},
		Exchange: dns.Exchange{
			Outcome: dns.Answered, ID: 5, Name: "api.example.test", Type: dns.TypeA, RCode: dns.NXDomain, Latency: 200,
			Repeats: 1, Answers: []dns.Answer{{Name: "a", Type: dns.TypeA, TTL: 30, Data: "198.51.100.7"}}, More: 2,
			Truncated: true, Authoritative: true, AnswerBytes: 60, SearchFailures: 3,
		},
	}
}

func TestEvent(t *testing.T) {
	want := &orb8v1.Event{TimeNs: 300, NodeName: "n", Event: &orb8v1.Event_Dns{Dns: &orb8v1.DnsExchange{
		Outcome: orb8v1.DnsOutcome_DNS_OUTCOME_ANSWERED, View: orb8v1.DnsView_DNS_VIEW_CLIENT, Protocol: "UDP",
		Local:    &orb8v1.Endpoint{Ip: "10.244.1.5", Port: 40000, Workload: &orb8v1.Workload{Namespace: "shop", PodName: "web-1"}},
		Remote:   &orb8v1.Endpoint{Ip: "10.96.0.10", Port: 53, Workload: &orb8v1.Workload{Namespace: "kube-system", Service: "kube-dns"}},
		Process:  &orb8v1.Process{Pid: 7, Command: "curl"},
		Loopback: true, Self: true, Id: 5, Name: "api.example.test", Type: "A", Rcode: "NXDOMAIN", LatencyNs: 200, Repeats: 1,
		Answers:     []*orb8v1.DnsAnswer{{Name: "a", Type: "A", TtlSeconds: 30, Data: "198.51.100.7"}},
		MoreAnswers: 2, Truncated: true, Authoritative: true, QueryTimeNs: 100, AnswerBytes: 60, SearchFailures: 3, Netns: 9,
	}}}
	got := Event(full(), "n")
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// A new field of the API cannot be forgotten here.
	m := got.GetDns().ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if !m.Has(fields.Get(i)) {
			t.Errorf("%s is empty", fields.Get(i).Name())
		}
	}
	gone := full()
	gone.Outcome, gone.Role = dns.Timeout, record.RoleServer
	if x := Event(gone, "n").GetDns(); x.GetRcode() != "" || x.GetLatencyNs() != 0 || x.GetAnswers() != nil || x.GetView() != orb8v1.DnsView_DNS_VIEW_SERVER {
		t.Errorf("without an answer: %v", x)
	}
}

func TestNumbersAreThoseOfTheAPI(t *testing.T) {
	for ours, api := range map[dns.Outcome]protoreflect.Enum{
		dns.Answered: orb8v1.DnsOutcome_DNS_OUTCOME_ANSWERED, dns.Timeout: orb8v1.DnsOutcome_DNS_OUTCOME_TIMEOUT,
		dns.Unread: orb8v1.DnsOutcome_DNS_OUTCOME_UNREAD,
	} {
		if int(ours) != int(api.Number()) {
			t.Errorf("%v: %d", api, ours)
		}
	}
}

// What is seen at both ends is told of once in each view.
func TestSeen(t *testing.T) {
	client, server := full(), full()
	server.Role = record.RoleServer
	for asked, want := range map[orb8v1.DnsView][2]bool{
		orb8v1.DnsView_DNS_VIEW_UNSPECIFIED: {true, false}, orb8v1.DnsView_DNS_VIEW_CLIENT: {true, false},
		orb8v1.DnsView_DNS_VIEW_SERVER: {false, true}, 99: {true, false},
	} {
		if got := [2]bool{Seen(client, asked), Seen(server, asked)}; got != want {
			t.Errorf("%v: %v, want %v", asked, got, want)
		}
	}
}

// meter notes what is counted.
type meter []string

func (m *meter) Count(family, value string, n uint64) {
	*m = append(*m, fmt.Sprint(family, " ", value, " ", n))
}
func (m *meter) Observe(family string, ns uint64) { *m = append(*m, fmt.Sprint(family, " ", ns)) }

func TestMeasure(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*dns.Record)
		want   meter
	}{
		"answered":                         {func(*dns.Record) {}, meter{"orb8_dns_queries_total NXDOMAIN 1", "orb8_dns_latency_seconds 200", "orb8_dns_search_failures_total  3"}},
		"served":                           {func(r *dns.Record) { r.Role = record.RoleServer }, meter{"orb8_dns_served_queries_total NXDOMAIN 1", "orb8_dns_served_latency_seconds 200"}},
		"timeout":                          {func(r *dns.Record) { r.Outcome, r.SearchFailures = dns.Timeout, 0 }, meter{"orb8_dns_queries_total timeout 1"}},
		"unread":                           {func(r *dns.Record) { r.Outcome, r.SearchFailures = dns.Unread, 0 }, meter{"orb8_dns_queries_total unread 1"}},
		"a connection that cannot be read": {func(r *dns.Record) { r.Outcome, r.Name = dns.Unread, "" }, nil},
	} {
		r := full()
		tt.change(r)
		var got meter
		Measure(r, &got)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	names := map[string]bool{}
	for _, f := range Families() {
		names[f.Name] = true
	}
	for _, name := range []string{queriesTotal, latency, searchFailures, servedTotal, servedLatency} {
		if !names[name] {
			t.Errorf("%s is no family", name)
		}
	}
}

func TestFields(t *testing.T) {
	query := func(took time.Duration, x dns.Exchange) *dns.Record {
		r := &dns.Record{Header: record.Header{Owner: &workload.Identity{}, First: 1, Time: 1 + int64(took)}, Exchange: x}
		if x.Outcome == dns.Answered {
			r.Latency = took
		}
		return r
	}
	ms := time.Millisecond
	records := map[string]*dns.Record{
		"answered": query(ms, dns.Exchange{Outcome: dns.Answered, Name: "api.example.com", Type: dns.TypeA}),
		"unknown":  query(60*ms, dns.Exchange{Outcome: dns.Answered, Name: "api.example.com.cluster.local", Type: dns.TypeAAAA, RCode: dns.NXDomain}),
		"timeout":  query(5*time.Second, dns.Exchange{Outcome: dns.Timeout, Name: `odd\.`, Type: 999}),
		"root":     query(50*ms, dns.Exchange{Outcome: dns.Answered, Name: ".", Type: dns.TypeNS}),
		"cookie":   query(ms, dns.Exchange{Outcome: dns.Answered, Name: "x", Type: dns.TypeA, RCode: 16}),
		"unread":   query(5*time.Second, dns.Exchange{Outcome: dns.Unread}),
	}
	type F = orb8v1.Filter
	for _, tt := range []struct {
		filter *F
		want   []string
	}{
		{&F{DnsNames: []string{"api.example.com"}}, []string{"answered"}},
		{&F{DnsNames: []string{"API.Example.com."}}, []string{"answered"}},
		{&F{DnsNames: []string{"example.com", "api.example"}}, nil},
		{&F{DnsNames: []string{"*.example.com."}}, []string{"answered"}},
		{&F{DnsNames: []string{"api.*"}}, []string{"answered", "unknown"}},
		{&F{DnsNames: []string{"*CLUSTER*"}}, []string{"unknown"}},
		{&F{DnsNames: []string{"none", `odd\.`}}, []string{"timeout"}},
		{&F{DnsNames: []string{"."}}, []string{"root"}},
		{&F{DnsNames: []string{"*"}}, []string{"answered", "unknown", "timeout", "root", "cookie"}},
		{&F{Rcodes: []string{"noerror"}}, []string{"answered", "root"}},
		{&F{Rcodes: []string{"3", "Timeout"}}, []string{"unknown", "timeout"}},
		{&F{Rcodes: []string{"RCODE3", "SERVFAIL"}}, []string{"unknown"}},
		{&F{Rcodes: []string{"Unread", "BADVERS"}}, []string{"unread", "cookie"}},
		{&F{QueryTypes: []string{"aaaa", "2"}}, []string{"unknown", "root"}},
		{&F{QueryTypes: []string{"TYPE999", "0"}}, []string{"timeout"}},
		{&F{SlowerNs: int64(50 * ms)}, []string{"unknown", "timeout"}},
	} {
		set, err := filter.Compile([]*F{tt.filter}, filter.WithFields(Fields()...))
		if err != nil {
			t.Fatal(err)
		}
		for name, r := range records {
			if got, want := set.Match(&r.Header, r), slices.Contains(tt.want, name); got != want {
				t.Errorf("%v: %s: %v, want %v", tt.filter, name, got, want)
			}
		}
		if set.Match(&records["answered"].Header, nil) {
			t.Errorf("%v matches a record of another kind", tt.filter)
		}
	}
	for _, wrong := range []*F{{DnsNames: []string{""}}, {DnsNames: []string{"a*b"}}, {Rcodes: []string{"WRONG"}}, {QueryTypes: []string{"70000"}}, {SlowerNs: -1}} {
		if _, err := filter.Compile([]*F{wrong}, filter.WithFields(Fields()...)); err == nil {
			t.Errorf("%v is taken", wrong)
		}
	}
}
