// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// hold makes connections of which it has both ends: so many that stay open, attempts
// without an answer, and connections that one side has closed.
func (c *commands) hold(open, attempts, halfClosed int) (err error) {
	if c.held, err = connections(open + halfClosed); err != nil {
		return err
	}
	err = unanswered(attempts)
	for i := range halfClosed {
		err = errors.Join(err, c.held[2*(open+i)].(*net.TCPConn).CloseWrite())
	}
	return err
}

// exchange sends a byte over one of the open connections.
func (c *commands) exchange() error {
	if _, err := c.held[0].Write([]byte{1}); err != nil {
		return err
	}
	_, err := c.held[1].Read(make([]byte, 1))
	return err
}

// connections makes n and returns both ends of each, without keep-alive probes.
func connections(n int) (conns []net.Conn, err error) {
	listen, dial := net.ListenConfig{KeepAlive: -1}, net.Dialer{KeepAlive: -1}
	listen.SetMultipathTCP(false)
	l, err := listen.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	for range n {
		client, err := dial.Dial("tcp4", l.Addr().String())
		if err != nil {
			return nil, err
		}
		server, err := l.Accept()
		if err != nil {
			return nil, err
		}
		conns = append(conns, client, server)
	}
	return conns, nil
}

// unanswered makes n attempts at a listener whose queue is full. What fills it is one
// open connection.
func unanswered(n int) error {
	if n == 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(fd, sockaddr(netip.MustParseAddrPort("127.0.0.1:999"))), unix.Listen(fd, 0)); err != nil {
		return err
	}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(client, sockaddr(netip.MustParseAddrPort("127.0.0.1:999"))); err != nil {
		return err
	}
	for range n {
		if _, err := startConnect(netip.MustParseAddrPort("127.0.0.1:999")); err != nil {
			return err
		}
	}
	return nil
}

// holder is a process that has sockets.
type holder struct {
	*probetest.Child
	cgroup uint64
}

// hold starts a process of its own cgroup and network namespace, see commands.hold.
func hold(t *testing.T, open, attempts, halfClosed int) *holder {
	t.Helper()
	n := probetest.NewNetns(t)
	dir, id := probetest.NewCgroup(t)
	h := &holder{probetest.NewChild(t, dir, n), id}
	h.Do("hold %d %d %d", open, attempts, halfClosed)
	return h
}

// socketsOf makes a pass and returns what it counted.
func (w *watcher) socketsOf(t *testing.T, h *holder) flow.SocketCount {
	t.Helper()
	if err := w.Collect(); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sockets[h.cgroup]
}

// until waits for a pass at which h has these sockets.
func (w *watcher) until(t *testing.T, h *holder, want flow.SocketCount) {
	t.Helper()
	want.CgroupID = h.cgroup
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got := w.socketsOf(t, h)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want %+v", got, want)
		}
	}
}

func TestSocketCounts(t *testing.T) {
	w := newWatcher(t, Config{})
	w.idleAfter = 2 * time.Second
	a := hold(t, 3, 2, 1) // older than the probe
	probetest.Start(t, w, "TCP from socket counters: fallback")
	w.run(t)
	b := hold(t, 5, 0, 2)
	// Both ends of each connection, and of the one that fills a's queue the client's;
	// the other end is held by no file, so that the probe does not know of it.
	wantA := flow.SocketCount{Established: 7, HalfOpen: 2, HalfClosed: 2}
	wantB := flow.SocketCount{Established: 10, HalfClosed: 4}
	w.until(t, b, wantB)
	if got := w.socketsOf(t, a); got.Established != 7 || got.HalfOpen != 2 || got.HalfClosed != 2 {
		t.Errorf("%+v, want %+v", got, wantA)
	}
	wantA.Idle, wantB.Idle = 7, 10
	w.until(t, a, wantA)
	w.until(t, b, wantB)
	b.Do("exchange")
	wantB.Idle = 8
	w.until(t, b, wantB)
	if got := w.socketsOf(t, a); got.Idle != 7 {
		t.Errorf("%+v after traffic of another cgroup", got)
	}
	a.Stop()
	if got := w.socketsOf(t, a); got != (flow.SocketCount{}) {
		t.Errorf("%+v after its end", got)
	}
	if err := w.counts.byCgroup.Lookup(a.cgroup, new(bpfTcpCount)); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("its entry is still there: %v", err)
	}
	probetest.Works(t, "TCP sockets counted by cgroup")
}

// So many sockets that the iterator's page is full many times: those that come again
// are counted once.
func TestSocketsCountedOnce(t *testing.T) {
	const n = 1000
	w := start(t, Config{})
	h := hold(t, n, 0, 0)
	for range 2 {
		want := flow.SocketCount{CgroupID: h.cgroup, Established: 2 * n}
		if diff := cmp.Diff(want, w.socketsOf(t, h)); diff != "" {
			t.Error(diff)
		}
	}
}

// With room for one cgroup the sockets of the other are left out, which is counted.
func TestTooManyCgroups(t *testing.T) {
	w := newWatcher(t, Config{})
	w.maxCgroups = 1
	probetest.Start(t, w, "TCP from socket counters: fallback")
	a, b := hold(t, 3, 0, 0), hold(t, 3, 0, 0)
	w.socketsOf(t, a)
	w.socketsOf(t, b)
	if n := w.losses.Get(loss.TCPSocketsUncounted); n < 12 || len(w.sockets) != 1 {
		t.Errorf("%d left out of %d cgroups' counts, want at least 12 of one", n, len(w.sockets))
	}
}
