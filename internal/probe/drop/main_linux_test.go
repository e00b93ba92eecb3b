// SPDX-License-Identifier: Apache-2.0

//go:build linux

package drop

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

func TestMain(m *testing.M) {
	var c commands
	if probetest.ServeChild(c.do) {
		return
	}
	goleak.VerifyTestMain(m)
}

// event is one that the probe told of.
type event struct {
	flow.Sample
	flow.Drop
}

func (e event) String() string {
	return fmt.Sprintf("%s at %q: %v %v:%d %v:%d cgroup %d netns %d if %d ingress %v loopback %v %d bytes flags %#x",
		e.Reason, e.Location, e.Protocol, e.Local.IP(), e.LocalPort, e.Remote.IP(), e.RemotePort, e.CgroupID, e.NetNS,
		e.Ifindex, e.Ingress, e.Loopback, e.Bytes, e.TCPFlags)
}

// rig is a probe with what it has said.
type rig struct {
	*Probe
	losses loss.Counters

	mu     sync.Mutex
	events []event
	counts map[flow.DropCount]uint64 // by all but the packets
}

// start runs a probe that tells of all that is dropped, or skips the test where the
// kernel does not take it.
func start(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := load(t, change)
	probetest.Run(t, r)
	return r
}

// load is start without Run.
func load(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{counts: make(map[flow.DropCount]uint64)}
	cfg := Config{Note: r.note, Count: r.count, Losses: &r.losses, Clock: probe.NewClock(), Events: 1_000_000}
	if change != nil {
		change(&cfg)
	}
	r.Probe = New(cfg)
	probetest.Start(t, r, "drop probe: off")
	return r
}

func (r *rig) note(s *flow.Sample, d flow.Detail) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event{*s, *d.(*flow.Drop)})
}

func (r *rig) count(counts []flow.DropCount) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range counts {
		n := c.Packets
		c.Packets = 0
		r.counts[c] += n
	}
}

// reason is what this kernel says where one with reasons says name.
func (r *rig) reason(name string) string {
	if !r.kernel.reason {
		return noReason
	}
	return name
}

// has reports whether the kernel has a reason of this name.
func (r *rig) has(reason string) bool {
	return slices.Contains(slices.Collect(maps.Values(r.kernel.names)), reason)
}

func (r *rig) collect(t *testing.T) {
	t.Helper()
	if err := r.Collect(); err != nil {
		t.Fatal(err)
	}
}

// sum adds up the counts for which ok holds.
func (r *rig) sum(ok func(*flow.DropCount) bool) (n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, packets := range r.counts {
		if ok(&c) {
			n += packets
		}
	}
	return n
}

// counted reads the counts until there are as many as wanted under these names.
func (r *rig) counted(t *testing.T, want flow.DropCount) {
	t.Helper()
	n := want.Packets
	want.Packets = 0
	have := func() uint64 { return r.sum(func(c *flow.DropCount) bool { return *c == want }) }
	for deadline := time.Now().Add(5 * time.Second); have() < n && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		r.collect(t)
	}
	r.collect(t)
	if got := have(); got != n {
		t.Errorf("%d packets of %s cgroup %d %v -> %v, want %d; have:\n%v", got, want.Reason, want.CgroupID,
			want.Src.IP(), want.Dst.IP(), n, r.counts)
	}
}

// told waits for n events for which ok holds and returns these.
func (r *rig) told(t *testing.T, n int, ok func(*event) bool) []event {
	t.Helper()
	var all []event
	for deadline := time.Now().Add(5 * time.Second); len(all) < n && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		all = r.of(ok)
	}
	if len(all) != n {
		t.Fatalf("%d events, want %d; all:\n%s", len(all), n, list(r.of(func(*event) bool { return true })))
	}
	return all
}

// forget what was dropped so far.
func (r *rig) forget(t *testing.T) {
	t.Helper()
	if err := r.ring.Flush(); err != nil {
		t.Fatal(err)
	}
	r.collect(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
	clear(r.counts)
}

// of returns the events for which ok holds.
func (r *rig) of(ok func(*event) bool) (all []event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.events {
		if ok(&r.events[i]) {
			all = append(all, r.events[i])
		}
	}
	return all
}

func list(all []event) string {
	var b strings.Builder
	for _, e := range all {
		fmt.Fprintln(&b, e)
		if b.Len() > 4000 {
			break
		}
	}
	return b.String()
}

func feature(t *testing.T, format string, args ...any) {
	t.Helper()
	if !t.Failed() {
		t.Logf("orb8-feature: "+format, args...)
	}
}

// site is two hosts with addresses that no other test's have, and a process with a
// cgroup of its own on each.
type site struct {
	a, b       *probetest.Netns
	pa, pb     *probetest.Child
	cgroupA    uint64
	cgroupB    uint64
	a4, b4     netip.Addr
	a6, b6     netip.Addr
	indexOfB   uint32
	elsewhere4 netip.Addr // of a, but b has no route to it
	// Of nobody.
	beyond4, beyond6 netip.Addr
}

// sites numbers the sites of one process.
var sites atomic.Int32

func newSite(t *testing.T) *site {
	t.Helper()
	s := new(site)
	s.a, s.b = probetest.Joined(t)
	n := byte(sites.Add(1)) << 2 // namespaces live on for a while
	v4 := func(net, host byte) netip.Addr {
		return netip.AddrFrom4([4]byte{net, byte(os.Getpid() >> 8), byte(os.Getpid()), n + host})
	}
	v6 := func(host byte) netip.Addr {
		return netip.AddrFrom16([16]byte{0: 0xfd, 5: n, 6: byte(os.Getpid() >> 8), 7: byte(os.Getpid()), 15: host})
	}
	s.a4, s.b4, s.a6, s.b6, s.elsewhere4 = v4(10, 1), v4(10, 2), v6(1), v6(2), v4(11, 1)
	s.beyond4, s.beyond6 = v4(12, 1), netip.AddrFrom16([16]byte{0: 0xfc, 5: n, 6: byte(os.Getpid() >> 8), 7: byte(os.Getpid()), 15: 1})
	for _, h := range []struct {
		n      *probetest.Netns
		v4, v6 netip.Addr
	}{{s.a, s.a4, s.a6}, {s.b, s.b4, s.b6}} {
		h.n.Run(t, "ip", "addr", "add", h.v4.String()+"/30", "dev", "v0")
		h.n.Run(t, "ip", "addr", "add", h.v6.String()+"/64", "dev", "v0", "nodad")
		h.n.Settle(t)
	}
	s.a.Run(t, "ip", "addr", "add", s.elsewhere4.String()+"/32", "dev", "lo")
	s.b.Do(func() {
		if i, err := net.InterfaceByName("v0"); err == nil {
			s.indexOfB = uint32(i.Index)
		}
	})
	var dirA, dirB string
	dirA, s.cgroupA = probetest.NewCgroup(t)
	dirB, s.cgroupB = probetest.NewCgroup(t)
	s.pa, s.pb = probetest.NewChild(t, dirA, s.a), probetest.NewChild(t, dirB, s.b)
	// So that nothing waits for a neighbour later.
	for _, to := range []netip.Addr{s.b4, s.b6} {
		s.a.Reach(t, to.String())
	}
	return s
}

// ends returns the addresses of both hosts.
func (s *site) ends(v6 bool) (a, b netip.Addr) {
	if v6 {
		return s.a6, s.b6
	}
	return s.a4, s.b4
}

// commands is what a child carries out.
type commands struct{ server *net.UDPConn }

func (c *commands) do(f []string) (string, error) {
	switch f[0] {
	case "send": // COUNT SIZE FROM TO
		return send(number(f[1]), number(f[2]), f[3], f[4])
	case "bind": // ADDRESS BUFFER
		a, err := net.ResolveUDPAddr("udp", f[1])
		if err == nil {
			c.server, err = net.ListenUDP("udp", a)
		}
		if err == nil {
			err = c.server.SetReadBuffer(number(f[2]))
		}
		if err != nil {
			return "", err
		}
		return c.server.LocalAddr().String(), nil
	case "read": // how many datagrams are there
		return c.read()
	}
	return "", fmt.Errorf("no command %q", f[0])
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// send sends datagrams from a socket that hears of no error, and returns its address.
func send(count, size int, from, to string) (string, error) {
	dst, err := netip.ParseAddrPort(to)
	if err != nil {
		return "", err
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)))
	if err != nil {
		return "", err
	}
	defer c.Close()
	for range count {
		_, _ = c.WriteToUDPAddrPort(make([]byte, size), dst) // refused by a filter
	}
	return c.LocalAddr().String(), nil
}

func (c *commands) read() (string, error) {
	n := 0
	for {
		if err := c.server.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return "", err
		}
		_, err := c.server.Read(make([]byte, 1<<16))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return strconv.Itoa(n), nil
		}
		if err != nil {
			return "", err
		}
		n++
	}
}
