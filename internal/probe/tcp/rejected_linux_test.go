// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

// answer is what a rejected SYN is answered with, and what the program is told.
type answer struct {
	icmpx  string
	v4, v6 unix.Errno
	want   flow.End
}

// attempt is a way to connect.
type attempt struct {
	name    string
	connect func(netip.AddrPort) error
	told    bool // else the program does not ask
}

// An ICMP message that comes back while the program is in connect leaves nothing but an
// error to ask for, and whoever asks takes it away.
func TestRejected(t *testing.T) {
	w := start(t, Config{})
	for _, answer := range []answer{
		{"port-unreachable", unix.ECONNREFUSED, unix.ECONNREFUSED, flow.EndRefused},
		{"host-unreachable", unix.EHOSTUNREACH, unix.EHOSTUNREACH, flow.EndUnreachable},
		{"no-route", unix.ENETUNREACH, unix.ENETUNREACH, flow.EndUnreachable},
		{"admin-prohibited", unix.EHOSTUNREACH, unix.EACCES, flow.EndUnreachable},
	} {
		t.Run(answer.icmpx, func(t *testing.T) {
			a, b := probetest.Joined(t)
			nft(t, b, "meta l4proto tcp reject with icmpx type "+answer.icmpx)
			for _, attempt := range []attempt{
				{"waits", connectAndWait, true}, {"asks", connectAndAsk, true}, {"polls", connectAndPoll, true}, {"leaves", connectAndLeave, false},
			} {
				t.Run(attempt.name+"/IPv4", func(t *testing.T) { w.rejected(t, a, "10.231.0.2", attempt, answer.v4, answer.want) })
				t.Run(attempt.name+"/IPv6", func(t *testing.T) { w.rejected(t, a, "fd00:231::2", attempt, answer.v6, answer.want) })
			}
		})
	}
	probetest.Works(t, "failed TCP connections that ICMP answered")
}

func (w *watcher) rejected(t *testing.T, n *probetest.Netns, addr string, by attempt, errno unix.Errno, want flow.End) {
	t.Helper()
	port := uint16(1 + rand.IntN(30000))
	var err error
	n.Do(func() { err = by.connect(netip.AddrPortFrom(netip.MustParseAddr(addr), port)) })
	if by.told && !errors.Is(err, errno) || !by.told && err != nil {
		t.Errorf("the program was told: %v, want %v", err, errno)
	}
	f := w.find(t, "the attempt", func(f *seen) bool { return f.finals > 0 && f.RemotePort == port })
	if f.TCP.End != want || !f.TCP.Failed || f.TCP.Errno != uint16(errno) {
		t.Errorf("end %v errno %d failed %v, want %v and %d", f.TCP.End, f.TCP.Errno, f.TCP.Failed, want, errno)
	}
}

// connectAndWait is told by connect itself.
func connectAndWait(addr netip.AddrPort) error {
	family := unix.AF_INET
	if addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sockaddr(addr))
}

// connectAndAsk asks for the error at once, as Go and curl do.
func connectAndAsk(addr netip.AddrPort) error {
	fd, err := startConnect(addr)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return socketError(fd)
}

// connectAndPoll asks once it is told to.
func connectAndPoll(addr netip.AddrPort) error {
	fd, err := startConnect(addr)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 10_000); err != nil {
		return err
	}
	return socketError(fd)
}

func socketError(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	return unix.Errno(n)
}

// connectAndLeave never asks.
func connectAndLeave(addr netip.AddrPort) error {
	fd, err := startConnect(addr)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// gotten is what a program gets of a socket's option.
type gotten struct {
	err  unix.Errno
	size uint32
	buf  []byte
}

func getOption(fd, level, name, size int) gotten {
	o := gotten{size: uint32(size), buf: bytes.Repeat([]byte{0xee}, max(size, 8)+8)}
	_, _, o.err = unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&o.buf[0])), uintptr(unsafe.Pointer(&o.size)), 0)
	return o
}

// Whatever a program asks of a socket, it gets the same with the probe as without: also
// more than a page, which the kernel's copy for the probe has no room for, and what the
// kernel writes where it refuses.
func TestOptionsStayAsTheyAre(t *testing.T) {
	probetest.NeedRoot(t)
	fds := manyGroups(t)
	tcp, err := startConnect(netip.MustParseAddrPort("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tcp)
	ask := func() []gotten {
		return []gotten{
			getOption(fds[0], unix.SOL_SOCKET, unix.SO_PEERGROUPS, 4*groups),
			getOption(fds[0], unix.SOL_SOCKET, unix.SO_PEERGROUPS, 4*groups-1),
			getOption(fds[0], unix.SOL_SOCKET, unix.SO_PEERGROUPS, 16),
			getOption(fds[0], unix.SOL_SOCKET, unix.SO_PEERCRED, 12),
			getOption(fds[0], unix.SOL_SOCKET, unix.SO_PEERCRED, 8000),
			getOption(tcp, unix.SOL_SOCKET, unix.SO_TYPE, 4),
			getOption(tcp, unix.SOL_SOCKET, unix.SO_TYPE, 1),
			getOption(tcp, unix.SOL_SOCKET, unix.SO_TYPE, 0),
			getOption(tcp, unix.SOL_SOCKET, 9999, 16),
			getOption(tcp, unix.IPPROTO_TCP, unix.TCP_CONGESTION, 16),
			getOption(tcp, unix.IPPROTO_TCP, 9999, 8000),
			getOption(tcp, unix.IPPROTO_IP, unix.IP_TTL, 1),
		}
	}
	before := ask()
	w := start(t, Config{})
	if !slices.Contains(w.Hooks(), hookAsked) {
		t.Fatalf("hooks %q, degraded %q", w.Hooks(), w.Degraded())
	}
	if d := cmp.Diff(before, ask(), cmp.AllowUnexported(gotten{})); d != "" {
		t.Errorf("options (-without +with the probe):\n%s", d)
	}
	if before[0].err != 0 || before[1].err != unix.ERANGE || before[3].err != 0 || before[8].err != unix.ENOPROTOOPT {
		t.Errorf("%v %v %v %v", before[0].err, before[1].err, before[3].err, before[8].err)
	}
}

// groups of a process take more than a page.
const groups = 3000

// manyGroups returns a pair of sockets made by a process with many groups.
func manyGroups(t *testing.T) (fds [2]int) {
	t.Helper()
	ids := make([]uint32, groups)
	for i := range ids {
		ids[i] = uint32(i)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with this goroutine
		if _, _, e := unix.Syscall(unix.SYS_SETGROUPS, groups, uintptr(unsafe.Pointer(&ids[0])), 0); e != 0 {
			done <- e
			return
		}
		var err error
		fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return fds
}

// BenchmarkGetsockopt is what asking for an option costs.
func BenchmarkGetsockopt(b *testing.B) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	ask := func(b *testing.B) {
		for b.Loop() {
			if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("without", ask)
	p := New(Config{
		Apply: func(*flow.Sample) {}, Losses: new(loss.Counters), Clock: probe.NewClock(), CgroupRoot: probetest.CgroupRoot(b),
	})
	if err := p.Start(); err != nil {
		b.Skip(err)
	}
	defer p.Close()
	b.Run("with", ask)
}
