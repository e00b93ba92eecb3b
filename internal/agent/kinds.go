// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/alerts"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/kind/processes"
	"github.com/Ignoramuss/orb8/internal/kind/queries"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
)

// interest says which events a stream takes.
type interest struct {
	filters *filter.Set
	// kinds that were asked for; those that come unasked if empty.
	kinds []orb8v1.EventKind
	// self takes orb8's own traffic too.
	self bool
	// dnsView is the end at which DNS queries are wanted.
	dnsView orb8v1.DnsView
	// steps of processes that are wanted; all if empty.
	steps []orb8v1.ProcessStep
	// trace is that of system calls, nil for none.
	trace *trace
}

// has reports whether a kind is wanted; unasked says whether it comes where none was asked
// for.
func (i *interest) has(k orb8v1.EventKind, unasked bool) bool {
	if len(i.kinds) == 0 {
		return unasked
	}
	return slices.Contains(i.kinds, k)
}

func (i *interest) flows() bool        { return i.has(orb8v1.EventKind_EVENT_KIND_FLOW, true) }
func (i *interest) connections() bool  { return i.has(orb8v1.EventKind_EVENT_KIND_CONNECTION, true) }
func (i *interest) status() bool       { return i.has(orb8v1.EventKind_EVENT_KIND_NODE_STATUS, true) }
func (i *interest) losses() bool       { return i.has(orb8v1.EventKind_EVENT_KIND_LOST_EVENTS, true) }
func (i *interest) queries() bool      { return i.has(orb8v1.EventKind_EVENT_KIND_DNS, false) }
func (i *interest) dnsNames() bool     { return i.has(orb8v1.EventKind_EVENT_KIND_DNS_NAME, false) }
func (i *interest) processes() bool    { return i.has(orb8v1.EventKind_EVENT_KIND_PROCESS, false) }
func (i *interest) alerts() bool       { return i.has(orb8v1.EventKind_EVENT_KIND_ALERT, false) }
func (i *interest) accelerators() bool { return i.has(orb8v1.EventKind_EVENT_KIND_ACCELERATOR, false) }

func (i *interest) traces() bool { return i.trace != nil }

// ofNoFlow are the kinds that come without the flow table's rows.
var ofNoFlow = []orb8v1.EventKind{
	orb8v1.EventKind_EVENT_KIND_DNS, orb8v1.EventKind_EVENT_KIND_DNS_NAME, orb8v1.EventKind_EVENT_KIND_PROCESS,
	orb8v1.EventKind_EVENT_KIND_ALERT, orb8v1.EventKind_EVENT_KIND_ACCELERATOR, orb8v1.EventKind_EVENT_KIND_SYSCALL,
}

// table reports whether a snapshot has the flow table's rows: of any kind, unless only
// something else was asked for.
func (i *interest) table() bool {
	return i.flows() || i.connections() ||
		!slices.ContainsFunc(i.kinds, func(k orb8v1.EventKind) bool { return slices.Contains(ofNoFlow, k) })
}

// takes reports whether the stream's filters let a record through.
func (i *interest) takes(h *record.Header, body any) bool {
	return (!h.Self || i.self) && i.filters.Match(h, body)
}

// interestOf is what a subscription is interested in.
func interestOf(s *hub.Subscription) *interest {
	if i, ok := s.Tag.(*interest); ok {
		return i
	}
	return new(interest)
}

// streamKind is one kind of records as streams have it.
type streamKind interface {
	// selection is what of the kind a stream takes; nil for nothing.
	selection(*interest) hub.Selection
	// event is a record as a stream has it; nil if it is of another kind.
	event(record any, i *interest) *orb8v1.Event
}

// kindOf is a kind whose records are of type T.
type kindOf[T any] struct {
	lane    *hub.Lane[T]
	asked   func(*interest) bool
	wants   func(*interest, *T) bool
	convert func(*interest, *T) *orb8v1.Event
}

func (k *kindOf[T]) selection(i *interest) hub.Selection {
	if !k.asked(i) {
		return nil
	}
	return hub.Select(k.lane, func(r *T) bool { return k.wants(i, r) })
}

func (k *kindOf[T]) event(record any, i *interest) *orb8v1.Event {
	if r, ok := record.(*T); ok {
		return k.convert(i, r)
	}
	return nil
}

// flowRoom is how many records of flows a stream's filters may be behind: there may be as
// many flows, all of which are read at once.
const flowRoom = 8192

// queryRoom is the same of DNS queries.
const queryRoom = 4096

// stepRoom is the same of starts and ends of processes.
const stepRoom = 4096

// alertRoom is the same of alerts.
const alertRoom = 1024

// callRoom is the same of traced system calls, noteRoom of what traces are told beside.
const callRoom, noteRoom = 4096, 1024

// acceleratorHistory is how many samples of accelerators are kept.
const acceleratorHistory = 256

// newKinds makes the lanes of all kinds and returns what streams need to know of each. A
// new kind is one more of these.
func (a *Agent) newKinds(history int) []streamKind {
	a.flowLane = hub.NewLane(a.hub, history, flowRoom, func(r *flow.Record) int64 { return r.Time })
	a.queryLane = hub.NewLane(a.hub, history, queryRoom, func(r *dns.Record) int64 { return r.Time })
	a.stepLane = hub.NewLane(a.hub, history, stepRoom, func(r *process.Record) int64 { return r.Time })
	a.alertLane = hub.NewLane(a.hub, history, alertRoom, func(r *anomaly.Record) int64 { return r.Time })
	a.accelLane = hub.NewLane(a.hub, acceleratorHistory, 0, func(r *accel.Report) int64 { return r.Time.UnixNano() })
	a.callLane = hub.NewLane(a.hub, 0, callRoom, func(c *tracedCall) int64 { return c.Time })
	a.noteLane = hub.NewLane(a.hub, 0, noteRoom, func(*traceNote) int64 { return 0 })
	return []streamKind{
		&kindOf[flow.Record]{
			lane:  a.flowLane,
			asked: func(i *interest) bool { return i.flows() || i.connections() },
			wants: wantsFlow,
			convert: func(i *interest, r *flow.Record) *orb8v1.Event {
				if i.connections() && flows.Step(r) != orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED {
					return flows.ConnectionEvent(r, a.node)
				}
				return flows.Event(r, a.node)
			},
		},
		&kindOf[dns.Record]{
			lane:  a.queryLane,
			asked: (*interest).queries,
			wants: func(i *interest, r *dns.Record) bool {
				return queries.Seen(r, i.dnsView) && i.takes(&r.Header, r)
			},
			convert: func(_ *interest, r *dns.Record) *orb8v1.Event { return queries.Event(r, a.node) },
		},
		&kindOf[process.Record]{
			lane:  a.stepLane,
			asked: (*interest).processes,
			wants: func(i *interest, r *process.Record) bool {
				return processes.Wanted(r, i.steps) && i.takes(&r.Header, r)
			},
			convert: func(_ *interest, r *process.Record) *orb8v1.Event { return processes.Event(r, a.node) },
		},
		&kindOf[anomaly.Record]{
			lane:    a.alertLane,
			asked:   (*interest).alerts,
			wants:   func(i *interest, r *anomaly.Record) bool { return i.takes(&r.Header, r) },
			convert: func(_ *interest, r *anomaly.Record) *orb8v1.Event { return alerts.Event(r, a.node) },
		},
		&kindOf[accel.Report]{
			lane:    a.accelLane,
			asked:   (*interest).accelerators,
			wants:   wantsAccelerator,
			convert: func(i *interest, r *accel.Report) *orb8v1.Event { return a.filteredEvent(r, i.filters) },
		},
		&kindOf[tracedCall]{
			lane:  a.callLane,
			asked: (*interest).traces,
			wants: func(i *interest, c *tracedCall) bool {
				return i.trace.takes(c.Record) && i.filters.Match(&c.Header, c.Record) && i.trace.allows(c.Time)
			},
			convert: func(_ *interest, c *tracedCall) *orb8v1.Event { return calls.Event(c.Record, a.node) },
		},
		&kindOf[traceNote]{
			lane:    a.noteLane,
			asked:   (*interest).traces,
			wants:   func(i *interest, n *traceNote) bool { return n.trace == i.trace },
			convert: func(_ *interest, n *traceNote) *orb8v1.Event { return n.event },
		},
	}
}

// wantsFlow: flows are every record, connections only steps of TCP connections; with both,
// steps come as connections.
func wantsFlow(i *interest, r *flow.Record) bool {
	if !i.flows() && flows.Step(r) == orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED {
		return false
	}
	return i.takes(&r.Header, r)
}

// selections are what a stream takes of each kind.
func (a *Agent) selections(i *interest) []hub.Selection {
	var all []hub.Selection
	for _, k := range a.kinds {
		if s := k.selection(i); s != nil {
			all = append(all, s)
		}
	}
	return all
}

// eventOf is a record, of any kind, as a stream has it.
func (a *Agent) eventOf(item *hub.Item, i *interest) *orb8v1.Event {
	for _, k := range a.kinds {
		if ev := k.event(item.Record, i); ev != nil {
			ev.Sequence = item.Sequence
			return ev
		}
	}
	return nil
}
