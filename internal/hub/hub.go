// SPDX-License-Identifier: Apache-2.0

// Package hub hands records of all kinds to whoever follows them, and keeps the recent
// past of each kind. It knows nothing of what they tell.
package hub

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
)

// farBehind is how many records a subscriber has not looked through that is made way for.
const farBehind = 1024

// Hub numbers records of all kinds in one sequence, from 1, and keeps each kind in a lane of
// its own, so that many of one push out none of another. Publishing does not wait for a
// subscriber: who is too slow loses records, which is counted and told to them in their
// place.
type Hub struct {
	losses *loss.Counters
	// changed gets a token whenever the number of subscriptions changes.
	changed chan struct{}

	pausing sync.Mutex
	noPause time.Time // before that

	mu       sync.Mutex
	sequence uint64
	subs     []*Subscription
	closed   bool
	low      int64
}

// New returns a Hub without lanes.
func New(losses *loss.Counters) *Hub {
	return &Hub{losses: losses, changed: make(chan struct{}, 1)}
}

// Lane is one kind of records.
type Lane[T any] struct {
	hub  *Hub
	time func(*T) int64
	keep uint64

	// Guarded by hub.mu.
	ring  []slot[T]
	count uint64 // published so far
	// dropped is the sequence of the latest record that is not kept any more.
	dropped uint64
}

type slot[T any] struct {
	sequence uint64
	record   T
}

// NewLane adds a kind, of which the latest keep records are the history. There is room for
// so many that a subscriber has not looked through yet, which is more than keep if that is
// little. time is a record's, in Unix nanoseconds.
func NewLane[T any](h *Hub, keep, room int, time func(*T) int64) *Lane[T] {
	return &Lane[T]{hub: h, time: time, keep: uint64(keep), ring: make([]slot[T], max(keep, room, 1))}
}

// Publish copies a record into the lane and wakes whoever follows. It does not allocate.
func (l *Lane[T]) Publish(r *T) {
	h := l.hub
	h.mu.Lock()
	h.sequence++
	s := &l.ring[l.count%uint64(len(l.ring))]
	l.dropped = s.sequence
	s.sequence, s.record = h.sequence, *r
	l.count++
	behind := h.wake()
	h.mu.Unlock()
	if behind {
		h.pause()
	}
}

// pauseTime is how long publishing pauses where somebody is far behind.
const pauseTime = 200 * time.Microsecond

// pause lets them catch up who look through the records, and leaves them the processor:
// half of the time at most, so that a filter which takes long does not hold up the rest.
func (h *Hub) pause() {
	runtime.Gosched()
	if !h.pausing.TryLock() {
		return
	}
	defer h.pausing.Unlock()
	begin := time.Now()
	if begin.Before(h.noPause) {
		return
	}
	time.Sleep(pauseTime)
	end := time.Now()
	h.noPause = end.Add(end.Sub(begin))
}

// wake is called with h.mu held. It reports whether somebody is far behind.
func (h *Hub) wake() (behind bool) {
	for _, s := range h.subs {
		behind = behind || h.sequence-s.at > farBehind
		if s.idle {
			s.idle = false
			token(s.news)
		}
	}
	return behind
}

// Advance tells that no record whose time is before t is still on its way.
func (h *Hub) Advance(t int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t > h.low {
		h.low = t
		h.wake()
	}
}

// maxNotices is how many notices may wait for a subscriber.
const maxNotices = 256

// Notify hands something that is no record to those subscribers that pick selects, in its
// place among the records. pick is called with the hub locked.
func (h *Hub) Notify(value any, pick func(*Subscription) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		switch {
		case !pick(s):
		case len(s.notices) < maxNotices:
			s.notices = append(s.notices, notice{h.sequence, value})
		default:
			s.unnoticed++
		}
	}
	h.wake()
}

// Sequence is that of the latest record.
func (h *Hub) Sequence() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sequence
}

// Changed receives after the number of subscriptions has changed.
func (h *Hub) Changed() <-chan struct{} { return h.changed }

// Subscribers is how many subscriptions there are.
func (h *Hub) Subscribers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs)
}

// Any reports whether there is a subscription that pick selects.
func (h *Hub) Any(pick func(*Subscription) bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.subs, pick)
}

// Kept is how many records the lane's history has.
func (l *Lane[T]) Kept() int {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	return int(min(l.count, l.keep))
}

// Close ends every subscription once it has what was published before.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.wake()
}

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
