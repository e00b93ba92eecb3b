// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/shrink"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// nameWait is how long a record waits for the name of its pod: the API
	// server tells of a pod a little later than the kernel.
	nameWait = 2 * time.Second
	// joinWait is how long a record waits for the other end of its connection to
	// be seen on this node. The probes hand over what ended every 100 ms.
	joinWait = 250 * time.Millisecond
	// maxWaiting bounds the records that wait.
	maxWaiting = 8192
	// maxJoined bounds the identities that joins have made.
	maxJoined = 4096
	// maxEnds bounds how many conversations of one client's address and port are
	// looked at: a UDP socket may have any number.
	maxEnds = 16
)

// names is the part of a Table that keeps its records' names up to date.
type names struct {
	// The rows by the client's address and port: both ends of one connection have
	// it in common, also where the client sees the address of a Service and the
	// server that of its pod. Rows that share it are linked, the latest first.
	clients, servers map[side]*row
	// joined has the identities that were made of a pair of others, so that the
	// same pair keeps the same pointer.
	joined map[pair]*workload.Identity
	// waiting records, oldest first.
	waiting []waiting
	// cgroups counts the waiting records of each cgroup.
	cgroups map[uint64]int
	// commands has the texts of commands, see command.
	commands map[Comm]string

	clientsPeak, serversPeak shrink.Peak
}

// maxCommands bounds the names that are kept; when it is full, they are made anew.
const maxCommands = 4096

// command is c.String, which would make the same text again for each record.
func (n *names) command(c Comm) string {
	s, ok := n.commands[c]
	if !ok {
		if len(n.commands) >= maxCommands {
			clear(n.commands)
		}
		s = c.String()
		n.commands[c] = s
	}
	return s
}

func (n *names) giveBack() {
	n.clients, _ = shrink.Map(n.clients, &n.clientsPeak)
	n.servers, _ = shrink.Map(n.servers, &n.serversPeak)
}

type side struct {
	protocol Protocol
	addr     Addr
	port     uint16
}

type pair struct{ a, b *workload.Identity }

type waiting struct {
	rec   Record
	since time.Time
}

func newNames() names {
	return names{
		clients: make(map[side]*row), servers: make(map[side]*row),
		joined: make(map[pair]*workload.Identity), cgroups: make(map[uint64]int),
		commands: make(map[Comm]string),
	}
}

// clientEnd returns where the client of a conversation sits; ok is false where
// that is not known or does not tell one conversation from another.
func clientEnd(s *Sample) (e side, ok bool) {
	if s.LocalPort == 0 || s.RemotePort == 0 || s.Loopback {
		return side{}, false
	}
	switch s.Role {
	case RoleClient:
		return side{s.Protocol, s.Key.Local, s.LocalPort}, true
	case RoleServer:
		return side{s.Protocol, s.Key.Remote, s.RemotePort}, true
	}
	return side{}, false
}

// identify names both ends of a record. The remote end keeps the name that it
// once had, since its address may have another owner by now, and the local end
// the Service through which it was reached.
func (t *Table) identify(rec *Record) {
	before := rec.Local
	rec.Local = t.cfg.Resolver.Local(rec.CgroupID, rec.PID, t.names.command(rec.Comm), rec.Key.Local.IP())
	if before != nil && before.Service != "" && before.Pod == rec.Local.Pod {
		rec.Local = t.pair(rec.Local, before)
	}
	if rec.Remote == nil {
		rec.Remote = t.cfg.Resolver.Remote(workload.Peer{
			Addr: rec.Key.Remote.IP(), Port: peerPort(rec), Protocol: uint8(rec.Protocol), Since: t.wall(rec.First),
			Namespace: rec.Local.Namespace,
		})
	}
	rec.Self = t.cfg.IsSelf != nil && t.cfg.IsSelf(&rec.Sample)
	t.join(rec)
}

// peerPort is the remote port where it belongs to a server: a client's port says
// nothing, and may by chance be one that a Service has.
func peerPort(rec *Record) uint16 {
	if rec.Role == RoleServer {
		return 0
	}
	return rec.RemotePort
}

// join looks for the other end of the record's connection among the flows of
// this node. A client learns which pod is behind the Service that it talks to,
// a server through which Service it was reached.
func (t *Table) join(rec *Record) {
	e, ok := clientEnd(&rec.Sample)
	if !ok {
		return
	}
	switch rec.Role {
	case RoleClient:
		if !nameless(rec) {
			return
		}
		server := t.serverOf(rec, e)
		switch {
		case server == nil:
		case viaService(rec):
			rec.Remote = t.pair(server.Local, rec.Remote)
		default:
			rec.Remote = server.Local
		}
	case RoleServer:
		client := t.clientOf(rec, e)
		if client == nil {
			return
		}
		if to := client.Remote; to != nil && to.Service != "" {
			rec.Local = t.pair(rec.Local, to)
		}
		if client.Local.Pod != "" && nameless(rec) {
			rec.Remote = client.Local
		}
	}
}

// serverOf finds the other end of a client's record, the latest if there are
// several that are as likely; nil if none is a known pod.
func (t *Table) serverOf(client *Record, e side) *Record {
	var found *Record
	best, torn := matchNone, false
	for r, n := t.names.servers[e], 0; r != nil && n < maxEnds; r, n = r.nextEnd, n+1 {
		if r.rec.Local.Pod == "" {
			continue
		}
		m := t.match(client, &r.rec)
		switch {
		case m > best:
			found, best, torn = &r.rec, m, false
		case m == matchGuessed && best == matchGuessed && r.rec.Local != found.Local:
			torn = true
		}
	}
	if torn {
		return nil
	}
	return found
}

// clientOf finds the other end of a server's record; nil if clients of several
// Services are as likely.
func (t *Table) clientOf(server *Record, e side) *Record {
	var found *Record
	best, torn := matchNone, false
	for r, n := t.names.clients[e], 0; r != nil && n < maxEnds; r, n = r.nextEnd, n+1 {
		m := t.match(&r.rec, server)
		switch {
		case m > best:
			found, best, torn = &r.rec, m, false
		case m == best && m != matchNone:
			torn = torn || serviceOf(found) != serviceOf(&r.rec)
		}
	}
	if torn {
		return nil
	}
	return found
}

func serviceOf(client *Record) string {
	if client.Remote == nil {
		return ""
	}
	return client.Remote.Service
}

// match is how sure it is that two records are the ends of one connection.
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

// match looks at two records that have the client's address and port in common.
// A client may use a port again, or for several servers at once. Where the two
// ends differ in the server's address, the client must have been sent on by a
// Service of the server's, or by a host port of the server's pod.
func (t *Table) match(client, server *Record) match {
	if endedBefore(client, server) || endedBefore(server, client) {
		return matchNone
	}
	if client.Key.Remote == server.Key.Local && client.RemotePort == server.LocalPort {
		return matchExact
	}
	to, at := client.Remote, server.Local
	if to == nil || to.Namespace != at.Namespace || to.Pod != "" && to.Pod != at.Pod {
		return matchNone
	}
	if to.Service == "" {
		if to.Pod == "" {
			return matchNone
		}
		return matchBacked
	}
	backs, known := t.cfg.Resolver.Backs(to, at, server.Key.Local.IP(), server.LocalPort, uint8(server.Protocol))
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
func endedBefore(a, b *Record) bool {
	const apart = int64(100 * time.Millisecond)
	ended := a.Event >= EventClose || a.TCP.End != EndNone
	return ended && a.Last+apart < b.First
}

// nameless reports whether the record's remote end is no known pod: nobody, a
// Service, or the node whose address a pod on the host's network has.
func nameless(rec *Record) bool { return rec.Remote == nil || rec.Remote.Pod == "" }

// viaService reports whether the record's remote end is a Service whose pod is
// not known.
func viaService(rec *Record) bool {
	return rec.Remote != nil && rec.Remote.Service != "" && nameless(rec)
}

// pair returns pod's identity with the Service of service.
func (t *Table) pair(pod, service *workload.Identity) *workload.Identity {
	if pod.Service == service.Service {
		return pod
	}
	key := pair{pod, service}
	if id := t.names.joined[key]; id != nil {
		return id
	}
	if len(t.names.joined) >= maxJoined {
		clear(t.names.joined)
	}
	id := *pod
	id.Service = service.Service
	t.names.joined[key] = &id
	return &id
}

// enlist makes a row known as one end of its connection, and tells the other end
// that it is there.
func (t *Table) enlist(r *row) {
	e, ok := clientEnd(&r.rec.Sample)
	if !ok {
		return
	}
	mine, theirs := t.names.clients, t.names.servers
	if r.rec.Role == RoleServer {
		mine, theirs = theirs, mine
	}
	if r.nextEnd = mine[e]; r.nextEnd != nil {
		r.nextEnd.prevEnd = r
	}
	mine[e] = r
	t.joinAll(theirs[e])
}

// name identifies a row, and tells the other end of its connection if that can
// learn from what has become known of the remote end.
func (t *Table) name(r *row) {
	before := r.rec.Remote
	t.identify(&r.rec)
	if r.rec.Remote == before || r.rec.Role != RoleClient {
		return
	}
	if e, ok := clientEnd(&r.rec.Sample); ok {
		t.joinAll(t.names.servers[e])
	}
}

// joinAll looks for the other ends of rows that are linked.
func (t *Table) joinAll(r *row) {
	for n := 0; r != nil && n < maxEnds; r, n = r.nextEnd, n+1 {
		t.join(&r.rec)
	}
}

// delist undoes enlist.
func (t *Table) delist(r *row) {
	e, ok := clientEnd(&r.rec.Sample)
	if !ok {
		return
	}
	mine := t.names.clients
	if r.rec.Role == RoleServer {
		mine = t.names.servers
	}
	switch {
	case r.prevEnd != nil:
		r.prevEnd.nextEnd = r.nextEnd
	case mine[e] != r: // it is not listed
		return
	case r.nextEnd == nil:
		delete(mine, e)
	default:
		mine[e] = r.nextEnd
	}
	if r.nextEnd != nil {
		r.nextEnd.prevEnd = r.prevEnd
	}
	r.prevEnd, r.nextEnd = nil, nil
}

// tell hands a record out, or has it wait for a name that is about to be known.
// Records of one cgroup keep their order.
func (t *Table) tell(rec *Record) {
	if t.cfg.Awaits == nil || (t.names.cgroups[rec.CgroupID] == 0 && t.wait(rec) == 0) {
		t.emit(rec)
		return
	}
	if len(t.names.waiting) >= maxWaiting {
		if t.cfg.Awaits(t.names.waiting[0].rec.Local) {
			t.cfg.Losses.Add(loss.NameWaitFull, 1)
		}
		t.release(1) // nameless: better than not at all
	}
	t.names.waiting = append(t.names.waiting, waiting{*rec, time.Now()})
	t.names.cgroups[rec.CgroupID]++
}

// wait is how long a record may wait.
func (t *Table) wait(rec *Record) time.Duration {
	if t.cfg.Awaits(rec.Local) {
		return nameWait
	}
	if rec.Role == RoleClient && viaService(rec) {
		if _, ok := clientEnd(&rec.Sample); ok {
			return joinWait
		}
	}
	return 0
}

// Flush hands out the waiting records whose names have become known, or that
// have waited long enough. It wants to be called every 100 ms or so, and when
// more pods are known.
func (t *Table) Flush(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.names.waiting[:0]
	blocked := make(map[uint64]bool)
	for i := range t.names.waiting {
		w := &t.names.waiting[i]
		t.identify(&w.rec)
		if blocked[w.rec.CgroupID] || now.Sub(w.since) < t.wait(&w.rec) {
			blocked[w.rec.CgroupID] = true
			kept = append(kept, *w)
			continue
		}
		t.leave(w)
	}
	clear(t.names.waiting[len(kept):])
	t.keep(kept)
}

// FlushAll hands out all waiting records as they are, before the agent ends.
func (t *Table) FlushAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release(len(t.names.waiting))
}

// Waiting is the number of records that wait for a name.
func (t *Table) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.names.waiting)
}

// release hands out the n oldest records. Nothing is moved: with many that wait
// this is called for each record.
func (t *Table) release(n int) {
	for i := range t.names.waiting[:n] {
		t.leave(&t.names.waiting[i])
	}
	clear(t.names.waiting[:n])
	t.keep(t.names.waiting[n:])
}

func (t *Table) leave(w *waiting) {
	if t.names.cgroups[w.rec.CgroupID]--; t.names.cgroups[w.rec.CgroupID] <= 0 {
		delete(t.names.cgroups, w.rec.CgroupID)
	}
	t.emit(&w.rec)
}

// keep makes rest the waiting records; a burst's memory is given back.
func (t *Table) keep(rest []waiting) {
	if t.names.waiting = rest; len(rest) == 0 {
		t.names.waiting = nil
	}
}
