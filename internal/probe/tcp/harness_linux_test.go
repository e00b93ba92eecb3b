// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// seen is what the probe said of one connection's one end.
type seen struct {
	flow.Sample              // the last one
	events      []flow.State // of all samples, in order
	deltas      flow.Counters
	finals      int
}

// watcher runs a probe and keeps what it says.
type watcher struct {
	*Probe
	losses *loss.Counters

	mu    sync.Mutex
	flows map[instance]*seen
}

type instance struct {
	flow.Key
	id uint64
}

func (w *watcher) apply(s *flow.Sample) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := instance{s.Key, s.Instance}
	f := w.flows[k]
	if f == nil {
		f = &seen{deltas: s.Total.Sub(s.Base)}
		w.flows[k] = f
	} else {
		f.deltas = f.deltas.Add(s.Total.Sub(f.Total))
	}
	if f.finals > 0 && s.TCP.End == flow.EndNone {
		return // read before the final record, applied after it
	}
	f.Sample = *s
	f.events = append(f.events, s.TCP.State)
	if s.TCP.End != flow.EndNone {
		f.finals++
	}
}

// find waits for an end of a connection for which ok holds.
func (w *watcher) find(t *testing.T, what string, ok func(*seen) bool) *seen {
	t.Helper()
	deadline := time.Now().Add(testwait.Limit)
	for {
		if err := w.Collect(); err != nil {
			t.Fatal(err)
		}
		if f := w.first(ok); f != nil {
			return f
		}
		if time.Now().After(deadline) {
			t.Fatalf("no record of %s; have:\n%s", what, w.dump())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (w *watcher) first(ok func(*seen) bool) *seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flows {
		if ok(f) {
			c := *f
			return &c
		}
	}
	return nil
}

func (w *watcher) dump() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, f := range w.flows {
		fmt.Fprintf(&b, "%s:%d %s:%d pid %d %q %+v %+v\n", f.Local.IP(), f.LocalPort, f.Remote.IP(), f.RemotePort,
			f.PID, f.Comm, f.Total, f.TCP)
		if b.Len() > 4000 {
			break
		}
	}
	return b.String()
}

// final waits for the end of the connection from local to remote.
func (w *watcher) final(t *testing.T, local, remote netip.AddrPort) *seen {
	t.Helper()
	return w.find(t, fmt.Sprintf("the end of %v -> %v", local, remote), func(f *seen) bool {
		return f.finals > 0 && is(f, local, remote)
	})
}

func is(f *seen, local, remote netip.AddrPort) bool {
	return netip.AddrPortFrom(f.Local.IP(), f.LocalPort) == unmap(local) &&
		netip.AddrPortFrom(f.Remote.IP(), f.RemotePort) == unmap(remote)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func addrOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// start loads the probe, or skips where this kernel or user cannot.
func start(t *testing.T, cfg Config) *watcher {
	t.Helper()
	w := load(t, cfg)
	w.run(t)
	return w
}

func (w *watcher) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := w.ring.Flush(); err != nil { // Run may wait for long
			t.Error(err)
		}
		if err := testwait.Receive(t, "the end of Run", done); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// noCgroups is for Config.CgroupRoot where there is no cgroup2, so that tracing
// programs tell of connections.
const (
	noCgroups = "-"
	// cgroupsEnv sets Config.CgroupRoot where a test does not.
	cgroupsEnv = "ORB8_TEST_TCP_CGROUPS"
)

// needOlder skips a test of connections that are older than the probe where the kernel
// does not let it follow them.
func (w *watcher) needOlder(t *testing.T) {
	t.Helper()
	for _, d := range w.Degraded() {
		if strings.Contains(d, setStateHook) || strings.Contains(d, "iter/task_file") {
			t.Logf("orb8-feature: TCP connections older than orb8: off: %s", d)
			t.Skipf("SKIP: %s", d)
		}
	}
}

// needHeld is the same for sockets that no process has open.
func (w *watcher) needHeld(t *testing.T) {
	t.Helper()
	for _, d := range w.Degraded() {
		if strings.Contains(d, "iter/tcp") {
			t.Logf("orb8-feature: sockets that no process has open: off: %s", d)
			t.Skipf("SKIP: %s", d)
		}
	}
}

// load is start without Run.
func load(t *testing.T, cfg Config) *watcher {
	t.Helper()
	w := newWatcher(t, cfg)
	name := "TCP from socket counters: fallback"
	if w.Probe.cfg.CgroupRoot == "" {
		name = "TCP without cgroup2: off"
	}
	probetest.Start(t, w, name)
	return w
}

// newWatcher is load without Start.
func newWatcher(t *testing.T, cfg Config) *watcher {
	t.Helper()
	w := &watcher{losses: new(loss.Counters), flows: make(map[instance]*seen)}
	cfg.Apply, cfg.Losses, cfg.Clock = w.apply, w.losses, probe.NewClock()
	if cfg.CgroupRoot == "" {
		cfg.CgroupRoot = cmp.Or(os.Getenv(cgroupsEnv), probetest.CgroupRoot(t))
	}
	if cfg.CgroupRoot == noCgroups {
		cfg.CgroupRoot = ""
	}
	w.Probe = New(cfg)
	return w
}

func feature(t *testing.T, name string) {
	t.Helper()
	if !t.Failed() {
		t.Logf("orb8-feature: %s: works", name)
	}
}

// pair makes a connection over addr, an address without port.
func pair(t *testing.T, network, addr string) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen(network, net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Skipf("SKIP: %s is not available: %v", addr, err)
	}
	defer l.Close()
	return dialTo(t, l, network, l.Addr().String())
}

func dialTo(t *testing.T, l net.Listener, network, addr string) (client, server *net.TCPConn) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	c, err := net.DialTimeout(network, addr, testwait.Limit)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), testwait.Receive(t, "the server's end of the connection", accepted).(*net.TCPConn)
}

// exchange sends up and down bytes at the same time and waits until both have
// arrived.
func exchange(t *testing.T, client, server net.Conn, up, down int64) {
	t.Helper()
	var wg sync.WaitGroup
	limit(t, client, server)
	move := func(from, to net.Conn, n int64) {
		wg.Go(func() {
			if _, err := io.CopyN(from, zeros{}, n); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := io.CopyN(io.Discard, to, n); err != nil {
				t.Error(err)
			}
		})
	}
	move(client, server, up)
	move(server, client, down)
	wg.Wait()
}

// limit gives what comes next on connections its time.
func limit(t *testing.T, conns ...net.Conn) {
	t.Helper()
	for _, c := range conns {
		if err := c.SetDeadline(time.Now().Add(testwait.Limit)); err != nil {
			t.Fatal(err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// closeBoth ends a connection in order: the client first.
func closeBoth(t *testing.T, client, server *net.TCPConn) {
	t.Helper()
	limit(t, client, server)
	if err := client.CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, server); err != nil {
		t.Error(err)
	}
	server.Close()
	if _, err := io.Copy(io.Discard, client); err != nil {
		t.Error(err)
	}
	client.Close()
}

// listenIn and dialIn are for other namespaces.
func listenIn(t *testing.T, n *probetest.Netns, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	n.Do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dialIn(t *testing.T, n *probetest.Netns, l net.Listener) (client, server *net.TCPConn) {
	t.Helper()
	n.Do(func() { client, server = dialTo(t, l, "tcp", l.Addr().String()) })
	return client, server
}
