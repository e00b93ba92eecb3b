// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// route is a way from a client to a server, with the names that each end's flow
// must have.
type route struct {
	name string
	from *pod
	// to is where the client connects to; empty where the cluster lacks it.
	to func(t *testing.T, protocol string, family int) string
	// remote is the client's view of the other end.
	remote identity
	// server, nil where no pod serves, and its view of the client; where the
	// way changes the client's address this is who has that one.
	server *pod
	client identity
	// translated: the server does not see the client's address.
	translated bool
}

func (l *lab) direct(p *pod, port int) func(*testing.T, string, int) string {
	return func(_ *testing.T, _ string, family int) string { return joined(p.ip(family), port) }
}

func with(id identity, service string) identity {
	id.Service = service
	return id
}

// nodeIdentity is who a node's own address belongs to.
func nodeIdentity(name string) identity { return identity{Kind: "Node", Name: name, Node: name} }

func (l *lab) podRoutes() []route {
	c1, c2 := l.client1, l.client2
	return []route{
		{"same node", c1, l.direct(l.near, port), l.near.identity(), l.near, c1.identity(), false},
		{"other node", c1, l.direct(l.far, port), l.far.identity(), l.far, c1.identity(), false},
		{"other node, back", c2, l.direct(l.near, port), l.near.identity(), l.near, c2.identity(), false},
		// On one node the agent sees both ends, which tells the two pods apart
		// that share the node's addresses.
		{"from host network a", l.hostA, l.direct(l.near, port), l.near.identity(), l.near, l.hostA.identity(), false},
		{"from host network b", l.hostB, l.direct(l.near, port), l.near.identity(), l.near, l.hostB.identity(), false},
		{"from host network, other node", l.hostA, l.direct(l.far, port), l.far.identity(), l.far, nodeIdentity(l.nodes[0]), false},
		{"to host network a", c1, l.direct(l.hostA, portHostA), l.hostA.identity(), l.hostA, c1.identity(), false},
		{"to host network b", c1, l.direct(l.hostB, portHostB), l.hostB.identity(), l.hostB, c1.identity(), false},
		{"to host network, other node", c2, l.direct(l.hostA, portHostA), l.hostA.identity(), l.hostA, c2.identity(), false},
		{"host port, other node", c1, l.hostPort, l.ported.identity(), l.ported, c1.identity(), false},
	}
}

// hostPort is where the pod ported is reached by its node's address.
func (l *lab) hostPort(t *testing.T, protocol string, family int) string {
	if protocol == "ping" { // the node would answer
		return ""
	}
	return joined(l.nodeIP(t.Context(), l.ported.Spec.NodeName, family), portPorted)
}

func (l *lab) serviceRoutes(t *testing.T) []route {
	service := func(name string) func(*testing.T, string, int) string {
		return func(t *testing.T, _ string, family int) string { return l.clusterIP(t.Context(), name, family) }
	}
	nodePort := func(node string) func(*testing.T, string, int) string {
		return func(t *testing.T, protocol string, family int) string {
			return l.nodePort(t, "far", node, protocol, family)
		}
	}
	fixed := func(ip4, ip6 string) func(*testing.T, string, int) string {
		return func(_ *testing.T, _ string, family int) string {
			return joined(map[int]string{4: ip4, 6: ip6}[family], servicePort)
		}
	}
	c1, c2, hosts := l.client1, l.client2, l.nodes
	// The node that takes the connection puts its own address in front: towards
	// another node the one that it is known by, towards its own pods that of their
	// bridge, which nobody is known by.
	return []route{
		{"ClusterIP, same node", c1, service("near"), with(l.near.identity(), "near"), l.near, c1.identity(), false},
		{"ClusterIP, other node", c1, service("far"), with(l.far.identity(), "far"), l.far, c1.identity(), false},
		{"ClusterIP, client on the other node", c2, service("near"), with(l.near.identity(), "near"), l.near, c2.identity(), false},
		{"NodePort of the backend's node", c1, nodePort(hosts[len(hosts)-1]), with(l.far.identity(), "far"), l.far, identity{}, true},
		{"NodePort of the client's node", c1, nodePort(hosts[0]), with(l.far.identity(), "far"), l.far, nodeIdentity(hosts[0]), true},
		{"external IP", c1, fixed(external4, external6), with(l.far.identity(), "open"), l.far, nodeIdentity(hosts[0]), true},
		{"load balancer", c1, fixed(balancer4, balancer6), with(l.far.identity(), "open"), l.far, nodeIdentity(hosts[0]), true},
	}
}

func TestPods(t *testing.T)     { shared.runRoutes(t, shared.podRoutes(), 0) }
func TestServices(t *testing.T) { shared.runRoutes(t, shared.serviceRoutes(t), 200) }

// runRoutes tries every way; the traffic's sizes are those after size.
func (l *lab) runRoutes(t *testing.T, routes []route, size int) {
	for _, r := range routes {
		for _, family := range []int{4, 6} {
			for _, protocol := range []string{"tcp", "udp", "ping"} {
				size++
				if protocol == "ping" && r.remote.Service != "" {
					continue // nobody answers for a Service
				}
				t.Run(fmt.Sprintf("%s/IPv%d/%s", r.name, family, protocol), func(t *testing.T) {
					l.runRoute(t, r, protocol, family, size)
				})
			}
		}
	}
}

// runRoute sends traffic whose size nothing else has, and compares what both
// ends' agents say of it.
func (l *lab) runRoute(t *testing.T, r route, protocol string, family, size int) {
	to := r.to(t, protocol, family)
	if to == "" {
		t.Skipf("the cluster has no IPv%d here", family)
	}
	x := newTransfer(t, protocol, family, size, to)
	res := l.netpeer(t, r.from, "", x.args...)
	if protocol == "ping" && r.server != nil && r.server.Spec.HostNetwork {
		r.remote = nodeIdentity(r.server.Spec.NodeName) // without a port nobody else is meant
	}
	want := seen{Local: r.from.identity(), Remote: r.remote, TxBytes: x.tx, RxBytes: x.rx, Role: "client"}
	l.expect(t, x.protocol, r.from.Spec.NodeName, want, func(f *orb8v1.Flow) bool { return isFrom(f, res) })
	if r.server == nil || protocol == "ping" && l.nested {
		// What the kernel itself answers is in the root cgroup, which nodes that
		// share a kernel leave alone.
		return
	}
	want = seen{Local: r.server.identity(), Remote: r.client, TxBytes: x.rx, RxBytes: x.tx, Role: "server"}
	if r.from.Spec.NodeName == r.server.Spec.NodeName {
		want.Local.Service = r.remote.Service // the agent that sees both ends knows it
	}
	if protocol == "ping" {
		// The kernel answers, and of what it answers it shows what it sends.
		want.RxBytes = 0
	}
	l.expect(t, x.protocol, r.server.Spec.NodeName, want, func(f *orb8v1.Flow) bool {
		if r.translated { // found by its size alone
			return f.GetRole() == orb8v1.Role_ROLE_SERVER && f.GetTotal().GetTxBytes() == want.TxBytes && f.GetTotal().GetRxBytes() == want.RxBytes
		}
		return isTo(f, res, r)
	}, ignoreRemote(r.translated && l.lab == "")) // elsewhere other addresses are in front
}

func ignoreRemote(yes bool) cmp.Option {
	return cmp.FilterPath(func(p cmp.Path) bool { return yes && p.String() == "Remote" }, cmp.Ignore())
}

// isFrom tells the client's own row.
func isFrom(f *orb8v1.Flow, r result) bool {
	if r.ID != 0 {
		return f.GetIcmp().GetEchoId() == uint32(r.ID) && f.GetRemote().GetIp() == r.Remote && f.GetRole() == orb8v1.Role_ROLE_CLIENT
	}
	return joined(f.GetLocal().GetIp(), int(f.GetLocal().GetPort())) == r.Local &&
		joined(f.GetRemote().GetIp(), int(f.GetRemote().GetPort())) == r.Remote
}

// isTo tells the server's row of a client that nothing has translated.
func isTo(f *orb8v1.Flow, res result, r route) bool {
	if res.ID != 0 {
		return f.GetIcmp().GetEchoId() == uint32(res.ID) && f.GetLocal().GetIp() == res.Remote && f.GetRole() == orb8v1.Role_ROLE_SERVER
	}
	return joined(f.GetRemote().GetIp(), int(f.GetRemote().GetPort())) == res.Local &&
		f.GetLocal().GetWorkload().GetCgroupPath() != "" && f.GetRole() == orb8v1.Role_ROLE_SERVER
}

// expect waits for exactly one row that matches, on node, to be as wanted.
func (l *lab) expect(t *testing.T, protocol, node string, want seen, match func(*orb8v1.Flow) bool, opts ...cmp.Option) *orb8v1.Flow {
	t.Helper()
	var last *orb8v1.Flow
	eventually(t, 10*time.Second, func() error {
		rows, err := l.find(t, protocol, match)
		switch {
		case err != nil:
			return fmt.Errorf("%s's row: %w", want.Role, err)
		case len(rows) > 1:
			var all strings.Builder
			for _, e := range rows {
				all.WriteString("\n  " + line(e))
			}
			return fmt.Errorf("%s's row is there %d times:%s", want.Role, len(rows), &all)
		case rows[0].GetNodeName() != node:
			return fmt.Errorf("%s's row comes from node %s, want %s", want.Role, rows[0].GetNodeName(), node)
		}
		last = rows[0].GetFlow()
		if d := cmp.Diff(want, seenIn(last), opts...); d != "" {
			return fmt.Errorf("%s's row (-want +got):\n%s%s", want.Role, d, line(rows[0]))
		}
		return nil
	})
	return last
}

// transfer is traffic of a certain size.
type transfer struct {
	protocol string // as the API names it
	args     []string
	// tx and rx are what the client's row must count.
	tx, rx uint64
}

// newTransfer makes one that differs from those of any other n.
func newTransfer(t *testing.T, protocol string, family, n int, to string) transfer {
	t.Helper()
	ip := uint64(20)
	if family == 6 {
		ip = 40
	}
	switch protocol {
	case "tcp":
		send, receive := 100_000+n*1009, 30_000+n*907
		return transfer{"TCP", []string{"tcp", "-send", fmt.Sprint(send), "-receive", fmt.Sprint(receive), to}, uint64(send), uint64(receive)}
	case "udp":
		const count = 3
		size := 100 + n*3
		bytes := count * (uint64(size) + 8 + ip)
		return transfer{"UDP", []string{"udp", "-count", fmt.Sprint(count), "-size", fmt.Sprint(size), to}, bytes, bytes}
	}
	const count = 3
	size := 50 + n*3
	bytes := count * (uint64(size) + 8 + ip)
	host, _, err := net.SplitHostPort(to)
	if err != nil {
		t.Fatal(err)
	}
	name := "ICMP"
	if family == 6 {
		name = "ICMPv6"
	}
	return transfer{name, []string{"ping", "-count", fmt.Sprint(count), "-size", fmt.Sprint(size), host}, bytes, bytes}
}

func TestOutside(t *testing.T) {
	l := shared
	for family, ip := range map[int]string{4: l.outside4, 6: l.outside6} {
		for n, protocol := range []string{"tcp", "udp", "ping"} {
			t.Run(fmt.Sprintf("IPv%d/%s", family, protocol), func(t *testing.T) {
				if ip == "" {
					t.Skip("no server outside the cluster is known (ORB8_TEST_OUTSIDE4, ORB8_TEST_OUTSIDE6)")
				}
				to := func(*testing.T, string, int) string { return joined(ip, port) }
				l.runRoute(t, route{from: l.client1, to: to}, protocol, family, 500+n)
			})
		}
	}
}

func TestAPIServer(t *testing.T) {
	l := shared
	to := joined(l.kubernetesIP(t), 443)
	// It takes what is no TLS for an error, which is traffic enough.
	res := l.netpeer(t, l.client1, "", "tcp", "-send", "50", "-receive", "0", to)
	eventually(t, 10*time.Second, func() error {
		rows, err := l.find(t, "TCP", func(f *orb8v1.Flow) bool { return isFrom(f, res) })
		if err != nil {
			return err
		}
		got := seenIn(rows[0].GetFlow())
		want := seen{Local: l.client1.identity(), TxBytes: 50, RxBytes: got.RxBytes, Role: "client",
			Remote: identity{Namespace: "default", Kind: "Service", Name: "kubernetes", Service: "kubernetes"}}
		if d := cmp.Diff(want, got); d != "" {
			return fmt.Errorf("(-want +got):\n%s", d)
		}
		return nil
	})
}
