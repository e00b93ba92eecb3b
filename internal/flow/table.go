// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"slices"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/shrink"
)

// Config is what a Table needs.
type Config struct {
	// MaxFlows bounds the table. Beyond it the longest idle flow goes.
	MaxFlows int
	// IdleTimeout is the time without traffic after which a flow expires.
	IdleTimeout time.Duration
	Losses      *loss.Counters
	// RTTEvery is the interval of Record.RTTDue; nil for every record.
	RTTEvery func() time.Duration
}

// Table holds the current flows. Its methods may be called from any goroutine.
type Table struct {
	cfg  Config
	emit func(*Record)

	// delivering is held while records are handed out, and taken before mu.
	delivering sync.Mutex
	spare      []Record // is out when that has been handed out

	mu   sync.Mutex
	out  []Record // have not been handed out yet
	rows map[Key]*row
	peak shrink.Peak
	// Doubly linked ring through rows, most recently active first; head is
	// only its anchor.
	head row
	free *row // rows to use again, linked by next
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
}

// NewTable returns an empty table. emit is called for every change of a flow, in their
// order and one at a time, by the goroutine that made it or another one; what has changed
// when a method returns has been handed out. The table is not locked meanwhile. emit must
// not keep the record, nor call a method that changes flows.
func NewTable(cfg Config, emit func(*Record)) *Table {
	t := &Table{cfg: cfg, emit: emit, rows: make(map[Key]*row)}
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
	t.apply(s)
	news := len(t.out) > 0
	t.mu.Unlock()
	if news {
		t.deliver()
	}
}

// tell puts a record on its way. It is called with t.mu held.
func (t *Table) tell(r *Record) { t.out = append(t.out, *r) }

// maxSpare is how many records room is kept for between deliveries.
const maxSpare = 1024

// deliver hands out the records that are on their way.
func (t *Table) deliver() {
	t.delivering.Lock()
	defer t.delivering.Unlock()
	t.mu.Lock()
	batch := t.out
	t.out = t.spare
	t.mu.Unlock()
	for i := range batch {
		t.emit(&batch[i])
	}
	if cap(batch) > maxSpare {
		batch = nil
	}
	clear(batch)
	t.spare = batch[:0]
}

// apply is called with t.mu held.
func (t *Table) apply(s *Sample) {
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
	r.done, r.low, r.lowRetransmits = false, s.Base, s.TCP.BaseRetransmits
	r.rec = NewRecord(s)
	r.rec.Connected = connected(s) && !s.TCP.Told && !s.TCP.Preexisting
	r.rec.Retransmitted = since(s.TCP.Retransmits, s.TCP.BaseRetransmits)
	r.rttAt = 0
	t.setRTTDue(r)
	if s.TCP.End != EndNone {
		r.rec.set(EventClose, s.Last, r.rec.Delta)
		r.done = true
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
	if rec.Role == record.RoleUnknown {
		rec.Role = s.Role
	}
	if s.PID != 0 && (s.PID != rec.PID || s.Comm != rec.Comm) {
		rec.PID, rec.Comm, rec.Owner = s.PID, s.Comm, nil // which may go by the command
		rec.Executable = ""
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
	if !changed {
		return
	}
	rec.Last = max(rec.Last, s.Last)
	event := EventUpdate
	if ended {
		event, r.done = EventClose, true
	}
	rec.set(event, rec.Last, delta)
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
	late := r.rec
	late.Event, late.Delta, late.TCP = EventUpdate, delta, untold(r.rec.TCP)
	late.Connected, late.Retransmitted, late.RTTDue = false, retransmits, false
	t.tell(&late)
}

// since is how much a counter has grown.
func since(now, before uint64) uint64 { return now - min(now, before) }

// untold keeps of a connection what its record needs once its close has told,
// or will tell, all else: nothing that a reader would count a second time.
func untold(i TCPInfo) TCPInfo { return TCPInfo{Valid: i.Valid, State: i.State, End: i.End} }

// applyStale reports a sample of a flow whose key already belongs to a later
// one: it was read after the next one's begin.
func (t *Table) applyStale(s *Sample) {
	stale := NewRecord(s)
	stale.Retransmitted = since(s.TCP.Retransmits, s.TCP.BaseRetransmits)
	switch {
	case s.TCP.End != EndNone:
		stale.set(EventClose, s.Last, stale.Delta)
	case stale.Delta == Counters{} && stale.Retransmitted == 0:
		return
	default:
		stale.set(EventUpdate, s.Last, stale.Delta)
		stale.TCP = untold(s.TCP)
		stale.Phase = record.Ended // of a conversation that is over
	}
	t.tell(&stale)
}

// finish sends a row's last event, unless it has been sent.
func (t *Table) finish(r *row, why Event, now int64) {
	if r.done {
		return
	}
	r.done = true
	r.rec.set(why, now, Counters{})
	r.rec.Connected, r.rec.Retransmitted, r.rec.RTTDue = false, 0, false
	t.tell(&r.rec)
}

// atOnce is how many flows expire before their records are handed out.
const atOnce = 256

// Expire removes the flows that have been idle for the idle timeout.
func (t *Table) Expire(now time.Time) {
	for more := true; more; {
		more = t.expire(now, atOnce)
		t.deliver()
	}
}

// expire removes at most n flows, and reports whether it has.
func (t *Table) expire(now time.Time, n int) (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	limit := now.Add(-t.cfg.IdleTimeout).UnixNano()
	for r := t.head.prev; r != &t.head && r.rec.Last <= limit; r = t.head.prev {
		if n--; n < 0 {
			return true
		}
		t.finish(r, EventExpire, now.UnixNano())
		t.remove(r)
	}
	var shrunk bool
	if t.rows, shrunk = shrink.Map(t.rows, &t.peak); shrunk {
		t.free = nil // memory that a burst of flows took
	}
	return false
}

// Keys appends the keys of all rows, most recently active first.
func (t *Table) Keys(dst []Key) []Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	dst = slices.Grow(dst, len(t.rows))
	for r := t.head.next; r != &t.head; r = r.next {
		dst = append(dst, r.rec.Key())
	}
	return dst
}

// Rows appends copies of the rows with these keys, of those that are still there. The
// table is locked for all of that, so keys ought to be few at a time. Owners and peers are
// as Named said last, and may be nil.
func (t *Table) Rows(keys []Key, dst []Record) []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range keys {
		if r := t.rows[keys[i]]; r != nil {
			dst = append(dst, r.rec)
		}
	}
	return dst
}

// Named has the row of a record remember how the record was named, until the next time.
func (t *Table) Named(rec *Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[rec.Key()]
	if r == nil || r.rec.Instance != rec.Instance {
		return
	}
	r.rec.Peer, r.rec.Self = rec.Peer, rec.Self
	if r.rec.PID == rec.PID && r.rec.Comm == rec.Comm { // else it goes by another one now
		r.rec.Owner, r.rec.Executable = rec.Owner, rec.Executable
	}
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
	delete(t.rows, r.rec.Key())
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
