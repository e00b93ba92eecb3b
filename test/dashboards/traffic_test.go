// SPDX-License-Identifier: Apache-2.0

//go:build linux

package dashboards

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// pause is between two rounds of traffic.
const pause = 50 * time.Millisecond

// repeat calls f until ctx is done.
func repeat(ctx context.Context, f func(round int)) {
	for i := 0; ctx.Err() == nil; i++ {
		f(i)
		time.Sleep(pause)
	}
}

// traffic makes connections of every fate, and datagrams, until ctx is done.
func traffic(ctx context.Context, t *testing.T) {
	t.Helper()
	contained(ctx, t)
	greeting := greeter(ctx, t)
	keeping := keeper(ctx, t)
	crowded := crowd(ctx, t)
	closed := freePort(t)
	go repeat(ctx, func(i int) {
		d := net.Dialer{Timeout: 200 * time.Millisecond}
		if c, err := d.DialContext(ctx, "tcp", greeting); err == nil {
			_, _ = io.ReadAll(c)
			_ = c.Close()
		}
		_, _ = d.DialContext(ctx, "tcp", closed)
		send(ctx, closed, []byte("datagram"))
		if i%10 == 0 {
			go hold(ctx, crowded)
		}
		if i == 0 {
			go hold(ctx, keeping)
		}
	})
}

// container is the id of what contained runs in.
var container = strings.Repeat("da5b", 16)

// contained runs a program again and again, in the cgroup of a container, that changes
// its root directory.
func contained(ctx context.Context, t *testing.T) {
	t.Helper()
	resolver, err := workload.NewResolver(workload.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(resolver.Mount().Path, "docker-"+container+".scope")
	if err := errors.Join(resolver.Close(), os.Mkdir(cgroup, 0o755)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		<-ended
		if err := errors.Join(dir.Close(), os.Remove(cgroup)); err != nil {
			t.Error(err)
		}
	})
	go func() {
		defer close(ended)
		repeat(ctx, func(int) {
			cmd := exec.Command("chroot", "/", "true")
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
			_ = cmd.Run() // seen or not, the panels tell
		})
	}()
}

// greeter says hello, and resets every other connection.
func greeter(ctx context.Context, t *testing.T) string {
	t.Helper()
	return listen(ctx, t, func(i int, c *net.TCPConn) {
		_, _ = c.Write([]byte("hello"))
		if i%2 == 0 {
			_ = c.SetLinger(0) // a reset
		}
		_ = c.Close()
	})
}

// keeper closes its half of a connection, and waits for the other.
func keeper(ctx context.Context, t *testing.T) string {
	t.Helper()
	return listen(ctx, t, func(_ int, c *net.TCPConn) {
		_ = c.CloseWrite()
		<-ctx.Done()
		_ = c.Close()
	})
}

// listen hands connections out until ctx is done.
func listen(ctx context.Context, t *testing.T, serve func(int, *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(i, c.(*net.TCPConn))
		}
	}()
	return l.Addr().String()
}

// hold keeps a connection until ctx is done.
func hold(ctx context.Context, addr string) {
	d := net.Dialer{Timeout: 3 * time.Second}
	if c, err := d.DialContext(ctx, "tcp", addr); err == nil {
		<-ctx.Done()
		_ = c.Close()
	}
}

// crowd is an address where nobody accepts: when its queue is full, the kernel drops
// SYNs, and they are sent again.
func crowd(ctx context.Context, t *testing.T) string {
	t.Helper()
	full, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = syscall.Close(full) })
	if err := syscall.Bind(full, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(full, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(full)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*syscall.SockaddrInet4).Port))
}

// send sends one datagram, and waits for none.
func send(ctx context.Context, addr string, data []byte) {
	var d net.Dialer
	if c, err := d.DialContext(ctx, "udp", addr); err == nil {
		_, _ = c.Write(data)
		_ = c.Close()
	}
}

// dnsTimeout is how long the agent lets queries wait.
const dnsTimeout = 500 * time.Millisecond

// asked are the names that are asked for, one after the other; the server goes by
// their first word. The pair at the end is what ndots makes of a name.
func asked() []string {
	return []string{
		"found.test.", "missing.test.", "broken.test.", "silent.test.", "twice.test.",
		"db.test.shop.svc.cluster.local.", "db.test.",
	}
}

// names asks a server of its own for names until ctx is done, and returns its port.
func names(ctx context.Context, t *testing.T) int {
	t.Helper()
	server, l := bothPorts(t)
	context.AfterFunc(ctx, func() {
		_ = server.Close()
		_ = l.Close()
	})
	addr := server.LocalAddr().(*net.UDPAddr)
	go serveNames(server)
	go repeat(ctx, func(int) {
		for i, name := range asked() {
			ask(ctx, addr.String(), uint16(i), name)
		}
		send(ctx, addr.String(), []byte("no DNS"))
		send(ctx, addr.String(), append([]byte{0, 1, 4 << 3, 0, 0, 1}, make([]byte, 12)...)) // NOTIFY is no query
		babble(ctx, addr.String())
	})
	return addr.Port
}

// bothPorts returns sockets of one port for UDP and TCP. What comes over TCP waits.
func bothPorts(t *testing.T) (*net.UDPConn, net.Listener) {
	t.Helper()
	var last error
	for range 100 {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().(*net.TCPAddr)
		server, err := net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: addr.Port})
		if err == nil {
			return server, l
		}
		last = err
		_ = l.Close()
	}
	t.Fatal("no port for both UDP and TCP:", last)
	return nil, nil
}

// ask sends a query and takes an answer for a moment.
func ask(ctx context.Context, addr string, id uint16, name string) {
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	data, err := query.Pack()
	if err != nil {
		panic(err)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write(data)
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, _ = c.Read(make([]byte, 512))
}

// babble sends what is too short to be a message over TCP.
func babble(ctx context.Context, addr string) {
	var d net.Dialer
	if c, err := d.DialContext(ctx, "tcp", addr); err == nil {
		_, _ = c.Write([]byte{1})
		_ = c.Close()
	}
}

// serveNames answers queries until the socket is closed.
func serveNames(server *net.UDPConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := server.ReadFromUDP(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		for range answer(&m) {
			if data, err := m.Pack(); err == nil {
				_, _ = server.WriteToUDP(data, from)
			}
		}
	}
}

// answer makes a query an answer, and returns how often it is sent.
func answer(m *dnsmessage.Message) int {
	name := m.Questions[0].Name
	m.Response = true
	times := 1
	word, domain, _ := strings.Cut(name.String(), ".")
	switch {
	case word == "silent":
		return 0
	case word == "missing" || strings.HasSuffix(domain, ".cluster.local."):
		m.RCode = dnsmessage.RCodeNameError
		return 1
	case word == "broken":
		m.RCode = dnsmessage.RCodeServerFailure
		return 1
	case word == "twice":
		times = 2
	}
	m.Answers = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 30},
		Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
	}}
	return times
}
