// SPDX-License-Identifier: Apache-2.0

package filter_test

import (
	"slices"
	"testing"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func TestDNSFields(t *testing.T) {
	query := func(x dns.Exchange) *flow.Record {
		r := host()
		r.Detail = &x
		return r
	}
	external := func(kind string) *flow.Record {
		r := pod()
		r.Remote = &workload.Identity{Kind: kind, Name: "api.example.com"}
		return r
	}
	dropped := external("External")
	dropped.Detail = &flow.Drop{}
	records := map[string]*flow.Record{
		"answered": query(dns.Exchange{Outcome: dns.Answered, Name: "api.example.com", Type: dns.TypeA}),
		"unknown":  query(dns.Exchange{Outcome: dns.Answered, Name: "api.example.com.cluster.local", Type: dns.TypeAAAA, RCode: dns.NXDomain}),
		"timeout":  query(dns.Exchange{Outcome: dns.Timeout, Name: `odd\.`, Type: 999}),
		"root":     query(dns.Exchange{Outcome: dns.Answered, Name: ".", Type: dns.TypeNS}),
		"cookie":   query(dns.Exchange{Outcome: dns.Answered, Name: "x", Type: dns.TypeA, RCode: 16}),
		"unread":   query(dns.Exchange{Outcome: dns.Unread}),
		"external": external("External"), "pod": external("Deployment"), "nobody": host(), "dropped": dropped,
	}
	for _, tt := range []struct {
		filter *F
		want   []string
	}{
		{&F{DnsNames: []string{"api.example.com"}}, []string{"answered", "external"}},
		{&F{DnsNames: []string{"API.Example.com."}}, []string{"answered", "external"}},
		{&F{DnsNames: []string{"example.com", "api.example"}}, nil},
		{&F{DnsNames: []string{"*.example.com."}}, []string{"answered", "external"}},
		{&F{DnsNames: []string{"api.*"}}, []string{"answered", "unknown", "external"}},
		{&F{DnsNames: []string{"*CLUSTER*"}}, []string{"unknown"}},
		{&F{DnsNames: []string{"none", `odd\.`}}, []string{"timeout"}},
		{&F{DnsNames: []string{"."}}, []string{"root"}},
		{&F{DnsNames: []string{"*"}}, []string{"answered", "unknown", "timeout", "root", "cookie", "external"}},
		{&F{Rcodes: []string{"noerror"}}, []string{"answered", "root"}},
		{&F{Rcodes: []string{"3", "Timeout"}}, []string{"unknown", "timeout"}},
		{&F{Rcodes: []string{"RCODE3", "SERVFAIL"}}, []string{"unknown"}},
		{&F{Rcodes: []string{"Unread", "BADVERS"}}, []string{"unread", "cookie"}},
		{&F{QueryTypes: []string{"aaaa", "2"}}, []string{"unknown", "root"}},
		{&F{QueryTypes: []string{"TYPE999", "0"}}, []string{"timeout"}},
	} {
		checkMatches(t, tt.filter, records, tt.want)
	}
}

// checkMatches checks which of the records a filter matches, by their names.
func checkMatches(t *testing.T, f *F, records map[string]*flow.Record, names []string) {
	t.Helper()
	set, err := filter.Compile([]*F{f})
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range records {
		if got, want := set.Match(r), slices.Contains(names, name); got != want {
			t.Errorf("%v: %s: %v, want %v", f, name, got, want)
		}
	}
}
