// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// testCluster has two nodes, a Deployment web of two pods behind Services, a
// single database, hostNetwork pods, and the API server.
func testCluster() *Store {
	s, _ := newTestStore()
	s.UpsertNode(&Node{Name: "a", Zone: "z1", Addrs: []netip.Addr{nodeA}})
	s.UpsertNode(&Node{Name: "b", Zone: "z2", Addrs: []netip.Addr{nodeB}})
	s.UpsertOwn(testPod("web-1", addrA, addr6))
	web2 := testPod("web-2", addrB)
	web2.Node = "b"
	s.UpsertPeer(web2)
	db := &Pod{
		UID: "uid-db-0", Namespace: "shop", Name: "db-0", Node: "b", Labels: map[string]string{"app": "db"},
		Controller: Ref{"apps/v1", "StatefulSet", "db"}, IPs: []netip.Addr{netip.MustParseAddr("10.1.0.9")},
		Ports: []HostPort{{5433, protoTCP}},
	}
	s.UpsertPeer(db)
	proxy := &Pod{
		UID: "uid-proxy", Namespace: "kube-system", Name: "proxy", Node: "b", HostNetwork: true,
		IPs: []netip.Addr{nodeB}, Ports: []HostPort{{10256, protoTCP}},
	}
	s.UpsertPeer(proxy)
	s.ReplaceServices([]*Service{
		{
			Namespace: "shop", Name: "web", ClusterIPs: []netip.Addr{vip, vip6}, ExternalIPs: []netip.Addr{lb, nodeA},
			Ports: []ServicePort{{"http", protoTCP, 80, 30080}, {"dns", protoUDP, 53, 0}},
		},
		{
			Namespace: "shop", Name: "api", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.11")},
			ExternalIPs: []netip.Addr{lb}, Ports: []ServicePort{{"", protoTCP, 443, 0}},
		},
		{
			Namespace: "shop", Name: "db", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.12")},
			Ports: []ServicePort{{"", protoTCP, 5432, 30432}},
		},
		{
			Namespace: "default", Name: "kubernetes", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
			Ports: []ServicePort{{"https", protoTCP, 443, 0}},
		},
	})
	s.ReplaceSlices([]*EndpointSlice{
		{
			Namespace: "shop", Name: "web-x", Service: "web", Ports: []EndpointPort{{"http", protoTCP, 8080}},
			Endpoints: []Endpoint{{PodUID: "uid-web-1"}, {PodUID: "uid-web-2"}},
		},
		{
			Namespace: "shop", Name: "web-y", Service: "web", Ports: []EndpointPort{{"dns", protoUDP, 53}},
			Endpoints: []Endpoint{{PodUID: "uid-web-1"}, {PodUID: "uid-db-0"}},
		},
		{
			Namespace: "shop", Name: "db-x", Service: "db", Ports: []EndpointPort{{"", protoTCP, 5432}},
			Endpoints: []Endpoint{{PodUID: "uid-db-0"}},
		},
		{
			Namespace: "default", Name: "kubernetes", Service: "kubernetes", Ports: []EndpointPort{{"https", protoTCP, 6443}},
			Endpoints: []Endpoint{{Addr: nodeA}},
		},
	})
	return s
}

func TestPeerOrder(t *testing.T) {
	s := testCluster()
	for _, tt := range []struct {
		name, addr string
		port       uint16
		proto      uint8
		want       string
	}{
		{"pod", "10.1.0.5", 8080, protoTCP, "pod web-1"},
		{"pod, IPv6", "fd00::5", 8080, protoTCP, "pod web-1"},
		{"pod, IPv4 in IPv6", "::ffff:10.1.0.5", 8080, protoTCP, "pod web-1"},
		{"pod of another node", "10.1.0.6", 0, 0, "pod web-2"},
		{"ClusterIP", "10.96.0.10", 80, protoTCP, "svc web Deployment web"},
		{"ClusterIP, IPv6", "fd00:96::10", 80, protoTCP, "svc web Deployment web"},
		{"ClusterIP, port of two workloads", "10.96.0.10", 53, protoUDP, "svc web Service web"},
		{"ClusterIP, another port", "10.96.0.10", 81, protoTCP, "svc web Service web"},
		{"ClusterIP, no port", "10.96.0.10", 0, 0, "svc web Service web"},
		{"ClusterIP, one endpoint", "10.96.0.12", 5432, protoTCP, "svc db pod db-0"},
		{"ClusterIP, no endpoints", "10.96.0.11", 443, protoTCP, "svc api Service api"},
		{"load balancer, port of one", "203.0.113.7", 443, protoTCP, "svc api Service api"},
		{"load balancer, port of the other", "203.0.113.7", 80, protoTCP, "svc web Deployment web"},
		{"load balancer, another port", "203.0.113.7", 81, protoTCP, "svc api Service api"},
		{"load balancer at a node", "192.168.0.1", 80, protoTCP, "svc web Deployment web"},
		{"load balancer at a node, another port", "192.168.0.1", 22, protoTCP, "Node a"},
		{"NodePort", "192.168.0.2", 30080, protoTCP, "svc web Deployment web"},
		{"NodePort, another protocol", "192.168.0.2", 30080, protoUDP, "Node b"},
		{"NodePort elsewhere", "198.51.100.1", 30080, protoTCP, ""},
		{"hostNetwork", "192.168.0.2", 10256, protoTCP, "pod proxy"},
		{"hostPort", "192.168.0.2", 5433, protoTCP, "pod db-0"},
		{"hostPort of another node", "192.168.0.1", 10256, protoTCP, "Node a"},
		{"endpoint without pod", "192.168.0.1", 6443, protoTCP, "svc kubernetes Service kubernetes"},
		{"node", "192.168.0.2", 0, 0, "Node b"},
		{"unknown", "198.51.100.1", 443, protoTCP, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := workload.Peer{Addr: netip.MustParseAddr(tt.addr), Port: tt.port, Protocol: tt.proto}
			if got := who(s, p); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			first, _ := s.Peer(p)
			if second, _ := s.Peer(p); second != first {
				t.Error("another pointer the second time")
			}
		})
	}
	if _, ok := s.Peer(workload.Peer{}); ok {
		t.Error("no address found something")
	}
}

func TestPeerDetails(t *testing.T) {
	s := testCluster()
	got, _ := s.Peer(workload.Peer{Addr: netip.MustParseAddr("10.96.0.12"), Port: 5432, Protocol: protoTCP})
	want := &workload.Identity{
		Namespace: "shop", Service: "db", Pod: "db-0", Kind: "StatefulSet", Name: "db", PodUID: "uid-db-0",
		Node: "b", Zone: "z2", Labels: map[string]string{"app": "db"},
		OwnerPending: true, // a StatefulSet may have one above
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Service with one endpoint (-want +got):\n%s", diff)
	}
	got, _ = s.Peer(workload.Peer{Addr: nodeB})
	want = &workload.Identity{Kind: KindNode, Name: "b", Node: "b", Zone: "z2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
}

func TestServiceFollowsItsEndpoints(t *testing.T) {
	s := testCluster()
	http := workload.Peer{Addr: vip, Port: 80, Protocol: protoTCP}
	database := workload.Peer{Addr: netip.MustParseAddr("10.96.0.12"), Port: 5432, Protocol: protoTCP}
	slice := func(uids ...string) {
		in := &EndpointSlice{
			Namespace: "shop", Name: "web-x", Service: "web", Ports: []EndpointPort{{"http", protoTCP, 8080}},
		}
		for _, uid := range uids {
			in.Endpoints = append(in.Endpoints, Endpoint{PodUID: uid})
		}
		s.UpsertSlice(in)
	}
	check := func(step string, p workload.Peer, want string) {
		t.Helper()
		if got := who(s, p); got != want {
			t.Errorf("%s: %q, want %q", step, got, want)
		}
	}
	before, _ := s.Peer(http)
	slice("uid-web-2", "uid-web-1")
	if after, _ := s.Peer(http); after != before {
		t.Error("another pointer though the workload is the same")
	}
	slice("uid-web-2")
	check("one left", http, "svc web pod web-2")
	slice()
	check("none left", http, "svc web Service web")
	slice("uid-web-1", "uid-new")
	check("pod not known yet", http, "svc web Service web")
	late := testPod("late", netip.MustParseAddr("10.1.0.7"))
	late.UID = "uid-new"
	s.UpsertPeer(late)
	check("pod known", http, "svc web Deployment web")

	s.RefreshOwners(func(*Pod) (string, string, bool) { return "Rollout", "web", false })
	check("owner of one became known", http, "svc web Service web")
	slice("uid-web-1")
	check("moved to one pod", http, "svc web pod web-1")

	one, _ := s.Peer(database)
	s.UpsertNode(&Node{Name: "b", Zone: "z9", Addrs: []netip.Addr{nodeB}})
	two, _ := s.Peer(database)
	if one.Zone != "z2" || two.Zone != "z9" {
		t.Errorf("zones %s, %s after the node moved", one.Zone, two.Zone)
	}

	s.DeleteService("shop", "web")
	check("Service deleted", http, "")
	check("its NodePort", workload.Peer{Addr: nodeB, Port: 30080, Protocol: protoTCP}, "Node b")
	s.ReplaceSlices(nil)
	s.ReplaceServices(nil)
	s.ReplaceNodes(nil)
	if n := len(s.services) + len(s.slices) + len(s.bare) + len(s.clusterIPs) + len(s.external) +
		len(s.nodePorts) + len(s.nodes) + len(s.nodeIPs); n != 0 {
		t.Errorf("%d entries left", n)
	}
}

func TestHostPortsGoWithTheirPod(t *testing.T) {
	s := testCluster()
	s.DeletePeer("uid-proxy")
	if got := who(s, workload.Peer{Addr: nodeB, Port: 10256, Protocol: protoTCP}); got != "Node b" {
		t.Errorf("got %q", got)
	}
}

// An endpoint without a pod may be that of several Services: the first by name
// answers, whatever came first, and when it goes, the next.
func TestEndpointOfSeveralServices(t *testing.T) {
	addr := netip.MustParseAddr("198.51.100.9")
	ask := workload.Peer{Addr: addr, Port: 5432, Protocol: protoTCP, Namespace: "shop"}
	for _, order := range [][]string{{"one", "two"}, {"two", "one"}} {
		s, _ := newTestStore()
		for _, name := range order {
			s.UpsertService(&Service{Namespace: "shop", Name: name, Ports: []ServicePort{{"", protoTCP, 5432, 0}}})
			s.UpsertSlice(&EndpointSlice{
				Namespace: "shop", Name: name + "-x", Service: name, Ports: []EndpointPort{{"", protoTCP, 5432}},
				Endpoints: []Endpoint{{Addr: addr}},
			})
		}
		if got := who(s, ask); got != "svc one Service one" {
			t.Errorf("%v: %q", order, got)
		}
		s.DeleteSlice("shop", "one-x")
		if got := who(s, ask); got != "svc two Service two" {
			t.Errorf("%v, without the first: %q", order, got)
		}
		s.DeleteSlice("shop", "two-x")
		if got := who(s, ask); got != "" || len(s.bare) != 0 {
			t.Errorf("%v, without both: %q, %d left", order, got, len(s.bare))
		}
	}
}

// What a namespace says of an address that is no pod's is for its own workloads, but for
// the cluster's own namespaces.
func TestEndpointsOfStrangers(t *testing.T) {
	addr := netip.MustParseAddr("8.8.8.8")
	for _, tt := range []struct {
		owner, asking string
		named         bool
	}{
		{"aaa", "aaa", true}, {"aaa", "shop", false}, {"aaa", "", false},
		{"default", "shop", true}, {"kube-system", "", true}, {"kube-system", "shop", true},
	} {
		s, _ := newTestStore()
		s.UpsertService(&Service{Namespace: tt.owner, Name: "evil", Ports: []ServicePort{{"", protoUDP, 53, 0}}})
		s.UpsertSlice(&EndpointSlice{
			Namespace: tt.owner, Name: "evil-x", Service: "evil", Ports: []EndpointPort{{"", protoUDP, 53}},
			Endpoints: []Endpoint{{Addr: addr}},
		})
		got := who(s, workload.Peer{Addr: addr, Port: 53, Protocol: protoUDP, Namespace: tt.asking})
		if (got != "") != tt.named {
			t.Errorf("%s of %s, asked in %q: %q", addr, tt.owner, tt.asking, got)
		}
	}
}

func TestBacks(t *testing.T) {
	s := testCluster()
	s.UpsertSlice(&EndpointSlice{
		Namespace: "shop", Name: "api-x", Service: "api", Ports: []EndpointPort{{"", protoTCP, 8443}},
		Endpoints: []Endpoint{{PodUID: "uid-web-2", Away: true}, {PodUID: "uid-db-0"}, {Addr: nodeA}},
	})
	static := testPod("static")
	static.HostNetwork, static.ConfigHash, static.IPs = true, "hash", []netip.Addr{nodeA}
	s.UpsertOwn(static)
	s.UpsertSlice(&EndpointSlice{
		Namespace: "shop", Name: "db-y", Service: "db", Ports: []EndpointPort{{"", protoTCP, 0}},
		Endpoints: []Endpoint{{PodUID: static.UID}},
	})
	for _, tt := range []struct {
		name, service, uid, addr string
		port                     uint16
		protocol                 uint8
		backs, known             bool
	}{
		{"endpoint", "web", "uid-web-2", "10.1.0.6", 8080, protoTCP, true, true},
		{"another port", "web", "uid-web-2", "10.1.0.6", 8081, protoTCP, false, true},
		{"another protocol", "web", "uid-web-2", "10.1.0.6", 8080, protoUDP, false, true},
		{"port of another slice", "web", "uid-db-0", "10.1.0.9", 8080, protoTCP, false, true},
		{"the other slice", "web", "uid-db-0", "10.1.0.9", 53, protoUDP, true, true},
		{"not ready any more", "api", "uid-web-2", "10.1.0.6", 8443, protoTCP, true, true},
		{"by address", "api", "", "192.168.0.1", 8443, protoTCP, true, true},
		{"static pod, any port", "db", "hash", "192.168.0.1", 5432, protoTCP, true, true},
		{"no such Service", "none", "uid-web-2", "10.1.0.6", 8080, protoTCP, false, false},
	} {
		backs, known := s.Backs(&workload.Identity{Namespace: "shop", Service: tt.service},
			&workload.Identity{PodUID: tt.uid}, netip.MustParseAddr(tt.addr), tt.port, tt.protocol)
		if backs != tt.backs || known != tt.known {
			t.Errorf("%s: %t, known %t", tt.name, backs, known)
		}
	}
	s.ReplaceSlices(nil)
	if backs, known := s.Backs(&workload.Identity{Namespace: "shop", Service: "web"}, &workload.Identity{PodUID: "uid-web-2"},
		addrB, 8080, protoTCP); backs || known {
		t.Error("known without EndpointSlices")
	}
	if got := who(s, workload.Peer{Addr: vip, Port: 80, Protocol: protoTCP}); got != "svc web Service web" {
		t.Errorf("without EndpointSlices: %q", got)
	}
}

func BenchmarkBacks(b *testing.B) {
	s, _ := newTestStore()
	s.UpsertService(&Service{Namespace: "shop", Name: "big", Ports: []ServicePort{{"", protoTCP, 80, 0}}})
	for i := range 50 {
		in := &EndpointSlice{
			Namespace: "shop", Name: fmt.Sprint("big-", i), Service: "big", Ports: []EndpointPort{{"", protoTCP, 8080}},
		}
		for j := range 100 {
			in.Endpoints = append(in.Endpoints, Endpoint{PodUID: fmt.Sprintf("%08x-0000-0000-0000-%012x", i*j, 100*i+j)})
		}
		s.UpsertSlice(in)
	}
	service, server := &workload.Identity{Namespace: "shop", Service: "big"}, &workload.Identity{PodUID: "none"}
	b.ReportAllocs()
	for b.Loop() {
		s.Backs(service, server, addrA, 8080, protoTCP)
	}
}

// TestGatewayIsItsNode: what a node speaks to pods from is the node (case K1), and no pod that
// is not known yet is taken for it.
func TestGatewayIsItsNode(t *testing.T) {
	s, clock := newTestStore()
	clock.set(100)
	s.UpsertNode(&Node{Name: "a", Zone: "z1", Addrs: []netip.Addr{nodeA}, PodCIDRs: []netip.Prefix{
		netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64"),
	}})
	s.UpsertNode(&Node{Name: "b", Addrs: []netip.Addr{nodeB, netip.MustParseAddr("10.250.7.64")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/25")}})
	s.UpsertPeer(testPod("web-1", netip.MustParseAddr("10.244.1.9")))
	for _, tt := range []struct {
		addr  string
		since int64
		want  string
	}{
		{"10.244.1.1", 0, "Node a"},
		{"10.244.1.0", at(99), "Node a"}, // that of a tunnel
		{"fd00:10:244:1::1", at(99), "Node a"},
		{"10.244.2.1", at(99), "Node b"},
		{"10.250.7.64", at(99), "Node b"},
		{"10.244.1.9", at(99), "pod web-1"},
		{"10.244.1.10", at(95), ""}, // perhaps a pod's that was made just now
		{"10.244.1.10", at(80), "Node a"},
		{"10.244.1.10", 0, ""},
		{"10.244.2.200", at(80), ""},
		{"10.244.3.1", at(80), ""},
		{"fd00:10:244:2::1", at(80), ""},
	} {
		q := peer(tt.addr)
		q.Since = tt.since
		if got := who(s, q); got != tt.want {
			t.Errorf("%s, of a flow since %d: %q, want %q", tt.addr, tt.since, got, tt.want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { s.Peer(peer("10.244.1.1")) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	// While not all pods are known, one may have the address.
	s.allPods = func() bool { return false }
	old := peer("10.244.1.10")
	old.Since = at(80)
	if got := who(s, old) + ", " + who(s, peer("10.244.1.1")); got != ", Node a" {
		t.Errorf("while not all pods are known: %q", got)
	}
	s.allPods = func() bool { return true }
	// The range goes to another node, or with its node.
	s.UpsertNode(&Node{Name: "a", Addrs: []netip.Addr{nodeA}})
	if got := who(s, peer("10.244.1.1")); got != "" {
		t.Errorf("a range that the node has no more: %q", got)
	}
	s.UpsertNode(&Node{Name: "c", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}})
	s.DeleteNode("b")
	if got := who(s, peer("10.244.1.1")) + ", " + who(s, peer("10.244.2.1")); got != "Node c, " {
		t.Errorf("%q", got)
	}
	if len(s.prefixes) != 1 || len(s.ranges) != 1 {
		t.Errorf("ranges %v of lengths %v", s.ranges, s.prefixes)
	}
}

// TestSecondaryAddresses: a pod is known by the addresses of its further interfaces (case K3),
// within its namespace: who may write a pod's annotations may say anything.
func TestSecondaryAddresses(t *testing.T) {
	s, _ := newTestStore()
	net1 := netip.MustParseAddr("192.0.2.7")
	claims := func(ns, name string, addr netip.Addr, also ...netip.Addr) *Pod {
		p := testPod(name, addr)
		p.UID, p.Namespace, p.Secondary = ns+name, ns, also
		s.UpsertPeer(p)
		return p
	}
	claims("train", "worker-0", addrA, net1)
	claims("evil", "liar", addrB, net1, addrA, vip, nodeA, lb)
	s.UpsertNode(&Node{Name: "a", Addrs: []netip.Addr{nodeA}})
	s.UpsertService(&Service{Namespace: "shop", Name: "web", ClusterIPs: []netip.Addr{vip}})
	ask := func(addr netip.Addr, ns string) string { return who(s, workload.Peer{Addr: addr, Namespace: ns}) }
	for _, tt := range []struct{ got, want string }{
		{ask(net1, "train"), "pod worker-0"},
		{ask(net1, "shop"), ""},
		{ask(net1, ""), ""},
		{ask(net1, "evil"), "pod liar"},
		{ask(addrA, "evil"), "pod worker-0"},
		{ask(nodeA, "evil"), "Node a"},
		{ask(vip, "evil"), "svc web Service web"},
		{ask(lb, "train"), ""},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
	claims("train", "worker-0", addrA)
	if got := ask(net1, "train"); got != "" {
		t.Errorf("an interface that is gone is %q", got)
	}
	s.DeletePeer("evilliar")
	if len(s.secondary) != 0 {
		t.Errorf("left: %v", s.secondary)
	}
}

// TestPortOfTwoPods: a port of a node that two pods say they have is the node's (case K5),
// and the other's once one has gone.
func TestPortOfTwoPods(t *testing.T) {
	s, _ := newTestStore()
	s.UpsertNode(&Node{Name: "a", Addrs: []netip.Addr{nodeA}})
	for _, name := range []string{"first", "second"} {
		p := testPod(name, nodeA)
		p.HostNetwork, p.Ports = true, []HostPort{{9100, protoTCP}}
		s.UpsertPeer(p)
	}
	ask := func() string { return who(s, workload.Peer{Addr: nodeA, Port: 9100, Protocol: protoTCP}) }
	if got := ask(); got != "Node a" {
		t.Errorf("%q", got)
	}
	s.DeletePeer("uid-second")
	if got := ask(); got != "pod first" {
		t.Errorf("once the other has gone: %q", got)
	}
}
