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
