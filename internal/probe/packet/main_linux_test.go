// SPDX-License-Identifier: Apache-2.0

//go:build linux

package packet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
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
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

func TestMain(m *testing.M) {
	if probetest.ServeChild(new(commands).do) {
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
func (r *rig) find(p record.Protocol, local, remote netip.AddrPort, cgroup uint64) *seen {
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

func isEnd(want netip.AddrPort, a record.Addr, port uint16) bool {
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

// commands are what a child does.
type commands struct {
	clients []*net.UDPConn
	server  *server
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
		c.server = s
		return addrPort(s.LocalAddr()).String(), nil
	case "exchange": // COUNT SIZE ADDRESS
		return c.exchange(number(1), number(2), f[3])
	case "unconnected": // COUNT SIZE ADDRESS
		return c.unconnected(number(1), number(2), f[3])
	case "elsewhere": // COUNT SIZE ADDRESS, by the first of many's sockets
		return "", exchangeOneWay(c.clients[0], number(1), number(2), f[3])
	case "push": // SIZE ADDRESS: by the server, to a client of many's, which takes it
		return "", c.push(number(1))
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
	var conn *net.UDPConn
	onNamedThread(func() { conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) })
	if err != nil {
		return "", err
	}
	sizes := make([]int, count)
	for i := range sizes {
		sizes[i] = size
	}
	return addrPort(conn.LocalAddr()).String(), exchange(conn, to, true, sizes...)
}

// unconnected is exchange with a socket that has no peer.
func (c *commands) unconnected(count, size int, addr string) (string, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", err
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", err
	}
	c.clients = append(c.clients, conn)
	sizes := make([]int, count)
	for i := range sizes {
		sizes[i] = size
	}
	return addrPort(conn.LocalAddr()).String(), exchange(conn, to, false, sizes...)
}

// exchangeOneWay sends datagrams to an address, whatever peer the socket has.
func exchangeOneWay(c *net.UDPConn, count, size int, addr string) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for range count {
		var sent error
		err := raw.Control(func(fd uintptr) {
			sent = unix.Sendto(int(fd), make([]byte, size), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		})
		if err := errors.Join(err, sent); err != nil {
			return err
		}
	}
	return nil
}

// push has the server send to each client, which takes it.
func (c *commands) push(size int) error {
	for _, client := range c.clients {
		to := addrPort(client.LocalAddr())
		if _, err := c.server.WriteToUDPAddrPort(make([]byte, size), to); err != nil {
			return err
		}
		if err := client.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
			return err
		}
		if n, _, err := client.ReadFromUDPAddrPort(make([]byte, 1<<16)); err != nil || n != size {
			return fmt.Errorf("%d bytes came: %w", n, err)
		}
	}
	return nil
}

// onNamedThread calls f on a thread with a name of its own, which is not the process's
// first.
func onNamedThread(f func()) {
	for done := false; !done; {
		end := make(chan struct{})
		go func() {
			defer close(end)
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if unix.Gettid() == os.Getpid() {
				return
			}
			_ = os.WriteFile(fmt.Sprintf("/proc/self/task/%d/comm", unix.Gettid()), []byte("a-thread"), 0)
			f()
			done = true
		}()
		<-end
	}
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
