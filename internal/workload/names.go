// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// nameTime is how long an address keeps the name by which it was looked up:
	// programs hold on to addresses for longer than they should.
	nameTime = time.Hour
	// maxNames bounds the names of addresses, by client and by address alone.
	maxNames = 16_384
	// renewAfter is how old a name is at least when it is written again.
	renewAfter = time.Minute
	// sweepNames is the time between two looks for names that are too old.
	sweepNames = time.Minute
)

// Names knows by which name addresses were looked up. Its methods may be called from
// any goroutine.
type Names struct {
	mu sync.RWMutex
	// byAddr has each address under the cgroup that looked it up and, under cgroup 0,
	// with the name that anybody used last.
	byAddr map[nameKey]named
	// byName keeps one identity for each name.
	byName map[string]*Identity
	swept  time.Time
}

type nameKey struct {
	cgroup uint64
	addr   netip.Addr
}

type named struct {
	id   *Identity
	seen time.Time
	// since is when the address got the name, before who it was until then.
	since  time.Time
	before *Identity
}

// NewNames returns a Names that knows nothing.
func NewNames() *Names {
	return &Names{byAddr: make(map[nameKey]named), byName: make(map[string]*Identity)}
}

// Learn notes that the cgroup looked addr up as name.
func (n *Names) Learn(cgroup uint64, addr netip.Addr, name string, now time.Time) {
	keys := [2]nameKey{{cgroup, addr}, {0, addr}}
	if cgroup == 0 {
		keys[0] = keys[1]
	}
	n.mu.RLock()
	known := true
	for _, k := range keys {
		old, ok := n.byAddr[k]
		known = known && ok && old.id.Name == name && now.Sub(old.seen) < renewAfter
	}
	n.mu.RUnlock()
	if known {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	id := n.byName[name]
	if id == nil {
		id = &Identity{Kind: KindExternal, Name: name}
		n.byName[name] = id
	}
	for _, k := range keys {
		if _, ok := n.byAddr[k]; !ok && len(n.byAddr) >= maxNames {
			n.evict()
		}
		e := n.byAddr[k]
		if e.id != id {
			e.before, e.since = e.id, now
		}
		e.id, e.seen = id, now
		n.byAddr[k] = e
	}
	if len(n.byName) > 2*maxNames {
		n.forget()
	}
}

// nameLate is how much later than the flow that it names a name may become known.
const nameLate = time.Second

// Of returns who has addr by the name under which the cgroup looked it up, or else
// anybody on this node; nil if nobody did. A name that is younger than since, the
// flow's begin in Unix nanoseconds or 0, does not count: the one before it does.
func (n *Names) Of(cgroup uint64, addr netip.Addr, since int64) *Identity {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, k := range []nameKey{{cgroup, addr}, {0, addr}} {
		e, ok := n.byAddr[k]
		if ok && since != 0 && e.since.Add(-nameLate).UnixNano() > since {
			e.id = e.before
		}
		if e.id != nil {
			return e.id
		}
	}
	return nil
}

// evict makes room for one: of those that a map's random order brings up, the oldest.
// It is called with n.mu held.
func (n *Names) evict() {
	const looks = 16
	var oldest nameKey
	var seen time.Time
	i := 0
	for k, e := range n.byAddr {
		if i == 0 || e.seen.Before(seen) {
			oldest, seen = k, e.seen
		}
		if i++; i == looks {
			break
		}
	}
	delete(n.byAddr, oldest)
}

// Sweep drops what is too old.
func (n *Names) Sweep(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.Sub(n.swept) < sweepNames {
		return
	}
	n.swept = now
	for k, e := range n.byAddr {
		if now.Sub(e.seen) > nameTime {
			delete(n.byAddr, k)
		}
	}
	n.forget()
}

// forget drops the identities that no address has. It is called with n.mu held.
func (n *Names) forget() {
	used := make(map[string]*Identity, len(n.byAddr))
	for _, e := range n.byAddr {
		used[e.id.Name] = e.id
		if e.before != nil {
			used[e.before.Name] = e.before
		}
	}
	n.byName = used
}
