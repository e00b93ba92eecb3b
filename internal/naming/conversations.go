// SPDX-License-Identifier: Apache-2.0

package naming

import (
	"time"

	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/shrink"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// maxJoined bounds the identities that joins have made.
	maxJoined = 4096
	// maxEnds bounds how many conversations of one client's address and port are
	// kept: a UDP socket may have any number.
	maxEnds = 16
	// keepEnded is how long a conversation that has ended is kept for what the other
	// end tells of it, maxEnded how many of them.
	keepEnded = 10 * time.Second
	maxEnded  = 8192
)

// conversations are those on this node whose ends may learn from each other who they are:
// a client which pod is behind the Service that it talks to, a server through which
// Service it was reached.
type conversations struct {
	// The ends by the client's address and port: both ends of one connection have it
	// in common, also where the client sees the address of a Service and the server
	// that of its pod. Ends that share it are linked, the latest first.
	clients, servers map[side]*end
	// ended are the ends of conversations that are over, the oldest first.
	ended []endedEnd
	// joined has the identities that were made of a pair of others, so that the
	// same pair keeps the same pointer.
	joined map[pair]*workload.Identity

	clientsPeak, serversPeak shrink.Peak
}

func newConversations() conversations {
	return conversations{
		clients: make(map[side]*end), servers: make(map[side]*end), joined: make(map[pair]*workload.Identity),
	}
}

// side is a client's end.
type side struct {
	protocol record.Protocol
	addr     record.Addr
	port     uint16
}

// end is one end of a conversation, as it was last named.
type end struct {
	// to is the address of the server as this end knows it.
	to          record.Addr
	port        uint16
	ended       bool
	role        record.Role
	protocol    record.Protocol
	cgroup      uint64
	first, last int64
	owner, peer *workload.Identity
	next        *end
}

type endedEnd struct {
	*end
	side  side
	since time.Time
}

type pair struct{ a, b *workload.Identity }

// sideOf returns where the client of a conversation sits; ok is false where
// that is not known or does not tell one conversation from another.
func sideOf(h *record.Header) (s side, ok bool) {
	if h.LocalPort == 0 || h.RemotePort == 0 || h.Loopback {
		return side{}, false
	}
	switch h.Role {
	case record.RoleClient:
		return side{h.Protocol, h.Local, h.LocalPort}, true
	case record.RoleServer:
		return side{h.Protocol, h.Remote, h.RemotePort}, true
	}
	return side{}, false
}

func endOf(h *record.Header) end {
	e := end{to: h.Remote, port: h.RemotePort, role: h.Role, protocol: h.Protocol, cgroup: h.CgroupID, first: h.First, last: h.Last}
	if h.Role == record.RoleServer {
		e.to, e.port = h.Local, h.LocalPort
	}
	return e
}

// ends of a role, by the client's end.
func (c *conversations) ends(r record.Role) map[side]*end {
	if r == record.RoleServer {
		return c.servers
	}
	return c.clients
}

// opposite has the ends of the other role.
func (c *conversations) opposite(r record.Role) map[side]*end {
	if r == record.RoleServer {
		return c.clients
	}
	return c.servers
}

// find returns the end of a record's conversation that is the record's own; nil if it has
// none, or none is kept.
func (c *conversations) find(h *record.Header) *end {
	at, ok := sideOf(h)
	if !ok {
		return nil
	}
	want := endOf(h)
	for e := c.ends(h.Role)[at]; e != nil; e = e.next {
		if e.to == want.to && e.port == want.port && e.cgroup == want.cgroup && e.first == want.first {
			return e
		}
	}
	return nil
}

// add keeps the end of a record's conversation, unless too many share the client's port.
func (c *conversations) add(h *record.Header, at side) *end {
	ends := c.ends(h.Role)
	n, over := 0, (*end)(nil)
	for e := ends[at]; e != nil; e = e.next {
		n++
		if e.ended {
			over = e
		}
	}
	if n >= maxEnds {
		if over == nil {
			return nil
		}
		c.forget(over, at)
	}
	e := endOf(h)
	e.next = ends[at]
	ends[at] = &e
	return &e
}

// update takes over what a record says of its conversation.
func (s *Stage) update(e *end, h *record.Header, at side) {
	e.last = max(e.last, h.Last)
	if h.Phase != record.Ended {
		e.ended = false // it may have been idle
		return
	}
	if e.ended {
		return
	}
	e.ended = true
	s.conversations.ended = append(s.conversations.ended, endedEnd{e, at, time.Now()})
	if len(s.conversations.ended) > maxEnded {
		s.dropEnded(1)
	}
}

// Sweep forgets conversations that have been over for a while. It wants to be called every
// few seconds.
func (s *Stage) Sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.conversations.ended) && now.Sub(s.conversations.ended[n].since) >= keepEnded {
		n++
	}
	s.dropEnded(n)
	s.giveBack()
}

// dropEnded forgets the n oldest of the ended ends.
func (c *conversations) dropEnded(n int) {
	for _, e := range c.ended[:n] {
		if e.ended { // else it went on
			c.forget(e.end, e.side)
		}
	}
	clear(c.ended[:n])
	if c.ended = c.ended[n:]; len(c.ended) == 0 {
		c.ended = nil
	}
}

// forget takes an end out. It may have been taken out before.
func (c *conversations) forget(e *end, at side) {
	ends := c.ends(e.role)
	first := ends[at]
	if first == e {
		if e.next == nil {
			delete(ends, at)
		} else {
			ends[at] = e.next
		}
		return
	}
	for o := first; o != nil; o = o.next {
		if o.next == e {
			o.next = e.next
			return
		}
	}
}

// join looks for the other end of a conversation among those of this node.
func (s *Stage) join(e *end, at side) {
	if e.role == record.RoleClient {
		if !nameless(e.peer) && !e.peer.OwnerPending {
			return
		}
		switch server := s.serverOf(e, at); {
		case server == nil:
		case !nameless(e.peer) && e.peer.Pod != server.owner.Pod:
		case e.peer != nil && e.peer.Service != "":
			e.peer = s.pair(server.owner, e.peer)
		default:
			e.peer = server.owner
		}
		return
	}
	client := s.clientOf(e, at)
	if client == nil {
		return
	}
	if to := client.peer; to != nil && to.Service != "" {
		e.owner = s.pair(e.owner, to)
	}
	if client.owner.Pod != "" && (nameless(e.peer) || e.peer.OwnerPending && e.peer.Pod == client.owner.Pod) {
		e.peer = client.owner
	}
}

// serverOf finds the other end of a client's, the latest if there are several that are as
// likely; nil if none is a known pod.
func (s *Stage) serverOf(client *end, at side) *end {
	var found *end
	best, torn := matchNone, false
	for e := s.servers[at]; e != nil; e = e.next {
		if e.owner.Pod == "" {
			continue
		}
		m := s.match(client, e)
		switch {
		case m > best:
			found, best, torn = e, m, false
		case m == matchGuessed && best == matchGuessed && e.owner != found.owner:
			torn = true
		}
	}
	if torn {
		return nil
	}
	return found
}

// clientOf finds the other end of a server's; nil if clients of several Services are as
// likely.
func (s *Stage) clientOf(server *end, at side) *end {
	var found *end
	best, torn := matchNone, false
	for e := s.clients[at]; e != nil; e = e.next {
		m := s.match(e, server)
		switch {
		case m > best:
			found, best, torn = e, m, false
		case m == best && m != matchNone:
			torn = torn || serviceOf(found.peer) != serviceOf(e.peer)
		}
	}
	if torn {
		return nil
	}
	return found
}

func serviceOf(id *workload.Identity) string {
	if id == nil {
		return ""
	}
	return id.Service
}

// match is how sure it is that two ends are those of one connection.
type match int

const (
	matchNone match = iota
	// matchGuessed: the client's Service and the server's pod share a namespace,
	// and no EndpointSlice is known.
	matchGuessed
	// matchBacked: the client's Service sends to the server's address and port.
	matchBacked
	// matchExact: both ends know the same addresses and ports.
	matchExact
)

// match looks at two ends that have the client's address and port in common.
// A client may use a port again, or for several servers at once. Where the two
// ends differ in the server's address, the client must have been sent on by a
// Service of the server's, or by a host port of the server's pod.
func (s *Stage) match(client, server *end) match {
	if endedBefore(client, server) || endedBefore(server, client) {
		return matchNone
	}
	if client.to == server.to && client.port == server.port {
		return matchExact
	}
	to, at := client.peer, server.owner
	if to == nil || to.Namespace != at.Namespace || to.Pod != "" && to.Pod != at.Pod {
		return matchNone
	}
	if to.Service == "" {
		if to.Pod == "" {
			return matchNone
		}
		return matchBacked
	}
	backs, known := s.cfg.Resolver.Backs(to, at, server.to.IP(), server.port, uint8(server.protocol))
	switch {
	case backs:
		return matchBacked
	case known:
		return matchNone
	}
	return matchGuessed
}

// endedBefore reports whether a was over when b began. The two ends of a short
// connection are timed a little apart.
func endedBefore(a, b *end) bool {
	const apart = int64(100 * time.Millisecond)
	return a.ended && a.last+apart < b.first
}

// nameless reports whether a peer is no known pod: nobody, a Service, or the node whose
// address a pod on the host's network has.
func nameless(peer *workload.Identity) bool { return peer == nil || peer.Pod == "" }

// viaService reports whether a peer is a Service whose pod is not known.
func viaService(peer *workload.Identity) bool {
	return peer != nil && peer.Service != "" && nameless(peer)
}

// pair returns pod's identity with the Service of service.
func (c *conversations) pair(pod, service *workload.Identity) *workload.Identity {
	if pod.Service == service.Service {
		return pod
	}
	key := pair{pod, service}
	if id := c.joined[key]; id != nil {
		return id
	}
	if len(c.joined) >= maxJoined {
		clear(c.joined)
	}
	id := *pod
	id.Service = service.Service
	c.joined[key] = &id
	return &id
}

// giveBack lets go of memory that a burst of conversations took.
func (c *conversations) giveBack() {
	c.clients, _ = shrink.Map(c.clients, &c.clientsPeak)
	c.servers, _ = shrink.Map(c.servers, &c.serversPeak)
}
