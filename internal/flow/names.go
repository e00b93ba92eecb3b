// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"time"

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
)

// names is the part of a Table that keeps its records' names up to date.
type names struct {
	// ends has the rows by the client's address and port: both ends of one
	// connection have it in common, also where the client sees the address of a
	// Service and the server that of its pod.
	clients, servers map[side]*row
	// joined has the identities that were made of a pair of others, so that the
	// same pair keeps the same pointer.
	joined map[pair]*workload.Identity
	// waiting records, oldest first.
	waiting []waiting
	// cgroups counts the waiting records of each cgroup.
	cgroups map[uint64]int
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
// once had, since its address may have another owner by now.
func (t *Table) identify(rec *Record) {
	rec.Local = t.cfg.Resolver.Local(rec.CgroupID, rec.PID, rec.Comm.String(), rec.Key.Local.IP())
	if rec.Remote == nil {
		rec.Remote = t.cfg.Resolver.Remote(workload.Peer{
			Addr: rec.Key.Remote.IP(), Port: peerPort(rec), Protocol: uint8(rec.Protocol), Since: rec.First,
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
		server := t.names.servers[e]
		if server == nil || server.rec.Local.Pod == "" || !nameless(rec) || !sameConnection(rec, &server.rec) {
			return
		}
		if viaService(rec) {
			rec.Remote = t.pair(server.rec.Local, rec.Remote)
		} else {
			rec.Remote = server.rec.Local
		}
	case RoleServer:
		client := t.names.clients[e]
		if client == nil || !sameConnection(&client.rec, rec) {
			return
		}
		if to := client.rec.Remote; to != nil && to.Service != "" {
			rec.Local = t.pair(rec.Local, to)
		}
		if client.rec.Local.Pod != "" && nameless(rec) {
			rec.Remote = client.rec.Local
		}
	}
}

// sameConnection reports whether two records that have the client's address and
// port in common can be the two ends of one connection. A client may use a port
// again, or for several servers at once. Where the two ends differ in the
// server's address, the client must have been sent on by a Service of the
// server's namespace, or by a host port of the server's pod.
func sameConnection(client, server *Record) bool {
	if endedBefore(client, server) || endedBefore(server, client) {
		return false
	}
	if client.Key.Remote == server.Key.Local && client.RemotePort == server.LocalPort {
		return true
	}
	to, at := client.Remote, server.Local
	if to == nil || to.Namespace != at.Namespace || to.Pod != "" && to.Pod != at.Pod {
		return false
	}
	return to.Service != "" || to.Pod != ""
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
	mine[e] = r
	if other := theirs[e]; other != nil {
		t.join(&other.rec)
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
	if mine[e] == r {
		delete(mine, e)
	}
}

// tell hands a record out, or has it wait for a name that is about to be known.
// Records of one cgroup keep their order.
func (t *Table) tell(rec *Record) {
	if t.cfg.Awaits == nil || (t.names.cgroups[rec.CgroupID] == 0 && t.wait(rec) == 0) {
		t.emit(rec)
		return
	}
	if len(t.names.waiting) >= maxWaiting {
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
	t.trim(kept)
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

// release hands out the n oldest records.
func (t *Table) release(n int) {
	for i := range t.names.waiting[:n] {
		t.leave(&t.names.waiting[i])
	}
	// Nothing is moved: with many that wait this is called for each record.
	clear(t.names.waiting[:n])
	if t.names.waiting = t.names.waiting[n:]; len(t.names.waiting) == 0 {
		t.names.waiting = nil
	}
}

func (t *Table) leave(w *waiting) {
	if t.names.cgroups[w.rec.CgroupID]--; t.names.cgroups[w.rec.CgroupID] <= 0 {
		delete(t.names.cgroups, w.rec.CgroupID)
	}
	t.emit(&w.rec)
}

// trim makes kept the waiting records; a burst's memory is given back.
func (t *Table) trim(kept []waiting) {
	clear(t.names.waiting[len(kept):])
	t.names.waiting = kept
	if len(kept) == 0 {
		t.names.waiting = nil
	}
}
