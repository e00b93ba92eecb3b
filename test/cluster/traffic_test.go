// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"context"
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
	to target
	// remote is the client's view of the other end.
	remote identity
	// server, nil where no pod serves, and its view of the client; where the
	// way changes the client's address this is who has that one.
	server *pod
	client identity
	// translated: the server does not see the client's address.
	translated bool
}

type target func(ctx context.Context, protocol string, family int) (string, error)

func (l *lab) direct(p *pod, port int) target {
	return func(_ context.Context, _ string, family int) (string, error) { return joined(p.ip(family), port), nil }
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
func (l *lab) hostPort(ctx context.Context, protocol string, family int) (string, error) {
	if protocol == "ping" { // the node would answer
		return "", nil
	}
	return joined(l.nodeIP(ctx, l.ported.Spec.NodeName, family), portPorted), nil
}

func (l *lab) serviceRoutes() []route {
	service := func(name string) target {
		return func(ctx context.Context, _ string, family int) (string, error) {
			return l.clusterIP(ctx, name, family), nil
		}
	}
	nodePort := func(node string) target {
		return func(ctx context.Context, protocol string, family int) (string, error) {
			return l.nodePort(ctx, "far", node, protocol, family)
		}
	}
	fixed := func(ip4, ip6 string) target {
		return func(_ context.Context, _ string, family int) (string, error) {
			return joined(map[int]string{4: ip4, 6: ip6}[family], servicePort), nil
		}
	}
	c1, c2, hosts := l.client1, l.client2, l.nodes
	// The node that takes the connection puts its own address in front: towards
	// another node the one that it is known by, towards its own pods that of their
	// bridge, which is the node's too.
	return []route{
		{"ClusterIP, same node", c1, service("near"), with(l.near.identity(), "near"), l.near, c1.identity(), false},
		{"ClusterIP, other node", c1, service("far"), with(l.far.identity(), "far"), l.far, c1.identity(), false},
		{"ClusterIP, client on the other node", c2, service("near"), with(l.near.identity(), "near"), l.near, c2.identity(), false},
		{"NodePort of the backend's node", c1, nodePort(hosts[len(hosts)-1]), with(l.far.identity(), "far"), l.far, nodeIdentity(hosts[len(hosts)-1]), true},
		{"NodePort of the client's node", c1, nodePort(hosts[0]), with(l.far.identity(), "far"), l.far, nodeIdentity(hosts[0]), true},
		{"external IP", c1, fixed(external4, external6), with(l.far.identity(), "open"), l.far, nodeIdentity(hosts[0]), true},
		{"load balancer", c1, fixed(balancer4, balancer6), with(l.far.identity(), "open"), l.far, nodeIdentity(hosts[0]), true},
	}
}

func TestPods(t *testing.T)     { shared.runRoutes(t, shared.podRoutes(), 0) }
func TestServices(t *testing.T) { shared.runRoutes(t, shared.serviceRoutes(), 200) }

// trip is one transfer along a route, and what came of it.
type trip struct {
	route    route
	protocol string // as netpeer names it
	family   int
	to       string
	transfer transfer
	result   result
	err      error
}

// runRoutes tries every way; the traffic's sizes are those after size. All of a
// route's transfers are made before the first is looked at, so that one answer of
// the agents has them all; rows of more than one route would not stay long enough.
func (l *lab) runRoutes(t *testing.T, routes []route, size int) {
	for _, r := range routes {
		var trips []*trip
		for _, family := range []int{4, 6} {
			for _, protocol := range []string{"tcp", "udp", "ping"} {
				size++
				if protocol == "ping" && r.remote.Service != "" {
					continue // nobody answers for a Service
				}
				trips = append(trips, l.drive(t.Context(), r, protocol, family, size))
			}
		}
		for _, x := range trips {
			t.Run(fmt.Sprintf("%s/IPv%d/%s", r.name, x.family, x.protocol), func(t *testing.T) { l.check(t, x) })
		}
	}
}

// drive sends traffic whose size nothing else has.
func (l *lab) drive(ctx context.Context, r route, protocol string, family, size int) *trip {
	x := &trip{route: r, protocol: protocol, family: family}
	if x.to, x.err = r.to(ctx, protocol, family); x.err != nil || x.to == "" {
		return x
	}
	if x.transfer, x.err = newTransfer(protocol, family, size, x.to); x.err != nil {
		return x
	}
	x.result, x.err = l.tryNetpeer(ctx, r.from, "", x.transfer.args...)
	return x
}

// check compares what both ends' agents say of a transfer.
func (l *lab) check(t *testing.T, x *trip) {
	if x.err != nil {
		t.Fatal(x.err)
	}
	if x.to == "" {
		t.Skipf("the cluster has no IPv%d here", x.family)
	}
	r, ping := x.route, x.protocol == "ping"
	if ping && r.server != nil && r.server.Spec.HostNetwork {
		r.remote = nodeIdentity(r.server.Spec.NodeName) // without a port nobody else is meant
	}
	want := seen{Local: r.from.identity(), Remote: r.remote, TxBytes: x.transfer.tx, RxBytes: x.transfer.rx, Role: "client"}
	l.expect(t, x.transfer.protocol, r.from.Spec.NodeName, want, func(f *orb8v1.Flow) bool { return isFrom(f, x.result) })
	if r.server == nil || ping && l.nested {
		// What the kernel itself answers is in the root cgroup, which nodes that
		// share a kernel leave alone.
		return
	}
	want = seen{Local: r.server.identity(), Remote: r.client, TxBytes: x.transfer.rx, RxBytes: x.transfer.tx, Role: "server"}
	if r.from.Spec.NodeName == r.server.Spec.NodeName {
		want.Local.Service = r.remote.Service // the agent that sees both ends knows it
	}
	if ping {
		// The kernel answers, and of what it answers it shows what it sends.
		want.RxBytes = 0
	}
	l.expect(t, x.transfer.protocol, r.server.Spec.NodeName, want, func(f *orb8v1.Flow) bool {
		if r.translated { // found by its size alone
			return f.GetRole() == orb8v1.Role_ROLE_SERVER && f.GetTotal().GetTxBytes() == want.TxBytes && f.GetTotal().GetRxBytes() == want.RxBytes
		}
		return isTo(f, x.result, r.server)
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

// isTo tells the server's row of a client that nothing has translated. A client's port
// may by chance be one that it has just had with another server.
func isTo(f *orb8v1.Flow, res result, server *pod) bool {
	if res.ID != 0 {
		return f.GetIcmp().GetEchoId() == uint32(res.ID) && f.GetLocal().GetIp() == res.Remote && f.GetRole() == orb8v1.Role_ROLE_SERVER
	}
	return joined(f.GetRemote().GetIp(), int(f.GetRemote().GetPort())) == res.Local && server.has(f.GetLocal().GetIp()) &&
		f.GetLocal().GetWorkload().GetCgroupPath() != "" && f.GetRole() == orb8v1.Role_ROLE_SERVER
}

// expect waits for exactly one row that matches, on node, to be as wanted.
func (l *lab) expect(t *testing.T, protocol, node string, want seen, match func(*orb8v1.Flow) bool, opts ...cmp.Option) *orb8v1.Flow {
	t.Helper()
	var last *orb8v1.Flow
	l.untilRows(t, 10*time.Second, func(all []*orb8v1.Event) error {
		rows, err := find(all, protocol, match)
		switch {
		case err != nil:
			return fmt.Errorf("%s's row: %w", want.Role, err)
		case len(rows) > 1:
			var lines strings.Builder
			for _, e := range rows {
				lines.WriteString("\n  " + line(e))
			}
			return fmt.Errorf("%s's row is there %d times:%s", want.Role, len(rows), &lines)
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
func newTransfer(protocol string, family, n int, to string) (transfer, error) {
	ip := uint64(20)
	if family == 6 {
		ip = 40
	}
	switch protocol {
	case "tcp":
		send, receive := 100_000+n*1009, 30_000+n*907
		return transfer{"TCP", []string{"tcp", "-send", fmt.Sprint(send), "-receive", fmt.Sprint(receive), to}, uint64(send), uint64(receive)}, nil
	case "udp":
		const count = 3
		size := 100 + n*3
		bytes := count * (uint64(size) + 8 + ip)
		return transfer{"UDP", []string{"udp", "-count", fmt.Sprint(count), "-size", fmt.Sprint(size), to}, bytes, bytes}, nil
	}
	const count = 3
	size := 50 + n*3
	bytes := count * (uint64(size) + 8 + ip)
	host, _, err := net.SplitHostPort(to)
	if err != nil {
		return transfer{}, err
	}
	name := "ICMP"
	if family == 6 {
		name = "ICMPv6"
	}
	return transfer{name, []string{"ping", "-count", fmt.Sprint(count), "-size", fmt.Sprint(size), host}, bytes, bytes}, nil
}

func TestOutside(t *testing.T) {
	l := shared
	var trips []*trip
	for _, family := range []int{4, 6} {
		ip := map[int]string{4: l.outside4, 6: l.outside6}[family]
		to := func(context.Context, string, int) (string, error) { return joined(ip, port), nil }
		for n, protocol := range []string{"tcp", "udp", "ping"} {
			trips = append(trips, l.drive(t.Context(), route{from: l.client1, to: to}, protocol, family, 500+n))
		}
	}
	for _, x := range trips {
		t.Run(fmt.Sprintf("IPv%d/%s", x.family, x.protocol), func(t *testing.T) {
			if x.to == "" {
				t.Skip("no server outside the cluster is known (ORB8_TEST_OUTSIDE4, ORB8_TEST_OUTSIDE6)")
			}
			l.check(t, x)
		})
	}
}

func TestAPIServer(t *testing.T) {
	l := shared
	to := joined(l.kubernetesIP(t), 443)
	// It takes what is no TLS for an error, which is traffic enough.
	res := l.netpeer(t, l.client1, "", "tcp", "-send", "50", "-receive", "0", to)
	l.untilRows(t, 10*time.Second, func(all []*orb8v1.Event) error {
		rows, err := find(all, "TCP", func(f *orb8v1.Flow) bool { return isFrom(f, res) })
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

// TestServicesInOtherModes is TestServices with each of the other modes of
// kube-proxy. It is the last test, since the mode stays.
func TestServicesInOtherModes(t *testing.T) {
	l := shared
	if len(l.proxies) == 0 {
		t.Skip("no other mode of kube-proxy is asked for (ORB8_TEST_PROXIES)")
	}
	for i, mode := range l.proxies {
		l.script(t, "lab.sh", "proxy", mode)
		l.awaitServices(t)
		routes := l.serviceRoutes()
		for j := range routes {
			routes[j].name = mode + "/" + routes[j].name
		}
		l.runRoutes(t, routes, 300+50*i)
	}
}
