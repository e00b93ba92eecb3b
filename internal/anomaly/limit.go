// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"cmp"
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

const (
	// window is how long an alert stands for the same ones after it.
	window = time.Minute
	// perKey is how many different ones of a rule, workload, executable and call are
	// told one by one in a window, perWorkload how many of a rule and workload.
	perKey      = 3
	perWorkload = 20
	maxKeys     = 4096
)

// owner is a workload as far as alerts of it are the same.
type owner struct{ namespace, kind, name string }

// alertKey names alerts that are the same but for their summaries.
type alertKey struct {
	workloadKey
	executable, call string
}

type workloadKey struct {
	rule string
	owner
}

// match is what a rule found.
type match struct {
	rule    *Rule
	subject Subject
	summary string
}

// held is what was found and not told yet: how many, and the latest of them.
type held struct {
	n    uint64
	last match
}

func (h *held) add(m *match) {
	h.n++
	h.last = *m
}

// take returns how many there were, and forgets them.
func (h *held) take() uint64 {
	n := h.n
	*h = held{}
	return n
}

// join takes over what another one holds.
func (h *held) join(o *held) {
	if o.n == 0 {
		return
	}
	if h.n == 0 || o.last.subject.Time > h.last.subject.Time {
		h.last = o.last
	}
	h.n += o.n
}

// told is what was told under a key since a time.
type told struct {
	since time.Time
	// summaries has the hashes of those that were told.
	summaries [perKey]uint64
	n         int
	// held are the same as those.
	held held
}

// count is how many of a rule and workload were told since a time.
type count struct {
	since time.Time
	n     int
	// held were too many.
	held held
}

// limiter decides which matches are told one by one. Of the others the last is told
// once their window is over, with how many there were. What the limiter forgets may be
// told again.
type limiter struct {
	seed maphash.Seed

	mu        sync.Mutex
	keys      *lru[alertKey, told]
	workloads *lru[workloadKey, count]
	// evicted are of workloads that had to make room for others.
	evicted []held
	// holding is how many matches are held in all.
	holding uint64
}

func newLimiter() *limiter {
	l := &limiter{
		seed:      maphash.MakeSeed(),
		keys:      newLRU[alertKey, told](maxKeys),
		workloads: newLRU[workloadKey, count](maxKeys),
	}
	l.keys.evicted = func(k alertKey, t *told) {
		if t.held.n > 0 { // not told by itself: there may be thousands such keys
			l.workload(k.workloadKey).held.join(&t.held)
		}
	}
	l.workloads.evicted = func(_ workloadKey, c *count) {
		if c.held.n > 0 {
			l.evicted = append(l.evicted, c.held)
		}
	}
	return l
}

// tell reports whether a match is to be told now, and if so how many like it were not
// since the last. One that is not is held.
func (l *limiter) tell(now time.Time, key alertKey, m *match) (n uint64, ok bool) {
	hash := maphash.String(l.seed, m.summary)
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.workload(key.workloadKey)
	if now.Sub(c.since) >= window {
		c.since, c.n = now, 0
	}
	t := l.keys.get(key)
	if t != nil && now.Sub(t.since) >= window {
		t.since, t.n = now, 0
	}
	switch {
	case t != nil && (t.n == perKey || slices.Contains(t.summaries[:t.n], hash)):
		t.held.add(m)
		l.holding++
		return 0, false
	case c.n == perWorkload:
		c.held.add(m)
		l.holding++
		return 0, false
	}
	c.n++
	n = c.held.take()
	if t == nil {
		t = l.keys.add(key)
		t.since = now
	}
	t.summaries[t.n] = hash
	t.n++
	n += t.held.take()
	l.holding -= n
	return n, true
}

func (l *limiter) workload(key workloadKey) *count {
	if c := l.workloads.get(key); c != nil {
		return c
	}
	return l.workloads.add(key)
}

// due returns what is held whose window is over, or all of it, the earliest first. The
// last of each stands, like one that was told, for the same in a window that begins now,
// and counts as one of its workload's; where these are too many, it is held with them.
func (l *limiter) due(now time.Time, all bool) []held {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holding == 0 {
		return nil
	}
	var found []held
	over := func(since time.Time) bool { return all || now.Sub(since) >= window }
	l.workloads.each(func(_ workloadKey, c *count) {
		if !over(c.since) {
			return
		}
		c.since, c.n = now, 0
		if c.held.n > 0 {
			found = append(found, c.held)
			c.n, c.held = 1, held{}
		}
	})
	l.keys.each(func(k alertKey, t *told) {
		if t.held.n == 0 || !over(t.since) {
			return
		}
		if c := l.workload(k.workloadKey); c.n < perWorkload {
			found = append(found, t.held)
			c.n++
		} else {
			c.held.join(&t.held)
		}
		t.since, t.n = now, 1
		t.summaries[0] = maphash.String(l.seed, t.held.last.summary)
		t.held = held{}
	})
	if all {
		l.workloads.each(func(_ workloadKey, c *count) {
			if c.held.n > 0 {
				found = append(found, c.held)
				c.held = held{}
			}
		})
	}
	found = append(found, l.evicted...)
	l.evicted = nil
	for i := range found {
		l.holding -= found[i].n
	}
	slices.SortStableFunc(found, func(a, b held) int { return cmp.Compare(a.last.subject.Time, b.last.subject.Time) })
	return found
}
