// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"

	"github.com/Ignoramuss/orb8/internal/flow"
)

// past keeps the latest records of each kind, so that many of one kind do not push
// out the few of another. All kinds share one count. It is not safe for concurrent
// use.
type past struct {
	// seen is how many records there were of any kind.
	seen  uint64
	rings [flow.NumKinds]ring
	// kinds has the kind of each of the latest records of any, by its place.
	kinds []flow.Kind
}

// ring has the latest records of one kind. It grows as they come.
type ring struct {
	size int
	seen uint64 // how many there were
	kept []kept
	next int // where the oldest is, once it is full
	// gone is the latest time of those that are not kept any more, 0 if all are.
	gone int64
}

type kept struct {
	seq uint64
	rec flow.Record
}

// kindsPerRecord is for how many records the kinds are known for each that is kept
// of a kind: of a resume beyond these it is not known what it has missed, and all
// counts.
const kindsPerRecord = 16

func newPast(size int) past {
	p := past{kinds: make([]flow.Kind, kindsPerRecord*size)}
	for k := range p.rings {
		p.rings[k].size = size
	}
	if size > 0 {
		p.rings[flow.KindExec].size = max(size/processShare, 1)
		p.rings[flow.KindExit].size = max(size/processShare, 1)
	}
	return p
}

// processShare is how many flows are kept for each start of a process, and for each
// end: these are several times larger.
const processShare = 4

// add keeps a copy of r and returns its place, which counts from 1.
func (p *past) add(r *flow.Record) uint64 {
	p.seen++
	if n := uint64(len(p.kinds)); n > 0 {
		p.kinds[p.seen%n] = r.Kind()
	}
	p.rings[r.Kind()].add(p.seen, r)
	return p.seen
}

func (g *ring) add(seq uint64, r *flow.Record) {
	g.seen++
	switch {
	case len(g.kept) < g.size:
		g.kept = append(g.kept, kept{seq, *r})
	case g.size > 0:
		g.gone = max(g.gone, g.kept[g.next].rec.Time)
		g.kept[g.next] = kept{seq, *r}
		g.next = (g.next + 1) % g.size
	default:
		g.gone = max(g.gone, r.Time)
	}
}

// at returns the nth latest record, counted from 0.
func (g *ring) at(n int) *kept {
	return &g.kept[(g.next+len(g.kept)-1-n)%len(g.kept)]
}

// oldest is the place from which on all records of the kind are kept.
func (g *ring) oldest() uint64 {
	if len(g.kept) < g.size {
		return 1
	}
	if g.size == 0 {
		return ^uint64(0)
	}
	return g.kept[g.next].seq
}

// kindKept is what is kept of a kind.
type kindKept struct {
	kind flow.Kind
	// events are those that are kept, of at most so many as the capacity.
	events, capacity int
	// since is from when on all are, in Unix nanoseconds; 0 if none was pushed out.
	since int64
}

// summary says what is kept of each kind that may be.
func (p *past) summary() []kindKept {
	var all []kindKept
	for k := range p.rings {
		if flow.Kind(k) == flow.KindSyscall {
			continue
		}
		g := &p.rings[k]
		kept := kindKept{kind: flow.Kind(k), events: len(g.kept), capacity: g.size}
		if g.gone != 0 {
			kept.since = g.gone + 1
		}
		all = append(all, kept)
	}
	return all
}

// pastQuery says which part of the past is wanted; the zero value none.
type pastQuery struct {
	// since is the earliest time in Unix nanoseconds, 0 for any.
	since int64
	// last is how many of the latest events, 0 for all since.
	last int
	// resume: those after the one of that place.
	resume bool
	after  uint64
}

// history is the part of the past that was asked for, oldest first.
type history struct {
	updates []*update
	// missing is how many events, of the kinds that are wanted, are no longer kept
	// that a resume would have gone on with.
	missing uint64
}

// find returns the part of the past that i wants, oldest first.
func (p *past) find(i *interest, q pastQuery, node string) history {
	var found history
	if q == (pastQuery{}) {
		return found
	}
	if q.resume {
		found.missing = p.missing(i, q.after)
	}
	var next [flow.NumKinds]int
	for {
		k, e := p.latest(i, &next)
		if e == nil || q.resume && e.seq <= q.after {
			break
		}
		next[k]++
		if e.rec.Time < q.since || !i.wants(&e.rec) {
			continue
		}
		found.updates = append(found.updates, &update{rec: e.rec, node: node, seq: e.seq})
		if len(found.updates) == q.last {
			break
		}
	}
	slices.Reverse(found.updates)
	return found
}

// latest returns the latest record that i may want, next of each kind left out.
func (p *past) latest(i *interest, next *[flow.NumKinds]int) (kind int, e *kept) {
	for k := range p.rings {
		g := &p.rings[k]
		if !i.kind(flow.Kind(k)) || next[k] == len(g.kept) {
			continue
		}
		if c := g.at(next[k]); e == nil || c.seq > e.seq {
			kind, e = k, c
		}
	}
	return kind, e
}

// keptSince reports whether all records after a place are kept that i may want.
func (p *past) keptSince(i *interest, after uint64) bool {
	for k := range p.rings {
		g := &p.rings[k]
		if i.kind(flow.Kind(k)) && g.seen > uint64(len(g.kept)) && g.oldest() > after+1 {
			return false
		}
	}
	return true
}

// missing counts the records after a place that are of a kind that i wants and no
// longer kept.
func (p *past) missing(i *interest, after uint64) uint64 {
	after = min(after, p.seen)
	if p.keptSince(i, after) {
		return 0
	}
	known := p.seen - min(p.seen, uint64(len(p.kinds)))
	var missing uint64
	if after < known {
		missing, after = known-after, known
	}
	for seq := after + 1; seq <= p.seen; seq++ {
		k := p.kinds[seq%uint64(len(p.kinds))]
		if i.kind(k) && seq < p.rings[k].oldest() {
			missing++
		}
	}
	return missing
}
