// SPDX-License-Identifier: Apache-2.0

//go:build linux

package dashboards

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

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
	go func() {
		for ctx.Err() == nil {
			for i, name := range asked() {
				ask(ctx, addr.String(), uint16(i), name)
			}
			send(ctx, addr.String(), []byte("no DNS"))
			send(ctx, addr.String(), append([]byte{0, 1, 4 << 3, 0, 0, 1}, make([]byte, 12)...)) // NOTIFY is no query
			babble(ctx, addr.String())
			time.Sleep(50 * time.Millisecond)
		}
	}()
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

// send sends a datagram.
func send(ctx context.Context, addr string, data []byte) {
	var d net.Dialer
	if c, err := d.DialContext(ctx, "udp", addr); err == nil {
		_, _ = c.Write(data)
		_ = c.Close()
	}
}
