// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Columns of a process that starts a program or ends.
const (
	procTime = iota
	procNode
	procWho
	procContainer
	procEvent
	procPID
	procPPID
	procNSPID
	procUser
	procExecutable
	procCommand
	procParents
)

// ProcessOptions says how processes are shown.
type ProcessOptions struct {
	// Exits: ends are shown as well, so that lines say which they are.
	Exits bool
}

func processTable(o Options, p ProcessOptions) *table {
	wide, commandMax := o.Format == Wide, 120
	if wide { // longer ones push the rest of their line
		commandMax = 60
	}
	return &table{
		columns: []column{
			procTime:       {title: "TIME", min: clockWidth, max: millisWidth},
			procNode:       {title: "NODE", min: 6, max: 20, hidden: !o.Nodes},
			procWho:        {title: whoTitle(o), min: 10, max: 40},
			procContainer:  {title: "CONTAINER", min: shortID, max: shortID, hidden: !wide},
			procEvent:      {title: "EVENT", min: 5, max: 5, hidden: !p.Exits},
			procPID:        {title: "PID", min: 7, max: 7, right: true},
			procPPID:       {title: "PPID", min: 7, max: 7, right: true, hidden: !wide},
			procNSPID:      {title: "NSPID", min: 7, max: 7, right: true, hidden: !wide},
			procUser:       {title: "USER", min: 5, max: 11},
			procExecutable: {title: "EXECUTABLE", min: 10, max: 30, hidden: !wide},
			procCommand:    {title: "COMMAND", min: 20, max: commandMax},
			procParents:    {title: "PARENTS", min: 12, max: 60},
		},
		drop: []int{procUser, procParents, procTime, procNode, procPID, procEvent},
		grow: []step{
			{procWho, 14}, {procParents, 15}, {procCommand, 28}, {procWho, 20}, {procCommand, 36}, {procParents, 34},
			{procCommand, 48}, {procUser, 11}, {procTime, millisWidth}, {procCommand, 64}, {procWho, 32}, {procNode, 20},
			{procParents, 48}, {procCommand, 120}, {procWho, 40}, {procParents, 60},
		},
	}
}

// Processes writes a live stream of programs that are started and processes that end,
// one line each.
type Processes struct{ *live }

// NewProcesses returns a renderer that writes to w.
func NewProcesses(w io.Writer, o Options, p ProcessOptions) *Processes {
	v := &Processes{newLive(w, o, processTable(o, p))}
	v.live.row = v.row
	v.compact = func(ev *orb8v1.Event) string { return compactProcess(v.o, ev, ev.GetProcess()) }
	return v
}

func (v *Processes) row(ev *orb8v1.Event) []cell {
	x := ev.GetProcess()
	if x == nil {
		return nil
	}
	p := x.GetProcess()
	event, style := stepWord(x)
	return []cell{
		procTime:       v.timeCell(ev),
		procNode:       nodeCell(orNone(ev.GetNodeName())),
		procWho:        workloadCell(x.GetWorkload()),
		procContainer:  {text: orNone(containerID(x.GetWorkload()))},
		procEvent:      {text: event, style: style},
		procPID:        {text: numberOr(uint64(p.GetPid()))},
		procPPID:       {text: numberOr(uint64(p.GetParentPid()))},
		procNSPID:      {text: numberOr(uint64(p.GetPidInNamespace()))},
		procUser:       userCell(p),
		procExecutable: {text: orNone(p.GetExecutable().GetPath())},
		procCommand:    commandCell(x),
		procParents:    parentsCell(x.GetAncestors(), v.o.Format == Wide),
	}
}

// workloadCell names a workload; where room is short a pod loses its namespace.
func workloadCell(w *orb8v1.Workload) cell {
	name, pod := orNone(workloadName(w)), Clean(w.GetPodName())
	return cell{text: name, fit: func(n int) string {
		if pod != "" {
			return cutMiddle(pod, n)
		}
		return cutMiddle(name, n)
	}}
}

func stepWord(x *orb8v1.ProcessEvent) (string, style) {
	switch x.GetStep() {
	case orb8v1.ProcessStep_PROCESS_STEP_EXEC:
		return "exec", styleNone
	case orb8v1.ProcessStep_PROCESS_STEP_EXIT:
		return "exit", endStyle(x)
	}
	return none, styleNone
}

func endStyle(x *orb8v1.ProcessEvent) style {
	switch {
	case x.GetSignal() != 0:
		return styleBad
	case x.GetExitCode() != 0:
		return styleWarn
	}
	return styleDim
}

// user is whose rights a process has, by the host's ids; 1000→root where it runs with
// those of another.
func user(p *orb8v1.ProcessInfo) string {
	if p == nil {
		return none
	}
	text := userName(p.GetUid())
	if p.GetEffectiveUid() != p.GetUid() {
		text += "→" + userName(p.GetEffectiveUid())
	}
	return text
}

func userName(id uint32) string {
	if id == 0 {
		return "root"
	}
	return strconv.FormatUint(uint64(id), 10)
}

func userCell(p *orb8v1.ProcessInfo) cell {
	c := cell{text: user(p)}
	if p.GetEffectiveUid() != p.GetUid() {
		c.style = styleWarn
		// Where room is short, whose rights it has now says more.
		c.fit = func(n int) string { return cutEnd("→"+userName(p.GetEffectiveUid()), n) }
	}
	return c
}

// commandCell is the command line with what is special about the executable, or how
// the process ended. Where room is short the arguments go first.
func commandCell(x *orb8v1.ProcessEvent) cell {
	line := commandLine(x.GetProcess())
	if x.GetStep() == orb8v1.ProcessStep_PROCESS_STEP_EXIT {
		how, took := processEnd(x)
		return tailed(line, endStyle(x), " "+how+took, " "+how, " → "+strings.TrimPrefix(strings.TrimPrefix(how, "killed by "), "exited "))
	}
	flags := executableFlags(x.GetProcess().GetExecutable())
	if len(flags) == 0 {
		return cell{text: line}
	}
	return tailed(line, styleWarn, " ("+strings.Join(flags, ", ")+")", " ("+flags[0]+")")
}

// tailed is a cell whose tail stays where room is short, in the longest form that
// leaves some for its beginning.
func tailed(text string, s style, tails ...string) cell {
	return cell{text: text + tails[0], style: s, fit: func(n int) string {
		for _, tail := range tails {
			if room := n - cells(tail); room >= min(10, cells(text)) {
				return cutEnd(text, room) + tail
			}
		}
		return cutEnd(text+tails[0], n)
	}}
}

// processEnd says how a process ended, and how long it was there.
func processEnd(x *orb8v1.ProcessEvent) (how, took string) {
	how = "exited " + strconv.FormatUint(uint64(x.GetExitCode()), 10)
	if s := x.GetSignal(); s != 0 {
		how = "killed by " + signalName(s)
		if x.GetCoreDumped() {
			took = " (core dumped)"
		}
	}
	if d := x.GetLifetimeNs(); d > 0 {
		took += " after " + lifetime(d)
	}
	return how, took
}

// lifetime writes nanoseconds as short as Micros and Span do.
func lifetime(ns int64) string {
	if d := time.Duration(ns); d >= time.Second {
		return Span(d)
	}
	return nanos(ns)
}

// nanos writes how long something took in at most six cells up to 100 seconds.
func nanos(ns int64) string {
	if ns < 1000 {
		return strconv.FormatInt(max(ns, 0), 10) + "ns"
	}
	return Micros(uint64(ns) / uint64(time.Microsecond))
}

// nearest is how many ancestors a table has.
const nearest = 3

// parentsCell names the ancestors, the nearest first. Where room is short the farthest
// go.
func parentsCell(ancestors []*orb8v1.ProcessInfo, all bool) cell {
	if len(ancestors) == 0 {
		return cell{text: none}
	}
	var names []string
	for i, a := range ancestors {
		if !all && i == nearest {
			break
		}
		name := processName(a)
		if all {
			name += "(" + numberOr(uint64(a.GetPid())) + ")"
		}
		names = append(names, name)
	}
	return cell{text: strings.Join(names, arrowFrom), fit: func(n int) string {
		for keep := len(names) - 1; keep > 0; keep-- {
			if text := strings.Join(names[:keep], arrowFrom); cells(text) <= n {
				return text
			}
		}
		return cutEnd(names[0], n)
	}}
}

// arrowFrom stands between a process and who started it.
const arrowFrom = " ← "

// processName is a process's name as short as people use it.
func processName(p *orb8v1.ProcessInfo) string {
	if c := Clean(p.GetCommand()); c != "" {
		return c
	}
	path := executablePath(p.GetExecutable())
	return orNone(path[strings.LastIndexByte(path, '/')+1:])
}

// compactProcess is a start or an end as words.
func compactProcess(o Options, ev *orb8v1.Event, x *orb8v1.ProcessEvent) string {
	event, style := stepWord(x)
	p := x.GetProcess()
	words := []string{o.stamp(ev.GetTimeNs()), o.paint(style, event) + o.nodeWord(ev.GetNodeName())}
	add := func(key, value string) {
		if value != "" && value != none {
			words = append(words, key+"="+word(value))
		}
	}
	add("workload", workloadName(x.GetWorkload()))
	words = append(words, processWords(p)...)
	add("parents", chain(x.GetAncestors()))
	if x.GetStep() == orb8v1.ProcessStep_PROCESS_STEP_EXIT {
		words = append(words, fmt.Sprintf("code=%d", x.GetExitCode()))
		if s := x.GetSignal(); s != 0 {
			add("signal", signalName(s))
		}
		if d := x.GetLifetimeNs(); d > 0 {
			add("lifetime", lifetime(d))
		}
	}
	return strings.Join(words, " ")
}

// processWords are a process's, for compact lines.
func processWords(p *orb8v1.ProcessInfo) []string {
	words := []string{fmt.Sprintf("pid=%d", p.GetPid())}
	add := func(key, value string) {
		if value != "" && value != none {
			words = append(words, key+"="+word(value))
		}
	}
	add("ppid", numberOr(uint64(p.GetParentPid())))
	add("nspid", numberOr(uint64(p.GetPidInNamespace())))
	add("user", user(p))
	add("process", p.GetCommand())
	add("exe", p.GetExecutable().GetPath())
	add("flags", strings.Join(executableFlags(p.GetExecutable()), ","))
	if len(p.GetArguments()) > 0 {
		add("command", commandLine(p))
	}
	return words
}

// chain names all ancestors without spaces.
func chain(ancestors []*orb8v1.ProcessInfo) string {
	names := make([]string, 0, len(ancestors))
	for _, a := range ancestors {
		names = append(names, processName(a))
	}
	return strings.Join(names, ",")
}
