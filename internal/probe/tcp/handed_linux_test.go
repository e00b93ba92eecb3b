// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/record"
)

const (
	acceptEnv = "ORB8_TEST_ACCEPT"
	moveEnv   = "ORB8_TEST_MOVE"
)

const served = 1_000_000

// acceptor accepts connections at the listener that it is started with, sends so much and
// waits for the other side to close.
func acceptor() int {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return 0
		}
		if _, err := c.Write(make([]byte, served)); err != nil {
			return 1
		}
		c.Read(make([]byte, 1))
		c.Close()
	}
}

// handOver starts a process in another cgroup that accepts at l.
func handOver(t *testing.T, l *net.TCPListener) (cmd *exec.Cmd, cgroup uint64) {
	t.Helper()
	dir, cgroup := probetest.NewCgroup(t)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd = probetest.Command(t, "/proc/self/exe")
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = append(os.Environ(), acceptEnv+"=1"), os.Stderr, []*os.File{f}
	probetest.InCgroup(t, cmd, dir)
	if err := cmd.Start(); err != nil {
		t.Skipf("SKIP: start a process in a cgroup: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, cgroup
}

// A listener that one process makes for another, as a service manager does for its
// services: what is accepted is the other's, with its cgroup.
func TestListenerHandedOver(t *testing.T) {
	w := start(t, Config{})
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	l, err := plain.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd, cgroup := handOver(t, l.(*net.TCPListener))
	addr := addrOf(l.Addr())
	dial := func() *net.TCPConn {
		c, err := net.Dial("tcp4", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		limit(t, c)
		if _, err := io.CopyN(io.Discard, c, served); err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn)
	}
	check := func(s *seen) {
		t.Helper()
		if s.CgroupID != cgroup || s.PID != uint32(cmd.Process.Pid) || s.Role != record.RoleServer || s.Total.TxBytes != served {
			t.Errorf("cgroup %d, pid %d, role %v, %d bytes, want %d, %d, server and %d", s.CgroupID, s.PID, s.Role, s.Total.TxBytes,
				cgroup, cmd.Process.Pid, served)
		}
	}
	// Not looked at before it is over: the one who closes it is known. A retransmission is
	// a look, which a slow machine may bring; then another connection is tried.
	var local netip.AddrPort
	for range 5 {
		c := dial()
		local = addrOf(c.LocalAddr())
		c.Close()
		dial().Close() // accepted after that has been closed
		if s := w.final(t, addr, local); s.TCP.Retransmits == 0 {
			break
		}
	}
	check(w.only(t, addr, local))
	if len(w.walks) == 0 {
		t.Logf("orb8-feature: listeners made for another cgroup: when the connection closes")
		return
	}
	// After the next look who has the listener also while it is open.
	if err := w.look(); err != nil {
		t.Fatal(err)
	}
	c := dial()
	defer c.Close()
	check(w.find(t, "the open connection", func(f *seen) bool { return is(f, addr, addrOf(c.LocalAddr())) && f.Total.TxBytes == served }))
	feature(t, "listeners made for another cgroup")
}

// A process that moves after it has made its socket connects in its new cgroup.
func TestMovesBeforeConnect(t *testing.T) {
	w := start(t, Config{})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from, _ := probetest.NewCgroup(t)
	to, cgroup := probetest.NewCgroup(t)
	cmd := probetest.Command(t, "/proc/self/exe")
	cmd.Env = append(os.Environ(), "ORB8_TEST_DIAL="+l.Addr().String(), moveEnv+"="+to)
	cmd.Stderr = os.Stderr
	probetest.InCgroup(t, cmd, from)
	if err := cmd.Start(); err != nil {
		t.Skipf("SKIP: start a process in a cgroup: %v", err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	limit(t, server)
	if _, err := io.ReadFull(server, make([]byte, 77)); err != nil {
		t.Fatal(err)
	}
	client := addrOf(server.RemoteAddr())
	server.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if c := w.only(t, client, addrOf(l.Addr())); c.CgroupID != cgroup {
		t.Errorf("cgroup %d, want %d", c.CgroupID, cgroup)
	}
}
