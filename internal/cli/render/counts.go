// SPDX-License-Identifier: Apache-2.0

package render

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of a summary of system calls.
const (
	countShare = iota
	countSeconds
	countMean
	countHalf
	countMost
	countMax
	countCalls
	countErrors
	countName
)

func countTable(o Options) *table {
	return &table{
		columns: []column{
			countShare:   {title: "% TIME", min: 6, max: 6, right: true},
			countSeconds: {title: "SECONDS", min: 8, max: 14, right: true},
			countMean:    {title: "USECS/CALL", min: 6, max: 12, right: true},
			countHalf:    {title: "P50", min: 6, max: 8, right: true},
			countMost:    {title: "P99", min: 6, max: 8, right: true},
			countMax:     {title: "MAX", min: 6, max: 8, right: true, hidden: o.Format != Wide},
			countCalls:   {title: "CALLS", min: 11, max: 14, right: true},
			countErrors:  {title: "ERRORS", min: 6, max: 14, right: true},
			countName:    {title: "SYSCALL", min: 12, max: 30},
		},
		drop: []int{countMean, countHalf, countSeconds, countMost},
		grow: []step{{countSeconds, 14}, {countMean, 12}, {countCalls, 14}, {countErrors, 14}, {countName, 30}},
	}
}

// SyscallSummaries writes the latest summary of each container as tables like those of
// strace -c.
func SyscallSummaries(w io.Writer, o Options, events []*orb8v1.Event) error {
	var lines []string
	if o.Format == Wide {
		o.Width = 0
	}
	for i, ev := range events {
		s := ev.GetSyscallSummary()
		if o.Format == Compact {
			lines = append(lines, compactCounts(o, ev, s)...)
			continue
		}
		if i > 0 {
			lines = append(lines, "")
		}
		lines = append(lines, summaryLines(o, ev, s)...)
	}
	return writeLines(w, append(lines, uncountedLines(o, events)...))
}

// CountSet has the latest summary of each container. What an agent counted before it was
// started again is added. The zero value has none.
type CountSet struct{ latest, before map[string]*orb8v1.Event }

// Add takes a summary in place of the container's last one of the same trace.
func (s *CountSet) Add(ev *orb8v1.Event) {
	if s.latest == nil {
		s.latest, s.before = map[string]*orb8v1.Event{}, map[string]*orb8v1.Event{}
	}
	key := containerKey(ev)
	if old := s.latest[key]; old != nil && old.GetSyscallSummary().GetBeginNs() != ev.GetSyscallSummary().GetBeginNs() {
		s.before[key] = added(s.before[key], old)
	}
	s.latest[key] = ev
}

// All has one summary of each container, in no order.
func (s *CountSet) All() []*orb8v1.Event {
	all := make([]*orb8v1.Event, 0, len(s.latest))
	for key, ev := range s.latest {
		all = append(all, added(s.before[key], ev))
	}
	return all
}

// added are the sums of what a container's summary says and one before, which may be nil.
func added(before, ev *orb8v1.Event) *orb8v1.Event {
	if before == nil {
		return ev
	}
	sum := proto.CloneOf(ev)
	s, b := sum.GetSyscallSummary(), before.GetSyscallSummary()
	s.BeginNs, s.Uncounted = b.GetBeginNs(), s.GetUncounted()+b.GetUncounted()
	for _, c := range b.GetCalls() {
		i := slices.IndexFunc(s.GetCalls(), func(o *orb8v1.SyscallCount) bool { return o.GetName() == c.GetName() && o.GetAbi() == c.GetAbi() })
		if i < 0 {
			s.Calls = append(s.Calls, proto.CloneOf(c))
			continue
		}
		o := s.GetCalls()[i]
		o.Calls, o.Errors, o.TimeNs = o.GetCalls()+c.GetCalls(), o.GetErrors()+c.GetErrors(), o.GetTimeNs()+c.GetTimeNs()
		o.MaxNs, o.P50Ns, o.P99Ns = longest(o.GetMaxNs(), c.GetMaxNs()), 0, 0
	}
	slices.SortStableFunc(s.Calls, func(a, b *orb8v1.SyscallCount) int { return cmp.Compare(b.GetTimeNs(), a.GetTimeNs()) })
	return sum
}

// longest of two calls; 0, which is not known, if one is.
func longest(a, b int64) int64 {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

// containerKey tells the container of a summary of system calls from those of others.
func containerKey(ev *orb8v1.Event) string {
	w := ev.GetSyscallSummary().GetWorkload()
	return fmt.Sprint(ev.GetNodeName(), "|", w.GetCgroupId(), "|", w.GetContainerId(), "|", workloadName(w))
}

// uncounted is how many calls each node did not count, which each of its containers'
// summaries says.
func uncounted(events []*orb8v1.Event) map[string]uint64 {
	nodes := map[string]uint64{}
	for _, ev := range events {
		if n := ev.GetSyscallSummary().GetUncounted(); n > 0 {
			nodes[ev.GetNodeName()] = max(n, nodes[ev.GetNodeName()])
		}
	}
	return nodes
}

func uncountedLines(o Options, events []*orb8v1.Event) []string {
	var lines []string
	nodes := uncounted(events)
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		if o.Format == Compact {
			lines = append(lines, fmt.Sprintf("uncounted%s count=%d", o.nodeWord(node), nodes[node]))
			continue
		}
		text := Plural(nodes[node], "call was", "calls were") + " not counted"
		if o.Nodes {
			text += " on " + orNone(node)
		}
		for _, l := range indented(o, "", text+": there was no room for more kinds of them") {
			lines = append(lines, o.paint(styleBad, l))
		}
	}
	return lines
}

// longestText is a time, or nothing where it is not known.
func longestText(ns int64) string {
	if ns == 0 {
		return none
	}
	return nanos(ns)
}

// countSum adds counts up.
type countSum struct {
	calls, errors uint64
	ns, longest   int64
}

func sumOf(s *orb8v1.SyscallSummary) countSum {
	var sum countSum
	known := true
	for _, c := range s.GetCalls() {
		sum.calls += c.GetCalls()
		sum.errors += c.GetErrors()
		sum.ns += c.GetTimeNs()
		sum.longest = max(sum.longest, c.GetMaxNs())
		known = known && c.GetMaxNs() != 0
	}
	if !known {
		sum.longest = 0
	}
	return sum
}

func summaryLines(o Options, ev *orb8v1.Event, s *orb8v1.SyscallSummary) []string {
	sum := sumOf(s)
	var lines []string
	for _, l := range indented(o, "", summaryTitle(o, ev, s, sum)) {
		lines = append(lines, o.paint(styleTitle, l))
	}
	rows := make([][]cell, 0, len(s.GetCalls())+1)
	for _, c := range s.GetCalls() {
		row := countRow(sum.ns, c.GetTimeNs(), c.GetMaxNs(), c.GetCalls(), c.GetErrors(), abiMark(c.GetAbi())+Clean(c.GetName()))
		row[countHalf].text, row[countMost].text = longestText(c.GetP50Ns()), longestText(c.GetP99Ns())
		rows = append(rows, row)
	}
	if len(rows) > 0 {
		total := countRow(sum.ns, sum.ns, sum.longest, sum.calls, sum.errors, "total")
		for i := range total {
			total[i].style = styleTitle
		}
		lines = append(lines, countTable(o).lines(o, append(rows, total))...)
	}
	return lines
}

// summaryTitle says whose calls these are.
func summaryTitle(o Options, ev *orb8v1.Event, s *orb8v1.SyscallSummary, sum countSum) string {
	who := orNone(workloadName(s.GetWorkload()))
	if id := containerID(s.GetWorkload()); id != "" && id != who {
		who += " (" + id + ")"
	}
	if o.Nodes {
		who += " on " + orNone(ev.GetNodeName())
	}
	text := fmt.Sprintf("%s: %s, %s", who, Plural(sum.calls, "call", "calls"), Plural(sum.errors, "error", "errors"))
	if s.GetBeginNs() > 0 && ev.GetTimeNs() > s.GetBeginNs() {
		text += " in " + lifetime(ev.GetTimeNs()-s.GetBeginNs())
	}
	return text
}

func countRow(all, ns, longest int64, calls, errors uint64, name string) []cell {
	share := none
	if all > 0 {
		share = strconv.FormatFloat(100*float64(ns)/float64(all), 'f', 2, 64)
	}
	failed := cell{text: "0", style: styleDim}
	if errors > 0 {
		failed = cell{text: Count(errors), style: styleWarn}
	}
	mean := none
	if calls > 0 {
		mean = strconv.FormatFloat(float64(ns)/float64(calls)/1e3, 'f', 1, 64)
	}
	return []cell{
		countShare:   {text: share},
		countSeconds: {text: strconv.FormatFloat(float64(ns)/1e9, 'f', 6, 64)},
		countMean:    {text: mean},
		countHalf:    {text: none},
		countMost:    {text: none},
		countMax:     {text: longestText(longest)},
		countCalls:   {text: Count(calls)},
		countErrors:  failed,
		countName:    nameCell(name),
	}
}

// compactCounts has a line for each call of a container.
func compactCounts(o Options, ev *orb8v1.Event, s *orb8v1.SyscallSummary) []string {
	lines := make([]string, 0, len(s.GetCalls()))
	for _, c := range s.GetCalls() {
		lines = append(lines, fmt.Sprintf("%s calls%s %s workload=%s container=%s abi=%s calls=%d errors=%d seconds=%.9f p50=%s p99=%s max=%s",
			o.stamp(ev.GetTimeNs()), o.nodeWord(ev.GetNodeName()), word(c.GetName()), word(workloadName(s.GetWorkload())),
			word(containerID(s.GetWorkload())), word(c.GetAbi()), c.GetCalls(), c.GetErrors(), float64(c.GetTimeNs())/1e9,
			longestText(c.GetP50Ns()), longestText(c.GetP99Ns()), longestText(c.GetMaxNs())))
	}
	return lines
}
