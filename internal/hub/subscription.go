// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
)

// window is how many records are taken from the lanes at a time, under the lock.
const window = 64

// Selection is what a subscription wants of one lane, see Select.
type Selection interface {
	// begin goes to where a subscription begins. It returns how many records are not
	// kept any more that it would have begun with, and from which sequence on there is
	// one that it has not passed. It is called with the hub's lock held, as are reach and
	// fill.
	begin(p *Past) (missing, first uint64)
	// reach is from when on the lane has all records, 0 if it has all that there were.
	reach() int64
	// fill copies the next records, up to a sequence. It returns how many of them had
	// been overwritten before.
	fill(upTo uint64) (lost uint64)
	// peek returns the sequence of the first copied record.
	peek() (sequence uint64, ok bool)
	// take takes it out, and returns it if it is wanted.
	take() (Item, bool)
}

type selection[T any] struct {
	lane *Lane[T]
	want func(*T) bool
	p    uint64 // how many records of the lane have been passed
	buf  []slot[T]
	next int
}

// Select is what want selects of a lane. want is called outside of all locks.
func Select[T any](l *Lane[T], want func(*T) bool) Selection {
	return &selection[T]{lane: l, want: want}
}

func (s *selection[T]) begin(p *Past) (missing, first uint64) {
	l, size := s.lane, uint64(len(s.lane.ring))
	if s.p = l.count; *p == (Past{}) {
		return 0, math.MaxUint64
	}
	kept := min(l.count, l.keep)
	s.p -= kept
	if p.Resume {
		// What is before the history may still be in the ring.
		gone := l.dropped
		if s.p > 0 && kept < size {
			gone = l.ring[(s.p-1)%size].sequence
		}
		if gone > p.After {
			missing = min(gone-p.After, s.p)
		}
		for s.p < l.count && l.ring[s.p%size].sequence <= p.After {
			s.p++
		}
	}
	if s.p == l.count {
		return missing, math.MaxUint64
	}
	return missing, l.ring[s.p%size].sequence
}

func (s *selection[T]) reach() int64 {
	l := s.lane
	kept := min(l.count, l.keep, uint64(len(l.ring)))
	switch {
	case kept == l.count:
		return 0
	case kept == 0:
		return math.MaxInt64
	}
	return l.time(&l.ring[(l.count-kept)%uint64(len(l.ring))].record)
}

func (s *selection[T]) fill(upTo uint64) (lost uint64) {
	l, size := s.lane, uint64(len(s.lane.ring))
	s.buf, s.next = s.buf[:0], 0
	if first := l.count - min(l.count, size); s.p < first {
		lost, s.p = first-s.p, first
	}
	for ; s.p < l.count; s.p++ {
		r := &l.ring[s.p%size]
		if r.sequence > upTo {
			break
		}
		s.buf = append(s.buf, *r)
	}
	return lost
}

func (s *selection[T]) peek() (sequence uint64, ok bool) {
	if s.next == len(s.buf) {
		return 0, false
	}
	return s.buf[s.next].sequence, true
}

func (s *selection[T]) take() (Item, bool) {
	r := &s.buf[s.next]
	s.next++
	if !s.want(&r.record) {
		return Item{}, false
	}
	c := r.record
	return Item{Sequence: r.sequence, Record: &c, time: s.lane.time(&c)}, true
}

// Past says which part of the history is wanted; the zero value none.
type Past struct {
	// Since is the earliest time in Unix nanoseconds, 0 for any.
	Since int64
	// Last is how many of the latest records, 0 for all since.
	Last int
	// Resume: those after the one of that sequence.
	Resume bool
	After  uint64
}

// Item is what a subscriber gets next: a record, a notice, or neither.
type Item struct {
	// Sequence is the record's. Without a record: all up to there has been sent that
	// is wanted; 0 if something is on its way.
	Sequence uint64
	// Record is a pointer to a copy of the record.
	Record any
	Notice any
	// Lost is how many records were lost right before it: those that did not fit into
	// the queue, and those that were overwritten before it was known whether they
	// were wanted.
	Lost uint64
	// Low, if not 0: no record whose time is before that is still on its way.
	Low int64

	time int64
}

// Options of a subscription.
type Options struct {
	// Select has what is wanted of each lane.
	Select []Selection
	// Queue is how many items may wait for the subscriber.
	Queue int
	Past  Past
	// Idle is after how long without anything Next tells how far things have gone, 0
	// for never; Low has it tell each time that no older records are on their way.
	Idle time.Duration
	Low  bool
	// Tag is the subscriber's.
	Tag any
}

// Subscription is one subscriber's end of a Hub.
type Subscription struct {
	// Tag is that of its Options.
	Tag     any
	options Options
	hub     *Hub
	queue   chan Item
	news    chan struct{}
	stop    chan struct{}
	ended   sync.WaitGroup

	// Guarded by hub.mu.
	at        uint64   // records up to this one have been copied
	idle      bool     // news wants a token
	notices   []notice // that have not been taken
	unnoticed uint64   // for which there was no room

	due []any // notices that have been taken

	mu sync.Mutex
	// lost counts what was lost since the last item.
	lost uint64
	// queued is up to which sequence what is wanted is in the queue, told how far Next
	// has told.
	queued, told uint64
	finished     bool
}

// notice is something that is no record, and the sequence of the record before it.
type notice struct {
	after uint64
	value any
}

// History is the part of the past that was asked for, oldest first.
type History struct {
	Items []Item
	// Missing is how many records are no longer kept that a resume would have gone on
	// with.
	Missing uint64
	// Since is from when on all records are kept of the kinds that were asked for, in Unix
	// nanoseconds: 0 if that is all that there were, math.MaxInt64 if none is.
	Since int64
}

// Sort puts the items into the order of their times.
func (h *History) Sort() {
	slices.SortStableFunc(h.Items, func(a, b Item) int { return cmp.Compare(a.time, b.time) })
}

// Subscribe returns a subscription and the part of the history that it wants. Between the
// two nothing is missing and nothing doubled. The caller must call Close.
func (h *Hub) Subscribe(o Options) (*Subscription, History) {
	s := &Subscription{
		Tag: o.Tag, options: o, hub: h,
		queue: make(chan Item, o.Queue), news: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	h.mu.Lock()
	recent := s.begin()
	end := h.sequence
	h.subs = append(h.subs, s)
	token(h.changed)
	h.mu.Unlock()
	recent.Items = s.past(end)
	s.ended.Go(s.run)
	return s, recent
}

// Past returns the part of the history that is wanted.
func (h *Hub) Past(o Options) History {
	s := &Subscription{options: o, hub: h}
	h.mu.Lock()
	recent := s.begin()
	end := h.sequence
	h.mu.Unlock()
	recent.Items = s.past(end)
	recent.Missing += s.lost
	return recent
}

// begin is called with h.mu held.
func (s *Subscription) begin() (recent History) {
	s.at = s.hub.sequence
	for _, sel := range s.options.Select {
		missing, first := sel.begin(&s.options.Past)
		recent.Missing += missing
		recent.Since = max(recent.Since, sel.reach())
		s.at = min(s.at, first-1)
	}
	s.hub.losses.Add(loss.ResumeGap, recent.Missing)
	return recent
}

// past collects what is wanted up to a sequence.
func (s *Subscription) past(end uint64) []Item {
	var items []Item
	last := s.options.Past.Last
	for s.copy(end) {
		s.each(func(i Item) {
			if i.time < s.options.Past.Since {
				return
			}
			if items = append(items, i); last > 0 && len(items) >= 2*last {
				items = append(items[:0], items[len(items)-last:]...)
			}
		})
	}
	s.queued = s.at
	if last > 0 && len(items) > last {
		items = items[len(items)-last:]
	}
	return items
}

// copy takes the next records from the lanes, up to an end, or to the next notice, and
// those notices. It reports whether there may be more.
func (s *Subscription) copy(end uint64) (more bool) {
	s.hub.mu.Lock()
	upTo := min(s.at+window, end, s.hub.sequence)
	if len(s.notices) > 0 {
		upTo = min(upTo, max(s.at, s.notices[0].after))
	}
	more = upTo > s.at || len(s.notices) > 0
	lost := s.unnoticed
	s.unnoticed = 0
	if upTo > s.at {
		for _, sel := range s.options.Select {
			lost += sel.fill(upTo)
		}
		s.at = upTo
	}
	n := 0
	for n < len(s.notices) && s.notices[n].after <= s.at {
		s.due = append(s.due, s.notices[n].value)
		n++
	}
	s.notices = slices.Delete(s.notices, 0, n)
	s.hub.mu.Unlock()
	if lost > 0 {
		s.hub.losses.Add(loss.SubscriberSlow, lost)
		s.mu.Lock()
		s.lost += lost
		s.mu.Unlock()
	}
	return more
}

// each calls f with those of the copied records that are wanted, in their order.
func (s *Subscription) each(f func(Item)) {
	for {
		var first Selection
		lowest := uint64(0)
		for _, sel := range s.options.Select {
			if q, ok := sel.peek(); ok && (first == nil || q < lowest) {
				first, lowest = sel, q
			}
		}
		if first == nil {
			return
		}
		if i, ok := first.take(); ok {
			f(i)
		}
	}
}

// run moves what is wanted into the queue until the subscription or the hub is closed.
func (s *Subscription) run() {
	defer s.finish()
	var low int64
	for {
		for !s.stopped() && s.copy(math.MaxUint64) {
			s.each(s.deliver)
			for _, value := range s.due {
				s.deliver(Item{Notice: value})
			}
			s.due = s.due[:0]
			s.mu.Lock()
			s.queued = s.at
			s.mu.Unlock()
		}
		s.hub.mu.Lock()
		more, closed, now := s.hub.sequence > s.at || len(s.notices) > 0, s.hub.closed, s.hub.low
		s.idle = !more && !closed && now == low
		s.hub.mu.Unlock()
		switch {
		case s.stopped() || !more && closed && now == low:
			return
		case more:
		case now != low:
			low = now
			s.deliverLow(low)
		default:
			select {
			case <-s.news:
			case <-s.stop:
			}
		}
	}
}

func (s *Subscription) stopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// deliver puts an item into the queue, if there is room.
func (s *Subscription) deliver(i Item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
	i.Lost = s.lost
	select {
	case s.queue <- i:
		s.lost = 0
	default:
		s.lost++
		s.hub.losses.Add(loss.SubscriberSlow, 1)
	}
}

// deliverLow is not missed if there is no room: another will come.
func (s *Subscription) deliverLow(low int64) {
	if !s.options.Low {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.queue <- Item{Sequence: s.queued, Low: low, Lost: s.lost}:
		s.lost, s.told = 0, s.queued
	default:
	}
}

func (s *Subscription) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = true
	close(s.queue)
}

// Close ends the subscription.
func (s *Subscription) Close() {
	h := s.hub
	h.mu.Lock()
	h.subs = slices.DeleteFunc(h.subs, func(o *Subscription) bool { return o == s })
	token(h.changed)
	h.mu.Unlock()
	close(s.stop)
	s.ended.Wait()
}

// Next waits for the next item. It returns false when ctx is done or the hub was closed
// and everything queued has been returned.
func (s *Subscription) Next(ctx context.Context) (Item, bool) {
	select {
	case i, ok := <-s.queue:
		return s.received(i, ok)
	default:
	}
	if lost := s.takeLost(); lost > 0 {
		return Item{Lost: lost}, true
	}
	var quiet <-chan time.Time
	if s.options.Idle > 0 {
		timer := time.NewTicker(s.options.Idle)
		defer timer.Stop()
		quiet = timer.C
	}
	for {
		select {
		case i, ok := <-s.queue:
			return s.received(i, ok)
		case <-ctx.Done():
			return Item{}, false
		case <-quiet:
			if i, ok := s.reached(); ok {
				return i, true
			}
		}
	}
}

// reached tells up to where all was sent that is wanted, unless that was told before or
// something is on its way.
func (s *Subscription) reached() (Item, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 || s.lost > 0 || s.queued <= s.told {
		return Item{}, false
	}
	s.told = s.queued
	return Item{Sequence: s.queued}, true
}

func (s *Subscription) received(i Item, ok bool) (Item, bool) {
	if ok {
		return i, true
	}
	lost := s.takeLost()
	return Item{Lost: lost}, lost > 0
}

// takeLost returns what was lost since the last item that fit into the queue.
func (s *Subscription) takeLost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.lost
	s.lost = 0
	return lost
}
