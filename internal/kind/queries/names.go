// SPDX-License-Identifier: Apache-2.0

package queries

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// maxAsked bounds the parts of all names. Beyond it a name goes of the workload
	// that has most: the one that has not been asked for for the longest time.
	maxAsked = 8192
	// maxAskedParts bounds the parts of one name; the last has what is left.
	maxAskedParts = 16
	// askedTime is how long a name stays that nobody asks for.
	askedTime = 10 * time.Minute
	// maxAskedTypes bounds the types of queries that are told apart for one name, and
	// maxAskedCodes the codes of answers.
	maxAskedTypes = 16
	maxAskedCodes = 24
)

// Names is what was asked of DNS lately, by workload and name.
type Names struct {
	losses *loss.Counters

	mu        sync.Mutex
	workloads map[owner]*askedBy
	parts     int
	// pushed is how many names were pushed out lately, the latest at pushedAt.
	pushed   uint64
	pushedAt int64
}

// askedBy is what one workload asked for.
type askedBy struct {
	names map[askedKey]*askedName
	parts int
	// Doubly linked ring through names, the latest first; head is only its anchor.
	head askedName
}

// owner is a workload.
type owner struct{ namespace, name, kind string }

type askedKey struct{ name, pod, container string }

// askedName is a name that one container asked for, or outside of containers one
// workload.
type askedName struct {
	key        askedKey
	last       int64
	parts      []*askedPart
	prev, next *askedName
}

// askedPart are the queries for a name that a filter lets through or not as one.
type askedPart struct {
	ends          askedEnds
	local, remote *workload.Identity
	asked
}

type askedEnds struct {
	comm          record.Comm
	local, remote record.Addr
	remotePort    uint16
	protocol      record.Protocol
	loopback      bool
}

// asked are numbers of queries.
type asked struct {
	queries, timeouts, unread, searched uint64
	latency, max                        time.Duration
	rcodes, types                       tally
	first, last                         int64
}

// tally counts by a number, in no order.
type tally []struct {
	of uint16
	n  uint64
}

// add counts n of one kind, if there is room for it.
func (t *tally) add(of uint16, n uint64, limit int) {
	for i := range *t {
		if (*t)[i].of == of {
			(*t)[i].n += n
			return
		}
	}
	if len(*t) < limit {
		*t = append(*t, struct {
			of uint16
			n  uint64
		}{of, n})
	}
}

// NewNames returns an empty Names.
func NewNames(losses *loss.Counters) *Names {
	return &Names{losses: losses, workloads: make(map[owner]*askedBy)}
}

// Add counts a query of a client.
func (n *Names) Add(r *dns.Record) {
	if r.Role != record.RoleClient || r.Nameless() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	who := owner{r.Owner.Namespace, r.Owner.Name, r.Owner.Kind}
	by := n.workloads[who]
	if by == nil {
		by = &askedBy{names: make(map[askedKey]*askedName)}
		by.head.prev, by.head.next = &by.head, &by.head
		n.workloads[who] = by
	}
	name := by.find(askedKey{r.Name, r.Owner.Pod, r.Owner.ContainerID})
	name.last = r.Time
	part, isNew := name.part(r)
	part.count(r.Time, &r.Exchange)
	if !isNew {
		return
	}
	by.parts++
	if n.parts++; n.parts > maxAsked {
		n.makeRoom(by, r.Time)
	}
}

// find returns the name of that key as the one that was asked for last.
func (b *askedBy) find(key askedKey) *askedName {
	name := b.names[key]
	if name == nil {
		name = &askedName{key: key}
		b.names[key] = name
	} else {
		name.prev.next, name.next.prev = name.next, name.prev
	}
	name.prev, name.next = &b.head, b.head.next
	name.prev.next, name.next.prev = name, name
	return name
}

// part returns what r belongs to.
func (a *askedName) part(r *dns.Record) (part *askedPart, isNew bool) {
	ends := askedEnds{r.Comm, r.Local, r.Remote, r.RemotePort, r.Protocol, r.Loopback}
	i := slices.IndexFunc(a.parts, func(p *askedPart) bool { return p.ends == ends })
	if i < 0 && len(a.parts) == maxAskedParts {
		i = maxAskedParts - 1
	}
	if i < 0 {
		part, isNew = new(askedPart), true
		if a.parts = append(a.parts, part); len(a.parts) < maxAskedParts {
			part.ends = ends
		}
	} else {
		part = a.parts[i]
	}
	part.local = r.Owner
	if part.ends == ends {
		part.remote = r.Peer
	}
	return part, isNew
}

func (a *asked) count(now int64, x *dns.Exchange) {
	if a.first == 0 {
		a.first = now
	}
	a.last = now
	a.queries++
	a.types.add(uint16(x.Type), 1, maxAskedTypes)
	a.searched += uint64(x.SearchFailures)
	switch x.Outcome {
	case dns.Timeout:
		a.timeouts++
	case dns.Unread:
		a.unread++
	default:
		a.rcodes.add(uint16(x.RCode), 1, maxAskedCodes)
		a.latency += x.Latency
		a.max = max(a.max, x.Latency)
	}
}

// merge adds o to a.
func (a *asked) merge(o *asked) {
	if a.first == 0 || o.first < a.first {
		a.first = o.first
	}
	a.last = max(a.last, o.last)
	a.queries += o.queries
	a.timeouts += o.timeouts
	a.unread += o.unread
	a.searched += o.searched
	a.latency += o.latency
	a.max = max(a.max, o.max)
	for _, c := range o.rcodes {
		a.rcodes.add(c.of, c.n, maxAskedCodes)
	}
	for _, c := range o.types {
		a.types.add(c.of, c.n, maxAskedTypes)
	}
}

// makeRoom pushes a name out, so that who asks for many does not blind the others.
func (n *Names) makeRoom(most *askedBy, now int64) {
	if most.parts < n.parts/2 {
		for _, by := range n.workloads {
			if by.parts > most.parts {
				most = by
			}
		}
	}
	n.remove(most, most.head.prev)
	n.pushed++
	n.pushedAt = now
	n.losses.Add(loss.DNSNamesFull, 1)
}

func (n *Names) remove(by *askedBy, name *askedName) {
	name.prev.next, name.next.prev = name.next, name.prev
	delete(by.names, name.key)
	by.parts -= len(name.parts)
	n.parts -= len(name.parts)
}

// Sweep drops the names that nobody has asked for lately.
func (n *Names) Sweep(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	limit := now.Add(-askedTime).UnixNano()
	for who, by := range n.workloads {
		for name := by.head.prev; name != &by.head && name.last <= limit; name = by.head.prev {
			n.remove(by, name)
		}
		if len(by.names) == 0 {
			delete(n.workloads, who)
		}
	}
	if n.pushedAt <= limit {
		n.pushed = 0
	}
}

// PushedOut is how many names are missing that were asked for lately.
func (n *Names) PushedOut() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pushed
}

// askedRow is what one workload asked for under one name, as far as it matches.
type askedRow struct {
	who  *orb8v1.Workload
	name string
	asked
}

// Events are the rows of what matches, most queries first, at most limit unless that
// is 0.
func (n *Names) Events(filters *filter.Set, limit int, node string) []*orb8v1.Event {
	rows := n.rows(filters)
	slices.SortFunc(rows, func(a, b *askedRow) int {
		return cmp.Or(cmp.Compare(b.queries, a.queries), strings.Compare(a.name, b.name),
			strings.Compare(a.who.GetNamespace(), b.who.GetNamespace()), strings.Compare(a.who.GetName(), b.who.GetName()),
			strings.Compare(a.who.GetKind(), b.who.GetKind()))
	})
	if limit > 0 {
		rows = rows[:min(limit, len(rows))]
	}
	all := make([]*orb8v1.Event, len(rows))
	for i, row := range rows {
		all[i] = &orb8v1.Event{TimeNs: row.last, NodeName: node, Event: &orb8v1.Event_DnsName{DnsName: row.pb()}}
	}
	return all
}

func (n *Names) rows(filters *filter.Set) []*askedRow {
	n.mu.Lock()
	defer n.mu.Unlock()
	var rows []*askedRow
	for _, by := range n.workloads {
		found := make(map[string]*askedRow)
		for _, name := range by.names {
			for _, part := range name.parts {
				if r := part.record(name.key.name); !filters.Match(&r.Header, r) {
					continue
				}
				row := found[name.key.name]
				if row == nil {
					row = &askedRow{who: kind.Workload(part.local), name: name.key.name}
					found[row.name] = row
					rows = append(rows, row)
				}
				keepCommon(row.who, part.local)
				row.merge(&part.asked)
			}
		}
	}
	return rows
}

// record is what filters see of a part. What came of the single queries, their ports
// and their types match none.
func (p *askedPart) record(name string) *dns.Record {
	return &dns.Record{
		Header: record.Header{
			Local: p.ends.local, Remote: p.ends.remote, RemotePort: p.ends.remotePort, Protocol: p.ends.protocol,
			Role: record.RoleClient, Comm: p.ends.comm, Loopback: p.ends.loopback,
			Time: p.last, First: p.last, Last: p.last, Owner: p.local, Peer: p.remote,
		},
		Exchange: dns.Exchange{Name: name},
	}
}

// keepCommon clears what w, several of one workload, do not have in common with id.
func keepCommon(w *orb8v1.Workload, id *workload.Identity) {
	keep := func(has *string, other string) {
		if *has != other {
			*has = ""
		}
	}
	keep(&w.PodName, id.Pod)
	keep(&w.PodUid, id.PodUID)
	keep(&w.ContainerId, id.ContainerID)
	keep(&w.ContainerRuntime, id.ContainerRuntime)
	keep(&w.Service, id.Service)
	keep(&w.NodeName, id.Node)
	keep(&w.Zone, id.Zone)
	keep(&w.QosClass, id.QoS)
	keep(&w.CgroupPath, id.CgroupPath)
	if w.CgroupId != id.CgroupID {
		w.CgroupId = 0
	}
	if !maps.Equal(w.Labels, id.Labels) {
		w.Labels = nil
	}
}

func (a *askedRow) pb() *orb8v1.DnsName {
	n := &orb8v1.DnsName{
		Workload: a.who, Name: a.name, Queries: a.queries, Timeouts: a.timeouts, Unread: a.unread,
		SearchFailures: a.searched, LatencySumNs: int64(a.latency), LatencyMaxNs: int64(a.max),
		FirstSeenNs: a.first, LastSeenNs: a.last,
		Rcodes: make(map[string]uint64), Types: make(map[string]uint64, len(a.types)),
	}
	for _, c := range a.rcodes {
		n.Rcodes[dns.RCode(c.of).String()] = c.n
	}
	for _, t := range a.types {
		n.Types[dns.Type(t.of).String()] = t.n
	}
	return n
}
