// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

const (
	// liveWindow is how long an event waits for earlier ones of nodes that tell no low
	// watermark.
	liveWindow = 200 * time.Millisecond
	// replayTime is how long the nodes' pasts are merged exactly before a node
	// that says nothing is no longer waited for.
	replayTime = time.Second
	// stallTime is how long a node is waited for that tells low watermarks and has told
	// none.
	stallTime = 3 * time.Second
	// laneSize is how many events of one node may wait here, and deepLane that of one
	// that tells low watermarks. What waits longer waits in its agent, which counts
	// what it cannot keep.
	laneSize = 256
	deepLane = 2048
)

// first ranks before every event.
const first = math.MinInt64

// merge puts the events of several nodes into one order, the lowest rank first. Nodes that
// tell a low watermark come in exactly that order; the events of others stay in theirs.
type merge struct {
	// window bounds how long an event waits for a node that says nothing; 0 is
	// for ever, which is right where every node comes to an end.
	window time.Duration
	// exactUntil is when the window begins to count.
	exactUntil time.Time
	// changed gets a token whenever next may have another answer.
	changed chan struct{}

	mu    sync.Mutex
	lanes []*lane // by name
}

// lane is one node's events.
type lane struct {
	merge *merge
	name  string
	room  chan struct{}

	// Guarded by merge.mu.
	queue []queued // by rank
	last  int64
	// tells: the node tells low watermarks. No event ranks below low that is still on
	// its way; told is when it said so.
	tells bool
	low   int64
	told  time.Time
	// due: the node is expected to send more; without that nobody waits for it.
	due bool
	// removed: it goes once it is empty.
	removed bool
}

type queued struct {
	rank    int64
	arrived time.Time
	event   *orb8v1.Event
}

func newMerge(window time.Duration) *merge {
	return &merge{window: window, changed: make(chan struct{}, 1)}
}

// lane adds a node.
func (m *merge) lane(name string) *lane {
	l := &lane{merge: m, name: name, room: make(chan struct{}, 1), last: first, due: true}
	m.mu.Lock()
	defer m.mu.Unlock()
	at, _ := slices.BinarySearchFunc(m.lanes, name, func(l *lane, name string) int { return cmp.Compare(l.name, name) })
	m.lanes = slices.Insert(m.lanes, at, l)
	return l
}

// push adds an event, as soon as there is room. An event of a node that tells no low
// watermarks never ranks before the one that its node sent before it.
func (l *lane) push(ctx context.Context, rank int64, ev *orb8v1.Event) error {
	for {
		l.merge.mu.Lock()
		if len(l.queue) < l.size() {
			l.insert(rank, ev)
			l.merge.mu.Unlock()
			token(l.merge.changed)
			return nil
		}
		l.merge.mu.Unlock()
		select {
		case <-l.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// size is called with the merge's lock held, as is insert.
func (l *lane) size() int {
	if l.tells {
		return deepLane
	}
	return laneSize
}

func (l *lane) insert(rank int64, ev *orb8v1.Event) {
	l.last = max(l.last, rank)
	if !l.tells {
		rank = l.last
	}
	at := len(l.queue)
	for at > 0 && l.queue[at-1].rank > rank {
		at--
	}
	l.queue = slices.Insert(l.queue, at, queued{rank, time.Now(), ev})
}

// begin takes note that a stream of the node begins, which may be another agent's.
func (l *lane) begin() {
	l.merge.mu.Lock()
	l.tells, l.low = false, first
	l.merge.mu.Unlock()
	token(l.merge.changed)
}

// advance takes a low watermark.
func (l *lane) advance(low int64) {
	l.merge.mu.Lock()
	l.tells, l.low, l.told = true, max(l.low, low), time.Now()
	l.merge.mu.Unlock()
	token(l.merge.changed)
}

// missing reports whether an event may still come from the node that ranks before another.
// It is called with the merge's lock held.
func (l *lane) missing(rank int64, now time.Time) bool {
	if !l.tells {
		return l.due && len(l.queue) == 0
	}
	return l.due && l.low < rank && now.Sub(l.told) < stallTime
}

// expect says whether the node is about to send more.
func (l *lane) expect(due bool) {
	l.merge.mu.Lock()
	l.due = due
	l.merge.mu.Unlock()
	token(l.merge.changed)
}

// remove takes the lane out as soon as what is in it has been.
func (l *lane) remove() {
	l.merge.mu.Lock()
	l.due, l.removed = false, true
	l.merge.drop(l)
	l.merge.mu.Unlock()
	token(l.merge.changed)
}

// drop is called with m.mu held.
func (m *merge) drop(l *lane) {
	if l.removed && len(l.queue) == 0 {
		m.lanes = slices.DeleteFunc(m.lanes, func(o *lane) bool { return o == l })
	}
}

// next takes out the event whose turn it is. Without one it returns how long
// from now it may be until there is, 0 for until something changes. With flush
// nothing waits.
func (m *merge) next(now time.Time, flush bool) (*orb8v1.Event, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var best, oldest *lane
	full := false
	for _, l := range m.lanes {
		if len(l.queue) == 0 {
			continue
		}
		if best == nil || l.queue[0].rank < best.queue[0].rank {
			best = l
		}
		if oldest == nil || l.queue[0].arrived.Before(oldest.queue[0].arrived) {
			oldest = l
		}
		full = full || len(l.queue) == l.size()
	}
	if best == nil {
		return nil, 0
	}
	missing, window := m.missing(best.queue[0].rank, now)
	switch {
	case !missing || flush:
		return best.pop(), 0
	case m.window == 0:
		return nil, 0
	case now.Before(m.exactUntil):
		return nil, m.exactUntil.Sub(now)
	}
	switch waited := now.Sub(oldest.queue[0].arrived); {
	case waited >= 2*window: // a clock that runs ahead must not starve its node
		return oldest.pop(), 0
	case waited >= window, full:
		return best.pop(), 0
	default:
		return nil, window - waited
	}
}

// wait waits until next may have another answer, d has passed, if it is not 0, or done.
func (m *merge) wait(d time.Duration, done <-chan struct{}) {
	var late <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-m.changed:
	case <-done:
	case <-late:
	}
}

// missing reports whether an event may still come that ranks before another, and for how
// long to wait for that. It is called with m.mu held.
func (m *merge) missing(rank int64, now time.Time) (missing bool, window time.Duration) {
	window = stallTime
	for _, l := range m.lanes {
		if !l.missing(rank, now) {
			continue
		}
		missing = true
		if !l.tells {
			window = m.window
		}
	}
	return missing, window
}

// pop is called with the merge's lock held.
func (l *lane) pop() *orb8v1.Event {
	ev := l.queue[0].event
	l.queue[0] = queued{}
	l.queue = l.queue[1:]
	token(l.room)
	l.merge.drop(l)
	return ev
}

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ranking says how the events of a request are ordered.
func ranking(req *orb8v1.ObserveRequest) func(*orb8v1.Event) int64 {
	if !req.GetSnapshot() || req.GetFollow() || req.GetLast() > 0 || req.GetSinceNs() > 0 {
		return (*orb8v1.Event).GetTimeNs
	}
	return func(ev *orb8v1.Event) int64 { return -SortKey(ev.GetFlow(), req.GetSort()) }
}

// SortKey is what agents sort a snapshot by, the largest first.
func SortKey(f *orb8v1.Flow, by orb8v1.Sort) int64 {
	var key uint64
	switch c := f.GetTotal(); by {
	case orb8v1.Sort_SORT_PACKETS:
		key = c.GetTxPackets() + c.GetRxPackets()
	case orb8v1.Sort_SORT_LAST_SEEN:
		key = uint64(max(f.GetLastSeenNs(), 0))
	case orb8v1.Sort_SORT_RTT:
		key = uint64(f.GetTcp().GetRttUs())
	case orb8v1.Sort_SORT_RETRANSMITS:
		key = f.GetTcp().GetRetransmits()
	default:
		key = c.GetTxBytes() + c.GetRxBytes()
	}
	return int64(min(key, math.MaxInt64))
}
