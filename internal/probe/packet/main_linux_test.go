// SPDX-License-Identifier: Apache-2.0

//go:build linux

package packet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/workload"
)

func TestMain(m *testing.M) {
	var c commands
	if probetest.ServeChild(c.do) {
		return
	}
	goleak.VerifyTestMain(m)
}

// rig is a running probe with what it has reported.
type rig struct {
	*Probe
	t      *testing.T
	losses loss.Counters
	got    map[flow.Key]*seen
}

// seen is what was reported of one key.
type seen struct {
	flow.Sample               // the latest
	sum         flow.Counters // of all differences
	instances   int
}

// start runs a probe, or skips the test where the kernel does not take it.
func start(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, got: make(map[flow.Key]*seen)}
	cfg := Config{Apply: r.apply, Losses: &r.losses, Clock: probe.NewClock(), CgroupRoot: probetest.CgroupRoot(t)}
	if change != nil {
		change(&cfg)
	}
	r.Probe = New(cfg)
	probetest.Start(t, r, "packet probe: off")
	return r
}

func (r *rig) apply(s *flow.Sample) {
	f := r.got[s.Key]
	if f == nil {
		f = new(seen)
		r.got[s.Key] = f
	}
	if f.Instance != s.Instance {
		f.instances++
	}
	f.Sample = *s
	f.sum = f.sum.Add(s.Total.Sub(s.Base))
}

func (r *rig) collect() {
	r.t.Helper()
	if err := r.Collect(); err != nil {
		r.t.Fatal(err)
	}
}

// find returns the only flow with these ends; a zero port or address is any.
func (r *rig) find(p flow.Protocol, local, remote netip.AddrPort, cgroup uint64) *seen {
	r.t.Helper()
	var found []*seen
	for k, f := range r.got {
		if k.Protocol == p && k.CgroupID == cgroup && isEnd(local, k.Local, k.LocalPort) && isEnd(remote, k.Remote, k.RemotePort) {
			found = append(found, f)
		}
	}
	if len(found) != 1 {
		for k := range r.got {
			r.t.Logf("flow %v %v:%d %v:%d cgroup %d", k.Protocol, k.Local.IP(), k.LocalPort, k.Remote.IP(), k.RemotePort, k.CgroupID)
		}
		r.t.Fatalf("%d flows %v %v -> %v in cgroup %d, want 1", len(found), p, local, remote, cgroup)
	}
	return found[0]
}

func isEnd(want netip.AddrPort, a flow.Addr, port uint16) bool {
	return (!want.Addr().IsValid() || want.Addr().Unmap() == a.IP()) && (want.Port() == 0 || want.Port() == port)
}

func (f *seen) want(t *testing.T, what string, total flow.Counters) {
	t.Helper()
	if f.sum != total {
		t.Errorf("%s: %+v, want %+v", what, f.sum, total)
	}
}

// ownCgroup is the id of this process's cgroup.
func ownCgroup(t *testing.T) uint64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return probetest.CgroupID(t, filepath.Join(probetest.CgroupRoot(t), path))
		}
	}
	t.Fatal("this process is in no cgroup2 cgroup")
	return 0
}

// server is a UDP socket that sends everything back.
type server struct {
	*net.UDPConn
	wg sync.WaitGroup
}

func serveUDP(addr string) (*server, error) {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP("udp", a)
	if err != nil {
		return nil, err
	}
	s := &server{UDPConn: c}
	s.wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	return s, nil
}

func (s *server) stop() {
	_ = s.Close()
	s.wg.Wait()
}

func echoServer(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	s, err := serveUDP(addr)
	if err != nil {
		t.Skipf("no address %s here: %v", addr, err)
	}
	t.Cleanup(s.stop)
	return addrPort(s.LocalAddr())
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// exchange sends datagrams one at a time, each after the answer to the last.
func exchange(c *net.UDPConn, to netip.AddrPort, connected bool, sizes ...int) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for _, n := range sizes {
		var err error
		if connected {
			_, err = c.Write(buf[:n])
		} else {
			_, err = c.WriteToUDPAddrPort(buf[:n], to)
		}
		if err != nil {
			return err
		}
		if got, _, err := c.ReadFromUDPAddrPort(buf); err != nil || got != n {
			return fmt.Errorf("answer of %d bytes to %d: %w", got, n, err)
		}
	}
	return nil
}

// commands is what a child carries out.
type commands struct {
	clients []*net.UDPConn
}

func (c *commands) do(f []string) (string, error) {
	number := func(i int) int {
		n, _ := strconv.Atoi(f[i])
		return n
	}
	switch f[0] {
	case "echo":
		s, err := serveUDP(f[1])
		if err != nil {
			return "", err
		}
		return addrPort(s.LocalAddr()).String(), nil
	case "exchange": // COUNT SIZE ADDRESS
		return c.exchange(number(1), number(2), f[3])
	case "many": // SOCKETS SIZE ADDRESS
		return "", c.many(number(1), number(2), f[3])
	case "pausing": // ROUNDS SOCKETS SIZE MICROSECONDS ADDRESS
		for i := range number(1) {
			if err := c.many(number(2), number(3), f[5]); err != nil {
				return "", err
			}
			// From nothing to twice as long.
			time.Sleep(time.Duration(number(4)) * time.Microsecond * time.Duration(i%50) / 25)
		}
		return "", nil
	case "truncated": // ADDRESS
		return "", sendTruncated(netip.MustParseAddr(f[1]))
	}
	return "", fmt.Errorf("no command %q", f[0])
}

func (c *commands) exchange(count, size int, addr string) (string, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", err
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return "", err
	}
	sizes := make([]int, count)
	for i := range sizes {
		sizes[i] = size
	}
	return addrPort(conn.LocalAddr()).String(), exchange(conn, to, true, sizes...)
}

// many exchanges one datagram on each of n sockets, which stay open for the
// next time.
func (c *commands) many(n, size int, addr string) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	for i := range n {
		if i == len(c.clients) {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				return err
			}
			c.clients = append(c.clients, conn)
		}
		if err := exchange(c.clients[i], to, true, size); err != nil {
			return err
		}
	}
	return nil
}

// sendTruncated sends an IPv4 packet whose UDP header is cut off.
func sendTruncated(to netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := make([]byte, 22)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(p[12:], []byte{127, 0, 0, 1})
	dst := to.As4()
	copy(p[16:], dst[:])
	return unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: dst})
}

// nobody names no end of a flow.
type nobody struct{}

func (nobody) Local(uint64, uint32, string, netip.Addr) *workload.Identity {
	return new(workload.Identity)
}
func (nobody) Backs(_, _ *workload.Identity, _ netip.Addr, _ uint16, _ uint8) (backs, known bool) {
	return false, false
}

func (nobody) Remote(workload.Peer) *workload.Identity { return nil }
