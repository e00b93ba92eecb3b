// SPDX-License-Identifier: Apache-2.0

package agent

import "github.com/Ignoramuss/orb8/internal/flow"

// maxProgress bounds the connections that progress remembers.
const maxProgress = 65_536

// progress turns what TCP sockets say of themselves since they were opened into
// what is new. It remembers only connections with retransmits and those that
// are still being made, which are few. A connection that was idle for so long
// that it left the table may come back, so it is remembered until its close.
type progress struct {
	of map[connection]step
}

type connection struct {
	flow.Key
	instance uint64
}

type step struct {
	retransmits uint64
	connecting  bool
}

func newProgress() progress { return progress{of: make(map[connection]step)} }

// advance returns how many segments were sent again since the connection's last
// record, and whether this is the first record since it was established.
func (p *progress) advance(r *flow.Record) (retransmits uint64, connected bool) {
	if r.Event != flow.EventOpen && r.Event != flow.EventClose && len(p.of) == 0 && r.TCP.Retransmits == 0 {
		return 0, false // the usual case needs no look-up
	}
	key := connection{r.Key, r.Instance}
	last, known := p.of[key]
	// Without a base the probe has not reported the connection before.
	first := !known && r.Base == flow.Counters{} && (r.Event == flow.EventOpen || r.Event == flow.EventClose)
	connected = r.TCP.ConnectNanos > 0 && (first || last.connecting)
	next := step{
		retransmits: max(last.retransmits, r.TCP.Retransmits),
		connecting:  !connected && (last.connecting || first && connecting(r)),
	}
	if !p.isOld(r, known, first) {
		retransmits = next.retransmits - last.retransmits
	}
	switch {
	case r.Event == flow.EventClose:
		delete(p.of, key)
	case next != last:
		p.remember(key, next)
	}
	return retransmits, connected
}

// isOld reports whether what r's connection has sent again until now is not to
// be counted: it happened before the agent came, or was counted before the
// connection left the table.
func (p *progress) isOld(r *flow.Record, known, first bool) bool {
	switch {
	case known || first:
		return false
	case r.Event == flow.EventOpen:
		return true
	}
	return r.Event == flow.EventClose && r.TCP.Preexisting
}

// connecting reports whether r's connection is still being made.
func connecting(r *flow.Record) bool {
	return r.Role == flow.RoleClient && r.TCP.State == flow.StateSynSent
}

func (p *progress) remember(key connection, s step) {
	if _, ok := p.of[key]; !ok && len(p.of) >= maxProgress {
		clear(p.of)
	}
	p.of[key] = s
}
