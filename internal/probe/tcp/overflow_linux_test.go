// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// shortQueue listens in n on addr, with a queue of two.
func shortQueue(t *testing.T, n *probetest.Netns, addr string) (fd int, local netip.AddrPort) {
	t.Helper()
	ip, family := netip.MustParseAddr(addr), unix.AF_INET
	if ip.Is6() {
		family = unix.AF_INET6
	}
	var err error
	n.Do(func() { fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(ip, 0))); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if in, ok := name.(*unix.SockaddrInet4); ok {
		return fd, netip.AddrPortFrom(ip, uint16(in.Port))
	}
	return fd, netip.AddrPortFrom(ip, uint16(name.(*unix.SockaddrInet6).Port))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// procOf returns a /proc in which this process is in n.
func procOf(t *testing.T, n *probetest.Netns) string {
	t.Helper()
	thread, done := make(chan int), make(chan struct{})
	go n.Do(func() {
		thread <- unix.Gettid()
		<-done
	})
	t.Cleanup(func() { close(done) })
	proc := t.TempDir()
	err := os.Symlink(fmt.Sprintf("/proc/self/task/%d", <-thread), filepath.Join(proc, strconv.Itoa(os.Getpid())))
	if err != nil {
		t.Fatal(err)
	}
	return proc
}

// startIn starts the probe with n for the network namespace of this process.
func startIn(t *testing.T, n *probetest.Netns) *watcher {
	t.Helper()
	w := newWatcher(t, Config{})
	w.proc = procOf(t, n)
	probetest.Start(t, w, "TCP from socket counters: fallback")
	w.run(t)
	return w
}

// overflow connects to addr until the kernel has dropped more handshakes.
func overflow(t *testing.T, n *probetest.Netns, addr netip.AddrPort) {
	t.Helper()
	before := dropsIn(t, n)
	n.Do(func() {
		for range 6 {
			fd, err := startConnect(addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
		}
		for deadline := time.Now().Add(5 * time.Second); dropsIn(t, n) == before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("the queue did not overflow")
				return
			}
		}
	})
}

// startConnect does not wait for the connection.
func startConnect(addr netip.AddrPort) (fd int, err error) {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sockaddr(addr)); err != nil && err != unix.EINPROGRESS {
		return 0, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

// dropsIn is the kernel's own count of n.
func dropsIn(t *testing.T, n *probetest.Netns) (drops uint64) {
	t.Helper()
	var err error
	n.Do(func() { drops, err = readListenDrops("/proc/thread-self") })
	if err != nil {
		t.Fatal(err)
	}
	return drops
}

// told waits until the notes of listeners at addr make as many drops as the kernel
// has counted in n since it had counted base.
func (w *watcher) told(t *testing.T, n *probetest.Netns, addr netip.AddrPort, base uint64) []note {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		want := dropsIn(t, n) - base
		if err := w.Collect(); err != nil {
			t.Fatal(err)
		}
		notes, got := w.notesOf(addr)
		if got == want && want > 0 {
			return notes
		}
		if got > dropsIn(t, n)-base || time.Now().After(deadline) {
			t.Fatalf("told of %d drops, the kernel has counted %d", got, want)
		}
	}
}

func (w *watcher) notesOf(addr netip.AddrPort) (notes []note, drops uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.notes {
		if netip.AddrPortFrom(n.Local.IP(), n.LocalPort) == addr {
			notes = append(notes, n)
			drops += n.Drops
		}
	}
	return notes, drops
}

func TestListenOverflow(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1", "::"} {
		t.Run(addr, func(t *testing.T) {
			n := probetest.NewNetns(t)
			w := startIn(t, n)
			fd, local := shortQueue(t, n, addr)
			defer unix.Close(fd)
			to := local
			if addr == "::" { // the listener's own address is that of no interface
				to = netip.AddrPortFrom(netip.IPv6Loopback(), local.Port())
			}
			begin := time.Now()
			overflow(t, n, to)
			notes := w.told(t, n, local, 0)
			for _, got := range notes {
				checkListener(t, &got, begin)
			}
			if got, want := notes[0].Loopback, addr != "::"; got != want {
				t.Errorf("loopback %v, want %v", got, want)
			}
			if err := w.Collect(); err != nil {
				t.Fatal(err)
			}
			if again, drops := w.notesOf(local); drops > dropsIn(t, n) || slices.ContainsFunc(again, empty) {
				t.Errorf("without a drop: %+v", again[len(notes):])
			}
			overflow(t, n, to)
			w.told(t, n, local, 0)
			probetest.Works(t, "TCP listen queue overflows")
		})
	}
}

func empty(n note) bool { return n.Drops == 0 }

func checkListener(t *testing.T, n *note, begin time.Time) {
	t.Helper()
	if n.Remote != (flow.Addr{}) || n.RemotePort != 0 || n.Protocol != flow.TCP || n.Role != flow.RoleServer {
		t.Errorf("remote %v:%d protocol %v role %v", n.Remote.IP(), n.RemotePort, n.Protocol, n.Role)
	}
	if n.PID != uint32(os.Getpid()) || n.Comm.String() != command(t) || n.NetNS == 0 || n.CgroupID == 0 {
		t.Errorf("process %d %q netns %d cgroup %d", n.PID, n.Comm, n.NetNS, n.CgroupID)
	}
	if at := time.Unix(0, n.Last); n.First != n.Last || at.Before(begin) || at.After(time.Now()) {
		t.Errorf("from %d to %d", n.First, n.Last)
	}
	if n.Max != 1 || n.Backlog > 2 {
		t.Errorf("%d wait, %d may, want 2 and 1", n.Backlog, n.Max)
	}
}

// What was dropped before the probe is not told of.
func TestOverflowBeforeTheProbe(t *testing.T) {
	n := probetest.NewNetns(t)
	fd, local := shortQueue(t, n, "127.0.0.1")
	defer unix.Close(fd)
	overflow(t, n, local)
	settled(t, n)
	w := startIn(t, n)
	base := dropsIn(t, n)
	if err := w.Collect(); err != nil {
		t.Fatal(err)
	}
	if _, drops := w.notesOf(local); drops != 0 {
		t.Errorf("%d drops from before", drops)
	}
	overflow(t, n, local)
	for _, got := range w.told(t, n, local, base) {
		if got.PID != uint32(os.Getpid()) || got.Comm.String() != command(t) {
			t.Errorf("process %d %q", got.PID, got.Comm)
		}
	}
}

// settled waits until the kernel's count stays as it is: what was sent before may be
// sent again.
func settled(t *testing.T, n *probetest.Netns) {
	t.Helper()
	last, since := dropsIn(t, n), time.Now()
	for deadline := since.Add(60 * time.Second); time.Since(since) < 4*time.Second; time.Sleep(100 * time.Millisecond) {
		if now := dropsIn(t, n); now != last {
			last, since = now, time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatal("the kernel goes on dropping")
		}
	}
}

// A listener that is closed before the next pass tells by itself, and what it has
// accepted has no part in it.
func TestOverflowThenClosed(t *testing.T) {
	n := probetest.NewNetns(t)
	w := startIn(t, n)
	fd, local := shortQueue(t, n, "127.0.0.1")
	overflow(t, n, local)
	accepted, _, err := unix.Accept(fd)
	if err != nil {
		t.Error(err)
	}
	defer unix.Close(accepted)
	unix.Close(fd)
	w.told(t, n, local, 0)
	if err := w.Collect(); err != nil {
		t.Fatal(err)
	}
	if _, drops := w.notesOf(local); drops != dropsIn(t, n) {
		t.Errorf("told of %d drops, the kernel has counted %d", drops, dropsIn(t, n))
	}
}

// A listener that waits for data lets the bare ACK of each handshake go, which counts
// as a drop of its socket.
func TestDeferredAcceptIsNoOverflow(t *testing.T) {
	n := probetest.NewNetns(t)
	for name, w := range map[string]*watcher{"counted": startIn(t, n), "uncounted": start(t, Config{})} {
		fd, local := shortQueue(t, n, "127.0.0.1")
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5); err != nil {
			t.Fatal(err)
		}
		n.Do(func() {
			client, err := startConnect(local)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(client)
			time.Sleep(100 * time.Millisecond)
		})
		if err := w.Collect(); err != nil {
			t.Fatal(err)
		}
		if notes, _ := w.notesOf(local); len(notes) != 0 || dropsIn(t, n) != 0 {
			t.Errorf("%s: %+v, the kernel has counted %d", name, notes, dropsIn(t, n))
		}
	}
}

// Where the process is not seen in the listener's namespace, a full queue is believed.
func TestOverflowElsewhere(t *testing.T) {
	w := start(t, Config{})
	n := probetest.NewNetns(t)
	fd, local := shortQueue(t, n, "127.0.0.1")
	defer unix.Close(fd)
	overflow(t, n, local)
	if err := w.Collect(); err != nil {
		t.Fatal(err)
	}
	if _, drops := w.notesOf(local); drops < dropsIn(t, n) {
		t.Errorf("told of %d drops, the kernel has counted %d", drops, dropsIn(t, n))
	}
}

func TestParseListenDrops(t *testing.T) {
	for in, want := range map[string]uint64{
		"TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 2 34\nIpExt: A\nIpExt: 5\n": 34,
		"TcpExt: ListenDrops A\nTcpExt:\n": 0, "TcpExt: A\nTcpExt: 1\n": 0, "": 0,
	} {
		if got, err := parseListenDrops([]byte(in)); got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
}

// Go's listeners are multipath sockets.
func TestMultipathOverflow(t *testing.T) {
	for _, byFiles := range []bool{false, true} {
		for _, old := range []bool{false, true} {
			t.Run(fmt.Sprintf("by files %v/older than the probe %v", byFiles, old), func(t *testing.T) {
				n := probetest.NewNetns(t)
				w := newWatcher(t, Config{})
				w.byFiles, w.proc = byFiles, procOf(t, n)
				w.multipathOverflow(t, n, old)
				probetest.Works(t, "listen queue overflows of multipath TCP")
			})
		}
	}
}

func (w *watcher) multipathOverflow(t *testing.T, n *probetest.Netns, old bool) {
	t.Helper()
	if !old {
		w.load(t)
	}
	l := listenMultipath(t, n)
	addr, base := addrOf(l.Addr()), uint64(0)
	if old {
		overflow(t, n, addr)
		settled(t, n)
		w.load(t)
		base = dropsIn(t, n)
	}
	w.run(t)
	overflow(t, n, addr)
	for _, got := range w.told(t, n, addr, base) {
		checkListener(t, &got, time.Time{})
	}
	l.Close()
	if err := w.Collect(); err != nil {
		t.Fatal(err)
	}
	if _, drops := w.notesOf(addr); drops > dropsIn(t, n)-base {
		t.Errorf("told of %d drops, the kernel has counted %d", drops, dropsIn(t, n)-base)
	}
}

// listenMultipath listens in n as Go does, with a queue of two.
func listenMultipath(t *testing.T, n *probetest.Netns) net.Listener {
	t.Helper()
	n.Need(t, "sh", "-c", "echo 1 > /proc/sys/net/core/somaxconn")
	var listen net.ListenConfig
	listen.SetMultipathTCP(true)
	var l net.Listener
	var err error
	if n.Do(func() { l, err = listen.Listen(t.Context(), "tcp4", "127.0.0.1:0") }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if !isMultipath(t, l) {
		t.Skip("SKIP: no multipath TCP here")
	}
	return l
}

func isMultipath(t *testing.T, l net.Listener) bool {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	protocol := 0
	if e := raw.Control(func(fd uintptr) { protocol, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL) }); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return protocol == unix.IPPROTO_MPTCP
}
