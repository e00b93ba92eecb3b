// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/record"
)

// Who connected is known of older connections too, and their past counts for nobody.
func TestPreexistingRoles(t *testing.T) {
	type conn struct {
		name           string
		client, server *net.TCPConn
	}
	var conns []conn
	add := func(name string, prepare func(client, server *net.TCPConn) error) {
		client, server := pair(t, "tcp4", "127.0.0.1")
		t.Cleanup(func() { client.Close(); server.Close() })
		if err := prepare(client, server); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn{name, client, server})
	}
	add("idle", func(_, _ *net.TCPConn) error { return nil })
	add("busy", func(c, s *net.TCPConn) error { exchange(t, c, s, 4000, 300); return nil })
	add("closed by the client", func(c, s *net.TCPConn) error {
		exchange(t, c, s, 10, 20)
		if err := c.CloseWrite(); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, s)
		return err
	})
	add("closed by the server", func(c, s *net.TCPConn) error {
		exchange(t, c, s, 10, 20)
		if err := s.CloseWrite(); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, c)
		return err
	})
	w := start(t, Config{})
	w.needOlder(t)
	for _, c := range conns {
		for role, a := range map[record.Role]*net.TCPConn{record.RoleClient: c.client, record.RoleServer: c.server} {
			f := w.find(t, c.name, func(f *seen) bool { return is(f, addrOf(a.LocalAddr()), addrOf(a.RemoteAddr())) })
			if f.Role != role || f.deltas != (flow.Counters{}) || !f.TCP.Preexisting {
				t.Errorf("%s: role %v, want %v; since the start %+v", c.name, f.Role, role, f.deltas)
			}
		}
	}
}

// A connection that no process has open when the probe starts is followed from then on:
// one that is not accepted yet, and one on its way to another process.
func TestHeldByNobody(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	waiting, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	sender, sent := pair(t, "tcp4", "127.0.0.1")
	defer sender.Close()
	file, err := sent.File()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if err := unix.Sendmsg(fds[0], []byte{0}, unix.UnixRights(int(file.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	file.Close()
	sent.Close()

	w := start(t, Config{})
	w.needOlder(t)
	w.needHeld(t)
	feature(t, "sockets that no process has open")
	for name, c := range map[string]net.Conn{"not accepted": waiting, "in flight": sender} {
		if _, err := c.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		local, remote := addrOf(c.RemoteAddr()), addrOf(c.LocalAddr())
		f := w.find(t, name, func(f *seen) bool { return is(f, local, remote) && f.deltas.RxBytes == 1000 })
		if f.Role != record.RoleServer || !f.TCP.Preexisting {
			t.Errorf("%s: role %v, older than orb8: %v", name, f.Role, f.TCP.Preexisting)
		}
	}
}

// So is one whose file is a multipath socket, with the owner of its listener.
func TestMultipathOlder(t *testing.T) {
	var listen net.ListenConfig
	var dial net.Dialer
	listen.SetMultipathTCP(true)
	dial.SetMultipathTCP(true)
	l, err := listen.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dial.DialContext(t.Context(), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client, server := c.(*net.TCPConn), s.(*net.TCPConn)
	if multipath, err := server.MultipathTCP(); err != nil || !multipath {
		t.Skipf("SKIP: no multipath TCP here: %v", err)
	}
	exchange(t, client, server, 10, 10)

	w := start(t, Config{})
	w.needOlder(t)
	w.needHeld(t)
	exchange(t, client, server, 100, 50)
	local, remote := addrOf(client.LocalAddr()), addrOf(client.RemoteAddr())
	closeBoth(t, client, server)
	for role, f := range map[record.Role]*seen{record.RoleClient: w.final(t, local, remote), record.RoleServer: w.final(t, remote, local)} {
		tx, rx := uint64(100), uint64(50)
		if role == record.RoleServer {
			tx, rx = rx, tx
			if f.PID != uint32(os.Getpid()) {
				t.Errorf("the server is process %d, want %d", f.PID, os.Getpid())
			}
		}
		if f.Role != role || f.deltas.TxBytes != tx || f.deltas.RxBytes != rx {
			t.Errorf("role %v, want %v; since the start %d bytes sent and %d received, want %d and %d",
				f.Role, role, f.deltas.TxBytes, f.deltas.RxBytes, tx, rx)
		}
	}
}

const sharedPortEnv = "ORB8_TEST_SHARED_PORT"

// sharing listens at an address that others listen at too, and tells who connects its
// process.
func sharing(addr string) int {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
			return e
		}
		return err
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp4", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("listens")
	for {
		c, err := l.Accept()
		if err != nil {
			return 0
		}
		if err := binary.Write(c, binary.BigEndian, uint32(os.Getpid())); err != nil {
			return 1
		}
		c.Read(make([]byte, 1))
		c.Close()
	}
}

// Of several processes that listen at one port each has what it accepts, never the
// client, which runs on the same machine.
func TestSharedPort(t *testing.T) {
	w := start(t, Config{})
	n := probetest.NewNetns(t)
	const addr = "127.0.0.1:7070"
	for range 4 {
		cmd := probetest.Command(t, "/proc/self/exe")
		cmd.Env, cmd.Stderr = append(os.Environ(), sharedPortEnv+"="+addr), os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			n.Do(func() { err = cmd.Start() })
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		if _, err := io.ReadFull(out, make([]byte, len("listens"))); err != nil {
			t.Fatal(err)
		}
	}
	servers := make(map[uint32]bool)
	for i := 0; i < 100 && len(servers) < 4; i++ {
		var c net.Conn
		var err error
		n.Do(func() { c, err = net.Dial("tcp4", addr) })
		if err != nil {
			t.Fatal(err)
		}
		limit(t, c)
		var pid uint32
		if err := binary.Read(c, binary.BigEndian, &pid); err != nil {
			t.Fatal(err)
		}
		local, remote := addrOf(c.LocalAddr()), addrOf(c.RemoteAddr())
		open := w.find(t, "the server's end", func(f *seen) bool { return is(f, remote, local) })
		c.Close()
		if closed := w.final(t, remote, local); open.PID != pid || closed.PID != pid {
			t.Errorf("process %d, at the end %d, want %d", open.PID, closed.PID, pid)
		}
		if f := w.final(t, local, remote); f.PID != uint32(os.Getpid()) {
			t.Errorf("the client is process %d, want %d", f.PID, os.Getpid())
		}
		servers[pid] = true
	}
	if len(servers) < 2 {
		t.Errorf("%d of 4 servers accepted", len(servers))
	}
}

// A bridge, a bond's or a veth's two ends carry the same packets: each byte counts once
// for each end of the connection.
func TestOverBridge(t *testing.T) {
	w := start(t, Config{})
	host, a, b := probetest.NewNetns(t), probetest.NewNetns(t), probetest.NewNetns(t)
	host.Need(t, "ip", "link", "add", "br0", "type", "bridge")
	host.Run(t, "ip", "link", "set", "br0", "up")
	for i, n := range []*probetest.Netns{a, b} {
		port := fmt.Sprint("p", i)
		host.Need(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "v0", "netns", n.Name())
		host.Run(t, "ip", "link", "set", port, "master", "br0", "up")
		n.Run(t, "ip", "addr", "add", fmt.Sprintf("10.233.0.%d/24", i+1), "dev", "v0")
		n.Run(t, "ip", "link", "set", "v0", "up")
	}
	const bytes = 10_000_000
	client, server := dialIn(t, a, listenIn(t, b, "10.233.0.2:0"))
	exchange(t, client, server, bytes, 1000)
	local, remote := addrOf(client.LocalAddr()), addrOf(client.RemoteAddr())
	closeBoth(t, client, server)
	checkBytes(t, w.only(t, local, remote), bytes, 1000)
	checkBytes(t, w.only(t, remote, local), 1000, bytes)
}
