// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"time"

	"github.com/Ignoramuss/orb8/internal/record"
)

// connection is one end of a TCP connection.
type connection struct {
	cgroup                uint64
	local, remote         record.Addr
	localPort, remotePort uint16
}

// half is one direction of a TCP connection.
type half struct {
	connection
	out bool
}

func connectionOf(p *Packet) connection {
	return connection{p.CgroupID, p.Local, p.Remote, p.LocalPort, p.RemotePort}
}

// stream is what a segment leaves over for the next.
type stream struct {
	at uint64 // boot time
	// skip is how much is to come of a message whose beginning has been read.
	skip int
	// length is that of the next message, if the segment ended right after it.
	length int
}

const (
	// maxStreams bounds the connections in the middle of a message, and those that
	// could not be read.
	maxStreams = 1024
	// streamTime is how long the next segment of a message is waited for. What comes
	// later between the same ends may be another connection.
	streamTime = 10 * time.Second
	// brokenTime is after how long without another such part a connection that could
	// not be read is told of again.
	brokenTime = time.Minute
)

// expireStreams forgets what says nothing any more of connections, or of queries that
// wait.
func (m *Matcher) expireStreams(now, timeout uint64) {
	for h, s := range m.streams {
		if s.at+uint64(streamTime) < now {
			delete(m.streams, h)
		}
	}
	for c, at := range m.broken {
		if at+max(uint64(brokenTime), timeout) < now {
			delete(m.broken, c)
		}
	}
}

// isOneMessage reports whether a segment is a message with its length before it, and no
// more. Then it goes on with none: the rest of that was lost, or it was another
// connection's.
func isOneMessage(p *Packet) bool {
	return len(p.Data) >= 2 && int(p.Data[0])<<8|int(p.Data[1]) == p.Length-2
}

// addSegment reads the messages of a TCP segment, each with its length before it
// (RFC 1035, 4.2.2). Of a message in several segments it reads the first.
func (m *Matcher) addSegment(p *Packet) {
	h := half{connectionOf(p), p.Out}
	before, known := m.streams[h]
	if known {
		delete(m.streams, h)
	}
	if before.at+uint64(streamTime) < p.BootNanos || isOneMessage(p) {
		before = stream{}
	}
	data, rest := p.Data, p.Length
	if before.skip > 0 {
		n := min(before.skip, rest)
		data, rest = data[min(n, len(data)):], rest-n
		before.skip -= n
	}
	for rest > 0 {
		n := before.length
		if before = (stream{}); n == 0 {
			if len(data) < 2 {
				m.unread(p)
				return
			}
			n = int(data[0])<<8 | int(data[1])
			data, rest = data[2:], rest-2
		}
		if rest == 0 {
			before.length = n
			break
		}
		got := min(n, len(data))
		if n < headerSize {
			m.unread(p)
			return
		}
		err := m.addMessage(p, data[:got], n)
		if err != nil && got < n { // or it is no beginning at all
			m.unread(p)
			return
		}
		m.reject(err)
		before.skip = max(n-rest, 0)
		data, rest = data[got:], rest-min(n, rest)
	}
	if before.skip > 0 || before.length > 0 {
		before.at = p.BootNanos
		if len(m.streams) >= maxStreams {
			clear(m.streams)
		}
		m.streams[h] = before
	}
}

const headerSize = 12

// unread counts a segment that cannot be read, and tells of the first one of its
// connection for a while.
func (m *Matcher) unread(p *Packet) {
	m.counts.Unread++
	c := connectionOf(p)
	before, known := m.broken[c]
	if !known && len(m.broken) >= maxStreams {
		clear(m.broken)
	}
	m.broken[c] = p.BootNanos
	if known && before+uint64(brokenTime) >= p.BootNanos {
		return
	}
	r := Record{
		Header: record.Header{
			Local: p.Local, Remote: p.Remote, LocalPort: p.LocalPort, RemotePort: p.RemotePort,
			Protocol: p.Protocol, CgroupID: p.CgroupID,
			Role: record.RoleClient, Loopback: p.Loopback, PID: p.PID, Comm: p.Comm,
			First: m.cfg.Unix(p.BootNanos),
		},
		Exchange: Exchange{Outcome: Unread},
	}
	if p.LocalPort < p.RemotePort { // ports of servers are low
		r.Role = record.RoleServer
	}
	m.emit(&r, p.BootNanos)
}
