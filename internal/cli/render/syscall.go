// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// Columns of a system call.
const (
	callTime = iota
	callNode
	callWho
	callProcess
	callCall
)

// SyscallOptions says how system calls are shown.
type SyscallOptions struct {
	// One: all are of one pod, which needs no column.
	One bool
}

const microsWidth = len("15:04:05.000000")

func syscallTable(o Options, s SyscallOptions) *table {
	return &table{
		columns: []column{
			callTime:    {title: "TIME", min: clockWidth, max: microsWidth},
			callNode:    {title: "NODE", min: 6, max: 20, hidden: !o.Nodes},
			callWho:     {title: whoTitle(o), min: 10, max: 40, hidden: s.One && o.Format != Wide},
			callProcess: {title: "PROCESS", min: 10, max: 23},
			callCall:    {title: "CALL", min: 24, max: 1000},
		},
		drop: []int{callTime, callNode, callWho},
		grow: []step{
			{callProcess, 14}, {callCall, 48}, {callWho, 14}, {callCall, 64}, {callTime, microsWidth}, {callWho, 24}, {callProcess, 23},
			{callCall, 100}, {callWho, 32}, {callNode, 20}, {callCall, 1000},
		},
	}
}

// Syscalls writes a live stream of system calls, one line each.
type Syscalls struct{ *live }

// NewSyscalls returns a renderer that writes to w.
func NewSyscalls(w io.Writer, o Options, s SyscallOptions) *Syscalls {
	v := &Syscalls{newLive(w, o, syscallTable(o, s))}
	v.live.row = v.row
	v.compact = func(ev *orb8v1.Event) string { return compactSyscall(v.o, ev, ev.GetSyscall()) }
	return v
}

func (v *Syscalls) row(ev *orb8v1.Event) []cell {
	x := ev.GetSyscall()
	if x == nil {
		return nil
	}
	return []cell{
		callTime:    v.timeCell(ev),
		callNode:    nodeCell(orNone(ev.GetNodeName())),
		callWho:     workloadCell(x.GetWorkload()),
		callProcess: callerCell(x),
		callCall:    callCell(x, v.o.Format == Wide),
	}
}

// callerCell is the command and the process id, of which the number stays where room
// is short, and with it the thread's where that is another.
func callerCell(x *orb8v1.Syscall) cell {
	pid := "/" + numberOr(uint64(x.GetProcess().GetPid()))
	if t := x.GetThreadId(); t != 0 && t != x.GetProcess().GetPid() {
		pid += ":" + strconv.FormatUint(uint64(t), 10)
	}
	name := orNone(x.GetProcess().GetCommand())
	return cell{text: name + pid, fit: func(n int) string {
		short, _, _ := strings.Cut(pid, ":")
		if room := n - len(pid); room >= 4 {
			return cutEnd(name, room) + pid
		}
		return cutEnd(name, max(n-len(short), 1)) + short
	}}
}

// callCell is the call as strace writes it. Where room is short the arguments go
// first, then the latency, and the rules that flag it last.
func callCell(x *orb8v1.Syscall, names bool) cell {
	call, result, style := syscallText(x, names), " = "+returned(x), styleNone
	switch {
	case len(x.GetRules()) > 0:
		style = styleBad
	case x.GetError() != "":
		style = styleWarn
	}
	took, marks := "", ""
	if x.GetLatencyNs() > 0 && !x.GetUnfinished() {
		took = " <" + nanos(x.GetLatencyNs()) + ">"
	}
	for _, r := range x.GetRules() {
		marks += " !" + Clean(r)
	}
	tails := []string{result + took + marks, result + marks, marks}
	return cell{text: call + tails[0], style: style, fit: func(n int) string {
		for _, tail := range tails {
			room := n - cells(tail)
			if cells(call) <= room {
				return call + tail
			}
			if room >= 12 {
				return cutEnd(strings.TrimSuffix(call, ")"), room-1) + ")" + tail
			}
		}
		return cutEnd(call+tails[0], n)
	}}
}

func syscallText(x *orb8v1.Syscall, names bool) string {
	return abiMark(x.GetAbi()) + callText(x.GetName(), x.GetArguments(), names)
}

// abiMark tells of calls of 32-bit programs.
func abiMark(abi string) string {
	if abi == "i386" || abi == "arm" {
		return "[" + abi + "] "
	}
	return ""
}

func callText(name string, args []*orb8v1.SyscallArgument, names bool) string {
	return orNone(name) + argumentText(args, names)
}

// argumentText has the arguments, with their names or without, in brackets.
func argumentText(args []*orb8v1.SyscallArgument, names bool) string {
	words := make([]string, 0, len(args))
	for _, a := range args {
		text := Clean(a.GetText())
		if text == "" {
			text = "0x" + strconv.FormatUint(a.GetValue(), 16)
		}
		if names && a.GetName() != "" {
			text = Clean(a.GetName()) + "=" + text
		}
		words = append(words, text)
	}
	return "(" + strings.Join(words, ", ") + ")"
}

// noResult stands where a call has none.
const noResult = "?"

func hasResult(x *orb8v1.Syscall) bool { return !x.GetUnfinished() && !x.GetNoResult() }

// returned is the result, of addresses in hexadecimal.
func returned(x *orb8v1.Syscall) string {
	text := noResult
	switch {
	case x.GetUnfinished():
		return text
	case x.GetError() != "":
		text = "-1 " + Clean(x.GetError())
	case hasResult(x):
		text = syscalls.Result(x.GetName(), x.GetReturnValue())
	}
	if x.GetRefused() {
		text += " (refused)"
	}
	return text
}

// compactSyscall is a call as words.
func compactSyscall(o Options, ev *orb8v1.Event, x *orb8v1.Syscall) string {
	words := []string{o.stamp(ev.GetTimeNs()), "syscall" + o.nodeWord(ev.GetNodeName()), word(x.GetName())}
	add := func(key, value string) {
		if value != "" && value != none {
			words = append(words, key+"="+word(value))
		}
	}
	add("workload", workloadName(x.GetWorkload()))
	add("process", x.GetProcess().GetCommand())
	add("pid", numberOr(uint64(x.GetProcess().GetPid())))
	add("tid", numberOr(uint64(x.GetThreadId())))
	add("abi", x.GetAbi())
	add("args", strings.ReplaceAll(argumentText(x.GetArguments(), true), ", ", ","))
	if hasResult(x) {
		add("ret", syscalls.Result(x.GetName(), x.GetReturnValue()))
	} else {
		add("ret", noResult)
	}
	add("error", x.GetError())
	if x.GetRefused() {
		add("refused", "yes")
	}
	if x.GetLatencyNs() > 0 && !x.GetUnfinished() {
		add("latency", nanos(x.GetLatencyNs()))
	}
	if rules := x.GetRules(); len(rules) > 0 {
		words = append(words, o.paint(styleBad, "rules="+word(strings.Join(rules, ","))))
	}
	return strings.Join(words, " ")
}

// targets says whose calls are traced on a node.
func (e *Events) targets(ev *orb8v1.Event) string {
	var names []string
	for _, w := range ev.GetSyscallTargets().GetWorkloads() {
		name := orNone(workloadName(w))
		if id := containerID(w); id != "" && id != name {
			name += " (" + id + ")"
		}
		names = append(names, name)
	}
	if e.o.Format == Compact {
		return fmt.Sprintf("%s targets%s count=%d workloads=%s", e.o.stamp(ev.GetTimeNs()), e.o.nodeWord(ev.GetNodeName()),
			len(names), word(strings.Join(names, ",")))
	}
	on := ""
	if e.o.Nodes {
		on = " on " + orNone(ev.GetNodeName())
	}
	text := strings.Join(names, ", ")
	if len(names) == 0 {
		text = "nothing: no container matches"
	}
	return e.o.paint(styleTitle, e.cut(e.clock(ev.GetTimeNs())+" TRACING"+on+" "+text))
}
