// SPDX-License-Identifier: Apache-2.0

//go:build linux

package drop

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

type run func(t *testing.T, from, to *probetest.Netns, addr string)

const keepalive = "TCP with keepalive"

// traffic is what programs do all day.
func traffic() map[string]run {
	return map[string]run{
		"TCP, the client closes first": tcpTraffic(true, 100_000),
		"TCP, the server closes first": tcpTraffic(false, 100_000),
		keepalive:                      tcpKeepalive,
		"TCP, closed with data unread": tcpUnread,
		"TCP, reset":                   tcpReset,
		"TCP, accepted with data":      tcpDeferred,
		"UDP":                          udpTraffic,
		"UDP, closed with data unread": udpUnread,
		"ping": func(t *testing.T, from, _ *probetest.Netns, addr string) {
			from.Need(t, "ping", "-c", "3", "-i", "0.2", addr)
		},
	}
}

// What programs do all day is no loss, although the kernel ends some of its packets
// in the same way.
func TestOrdinaryTraffic(t *testing.T) {
	r := start(t, nil)
	for name, do := range traffic() {
		t.Run(name, func(t *testing.T) {
			// A machine that stands still for a while sends what was not lost again; the
			// copy may come to a socket that is gone, which is a drop indeed.
			for attempt := 1; ; attempt++ {
				dropped, again := droppedOf(t, r, name, do)
				if dropped == "" {
					return
				}
				if again == 0 || attempt == 5 {
					t.Fatalf("%d segments were sent again: %s", again, dropped)
				}
				t.Logf("attempt %d: %d segments were sent again: %s", attempt, again, dropped)
			}
		})
	}
	feature(t, "ordinary traffic shows no drops: works")
}

// droppedOf has traffic go all ways, and returns what of it the probe takes for dropped,
// and how many segments the kernel has sent again.
func droppedOf(t *testing.T, r *rig, name string, do run) (dropped string, again uint64) {
	t.Helper()
	s := newSite(t)
	r.forget(t) // numbers of namespaces come again, and a new link drops some
	t.Run("ways", func(t *testing.T) {
		for _, way := range []struct {
			from, to *probetest.Netns
			addr     string
		}{{s.a, s.b, s.b4.String()}, {s.a, s.b, s.b6.String()}, {s.b, s.b, "127.0.0.1"}, {s.b, s.b, "::1"}} {
			t.Run(way.addr, func(t *testing.T) {
				if name == keepalive { // which is but waiting
					t.Parallel()
				}
				do(t, way.from, way.to, way.addr)
			})
		}
	})
	time.Sleep(3 * probe.DrainEvery)
	r.collect(t)
	here := func(a flow.Addr) bool {
		return a.IP() == s.a4 || a.IP() == s.b4 || a.IP() == s.a6 || a.IP() == s.b6
	}
	if got := r.of(func(e *event) bool {
		return e.NetNS == s.a.Inum(t) || e.NetNS == s.b.Inum(t) || here(e.Local) || here(e.Remote)
	}); len(got) != 0 {
		dropped = fmt.Sprintf("%d packets:\n%s", len(got), list(got))
	}
	if n := r.sum(func(c *flow.DropCount) bool { return here(c.Src) || here(c.Dst) }); n != 0 {
		dropped += fmt.Sprintf("%d packets counted, of\n%v", n, r.counts)
	}
	return dropped, sentAgain(t, s.a) + sentAgain(t, s.b)
}

// sentAgain is how many TCP segments the kernel has sent more than once in n.
func sentAgain(t *testing.T, n *probetest.Netns) uint64 {
	t.Helper()
	var text []byte
	var err error
	if n.Do(func() { text, err = os.ReadFile("/proc/thread-self/net/snmp") }); err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if at := slices.Index(names, "RetransSegs"); at >= 0 && at < len(f) {
			count, err := strconv.ParseUint(f[at], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return count
		}
		names = f
	}
	t.Fatalf("no Tcp RetransSegs in %s", text)
	return 0
}

func tcpKeepalive(t *testing.T, from, to *probetest.Netns, addr string) {
	client, server := tcpPair(t, from, to, addr)
	if err := client.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond)
	client.Close()
	server.Close()
}

func tcpPair(t *testing.T, from, to *probetest.Netns, addr string) (client, server *net.TCPConn) {
	t.Helper()
	var l net.Listener
	var err error
	to.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from.Do(func() {
		var c net.Conn
		if c, err = net.Dial("tcp", l.Addr().String()); err == nil {
			client = c.(*net.TCPConn)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, c.(*net.TCPConn)
}

func tcpTraffic(clientFirst bool, n int64) run {
	return func(t *testing.T, from, to *probetest.Netns, addr string) {
		exchange(t, from, to, addr, clientFirst, n)
	}
}

// exchange sends n bytes there and as many back, then closes one end after the other.
func exchange(t *testing.T, from, to *probetest.Netns, addr string, clientFirst bool, n int64) {
	t.Helper()
	client, server := tcpPair(t, from, to, addr)
	first, second := client, server
	if !clientFirst {
		first, second = server, client
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, second, n)
		if err == nil {
			_, err = second.Write(make([]byte, n))
		}
		if err == nil {
			_, err = io.Copy(io.Discard, second)
		}
		second.Close()
		done <- err
	}()
	if _, err := first.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, first, n); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// tcpDeferred has a server that hears of a connection when there is data.
func tcpDeferred(t *testing.T, from, to *probetest.Netns, addr string) {
	t.Helper()
	var l net.Listener
	var err error
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5) })
		return errors.Join(err, set)
	}}
	to.Do(func() { l, err = listen.Listen(t.Context(), "tcp", net.JoinHostPort(addr, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var client net.Conn
	from.Do(func() { client, err = net.Dial("tcp", l.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	time.Sleep(100 * time.Millisecond)
	if _, err := client.Write([]byte("now")); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := io.ReadFull(server, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
}

func udpPair(t *testing.T, from, to *probetest.Netns, addr string) (client, server *net.UDPConn) {
	t.Helper()
	var err error
	to.Do(func() { server, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr)}) })
	if err != nil {
		t.Fatal(err)
	}
	from.Do(func() { client, err = net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func udpTraffic(t *testing.T, from, to *probetest.Netns, addr string) {
	client, server := udpPair(t, from, to, addr)
	buf := make([]byte, 9000)
	for range 10 {
		if _, err := client.Write(buf); err != nil {
			t.Fatal(err)
		}
		n, peer, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteToUDPAddrPort(buf[:n], peer); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
}

func udpUnread(t *testing.T, from, to *probetest.Netns, addr string) {
	client, server := udpPair(t, from, to, addr)
	for range 5 {
		if _, err := client.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(50 * time.Millisecond)
	server.Close()
}

func tcpUnread(t *testing.T, from, to *probetest.Netns, addr string) {
	client, server := tcpPair(t, from, to, addr)
	if _, err := client.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	server.Close()
	time.Sleep(50 * time.Millisecond)
	client.Close()
}

func tcpReset(t *testing.T, from, to *probetest.Netns, addr string) {
	client, server := tcpPair(t, from, to, addr)
	_ = client.SetLinger(0)
	client.Close()
	time.Sleep(50 * time.Millisecond)
	server.Close()
}
