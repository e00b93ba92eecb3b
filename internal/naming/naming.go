// SPDX-License-Identifier: Apache-2.0

// Package naming says of records whose they are and with whom. A record of a pod that is
// not known yet waits, for a bounded time, until it is. The package knows nothing of what
// records tell beyond their headers.
package naming

import (
	"net/netip"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// nameWait is how long a record waits for the name of its pod: the API
	// server tells of a pod a little later than the kernel.
	nameWait = 2 * time.Second
	// ownerWait is how long a record waits for it to be known what an end's pod belongs
	// to, while the API server is asked.
	ownerWait = 500 * time.Millisecond
	// executableWait is how long a record waits for it to be known what its process
	// runs: the probe that tells of it hands over what happened every 100 ms.
	executableWait = 250 * time.Millisecond
	// joinWait is how long a record waits for the other end of its connection to
	// be seen on this node. The probes hand over what ended every 100 ms.
	joinWait = 250 * time.Millisecond
	// maxWaiting bounds the records that wait.
	maxWaiting = 8192
	// maxCommands bounds the names that are kept; when it is full, they are made anew.
	maxCommands = 4096
)

// Resolver names owners and peers. It is asked for each record and must answer from
// memory or the local file system.
type Resolver interface {
	// Local never returns nil.
	Local(cgroupID uint64, pid uint32, comm string, addr netip.Addr) *workload.Identity
	// Remote returns nil where nothing is known.
	Remote(workload.Peer) *workload.Identity
	// Backs reports whether a Service sends to an address and port of server; known
	// is false if it cannot be told.
	Backs(service, server *workload.Identity, addr netip.Addr, port uint16, protocol uint8) (backs, known bool)
}

// Config is what a Stage needs. Resolver and Losses are required.
type Config struct {
	Resolver Resolver
	// IsSelf recognises orb8's own doings; nil if there are none.
	IsSelf func(*record.Header) bool
	// Awaits says of an owner that it is a pod whose name may become known within
	// seconds; nil if no record shall ever wait for a name. With it or Executable, Flush
	// must be called regularly.
	Awaits func(*workload.Identity) bool
	// Executable returns the path of what the process of a record ran, empty if it is
	// not known; soon: it is about to be known. nil if nobody knows.
	Executable func(*record.Header) (path string, soon bool)
	Losses     *loss.Counters
	// Correction is what to add to times of records for those of the wall clock, by
	// which peers are found; nil where they are the same.
	Correction func() time.Duration
}

// Stage names records of all kinds. Its methods may be called from any goroutine.
type Stage struct {
	cfg Config

	mu sync.Mutex
	conversations
	// waiting records, oldest first.
	waiting []waiting
	// cgroups counts the waiting records of each cgroup.
	cgroups map[uint64]int
	// commands has the texts of commands, see command.
	commands map[record.Comm]string
}

// New returns a Stage.
func New(cfg Config) *Stage {
	return &Stage{
		cfg: cfg, conversations: newConversations(),
		cgroups: make(map[uint64]int), commands: make(map[record.Comm]string),
	}
}

// waiting is a record that waits, of any kind.
type waiting struct {
	pending
	since time.Time
}

type pending interface {
	header() *record.Header
	emit()
}

// Lane is the way of one kind of records through a Stage.
type Lane[T any] struct {
	stage  *Stage
	header func(*T) *record.Header
	emit   func(*T)
	named  func(*T)
}

// NewLane adds a kind to a Stage. emit is called for each record once it is named, with
// the stage locked: it must be quick, must not call the stage and must not keep the
// record. named, which may be nil, is called before that if the record is named otherwise
// than it came.
func NewLane[T any](s *Stage, header func(*T) *record.Header, emit, named func(*T)) *Lane[T] {
	return &Lane[T]{s, header, emit, named}
}

// Submit names a record and emits it, or has it wait for a name that is about to be known.
// Records of one cgroup keep their order. A record that comes with an owner or a peer was
// named so before.
func (l *Lane[T]) Submit(r *T) {
	s, h := l.stage, l.header(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	came := namesOf(h)
	s.name(h)
	if s.cgroups[h.CgroupID] == 0 && s.wait(h) == 0 {
		l.leave(r, came)
		return
	}
	if len(s.waiting) >= maxWaiting {
		if s.awaits(s.waiting[0].header()) {
			s.cfg.Losses.Add(loss.NameWaitFull, 1)
		}
		s.release(1) // nameless: better than not at all
	}
	s.waiting = append(s.waiting, waiting{&held[T]{l, *r, came}, time.Now()})
	s.cgroups[h.CgroupID]++
}

// names are what naming tells of a record.
type names struct {
	owner, peer *workload.Identity
	executable  string
}

func namesOf(h *record.Header) names { return names{h.Owner, h.Peer, h.Executable} }

// leave emits a record that came with names.
func (l *Lane[T]) leave(r *T, came names) {
	if l.named != nil && namesOf(l.header(r)) != came {
		l.named(r)
	}
	l.emit(r)
}

// held is a record of one kind that waits.
type held[T any] struct {
	lane *Lane[T]
	rec  T
	came names
}

func (h *held[T]) header() *record.Header { return h.lane.header(&h.rec) }
func (h *held[T]) emit()                  { h.lane.leave(&h.rec, h.came) }

// wait is how long a record may wait.
func (s *Stage) wait(h *record.Header) time.Duration {
	if s.awaits(h) {
		return nameWait
	}
	if s.cfg.Awaits != nil && (ownerPending(h.Owner) || ownerPending(h.Peer)) {
		return ownerWait
	}
	if s.cfg.Awaits != nil && h.Role == record.RoleClient && viaService(h.Peer) {
		if _, ok := sideOf(h); ok {
			return joinWait
		}
	}
	if s.setExecutable(h) {
		return executableWait
	}
	return 0
}

// awaits reports whether the owner is a pod whose name is about to be known.
func (s *Stage) awaits(h *record.Header) bool { return s.cfg.Awaits != nil && s.cfg.Awaits(h.Owner) }

// setExecutable says what a record's process ran, and reports whether that is not known yet
// but soon will be.
func (s *Stage) setExecutable(h *record.Header) (soon bool) {
	if h.Executable != "" || h.PID == 0 || s.cfg.Executable == nil {
		return false
	}
	h.Executable, soon = s.cfg.Executable(h)
	return soon
}

// Flush emits the waiting records whose names have become known, or that have waited long
// enough. It wants to be called every 100 ms or so, and when more pods are known.
func (s *Stage) Flush(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.waiting[:0]
	blocked := make(map[uint64]bool)
	for i := range s.waiting {
		w := s.waiting[i]
		h := w.header()
		s.identify(h, s.find(h))
		if blocked[h.CgroupID] || now.Sub(w.since) < s.wait(h) {
			blocked[h.CgroupID] = true
			kept = append(kept, w)
			continue
		}
		s.leave(w)
	}
	clear(s.waiting[len(kept):])
	s.keep(kept)
}

// FlushAll emits all waiting records as they are, before the agent ends.
func (s *Stage) FlushAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(len(s.waiting))
}

// Waiting is the number of records that wait for a name.
func (s *Stage) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

// Oldest is the time of the record that waits and is the oldest; ok is false if none does.
func (s *Stage) Oldest() (t int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.waiting {
		if at := s.waiting[i].header().Time; !ok || at < t {
			t, ok = at, true
		}
	}
	return t, ok
}

// Refresh names headers anew that were named before, as those of a table's rows, where
// more may be known by now. It reports for which that is so.
func (s *Stage) Refresh(h *record.Header) (changed bool) {
	before := namesOf(h)
	s.setExecutable(h)
	if h.Owner != nil && h.Peer != nil && h.Peer.Pod != "" && !s.awaits(h) && !ownerPending(h.Owner) && !ownerPending(h.Peer) &&
		(h.Role != record.RoleServer || h.Owner.Service != "") {
		return namesOf(h) != before
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identify(h, s.find(h))
	return namesOf(h) != before
}

// release emits the n oldest records. Nothing is moved: with many that wait this is called
// for each record.
func (s *Stage) release(n int) {
	for i := range s.waiting[:n] {
		s.leave(s.waiting[i])
	}
	clear(s.waiting[:n])
	s.keep(s.waiting[n:])
}

func (s *Stage) leave(w waiting) {
	cgroup := w.header().CgroupID
	if s.cgroups[cgroup]--; s.cgroups[cgroup] <= 0 {
		delete(s.cgroups, cgroup)
	}
	w.emit()
}

// keep makes rest the waiting records; a burst's memory is given back.
func (s *Stage) keep(rest []waiting) {
	if s.waiting = rest; len(rest) == 0 {
		s.waiting = nil
	}
}

// command is c.String, which would make the same text again for each record.
func (s *Stage) command(c record.Comm) string {
	text, ok := s.commands[c]
	if !ok {
		if len(s.commands) >= maxCommands {
			clear(s.commands)
		}
		text = c.String()
		s.commands[c] = text
	}
	return text
}

// name names a record, and remembers the conversation that it is of. The other end learns
// what that can tell it.
func (s *Stage) name(h *record.Header) {
	at, ok := sideOf(h)
	if !ok {
		s.identify(h, nil)
		return
	}
	e := s.find(h)
	added := e == nil && h.Phase != record.Momentary
	if added {
		e = s.add(h, at)
	}
	if e == nil {
		s.identify(h, nil)
		return
	}
	s.update(e, h, at)
	before := e.peer
	s.identify(h, e)
	if added || e.peer != before {
		for o := s.opposite(h.Role)[at]; o != nil; o = o.next {
			s.join(o, at)
		}
	}
}

// identify names both ends of a record, whose own end of its conversation is e, or nil.
// The peer keeps the name that it once had, since its address may have another owner by
// now, and the owner the Service through which it was reached.
func (s *Stage) identify(h *record.Header, e *end) {
	s.setExecutable(h)
	before := h.Owner
	if e != nil && e.owner != nil {
		before = e.owner
	}
	if e != nil && e.peer != nil {
		h.Peer = e.peer
	}
	h.Owner = s.cfg.Resolver.Local(h.CgroupID, h.PID, s.command(h.Comm), h.Local.IP())
	if before != nil && before.Service != "" && before.Pod == h.Owner.Pod {
		h.Owner = s.pair(h.Owner, before)
	}
	if (h.Peer == nil || h.Peer.OwnerPending) && h.HasAddrs() {
		now := s.cfg.Resolver.Remote(workload.Peer{
			Addr: h.Remote.IP(), Port: peerPort(h), Protocol: uint8(h.Protocol), Since: s.wall(h.First),
			Namespace: h.Owner.Namespace, Cgroup: goes(h),
		})
		if h.Peer == nil || now != nil && samePod(now, h.Peer) {
			h.Peer = now
		}
	}
	h.Self = s.cfg.IsSelf != nil && s.cfg.IsSelf(h)
	if at, ok := sideOf(h); ok && e != nil {
		e.owner, e.peer = h.Owner, h.Peer
		s.join(e, at)
		h.Owner, h.Peer = e.owner, e.peer
	}
}

func ownerPending(id *workload.Identity) bool { return id != nil && id.OwnerPending }

// samePod reports whether two identities are of one pod or Service, whatever it belongs to.
func samePod(a, b *workload.Identity) bool {
	return a.Namespace == b.Namespace && a.Pod == b.Pod && a.PodUID == b.PodUID && a.Service == b.Service
}

// goes is the cgroup of a record whose owner goes to the peer, and has looked up where that
// is; 0 for one that others come to.
func goes(h *record.Header) uint64 {
	if h.Role == record.RoleServer || h.Loopback {
		return 0
	}
	return h.CgroupID
}

// wall is a record's time by the wall clock.
func (s *Stage) wall(ns int64) int64 {
	if s.cfg.Correction == nil {
		return ns
	}
	return ns + int64(s.cfg.Correction())
}

// peerPort is the remote port where it belongs to a server: a client's port says
// nothing, and may by chance be one that a Service has.
func peerPort(h *record.Header) uint16 {
	if h.Role == record.RoleServer {
		return 0
	}
	return h.RemotePort
}
