// SPDX-License-Identifier: Apache-2.0

// Package stream has what streams of the API need to know of each kind of record: its lane in
// the hub, who wants it, and how it looks.
package stream

import (
	"slices"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/agent/tracing"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/accelerators"
	"github.com/Ignoramuss/orb8/internal/kind/alerts"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/kind/flows"
	"github.com/Ignoramuss/orb8/internal/kind/processes"
	"github.com/Ignoramuss/orb8/internal/kind/queries"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
)

// Interest says which events a stream takes.
type Interest struct {
	Filters *filter.Set
	// Kinds that were asked for; those that come unasked if empty.
	Kinds []orb8v1.EventKind
	// Self takes orb8's own traffic too.
	Self bool
	// NoLoopback leaves out what stays on the loopback interface.
	NoLoopback bool
	// DNSView is the end at which DNS queries are wanted.
	DNSView orb8v1.DnsView
	// Steps of processes that are wanted; all if empty.
	Steps []orb8v1.ProcessStep
	// Trace is that of system calls, nil for none.
	Trace *tracing.Trace
}

// has reports whether a kind is wanted; unasked says whether it comes where none was asked
// for.
func (i *Interest) has(k orb8v1.EventKind, unasked bool) bool {
	if len(i.Kinds) == 0 {
		return unasked
	}
	return slices.Contains(i.Kinds, k)
}

func (i *Interest) flows() bool       { return i.has(orb8v1.EventKind_EVENT_KIND_FLOW, true) }
func (i *Interest) connections() bool { return i.has(orb8v1.EventKind_EVENT_KIND_CONNECTION, true) }
func (i *Interest) queries() bool     { return i.has(orb8v1.EventKind_EVENT_KIND_DNS, false) }
func (i *Interest) processes() bool   { return i.has(orb8v1.EventKind_EVENT_KIND_PROCESS, false) }
func (i *Interest) alerts() bool      { return i.has(orb8v1.EventKind_EVENT_KIND_ALERT, false) }
func (i *Interest) traces() bool      { return i.Trace != nil }

// Status reports whether the stream is told of the node's state.
func (i *Interest) Status() bool { return i.has(orb8v1.EventKind_EVENT_KIND_NODE_STATUS, true) }

// Losses reports whether the stream is told of what all streams have lost. One of a trace
// is told of what that has lost.
func (i *Interest) Losses() bool {
	return i.Trace == nil && i.has(orb8v1.EventKind_EVENT_KIND_LOST_EVENTS, true)
}

// DNSNames reports whether a snapshot has the names that were asked of DNS.
func (i *Interest) DNSNames() bool { return i.has(orb8v1.EventKind_EVENT_KIND_DNS_NAME, false) }

// Accelerators reports whether the stream is told of accelerators.
func (i *Interest) Accelerators() bool { return i.has(orb8v1.EventKind_EVENT_KIND_ACCELERATOR, false) }

// ofNoFlow are the kinds that come without the flow table's rows.
var ofNoFlow = []orb8v1.EventKind{
	orb8v1.EventKind_EVENT_KIND_DNS, orb8v1.EventKind_EVENT_KIND_DNS_NAME, orb8v1.EventKind_EVENT_KIND_PROCESS,
	orb8v1.EventKind_EVENT_KIND_ALERT, orb8v1.EventKind_EVENT_KIND_ACCELERATOR, orb8v1.EventKind_EVENT_KIND_SYSCALL,
}

// Table reports whether a snapshot has the flow table's rows: of any kind, unless only
// something else was asked for.
func (i *Interest) Table() bool {
	return i.flows() || i.connections() ||
		!slices.ContainsFunc(i.Kinds, func(k orb8v1.EventKind) bool { return slices.Contains(ofNoFlow, k) })
}

// Takes reports whether the stream's filters let a record through.
func (i *Interest) Takes(h *record.Header, body any) bool {
	return (!h.Self || i.Self) && (!h.Loopback || !i.NoLoopback) && i.Filters.Match(h, body)
}

// InterestOf is what a subscription is interested in.
func InterestOf(s *hub.Subscription) *Interest {
	if i, ok := s.Tag.(*Interest); ok {
		return i
	}
	return new(Interest)
}

// streamKind is one kind of records as streams have it.
type streamKind interface {
	// selection is what of the kind a stream takes; nil for nothing.
	selection(*Interest) hub.Selection
	// event is a record as a stream has it; nil if it is of another kind.
	event(record any, i *Interest) *orb8v1.Event
}

// kindOf is a kind whose records are of type T.
type kindOf[T any] struct {
	lane    *hub.Lane[T]
	asked   func(*Interest) bool
	wants   func(*Interest, *T) bool
	convert func(*Interest, *T) *orb8v1.Event
}

func (k *kindOf[T]) selection(i *Interest) hub.Selection {
	if !k.asked(i) {
		return nil
	}
	return hub.Select(k.lane, func(r *T) bool { return k.wants(i, r) })
}

func (k *kindOf[T]) event(record any, i *Interest) *orb8v1.Event {
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

// Call is a traced system call on its way to those who trace it.
type Call struct{ *calls.Record }

// Lanes has a lane of a hub for each kind.
type Lanes struct {
	Flows        *hub.Lane[flow.Record]
	Queries      *hub.Lane[dns.Record]
	Steps        *hub.Lane[process.Record]
	Alerts       *hub.Lane[anomaly.Record]
	Accelerators *hub.Lane[accel.Report]
	Calls        *hub.Lane[Call]
	Notes        *hub.Lane[tracing.Note]
}

// Kinds are all kinds, as streams have them.
type Kinds struct {
	Lanes
	all []streamKind
}

// New makes the lanes of all kinds, which keep up to history records each. accelerator is a
// reading of a device as an event of the node. A new kind is one more of these.
func New(h *hub.Hub, history int, node string, accelerator func(*accel.Report, *filter.Set) *orb8v1.Event) *Kinds {
	k := &Kinds{Lanes: Lanes{
		Flows:        hub.NewLane(h, history, flowRoom, func(r *flow.Record) int64 { return r.Time }),
		Queries:      hub.NewLane(h, history, queryRoom, func(r *dns.Record) int64 { return r.Time }),
		Steps:        hub.NewLane(h, history, stepRoom, func(r *process.Record) int64 { return r.Time }),
		Alerts:       hub.NewLane(h, history, alertRoom, func(r *anomaly.Record) int64 { return r.Time }),
		Accelerators: hub.NewLane(h, acceleratorHistory, 0, func(r *accel.Report) int64 { return r.Time.UnixNano() }),
		Calls:        hub.NewLane(h, 0, callRoom, func(c *Call) int64 { return c.Time }),
		Notes:        hub.NewLane(h, 0, noteRoom, func(*tracing.Note) int64 { return 0 }),
	}}
	k.all = k.kinds(node, accelerator)
	return k
}

func (k *Kinds) kinds(node string, accelerator func(*accel.Report, *filter.Set) *orb8v1.Event) []streamKind {
	return []streamKind{
		&kindOf[flow.Record]{
			lane:  k.Flows,
			asked: func(i *Interest) bool { return i.flows() || i.connections() },
			wants: (*Interest).WantsFlow,
			convert: func(i *Interest, r *flow.Record) *orb8v1.Event {
				if i.connections() && flows.Step(r) != orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED {
					return flows.ConnectionEvent(r, node)
				}
				return flows.Event(r, node)
			},
		},
		&kindOf[dns.Record]{
			lane:  k.Queries,
			asked: (*Interest).queries,
			wants: func(i *Interest, r *dns.Record) bool {
				return queries.Seen(r, i.DNSView) && i.Takes(&r.Header, r)
			},
			convert: func(_ *Interest, r *dns.Record) *orb8v1.Event { return queries.Event(r, node) },
		},
		&kindOf[process.Record]{
			lane:  k.Steps,
			asked: (*Interest).processes,
			wants: func(i *Interest, r *process.Record) bool {
				return processes.Wanted(r, i.Steps) && i.Takes(&r.Header, r)
			},
			convert: func(_ *Interest, r *process.Record) *orb8v1.Event { return processes.Event(r, node) },
		},
		&kindOf[anomaly.Record]{
			lane:    k.Alerts,
			asked:   (*Interest).alerts,
			wants:   func(i *Interest, r *anomaly.Record) bool { return i.Takes(&r.Header, r) },
			convert: func(_ *Interest, r *anomaly.Record) *orb8v1.Event { return alerts.Event(r, node) },
		},
		&kindOf[accel.Report]{
			lane:    k.Accelerators,
			asked:   (*Interest).Accelerators,
			wants:   func(i *Interest, r *accel.Report) bool { return accelerators.Wanted(r, i.Filters) },
			convert: func(i *Interest, r *accel.Report) *orb8v1.Event { return accelerator(r, i.Filters) },
		},
		&kindOf[Call]{
			lane:  k.Calls,
			asked: (*Interest).traces,
			wants: func(i *Interest, c *Call) bool {
				return i.Trace.Takes(c.Record) && i.Filters.Match(&c.Header, c.Record) && i.Trace.Allows(c.Time)
			},
			convert: func(_ *Interest, c *Call) *orb8v1.Event { return calls.Event(c.Record, node) },
		},
		&kindOf[tracing.Note]{
			lane:    k.Notes,
			asked:   (*Interest).traces,
			wants:   func(i *Interest, n *tracing.Note) bool { return n.Trace == i.Trace },
			convert: func(_ *Interest, n *tracing.Note) *orb8v1.Event { return n.Event },
		},
	}
}

// WantsFlow reports whether the stream takes a record of a flow: flows are every record,
// connections only steps of TCP connections; with both, steps come as connections.
func (i *Interest) WantsFlow(r *flow.Record) bool {
	if !i.flows() && flows.Step(r) == orb8v1.ConnectionEvent_CONNECTION_EVENT_UNSPECIFIED {
		return false
	}
	return i.Takes(&r.Header, r)
}

// Selections are what a stream takes of each kind.
func (k *Kinds) Selections(i *Interest) []hub.Selection {
	var all []hub.Selection
	for _, one := range k.all {
		if s := one.selection(i); s != nil {
			all = append(all, s)
		}
	}
	return all
}

// Event is a record, of any kind, as a stream has it.
func (k *Kinds) Event(item *hub.Item, i *Interest) *orb8v1.Event {
	for _, one := range k.all {
		if ev := one.event(item.Record, i); ev != nil {
			ev.Sequence = item.Sequence
			return ev
		}
	}
	return nil
}
