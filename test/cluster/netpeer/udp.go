// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// serve answers on TCP and UDP at each of the addresses until ctx is done.
func serve(ctx context.Context, addrs string) error {
	return listen(ctx, addrs, serveTCP, serveUDP)
}

// listen has TCP and UDP served at each of the addresses until ctx is done or one of them
// fails.
func listen(ctx context.Context, addrs string, tcp func(net.Listener) error, udp func(net.PacketConn) error) error {
	failed := make(chan error, 1)
	lc := plain()
	for addr := range strings.SplitSeq(addrs, ",") {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		p, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			return err
		}
		go func() { failed <- tcp(l) }()
		go func() { failed <- udp(p) }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// serveUDP sends every datagram back.
func serveUDP(p net.PacketConn) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := p.WriteTo(buf[:n], from); err != nil {
			return err
		}
	}
}

func clientUDP(ctx context.Context, t *traffic) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", t.to)
	if err != nil {
		return err
	}
	defer c.Close()
	r := Result{Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String()}
	send := func() error {
		_, err := c.Write(make([]byte, t.size))
		return err
	}
	return exchange(ctx, t, r, send, c, func(b []byte) bool { return len(b) == t.size })
}

// conn is what exchange reads answers from.
type conn interface {
	Read(b []byte) (int, error)
	SetReadDeadline(t time.Time) error
}

// exchange sends t.count messages and waits for the answer to each.
func exchange(ctx context.Context, t *traffic, r Result, send func() error, from conn, isAnswer func([]byte) bool) error {
	if err := r.print(); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for i := range t.count {
		if i > 0 {
			sleep(ctx, t.pause)
		}
		if err := send(); err != nil {
			return err
		}
		r.Sent += t.size
		if err := from.SetReadDeadline(time.Now().Add(t.timeout)); err != nil {
			return err
		}
		for {
			n, err := from.Read(buf)
			if err != nil {
				return fmt.Errorf("answer %d of %d: %w", i+1, t.count, err)
			}
			if isAnswer(buf[:n]) {
				r.Received += t.size
				break
			}
		}
	}
	r.Done = true
	return r.print()
}

// packets makes a PacketConn a conn.
type packets struct{ net.PacketConn }

func (p packets) Read(b []byte) (int, error) {
	n, _, err := p.ReadFrom(b)
	return n, err
}

// Message types of an echo, RFC 792 and RFC 4443.
const (
	echo4, reply4 = 8, 0
	echo6, reply6 = 128, 129
	echoHeader    = 8
)

// ping sends echo requests through a raw socket.
func ping(ctx context.Context, t *traffic) error {
	to := net.ParseIP(t.to)
	if to == nil {
		return errors.New("ping: want an address")
	}
	network, request, reply := "ip4:icmp", byte(echo4), byte(reply4)
	if to.To4() == nil {
		network, request, reply = "ip6:ipv6-icmp", echo6, reply6
	}
	var lc net.ListenConfig
	p, err := lc.ListenPacket(ctx, network, "")
	if err != nil {
		return err
	}
	defer p.Close()
	id := int(uint16(time.Now().UnixNano()>>10) | 1)
	seq := uint16(0)
	r := Result{Local: p.LocalAddr().String(), Remote: t.to, ID: id}
	send := func() error {
		seq++
		m := make([]byte, echoHeader+t.size)
		m[0] = request
		binary.BigEndian.PutUint16(m[4:], uint16(id))
		binary.BigEndian.PutUint16(m[6:], seq)
		if request == echo4 { // the kernel does it for ICMPv6
			binary.BigEndian.PutUint16(m[2:], checksum(m))
		}
		_, err := p.WriteTo(m, &net.IPAddr{IP: to})
		return err
	}
	return exchange(ctx, t, r, send, packets{p}, func(b []byte) bool {
		return len(b) == echoHeader+t.size && b[0] == reply &&
			binary.BigEndian.Uint16(b[4:]) == uint16(id) && binary.BigEndian.Uint16(b[6:]) == seq
	})
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
