// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/shrink"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// Resolver names the ends of a flow. It is asked at each change of one and must
// answer from memory or the local file system.
type Resolver interface {
	// Local never returns nil.
	Local(cgroupID uint64, pid uint32, comm string, addr netip.Addr) *workload.Identity
	// Remote returns nil where nothing is known.
	Remote(workload.Peer) *workload.Identity
	// Backs reports whether a Service sends to an address and port of server; known
	// is false if it cannot be told.
	Backs(service, server *workload.Identity, addr netip.Addr, port uint16, protocol uint8) (backs, known bool)
}

// Config is what a Table needs. Every field but IsSelf is required.
type Config struct {
	// MaxFlows bounds the table. Beyond it the longest idle flow goes.
	MaxFlows int
	// IdleTimeout is the time without traffic after which a flow expires.
	IdleTimeout time.Duration
	Resolver    Resolver
	// IsSelf recognises orb8's own traffic; nil if there is none.
	IsSelf func(*Sample) bool
	// Awaits says of a local identity that it is a pod's whose name may become
	// known within seconds; nil if no record shall ever wait for a name. With it,
	// Flush must be called regularly.
	Awaits func(*workload.Identity) bool
	Losses *loss.Counters
	// RTTEvery is the interval of Record.RTTDue; nil for every record.
	RTTEvery func() time.Duration
	// Correction is what to add to times of samples for those of the wall clock, by
	// which peers are found; nil where they are the same.
	Correction func() time.Duration
}

// Table holds the current flows. Its methods may be called from any goroutine.
type Table struct {
	cfg  Config
	emit func(*Record)

	mu   sync.Mutex
	rows map[Key]*row
	peak shrink.Peak
	// Doubly linked ring through rows, most recently active first; head is
	// only its anchor.
	head row
	free *row // rows to use again, linked by next
	stub Record

	names names
}

type row struct {
	rec Record
	// low is where the counters began that have been sent as differences.
	low Counters
	// lowRetransmits is the same of segments that were sent again.
	lowRetransmits uint64
	rttAt          int64 // when its round-trip time was last due
	done           bool  // the final event has been sent
	prev, next     *row
	// Other rows with the same client's address and port, see names.
	prevEnd, nextEnd *row
}

// NewTable returns an empty table. emit is called for every change of a flow
// with the table locked: it must be quick, must not call the table and must not
// keep the record.
func NewTable(cfg Config, emit func(*Record)) *Table {
	t := &Table{cfg: cfg, emit: emit, rows: make(map[Key]*row), names: newNames()}
	t.head.prev, t.head.next = &t.head, &t.head
	return t
}

// SetIdleTimeout changes the expiry time from the next call of Expire on.
func (t *Table) SetIdleTimeout(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cfg.IdleTimeout = d
}

// Apply takes one sample in. Samples of the same instance may come in any
// order: counters never go back, an ended flow stays ended, and the differences
// of all its records together are those from the earliest Base to the largest
// Total.
func (t *Table) Apply(s *Sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[s.Key]
	switch {
	case r == nil:
		t.open(t.insert(s), s)
	case r.rec.Instance == s.Instance:
		t.update(r, s)
	case r.rec.Instance < s.Instance:
		// The key is in use again. If the old flow's end has been lost, its
		// last known totals are final.
		t.finish(r, EventExpire, s.Last)
		t.open(r, s)
		t.touch(r)
	default:
		t.applyStale(s)
	}
}

// open makes r the row of a flow that the table does not know.
func (t *Table) open(r *row, s *Sample) {
	t.delist(r)
	r.done, r.low, r.lowRetransmits = false, s.Base, s.TCP.BaseRetransmits
	r.rec = Record{Sample: *s, Event: EventOpen, Time: s.Last, Delta: s.Total.Sub(s.Base)}
	t.identify(&r.rec)
	t.enlist(r)
	r.rec.Connected = connected(s) && !s.TCP.Told && !s.TCP.Preexisting
	r.rec.Retransmitted = since(s.TCP.Retransmits, s.TCP.BaseRetransmits)
	r.rttAt = 0
	t.setRTTDue(r)
	if s.TCP.End != EndNone {
		r.rec.Event, r.done = EventClose, true
	}
	t.tell(&r.rec)
}

// connected reports whether a connection has been established, by now or ever.
func connected(s *Sample) bool {
	return s.TCP.Valid && s.TCP.State != StateSynSent && !s.TCP.Failed
}

func (t *Table) update(r *row, s *Sample) {
	rec := &r.rec
	// What an earlier sample, read before but applied after the first one,
	// knows and no record has told.
	late, lateRetransmits := r.low.Sub(s.Base), since(r.lowRetransmits, s.TCP.BaseRetransmits)
	r.low, r.lowRetransmits = r.low.Min(s.Base), min(r.lowRetransmits, s.TCP.BaseRetransmits)
	if r.done {
		t.tellLate(r, late, lateRetransmits)
		return
	}
	total := s.Total.Max(rec.Total)
	delta := total.Sub(rec.Total).Add(late)
	ended := s.TCP.End != EndNone
	rec.Total = total
	if rec.Role == RoleUnknown {
		rec.Role = s.Role
		t.enlist(r)
	}
	renamed := s.PID != 0 && (s.PID != rec.PID || s.Comm != rec.Comm)
	if renamed {
		rec.PID, rec.Comm = s.PID, s.Comm
	}
	changed := delta != Counters{} || ended
	rec.Connected, rec.Retransmitted = false, lateRetransmits+since(s.TCP.Retransmits, rec.TCP.Retransmits)
	changed = changed || rec.Retransmitted > 0
	if ended || s.Last >= rec.Last { // else it is an older reading
		changed = changed || s.TCP.State != rec.TCP.State
		rec.Connected = rec.TCP.State == StateSynSent && connected(s)
		known := rec.TCP.Retransmits
		rec.TCP = s.TCP
		rec.TCP.Retransmits = max(known, s.TCP.Retransmits)
	} else {
		rec.TCP.Retransmits = max(rec.TCP.Retransmits, s.TCP.Retransmits)
	}
	if changed || renamed {
		t.name(r)
	}
	if !changed {
		return
	}
	rec.Event, rec.Delta = EventUpdate, delta
	rec.Last = max(rec.Last, s.Last)
	rec.Time = rec.Last
	if ended {
		rec.Event, r.done = EventClose, true
	}
	t.setRTTDue(r)
	t.touch(r)
	t.tell(rec)
}

// setRTTDue notes whether a record's round-trip time is due. A pass comes now a little
// before its time, now after.
func (t *Table) setRTTDue(r *row) {
	var every time.Duration
	if t.cfg.RTTEvery != nil {
		every = t.cfg.RTTEvery()
	}
	r.rec.RTTDue = r.rec.TCP.RTTMicros > 0 && (r.rttAt == 0 || r.rec.Last-r.rttAt >= int64(every/10*9))
	if r.rec.RTTDue {
		r.rttAt = r.rec.Last
	}
}

// tellLate sends what was missing in the records of a flow that has ended.
func (t *Table) tellLate(r *row, delta Counters, retransmits uint64) {
	if delta == (Counters{}) && retransmits == 0 {
		return
	}
	t.stub = r.rec
	t.stub.Event, t.stub.Delta, t.stub.TCP = EventUpdate, delta, untold(r.rec.TCP)
	t.stub.Connected, t.stub.Retransmitted, t.stub.RTTDue = false, retransmits, false
	t.tell(&t.stub)
}

// since is how much a counter has grown.
func since(now, before uint64) uint64 { return now - min(now, before) }

// untold keeps of a connection what its record needs once its close has told,
// or will tell, all else: nothing that a reader would count a second time.
func untold(i TCPInfo) TCPInfo { return TCPInfo{Valid: i.Valid, State: i.State, End: i.End} }

// applyStale reports a sample of a flow whose key already belongs to a later
// one: it was read after the next one's begin.
func (t *Table) applyStale(s *Sample) {
	t.stub = Record{
		Sample: *s, Event: EventUpdate, Time: s.Last, Delta: s.Total.Sub(s.Base),
		Retransmitted: since(s.TCP.Retransmits, s.TCP.BaseRetransmits),
	}
	switch {
	case s.TCP.End != EndNone:
		t.stub.Event = EventClose
	case t.stub.Delta == Counters{} && t.stub.Retransmitted == 0:
		return
	default:
		t.stub.TCP = untold(s.TCP)
	}
	t.identify(&t.stub)
	t.tell(&t.stub)
}

// finish sends a row's last event, unless it has been sent.
func (t *Table) finish(r *row, why Event, now int64) {
	if r.done {
		return
	}
	r.done = true
	r.rec.Event, r.rec.Time, r.rec.Delta = why, now, Counters{}
	r.rec.Connected, r.rec.Retransmitted, r.rec.RTTDue = false, 0, false
	t.tell(&r.rec)
}

// Expire removes the flows that have been idle for the idle timeout.
func (t *Table) Expire(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	limit := now.Add(-t.cfg.IdleTimeout).UnixNano()
	for r := t.head.prev; r != &t.head && r.rec.Last <= limit; r = t.head.prev {
		t.finish(r, EventExpire, now.UnixNano())
		t.remove(r)
	}
	t.giveBack()
}

// giveBack lets go of memory that a burst of flows took.
func (t *Table) giveBack() {
	var shrunk bool
	if t.rows, shrunk = shrink.Map(t.rows, &t.peak); shrunk {
		t.free = nil
	}
	t.names.giveBack()
}

// Keys appends the keys of all rows, most recently active first.
func (t *Table) Keys(dst []Key) []Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	dst = slices.Grow(dst, len(t.rows))
	for r := t.head.next; r != &t.head; r = r.next {
		dst = append(dst, r.rec.Key)
	}
	return dst
}

// Rows appends copies of the rows with these keys, of those that are still there. Ends
// that have no name yet are looked up again. The table is locked for all of that, so keys
// ought to be few at a time.
func (t *Table) Rows(keys []Key, dst []Record) []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range keys {
		r := t.rows[keys[i]]
		if r == nil {
			continue
		}
		if r.rec.Remote == nil || (t.cfg.Awaits != nil && t.cfg.Awaits(r.rec.Local)) {
			t.name(r)
		}
		dst = append(dst, r.rec)
	}
	return dst
}

// wall is a sample's time by the wall clock.
func (t *Table) wall(ns int64) int64 {
	if t.cfg.Correction == nil {
		return ns
	}
	return ns + int64(t.cfg.Correction())
}

// Len is the number of rows.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.rows)
}

// insert makes a row for s, which pushes out another if the table is full.
func (t *Table) insert(s *Sample) *row {
	if len(t.rows) >= t.cfg.MaxFlows {
		oldest := t.head.prev
		if !oldest.done { // else it was only still shown
			t.finish(oldest, EventEvict, max(s.Last, oldest.rec.Last))
			t.cfg.Losses.Add(loss.FlowTableFull, 1)
		}
		t.remove(oldest)
	}
	r := t.free
	if r == nil {
		r = new(row)
	} else {
		t.free = r.next
	}
	t.rows[s.Key] = r
	t.link(r)
	return r
}

func (t *Table) remove(r *row) {
	delete(t.rows, r.rec.Key)
	t.delist(r)
	t.unlink(r)
	*r = row{next: t.free}
	t.free = r
}

func (t *Table) touch(r *row) {
	if t.head.next == r {
		return
	}
	t.unlink(r)
	t.link(r)
}

func (t *Table) link(r *row) {
	r.prev, r.next = &t.head, t.head.next
	r.prev.next, r.next.prev = r, r
}

func (t *Table) unlink(r *row) { r.prev.next, r.next.prev = r.next, r.prev }
