// SPDX-License-Identifier: Apache-2.0

package naming

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/testwait"
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

func nameOf(r *flow.Record) named {
	n := named{Local: r.Owner.Pod, LocalService: r.Owner.Service}
	if r.Peer != nil {
		n.Remote, n.RemoteService = r.Peer.Pod, r.Peer.Service
	}
	return n
}

type nameBench struct {
	*flow.Table
	*Stage
	cluster
	told []named
}

func newNameBench() *nameBench {
	b := &nameBench{cluster: cluster{local: map[uint64]*workload.Identity{}, remote: map[netip.Addr]*workload.Identity{}}}
	losses := new(loss.Counters)
	b.Stage = New(Config{
		Resolver: &b.cluster, Losses: losses, Awaits: func(id *workload.Identity) bool { return id.Pod == "" },
	})
	var lane *Lane[flow.Record]
	b.Table = flow.NewTable(flow.Config{MaxFlows: 2 * maxEnded, IdleTimeout: 30 * time.Second, Losses: losses},
		func(r *flow.Record) { lane.Submit(r) })
	lane = NewLane(b.Stage, func(r *flow.Record) *record.Header { return &r.Header },
		func(r *flow.Record) { b.told = append(b.told, nameOf(r)) }, b.Named)
	return b
}

// rows are those of the table as somebody sees them who asks.
func (b *nameBench) rows() []flow.Record {
	rows := b.Rows(b.Keys(nil), nil)
	for i := range rows {
		if b.Refresh(&rows[i].Header) {
			b.Named(&rows[i])
		}
	}
	return rows
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

func tcpSample(cgroup uint64, role record.Role, local, remote netip.AddrPort, bytes uint64) *flow.Sample {
	return &flow.Sample{
		Key: flow.Key{
			Local: record.AddrOf(local.Addr()), Remote: record.AddrOf(remote.Addr()), LocalPort: local.Port(), RemotePort: remote.Port(),
			Protocol: record.TCP, CgroupID: cgroup,
		},
		Instance: 1, Role: role, First: 1, Last: int64(bytes), Total: flow.Counters{TxBytes: bytes},
	}
}

func at443(ip netip.Addr) netip.AddrPort  { return netip.AddrPortFrom(ip, 443) }
func at5000(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, 5000) }

func asClient(bytes uint64) *flow.Sample {
	return tcpSample(1, record.RoleClient, at5000(clientIP), at443(serviceIP), bytes)
}

func asServer(bytes uint64) *flow.Sample {
	return tcpSample(2, record.RoleServer, at443(backendIP), at5000(clientIP), bytes)
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

	for _, r := range b.rows() {
		if r.Role == record.RoleClient && r.Peer.Pod != "server" {
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
	b.Sweep(time.Now().Add(keepEnded))
	if n := len(b.clients) + len(b.servers); n != 0 {
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
	b.Apply(tcpSample(2, record.RoleServer, at443(node), at5000(node), 1))
	b.Apply(tcpSample(1, record.RoleClient, at5000(node), at443(node), 1))
	b.Apply(tcpSample(2, record.RoleServer, at443(node), at5000(node), 2))
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
	if got := b.rows()[0].Owner.Pod; got != "" {
		t.Errorf("the row has pod %q already", got)
	}
	b.local[2] = &workload.Identity{Pod: "server"}
	if got := b.rows()[0].Owner.Pod; got != "server" {
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
	for name, change := range map[string]func(b *nameBench, client, server *flow.Sample){
		"the server ended before": func(_ *nameBench, client, server *flow.Sample) {
			server.TCP, server.Last = flow.TCPInfo{Valid: true, End: flow.EndFIN}, second
			client.First, client.Last = 2*second, 2*second
		},
		"the client ended before": func(_ *nameBench, client, server *flow.Sample) {
			client.TCP, client.Last = flow.TCPInfo{Valid: true, End: flow.EndFIN}, second
			server.First, server.Last = 2*second, 2*second
		},
		"a Service of another namespace": func(b *nameBench, _, _ *flow.Sample) {
			b.local[2] = &workload.Identity{Namespace: "other", Pod: "server"}
		},
		"a Service of another pod": func(b *nameBench, _, _ *flow.Sample) {
			b.remote[serviceIP] = &workload.Identity{Namespace: "ns", Pod: "another", Service: "web"}
		},
		"somebody outside": func(_ *nameBench, client, _ *flow.Sample) {
			client.Remote = record.AddrOf(outside)
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
		samples := []*flow.Sample{
			asClient(10), tcpSample(1, record.RoleClient, at5000(clientIP), at443(otherIP), 10),
			asServer(10), tcpSample(3, record.RoleServer, at443(otherBackend), at5000(clientIP), 10),
		}
		for _, s := range samples {
			s.Protocol = record.UDP
			b.Apply(s)
		}
		got := make(map[named]bool)
		for _, r := range b.rows() {
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
	client.TCP, server.TCP = flow.TCPInfo{Valid: true, End: flow.EndFIN}, flow.TCPInfo{Valid: true, End: flow.EndFIN}
	b.Apply(server)
	b.Apply(client)
	b.remote[serviceIP] = service
	for _, r := range b.rows() {
		if r.Role == record.RoleServer && r.Owner.Service != "web" || r.Role == record.RoleClient && nameOf(&r) != (named{"client", "", "server", "web"}) {
			t.Errorf("%+v", nameOf(&r))
		}
	}
}

// Ends of one client's port are found and forgotten in any order.
func TestEndsAreForgotten(t *testing.T) {
	const n = maxEnds
	at := side{record.TCP, record.AddrOf(clientIP), 5000}
	for first := range n {
		b := joined()
		var ends []*end
		for i := range n {
			s := asClient(uint64(i + 1))
			s.RemotePort = uint16(1000 + i)
			b.Apply(s)
			ends = append(ends, b.clients[at])
		}
		for i := range n {
			b.forget(ends[(first+i*7)%n], at) // 7 and n have no common divisor
			count := 0
			for e := b.clients[at]; e != nil; e = e.next {
				count++
			}
			if count != n-1-i {
				t.Fatalf("%d ends left after %d were taken out", count, i+1)
			}
		}
		if len(b.clients) != 0 {
			t.Fatalf("%d ends of flows that are gone", len(b.clients))
		}
	}
}

// Of the conversations of one port some are kept, and those that are over make room.
func TestEndsAreBounded(t *testing.T) {
	b := joined()
	at := side{record.TCP, record.AddrOf(clientIP), 5000}
	open := func(i int, e flow.End) {
		s := asClient(uint64(i + 1))
		s.RemotePort, s.TCP = uint16(1000+i), flow.TCPInfo{Valid: true, End: e}
		b.Apply(s)
	}
	count := func() (n int) {
		for e := b.clients[at]; e != nil; e = e.next {
			n++
		}
		return n
	}
	for i := range maxEnds + 3 {
		open(i, flow.EndNone)
	}
	if n := count(); n != maxEnds {
		t.Errorf("%d ends are kept, want %d", n, maxEnds)
	}
	open(3, flow.EndFIN)
	open(maxEnds+9, flow.EndNone)
	if e := b.clients[at]; count() != maxEnds || e.port != 1000+maxEnds+9 {
		t.Errorf("of %d ends the latest is that of port %d", count(), e.port)
	}
	for i := range maxEnded + 10 {
		s := asClient(1)
		s.LocalPort, s.TCP = uint16(6000+i), flow.TCPInfo{Valid: true, End: flow.EndFIN}
		b.Apply(s)
	}
	if n := len(b.Stage.ended); n != maxEnded || len(b.clients) > maxEnded+1 {
		t.Errorf("%d that are over are kept, with %d ports, want %d", n, len(b.clients), maxEnded)
	}
	b.Sweep(time.Now().Add(keepEnded))
	if n := len(b.clients); n != 1 || len(b.Stage.ended) != 0 {
		t.Errorf("%d ports are kept after a while, want that of the connections that go on", n)
	}
}

// A flow that was idle for so long that it expired is one conversation all the same.
func TestEndComesBack(t *testing.T) {
	b := joined()
	b.Apply(asServer(10))
	b.Expire(time.Unix(1000, 0))
	b.Apply(asServer(20))
	b.Sweep(time.Now().Add(keepEnded))
	b.told = nil
	b.Apply(asClient(10))
	b.want(t, named{"client", "", "server", "web"})
}

// byProcess is a Resolver that names an owner by its cgroup, pid and command.
type byProcess struct{ *cluster }

func (byProcess) Local(cgroup uint64, pid uint32, comm string, _ netip.Addr) *workload.Identity {
	return &workload.Identity{Name: fmt.Sprintf("%d/%d/%s", cgroup, pid, comm)}
}

func (byProcess) Remote(p workload.Peer) *workload.Identity {
	if p.Addr.IsPrivate() {
		return &workload.Identity{Name: p.Addr.String()}
	}
	return nil
}

// An owner that goes by its process changes with it.
func TestIdentity(t *testing.T) {
	var last flow.Record
	var lane *Lane[flow.Record]
	table := flow.NewTable(flow.Config{MaxFlows: 10, IdleTimeout: time.Minute, Losses: new(loss.Counters)},
		func(r *flow.Record) { lane.Submit(r) })
	stage := New(Config{
		Resolver: byProcess{new(cluster)}, Losses: new(loss.Counters),
		IsSelf: func(h *record.Header) bool { return h.PID == 99 },
	})
	lane = NewLane(stage, func(r *flow.Record) *record.Header { return &r.Header }, func(r *flow.Record) { last = *r }, table.Named)
	s := asClient(1)
	s.Remote = record.AddrOf(netip.MustParseAddr("10.0.0.2"))
	step := func(owner, peer string, self bool, pid uint32, comm string) {
		t.Helper()
		s.Total.TxBytes++
		s.Last++
		s.PID, s.Comm = pid, record.Comm{}
		copy(s.Comm[:], comm)
		table.Apply(s)
		row := table.Rows(table.Keys(nil), nil)[0]
		for what, r := range map[string]*flow.Record{"record": &last, "row": &row} {
			if r.Owner.Name != owner || r.Peer.Name != peer || r.Self != self {
				t.Errorf("%s: owner %s, peer %s, self %v, want %s, %s and %v", what, r.Owner.Name, r.Peer.Name, r.Self, owner, peer, self)
			}
		}
	}
	step("1/0/", "10.0.0.2", false, 0, "")
	step("1/40/sh", "10.0.0.2", false, 40, "sh")
	step("1/40/curl", "10.0.0.2", false, 40, "curl")
	step("1/40/curl", "10.0.0.2", false, 0, "") // not known any more
	step("1/99/orb8", "10.0.0.2", true, 99, "orb8")
	other := asClient(1)
	other.Remote = record.AddrOf(netip.MustParseAddr("192.0.2.1"))
	table.Apply(other)
	if last.Peer != nil || last.Owner == nil {
		t.Errorf("ends of a flow with an unknown peer: %v, %v", last.Owner, last.Peer)
	}
}

// slow is a Resolver that takes as long as it is let.
type slow struct {
	cluster
	asked, done chan struct{}
}

func (s *slow) Local(cgroup uint64, pid uint32, comm string, ip netip.Addr) *workload.Identity {
	s.asked <- struct{}{}
	<-s.done
	return s.cluster.Local(cgroup, pid, comm, ip)
}

// Whoever looks at the table does not wait for names, nor does what comes in meanwhile.
func TestTableIsFreeWhileNaming(t *testing.T) {
	r := &slow{asked: make(chan struct{}, 8), done: make(chan struct{})}
	stage := New(Config{Resolver: r, Losses: new(loss.Counters)})
	emitted := 0
	var lane *Lane[flow.Record]
	table := flow.NewTable(flow.Config{MaxFlows: 10, IdleTimeout: time.Minute, Losses: new(loss.Counters)},
		func(rec *flow.Record) { lane.Submit(rec) })
	lane = NewLane(stage, func(rec *flow.Record) *record.Header { return &rec.Header }, func(*flow.Record) { emitted++ }, table.Named)
	var wg sync.WaitGroup
	wg.Go(func() { table.Apply(asClient(1)) })
	testwait.Receive(t, "a question for the name", r.asked)
	second := asServer(1)
	wg.Go(func() { table.Apply(second) })
	testwait.True(t, "both flows are in the table", func() bool { return len(table.Rows(table.Keys(nil), nil)) == 2 })
	close(r.done)
	testwait.Return(t, "both are applied", wg.Wait)
	if emitted != 2 {
		t.Errorf("%d records", emitted)
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

// TestExecutableIsWaitedFor: a record whose process is about to be known waits for that, the
// others of its cgroup behind it, and not for ever.
func TestExecutableIsWaitedFor(t *testing.T) {
	path, soon := "", true
	var told []string
	s := New(Config{
		Resolver: &cluster{}, Losses: new(loss.Counters),
		Executable: func(h *record.Header) (string, bool) { return path, soon },
	})
	lane := NewLane(s, func(h *record.Header) *record.Header { return h },
		func(h *record.Header) { told = append(told, fmt.Sprint(h.PID, h.Executable)) }, nil)
	want := func(all ...string) {
		t.Helper()
		if d := cmp.Diff(all, told); d != "" {
			t.Errorf("told (-want +got):\n%s", d)
		}
		told = nil
	}
	lane.Submit(&record.Header{CgroupID: 1, PID: 7})
	lane.Submit(&record.Header{CgroupID: 1, PID: 0})
	lane.Submit(&record.Header{CgroupID: 2, PID: 0})
	want("0")
	s.Flush(time.Now())
	want()
	path, soon = "/bin/app", false
	s.Flush(time.Now())
	want("7/bin/app", "0")

	path, soon = "", true
	lane.Submit(&record.Header{CgroupID: 1, PID: 7})
	s.Flush(time.Now().Add(time.Second))
	want("7")
	lane.Submit(&record.Header{CgroupID: 1, PID: 7, Executable: "/bin/before"})
	want("7/bin/before")

	h := record.Header{CgroupID: 1, PID: 7, Owner: &workload.Identity{}, Peer: &workload.Identity{Pod: "p"}}
	if s.Refresh(&h) {
		t.Error("nothing new is new")
	}
	if path = "/bin/late"; !s.Refresh(&h) || h.Executable != path {
		t.Errorf("refreshed to %q", h.Executable)
	}
}

// TestOwnerIsWaitedFor: what an end's pod belongs to is asked from the API server, and a record
// waits for the answer, for a while. A row that left with a guess gets the answer later.
func TestOwnerIsWaitedFor(t *testing.T) {
	guess := &workload.Identity{Namespace: "shop", Pod: "web-1", PodUID: "1", Kind: "ReplicaSet", Name: "web-5d4f", OwnerPending: true}
	answer := &workload.Identity{Namespace: "shop", Pod: "web-1", PodUID: "1", Kind: "Rollout", Name: "web"}
	other := &workload.Identity{Namespace: "shop", Pod: "web-2", PodUID: "2", Kind: "Pod", Name: "web-2"}
	client := netip.AddrPortFrom(clientIP, 40000)
	open := func(t *testing.T) (b *nameBench, kinds func() []string) {
		b = newNameBench()
		b.local[1] = &workload.Identity{Namespace: "shop", Pod: "client", Kind: "Pod", Name: "client"}
		b.remote[backendIP] = guess
		b.Apply(tcpSample(1, record.RoleClient, client, netip.AddrPortFrom(backendIP, 80), 10))
		if len(b.told) != 0 || b.Waiting() != 1 {
			t.Fatalf("%d told, %d wait, want one that waits", len(b.told), b.Waiting())
		}
		return b, func() (kinds []string) {
			for _, r := range b.rows() {
				kinds = append(kinds, r.Peer.Kind)
			}
			return kinds
		}
	}
	for _, tt := range []struct {
		name  string
		later *workload.Identity
		want  string
	}{{"known", answer, "Rollout"}, {"no answer", guess, "ReplicaSet"}, {"another's address by now", other, "ReplicaSet"}} {
		t.Run(tt.name, func(t *testing.T) {
			b, kinds := open(t)
			b.remote[backendIP] = tt.later
			b.Flush(time.Now().Add(ownerWait + time.Millisecond))
			if got := kinds(); len(b.told) != 1 || !slices.Equal(got, []string{tt.want}) {
				t.Errorf("%d told, %q, want %s", len(b.told), got, tt.want)
			}
		})
	}
	t.Run("known late", func(t *testing.T) {
		b, kinds := open(t)
		b.Flush(time.Now().Add(ownerWait + time.Millisecond))
		b.remote[backendIP] = answer
		if got := kinds(); len(b.told) != 1 || !slices.Equal(got, []string{"Rollout"}) {
			t.Errorf("%d told, %q, want the answer", len(b.told), got)
		}
	})
	t.Run("an owner's own", func(t *testing.T) {
		b := newNameBench()
		b.local[1], b.remote[backendIP] = guess, other
		b.Apply(tcpSample(1, record.RoleClient, client, netip.AddrPortFrom(backendIP, 80), 10))
		b.local[1] = answer
		b.Flush(time.Now())
		if rows := b.rows(); len(b.told) != 1 || rows[0].Owner.Kind != "Rollout" {
			t.Errorf("%d told, owner %s", len(b.told), rows[0].Owner.Kind)
		}
	})
}
