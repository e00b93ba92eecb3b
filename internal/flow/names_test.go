// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// cluster is a Resolver whose answers change while a test runs.
type cluster struct {
	local  map[uint64]*workload.Identity
	remote map[netip.Addr]*workload.Identity
	// backs has the endpoints of the Services whose EndpointSlices are known.
	backs map[string][]netip.AddrPort
}

func (c *cluster) Local(cgroup uint64, _ uint32, _ string, _ netip.Addr) *workload.Identity {
	if id := c.local[cgroup]; id != nil {
		return id
	}
	return &workload.Identity{PodUID: "uid", CgroupID: cgroup}
}

func (c *cluster) Remote(p workload.Peer) *workload.Identity { return c.remote[p.Addr] }

func (c *cluster) Backs(svc, _ *workload.Identity, addr netip.Addr, port uint16, _ uint8) (backs, known bool) {
	endpoints, known := c.backs[svc.Service]
	return slices.Contains(endpoints, netip.AddrPortFrom(addr, port)), known
}

// named is what a test looks at of one record.
type named struct {
	Local, LocalService, Remote, RemoteService string
}

func nameOf(r *Record) named {
	n := named{Local: r.Local.Pod, LocalService: r.Local.Service}
	if r.Remote != nil {
		n.Remote, n.RemoteService = r.Remote.Pod, r.Remote.Service
	}
	return n
}

type nameBench struct {
	*Table
	cluster
	told    []named
	records []Record
}

func newNameBench() *nameBench {
	b := &nameBench{cluster: cluster{local: map[uint64]*workload.Identity{}, remote: map[netip.Addr]*workload.Identity{}}}
	b.Table = NewTable(Config{
		MaxFlows: 100, IdleTimeout: 30 * time.Second, Resolver: &b.cluster, Losses: new(loss.Counters),
		Awaits: func(id *workload.Identity) bool { return id.Pod == "" },
	}, func(r *Record) { b.told, b.records = append(b.told, nameOf(r)), append(b.records, *r) })
	return b
}

func (b *nameBench) want(t *testing.T, want ...named) {
	t.Helper()
	if d := cmp.Diff(want, b.told); d != "" {
		t.Errorf("records (-want +got):\n%s", d)
	}
	b.told = nil
}

var (
	clientIP  = netip.MustParseAddr("10.244.1.2")
	serviceIP = netip.MustParseAddr("10.96.0.9")
	backendIP = netip.MustParseAddr("10.244.1.3")
)

func tcpSample(cgroup uint64, role Role, local, remote netip.AddrPort, bytes uint64) *Sample {
	return &Sample{
		Key: Key{
			Local: AddrOf(local.Addr()), Remote: AddrOf(remote.Addr()), LocalPort: local.Port(), RemotePort: remote.Port(),
			Protocol: TCP, CgroupID: cgroup,
		},
		Instance: 1, Role: role, First: 1, Last: int64(bytes), Total: Counters{TxBytes: bytes},
	}
}

func at443(ip netip.Addr) netip.AddrPort  { return netip.AddrPortFrom(ip, 443) }
func at5000(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, 5000) }

func asClient(bytes uint64) *Sample {
	return tcpSample(1, RoleClient, at5000(clientIP), at443(serviceIP), bytes)
}

func asServer(bytes uint64) *Sample {
	return tcpSample(2, RoleServer, at443(backendIP), at5000(clientIP), bytes)
}

// joined is a table whose client and server are known pods of one node.
func joined() *nameBench {
	b := newNameBench()
	b.local[1] = &workload.Identity{Namespace: "ns", Pod: "client"}
	b.local[2] = &workload.Identity{Namespace: "ns", Pod: "server"}
	b.remote[serviceIP] = &workload.Identity{Namespace: "ns", Kind: "Service", Name: "web", Service: "web"}
	return b
}

func TestJoinServerFirst(t *testing.T) {
	b := joined()
	b.Apply(asServer(10))
	b.Apply(asClient(10))
	b.want(t, named{Local: "server"}, named{"client", "", "server", "web"})
	b.Apply(asServer(20))
	b.want(t, named{"server", "web", "client", ""})
}

// A client's record waits a moment for its server's.
func TestJoinClientFirst(t *testing.T) {
	b := joined()
	b.Apply(asClient(10))
	b.want(t)
	b.Apply(asServer(10))
	b.want(t, named{"server", "web", "client", ""})
	b.Flush(time.Now())
	b.want(t, named{"client", "", "server", "web"})

	for _, r := range b.Snapshot(nil) {
		if r.Role == RoleClient && r.Remote.Pod != "server" {
			t.Errorf("the client's row has %+v", nameOf(&r))
		}
	}
}

// A Service whose pod is on another node stays a Service, after a while.
func TestJoinNothing(t *testing.T) {
	b := joined()
	b.Apply(asClient(10))
	b.Flush(time.Now().Add(joinWait / 2))
	b.want(t)
	b.Flush(time.Now().Add(joinWait))
	b.want(t, named{"client", "", "", "web"})
	// Ended rows are forgotten as ends too.
	b.Expire(time.Unix(1000, 0))
	if n := len(b.names.clients) + len(b.names.servers); n != 0 {
		t.Errorf("%d ends of flows that are gone", n)
	}
}

// Another connection from another port is not joined.
func TestJoinOnlyTheSameConnection(t *testing.T) {
	b := joined()
	other := asServer(10)
	other.RemotePort = 5001
	b.Apply(other)
	b.told = nil
	b.Apply(asClient(10))
	b.Flush(time.Now().Add(joinWait))
	b.want(t, named{"client", "", "", "web"})
}

// Pods on the host's network have the node's address; the other end tells.
func TestJoinHostNetwork(t *testing.T) {
	b := joined()
	node := netip.MustParseAddr("192.0.2.1")
	b.remote[node] = &workload.Identity{Kind: "Node", Name: "n1"}
	b.Apply(tcpSample(2, RoleServer, at443(node), at5000(node), 1))
	b.Apply(tcpSample(1, RoleClient, at5000(node), at443(node), 1))
	b.Apply(tcpSample(2, RoleServer, at443(node), at5000(node), 2))
	b.want(t, named{Local: "server"}, named{Local: "client", Remote: "server"}, named{Local: "server", Remote: "client"})
}

// Records of a pod wait until it is known, in order, and not for ever.
func TestRecordsWaitForTheirPod(t *testing.T) {
	b := newNameBench()
	b.Apply(asServer(1))
	b.Apply(asServer(2))
	b.Flush(time.Now().Add(nameWait / 2))
	b.want(t)
	if b.Waiting() != 2 {
		t.Errorf("%d records wait, want 2", b.Waiting())
	}
	if got := b.Snapshot(nil)[0].Local.Pod; got != "" {
		t.Errorf("the row has pod %q already", got)
	}
	b.local[2] = &workload.Identity{Pod: "server"}
	if got := b.Snapshot(nil)[0].Local.Pod; got != "server" {
		t.Errorf("the row has pod %q", got)
	}
	b.Apply(asServer(3)) // named, but behind the others
	b.want(t)
	b.Flush(time.Now())
	b.want(t, named{Local: "server"}, named{Local: "server"}, named{Local: "server"})

	nameless := asServer(1)
	nameless.CgroupID = 3
	b.Apply(nameless)
	b.Flush(time.Now().Add(nameWait))
	b.want(t, named{})
	b.Apply(asServer(4))
	b.want(t, named{Local: "server"})
}

// Too many that wait push out the oldest, which is told without a name.
func TestWaitingIsBounded(t *testing.T) {
	b := newNameBench()
	for i := range maxWaiting + 3 {
		b.Apply(asServer(uint64(i + 1)))
	}
	if b.Waiting() != maxWaiting || len(b.told) != 3 {
		t.Errorf("%d wait, %d told", b.Waiting(), len(b.told))
	}
	if n := b.cfg.Losses.Get(loss.NameWaitFull); n != 3 {
		t.Errorf("%d counted as pushed out, want 3", n)
	}
	b.FlushAll()
	if b.Waiting() != 0 || len(b.told) != maxWaiting+3 {
		t.Errorf("after the end %d wait, %d told", b.Waiting(), len(b.told))
	}
}

type detail struct{ Detail }

func (detail) Kind() Kind { return KindDNS }

// A note may wait for more than the name, which flows do not, and not for ever.
func TestNoteWaitsForMore(t *testing.T) {
	b := newNameBench()
	b.cfg.AwaitsMore = func(id *workload.Identity, _ Detail) bool { return id.Image == "" }
	b.local[2] = &workload.Identity{Pod: "server"}
	s := asServer(1)
	b.Apply(s)
	b.want(t, named{Local: "server"})
	b.Note(s, detail{})
	b.Flush(time.Now().Add(nameWait))
	b.want(t)
	b.local[2] = &workload.Identity{Pod: "server", Image: "web:1"}
	b.Flush(time.Now())
	b.want(t, named{Local: "server"})
	if got := b.records[len(b.records)-1].Local.Image; got != "web:1" {
		t.Errorf("told with image %q", got)
	}
	b.Note(s, detail{})
	b.want(t, named{Local: "server"})
	b.local[2] = &workload.Identity{Pod: "server"}
	b.Note(s, detail{})
	b.Flush(time.Now().Add(moreWait))
	b.want(t, named{Local: "server"})
}

// What is no change of a flow has names as well, waits for them in its cgroup's order,
// and leaves the table's rows alone.
func TestNote(t *testing.T) {
	b := newNameBench()
	s := asServer(1)
	b.Apply(s)
	b.Note(s, detail{})
	if b.Len() != 1 || b.Waiting() != 2 {
		t.Fatalf("%d rows, %d records wait, want 1 and 2", b.Len(), b.Waiting())
	}
	b.Flush(time.Now().Add(nameWait))
	b.want(t, named{}, named{})
	first, last := b.records[0], b.records[1]
	if first.Kind() != KindFlow || last.Kind() != KindDNS || last.Time != s.Last || last.Event != 0 {
		t.Errorf("told of %+v and %+v", first, last)
	}
}

// A name of DNS gives way to that of a pod, and to no other name of DNS.
func TestRemoteNameOfDNS(t *testing.T) {
	b := joined()
	b.remote[serviceIP] = &workload.Identity{Kind: workload.KindExternal, Pod: "first"}
	b.Apply(asClient(1))
	b.remote[serviceIP] = &workload.Identity{Kind: workload.KindExternal, Pod: "second"}
	b.Apply(asClient(2))
	b.remote[serviceIP] = nil
	b.Apply(asClient(3))
	b.remote[serviceIP] = &workload.Identity{Pod: "pod"}
	b.Apply(asClient(4))
	b.want(t, named{Local: "client", Remote: "first"}, named{Local: "client", Remote: "first"},
		named{Local: "client", Remote: "first"}, named{Local: "client", Remote: "pod"})
	// Whoever comes to a server was not looked up by it.
	b.remote[clientIP] = &workload.Identity{Kind: workload.KindExternal, Pod: "first"}
	b.Apply(asServer(1))
	b.want(t, named{Local: "server", Remote: ""})
}

// The remote end keeps its name while its address gets another owner.
func TestRemoteNameStays(t *testing.T) {
	b := joined()
	b.remote[clientIP] = &workload.Identity{Pod: "first"}
	b.Apply(asServer(1))
	b.remote[clientIP] = &workload.Identity{Pod: "second"}
	b.Apply(asServer(2))
	b.want(t, named{Local: "server", Remote: "first"}, named{Local: "server", Remote: "first"})
}

// A client's port alone does not make a connection: it is used again, and for
// several servers at once.
func TestJoinNotByPortAlone(t *testing.T) {
	second := int64(time.Second)
	outside := netip.MustParseAddr("192.0.2.99")
	for name, change := range map[string]func(b *nameBench, client, server *Sample){
		"the server ended before": func(_ *nameBench, client, server *Sample) {
			server.TCP, server.Last = TCPInfo{Valid: true, End: EndFIN}, second
			client.First, client.Last = 2*second, 2*second
		},
		"the client ended before": func(_ *nameBench, client, server *Sample) {
			client.TCP, client.Last = TCPInfo{Valid: true, End: EndFIN}, second
			server.First, server.Last = 2*second, 2*second
		},
		"a Service of another namespace": func(b *nameBench, _, _ *Sample) {
			b.local[2] = &workload.Identity{Namespace: "other", Pod: "server"}
		},
		"a Service of another pod": func(b *nameBench, _, _ *Sample) {
			b.remote[serviceIP] = &workload.Identity{Namespace: "ns", Pod: "another", Service: "web"}
		},
		"somebody outside": func(_ *nameBench, client, _ *Sample) {
			client.Key.Remote = AddrOf(outside)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, clientFirst := range []bool{false, true} {
				b := joined()
				client, server := asClient(10), asServer(10)
				change(b, client, server)
				if clientFirst {
					b.Apply(client)
					b.Apply(server)
				} else {
					b.Apply(server)
					b.Apply(client)
				}
				b.Flush(time.Now().Add(nameWait))
				for _, n := range b.told {
					if n.Local == "server" && (n.LocalService != "" || n.Remote != "") ||
						n.Local == "client" && n.Remote == "server" {
						t.Errorf("joined (client first: %t): %+v", clientFirst, n)
					}
				}
			}
		})
	}
}

// A UDP client talks from one port to two Services of one namespace.
func TestJoinUDPByEndpoints(t *testing.T) {
	otherIP, otherBackend := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.244.1.4")
	run := func(backs map[string][]netip.AddrPort) map[named]bool {
		b := joined()
		b.backs = backs
		b.local[3] = &workload.Identity{Namespace: "ns", Pod: "second"}
		b.remote[otherIP] = &workload.Identity{Namespace: "ns", Service: "dns"}
		samples := []*Sample{
			asClient(10), tcpSample(1, RoleClient, at5000(clientIP), at443(otherIP), 10),
			asServer(10), tcpSample(3, RoleServer, at443(otherBackend), at5000(clientIP), 10),
		}
		for _, s := range samples {
			s.Protocol = UDP
			b.Apply(s)
		}
		got := make(map[named]bool)
		for _, r := range b.Snapshot(nil) {
			b.identify(&r)
			got[nameOf(&r)] = true
		}
		return got
	}
	byEndpoints := map[named]bool{
		{"client", "", "server", "web"}: true, {"client", "", "second", "dns"}: true,
		{"server", "web", "client", ""}: true, {"second", "dns", "client", ""}: true,
	}
	if d := cmp.Diff(byEndpoints, run(map[string][]netip.AddrPort{
		"web": {at443(backendIP)}, "dns": {at443(otherBackend)},
	})); d != "" {
		t.Errorf("with endpoints (-want +got):\n%s", d)
	}
	// Without them nothing is guessed.
	for n := range run(nil) {
		if n.Local != "client" && n.LocalService != "" {
			t.Errorf("guessed: %+v", n)
		}
	}
	// Nor where both Services send to the same port.
	same := map[string][]netip.AddrPort{"web": {at443(backendIP)}, "dns": {at443(backendIP)}}
	for n := range run(same) {
		if n.Local != "client" && n.LocalService != "" {
			t.Errorf("with the same endpoints, guessed: %+v", n)
		}
	}
}

// The Service stays on a connection whose pod left its EndpointSlices.
func TestServiceOutlivesEndpoint(t *testing.T) {
	b := joined()
	b.backs = map[string][]netip.AddrPort{"web": {at443(backendIP)}}
	b.Apply(asServer(10))
	b.Apply(asClient(10))
	b.told = nil
	b.backs["web"] = nil
	b.Apply(asServer(20))
	b.want(t, named{"server", "web", "client", ""})
}

// A Service that becomes known late, as after a start, is known at both ends, also
// of connections that are over.
func TestServiceKnownLate(t *testing.T) {
	b := joined()
	service := b.remote[serviceIP]
	delete(b.remote, serviceIP)
	client, server := asClient(10), asServer(10)
	client.TCP, server.TCP = TCPInfo{Valid: true, End: EndFIN}, TCPInfo{Valid: true, End: EndFIN}
	b.Apply(server)
	b.Apply(client)
	b.remote[serviceIP] = service
	for _, r := range b.Snapshot(nil) {
		if r.Role == RoleServer && r.Local.Service != "web" || r.Role == RoleClient && nameOf(&r) != (named{"client", "", "server", "web"}) {
			t.Errorf("%+v", nameOf(&r))
		}
	}
}

// Rows of one client's port are found and forgotten in any order.
func TestEndsAreForgotten(t *testing.T) {
	const n = maxEnds + 4
	for first := range n {
		b := joined()
		var rows []*row
		for i := range n {
			s := asClient(uint64(i + 1))
			s.RemotePort = uint16(1000 + i)
			b.Apply(s)
			rows = append(rows, b.rows[s.Key])
		}
		for i := range n {
			b.delist(rows[(first+i*7)%n]) // 7 and n have no common divisor
			count := 0
			for r := b.names.clients[side{TCP, AddrOf(clientIP), 5000}]; r != nil; r = r.nextEnd {
				count++
			}
			if count != n-1-i {
				t.Fatalf("%d rows left after %d were taken out", count, i+1)
			}
		}
		if len(b.names.clients) != 0 {
			t.Fatalf("%d ends of flows that are gone", len(b.names.clients))
		}
	}
}

// A record that does not fit any more costs no more than one that does.
func BenchmarkWaitingFull(b *testing.B) {
	for name, fill := range map[string]int{"room": 0, "full": maxWaiting} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				nb := newNameBench()
				for i := range fill {
					nb.Apply(asServer(uint64(i + 1)))
				}
				b.StartTimer()
				for i := range maxWaiting {
					nb.Apply(asServer(uint64(fill + i + 1)))
				}
			}
		})
	}
}
