// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"strings"
	"time"
)

const (
	// searchTime is how long a client may take from a name with a search domain to
	// the one without.
	searchTime = 5 * time.Second
	// maxSearches bounds the failures that are remembered of all clients together,
	// maxAlikeSearches those of a client that begin with the same label.
	maxSearches      = 16384
	maxAlikeSearches = 256
)

// searches finds out which queries failed only because a resolver appended a search
// domain to a name before it tried the name as it is (ndots in resolv.conf). Clients
// are told apart by cgroup.
type searches struct {
	of map[uint64]*searcher
	n  int // failures of all clients
	// forgotten are the failures that were pushed out by others.
	forgotten uint64
}

// searcher is a client's latest failures.
type searcher struct {
	queue []*failure // the oldest first
	// under has those that are not done in the same order, by their first label.
	under map[string][]*failure
}

type failure struct {
	name string
	at   uint64 // boot time
	done bool
}

func newSearches() searches { return searches{of: make(map[uint64]*searcher)} }

// add takes an answer in. One with records settles the failures before it that asked
// for the same name with a search domain; their number becomes x's.
func (s *searches) add(cgroup uint64, x *Exchange, now uint64) {
	c := s.of[cgroup]
	switch {
	case x.RCode == NoError && len(x.Answers) > 0:
		if c != nil {
			x.SearchFailures = c.settle(x.Name, now)
			s.trim(c, func(f *failure) bool { return f.done })
		}
	case x.RCode == NoError || x.RCode == NXDomain:
		if c == nil {
			c = &searcher{under: make(map[string][]*failure)}
			s.of[cgroup] = c
		}
		if s.n >= maxSearches {
			s.makeRoom(c)
		}
		s.n++
		if c.push(&failure{name: x.Name, at: now}) {
			s.forgotten++
		}
	}
}

// makeRoom forgets the oldest failure of the client that has most.
func (s *searches) makeRoom(most *searcher) {
	if len(most.queue) < s.n/2 {
		for _, c := range s.of {
			if len(c.queue) > len(most.queue) {
				most = c
			}
		}
	}
	if !most.queue[0].done {
		s.forgotten++
	}
	most.pop()
	s.n--
}

// trim forgets the oldest failures of c for as long as they may go.
func (s *searches) trim(c *searcher, may func(*failure) bool) {
	for len(c.queue) > 0 && may(c.queue[0]) {
		c.pop()
		s.n--
	}
}

// expire forgets what is no longer recent.
func (s *searches) expire(now uint64) {
	for cgroup, c := range s.of {
		s.trim(c, func(f *failure) bool { return f.done || f.at+uint64(searchTime) < now })
		if len(c.queue) == 0 {
			delete(s.of, cgroup)
		}
	}
}

func firstLabel(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return label
}

// push adds a failure, and reports whether another had to go.
func (c *searcher) push(f *failure) (pushedOut bool) {
	c.queue = append(c.queue, f)
	label := firstLabel(f.name)
	alike := c.under[label]
	if len(alike) >= maxAlikeSearches {
		alike[0].done, pushedOut = true, true
		alike = alike[1:]
	}
	c.under[label] = append(alike, f)
	return pushedOut
}

// pop forgets the oldest failure.
func (c *searcher) pop() {
	f := c.queue[0]
	c.queue[0], c.queue = nil, c.queue[1:]
	if f.done {
		return
	}
	label := firstLabel(f.name)
	if alike := c.under[label]; len(alike) > 1 {
		c.under[label] = alike[1:]
	} else {
		delete(c.under, label)
	}
}

// settle returns how many recent failures are due to a search domain behind name. They
// count once.
func (c *searcher) settle(name string, now uint64) (n uint32) {
	label := firstLabel(name)
	alike := c.under[label]
	rest := alike[:0]
	for _, f := range alike {
		switch f.done = true; {
		case f.at+uint64(searchTime) < now:
		case searched(f.name, name):
			n++
		default:
			f.done = false
			rest = append(rest, f)
		}
	}
	clear(alike[len(rest):])
	if len(rest) > 0 {
		c.under[label] = rest
	} else {
		delete(c.under, label)
	}
	return n
}

// searched reports whether failed is what was found with a search domain appended:
// NAME.DOMAIN before NAME, or, of Kubernetes' domains, NAME.NAMESPACE.svc.CLUSTER
// before NAME.svc.CLUSTER or NAME.CLUSTER.
func searched(failed, found string) bool {
	if len(failed) <= len(found) {
		return false
	}
	if strings.HasPrefix(failed, found) {
		return failed[len(found)] == '.'
	}
	at := common(failed, found)
	if at == 0 {
		return false
	}
	domain, other := failed[at:], found[at:]
	cluster, ok := strings.CutPrefix(domain, "svc.")
	if !ok {
		var svc string
		_, svc, _ = strings.Cut(domain, ".")
		if cluster, ok = strings.CutPrefix(svc, "svc."); ok && other == svc {
			return true
		}
	}
	return ok && other == cluster
}

// common returns where the labels begin that follow those that a and b begin with
// alike; 0 if not even the first is the same.
func common(a, b string) int {
	at := 0
	for i := 0; i < len(a) && i < len(b) && a[i] == b[i]; i++ {
		if a[i] == '.' {
			at = i + 1
		}
	}
	return at
}
