// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

const (
	portDNS = 53
	// What the lab's CoreDNS says of example.test, see lab/dns.sh, and netpeer of
	// any other name.
	example4, example6 = "192.0.2.10", "2001:db8::10"
	named4, named6     = "198.51.100.8", "2001:db8:7::8"
	answer4            = "192.0.2.53"
	// slow is how long netpeer's server waits before it answers a slow name.
	slow = 500 * time.Millisecond
)

// asked is one end's view of a query, as far as the tests compare it.
type asked struct {
	Local, Remote         identity
	Name, Type, RCode     string
	Protocol, Answers     string
	Timeout, Truncated    bool
	Repeats, SearchFailed uint32
}

func askedIn(x *orb8v1.DnsExchange) asked {
	var answers []string
	for _, a := range x.GetAnswers() {
		answers = append(answers, a.GetData())
	}
	return asked{
		Local: identityOf(x.GetLocal().GetWorkload()), Remote: identityOf(x.GetRemote().GetWorkload()),
		Name: x.GetName(), Type: x.GetType(), RCode: x.GetRcode(), Protocol: x.GetProtocol(),
		Answers: strings.Join(answers, ","), Timeout: x.GetOutcome() == orb8v1.DnsOutcome_DNS_OUTCOME_TIMEOUT,
		Truncated: x.GetTruncated(), Repeats: x.GetRepeats(), SearchFailed: x.GetSearchFailures(),
	}
}

// answered is a query over UDP of client that server has answered.
func answered(client, server identity, name, kind, rcode, answers string) asked {
	return asked{Local: client, Remote: server, Name: name, Type: kind, RCode: rcode, Protocol: "UDP", Answers: answers}
}

// seenBy is the same query as its server sees it.
func (a asked) seenBy(server identity) asked {
	server.Service = ""
	a.Local, a.Remote, a.SearchFailed = server, a.Local, 0
	return a
}

// both is a pair of queries for IPv4 and IPv6 that differ in nothing else.
func both(a asked, answer4, answer6 string) []asked {
	b := a
	a.Type, a.Answers, b.Type, b.Answers = "A", answer4, "AAAA", answer6
	return []asked{a, b}
}

// exchanges asks `orb8 trace dns` for what happened since a time.
func (l *lab) exchanges(ctx context.Context, since time.Time, flags ...string) ([]*orb8v1.Event, error) {
	out, err := l.cli(ctx, append([]string{"trace", "dns", "-A", "-o", "json", "--since", since.Format(time.RFC3339Nano)}, flags...)...)
	if err != nil {
		return nil, err
	}
	events, err := parseEvents(out)
	return slices.DeleteFunc(events, func(e *orb8v1.Event) bool { return e.GetDns() == nil }), err
}

// expectAsked waits for the queries of some names, which all come from node, to be
// those that are wanted and no others.
func (l *lab) expectAsked(t *testing.T, since time.Time, node string, want []asked, flags ...string) []*orb8v1.DnsExchange {
	t.Helper()
	flags = slices.Clone(flags)
	for _, a := range want {
		flags = append(flags, "--name", a.Name)
	}
	var found []*orb8v1.DnsExchange
	eventually(t, 10*time.Second, func() error {
		events, err := l.exchanges(t.Context(), since, flags...)
		if err != nil {
			return err
		}
		var got []asked
		found = nil
		for _, e := range events {
			if e.GetNodeName() != node {
				return fmt.Errorf("a query for %s comes from node %s, want %s", e.GetDns().GetName(), e.GetNodeName(), node)
			}
			found, got = append(found, e.GetDns()), append(got, askedIn(e.GetDns()))
		}
		byQuery := cmpopts.SortSlices(func(a, b asked) bool {
			return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Type, b.Type), strings.Compare(a.Protocol, b.Protocol)) < 0
		})
		if d := gocmp.Diff(want, got, byQuery); d != "" {
			return fmt.Errorf("queries (-want +got):\n%s", d)
		}
		return nil
	})
	return found
}

// coreDNS returns who answers at the Service kube-dns.
func (l *lab) coreDNS(t *testing.T) identity {
	t.Helper()
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	var id identity
	eventually(t, time.Minute, func() error {
		pods, err := l.client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
		if err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods of CoreDNS, want 1", len(pods.Items))
		}
		p := &pods.Items[0]
		id = identity{"kube-system", p.Name, "Deployment", "coredns", "kube-dns", p.Spec.NodeName}
		_, err = readySince(p)
		return err
	})
	return id
}

// TestClusterDNS has pods ask the cluster's DNS server, as programs do.
func TestClusterDNS(t *testing.T) {
	l := shared
	dns := l.coreDNS(t)
	client := l.client1.identity()
	domain := l.namespace + ".svc.cluster.local"
	ip := func(service string, family int) string {
		host, _, _ := net.SplitHostPort(l.clusterIP(t.Context(), service, family)) // empty where there is none
		return host
	}
	l.createHeadless(t, "direct", "near")
	cases := []struct{ name, found, rcode, answer4, answer6 string }{
		{"example.test.", "example.test", "NOERROR", example4, example6},
		{"alias.example.test.", "alias.example.test", "NOERROR", "example.test," + example4, "example.test," + example6},
		{"missing.example.test.", "missing.example.test", "NXDOMAIN", "", ""},
		{"far", "far." + domain, "NOERROR", ip("far", 4), ip("far", 6)},
		{"direct", "direct." + domain, "NOERROR", l.near.ip(4), l.near.ip(6)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			begun := time.Now()
			eventually(t, 10*time.Second, func() error { // names of Services become known by and by
				begun = time.Now()
				got, err := l.tryNetpeer(t.Context(), l.client1, "", "lookup", c.name)
				if err == nil && len(got.Addresses) == 0 && c.answer4 != "" {
					err = fmt.Errorf("no address of %s", c.name)
				}
				return err // the server may also have failed as long as it knows only half
			})
			want := both(answered(client, dns, c.found, "", c.rcode, ""), c.answer4, c.answer6)
			for _, x := range l.expectAsked(t, begun, l.client1.Spec.NodeName, want) {
				if got := x.GetLatencyNs(); got <= 0 || got > time.Second.Nanoseconds() {
					t.Errorf("latency of %s %s: %d ns", x.GetType(), x.GetName(), got)
				}
			}
			for i := range want {
				want[i] = want[i].seenBy(dns)
			}
			l.expectAsked(t, begun, dns.Node, want, "--server-side")
		})
	}
}

func (l *lab) createHeadless(t *testing.T, name, app string) {
	t.Helper()
	dual := corev1.IPFamilyPolicyPreferDualStack
	_, err := l.client.CoreV1().Services(l.namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, IPFamilyPolicy: &dual, Selector: map[string]string{"app": app}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSearchDomains asks for a name with fewer dots than ndots, then goes to the
// address that it got.
func TestSearchDomains(t *testing.T) {
	l := shared
	dns := l.coreDNS(t)
	begun := time.Now()
	client := l.testPod(t, "searcher", l.podSpec(l.nodes[0], "wait"))
	const name = "api.example.test"
	res := l.netpeer(t, client, "", "tcp", "-send", "4321", "-receive", "1234", joined(name, port))

	var want []asked
	for _, domain := range []string{l.namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"} {
		want = append(want, both(answered(client.identity(), dns, name+"."+domain, "", "NXDOMAIN", ""), "", "")...)
	}
	want = append(want, both(answered(client.identity(), dns, name, "", "NOERROR", ""), named4, named6)...)
	failed := uint32(len(want) - 2)
	// Whichever answer comes first tells of the failures.
	events := l.searched(t, begun, failed, name)
	for i := range want {
		for _, x := range events {
			if x.GetName() == want[i].Name && x.GetType() == want[i].Type {
				want[i].SearchFailed = x.GetSearchFailures()
			}
		}
	}
	l.expectAsked(t, begun, client.Spec.NodeName, want)
	l.expectAskedName(t, client, name, 2, uint64(failed))
	l.expect(t, "TCP", client.Spec.NodeName, seen{
		Local: client.identity(), Remote: identity{Kind: "External", Name: name}, TxBytes: 4321, RxBytes: 1234, Role: "client",
	}, func(f *orb8v1.Flow) bool { return isFrom(f, res) })
}

// searched returns the queries for a name that were answered, when they tell of as
// many failures as wanted.
func (l *lab) searched(t *testing.T, since time.Time, failed uint32, name string) []*orb8v1.DnsExchange {
	t.Helper()
	var found []*orb8v1.DnsExchange
	eventually(t, 10*time.Second, func() error {
		events, err := l.exchanges(t.Context(), since, "--name", name, "--rcode", "NOERROR")
		if err != nil {
			return err
		}
		found = nil
		var sum uint32
		for _, e := range events {
			found, sum = append(found, e.GetDns()), sum+e.GetDns().GetSearchFailures()
		}
		if sum != failed {
			return fmt.Errorf("%d queries for %s tell of %d failed ones before, want %d", len(found), name, sum, failed)
		}
		return nil
	})
	return found
}

// expectAskedName waits for the row of `orb8 flows --dns` of a pod that got a name.
func (l *lab) expectAskedName(t *testing.T, client *pod, name string, queries, failed uint64) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		out, err := l.cli(t.Context(), "flows", "--dns", "-o", "json", "--limit", "0", "-n", l.namespace, "--pod", client.Name, "--name", name)
		if err != nil {
			return err
		}
		events, err := parseEvents(out)
		if err != nil {
			return err
		}
		if len(events) != 1 {
			return fmt.Errorf("%d rows of %s for %s, want 1", len(events), name, client.Name)
		}
		row := events[0].GetDnsName()
		want := map[string]uint64{"NOERROR": queries}
		if d := gocmp.Diff(want, row.GetRcodes()); d != "" || row.GetQueries() != queries || row.GetSearchFailures() != failed ||
			identityOf(row.GetWorkload()) != client.identity() {
			return fmt.Errorf("%v, want %d queries and %d that failed before", row, queries, failed)
		}
		return nil
	})
}

// TestDNS has several kinds of pods ask a server that answers in several ways.
func TestDNS(t *testing.T) {
	l := shared
	first, last := l.nodes[0], l.nodes[len(l.nodes)-1]
	server := l.testPod(t, "dns-server", l.podSpec(last, "dns", "-listen", fmt.Sprint(":", portDNS), "-wait", slow.String()))
	at := joined(server.Status.PodIP, portDNS)
	l.untilAnswering(t, at)
	begun := time.Now()
	queries := func(p *pod, name string) []asked {
		return []asked{answered(p.identity(), server.identity(), name+".test", "A", "NOERROR", answer4)}
	}
	resolve := func(p *pod, name string) result {
		return l.netpeer(t, p, "", "resolve", "-server", at, name+".test")
	}

	// It is given up after 5 s; meanwhile the others.
	_, _ = l.exec(t.Context(), l.client1, "", "resolve", "-timeout", "100ms", "-server", at, "silent.test")

	t.Run("slow", func(t *testing.T) {
		took := resolve(l.client1, "slow").TookNS
		x := l.expectAsked(t, begun, first, queries(l.client1, "slow"))
		if got := time.Duration(x[0].GetLatencyNs()); got < slow || got > slow+slow/10 || got > took {
			t.Errorf("latency %v; the server waited %v, the client %v", got, slow, took)
		}
	})
	t.Run("truncated", func(t *testing.T) {
		resolve(l.client1, "large")
		want := slices.Repeat(queries(l.client1, "large"), 2)
		want[0].Answers, want[0].Truncated = "", true
		want[1].Protocol = "TCP"
		l.expectAsked(t, begun, first, want)
		for i := range want {
			want[i] = want[i].seenBy(server.identity())
		}
		l.expectAsked(t, begun, last, want, "--server-side")
	})
	t.Run("host network", func(t *testing.T) {
		resolve(l.hostA, "from-host")
		l.expectAsked(t, begun, first, queries(l.hostA, "from-host"))
	})
	t.Run("same node", func(t *testing.T) {
		resolve(l.client2, "near")
		want := queries(l.client2, "near")
		l.expectAsked(t, begun, last, want)
		l.expectAsked(t, begun, last, []asked{want[0].seenBy(server.identity())}, "--server-side")
	})
	t.Run("short pod", func(t *testing.T) {
		p := l.testPod(t, "short-asker", l.once(first, "resolve", "-server", at, "short.test"))
		l.resultOf(t, p.Name, "main")
		l.deletePod(t, p.Name)
		l.untilGone(t, p.Name)
		l.expectAsked(t, begun, first, queries(p, "short"))
	})
	t.Run("timeout", func(t *testing.T) {
		want := queries(l.client1, "silent")
		want[0].RCode, want[0].Answers, want[0].Timeout = "", "", true
		l.expectAsked(t, begun, first, want, "--failed")
		l.expectAsked(t, begun, last, []asked{want[0].seenBy(server.identity())}, "--server-side", "--rcode", "timeout")
	})
}

func (l *lab) untilAnswering(t *testing.T, at string) {
	t.Helper()
	for _, p := range []*pod{l.client1, l.client2, l.hostA} {
		eventually(t, 30*time.Second, func() error {
			_, err := l.exec(t.Context(), p, "", "resolve", "-timeout", "1s", "-server", at, "ready.test")
			return err
		})
	}
}
