// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/record"
)

// option sets a TCP socket option before a socket connects or listens.
func option(name, value int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, name, value) }); e != nil {
			return e
		}
		return err
	}
}

// only waits for the end of the connection from local to remote, which must have
// been one flow all the time.
func (w *watcher) only(t *testing.T, local, remote netip.AddrPort) *seen {
	t.Helper()
	f := w.final(t, local, remote)
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, other := range w.flows {
		if is(other, local, remote) {
			n++
		}
	}
	if n != 1 || f.finals != 1 {
		t.Errorf("%v -> %v: %d flows, %d final records, want one", local, remote, n, f.finals)
	}
	return f
}

// With TCP Fast Open the first data travel with the SYN.
func TestFastOpen(t *testing.T) {
	w := start(t, Config{})
	n := probetest.NewNetns(t)
	n.Need(t, "sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_fastopen")
	listen := net.ListenConfig{Control: option(unix.TCP_FASTOPEN, 16)}
	listen.SetMultipathTCP(false)
	dial := net.Dialer{Control: option(unix.TCP_FASTOPEN_CONNECT, 1)}
	var l net.Listener
	var err error
	if n.Do(func() { l, err = listen.Listen(t.Context(), "tcp4", "127.0.0.1:0") }); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	defer l.Close()
	const up, down = 1000, 500
	// talk has the client ask, and the server answer and close first.
	talk := func(t *testing.T) (client *net.TCPConn, local, remote netip.AddrPort) {
		t.Helper()
		var c net.Conn
		if n.Do(func() { c, err = dial.DialContext(t.Context(), "tcp4", l.Addr().String()) }); err != nil {
			t.Skipf("SKIP: %v", err)
		}
		client = c.(*net.TCPConn)
		t.Cleanup(func() { client.Close() })
		if _, err := client.Write(make([]byte, up)); err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if _, err := io.CopyN(io.Discard, server, up); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Write(make([]byte, down)); err != nil {
			t.Fatal(err)
		}
		return client, addrOf(client.LocalAddr()), addrOf(client.RemoteAddr())
	}
	first, _, _ := talk(t) // gets the cookie for the others
	first.Close()
	check := func(t *testing.T, client *net.TCPConn, local, remote netip.AddrPort) {
		t.Helper()
		if got, err := io.Copy(io.Discard, client); err != nil || got != down {
			t.Fatalf("%d bytes of an answer of %d: %v", got, down, err)
		}
		if !dataInSYN(t, client) {
			t.Skip("SKIP: no data went with the SYN")
		}
		client.Close()
		c, s := w.only(t, local, remote), w.only(t, remote, local)
		checkBytes(t, c, up, down)
		checkBytes(t, s, down, up)
		for _, end := range []struct {
			f    *seen
			role record.Role
		}{{c, record.RoleClient}, {s, record.RoleServer}} {
			f := end.f
			if f.Role != end.role || f.TCP.Preexisting || f.TCP.End != flow.EndFIN || f.PID != uint32(os.Getpid()) {
				t.Errorf("role %v pid %d %+v, want role %v and a FIN", f.Role, f.PID, f.TCP, end.role)
			}
		}
	}
	t.Run("handshake first", func(t *testing.T) {
		client, local, remote := talk(t)
		check(t, client, local, remote)
	})
	// The server is done before the client's acknowledgement of the SYN arrives,
	// as is usual for short answers over a distance.
	t.Run("answer first", func(t *testing.T) {
		nft(t, n, fmt.Sprintf("tcp dport %d tcp flags & (fin|syn|rst|psh|ack) == ack drop", addrOf(l.Addr()).Port()))
		client, local, remote := talk(t)
		check(t, client, local, remote)
	})
}

func dataInSYN(t *testing.T, c *net.TCPConn) bool {
	t.Helper()
	const tcpiOptSynData = 32
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return info.Options&tcpiOptSynData != 0
}

// Two sockets that connect to each other at the same time: neither is a server.
func TestSimultaneousOpen(t *testing.T) {
	w := start(t, Config{})
	n := probetest.NewNetns(t)
	ends := [2]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1001"), netip.MustParseAddrPort("127.0.0.1:1002")}
	connect := func(from, to netip.AddrPort) (conn net.Conn) {
		t.Helper()
		var fd int
		var err error
		n.Do(func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.Addr().As4(), Port: int(from.Port())}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
		if conn, err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// The first SYN is lost, the second one meets a socket that has sent its own.
	nft(t, n, "tcp dport 1002 drop")
	a := connect(ends[0], ends[1])
	defer a.Close()
	n.Run(t, "nft", "flush", "ruleset")
	b := connect(ends[1], ends[0])
	defer b.Close()
	exchange(t, a, b, 3000, 200)
	closeBoth(t, a.(*net.TCPConn), b.(*net.TCPConn))
	for i, want := range []struct{ tx, rx uint64 }{{3000, 200}, {200, 3000}} {
		f := w.only(t, ends[i], ends[1-i])
		checkBytes(t, f, want.tx, want.rx)
		if f.Role != record.RoleClient || f.TCP.ConnectNanos == 0 || f.TCP.AckedBytes != want.tx {
			t.Errorf("end %d: role %v, connected in %d ns, acknowledged %d", i, f.Role, f.TCP.ConnectNanos, f.TCP.AckedBytes)
		}
		if f.PID != uint32(os.Getpid()) || f.TCP.End != flow.EndFIN {
			t.Errorf("end %d: pid %d, end %v", i, f.PID, f.TCP.End)
		}
	}
}

// A kernel thread closes the TCP sockets of a multipath connection: the process
// stays their owner.
func TestMultipath(t *testing.T) {
	w := start(t, Config{})
	n := probetest.NewNetns(t)
	var listen net.ListenConfig
	var dial net.Dialer
	listen.SetMultipathTCP(true)
	dial.SetMultipathTCP(true)
	for range 3 {
		var l net.Listener
		var c net.Conn
		var err error
		if n.Do(func() { l, err = listen.Listen(t.Context(), "tcp4", "127.0.0.1:0") }); err != nil {
			t.Fatal(err)
		}
		if n.Do(func() { c, err = dial.DialContext(t.Context(), "tcp4", l.Addr().String()) }); err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		l.Close()
		if err != nil {
			t.Fatal(err)
		}
		client, server := c.(*net.TCPConn), s.(*net.TCPConn)
		if multipath, err := server.MultipathTCP(); err != nil || !multipath {
			t.Skipf("SKIP: no multipath TCP here: %v", err)
		}
		exchange(t, client, server, 100, 50)
		local, remote := addrOf(client.LocalAddr()), addrOf(client.RemoteAddr())
		closeBoth(t, client, server)
		for _, f := range []*seen{w.only(t, local, remote), w.only(t, remote, local)} {
			if f.PID != uint32(os.Getpid()) || f.Comm.String() != command(t) {
				t.Errorf("process %d %q, want %d %q", f.PID, f.Comm, os.Getpid(), command(t))
			}
		}
	}
}
