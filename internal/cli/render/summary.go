// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// maxSummaryFlows bounds the memory of a Summary, at 16 bytes a flow.
const maxSummaryFlows = 1 << 20

// Subject is what a summary is about.
type Subject int

// The subjects.
const (
	OfFlows Subject = iota
	OfDNS
	// OfDrops: packets that were dropped and full listen queues.
	OfDrops
	OfProcesses
	OfAlerts
	OfSyscalls
	// OfSyscallCounts: calls that were counted and not told of one by one.
	OfSyscallCounts
)

// Summary adds up what went by.
type Summary struct {
	// Of is what was asked for.
	Of Subject

	seed                   maphash.Seed
	flows                  map[uint64]struct{}
	events                 uint64
	opened, closed, failed uint64
	txBytes, rxBytes       uint64
	drops, overflows       uint64
	// rcodes has DNS queries by what came of them, latency is the sum of the answered.
	rcodes  map[string]uint64
	latency time.Duration
	// Programs that were started, processes that ended and those that a signal ended.
	started, exited, killed uint64
	// alerts are by severity.
	alerts map[orb8v1.Severity]uint64
	// repeated is how many matches alerts stand for beside themselves.
	repeated uint64
	// System calls, those that returned an error, and those that rules flag.
	calls, errors, flagged uint64
	// counted are the system calls of each container, by who it is.
	counted CountSet
	lost    map[string]uint64
	// away has the nodes that were unavailable, with the reason or, once they
	// are back, nothing.
	away map[string]string
}

// NewSummary returns an empty summary.
func NewSummary() *Summary {
	return &Summary{
		seed: maphash.MakeSeed(), flows: map[uint64]struct{}{}, lost: map[string]uint64{}, rcodes: map[string]uint64{}, away: map[string]string{},
		alerts: map[orb8v1.Severity]uint64{},
	}
}

// Add takes one event into account.
func (s *Summary) Add(ev *orb8v1.Event) {
	switch x := ev.GetEvent().(type) {
	case *orb8v1.Event_LostEvents:
		s.lost[x.LostEvents.GetStage()] += x.LostEvents.GetCount()
	case *orb8v1.Event_NodeStatus:
		s.node(x.NodeStatus)
	case *orb8v1.Event_Drop:
		s.drops++
	case *orb8v1.Event_ListenOverflow:
		s.overflows += x.ListenOverflow.GetDrops()
	case *orb8v1.Event_Dns:
		code, _ := rcode(x.Dns)
		s.rcodes[code]++
		s.latency += time.Duration(x.Dns.GetLatencyNs())
	case *orb8v1.Event_Process:
		s.process(x.Process)
	case *orb8v1.Event_Alert:
		s.alerts[x.Alert.GetSeverity()]++
		s.repeated += x.Alert.GetRepeated()
	case *orb8v1.Event_Syscall:
		s.syscall(x.Syscall)
	case *orb8v1.Event_SyscallSummary:
		s.counted.Add(ev)
	case *orb8v1.Event_Flow:
		s.flow(ev, x.Flow)
	case *orb8v1.Event_Connection:
		s.connection(x.Connection.GetEvent())
		s.flow(ev, x.Connection.GetFlow())
	}
}

func (s *Summary) connection(e orb8v1.ConnectionEvent) {
	switch e {
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_OPENED:
		s.opened++
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED:
		s.closed++
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_FAILED:
		s.failed++
	}
}

func (s *Summary) flow(ev *orb8v1.Event, f *orb8v1.Flow) {
	s.events++
	s.txBytes += f.GetDelta().GetTxBytes()
	s.rxBytes += f.GetDelta().GetRxBytes()
	if len(s.flows) < maxSummaryFlows {
		s.flows[s.key(ev.GetNodeName(), f)] = struct{}{}
	}
}

func (s *Summary) process(x *orb8v1.ProcessEvent) {
	switch x.GetStep() {
	case orb8v1.ProcessStep_PROCESS_STEP_EXEC:
		s.started++
	case orb8v1.ProcessStep_PROCESS_STEP_EXIT:
		s.exited++
		if x.GetSignal() != 0 {
			s.killed++
		}
	}
}

func (s *Summary) syscall(x *orb8v1.Syscall) {
	s.calls++
	if x.GetError() != "" {
		s.errors++
	}
	if len(x.GetRules()) > 0 {
		s.flagged++
	}
}

func (s *Summary) node(n *orb8v1.NodeStatus) {
	name := clean(n.GetNodeName())
	if n.GetState() == orb8v1.NodeState_NODE_STATE_UNAVAILABLE {
		s.away[name] = orNone(n.GetMessage())
	} else if _, ok := s.away[name]; ok {
		s.away[name] = ""
	}
}

// nodes names the nodes that the summary lacks, wholly or for a time.
func (s *Summary) nodes() []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(s.away)) {
		text := "NODE " + name + " was away for a time"
		if reason := s.away[name]; reason != "" {
			text = "NODE " + name + " is unavailable: " + reason
		}
		lines = append(lines, text)
	}
	return lines
}

func (s *Summary) key(node string, f *orb8v1.Flow) uint64 {
	return maphash.String(s.seed, fmt.Sprint(node, "|", f.GetProtocol(), "|", address(f.GetLocal()), "|",
		address(f.GetRemote()), "|", f.GetNetns(), "|", f.GetLocal().GetWorkload().GetCgroupId(), "|",
		f.GetIcmp().GetType(), "|", f.GetRole(), "|", f.GetFirstSeenNs()))
}

// Write writes the summary after watching for d.
func (s *Summary) Write(w io.Writer, o Options, d time.Duration) error {
	text := s.text(d)
	var away []string
	for _, line := range s.nodes() {
		for _, l := range wrap(line, o.Width) {
			away = append(away, o.paint(styleWarn, l))
		}
	}
	if len(s.lost) == 0 {
		if s.uncounted() == 0 {
			text += "; nothing lost"
		}
		return writeLines(w, append(wrap(text, o.Width), away...))
	}
	var stages []string
	for stage, n := range s.lost {
		stages = append(stages, fmt.Sprintf("%s at %s", Count(n), clean(stage)))
	}
	slices.Sort(stages)
	lines := wrap(text, o.Width)
	for _, l := range wrap("LOST: "+strings.Join(stages, ", "), o.Width) {
		lines = append(lines, o.paint(styleBad, l))
	}
	return writeLines(w, append(lines, away...))
}

func (s *Summary) text(d time.Duration) string {
	switch s.Of {
	case OfDNS:
		return s.queries(d)
	case OfProcesses:
		return s.processes(d)
	case OfAlerts:
		return s.judged(d)
	case OfSyscalls:
		return fmt.Sprintf("%s in %s: %s, %s flagged", Plural(s.calls, "system call", "system calls"), Span(d),
			Plural(s.errors, "error", "errors"), Count(s.flagged))
	case OfSyscallCounts:
		return s.counts(d)
	}
	return s.traffic(d)
}

// processes adds starts and ends up.
func (s *Summary) processes(d time.Duration) string {
	text := Plural(s.started, "program", "programs") + " started in " + Span(d)
	if s.exited > 0 {
		text += ", " + Plural(s.exited, "process", "processes") + " ended"
	}
	if s.killed > 0 {
		text += " (" + Count(s.killed) + " by a signal)"
	}
	return text
}

// judged adds alerts up.
func (s *Summary) judged(d time.Duration) string {
	var total uint64
	var words []string
	for _, level := range []orb8v1.Severity{orb8v1.Severity_SEVERITY_CRITICAL, orb8v1.Severity_SEVERITY_WARNING, orb8v1.Severity_SEVERITY_NOTICE} {
		if n := s.alerts[level]; n > 0 {
			name, _ := severity(level)
			total, words = total+n, append(words, Count(n)+" "+name)
		}
	}
	text := Plural(total, "alert", "alerts") + " in " + Span(d)
	if len(words) > 0 {
		text += ": " + strings.Join(words, ", ")
	}
	if s.repeated > 0 {
		text += " (for " + Count(total+s.repeated) + " that were found)"
	}
	return text
}

// counts adds up what was counted.
func (s *Summary) counts(d time.Duration) string {
	var sum countSum
	all := s.counted.All()
	for _, x := range all {
		c := sumOf(x.GetSyscallSummary())
		sum.calls += c.calls
		sum.errors += c.errors
	}
	text := fmt.Sprintf("%s of %s in %s: %s", Plural(sum.calls, "system call", "system calls"),
		Plural(uint64(len(all)), "container", "containers"), Span(d), Plural(sum.errors, "error", "errors"))
	if n := s.uncounted(); n > 0 {
		text += "; " + Count(n) + " not counted"
	}
	return text
}

// uncounted is how many calls the counts lack.
func (s *Summary) uncounted() uint64 {
	var total uint64
	for _, n := range uncounted(s.counted.All()) {
		total += n
	}
	return total
}

// traffic adds the flows up.
func (s *Summary) traffic(d time.Duration) string {
	flows := Plural(uint64(len(s.flows)), "flow", "flows")
	if len(s.flows) >= maxSummaryFlows {
		flows = "at least " + flows
	}
	text := fmt.Sprintf("%s in %s: %s sent, %s received; %s", flows, Span(d),
		Bytes(s.txBytes), Bytes(s.rxBytes), Plural(s.events, "event", "events"))
	if s.opened+s.closed+s.failed > 0 {
		text += fmt.Sprintf("; connections: %s opened, %s closed, %s failed",
			Count(s.opened), Count(s.closed), Count(s.failed))
	}
	dropped := Plural(s.drops, "drop", "drops") + " told of"
	if s.overflows > 0 {
		dropped += ", " + Plural(s.overflows, "attempt", "attempts") + " to connect dropped by full queues"
	}
	switch {
	case s.Of == OfDrops:
		return dropped + " in " + Span(d)
	case s.drops+s.overflows > 0:
		text += "; " + dropped
	}
	return text
}

// queries adds DNS up.
func (s *Summary) queries(d time.Duration) string {
	var total, answered uint64
	var codes []string
	for _, code := range slices.Sorted(maps.Keys(s.rcodes)) {
		n := s.rcodes[code]
		if code == unread {
			continue
		}
		total += n
		if code != "timeout" {
			answered += n
		}
		codes = append(codes, Count(n)+" "+code)
	}
	text := Plural(total, "query", "queries") + " in " + Span(d)
	if total > 0 {
		text += ": " + strings.Join(codes, ", ")
	}
	if n := s.rcodes[unread]; n > 0 {
		text += "; " + Count(n) + " not read"
	}
	if answered > 0 {
		text += "; mean latency " + Micros(uint64(s.latency)/answered/1000)
	}
	return text
}
