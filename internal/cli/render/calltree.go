// SPDX-License-Identifier: Apache-2.0

package render

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// maxCallers is how many processes a CallTree has.
const maxCallers = 10_000

// CallTree adds up system calls by process, and puts processes below their parents. The
// zero value has none.
type CallTree struct {
	callers map[callerKey]*caller
	// beyond are the calls of processes that found no room.
	beyond uint64
}

type callerKey struct {
	node string
	pid  uint32
}

// caller is a process with what it called.
type caller struct {
	callerKey
	parent        uint32
	nth           int // in the order in which they were seen
	first         *orb8v1.Event
	last          *orb8v1.Event
	calls, errors uint64
	flagged       uint64
	ns            int64
	byName        map[string]*nameSum
}

type nameSum struct {
	calls uint64
	ns    int64
}

// Add takes a system call.
func (t *CallTree) Add(ev *orb8v1.Event) {
	x := ev.GetSyscall()
	key := callerKey{ev.GetNodeName(), x.GetProcess().GetPid()}
	c := t.callers[key]
	if c == nil {
		if len(t.callers) >= maxCallers {
			t.beyond++
			return
		}
		if t.callers == nil {
			t.callers = map[callerKey]*caller{}
		}
		// Later it may have another parent, if its own has left it behind.
		c = &caller{callerKey: key, parent: x.GetParentProcessId(), nth: len(t.callers), first: ev, byName: map[string]*nameSum{}}
		t.callers[key] = c
	}
	c.last = ev
	c.calls++
	c.ns += x.GetLatencyNs()
	if x.GetError() != "" {
		c.errors++
	}
	if len(x.GetRules()) > 0 {
		c.flagged++
	}
	name := abiMark(x.GetAbi()) + x.GetName()
	sum := c.byName[name]
	if sum == nil {
		sum = new(nameSum)
		c.byName[name] = sum
	}
	sum.calls++
	sum.ns += x.GetLatencyNs()
}

// maxIndent is from which depth on processes are not indented any further.
const maxIndent = 24

// Columns of a tree of processes.
const (
	treeProcess = iota
	treeCalls
	treeErrors
	treeFlagged
	treeSeconds
	treeMost
)

func treeTable(flagged bool) *table {
	return &table{
		columns: []column{
			treeProcess: {title: "PROCESS", min: 20, max: 60},
			treeCalls:   {title: "CALLS", min: 6, max: 14, right: true},
			treeErrors:  {title: "ERRORS", min: 6, max: 14, right: true},
			treeFlagged: {title: "FLAGGED", min: 7, max: 14, right: true, hidden: !flagged},
			treeSeconds: {title: "SECONDS", min: 9, max: 14, right: true},
			treeMost:    {title: "MOST TIME IN", min: 12, max: 200},
		},
		drop: []int{treeMost, treeSeconds},
		grow: []step{{treeProcess, 32}, {treeMost, 32}, {treeCalls, 14}, {treeProcess, 60}, {treeMost, 200}},
	}
}

// Write writes the processes of each container as a tree.
func (t *CallTree) Write(w io.Writer, o Options) error {
	if o.Format == Wide {
		o.Width = 0
	}
	var lines []string
	for i, of := range t.byContainer() {
		if o.Format == Compact {
			for _, c := range of {
				lines = append(lines, c.compact(o))
			}
			continue
		}
		if i > 0 {
			lines = append(lines, "")
		}
		lines = append(lines, treeLines(o, of)...)
	}
	if t.beyond > 0 {
		text := Plural(t.beyond, "call", "calls") + " of more than " + Count(maxCallers) + " processes not shown"
		lines = append(lines, o.paint(styleBad, text))
	}
	return writeLines(w, lines)
}

// byContainer has the processes of each container, those that were seen first first.
func (t *CallTree) byContainer() [][]*caller {
	all := slices.SortedFunc(maps.Values(t.callers), func(a, b *caller) int { return cmp.Compare(a.nth, b.nth) })
	var containers [][]*caller
	index := map[string]int{}
	for _, c := range all {
		w := c.last.GetSyscall().GetWorkload()
		key := fmt.Sprint(c.node, "|", w.GetCgroupId(), "|", containerID(w), "|", workloadName(w))
		if id := containerID(w); id != "" { // whatever cgroups it makes
			key = c.node + "|" + id
		}
		i, ok := index[key]
		if !ok {
			i = len(containers)
			index[key] = i
			containers = append(containers, nil)
		}
		containers[i] = append(containers[i], c)
	}
	return containers
}

func treeLines(o Options, of []*caller) []string {
	var calls, errors, flagged uint64
	below := map[uint32][]*caller{}
	here := map[uint32]bool{}
	for _, c := range of {
		calls, errors, flagged = calls+c.calls, errors+c.errors, flagged+c.flagged
		here[c.pid] = true
	}
	var roots []*caller
	for _, c := range of {
		if here[c.parent] && c.parent != c.pid {
			below[c.parent] = append(below[c.parent], c)
		} else {
			roots = append(roots, c)
		}
	}
	who := orNone(workloadName(of[0].last.GetSyscall().GetWorkload()))
	if id := containerID(of[0].last.GetSyscall().GetWorkload()); id != "" && id != who {
		who += " (" + id + ")"
	}
	if o.Nodes {
		who += " on " + orNone(of[0].node)
	}
	var lines []string
	title := fmt.Sprintf("%s: %s of %s, %s", who, Plural(calls, "call", "calls"), Plural(uint64(len(of)), "process", "processes"), Plural(errors, "error", "errors"))
	for _, l := range indented(o, "", title) {
		lines = append(lines, o.paint(styleTitle, l))
	}
	var rows [][]cell
	shown := map[uint32]bool{}
	var add func(c *caller, depth int, before, branch, under string)
	add = func(c *caller, depth int, before, branch, under string) {
		if shown[c.pid] { // a pid that came again may be its own ancestor
			return
		}
		shown[c.pid] = true
		rows = append(rows, c.row(before+branch))
		if depth < maxIndent {
			before += under
		}
		for i, child := range below[c.pid] {
			if i == len(below[c.pid])-1 {
				add(child, depth+1, before, "└─ ", "   ")
			} else {
				add(child, depth+1, before, "├─ ", "│  ")
			}
		}
	}
	for _, c := range roots {
		add(c, 0, "", "", "")
	}
	for _, c := range of { // those that are each other's
		add(c, 0, "", "", "")
	}
	return append(lines, treeTable(flagged > 0).lines(o, rows)...)
}

// name is the process's command when it called last.
func (c *caller) name() string { return orNone(c.last.GetSyscall().GetProcess().GetCommand()) }

func (c *caller) row(tree string) []cell {
	pid := "/" + strconv.FormatUint(uint64(c.pid), 10)
	failed, flagged := cell{text: "0", style: styleDim}, cell{text: "0", style: styleDim}
	if c.errors > 0 {
		failed = cell{text: Count(c.errors), style: styleWarn}
	}
	if c.flagged > 0 {
		flagged = cell{text: Count(c.flagged), style: styleBad}
	}
	return []cell{
		treeProcess: {text: tree + c.name() + pid, fit: func(n int) string {
			// Far down only where in the tree is cut, from the left.
			if room := n - len(pid) - cells(tree); room >= 4 {
				return tree + cutEnd(c.name(), room) + pid
			}
			return cutMiddle(tree+c.name(), max(n-len(pid), 1)) + pid
		}},
		treeCalls:   {text: Count(c.calls)},
		treeErrors:  failed,
		treeFlagged: flagged,
		treeSeconds: {text: strconv.FormatFloat(float64(c.ns)/1e9, 'f', 6, 64)},
		treeMost:    {text: c.most()},
	}
}

// topCalls is how many calls of a process are named.
const topCalls = 3

// most are the calls that took most of a process's time.
func (c *caller) most() string {
	names := slices.SortedFunc(maps.Keys(c.byName), func(a, b string) int {
		x, y := c.byName[a], c.byName[b]
		return cmp.Or(cmp.Compare(y.ns, x.ns), cmp.Compare(y.calls, x.calls), strings.Compare(a, b))
	})
	words := make([]string, 0, topCalls)
	for _, name := range names[:min(len(names), topCalls)] {
		words = append(words, fmt.Sprintf("%s %s (%s)", Clean(name), nanos(c.byName[name].ns), Count(c.byName[name].calls)))
	}
	return strings.Join(words, ", ")
}

func (c *caller) compact(o Options) string {
	x := c.last.GetSyscall()
	return fmt.Sprintf("%s caller%s %s pid=%d parent=%d workload=%s container=%s calls=%d errors=%d flagged=%d seconds=%.9f most=%s",
		o.stamp(c.last.GetTimeNs()), o.nodeWord(c.node), word(c.name()), c.pid, c.parent, word(workloadName(x.GetWorkload())),
		word(containerID(x.GetWorkload())), c.calls, c.errors, c.flagged, float64(c.ns)/1e9, word(c.most()))
}
