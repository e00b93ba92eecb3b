// SPDX-License-Identifier: Apache-2.0

//go:build linux

package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/packet"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/record"
)

const (
	// timeout of the probes under test.
	timeout = 700 * time.Millisecond
	// slow is how long the server takes to answer slow.test.
	slow = 250 * time.Millisecond
)

func TestMain(m *testing.M) {
	if probetest.ServeChild(func(server []string) (string, error) {
		return "", ask("udp", server[0], "child.test", dns.TypeA)
	}) {
		return
	}
	goleak.VerifyTestMain(m)
}

// seen is one thing that the probe has told.
type seen = dns.Record

// rig is the two probes, running, with what has been told.
type rig struct {
	*Probe
	packets *packet.Probe
	t       *testing.T
	losses  loss.Counters
	mu      sync.Mutex
	got     []seen
	copied  map[int][]byte // of the latest payload of each length
}

func start(t *testing.T, change func(*packet.Config, *Config)) *rig {
	t.Helper()
	r := &rig{t: t, copied: make(map[int][]byte)}
	clock := probe.NewClock()
	pc := packet.Config{
		Apply: func(*flow.Sample) {}, Losses: &r.losses, Clock: clock, CgroupRoot: probetest.CgroupRoot(t), DNSPorts: []uint16{53},
	}
	c := Config{
		Decode: r.decode, Losses: &r.losses, Clock: clock, Timeout: func() time.Duration { return timeout },
		Messages: func() (*ebpf.Map, func() (uint64, error)) { return r.packets.DNSMessages() },
		Submit: func(x *dns.Record) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.got = append(r.got, *x)
		},
	}
	if change != nil {
		change(&pc, &c)
	}
	r.packets = packet.New(pc)
	probetest.Start(t, r.packets, "DNS over UDP: off")
	r.Probe = New(c)
	probetest.Start(t, r.Probe, "DNS over UDP: off")
	probetest.Run(t, r)
	return r
}

// decode keeps what was copied.
func (r *rig) decode(raw []byte, p *dns.Packet) error {
	err := packet.DecodeDNS(raw, p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copied[p.Length] = bytes.Clone(p.Data)
	return err
}

// until waits until is returns true.
func (r *rig) until(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Errorf("not so after 10 s: %s; %+v", what, r.Counts())
			return
		}
		if err := errors.Join(r.Collect(), r.packets.Collect()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// dialed calls do with a socket that is connected to addr from n.
func dialed(t *testing.T, n *probetest.Netns, network, addr string, do func(net.Conn) error) {
	t.Helper()
	var err error
	n.Do(func() {
		var c net.Conn
		if c, err = net.Dial(network, addr); err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			err = do(c)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// find waits for the one thing told of a name, seen at the given end.
func (r *rig) find(name string, role record.Role) seen {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := r.Collect(); err != nil {
			r.t.Fatal(err)
		}
		if found := r.named(name, role); len(found) > 0 {
			if len(found) > 1 {
				r.t.Fatalf("%s is told of %d times", name, len(found))
			}
			return found[0]
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.got {
		r.t.Logf("told of %q at %v:%d <-> %v:%d, role %d", s.Name, s.Local.IP(), s.LocalPort, s.Remote.IP(), s.RemotePort, s.Role)
	}
	r.t.Fatalf("nothing is told of %s with role %d; %+v", name, role, r.Counts())
	return seen{}
}

// forget what was told so far.
func (r *rig) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = nil
}

func (r *rig) named(name string, role record.Role) []seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []seen
	for _, s := range r.got {
		if s.Name == name && s.Role == role {
			found = append(found, s)
		}
	}
	return found
}

// serve answers DNS at addr, over UDP and TCP, for the time of the test.
func serve(t *testing.T, n *probetest.Netns, addr string) {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	var err error
	n.Do(func() {
		if udp, err = net.ListenPacket("udp", addr); err == nil {
			tcp, err = net.Listen("tcp", addr)
		}
	})
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := respond(buf[:n], false); reply != nil {
				_, _ = udp.WriteTo(reply, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveTCP(c) })
		}
	})
	t.Cleanup(func() {
		_, _ = udp.Close(), tcp.Close()
		wg.Wait()
	})
}

func serveTCP(c net.Conn) {
	defer c.Close()
	for {
		q, err := readFramed(c)
		if err != nil {
			return
		}
		if reply := respond(q, true); reply != nil {
			_, _ = c.Write(frame(reply))
		}
	}
}

func frame(m []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...) }

func readFramed(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

const (
	// whole is the length of a message of which all is read, as documented.
	whole = 1232
	// recordSize is that of an A record, its name a pointer.
	recordSize = 16
	// many of them are 4,000 bytes, in fragments or segments.
	many = 250
)

// padding is a record of n bytes, its name a pointer.
func padding(name dnsmessage.Name, n int) dnsmessage.Resource {
	return dnsmessage.Resource{
		Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET},
		Body:   &dnsmessage.UnknownResource{Type: 65280, Data: make([]byte, n-12)},
	}
}

// respond makes the answer to a query by its name; nil for none.
func respond(q []byte, tcp bool) []byte {
	var m dnsmessage.Message
	if m.Unpack(q) != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response = true
	name := m.Questions[0].Name
	add := func(n int) {
		for i := range n {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 30},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, byte(i + 1)}},
			})
		}
	}
	switch label, _, _ := strings.Cut(strings.ToLower(name.String()), "."); label {
	case "dead":
		return nil
	case "nx":
		m.RCode = dnsmessage.RCodeNameError
	case "slow":
		time.Sleep(slow)
		add(1)
	case "large":
		add(many)
	case "fits", "cut":
		n := whole - len(q) - recordSize
		if label == "cut" {
			n++
		}
		m.Answers = append(m.Answers, padding(name, n))
		add(1)
	case "long":
		if m.Truncated = !tcp; tcp {
			add(2)
		}
	default:
		add(1)
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

func queryOf(name string, kind dns.Type) []byte {
	b, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 4711}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.Type(kind), Class: dnsmessage.ClassINET,
	}}}).Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// ask sends a query and waits for the answer.
func ask(network, server, name string, kind dns.Type) error {
	c, err := net.Dial(network, server)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	q := queryOf(name, kind)
	if network == "tcp" {
		if _, err := c.Write(frame(q)); err != nil {
			return err
		}
		_, err = readFramed(c)
		return err
	}
	if _, err := c.Write(q); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 65535))
	return err
}

func must(t *testing.T, n *probetest.Netns, network, server, name string, kind dns.Type) {
	t.Helper()
	var err error
	n.Do(func() { err = ask(network, server, name, kind) })
	if err != nil {
		t.Fatalf("ask %s for %s over %s: %v", server, name, network, err)
	}
}

// TestExchanges has the tests that need nothing but a running probe, which takes long
// to load.
func TestExchanges(t *testing.T) {
	r := start(t, nil)
	for _, c := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"queries", testQueries},
		{"truncated", testTruncated},
		{"large", testLarge},
		{"copied", testCopied},
		{"last byte", testLastByte},
		{"segments", testSegments},
		{"batch", testBatch},
		{"timeout", testTimeout},
		{"unconnected", testUnconnected},
		{"cgroup", testCgroup},
		{"harmful", testHarmful},
	} {
		t.Run(c.name, func(t *testing.T) { r.as(t, c.test) })
	}
}

// as runs a part of a test, with nothing told before.
func (r *rig) as(t *testing.T, test func(*testing.T, *rig)) {
	defer func(outer *testing.T) { r.t = outer }(r.t)
	r.t = t
	r.forget()
	test(t, r)
}

func testQueries(t *testing.T, r *rig) {
	for _, server := range []string{"10.231.0.2:53", "[fd00:231::2]:53"} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network+" "+server, func(t *testing.T) {
				r.as(t, func(t *testing.T, r *rig) { testServer(t, r, network, server) })
			})
		}
	}
}

func testServer(t *testing.T, r *rig, network, server string) {
	a, b := probetest.Joined(t)
	serve(t, b, server)
	must(t, a, network, server, "neighbour.test", dns.TypeA) // the first packet takes longer
	r.find("neighbour.test", record.RoleClient)
	r.find("neighbour.test", record.RoleServer)
	before := r.Counts()
	must(t, a, network, server, "ok.test", dns.TypeA)
	must(t, a, network, server, "NX.test", dns.TypeAAAA)
	begin := time.Now()
	must(t, a, network, server, "slow.test", dns.TypeA)
	waited := time.Since(begin)
	at := netip.MustParseAddrPort(server)
	for _, role := range []record.Role{record.RoleClient, record.RoleServer} {
		ok := r.find("ok.test", role)
		if ok.Outcome != dns.Answered || ok.RCode != dns.NoError || ok.Type != dns.TypeA || ok.ID != 4711 {
			t.Errorf("%+v", ok.Exchange)
		}
		answers := []dns.Answer{{Name: "ok.test", Type: dns.TypeA, TTL: 30, Data: "192.0.2.1"}}
		if diff := cmp.Diff(answers, ok.Answers); diff != "" {
			t.Errorf("answers (-want +got)\n%s", diff)
		}
		end, port := ok.Remote, ok.RemotePort
		if role == record.RoleServer {
			end, port = ok.Local, ok.LocalPort
		}
		if end.IP() != at.Addr() || port != at.Port() || ok.Protocol.String() != strings.ToUpper(network) {
			t.Errorf("the server is %v:%d over %v, want %v over %s", end.IP(), port, ok.Protocol, at, network)
		}
		if nx := r.find("nx.test", role); nx.RCode != dns.NXDomain || nx.Type != dns.TypeAAAA || nx.Answers != nil {
			t.Errorf("%+v", nx.Exchange)
		}
		// What the server slept is in it, and not more than the client has waited.
		if took := r.find("slow.test", role).Latency; took < slow || took > waited {
			t.Errorf("slow.test took %v, want %v to %v", took, slow, waited)
		}
	}
	want := before
	want.Queries += 6
	want.Answers += 6
	if diff := cmp.Diff(want, r.Counts()); diff != "" {
		t.Errorf("counts (-want +got)\n%s", diff)
	}
	if n := r.losses.Dropped(); n != 0 {
		t.Errorf("%d lost", n)
	}
	t.Logf("orb8-feature: DNS over %s: works", strings.ToUpper(network))
}

// testTruncated: the answer that does not fit, and then the whole one over TCP.
func testTruncated(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	must(t, a, "udp", "10.231.0.2:53", "long.test", dns.TypeA)
	must(t, a, "tcp", "10.231.0.2:53", "long.test", dns.TypeA)
	var truncated, whole int
	for end := time.Now().Add(5 * time.Second); truncated+whole < 2 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		truncated, whole = 0, 0
		for _, s := range r.named("long.test", record.RoleClient) {
			switch {
			case s.Truncated && s.Protocol == record.UDP && len(s.Answers) == 0:
				truncated++
			case !s.Truncated && s.Protocol == record.TCP && len(s.Answers) == 2:
				whole++
			}
		}
	}
	if truncated != 1 || whole != 1 {
		t.Errorf("%d truncated answers over UDP and %d whole ones over TCP, want one each", truncated, whole)
	}
}

// testLarge: what is not copied of a large answer is counted, not missed.
func testLarge(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	must(t, a, "udp", "10.231.0.2:53", "neighbour.test", dns.TypeA) // the first packet takes longer
	for _, network := range []string{"udp", "tcp"} {
		must(t, a, network, "10.231.0.2:53", "large."+network, dns.TypeA)
		x := r.find("large."+network, record.RoleClient)
		if len(x.Answers) != 32 || len(x.Answers)+int(x.More) != many || x.AnswerBytes < many*recordSize && network == "udp" {
			t.Errorf("%s: %d answers and %d more in %d bytes", network, len(x.Answers), x.More, x.AnswerBytes)
		}
	}
}

// testCopied: of a payload of any length all is copied that there is room for.
func testCopied(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	sent := make(map[int][]byte)
	dialed(t, a, "udp", "10.231.0.2:53", func(c net.Conn) (err error) {
		for _, n := range []int{1, 95, 96, 97, 199, 200, 201, 399, 400, 401, 799, 800, 801, 1233, 1234, 1235, 1400} {
			sent[n] = bytes.Repeat([]byte{0xfe, 0xdc, byte(n)}, n/3+1)[:n]
			if _, werr := c.Write(sent[n]); werr != nil {
				err = werr
			}
		}
		return err
	})
	r.until("all are copied", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for n := range sent {
			if r.copied[n] == nil {
				return false
			}
		}
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, data := range sent {
		if want := data[:min(n, whole+2)]; !bytes.Equal(r.copied[n], want) {
			t.Errorf("of %d bytes %d were copied, want %d, or they are not the same", n, len(r.copied[n]), len(want))
		}
	}
}

// testLastByte: a message of 1,232 bytes is read to its end, also over TCP, and no
// longer one.
func testLastByte(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	for name, want := range map[string]int{"fits.test": 2, "cut.test": 1} {
		must(t, a, "tcp", "10.231.0.2:53", name, dns.TypeA)
		for _, role := range []record.Role{record.RoleClient, record.RoleServer} {
			x := r.find(name, role)
			if len(x.Answers) != want || int(x.More) != 2-want || int(x.AnswerBytes) != whole+2-want {
				t.Errorf("%s: %d answers and %d more in %d bytes, want %d", name, len(x.Answers), x.More, x.AnswerBytes, want)
			}
		}
	}
}

// testSegments: a message that does not begin with its segment is said to be unread.
func testSegments(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	before := r.Counts()
	dialed(t, a, "tcp", "10.231.0.2:53", func(c net.Conn) error {
		q := frame(queryOf("pieces.test", dns.TypeA))
		if _, err := c.Write(q[:8]); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
		if _, err := c.Write(q[8:]); err != nil {
			return err
		}
		_, err := readFramed(c)
		return err
	})
	for _, role := range []record.Role{record.RoleClient, record.RoleServer} {
		if x := r.find("", role); x.Outcome != dns.Unread || x.Protocol != record.TCP {
			t.Errorf("%+v", x)
		}
	}
	want := before
	want.Unread += 4
	want.Answers += 2
	want.Unmatched += 2
	r.until("the answer is seen at both ends", func() bool { return r.Counts() == want })
}

// testBatch: messages that are sent in one packet are told of one by one, and those are
// counted that are too far behind to be copied.
func testBatch(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	size := len(queryOf("seg00.test", dns.TypeA))
	send := func(n int) {
		dialed(t, a, "udp", "10.231.0.2:53", func(c net.Conn) error {
			raw, err := c.(*net.UDPConn).SyscallConn()
			if err != nil {
				return err
			}
			var serr error
			err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
			if err := errors.Join(err, serr); err != nil {
				return err
			}
			var all []byte
			for i := range n {
				q := queryOf(fmt.Sprintf("seg%02d.test", i), dns.TypeA)
				q[1] = byte(i)
				all = append(all, q...)
			}
			if _, err := c.Write(all); err != nil {
				return err
			}
			for range n {
				if _, err := c.Read(make([]byte, 512)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	before, lost := r.Counts(), r.losses.Get(loss.DNSUncopied)
	send(5)
	for i := range 5 {
		for _, role := range []record.Role{record.RoleClient, record.RoleServer} {
			if x := r.find(fmt.Sprintf("seg%02d.test", i), role); x.Outcome != dns.Answered {
				t.Errorf("%+v", x)
			}
		}
	}
	if n := r.Counts().Queries - before.Queries; n != 10 {
		t.Errorf("%d queries, want 10", n)
	}
	const many = 60
	far := uint64(many - (whole+2)/size)
	before = r.Counts()
	send(many)
	r.until("those that are too far behind are counted", func() bool { return r.losses.Get(loss.DNSUncopied)-lost == far })
	r.until("the others are read", func() bool { return r.Counts().Queries-before.Queries == 2*many-far })
}

func testTimeout(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	var err error
	a.Do(func() {
		var c net.Conn
		if c, err = net.Dial("udp", "10.231.0.2:53"); err == nil {
			_, err = c.Write(queryOf("dead.test", dns.TypeA))
			defer c.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []record.Role{record.RoleClient, record.RoleServer} {
		dead := r.find("dead.test", role)
		if dead.Outcome != dns.Timeout || time.Duration(dead.Last-dead.First) < timeout || time.Duration(dead.Last-dead.First) > timeout+time.Second {
			t.Errorf("%+v after %v", dead.Exchange, time.Duration(dead.Last-dead.First))
		}
	}
	t.Log("orb8-feature: DNS queries without an answer: works")
}

// testUnconnected: many programs send without connecting, and so do all servers.
func testUnconnected(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "0.0.0.0:53")
	var err error
	a.Do(func() {
		var c net.PacketConn
		if c, err = net.ListenPacket("udp", "0.0.0.0:0"); err != nil {
			return
		}
		defer c.Close()
		for _, kind := range []dns.Type{dns.TypeA, dns.TypeAAAA} {
			_, err = c.WriteTo(queryOf("any.test", kind), &net.UDPAddr{IP: net.IP{10, 231, 0, 2}, Port: 53})
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			if _, _, rerr := c.ReadFrom(make([]byte, 512)); rerr != nil {
				err = rerr
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.until("both queries are told of at both ends", func() bool {
		return len(r.named("any.test", record.RoleServer)) == 2 && len(r.named("any.test", record.RoleClient)) == 2
	})
	for _, role := range []record.Role{record.RoleClient, record.RoleServer} {
		all := r.named("any.test", role)
		if len(all) != 2 || all[0].Type == all[1].Type {
			t.Fatalf("role %d: %v", role, all)
		}
		local := map[record.Role]string{record.RoleClient: "10.231.0.1", record.RoleServer: "10.231.0.2"}[role]
		if got := all[0].Local.IP().String(); got != local {
			t.Errorf("local end %s, want %s", got, local)
		}
	}
}

// testCgroup: a query belongs to the cgroup and the process that made the socket.
func testCgroup(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	dir, id := probetest.NewCgroup(t)
	child := probetest.NewChild(t, dir, a)
	child.Do("10.231.0.2:53")
	client := r.find("child.test", record.RoleClient)
	if client.CgroupID != id {
		t.Errorf("cgroup %d, want %d", client.CgroupID, id)
	}
	if len(r.packets.Degraded()) == 0 && client.PID != child.PID() {
		t.Errorf("process %d %q, want %d", client.PID, client.Comm, child.PID())
	}
	if server := r.find("child.test", record.RoleServer); server.CgroupID == id {
		t.Error("the server is seen in the client's cgroup")
	}
	t.Log("orb8-feature: DNS by cgroup: works")
}

// testHarmful: what is no DNS counts as malformed, and nothing is told.
func testHarmful(t *testing.T, r *rig) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	before := r.Counts().Malformed
	loop := queryOf("loop.test", dns.TypeA)
	loop[12], loop[13] = 0xc0, 12
	harmful := [][]byte{{0}, make([]byte, 40), loop, queryOf("cut.test", dns.TypeA)[:15], make([]byte, 9000)}
	var err error
	a.Do(func() {
		var c net.Conn
		if c, err = net.Dial("udp", "10.231.0.2:53"); err != nil {
			return
		}
		defer c.Close()
		for _, m := range harmful {
			if _, werr := c.Write(m); werr != nil {
				err = werr
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	must(t, a, "udp", "10.231.0.2:53", "after.test", dns.TypeA)
	r.find("after.test", record.RoleClient)
	// Each is seen at either end; an empty datagram has nothing to read.
	if got, want := r.Counts().Malformed-before, uint64(2*len(harmful)); got != want {
		t.Errorf("%d malformed messages, want %d: %+v", got, want, r.Counts())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) > 2 {
		t.Errorf("told of %d things", len(r.got))
	}
}

// TestOtherPorts: only the ports that are asked for are read, up to eight.
func TestOtherPorts(t *testing.T) {
	a, b := probetest.Joined(t)
	for _, port := range []string{"53", "1053", "5353"} {
		serve(t, b, "10.231.0.2:"+port)
	}
	r := start(t, func(p *packet.Config, _ *Config) { p.DNSPorts = []uint16{1, 2, 3, 4, 5, 6, 1053, 5353} })
	must(t, a, "udp", "10.231.0.2:53", "not.test", dns.TypeA)
	must(t, a, "tcp", "10.231.0.2:53", "not.test", dns.TypeA)
	must(t, a, "udp", "10.231.0.2:1053", "first.test", dns.TypeA)
	must(t, a, "tcp", "10.231.0.2:5353", "second.test", dns.TypeA)
	r.find("first.test", record.RoleClient)
	r.find("second.test", record.RoleServer)
	if n := len(r.named("not.test", record.RoleClient)); n != 0 {
		t.Errorf("port 53 is told of %d times", n)
	}
}

// TestRingFull: messages without room in the ring are counted, and a query that waited
// meanwhile is not said to have had no answer.
func TestRingFull(t *testing.T) {
	a, b := probetest.Joined(t)
	serve(t, b, "10.231.0.2:53")
	const ring = 64 << 10
	r := start(t, func(p *packet.Config, _ *Config) { p.DNSRingBytes = ring })
	// flood sends while the reader waits, and returns how many messages were read of
	// two for each payload, after the others have been counted.
	flood := func(n int, payload []byte) (read uint64) {
		before, lost := r.Counts(), r.losses.Get(loss.DNSRingFull)
		r.Probe.mu.Lock()
		dialed(t, a, "udp", "10.231.0.2:53", func(c net.Conn) error {
			for range n {
				_, _ = c.Write(payload)
				time.Sleep(time.Millisecond) // so that the server has them all
			}
			return nil
		})
		r.Probe.mu.Unlock()
		var counted uint64
		r.until("all are read or counted as lost", func() bool {
			c := r.Counts()
			read = c.Queries + c.Malformed - before.Queries - before.Malformed
			counted = read + r.losses.Get(loss.DNSRingFull) - lost
			return counted >= uint64(2*n)
		})
		if counted != uint64(2*n) {
			t.Errorf("%d messages are read or counted as lost, want %d", counted, 2*n)
		}
		if r.losses.Get(loss.DNSRingFull) == lost {
			t.Errorf("none of %d messages is lost", 2*n)
		}
		return read
	}
	flood(200, queryOf("dead.test", dns.TypeA))
	for _, role := range []record.Role{record.RoleClient, record.RoleServer} {
		if x := r.find("dead.test", role); x.Outcome != dns.Unread {
			t.Errorf("%+v", x)
		}
	}
	// A message of 600 bytes takes no more room than one of 800. The reader has one.
	if got, want := flood(100, make([]byte, 600)), uint64(ring/(8+88+800)); got < want || got > want+1 {
		t.Errorf("the ring has room for %d messages of 600 bytes, want %d", got, want)
	}
	t.Log("orb8-feature: DNS messages without room in the ring are counted: works")
}

func TestNotWithoutPackets(t *testing.T) {
	p := New(Config{
		Messages: func() (*ebpf.Map, func() (uint64, error)) { return nil, nil }, Submit: func(*dns.Record) {}, Losses: new(loss.Counters), Clock: probe.NewClock(),
	})
	err := p.Start()
	if u, ok := errors.AsType[*probe.Unsupported](err); !ok || u.Remedy == "" {
		t.Errorf("Start: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
