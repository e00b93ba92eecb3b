// SPDX-License-Identifier: Apache-2.0

//go:build linux

package drop

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// Bytes of the headers before a UDP datagram's payload.
const (
	udp4 = 20 + 8
	udp6 = 40 + 8
)

func TestStart(t *testing.T) {
	r := start(t, nil)
	t.Logf("hooks %v, degraded %q", r.Hooks(), r.Degraded())
	if len(r.Degraded()) == 0 {
		feature(t, "drop probe: works")
	} else {
		feature(t, "drop probe: fallback: %s", strings.Join(r.Degraded(), "; "))
	}
	for _, f := range []struct {
		name string
		has  bool
	}{{"reasons of drops", r.kernel.reason}, {"socket of a drop on the way in", r.kernel.rxSock}} {
		if f.has {
			feature(t, "%s: works", f.name)
		} else {
			feature(t, "%s: off", f.name)
		}
	}
}

// fromTo holds for events of UDP packets between these ends, whichever is local.
func fromTo(src, dst netip.AddrPort) func(*event) bool {
	return func(e *event) bool {
		from, to := netip.AddrPortFrom(e.Local.IP(), e.LocalPort), netip.AddrPortFrom(e.Remote.IP(), e.RemotePort)
		if e.Ingress {
			from, to = to, from
		}
		return e.Protocol == flow.UDP && from == src && to == dst
	}
}

func (e *event) check(t *testing.T, r *rig, reason string, ingress bool, bytes uint32, cgroup uint64, netns uint32) {
	t.Helper()
	if e.Reason != reason || e.Ingress != ingress || e.Bytes != bytes || e.CgroupID != cgroup || e.NetNS != netns ||
		e.Role != flow.RoleUnknown || e.TCPFlags != 0 || e.First != e.Last || time.Since(time.Unix(0, e.Last)).Abs() > time.Minute {
		t.Errorf("%v, want %s ingress %v bytes %d cgroup %d netns %d", e, reason, ingress, bytes, cgroup, netns)
	}
	if e.Location == "" && r.symbols.readable() == nil {
		t.Errorf("%v: no location", e)
	}
}

func families(t *testing.T, test func(t *testing.T, v6 bool)) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) { test(t, v6) })
	}
}

func headers(v6 bool) uint32 {
	if v6 {
		return udp6
	}
	return udp4
}

func TestNoSocket(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	families(t, func(t *testing.T, v6 bool) {
		a, b := s.ends(v6)
		to := netip.AddrPortFrom(b, 9)
		from := s.pa.Addr("send 5 100 %v %v", netip.AddrPortFrom(a, 0), to)
		reason := r.reason("NO_SOCKET")
		r.counted(t, flow.DropCount{Reason: reason, Src: flow.AddrOf(a), Dst: flow.AddrOf(b), Ingress: true, Packets: 5})
		for _, e := range r.told(t, 5, fromTo(from, to)) {
			e.check(t, r, reason, true, headers(v6)+100, 0, s.b.Inum(t))
			if e.Ifindex != s.indexOfB || e.Loopback {
				t.Errorf("%v, want interface %d", e, s.indexOfB)
			}
		}
		feature(t, "drops for want of a socket: works")
	})
}

func TestLoopback(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	to := netip.AddrPortFrom(s.b4, 9) // to itself, by an address that looks like any other
	from := s.pb.Addr("send 3 10 %v %v", netip.AddrPortFrom(s.b4, 0), to)
	for _, e := range r.told(t, 3, fromTo(from, to)) {
		e.check(t, r, r.reason("NO_SOCKET"), true, udp4+10, 0, s.b.Inum(t))
		if !e.Loopback || e.Ifindex != 1 {
			t.Errorf("%v, want loopback", e)
		}
	}
}

// filter has nft drop UDP to port 9 at a hook.
func filter(t *testing.T, n *probetest.Netns, hook string) {
	t.Helper()
	for _, line := range []string{
		"add table inet orb8test",
		"add chain inet orb8test c { type filter hook " + hook + " priority 0 ; }",
		"add rule inet orb8test c udp dport 9 drop",
	} {
		n.Need(t, "nft", line)
	}
}

// What a host does not let out is its sender's.
func TestFilteredOutput(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	filter(t, s.a, "output")
	reason, total := r.reason("NETFILTER_DROP"), uint64(0)
	families(t, func(t *testing.T, v6 bool) {
		a, b := s.ends(v6)
		to := netip.AddrPortFrom(b, 9)
		from := s.pa.Addr("send 5 100 %v %v", netip.AddrPortFrom(a, 0), to)
		total += 5
		r.counted(t, flow.DropCount{Reason: reason, CgroupID: s.cgroupA, Packets: total})
		for _, e := range r.told(t, 5, fromTo(from, to)) {
			e.check(t, r, reason, false, headers(v6)+100, s.cgroupA, s.a.Inum(t))
		}
		feature(t, "drops by the sender's cgroup: works")
	})
}

// What a host does not let in is its receiver's, whose socket nobody has looked for.
func TestFilteredInput(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	filter(t, s.b, "input")
	reason := r.reason("NETFILTER_DROP")
	families(t, func(t *testing.T, v6 bool) {
		a, b := s.ends(v6)
		to := netip.AddrPortFrom(b, 9)
		s.pb.Do("bind %v 100000", to)
		from := s.pa.Addr("send 5 100 %v %v", netip.AddrPortFrom(a, 0), to)
		r.counted(t, flow.DropCount{Reason: reason, Src: flow.AddrOf(a), Dst: flow.AddrOf(b), Ingress: true, Packets: 5})
		for _, e := range r.told(t, 5, fromTo(from, to)) {
			e.check(t, r, reason, true, headers(v6)+100, 0, s.b.Inum(t))
		}
		feature(t, "drops by the receiver's address: works")
	})
}

// What a host does not pass on had not come to its receiver.
func TestFilteredForward(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	filter(t, s.b, "forward")
	s.b.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	reason := r.reason("NETFILTER_DROP")
	families(t, func(t *testing.T, v6 bool) {
		a, b := s.ends(v6)
		beyond := s.beyond4
		if v6 {
			beyond = s.beyond6
		}
		// Back to where it came from, which is as good as any.
		s.a.Run(t, "ip", "route", "add", beyond.String(), "via", b.String())
		s.b.Run(t, "ip", "route", "add", beyond.String(), "via", a.String())
		to := netip.AddrPortFrom(beyond, 9)
		from := s.pa.Addr("send 5 100 %v %v", netip.AddrPortFrom(a, 0), to)
		r.counted(t, flow.DropCount{Reason: reason, Src: flow.AddrOf(a), Dst: flow.AddrOf(beyond), Packets: 5})
		for _, e := range r.told(t, 5, fromTo(from, to)) {
			e.check(t, r, reason, false, headers(v6)+100, 0, s.b.Inum(t))
		}
		feature(t, "drops of what is passed on: works")
	})
}

// A connected socket is found before the filter: its packets are told from those that
// it sends.
func TestFilteredConnection(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	client, server := tcpPair(t, s.a, s.b, s.b4.String())
	defer client.Close()
	defer server.Close()
	port := server.LocalAddr().(*net.TCPAddr).Port
	for _, line := range []string{
		"add table inet orb8test",
		"add chain inet orb8test c { type filter hook input priority 0 ; }",
		"add rule inet orb8test c tcp dport " + strconv.Itoa(port) + " drop",
	} {
		s.b.Need(t, "nft", line)
	}
	if _, err := client.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	// It is sent again and again.
	at := func(e *event) bool { return e.Protocol == flow.TCP && int(e.LocalPort) == port }
	for deadline := time.Now().Add(5 * time.Second); len(r.of(at)) == 0 && time.Now().Before(deadline); {
		time.Sleep(probe.DrainEvery)
	}
	s.b.Run(t, "nft", "delete table inet orb8test")
	all := r.of(at)
	if len(all) == 0 {
		t.Errorf("no event; all:\n%s", list(r.of(func(*event) bool { return true })))
	}
	for _, e := range all {
		if !e.Ingress || e.Reason != r.reason("NETFILTER_DROP") || e.TCPFlags&0x10 == 0 || e.NetNS != s.b.Inum(t) {
			t.Errorf("%v", e)
		}
	}
}

func TestSocketBuffer(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	reason, total := r.reason("SOCKET_RCVBUFF"), uint64(0)
	families(t, func(t *testing.T, v6 bool) {
		a, b := s.ends(v6)
		to := s.pb.Addr("bind %v 1", netip.AddrPortFrom(b, 0))
		from := s.pa.Addr("send 100 1000 %v %v", netip.AddrPortFrom(a, 0), to)
		fit, err := strconv.Atoi(s.pb.Do("read"))
		if err != nil || fit == 0 || fit == 100 {
			t.Fatalf("%d of 100 datagrams read: %v", fit, err)
		}
		want, cgroup := flow.DropCount{Reason: reason, Src: flow.AddrOf(a), Dst: flow.AddrOf(b), Ingress: true, Packets: uint64(100 - fit)}, uint64(0)
		if r.kernel.rxSock {
			total += uint64(100 - fit)
			cgroup = s.cgroupB
			want = flow.DropCount{Reason: reason, CgroupID: cgroup, Packets: total}
		}
		r.counted(t, want)
		for _, e := range r.told(t, 100-fit, fromTo(from, to)) {
			e.check(t, r, reason, true, headers(v6)+1000, cgroup, s.b.Inum(t))
		}
		if r.kernel.rxSock {
			feature(t, "drops by the receiver's cgroup: works")
		} else {
			feature(t, "drops by the receiver's cgroup: fallback: by its address")
		}
	})
}

func TestChecksum(t *testing.T) {
	r := start(t, nil)
	n := probetest.NewNetns(t)
	p := byte(os.Getpid())
	us, peer := netip.AddrFrom4([4]byte{10, 12, p, 1}), netip.AddrFrom4([4]byte{10, 12, p, 2})
	tun := newTun(t, n, us)
	const size = udp4 + 12
	packet := make([]byte, size)
	src, dst := peer.As4(), us.As4()
	copy(packet, []byte{0x45, 0, 0, size, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0})
	copy(packet[12:], src[:])
	copy(packet[16:], dst[:])
	sum := checksum(packet[:20])
	packet[10], packet[11] = byte(sum>>8), byte(sum)
	copy(packet[20:], []byte{1, 0, 0, 9, 0, size - 20, 0xba, 0xd0})
	for range 3 {
		if _, err := tun.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	reason := r.reason("UDP_CSUM")
	r.counted(t, flow.DropCount{Reason: reason, Src: flow.AddrOf(peer), Dst: flow.AddrOf(us), Ingress: true, Packets: 3})
	for _, e := range r.told(t, 3, fromTo(netip.AddrPortFrom(peer, 256), netip.AddrPortFrom(us, 9))) {
		e.check(t, r, reason, true, size, 0, n.Inum(t))
	}
	feature(t, "drops for a bad checksum: works")
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// newTun makes a network device in a namespace; what is written is received there.
func newTun(t *testing.T, n *probetest.Netns, addr netip.Addr) *os.File {
	t.Helper()
	_ = exec.Command("modprobe", "tun").Run() // where it is no module it is there
	var tun *os.File
	var err error
	n.Do(func() {
		var fd int
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		tun = os.NewFile(uintptr(fd), "tun")
		var req *unix.Ifreq
		if req, err = unix.NewIfreq("t0"); err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
	})
	if tun != nil {
		t.Cleanup(func() { tun.Close() })
	}
	if err != nil {
		t.Skipf("SKIP: make a TUN device: %v", err)
	}
	n.Run(t, "ip", "addr", "add", addr.String()+"/24", "dev", "t0")
	n.Run(t, "ip", "link", "set", "t0", "up")
	return tun
}

// A packet whose sender is not where it comes from.
func TestReversePath(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	s.b.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter")
	to := netip.AddrPortFrom(s.b4, 9)
	from := s.pa.Addr("send 4 100 %v %v", netip.AddrPortFrom(s.elsewhere4, 0), to)
	reason := r.reason("IP_RPFILTER")
	r.counted(t, flow.DropCount{Reason: reason, Src: flow.AddrOf(s.elsewhere4), Dst: flow.AddrOf(s.b4), Ingress: true, Packets: 4})
	for _, e := range r.told(t, 4, fromTo(from, to)) {
		e.check(t, r, reason, true, udp4+100, 0, s.b.Inum(t))
	}
	feature(t, "drops of a forged sender: works")
}

// The ports are behind the extension headers.
func TestExtensionHeaders(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	var c *net.UDPConn
	var err error
	s.a.Do(func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.a6, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	padding := string([]byte{0, 0, 1, 4, 0, 0, 0, 0})
	if cerr := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, padding),
			unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, padding))
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	to := netip.AddrPortFrom(s.b6, 9)
	if _, err := c.WriteToUDPAddrPort(make([]byte, 10), to); err != nil {
		t.Fatal(err)
	}
	from := netip.AddrPortFrom(s.a6, c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	for _, e := range r.told(t, 1, fromTo(from, to)) {
		e.check(t, r, r.reason("NO_SOCKET"), true, udp6+16+10, 0, s.b.Inum(t))
	}
}

// What the kernel says of connections that a server does not take in time differs
// from kernel to kernel. Of a SYN that comes when the queue is full none says anything;
// so the last acknowledgements of six handshakes are held back until the queue is short.
// A kernel that has a reason for these must give it.
func TestListenOverflow(t *testing.T) {
	r := start(t, nil)
	s := newSite(t)
	var l, fd, port int
	var err error
	s.b.Do(func() { l, port, err = listen(s.b4, 8) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	for _, line := range []string{
		"add table inet orb8test",
		"add chain inet orb8test c { type filter hook output priority 0 ; }",
		"add rule inet orb8test c tcp dport " + strconv.Itoa(port) + " tcp flags & (syn|ack) == ack drop",
	} {
		s.a.Need(t, "nft", line)
	}
	for range 6 {
		s.a.Do(func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: s.b4.As4(), Port: port}); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	if err := unix.Listen(l, 1); err != nil {
		t.Fatal(err)
	}
	s.a.Run(t, "nft", "delete table inet orb8test")
	time.Sleep(2500 * time.Millisecond)
	r.collect(t)
	all := r.of(func(e *event) bool { return e.Protocol == flow.TCP && int(e.LocalPort) == port && e.Local.IP() == s.b4 })
	for _, e := range all {
		if !e.Ingress || e.Remote.IP() != s.a4 {
			t.Errorf("%v", e)
		}
	}
	const full = "TCP_LISTEN_OVERFLOW"
	named := func(e event) bool { return e.Reason == full }
	switch {
	case r.has(full) && !slices.ContainsFunc(all, named):
		t.Errorf("%d drops, none for the reason that this kernel has for it: %v", len(all), all)
	case len(all) == 0:
		feature(t, "drops of a listener that is full: off: the kernel does not tell of them")
	case named(all[0]):
		feature(t, "drops of a listener that is full: works: %s at %s", all[0].Reason, all[0].Location)
	default:
		feature(t, "drops of a listener that is full: fallback: %s at %s", all[0].Reason, all[0].Location)
	}
}

func listen(addr netip.Addr, backlog int) (fd, port int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()}); err != nil {
		return fd, 0, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, err
	}
	return fd, sa.(*unix.SockaddrInet4).Port, unix.Listen(fd, backlog)
}

func TestPartOfTheCgroups(t *testing.T) {
	s := newSite(t)
	r := start(t, func(c *Config) { c.CgroupID = s.cgroupA })
	filter(t, s.a, "output")
	filter(t, s.b, "output")
	s.pa.Do("send 3 10 %v %v", netip.AddrPortFrom(s.a4, 0), netip.AddrPortFrom(s.b4, 9))
	s.pb.Do("send 3 10 %v %v", netip.AddrPortFrom(s.b4, 0), netip.AddrPortFrom(s.a4, 9))
	s.pa.Do("send 3 10 %v %v", netip.AddrPortFrom(s.a4, 0), netip.AddrPortFrom(s.b4, 8)) // no socket is known
	r.counted(t, flow.DropCount{Reason: r.reason("NETFILTER_DROP"), CgroupID: s.cgroupA, Packets: 3})
	r.counted(t, flow.DropCount{Reason: r.reason("NO_SOCKET"), Src: flow.AddrOf(s.a4), Dst: flow.AddrOf(s.b4), Ingress: true, Packets: 3})
	if n := r.sum(func(c *flow.DropCount) bool { return c.CgroupID != 0 && c.CgroupID != s.cgroupA }); n != 0 {
		t.Errorf("%d packets of other cgroups", n)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	r := load(t, nil)
	if len(r.Hooks()) != 1 || r.Name() != "drop" {
		t.Errorf("%s: hooks %v", r.Name(), r.Hooks())
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if len(r.Hooks()) != 0 || r.Open() != 0 {
		t.Errorf("hooks %v after Close", r.Hooks())
	}
	if err := r.Collect(); err == nil {
		t.Error("the maps are there after Close")
	}
}

// Without privileges the probe says so, and leaves nothing behind.
func TestNotPrivileged(t *testing.T) {
	probetest.AsNobody(t, func() {
		err := New(Config{Losses: new(loss.Counters), Clock: probe.NewClock()}).Start()
		u, ok := errors.AsType[*probe.Unsupported](err)
		if !ok || !strings.Contains(u.Remedy, "root") {
			t.Errorf("%v, %+v, want an Unsupported that asks for root", err, u)
		}
	})
}
