// SPDX-License-Identifier: Apache-2.0

//go:build linux

package packet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// Bytes of the headers before a UDP datagram's payload.
const (
	udp4 = 20 + 8
	udp6 = 40 + 8
)

func both(packets, bytes uint64) flow.Counters {
	return flow.Counters{TxBytes: bytes, TxPackets: packets, RxBytes: bytes, RxPackets: packets}
}

// anyEnd is an end that is not looked at.
var anyEnd netip.AddrPort

func TestStart(t *testing.T) {
	r := start(t, nil)
	t.Logf("hooks %v, degraded %q", r.Hooks(), r.Degraded())
	if len(r.Degraded()) == 0 {
		t.Log("orb8-feature: packet probe: works")
	} else {
		t.Logf("orb8-feature: packet probe: fallback: %s", strings.Join(r.Degraded(), "; "))
	}
}

func TestUDP(t *testing.T) {
	r := start(t, nil)
	own := ownCgroup(t)
	for _, c := range []struct {
		addr    string
		headers uint64
	}{{"127.0.0.1:0", udp4}, {"[::1]:0", udp6}} {
		for _, connected := range []bool{true, false} {
			name := map[bool]string{true: "connected", false: "unconnected"}[connected]
			t.Run(c.addr+" "+name, func(t *testing.T) {
				r.t = t
				server := echoServer(t, c.addr)
				sizes := []int{0, 1, 100, 1472, 9000, 60000}
				client := udpClient(t, server, connected, sizes...)
				r.collect()
				n := uint64(len(sizes))
				want := both(n, n*c.headers+0+1+100+1472+9000+60000)
				for end, f := range map[record.Role]*seen{
					record.RoleClient: r.find(record.UDP, client, server, own),
					record.RoleServer: r.find(record.UDP, server, client, own),
				} {
					f.want(t, fmt.Sprint("role ", end), want)
					if f.Role != end || f.Unit != flow.BytesIP || !f.Loopback || f.TCP.Valid || f.ICMPRole != record.RoleUnknown {
						t.Errorf("%+v, want role %v", f.Sample, end)
					}
					if f.First > f.Last || time.Since(time.Unix(0, f.First)).Abs() > time.Minute {
						t.Errorf("first %d, last %d", f.First, f.Last)
					}
				}
			})
		}
	}
	if !t.Failed() {
		t.Log("orb8-feature: UDP flows: works")
	}
}

func udpClient(t *testing.T, server netip.AddrPort, connected bool, sizes ...int) netip.AddrPort {
	t.Helper()
	var c *net.UDPConn
	var err error
	if connected {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	} else {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: server.Addr().AsSlice()})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := exchange(c, server, connected, sizes...); err != nil {
		t.Fatal(err)
	}
	return addrPort(c.LocalAddr())
}

// A socket that speaks both versions shows IPv4 as IPv4.
func TestUDPMapped(t *testing.T) {
	r := start(t, nil)
	server := echoServer(t, "127.0.0.1:0")
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: server.Addr().As16(), Port: int(server.Port())}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(fd, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	r.collect()
	client := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet6).Port))
	f := r.find(record.UDP, client, server, ownCgroup(t))
	f.want(t, "client", both(1, udp4+10))
	if got := f.Key.Remote.IP(); !got.Is4() {
		t.Errorf("remote %v, want IPv4", got)
	}
}

func TestProcess(t *testing.T) {
	server := echoServer(t, "127.0.0.1:0") // older than the probe
	r := start(t, nil)
	dir, id := probetest.NewCgroup(t)
	c := probetest.NewChild(t, dir, nil)
	client := c.Addr("exchange 3 100 %v", server)
	r.collect()
	f := r.find(record.UDP, client, server, id)
	f.want(t, "client", both(3, 3*(udp4+100)))
	t.Log("orb8-feature: UDP flows by cgroup: works")
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	old := r.find(record.UDP, server, client, ownCgroup(t))
	for _, d := range r.Degraded() {
		switch {
		case strings.Contains(d, "sock_create"):
			t.Logf("orb8-feature: process of a UDP flow: off: %s", d)
			return
		case strings.Contains(d, "task_file"):
			t.Logf("orb8-feature: process of a UDP socket older than orb8: off: %s", d)
			old = nil
		}
	}
	if f.PID != c.PID() || f.Comm.String() != strings.TrimSpace(string(comm)) {
		t.Errorf("process %d %q, want %d %q", f.PID, f.Comm, c.PID(), comm)
	}
	t.Log("orb8-feature: process of a UDP flow: works")
	if old == nil {
		return
	}
	if old.PID != uint32(os.Getpid()) || old.Comm == (record.Comm{}) {
		t.Errorf("process of the older socket: %d %q, want %d", old.PID, old.Comm, os.Getpid())
	}
	t.Log("orb8-feature: process of a UDP socket older than orb8: works")
}

// Every raw socket gets a copy of every answer, but each ping shows its own only.
func TestPingsAtOnce(t *testing.T) {
	r := start(t, nil)
	dir, id := probetest.NewCgroup(t)
	addr := lonely(79).String()
	var wg sync.WaitGroup
	for range 3 {
		cmd := probetest.Command(t, "ping", "-c", "3", "-i", "0.2", addr)
		probetest.InCgroup(t, cmd, dir)
		wg.Go(func() {
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("ping: %v: %s", err, out)
			}
		})
	}
	wg.Wait()
	r.collect()
	pings := 0
	for k, f := range r.got {
		// Until ping has set its filter it may get another's request as well.
		if k.CgroupID != id || k.Protocol != record.ICMP || k.ICMPRole != record.RoleClient {
			continue
		}
		pings++
		f.want(t, "ping", both(3, 3*(20+8+56)))
	}
	if pings != 3 {
		t.Errorf("%d flows, want one for each of 3 pings", pings)
	}
}

func TestPing(t *testing.T) {
	r := start(t, nil)
	root := probetest.CgroupID(t, probetest.CgroupRoot(t))
	for _, c := range []struct {
		to, from string
		proto    record.Protocol
		bytes    uint64
		kind     uint16
		exact    bool // nobody else pings this address
	}{
		{"127.0.0.1", "127.0.0.1", record.ICMP, 20 + 8 + 56, 8 << 8, false},
		{lonely(77).String(), "127.0.0.1", record.ICMP, 20 + 8 + 56, 8 << 8, true},
		{"::1", "::1", record.ICMPv6, 40 + 8 + 56, 128 << 8, false},
	} {
		t.Run(c.to, func(t *testing.T) {
			r.t = t
			dir, id := probetest.NewCgroup(t)
			cmd := probetest.Command(t, "ping", "-c", "5", "-i", "0.2", c.to)
			probetest.InCgroup(t, cmd, dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Skipf("ping: %v: %s", err, out)
			}
			r.collect()
			from, to := netip.AddrPortFrom(netip.MustParseAddr(c.from), 0), netip.AddrPortFrom(netip.MustParseAddr(c.to), 0)
			client := r.find(c.proto, from, to, id)
			client.want(t, "client", both(5, 5*c.bytes))
			if client.Role != record.RoleClient || client.ICMPRole != record.RoleClient || client.ICMP != c.kind || !client.Loopback {
				t.Errorf("client: %+v", client.Sample)
			}
			// The kernel's answers belong to no process.
			answers := r.got[flow.Key{
				Local: client.Remote, Remote: client.Local, Protocol: c.proto, ICMP: c.kind,
				ICMPRole: record.RoleServer, EchoID: client.EchoID, CgroupID: root,
			}]
			if answers == nil || answers.Role != record.RoleServer || answers.PID != 0 {
				t.Fatalf("the kernel's answers: %+v", answers)
			}
			want := flow.Counters{TxPackets: 5, TxBytes: 5 * c.bytes}
			if c.exact && answers.sum != want || answers.sum.TxPackets < 5 {
				t.Errorf("the kernel's answers: %+v, want %+v", answers.sum, want)
			}
			t.Logf("orb8-feature: %s echo: works", c.proto)
		})
	}
}

// lonely is a loopback address that no other process uses.
func lonely(net byte) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, net + byte(pid>>16), byte(pid >> 8), byte(pid)})
}

// A port that nobody listens on: the kernel's answer is a flow of its own.
func TestUnreachable(t *testing.T) {
	r := start(t, nil)
	local := lonely(66)
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: local.AsSlice(), Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("read: %v, want connection refused", err)
	}
	r.collect()
	f := r.find(record.UDP, addrPort(c.LocalAddr()), addrPort(c.RemoteAddr()), ownCgroup(t))
	f.want(t, "datagram", flow.Counters{TxPackets: 1, TxBytes: udp4 + 100})
	answer := r.find(record.ICMP, netip.AddrPortFrom(local, 0), anyEnd, probetest.CgroupID(t, probetest.CgroupRoot(t)))
	answer.want(t, "answer", flow.Counters{TxPackets: 1, TxBytes: 20 + 8 + udp4 + 100})
	if answer.ICMP != 3<<8|3 || answer.ICMPRole != record.RoleUnknown {
		t.Errorf("answer: %+v", answer.Sample)
	}
}

func TestTwoNamespaces(t *testing.T) {
	r := start(t, nil)
	dirA, idA := probetest.NewCgroup(t)
	dirB, idB := probetest.NewCgroup(t)
	left, right := probetest.Joined(t)
	a, b := probetest.NewChild(t, dirA, left), probetest.NewChild(t, dirB, right)
	server := b.Addr("echo 10.231.0.2:0")
	client := a.Addr("exchange 4 1000 %v", server)
	r.collect()
	for _, e := range []struct {
		f    *seen
		role record.Role
	}{{r.find(record.UDP, client, server, idA), record.RoleClient}, {r.find(record.UDP, server, client, idB), record.RoleServer}} {
		e.f.want(t, fmt.Sprint("role ", e.role), both(4, 4*(udp4+1000)))
		if e.f.Role != e.role || e.f.Loopback {
			t.Errorf("%+v, want role %d", e.f.Sample, e.role)
		}
	}
	// Either end is seen once, and by nobody in between.
	for k, f := range r.got {
		if k.Protocol == record.UDP && (k.LocalPort == client.Port() || k.RemotePort == client.Port()) && k.CgroupID != idA && k.CgroupID != idB {
			t.Errorf("a third view of the flow: %+v", f.Sample)
		}
	}
	t.Log("orb8-feature: UDP between network namespaces: works")
}

// setOption sets a socket option that takes bytes.
func setOption(t *testing.T, c *net.UDPConn, level, option int, value []byte) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptString(int(fd), level, option, string(value)) }); err != nil {
		t.Fatal(err)
	}
	if set != nil {
		t.Skipf("socket option %d/%d: %v", level, option, set)
	}
}

func setInt(t *testing.T, c *net.UDPConn, level, option, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, option, value) }); err != nil {
		t.Fatal(err)
	}
	if set != nil {
		t.Skipf("socket option %d/%d: %v", level, option, set)
	}
}

func TestHeaders(t *testing.T) {
	r := start(t, nil)
	own := ownCgroup(t)
	padding := []byte{0, 0, 1, 4, 0, 0, 0, 0} // an IPv6 options header with 4 bytes of padding
	type option struct {
		level, option int
		value         []byte
	}
	dst := func(v []byte) option { return option{unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, v} }
	hop := func(v []byte) option { return option{unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, v} }
	for name, c := range map[string]struct {
		addr    string
		headers uint64
		options []option
	}{
		"IPv4 options":             {"127.0.0.1:0", udp4 + 8, []option{{unix.IPPROTO_IP, unix.IP_OPTIONS, []byte{1, 1, 1, 1, 1, 1, 1, 0}}}},
		"IPv4, as many as can be":  {"127.0.0.1:0", udp4 + 40, []option{{unix.IPPROTO_IP, unix.IP_OPTIONS, append(make([]byte, 0, 40), []byte(strings.Repeat("\x01", 39)+"\x00")...)}}},
		"IPv6 destination options": {"[::1]:0", udp6 + 8, []option{dst(padding)}},
		"IPv6 hop-by-hop options":  {"[::1]:0", udp6 + 8, []option{hop(padding)}},
		"IPv6, two headers":        {"[::1]:0", udp6 + 16, []option{hop(padding), dst(padding)}},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			server := echoServer(t, c.addr)
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, o := range c.options {
				setOption(t, conn, o.level, o.option, o.value)
			}
			if err := exchange(conn, server, true, 10, 20); err != nil {
				t.Fatal(err)
			}
			r.collect()
			plain := uint64(udp4)
			if server.Addr().Is6() {
				plain = udp6
			}
			client := addrPort(conn.LocalAddr())
			there, back := 2*c.headers+30, 2*plain+30
			r.find(record.UDP, client, server, own).want(t, "client", flow.Counters{TxPackets: 2, TxBytes: there, RxPackets: 2, RxBytes: back})
			r.find(record.UDP, server, client, own).want(t, "server", flow.Counters{TxPackets: 2, TxBytes: back, RxPackets: 2, RxBytes: there})
			family, _, _ := strings.Cut(strings.ReplaceAll(name, ",", ""), " ")
			t.Logf("orb8-feature: %s with extra headers: works", family)
		})
	}
}

// A datagram larger than the device's packets passes once, before it is cut and
// after it has been put together: one packet, with one header.
func TestFragments(t *testing.T) {
	r := start(t, nil)
	dir, id := probetest.NewCgroup(t)
	netns := probetest.NewNetns(t)
	netns.Run(t, "ip", "link", "set", "lo", "mtu", "1500")
	c := probetest.NewChild(t, dir, netns)
	for _, f := range []struct {
		addr    string
		headers uint64
	}{{"127.0.0.1:0", udp4}, {"[::1]:0", udp6}} {
		t.Run(f.addr, func(t *testing.T) {
			r.t = t
			bound, err := c.Try("echo %s", f.addr)
			if err != nil {
				t.Skip(err)
			}
			server := netip.MustParseAddrPort(bound)
			client := c.Addr("exchange 2 20000 %v", server)
			r.collect()
			want := both(2, 2*(f.headers+20000))
			r.find(record.UDP, client, server, id).want(t, "client", want)
			r.find(record.UDP, server, client, id).want(t, "server", want)
			t.Log("orb8-feature: fragmented UDP: works: counted as one packet")
		})
	}
}

func TestSegmentationOffload(t *testing.T) {
	const (
		udpSegment = 103
		udpGRO     = 104
		size       = 500
		payload    = 2600 // five segments and a short one
	)
	r := start(t, nil)
	own := ownCgroup(t)
	for _, c := range []struct {
		addr    string
		headers uint64
		gro     bool
	}{{"127.0.0.1:0", udp4, false}, {"127.0.0.1:0", udp4, true}, {"[::1]:0", udp6, false}, {"[::1]:0", udp6, true}} {
		t.Run(fmt.Sprintf("%s gro=%v", c.addr, c.gro), func(t *testing.T) {
			r.t = t
			addr, err := net.ResolveUDPAddr("udp", c.addr)
			if err != nil {
				t.Fatal(err)
			}
			server, err := net.ListenUDP("udp", addr)
			if err != nil {
				t.Skip(err)
			}
			defer server.Close()
			if c.gro {
				setInt(t, server, unix.SOL_UDP, udpGRO, 1)
			}
			client, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			setInt(t, client, unix.SOL_UDP, udpSegment, size)
			if _, err := client.Write(make([]byte, payload)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1<<16)
			_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
			for have := 0; have < payload; {
				n, err := server.Read(buf)
				if err != nil {
					t.Fatalf("after %d bytes: %v", have, err)
				}
				have += n
			}
			r.collect()
			from, to := addrPort(client.LocalAddr()), addrPort(server.LocalAddr())
			bytes := payload + 6*c.headers
			r.find(record.UDP, from, to, own).want(t, "sender", flow.Counters{TxPackets: 6, TxBytes: bytes})
			r.find(record.UDP, to, from, own).want(t, "receiver", flow.Counters{RxPackets: 6, RxBytes: bytes})
			t.Log("orb8-feature: UDP segmentation offload: works")
		})
	}
}

// The host sends the datagrams elsewhere, or in another name; a connected
// socket does not know of it.
func TestTranslated(t *testing.T) {
	r := start(t, nil)
	for name, c := range map[string]struct {
		chain, rule string
		to          string // what the client connects to, empty for the server itself
	}{
		"destination": {"output priority -100", "ip daddr 10.88.0.1 udp dport 53 dnat to %v", "10.88.0.1:53"},
		"source":      {"postrouting priority 100", "udp dport %d snat to 10.88.0.1:999", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			dir, id := probetest.NewCgroup(t)
			netns := probetest.NewNetns(t)
			netns.Run(t, "ip", "addr", "add", "10.88.0.1/32", "dev", "lo")
			p := probetest.NewChild(t, dir, netns)
			server := p.Addr("echo 127.0.0.1:0")
			to, value := server, any(server.Port())
			if c.to != "" {
				to, value = netip.MustParseAddrPort(c.to), server
			}
			for _, line := range []string{
				"add table ip orb8test",
				"add chain ip orb8test c { type nat hook " + c.chain + " ; }",
				"add rule ip orb8test c " + fmt.Sprintf(c.rule, value),
			} {
				netns.Need(t, "nft", line)
			}
			for _, how := range []string{"exchange", "unconnected"} {
				if how == "unconnected" && (c.to == "" || r.lacks(t, "sendmsg4", "UDP with translated destination, unconnected")) {
					continue // where the source is translated, such a socket does not know its own
				}
				client := p.Addr("%s 3 100 %v", how, to)
				r.collect()
				// One flow of the client, not one per direction.
				f := r.find(record.UDP, netip.AddrPortFrom(netip.Addr{}, client.Port()), anyEnd, id)
				f.want(t, "client", both(3, 3*(udp4+100)))
				if f != r.find(record.UDP, client, to, id) || f.Role != record.RoleClient {
					t.Errorf("%s: client: %+v, want %v -> %v", how, f.Sample, client, to)
				}
			}
			t.Logf("orb8-feature: UDP with translated %s: works", name)
		})
	}
}

// lacks tells whether an optional hook is not there, and notes the feature.
func (r *rig) lacks(t *testing.T, hook, feature string) bool {
	t.Helper()
	for _, d := range r.Degraded() {
		if strings.Contains(d, hook) {
			t.Logf("orb8-feature: %s: off: %s", feature, d)
			return true
		}
	}
	t.Logf("orb8-feature: %s: works", feature)
	return false
}

// A connected socket may send to others than its peer; what went to whom is told.
func TestConnectedSendsElsewhere(t *testing.T) {
	r, c := alone(t, func(*Config) {})
	if r.lacks(t, "sendmsg4", "datagrams of connected sockets to others") {
		t.Skip("SKIP: the kernel does not tell where datagrams go")
	}
	peer := c.Addr("echo 127.0.0.1:0")
	other := netip.MustParseAddrPort("127.0.0.2:2222")
	c.Do("many 1 10 %v", peer)
	c.Do("elsewhere 7 10 %v", other)
	for range 4 {
		c.Do("many 1 10 %v", peer)
	}
	r.collect()
	toPeer, toOther := flow.Counters{}, flow.Counters{}
	for k, f := range r.got {
		switch {
		case k.RemotePort == peer.Port():
			toPeer = toPeer.Add(f.sum)
		case k.RemotePort == other.Port():
			toOther = toOther.Add(f.sum)
		}
	}
	if want := (flow.Counters{TxBytes: 7 * (udp4 + 10), TxPackets: 7}); toPeer != both(5, 5*(udp4+10)) || toOther != want {
		t.Errorf("to the peer %+v, elsewhere %+v, want 5 each way and 7", toPeer, toOther)
	}
}

// Who was the client stays so after a pause in which the flow's entry goes, whoever
// sends next.
func TestRolesAfterSilence(t *testing.T) {
	r, c, goIdle := aging(t, func(*Config) {})
	server := c.Addr("echo 127.0.0.1:0")
	c.Do("many 1 10 %v", server)
	r.collect()
	goIdle(1)
	time.Sleep(time.Duration(retireMargin))
	r.collect()
	if n := r.entries(); n != 0 {
		t.Fatalf("%d entries after the pause", n)
	}
	goIdle(time.Hour)
	c.Do("push 10")
	r.collect()
	for k, f := range r.got {
		want := record.RoleClient
		if k.LocalPort == server.Port() {
			want = record.RoleUnknown // another client may have come to the server
		}
		if f.instances != 2 || f.Role != want {
			t.Errorf("%d -> %d: role %v in its instance %d, want %v", k.LocalPort, k.RemotePort, f.Role, f.instances, want)
		}
	}
}

func TestTCP(t *testing.T) {
	for _, on := range []bool{true, false} {
		t.Run(fmt.Sprintf("CountTCP=%v", on), func(t *testing.T) {
			r := start(t, func(c *Config) { c.CountTCP = func() bool { return on } })
			if r.CountsTCP() != on {
				t.Errorf("CountsTCP() = %v", r.CountsTCP())
			}
			const n = 200000
			client, server := tcpExchange(t, n)
			r.collect()
			if !on {
				for k := range r.got {
					if k.Protocol == record.TCP {
						t.Errorf("TCP counted: %+v", k)
					}
				}
				return
			}
			own := ownCgroup(t)
			c, s := r.find(record.TCP, client, server, own), r.find(record.TCP, server, client, own)
			for _, e := range []struct {
				name    string
				f       *seen
				role    record.Role
				payload uint64 // sent
			}{{"client", c, record.RoleClient, n}, {"server", s, record.RoleServer, n / 2}} {
				f, low := e.f, e.payload
				if f.Role != e.role || f.Unit != flow.BytesIP || f.TCP.Valid {
					t.Errorf("%s: %+v", e.name, f.Sample)
				}
				// Segments, handshake and acknowledgements with their headers. Packets
				// count, so that on a slow machine some payload may be sent twice.
				const again = 1 << 16
				if high := low + again + f.sum.TxPackets*112; f.sum.TxBytes < low+f.sum.TxPackets*40 || f.sum.TxBytes > high || f.sum.TxPackets < 4 {
					t.Errorf("%s sent %d bytes of payload: %+v", e.name, low, f.sum)
				}
			}
			// What one end sends the other receives, but for what comes after
			// a socket has gone.
			near := func(a, b uint64, by int64) bool { return int64(a-b) <= by && int64(b-a) <= by }
			if !near(c.sum.TxBytes, s.sum.RxBytes, 200) || !near(s.sum.TxBytes, c.sum.RxBytes, 200) ||
				!near(c.sum.TxPackets, s.sum.RxPackets, 3) || !near(s.sum.TxPackets, c.sum.RxPackets, 3) {
				t.Errorf("client %+v, server %+v", c.sum, s.sum)
			}
			t.Log("orb8-feature: TCP counted per packet: works")
		})
	}
}

// tcpExchange sends n bytes there and half of that back.
func tcpExchange(t *testing.T, n int) (client, server netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		s, err := l.Accept()
		if err == nil {
			_, err = io.CopyN(io.Discard, s, int64(n))
			if err == nil {
				_, err = s.Write(make([]byte, n/2))
			}
			_ = s.Close()
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, c); err != nil || got != int64(n/2) {
		t.Fatalf("%d bytes back: %v", got, err)
	}
	if err := testwait.Receive(t, "the end of the server", done); err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(l.Addr().String())
}

// alone runs the probe at a cgroup of one process, so that nothing else is
// counted.
func alone(t *testing.T, change func(*Config)) (*rig, *probetest.Child) {
	t.Helper()
	dir, _ := probetest.NewCgroup(t)
	r := start(t, func(c *Config) {
		c.CgroupRoot = dir
		change(c)
	})
	return r, probetest.NewChild(t, dir, probetest.NewNetns(t))
}

// sum is what all flows together had.
func (r *rig) sum() (all flow.Counters) {
	for _, f := range r.got {
		all = all.Add(f.sum)
	}
	return all
}

func TestMapFull(t *testing.T) {
	r, c := alone(t, func(c *Config) { c.MapEntries = 64 })
	server := c.Addr("echo 127.0.0.1:0")
	c.Do("many 500 10 %v", server)
	r.collect()
	// 500 questions and answers, each seen where it leaves and where it arrives.
	if all := r.sum(); all != both(1000, 1000*(udp4+10)) {
		t.Errorf("all: %+v", all)
	}
	if len(r.got) > 65 || len(r.got) < 32 {
		t.Errorf("%d flows", len(r.got))
	}
	r.checkSum(t, 1)
	if got := r.losses.Dropped(); got != 0 {
		t.Errorf("%d losses", got)
	}
	// What has a flow is counted in full.
	for k, f := range r.got {
		if f.sum.TxBytes != f.sum.TxPackets*(udp4+10) || f.sum.RxBytes != f.sum.RxPackets*(udp4+10) {
			t.Errorf("%d -> %d: %+v", k.LocalPort, k.RemotePort, f.sum)
		}
	}
	// The probe has made room at once, and goes on counting.
	if got := r.entries(); got > 32 {
		t.Errorf("%d entries left after the map was full, want half of 64", got)
	}
	c.Do("many 500 10 %v", server)
	r.collect()
	if all := r.sum(); all != both(2000, 2000*(udp4+10)) {
		t.Errorf("all: %+v", all)
	}
	r.checkSum(t, 1)
	t.Log("orb8-feature: packets without room in the map are in sums: works")
}

// checkSum checks that what had no room is n sums of the one cgroup, and said.
func (r *rig) checkSum(t *testing.T, n int) {
	t.Helper()
	var sums []flow.Key
	var in uint64
	for k, f := range r.got {
		if (k.Local == record.Addr{} && k.Remote == record.Addr{}) {
			sums = append(sums, k)
			in += f.sum.TxPackets + f.sum.RxPackets
		}
	}
	if len(sums) != n || sums[0].CgroupID == 0 || sums[0].Protocol != record.UDP {
		t.Errorf("sums %+v, want %d", sums, n)
	}
	if said := r.losses.Get(loss.PacketSummed); said != in || in == 0 {
		t.Errorf("%d packets in sums, %d said to be", in, said)
	}
}

// Where there is no room for sums either, packets are lost, and counted as that.
func TestSumsFull(t *testing.T) {
	r, c := alone(t, func(c *Config) { c.MapEntries, c.OtherEntries = 64, 1 })
	now, err := bootNow()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := bpfPacketFlow{StartNs: now, LastNs: now + uint64(time.Hour)}
	if err := r.drainer.kernel.others.Put(&bpfPacketKey{CgroupId: 1}, &elsewhere); err != nil {
		t.Fatal(err)
	}
	c.Do("many 500 10 %v", c.Addr("echo 127.0.0.1:0"))
	r.collect()
	lost, all := r.losses.Get(loss.PacketMapFull), r.sum()
	if got := all.TxPackets + all.RxPackets + lost; got != 2000 || lost == 0 || r.losses.Get(loss.PacketSummed) != 0 {
		t.Errorf("%d packets in flows and %d lost are %d, want 2000", all.TxPackets+all.RxPackets, lost, got)
	}
}

// Sums go when they are idle, and start anew.
func TestSumsAreTakenOut(t *testing.T) {
	r, c, goIdle := aging(t, func(c *Config) { c.MapEntries = 16 })
	server := c.Addr("echo 127.0.0.1:0")
	for round := range uint64(3) {
		c.Do("many 100 10 %v", server)
		r.collect()
		if all, want := r.sum(), 200*(round+1); all != both(want, want*(udp4+10)) {
			t.Errorf("round %d: %+v", round, all)
		}
		goIdle(1)
		time.Sleep(time.Duration(retireMargin))
		r.collect()
		var k bpfPacketKey
		var f bpfPacketFlow
		for all := r.drainer.kernel.others.Iterate(); all.Next(&k, &f); {
			t.Errorf("round %d: a sum is left: %+v %+v", round, k, f)
		}
		goIdle(time.Hour)
	}
	r.checkSum(t, 1)
	if got := r.losses.Dropped(); got != 0 {
		t.Errorf("%d losses", got)
	}
}

// A map that fills up between two readings is read in between.
func TestReadWhenFilling(t *testing.T) {
	r, c := alone(t, func(c *Config) { c.MapEntries = 1000 })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	server := c.Addr("echo 127.0.0.1:0")
	for range 10 { // 2,000 entries
		c.Do("many 100 10 %v", server)
		time.Sleep(lookEvery + 100*time.Millisecond)
	}
	cancel()
	if err := testwait.Receive(t, "the end of Run", done); err != nil {
		t.Error(err)
	}
	r.collect()
	if got := r.losses.Get(loss.PacketSummed); got != 0 {
		t.Errorf("%d packets had no room", got)
	}
	if all := r.sum(); all != both(2000, 2000*(udp4+10)) {
		t.Errorf("all: %+v", all)
	}
}

func TestBatchRetried(t *testing.T) {
	r, c := alone(t, func(c *Config) { c.Batch, c.MapEntries = 1, 1024 })
	server := c.Addr("echo 127.0.0.1:0")
	for round := uint64(1); round <= 2; round++ {
		c.Do("many 300 10 %v", server)
		r.collect()
		if len(r.got) != 600 {
			t.Fatalf("%d flows, want 600", len(r.got))
		}
		for k, f := range r.got {
			if f.sum != both(round, round*(udp4+10)) || f.instances != 1 {
				t.Errorf("%d -> %d: %+v, %d instances", k.LocalPort, k.RemotePort, f.sum, f.instances)
			}
		}
	}
	if r.losses.Get(loss.PacketBatchRetried) == 0 {
		t.Error("no batch was retried: 600 flows should collide in 1024 buckets")
	}
	if got := r.losses.Dropped(); got != 0 {
		t.Errorf("%d lost", got)
	}
	if got := r.Received(); got != 1200 {
		t.Errorf("received = %d, want 1200", got)
	}
}

func TestUnreadable(t *testing.T) {
	r, c := alone(t, func(*Config) {})
	c.Do("truncated 127.0.0.1")
	r.collect()
	if got := r.losses.Get(loss.PacketUnreadable); got != 1 {
		t.Errorf("unreadable = %d, want 1", got)
	}
	if len(r.got) != 0 {
		t.Errorf("flows: %v", r.got)
	}
}

func (r *rig) entries() int {
	r.t.Helper()
	return entriesOf(r.t, r.flows)
}

func entriesOf(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	var k bpfPacketKey
	var f bpfPacketFlow
	it := m.Iterate()
	for it.Next(&k, &f) {
		n++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestIdle(t *testing.T) {
	const idle = 300 * time.Millisecond
	r, c, goIdle := aging(t, func(*Config) {})
	table := flow.NewTable(flow.Config{
		MaxFlows: 100, IdleTimeout: idle, Losses: &r.losses,
	}, func(*flow.Record) {})
	inner := r.drainer.cfg.Apply
	r.drainer.cfg.Apply = func(s *flow.Sample) { inner(s); table.Apply(s) }
	server := c.Addr("echo 127.0.0.1:0")

	c.Do("many 2 10 %v", server)
	c.Do("many 2 10 %v", server)
	r.collect()
	if got := r.entries(); got != 4 {
		t.Fatalf("%d entries, want 4", got)
	}
	goIdle(idle)
	time.Sleep(idle)
	r.collect()
	if got := r.entries(); got != 0 || len(r.drainer.reported) != 0 {
		t.Fatalf("%d entries and %d memories after the idle time", got, len(r.drainer.reported))
	}
	table.Expire(time.Now())
	if table.Len() != 0 {
		t.Errorf("%d rows after the idle time", table.Len())
	}
	// The flows come back, one with traffic between read and delete.
	c.Do("many 2 10 %v", server)
	time.Sleep(idle)
	r.collect()
	c.Do("many 1 10 %v", server)
	r.collect()
	if all := r.sum(); all != both(14, 14*(udp4+10)) {
		t.Errorf("all differences: %+v, want 14 packets each way", all)
	}
	for k, f := range r.got {
		if f.instances < 2 {
			t.Errorf("%d -> %d: %d instances", k.LocalPort, k.RemotePort, f.instances)
		}
	}
	if got := r.losses.Dropped(); got != 0 {
		t.Errorf("%d lost", got)
	}
}

// aging is alone, with entries that do not grow old, however slow the machine is, until
// goIdle sets the idle time.
func aging(t *testing.T, change func(*Config)) (r *rig, c *probetest.Child, goIdle func(time.Duration)) {
	t.Helper()
	idle := time.Hour
	r, c = alone(t, func(c *Config) {
		c.Idle = func() time.Duration { return idle }
		change(c)
	})
	return r, c, func(d time.Duration) { idle = d }
}

// The idle time may change while the probe runs.
func TestIdleChanges(t *testing.T) {
	r, c, goIdle := aging(t, func(*Config) {})
	c.Do("many 2 10 %v", c.Addr("echo 127.0.0.1:0"))
	r.collect()
	if got := r.entries(); got != 4 {
		t.Fatalf("%d entries, want 4", got)
	}
	goIdle(1)
	time.Sleep(time.Duration(retireMargin))
	r.collect()
	if got := r.entries(); got != 0 {
		t.Errorf("%d entries after the shorter idle time", got)
	}
}

func TestPressure(t *testing.T) {
	r, c := alone(t, func(c *Config) { c.MapEntries = 64 })
	server := c.Addr("echo 127.0.0.1:0")
	c.Do("many 22 10 %v", server)
	r.collect()
	if got := r.entries(); got != 44 {
		t.Fatalf("%d entries, want 44: there is room for them", got)
	}
	c.Do("many 4 10 %v", server) // so that these four are not the longest idle
	c.Do("many 30 10 %v", server)
	time.Sleep(20 * time.Millisecond) // ages are as exact as the kernel's tick
	c.Do("many 4 10 %v", server)
	r.collect()
	if got := r.entries(); got != 32 {
		t.Errorf("%d entries under pressure, want 32", got)
	}
	c.Do("many 4 10 %v", server)
	r.collect()
	busy := 0
	for _, f := range r.got {
		if f.sum.TxPackets == 5 && f.instances == 1 {
			busy++
		}
	}
	if busy != 8 {
		t.Errorf("%d of the 8 busy flows kept their entry", busy)
	}
	c.Do("many 30 10 %v", server)
	r.collect()
	const n = 2 * (22 + 4 + 30 + 4 + 4 + 30)
	if all := r.sum(); all != both(n, n*(udp4+10)) {
		t.Errorf("all differences: %+v, want %d packets each way", all, n)
	}
	if got := r.losses.Dropped(); got != 0 {
		t.Errorf("%d lost", got)
	}
}

// Flows that pause for about as long as it takes until their entries are taken
// out, so that packets come at every point of that: nothing is lost, and nothing
// counted twice.
func TestNothingIsLostWhileDeleting(t *testing.T) {
	r, c := alone(t, func(c *Config) { c.Idle = func() time.Duration { return 1 } })
	server := c.Addr("echo 127.0.0.1:0")
	rounds := 200
	if testing.Short() {
		rounds = 40
	}
	late, passes := 0, 0
	settle := r.drainer.kernel.settle
	r.drainer.kernel.settle = func() error {
		err := settle()
		late += entriesOf(t, r.drainer.kernel.late)
		return err
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Try("pausing %d 20 10 %d %v", rounds, time.Duration(retireMargin).Microseconds(), server)
		done <- err
	}()
	for running := true; running; passes++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		r.collect()
	}
	n := uint64(2 * 20 * rounds)
	if all, want := r.sum(), both(n, n*(udp4+10)); all != want {
		t.Errorf("%+v, want %+v", all, want)
	}
	if got := r.losses.Dropped(); got != 0 {
		t.Errorf("%d lost", got)
	}
	t.Logf("%d passes, %d late entries", passes, late)
	if late == 0 {
		t.Error("no packet came while its entry was taken out")
	}
	t.Log("orb8-feature: deleting idle packet flows without losing a packet: works")
}

// What comes for flows whose entries are being taken out is theirs, and what does
// not fit is counted.
func TestLatePackets(t *testing.T) {
	r, c, goIdle := aging(t, func(*Config) {})
	server := c.Addr("echo 127.0.0.1:0")
	c.Do("many 4 10 %v", server)
	r.collect()
	goIdle(1)
	time.Sleep(time.Duration(retireMargin))
	settle, calls := r.drainer.kernel.settle, 0
	r.drainer.kernel.settle = func() error {
		if calls++; calls == 1 {
			// As the clocks have it, entries are retired by now.
			c.Do("many 4 10 %v", server)
		}
		return settle()
	}
	r.collect()
	if calls != 2 {
		t.Fatalf("waited %d times, want 2", calls)
	}
	for k, f := range r.got {
		if f.sum != both(2, 2*(udp4+10)) || f.instances != 1 || f.Total != f.sum {
			t.Errorf("%d -> %d: %+v of %+v, %d instances", k.LocalPort, k.RemotePort, f.sum, f.Total, f.instances)
		}
	}
	if n := r.entries() + entriesOf(t, r.drainer.kernel.late) + len(r.drainer.reported); n != 0 {
		t.Errorf("%d entries left", n)
	}
	c.Do("many 4 10 %v", server)
	r.collect()
	if all := r.sum(); all != both(24, 24*(udp4+10)) {
		t.Errorf("all: %+v", all)
	}
}

func TestLateMapFull(t *testing.T) {
	r, c, goIdle := aging(t, func(c *Config) { c.LateEntries = 4 })
	server := c.Addr("echo 127.0.0.1:0")
	c.Do("many 8 10 %v", server)
	r.collect()
	goIdle(1)
	time.Sleep(time.Duration(retireMargin))
	settle := r.drainer.kernel.settle
	once := sync.OnceFunc(func() { c.Do("many 8 10 %v", server) })
	r.drainer.kernel.settle = func() error { once(); return settle() }
	r.collect()
	r.drainer.kernel.settle = settle
	r.collect()
	if all := r.sum(); all != both(32, 32*(udp4+10)) {
		t.Errorf("all: %+v", all)
	}
	r.checkSum(t, 1)
	if got := r.losses.Dropped(); got != 0 {
		t.Errorf("%d losses", got)
	}
}

func TestNoCgroupMount(t *testing.T) {
	probetest.NeedRoot(t)
	for _, root := range []string{"", filepath.Join(t.TempDir(), "gone"), t.TempDir()} {
		p := New(Config{Losses: new(loss.Counters), CgroupRoot: root, Clock: probe.NewClock()})
		err := p.Start()
		if _, ok := errors.AsType[*probe.Unsupported](err); !ok {
			t.Errorf("root %q: %v, want an Unsupported", root, err)
		}
		if p.Core != nil || len(p.Hooks()) != 0 {
			t.Errorf("root %q: something was left: %v %v", root, p.Core, p.Hooks())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestRun(t *testing.T) {
	p := New(Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	cancel()
	if err := testwait.Receive(t, "the end of Run", done); err != nil || p.Name() != "packet" {
		t.Errorf("%s: %v", p.Name(), err)
	}
}

// Without privileges the probe says so, and leaves nothing behind.
func TestNotPrivileged(t *testing.T) {
	if os.Getenv("ORB8_PACKET_TEST_NOBODY") != "" {
		err := New(Config{Losses: new(loss.Counters), CgroupRoot: "/sys/fs/cgroup", Clock: probe.NewClock()}).Start()
		u, ok := errors.AsType[*probe.Unsupported](err)
		if !ok || !strings.Contains(u.Remedy, "root") {
			t.Errorf("%v, %+v, want an Unsupported that asks for root", err, u)
		}
		return
	}
	probetest.NeedRoot(t)
	// The binary is in a folder that others may not enter.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := probetest.Command(t, "/proc/self/fd/3", "-test.run=^TestNotPrivileged$")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "ORB8_PACKET_TEST_NOBODY=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as nobody: %v: %s", err, out)
	}
}
