// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// keptPast is what an agent still has of what a command asks for.
type keptPast struct {
	node string
	// since is from when on all of it is kept, in Unix nanoseconds; 0 where the agent
	// has pushed nothing out, or is too old to say.
	since int64
	// none: nothing is kept.
	none bool
}

// keptBy says what an agent has of the events that f asks for: of several kinds, of
// the one that goes back least.
func (f *traceFlags) keptBy(s *orb8v1.AgentStatus) keptPast {
	k := keptPast{node: s.GetNodeName()}
	kinds := f.historyKinds()
	for _, h := range s.GetHistory() {
		if slices.Contains(kinds, h.GetKind()) {
			k.since = max(k.since, h.GetKeptSinceNs())
			k.none = k.none || h.GetCapacity() == 0
		}
	}
	return k
}

// historyKinds are the kinds of history that have what is asked for, by the names of
// the API.
func (f *traceFlags) historyKinds() []string {
	if f.kind.only == orb8v1.EventKind_EVENT_KIND_PROCESS {
		if f.exits {
			return []string{"exec", "exit"}
		}
		return []string{"exec"}
	}
	types := f.filters.positive.GetTypes()
	var kinds []string
	for _, k := range f.kinds() {
		switch k {
		case orb8v1.EventKind_EVENT_KIND_FLOW:
			if len(types) == 0 || slices.ContainsFunc(types, ofFlows) {
				kinds = append(kinds, "flow")
			}
		case orb8v1.EventKind_EVENT_KIND_DNS:
			kinds = append(kinds, "dns")
		case orb8v1.EventKind_EVENT_KIND_DROP:
			kinds = append(kinds, "drop")
		case orb8v1.EventKind_EVENT_KIND_LISTEN_OVERFLOW:
			kinds = append(kinds, "overflow")
		case orb8v1.EventKind_EVENT_KIND_PROCESS:
			for _, t := range []string{"exec", "exit"} {
				if slices.ContainsFunc(types, func(s string) bool { return strings.EqualFold(s, t) }) {
					kinds = append(kinds, t)
				}
			}
		case orb8v1.EventKind_EVENT_KIND_ALERT:
			kinds = append(kinds, "alert")
		}
	}
	return kinds
}

// ofFlows reports whether a type of events is one of flows and connections.
func ofFlows(t string) bool {
	return !slices.Contains([]string{"dns", "drop", "overflow", "exec", "exit", "alert"}, strings.ToLower(t))
}

// beyond says which agents do not know all of the time that is asked for: they are
// younger, or have pushed out what was earlier.
func (f *traceFlags) beyond(src *source, now time.Time) []string {
	since := f.since.unixNanos(now)
	all := f.kind.past && f.last == 0
	if since == 0 && !all {
		return nil
	}
	var lines []string
	var short []keptPast
	for _, s := range src.statuses() {
		k, at := f.keptBy(s), s.GetStartedNs()
		switch {
		case k.none || k.since > since:
			short = append(short, k)
		case since != 0 && at > since:
			lines = append(lines, fmt.Sprintf("the agent on %s runs since %s: what was before that is not known",
				s.GetNodeName(), time.Unix(0, at).Format(time.DateTime)))
		}
	}
	return append(lines, pushedOut(src, short)...)
}

// fewer says, where there were fewer events than the --last that was asked for, what
// there might have been.
func (f *traceFlags) fewer(src *source, n uint64) []string {
	if f.last == 0 || n >= uint64(f.last) {
		return nil
	}
	var short []keptPast
	for _, s := range src.statuses() {
		if k := f.keptBy(s); k.none || k.since > f.since.unixNanos(time.Now()) {
			short = append(short, k)
		}
	}
	return pushedOut(src, short)
}

// namedNodes is how many nodes are told of one by one.
const namedNodes = 3

// pushedOut says how far back agents keep what is asked for.
func pushedOut(src *source, short []keptPast) []string {
	const remedy = "raise `history` in the agent's configuration"
	var lines, none []string
	var some []keptPast
	for _, k := range short {
		if k.none {
			none = append(none, k.node)
			continue
		}
		some = append(some, k)
	}
	if len(none) > 0 {
		lines = append(lines, "nothing is kept on "+nameNodes(src, none)+": "+remedy)
	}
	clock := func(k keptPast) string { return time.Unix(0, k.since).Format(time.DateTime) }
	if len(some) > namedNodes {
		latest := slices.MaxFunc(some, func(a, b keptPast) int { return int(min(max(a.since-b.since, -1), 1)) })
		return append(lines, fmt.Sprintf("on %d nodes older ones were pushed out, on %s all before %s: %s", len(some), latest.node, clock(latest), remedy))
	}
	for _, k := range some {
		lines = append(lines, fmt.Sprintf("kept on %s since %s; older ones were pushed out: %s", k.node, clock(k), remedy))
	}
	return lines
}

// nameNodes names nodes, or says how many there are.
func nameNodes(src *source, nodes []string) string {
	switch {
	case !src.many():
		return "node " + nodes[0]
	case len(nodes) == len(src.statuses()):
		return "all nodes"
	case len(nodes) > namedNodes:
		return fmt.Sprintf("%d nodes", len(nodes))
	}
	return strings.Join(nodes, ", ")
}
