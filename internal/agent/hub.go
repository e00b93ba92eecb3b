// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
)

// hub hands what happens to every stream and keeps the recent past. Publishing
// never blocks: a subscriber whose queue is full loses the event, which is
// counted and told to it in its stream.
type hub struct {
	node   string
	losses *loss.Counters
	// changed gets a token whenever the number of subscribers changes.
	changed chan struct{}

	mu     sync.Mutex
	subs   []*subscription
	closed bool
	past   past
}

func newHub(node string, history int, losses *loss.Counters) *hub {
	return &hub{
		node: node, losses: losses,
		changed: make(chan struct{}, 1),
		past:    newPast(history),
	}
}

// interest says which events a subscriber takes.
type interest struct {
	filters *filter.Set
	// flows takes every record of a flow, connections only steps of TCP connections;
	// with both, steps come as connections.
	flows, connections bool
	// dns takes DNS queries, those seen at the client's end or, with serverSide, those
	// seen at the server's.
	dns, serverSide  bool
	drops, overflows bool
	// processes takes programs that are started and processes that end, alerts what
	// rules find.
	processes, alerts bool
	// syscalls: system calls are traced for it, as trace says.
	syscalls bool
	trace    *trace
	// self takes orb8's own traffic too.
	self bool
	// status and losses take what concerns the whole node.
	status, losses bool
	// accelerators takes their samples.
	accelerators bool
	// dnsNames takes, in a snapshot, what was asked of DNS.
	dnsNames bool
}

func (i *interest) wants(r *flow.Record) bool {
	return (!r.Self || i.self) && i.takes(r) && i.filters.Match(r)
}

// takes reports whether records of r's kind are wanted.
func (i *interest) takes(r *flow.Record) bool {
	switch k := r.Kind(); {
	case !i.kind(k):
		return false
	case k == flow.KindDNS:
		return i.serverSide == (r.Role == flow.RoleServer)
	case k == flow.KindFlow:
		return i.flows || connectionStep(r) != orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED
	}
	return true
}

// kind reports whether the records of a kind, or some of them, are wanted.
func (i *interest) kind(k flow.Kind) bool {
	switch k {
	case flow.KindDNS:
		return i.dns
	case flow.KindDrop:
		return i.drops
	case flow.KindListen:
		return i.overflows
	case flow.KindExec, flow.KindExit:
		return i.processes
	case flow.KindAlert:
		return i.alerts
	case flow.KindSyscall:
		return false // those go to their trace only
	}
	return i.flows || i.connections
}

func (i *interest) asConnection(r *flow.Record) bool {
	return i.connections && connectionStep(r) != orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED
}

// update is one event on its way to the subscribers, who share it and what is
// made from it; each form is made when the first of them wants it, outside of
// the table's lock.
type update struct {
	rec  flow.Record
	node string
	// seq is the record's place among all that were published, from 1.
	seq uint64
	// other is set for events that are not about a flow.
	other *orb8v1.Event

	flow, connection, detail once[*orb8v1.Event]
	network                  once[[]*orb8v1.NetworkEvent]
}

type once[T any] struct {
	sync.Once
	value T
}

func (o *once[T]) get(build func() T) T {
	o.Do(func() { o.value = build() })
	return o.value
}

// event returns the update in the form in which i wants it.
func (u *update) event(i *interest) *orb8v1.Event {
	switch {
	case u.other != nil:
		return u.other
	case u.rec.Detail != nil:
		return u.detail.get(func() *orb8v1.Event { return u.number(detailEvent(&u.rec, u.node)) })
	case i.asConnection(&u.rec):
		return u.connection.get(func() *orb8v1.Event { return u.number(connectionEvent(&u.rec, u.node)) })
	}
	return u.flow.get(func() *orb8v1.Event { return u.number(flowEvent(&u.rec, u.node)) })
}

func (u *update) number(e *orb8v1.Event) *orb8v1.Event {
	e.Sequence = u.seq
	return e
}

func (u *update) networkEvents() []*orb8v1.NetworkEvent {
	return u.network.get(func() []*orb8v1.NetworkEvent { return networkEvents(&u.rec) })
}

// subscription is one stream's end of the hub.
type subscription struct {
	hub      *hub
	interest interest
	queue    chan queued
	// idle is after how long without an event next tells how far things have
	// gone; 0 for never.
	idle time.Duration
	// told is how far was told.
	told uint64
	// lost counts what did not fit into the queue since the last event that did;
	// the hub's lock guards it.
	lost uint64
}

// queued is an update with the number of events lost right before it. update is
// nil where nothing has followed the loss yet.
type queued struct {
	update *update
	lost   uint64
	// reached, if not 0: there is nothing up to this place that has not been sent.
	reached uint64
}

// publish hands r to all who want it and puts it into the history. r is copied.
// It does not allocate while nobody wants r.
func (h *hub) publish(r *flow.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seq := h.past.add(r)
	var u *update
	for _, s := range h.subs {
		if !s.interest.wants(r) {
			continue
		}
		if u == nil {
			u = &update{rec: *r, node: h.node, seq: seq}
		}
		h.send(s, u)
	}
}

// tell hands an event that concerns the whole node to those whom pick selects.
func (h *hub) tell(e *orb8v1.Event, pick func(*interest) bool) {
	u := &update{other: e, node: h.node}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		if pick(&s.interest) {
			h.send(s, u)
		}
	}
}

// offer is tell for an event that is told again if somebody's queue is full, which it
// reports and which is no loss: ok is that all have it.
func (h *hub) offer(e *orb8v1.Event, pick func(*interest) bool) (ok bool) {
	u := &update{other: e, node: h.node}
	h.mu.Lock()
	defer h.mu.Unlock()
	ok = true
	for _, s := range h.subs {
		if pick(&s.interest) {
			ok = s.offer(u) && ok
		}
	}
	return ok
}

// tellEach hands to each subscriber the event for it, unless that is nil.
func (h *hub) tellEach(event func(*interest) *orb8v1.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		if e := event(&s.interest); e != nil {
			h.send(s, &update{other: e, node: h.node})
		}
	}
}

// wanted reports whether there is a subscriber that pick selects.
func (h *hub) wanted(pick func(*interest) bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.subs, func(s *subscription) bool { return pick(&s.interest) })
}

// send is called with h.mu held.
func (h *hub) send(s *subscription, u *update) {
	if !s.offer(u) {
		s.lost++
		h.losses.Add(loss.SubscriberSlow, 1)
	}
}

// offer queues an update if there is room. It is called with the hub's lock held.
func (s *subscription) offer(u *update) bool {
	select {
	case s.queue <- queued{update: u, lost: s.lost}:
		s.lost = 0
		return true
	default:
		return false
	}
}

// subscribe adds a subscriber whose queue holds size events, and returns the
// part of the history that it wants, oldest first. Between the two nothing is
// missing and nothing doubled. The caller must call unsubscribe.
func (h *hub) subscribe(i interest, size int, p pastQuery) (*subscription, history) {
	s := &subscription{hub: h, interest: i, queue: make(chan queued, size)}
	h.mu.Lock()
	defer h.mu.Unlock()
	recent := h.recent(&i, p)
	if h.closed {
		close(s.queue)
		return s, recent
	}
	h.subs = append(h.subs, s)
	h.notify()
	return s, recent
}

func (h *hub) unsubscribe(s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subs = slices.DeleteFunc(h.subs, func(o *subscription) bool { return o == s })
	h.notify()
}

// query returns the part of the history that i wants.
func (h *hub) query(i *interest, p pastQuery) history {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.recent(i, p)
}

// place is that of the latest record.
func (h *hub) place() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.past.seen
}

// recent is called with h.mu held.
func (h *hub) recent(i *interest, p pastQuery) history {
	found := h.past.find(i, p, h.node)
	h.losses.Add(loss.ResumeGap, found.missing)
	return found
}

// notify is called with h.mu held.
func (h *hub) notify() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// subscribers returns how many streams are attached.
func (h *hub) subscribers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs)
}

// kept returns what the history holds of each kind.
func (h *hub) kept() []kindKept {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.past.summary()
}

// close ends every subscription once its queue is empty. What is published
// later only goes into the history.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, s := range h.subs {
		close(s.queue)
	}
	h.subs = nil
}

// next waits for the next event. It returns false when ctx is done or the hub
// was closed and everything queued has been returned.
func (s *subscription) next(ctx context.Context) (queued, bool) {
	select {
	case q, ok := <-s.queue:
		return s.received(q, ok)
	default:
	}
	if lost := s.takeLost(); lost > 0 {
		return queued{lost: lost}, true
	}
	var quiet <-chan time.Time
	if s.idle > 0 {
		timer := time.NewTicker(s.idle)
		defer timer.Stop()
		quiet = timer.C
	}
	for {
		select {
		case q, ok := <-s.queue:
			return s.received(q, ok)
		case <-ctx.Done():
			return queued{}, false
		case <-quiet:
			if at := s.reached(); at > s.told {
				s.told = at
				return queued{reached: at}, true
			}
		}
	}
}

// reached returns the place up to which all was sent that is wanted, 0 if
// something is on its way.
func (s *subscription) reached() uint64 {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if len(s.queue) > 0 || s.lost > 0 {
		return 0
	}
	return s.hub.past.seen
}

func (s *subscription) received(q queued, ok bool) (queued, bool) {
	if ok {
		return q, true
	}
	lost := s.takeLost()
	return queued{lost: lost}, lost > 0
}

// takeLost returns what was lost since the last event that fit into the queue.
func (s *subscription) takeLost() uint64 {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	lost := s.lost
	s.lost = 0
	return lost
}
