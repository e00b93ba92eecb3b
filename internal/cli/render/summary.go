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

// Summary adds up what went by.
type Summary struct {
	seed                   maphash.Seed
	flows                  map[uint64]struct{}
	events                 uint64
	opened, closed, failed uint64
	txBytes, rxBytes       uint64
	// rcodes has DNS queries by what came of them, latency is the sum of the answered;
	// nil unless the summary is about these.
	rcodes  map[string]uint64
	latency time.Duration
	// samples is how many there were of each accelerator; nil unless the summary is
	// about these.
	samples map[string]uint64
	// processes says that the summary is about these.
	processes               bool
	started, exited, killed uint64
	// alerts has them by severity; nil unless the summary is about these.
	alerts map[orb8v1.Severity]uint64
	// calls has system calls; nil unless the summary is about these.
	calls *callSums
	lost  map[string]uint64
	// away has the nodes that were unavailable, with the reason or, once they
	// are back, nothing.
	away map[string]string
	// agents is when the agent of each node began; replaced has the nodes where
	// another one came.
	agents   map[string]int64
	replaced map[string]bool
}

// NewSummary returns an empty summary.
func NewSummary() *Summary {
	return &Summary{
		seed: maphash.MakeSeed(), flows: map[uint64]struct{}{}, lost: map[string]uint64{}, away: map[string]string{},
		agents: map[string]int64{}, replaced: map[string]bool{},
	}
}

// NewQuerySummary returns an empty summary of DNS queries.
func NewQuerySummary() *Summary {
	s := NewSummary()
	s.rcodes = map[string]uint64{}
	return s
}

// NewProcessSummary returns an empty summary of programs that were started.
func NewProcessSummary() *Summary {
	s := NewSummary()
	s.processes = true
	return s
}

// NewAlertSummary returns an empty summary of alerts.
func NewAlertSummary() *Summary {
	s := NewSummary()
	s.alerts = map[orb8v1.Severity]uint64{}
	return s
}

// NewSampleSummary returns an empty summary of samples of accelerators.
func NewSampleSummary() *Summary {
	s := NewSummary()
	s.samples = map[string]uint64{}
	return s
}

// callSums add system calls up: those told of one by one, or of containers the latest counts.
type callSums struct {
	calls, errors, flagged uint64
	counted                bool
	latest                 CountSet
}

// NewSyscallSummary returns an empty summary of system calls; counted: they are counted and
// not told of one by one.
func NewSyscallSummary(counted bool) *Summary {
	s := NewSummary()
	s.calls = &callSums{counted: counted}
	return s
}

func (c *callSums) add(x *orb8v1.Syscall) {
	c.calls++
	if x.GetError() != "" {
		c.errors++
	}
	if len(x.GetRules()) > 0 {
		c.flagged++
	}
}

func (c *callSums) text(d time.Duration) string {
	if !c.counted {
		return fmt.Sprintf("%s in %s: %s, %s flagged", Plural(c.calls, "system call", "system calls"), Span(d),
			Plural(c.errors, "error", "errors"), Count(c.flagged))
	}
	var sum countSum
	all := c.latest.All()
	for _, ev := range all {
		one := sumOf(ev.GetSyscallSummary())
		sum.calls, sum.errors = sum.calls+one.calls, sum.errors+one.errors
	}
	text := fmt.Sprintf("%s of %s in %s: %s", Plural(sum.calls, "system call", "system calls"),
		Plural(uint64(len(all)), "container", "containers"), Span(d), Plural(sum.errors, "error", "errors"))
	if left := c.uncounted(); left > 0 {
		text += "; " + Count(left) + " not counted"
	}
	return text
}

// uncounted is how many calls are missing from the counts.
func (c *callSums) uncounted() (left uint64) {
	for _, n := range uncounted(c.latest.All()) {
		left += n
	}
	return left
}

// Add takes one event into account.
func (s *Summary) Add(ev *orb8v1.Event) {
	var f *orb8v1.Flow
	switch x := ev.GetEvent().(type) {
	case *orb8v1.Event_LostEvents:
		s.lost[x.LostEvents.GetStage()] += x.LostEvents.GetCount()
		return
	case *orb8v1.Event_NodeStatus:
		s.node(x.NodeStatus)
		return
	case *orb8v1.Event_Dns:
		if s.rcodes != nil {
			code, _ := rcode(x.Dns)
			s.rcodes[code]++
			s.latency += time.Duration(x.Dns.GetLatencyNs())
		}
		return
	case *orb8v1.Event_Process:
		s.process(x.Process)
		return
	case *orb8v1.Event_Alert:
		if s.alerts != nil {
			s.alerts[x.Alert.GetSeverity()] += 1 + x.Alert.GetRepeated()
		}
		return
	case *orb8v1.Event_Syscall:
		if s.calls != nil {
			s.calls.add(x.Syscall)
		}
		return
	case *orb8v1.Event_SyscallSummary:
		if s.calls != nil {
			s.calls.latest.Add(ev)
		}
		return
	case *orb8v1.Event_Accelerator:
		if s.samples != nil {
			s.samples[ev.GetNodeName()+"/"+x.Accelerator.GetDevice().GetId()]++
		}
		return
	case *orb8v1.Event_Flow:
		f = x.Flow
	case *orb8v1.Event_Connection:
		f = x.Connection.GetFlow()
		s.connection(x.Connection)
	default:
		return
	}
	s.events++
	s.txBytes += f.GetDelta().GetTxBytes()
	s.rxBytes += f.GetDelta().GetRxBytes()
	if len(s.flows) < maxSummaryFlows {
		s.flows[s.key(ev.GetNodeName(), f)] = struct{}{}
	}
}

func (s *Summary) connection(c *orb8v1.Connection) {
	switch c.GetEvent() {
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_OPENED:
		s.opened++
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_CLOSED:
		s.closed++
		if c.GetOpened() { // within one sample
			s.opened++
		}
	case orb8v1.ConnectionEvent_CONNECTION_EVENT_FAILED:
		s.failed++
	}
}

func (s *Summary) node(n *orb8v1.NodeStatus) {
	name := Clean(n.GetNodeName())
	if now := n.GetStartedNs(); now != 0 {
		if before := s.agents[name]; before != 0 && before != now {
			s.replaced[name] = true
		}
		s.agents[name] = now
	}
	if n.GetState() == orb8v1.NodeState_NODE_STATE_UNAVAILABLE {
		s.away[name] = orNone(n.GetMessage())
	} else if _, ok := s.away[name]; ok {
		s.away[name] = ""
	}
}

// nodes names the nodes that the summary lacks, wholly or for a time. unknown tells that
// nobody knows what was lost there: an agent that comes back says what it could not keep,
// one that is gone does not.
func (s *Summary) nodes() (lines []string, unknown bool) {
	names := make(map[string]bool)
	for name := range s.away {
		names[name] = true
	}
	for name := range s.replaced {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		reason := s.away[name]
		switch {
		case reason != "":
			lines = append(lines, "NODE "+name+" is unavailable: "+reason)
		case s.replaced[name]:
			lines = append(lines, "NODE "+name+" has another agent since: what the one before had not told yet, and what happened until this one saw it, is missing")
		default:
			lines = append(lines, "NODE "+name+" was away for a time")
		}
		unknown = unknown || reason != "" || s.replaced[name]
	}
	return lines, unknown
}

func (s *Summary) key(node string, f *orb8v1.Flow) uint64 {
	return maphash.String(s.seed, fmt.Sprint(node, "|", f.GetProtocol(), "|", address(f.GetLocal()), "|",
		address(f.GetRemote()), "|", f.GetNetns(), "|", f.GetLocal().GetWorkload().GetCgroupId(), "|",
		f.GetIcmp().GetType(), "|", f.GetRole(), "|", f.GetFirstSeenNs()))
}

// Write writes the summary after watching for d.
func (s *Summary) Write(w io.Writer, o Options, d time.Duration) error {
	text := s.traffic(d)
	switch {
	case s.rcodes != nil:
		text = s.queries(d)
	case s.samples != nil:
		text = s.devices(d)
	case s.processes:
		text = s.programs(d)
	case s.alerts != nil:
		text = s.judged(d)
	case s.calls != nil:
		text = s.calls.text(d)
	}
	var away []string
	lines, unknown := s.nodes()
	for _, line := range lines {
		for _, l := range wrap(line, o.Width) {
			away = append(away, o.paint(styleWarn, l))
		}
	}
	if len(s.lost) == 0 {
		nothing := "; nothing lost"
		if unknown {
			nothing = "; nothing else lost"
		}
		if s.calls != nil && s.calls.uncounted() > 0 {
			nothing = ""
		}
		return writeLines(w, append(wrap(text+nothing, o.Width), away...))
	}
	var stages []string
	for stage, n := range s.lost {
		stages = append(stages, fmt.Sprintf("%s at %s", Count(n), Clean(stage)))
	}
	slices.Sort(stages)
	lines = wrap(text, o.Width)
	for _, l := range wrap("LOST: "+strings.Join(stages, ", "), o.Width) {
		lines = append(lines, o.paint(styleBad, l))
	}
	return writeLines(w, append(lines, away...))
}

// traffic adds flows up.
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

// programs adds starts and ends up.
func (s *Summary) programs(d time.Duration) string {
	text := Plural(s.started, "program", "programs") + " started in " + Span(d)
	if s.exited > 0 {
		text += ", " + Plural(s.exited, "process", "processes") + " ended"
	}
	if s.killed > 0 {
		text += ", " + Count(s.killed) + " of them by a signal"
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
	return text
}

// devices adds samples of accelerators up.
func (s *Summary) devices(d time.Duration) string {
	var n uint64
	for _, samples := range s.samples {
		n += samples
	}
	return Plural(n, "sample", "samples") + " of " + Plural(uint64(len(s.samples)), "accelerator", "accelerators") + " in " + Span(d)
}
