// SPDX-License-Identifier: Apache-2.0

package tcp

import "time"

// seedAfter is how long after its start the probe looks at open sockets again.
var seedAfter = []time.Duration{
	2 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute,
}

// listenAfter is the same after a socket began to listen: by then it may have been handed
// to the process that it was made for.
var listenAfter = []time.Duration{2 * time.Second, 10 * time.Second, 30 * time.Second}

// listenGap is the shortest time between two looks because of listeners: each goes over
// all open files.
const listenGap = 10 * time.Second

// seeds says when the probe looks at open sockets again.
type seeds struct {
	start, listener []time.Time // still to come
	listens         uint64      // as last told
	last            time.Time
}

func newSeeds(now time.Time) seeds { return seeds{start: after(now, seedAfter), last: now} }

func after(t time.Time, ds []time.Duration) []time.Time {
	var at []time.Time
	for _, d := range ds {
		at = append(at, t.Add(d))
	}
	return at
}

// due reports whether to look now. listens is how many sockets have begun to listen.
func (s *seeds) due(now time.Time, listens uint64) bool {
	if listens != s.listens {
		s.listens = listens
		first := later(now.Add(listenAfter[0]), s.last.Add(listenGap))
		if len(s.listener) > 0 && s.listener[0].Before(first) {
			first = s.listener[0]
		}
		s.listener = append([]time.Time{first}, after(now, listenAfter[1:])...)
	}
	began, heard := pop(&s.start, now), pop(&s.listener, now)
	if began || heard {
		s.last = now
	}
	return began || heard
}

// pop takes off what is not after now, and reports whether there was such.
func pop(at *[]time.Time, now time.Time) bool {
	n := 0
	for n < len(*at) && !(*at)[n].After(now) {
		n++
	}
	*at = (*at)[n:]
	return n > 0
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
