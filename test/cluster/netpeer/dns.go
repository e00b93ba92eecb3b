// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// maxMessage bounds a DNS message over TCP.
const maxMessage = 1 << 16

// serveDNS answers queries over UDP and TCP at each of the addresses until ctx is
// done. The first label of the name says how: silent gets no answer, slow one after
// wait, large over UDP one without records that says it did not fit, missing
// NXDOMAIN, and any other name an address.
func serveDNS(ctx context.Context, addrs string, wait time.Duration) error {
	s := dnsServer{wait}
	return listen(ctx, addrs, s.tcp, s.udp)
}

type dnsServer struct{ wait time.Duration }

func (s dnsServer) udp(p net.PacketConn) error {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return err
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil {
			continue
		}
		go func() {
			if a := s.answer(&q, true); a != nil {
				_, _ = p.WriteTo(a, from) // a client that has gone
			}
		}()
	}
}

func (s dnsServer) tcp(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			for {
				data, err := readMessage(c)
				var q dnsmessage.Message
				if err != nil || q.Unpack(data) != nil {
					return
				}
				if a := s.answer(&q, false); a != nil {
					_, _ = c.Write(withLength(a))
				}
			}
		}()
	}
}

// answer returns the answer to q, or nil if there is none.
func (s dnsServer) answer(q *dnsmessage.Message, udp bool) []byte {
	if len(q.Questions) != 1 {
		return nil
	}
	question := q.Questions[0]
	a := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired},
		Questions: q.Questions,
	}
	switch label, _, _ := strings.Cut(question.Name.String(), "."); {
	case label == "silent":
		return nil
	case label == "missing":
		a.RCode = dnsmessage.RCodeNameError
	case label == "large" && udp:
		a.Truncated = true
	default:
		if label == "slow" {
			time.Sleep(s.wait)
		}
		a.Answers = records(question)
	}
	data, err := a.Pack()
	if err != nil {
		return nil
	}
	return data
}

// records are documentation's addresses.
func records(q dnsmessage.Question) []dnsmessage.Resource {
	r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5}}
	switch q.Type {
	case dnsmessage.TypeA:
		r.Body = &dnsmessage.AResource{A: [4]byte{192, 0, 2, 53}}
	case dnsmessage.TypeAAAA:
		r.Body = &dnsmessage.AAAAResource{AAAA: [16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 0x53}}
	default:
		return nil
	}
	return []dnsmessage.Resource{r}
}

// readMessage reads one message of a TCP stream, RFC 1035, 4.2.2.
func readMessage(r io.Reader) ([]byte, error) {
	var length uint16
	if err := binary.Read(r, binary.BigEndian, &length); err != nil {
		return nil, err
	}
	data := make([]byte, length)
	_, err := io.ReadFull(r, data)
	return data, err
}

func withLength(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
}

// resolve sends one query for an address of name to t.to, and over TCP once more if
// the answer says that it did not fit.
func resolve(ctx context.Context, t *traffic, name, kind string) error {
	kinds := map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA}
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return fmt.Errorf("name %q: %w", name, err)
	}
	if kinds[kind] == 0 {
		return fmt.Errorf("-type %s: want A or AAAA", kind)
	}
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(time.Now().UnixNano() >> 10), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kinds[kind], Class: dnsmessage.ClassINET}},
	}
	a, r, err := t.ask(ctx, "udp", &q)
	if err == nil && a.Truncated {
		a, r, err = t.ask(ctx, "tcp", &q)
	}
	if err != nil {
		return err
	}
	r.ID, r.Addresses, r.Done = int(q.ID), addresses(a), true
	return r.print()
}

// ask sends one query and returns its answer.
func (t *traffic) ask(ctx context.Context, network string, q *dnsmessage.Message) (*dnsmessage.Message, Result, error) {
	data, err := q.Pack()
	if err != nil {
		return nil, Result{}, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, t.to)
	if err != nil {
		return nil, Result{}, err
	}
	defer c.Close()
	r := Result{Local: c.LocalAddr().String(), Remote: c.RemoteAddr().String(), ID: int(q.ID)}
	if err := errors.Join(c.SetDeadline(time.Now().Add(t.timeout)), r.print()); err != nil {
		return nil, r, err
	}
	begun := time.Now()
	if network == "tcp" {
		data = withLength(data)
	}
	if r.Sent, err = c.Write(data); err != nil {
		return nil, r, err
	}
	if network == "tcp" {
		data, err = readMessage(c)
	} else {
		var n int
		data = make([]byte, maxMessage)
		n, err = c.Read(data)
		data = data[:n]
	}
	if err != nil {
		return nil, r, err
	}
	r.Took, r.Received = time.Since(begun), len(data)
	a := &dnsmessage.Message{}
	err = a.Unpack(data)
	return a, r, err
}

func addresses(m *dnsmessage.Message) []string {
	var all []string
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			all = append(all, net.IP(b.A[:]).String())
		case *dnsmessage.AAAAResource:
			all = append(all, net.IP(b.AAAA[:]).String())
		}
	}
	return all
}

// lookup asks for a name's addresses as programs do, by way of /etc/resolv.conf and
// its search domains. A name that is not there is no error.
func lookup(ctx context.Context, name string) error {
	begun := time.Now()
	found, err := net.DefaultResolver.LookupHost(ctx, name)
	var missing *net.DNSError
	if errors.As(err, &missing) && missing.IsNotFound {
		err = nil
	}
	if err != nil {
		return err
	}
	return Result{Addresses: found, Took: time.Since(begun), Done: true}.print()
}
