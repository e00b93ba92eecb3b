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

// Status writes what an agent says of itself. Stages that lost nothing are only
// in the wide format.
func Status(w io.Writer, o Options, source string, s *orb8v1.AgentStatus) error {
	switch o.Format {
	case JSON:
		return WriteJSON(w, s)
	case Compact:
		return writeLines(w, []string{compactStatus(s)})
	case Wide:
		o.Width = 0
	}
	lines := statusFacts(o, source, s)
	lines = append(lines, "")
	lines = append(lines, statusProbes(o, s.GetProbes())...)
	lines = append(lines, "")
	if accelerators := statusAccelerators(o, s.GetAccelerators()); len(accelerators) > 0 {
		lines = append(append(lines, accelerators...), "")
	}
	lines = append(lines, statusLosses(o, s)...)
	return writeLines(w, lines)
}

func statusFacts(o Options, source string, s *orb8v1.AgentStatus) []string {
	health := cell{text: "healthy", style: styleGood}
	if !s.GetHealthy() {
		health = cell{text: "NOT HEALTHY", style: styleBad}
	}
	if m := Clean(s.GetHealthMessage()); m != "" {
		health.text += ": " + m
	}
	flows := Count(uint64(s.GetActiveFlows()))
	if s.GetMaxFlows() > 0 {
		flows += " of at most " + Count(uint64(s.GetMaxFlows()))
	}
	if s.GetIntervalNs() > 0 {
		flows += ", sampled every " + time.Duration(s.GetIntervalNs()).String()
	}
	up := "just started"
	if n := s.GetUptimeSeconds(); n > 0 {
		up = Span(time.Duration(n) * time.Second)
	}
	if s.GetStartedNs() != 0 {
		up += ", since " + o.clock(s.GetStartedNs(), time.DateTime)
	}
	facts := []fact{
		{"source", source}, {"node", orNone(s.GetNodeName())}, {"version", orNone(s.GetVersion())},
		{"kernel", orNone(s.GetKernelRelease())}, {"up", up}, {"flows", flows},
		{"pods", Count(uint64(s.GetPodsTracked()))}, {"streams", Count(uint64(s.GetSubscribers()))},
		{"records", Count(s.GetEventsProcessed()) + " from the kernel, " + Count(s.GetEventsDropped()) + " lost"},
		{"cgroups", orNone(s.GetCgroupRoot())},
	}
	if c := s.GetCost(); c != nil {
		facts = append(facts, costFacts(c)...)
	}
	lines := []string{pad("health", 8, false) + "  " + o.paint(health.style, health.text)}
	for _, f := range facts {
		lines = append(lines, cutEnd(pad(f.name, 8, false)+"  "+f.value, limit(o.Width)))
	}
	return lines
}

type fact struct{ name, value string }

// costFacts are what the agent takes of its node.
func costFacts(c *orb8v1.AgentCost) []fact {
	cpu := Span(time.Duration(c.GetCpuNs())) + " in all"
	if c.GetRecentNs() > 0 {
		cpu = fmt.Sprintf("%s of a processor over the last %s; %s", share(c.GetRecentCpuNs(), c.GetRecentNs()),
			Span(time.Duration(c.GetRecentNs()).Round(time.Second)), cpu)
	}
	memory := Bytes(c.GetResidentBytes())
	if c.GetAnonymousBytes() > 0 {
		memory += ", " + Bytes(c.GetAnonymousBytes()) + " of it anonymous"
	}
	return []fact{{"cpu", cpu}, {"memory", memory}, {"programs", programsCost(c)}}
}

// programsCost is what the agent's programs take in the kernel.
func programsCost(c *orb8v1.AgentCost) string {
	switch {
	case !c.GetProgramsMeasured() && c.GetProgramsRuns() == 0:
		return "not measured: sysctl -w kernel.bpf_stats_enabled=1 does"
	case !c.GetProgramsMeasured():
		return Span(time.Duration(c.GetProgramsNs())) + " while that was measured; it is not now"
	case c.GetProgramsRuns() == 0:
		return "have not run since that is measured"
	}
	return fmt.Sprintf("%s of a processor, %d ns a run",
		share(c.GetRecentProgramsNs(), c.GetRecentNs()), uint64(c.GetProgramsNs())/c.GetProgramsRuns())
}

// share is a part of a whole in percent.
func share(part, whole int64) string {
	if whole <= 0 {
		return none
	}
	digits := 0
	percent := 100 * float64(part) / float64(whole)
	switch {
	case percent < 1:
		digits = 2
	case percent < 10:
		digits = 1
	}
	return strconv.FormatFloat(percent, 'f', digits, 64) + " %"
}

// statusAccelerators says how accelerators are read. That a host has none is only
// in the wide format.
func statusAccelerators(o Options, all []*orb8v1.AcceleratorStatus) []string {
	var rows [][]cell
	for _, a := range all {
		if a.GetState() == "off" && a.GetRemedy() == "" && o.Format != Wide {
			continue
		}
		state := cell{text: Clean(a.GetState()), style: styleWarn}
		detail := Clean(a.GetReason())
		if a.GetState() == "running" {
			state.style, detail = styleGood, Plural(uint64(a.GetDevices()), "device", "devices")
		}
		if r := Clean(a.GetRemedy()); r != "" {
			detail += " → " + r
		}
		rows = append(rows, []cell{plain(a.GetName()), state, {text: detail}})
	}
	if len(rows) == 0 {
		return nil
	}
	t := &table{
		columns: []column{{title: "ACCELERATORS", min: 9}, {title: "STATE", min: 8}, {title: "DETAIL", min: 10}},
		grow:    []step{{0, 12}, {2, 1000}},
	}
	return t.lines(o, rows)
}

func limit(width int) int {
	if width <= 0 {
		return 1 << 20
	}
	return width
}

func statusProbes(o Options, probes []*orb8v1.ProbeStatus) []string {
	if len(probes) == 0 {
		return []string{"PROBES", "none"}
	}
	const stateWidth, indent = 8, 20
	lines := []string{o.paint(styleTitle, pad("PROBE", 10, false)+pad("STATE", stateWidth+2, false)+"DETAIL")}
	for _, p := range probes {
		state := cell{text: probeState(p.GetState()), style: styleGood}
		switch p.GetState() {
		case orb8v1.ProbeState_PROBE_STATE_RUNNING:
		case orb8v1.ProbeState_PROBE_STATE_IDLE:
			state.style = styleDim
		case orb8v1.ProbeState_PROBE_STATE_OFF:
			state.style = styleBad
		default:
			state.style = styleWarn
		}
		prefix := pad(cutEnd(orNone(p.GetName()), 9), 10, false) +
			o.paint(state.style, state.text) + pad("", stateWidth+2-cells(state.text), false)
		for _, detail := range probeDetails(o, p) {
			for _, part := range wrap(detail, max(o.Width-indent, 0)) {
				lines = append(lines, prefix+part)
				prefix = pad("", indent, false)
			}
		}
	}
	return lines
}

func probeDetails(o Options, p *orb8v1.ProbeStatus) []string {
	var details []string
	if p.GetReason() != "" {
		details = append(details, Clean(p.GetReason()))
	}
	if p.GetRemedy() != "" {
		details = append(details, "→ "+Clean(p.GetRemedy()))
	}
	for _, d := range p.GetDegraded() {
		details = append(details, "without: "+Clean(d))
	}
	switch n := uint64(len(p.GetHooks())); {
	case o.Format == Wide && n > 0:
		details = append(details, Clean(strings.Join(p.GetHooks(), ", ")))
	case n > 0:
		details = append(details, Plural(n, "hook", "hooks"))
	case len(details) == 0:
		details = append(details, none)
	}
	return details
}

// statusLosses lists the stages that counted something, or with the wide format
// all of them, those that counted first.
func statusLosses(o Options, s *orb8v1.AgentStatus) []string {
	var some, zero [][]cell
	for _, l := range s.GetLosses() {
		row := []cell{plain(l.GetStage()), {text: Count(l.GetCount())}, plain(l.GetMeaning())}
		if l.GetCount() == 0 {
			zero = append(zero, row)
			continue
		}
		row[1].style = styleWarn
		some = append(some, row)
	}
	if o.Format == Wide {
		some = append(some, zero...)
	}
	if len(some) == 0 {
		return []string{o.paint(styleTitle, "LOSSES"), "none"}
	}
	t := &table{
		columns: []column{{title: "LOSSES AT", min: 9}, {title: "COUNT", min: 5, right: true}, {title: "MEANING", min: 10}},
		drop:    []int{2},
		grow:    []step{{1, 20}, {0, 40}, {2, 1000}},
	}
	return t.lines(o, some)
}

func compactStatus(s *orb8v1.AgentStatus) string {
	health := "healthy"
	if !s.GetHealthy() {
		health = "unhealthy"
	}
	var probes []string
	for _, p := range s.GetProbes() {
		probes = append(probes, word(p.GetName())+":"+probeState(p.GetState()))
	}
	return fmt.Sprintf("%s %s version=%s up=%ds flows=%d pods=%d records=%d lost=%d probes=%s",
		word(s.GetNodeName()), health, word(s.GetVersion()), s.GetUptimeSeconds(), s.GetActiveFlows(),
		s.GetPodsTracked(), s.GetEventsProcessed(), s.GetEventsDropped(), word(strings.Join(probes, ",")))
}
