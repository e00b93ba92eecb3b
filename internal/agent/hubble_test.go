// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
)

func hubbleConfig() *Config {
	cfg := metricsConfig(false, 1000)
	cfg.MetricsAliases = aliasHubble
	return cfg
}

// exchanged counts what came of a query at one end.
func exchanged(m *metrics, role flow.Role, x *dns.Exchange) {
	r := asking("web-1", second(1))
	r.Role, r.Detail = role, x
	m.observe(r)
}

// talked counts flows of several protocols.
func talked(m *metrics) {
	conn := tcpSample(1, 100, 100)
	m.observe(record(flow.EventOpen, conn, flow.Counters{TxBytes: 100}))
	m.observe(record(flow.EventUpdate, conn, flow.Counters{TxBytes: 10}))
	conn.TCP.ResetSent, conn.TCP.End = true, flow.EndResetLocal
	m.observe(record(flow.EventClose, conn, flow.Counters{}))
	refused := tcpSample(2, 0, 0)
	refused.Local, refused.Remote = addr("fd00::1"), addr("fd00::2")
	refused.TCP = flow.TCPInfo{Valid: true, Failed: true, End: flow.EndRefused, ResetReceived: true}
	m.observe(record(flow.EventClose, refused, flow.Counters{}))
	for _, p := range []flow.Protocol{flow.UDP, flow.ICMP, flow.ICMPv6, 132, 47} {
		s := udpSample(3, 0, 0)
		s.Protocol = p
		m.observe(record(flow.EventOpen, s, flow.Counters{TxBytes: 1}))
		m.observe(record(flow.EventExpire, s, flow.Counters{}))
	}
}

// TestHubbleMetrics has the whole page.
func TestHubbleMetrics(t *testing.T) {
	m := newMetrics(hubbleConfig(), new(loss.Counters))
	talked(m)
	found := []dns.Answer{{Type: dns.TypeCNAME, Data: "b.test"}, {Type: dns.TypeA, Data: "192.0.2.1"}, {Type: dns.TypeA, Data: "192.0.2.2"}}
	exchanged(m, flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, Type: dns.TypeA, Answers: found})
	exchanged(m, flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, Type: dns.TypeA, Answers: found, More: 1})
	exchanged(m, flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, Type: dns.TypeAAAA, RCode: dns.NXDomain, Repeats: 1})
	exchanged(m, flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, Type: 4000, RCode: 9})
	exchanged(m, flow.RoleClient, &dns.Exchange{Outcome: dns.Timeout, Type: dns.TypeA, Repeats: 2})
	exchanged(m, flow.RoleClient, &dns.Exchange{Outcome: dns.Unread})
	exchanged(m, flow.RoleServer, &dns.Exchange{Outcome: dns.Answered, Type: dns.TypeA})
	web := asking("web-1", 1).Local
	m.observeDrops(web, "NO_SOCKET", 3, 1)
	m.observeDrops(web, "NETFILTER_DROP", 1, 2)

	families := hubbleFamilies()
	help := func(f int) string {
		return fmt.Sprintf("# HELP %s %s\n# TYPE %[1]s counter\n", families[f].Name, families[f].Help)
	}
	want := help(hubbleQueries) + `hubble_dns_queries_total{ips_returned="0",qtypes="A",rcode=""} 5
hubble_dns_queries_total{ips_returned="0",qtypes="AAAA",rcode=""} 2
hubble_dns_queries_total{ips_returned="0",qtypes="other",rcode=""} 1
` + help(hubbleResponses) + `hubble_dns_responses_total{ips_returned="",qtypes="A",rcode="No Error"} 1
hubble_dns_responses_total{ips_returned="0",qtypes="AAAA",rcode="Non-Existent Domain"} 1
hubble_dns_responses_total{ips_returned="0",qtypes="other",rcode="NOTAUTH"} 1
hubble_dns_responses_total{ips_returned="2",qtypes="A",rcode="No Error"} 1
` + help(hubbleDrops) + `hubble_drop_total{reason="NETFILTER_DROP"} 1
hubble_drop_total{reason="NO_SOCKET"} 3
` + help(hubbleFlows) + `hubble_flows_processed_total{protocol="",subtype="",type="Drop",verdict="DROPPED"} 4
hubble_flows_processed_total{protocol="DNS",subtype="DNS",type="L7",verdict="FORWARDED"} 12
hubble_flows_processed_total{protocol="ICMPv4",subtype="",type="Trace",verdict="FORWARDED"} 1
hubble_flows_processed_total{protocol="ICMPv6",subtype="",type="Trace",verdict="FORWARDED"} 1
hubble_flows_processed_total{protocol="SCTP",subtype="",type="Trace",verdict="FORWARDED"} 1
hubble_flows_processed_total{protocol="TCP",subtype="",type="Trace",verdict="FORWARDED"} 4
hubble_flows_processed_total{protocol="UDP",subtype="",type="Trace",verdict="FORWARDED"} 1
hubble_flows_processed_total{protocol="Unknown L4",subtype="",type="Trace",verdict="FORWARDED"} 1
` + help(hubbleTCPFlags) + `hubble_tcp_flags_total{family="IPv4",flag="RST"} 1
hubble_tcp_flags_total{family="IPv6",flag="RST"} 1
`
	if err := testutil.CollectAndCompare(newHubbleExporter(m), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	// The counts stay when the workloads are gone.
	m.sweep(time.Unix(0, second(1)).Add(time.Hour), func(uint64) bool { return false })
	if len(m.byLabels) != 0 {
		t.Fatalf("%d workloads are left", len(m.byLabels))
	}
	if err := testutil.CollectAndCompare(newHubbleExporter(m), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// TestHubbleSeriesAreBounded: answers made up at random do not make series without end.
func TestHubbleSeriesAreBounded(t *testing.T) {
	m := newMetrics(hubbleConfig(), new(loss.Counters))
	n := 0
	for code := range dns.RCode(16) {
		for kind := range dns.Type(300) {
			for ips := range 5 {
				exchanged(m, flow.RoleClient, &dns.Exchange{Outcome: dns.Answered, RCode: code, Type: kind, Answers: addresses(ips)})
				n++
			}
		}
	}
	var sum uint64
	for _, c := range m.hubble.responses {
		sum += c
	}
	if got := len(m.hubble.responses); got < maxHubbleResponses || got > maxHubbleResponses+16 || sum != uint64(n) {
		t.Errorf("%d series, %d of %d answers", got, sum, n)
	}
}

func addresses(n int) []dns.Answer {
	all := make([]dns.Answer, n)
	for i := range all {
		all[i].Type = dns.TypeAAAA
	}
	return all
}

func TestHubbleIsServed(t *testing.T) {
	for _, aliases := range []string{aliasHubble, ""} {
		r := startRig(t, func(cfg *Config, _ *Deps, _ *rig) {
			cfg.MetricsListen, cfg.MetricsAliases = "127.0.0.1:0", aliases
		})
		talked(r.metrics)
		page := body(r.http.Handler, "/metrics")
		if got := strings.Contains(page, "\nhubble_flows_processed_total{"); got != (aliases != "") {
			t.Errorf("metrics.aliases %q: served %v", aliases, got)
		}
		if !strings.Contains(page, "\norb8_network_bytes_total{") || !strings.Contains(page, "\ngo_goroutines ") {
			t.Errorf("metrics.aliases %q: orb8's own metrics are missing", aliases)
		}
	}
}
