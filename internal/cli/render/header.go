// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Header says what is watched and from where.
type Header struct {
	// What is being shown, for instance "network flows".
	What string
	// Source of the data, for instance "agent localhost:9090".
	Source string
	// Statuses of the agents that answered.
	Statuses []*orb8v1.AgentStatus
	// Probes are the names of those that matter here; nil for all.
	Probes  []string
	Filters []string
	// Warnings are things that the user should know before reading on.
	Warnings []string
}

// Write writes the header, a line for each thing to say.
func (h Header) Write(w io.Writer, o Options) error {
	lines := []headline{{text: h.about(), style: styleTitle}}
	lines = append(lines, h.probes()...)
	if len(h.Filters) > 0 {
		lines = append(lines, headline{"filters: " + strings.Join(h.Filters, " and "), styleNone})
	}
	for _, warning := range h.Warnings {
		lines = append(lines, headline{"warning: " + warning, styleWarn})
	}
	var out []string
	for _, l := range lines {
		for _, part := range wrap(l.text, o.Width) {
			out = append(out, o.paint(l.style, part))
		}
	}
	return writeLines(w, out)
}

// about is the first line. What is the same on all nodes is in it.
func (h Header) about() string {
	about := []string{h.What}
	nodes := h.each(func(s *orb8v1.AgentStatus) string { return s.GetNodeName() })
	kernels := slices.Compact(h.each(func(s *orb8v1.AgentStatus) string { return s.GetKernelRelease() }))
	switch {
	case len(h.Statuses) > manyNodes: // the source has how many
		about = append(about, "watching "+h.Source)
	case len(h.Statuses) > 1:
		about = append(about, "watching "+h.Source+": "+strings.Join(nodes, ", "))
	case len(nodes) == 1:
		about = append(about, "node "+nodes[0], h.Source)
	default:
		about = append(about, h.Source)
	}
	if len(kernels) == 1 {
		about = append(about, "kernel "+kernels[0])
	}
	return strings.Join(about, " · ")
}

// each collects what is known of the nodes.
func (h Header) each(get func(*orb8v1.AgentStatus) string) []string {
	var all []string
	for _, s := range h.Statuses {
		if text := Clean(get(s)); text != "" {
			all = append(all, text)
		}
	}
	return all
}

// probes says how the probes are, once where it is the same on all nodes.
func (h Header) probes() []headline {
	var lines []headline
	nodes := map[headline][]string{}
	for _, s := range h.Statuses {
		for _, l := range probeLines(h.mattering(s.GetProbes())) {
			if nodes[l] == nil {
				lines = append(lines, l)
			}
			nodes[l] = append(nodes[l], Clean(s.GetNodeName()))
		}
	}
	for i, l := range lines {
		on := nodes[l]
		switch {
		case len(on) == len(h.Statuses):
		case len(on) > manyNodes:
			lines[i].text = fmt.Sprintf("on %d nodes (%s): %s", len(on), namesOf(on), l.text)
		default:
			lines[i].text = "on " + strings.Join(on, ", ") + ": " + l.text
		}
	}
	return lines
}

// mattering leaves out the probes that do not matter here.
func (h Header) mattering(probes []*orb8v1.ProbeStatus) []*orb8v1.ProbeStatus {
	if h.Probes == nil {
		return probes
	}
	return slices.DeleteFunc(slices.Clone(probes), func(p *orb8v1.ProbeStatus) bool { return !slices.Contains(h.Probes, p.GetName()) })
}

type headline struct {
	text  string
	style style
}

// probeLines puts the probes that run on one line, and each of the others on
// its own with the reason.
func probeLines(probes []*orb8v1.ProbeStatus) []headline {
	var running []string
	var lines []headline
	for _, p := range probes {
		name := Clean(p.GetName())
		switch p.GetState() {
		case orb8v1.ProbeState_PROBE_STATE_RUNNING:
			running = append(running, name)
		case orb8v1.ProbeState_PROBE_STATE_IDLE: // as it should be
		default:
			lines = append(lines, headline{probeTrouble(p), styleWarn})
		}
		for _, d := range p.GetDegraded() {
			lines = append(lines, headline{"probe " + name + " without: " + Clean(d), styleWarn})
		}
	}
	if len(running) > 0 {
		lines = append([]headline{{"probes running: " + strings.Join(running, ", "), styleNone}}, lines...)
	}
	return lines
}

func probeTrouble(p *orb8v1.ProbeStatus) string {
	text := fmt.Sprintf("probe %s %s", orNone(p.GetName()), probeState(p.GetState()))
	if p.GetReason() != "" {
		text += ": " + Clean(p.GetReason())
	}
	if p.GetRemedy() != "" {
		text += " (" + Clean(p.GetRemedy()) + ")"
	}
	return text
}

func probeState(s orb8v1.ProbeState) string {
	if s == orb8v1.ProbeState_PROBE_STATE_UNSPECIFIED {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(s.String(), "PROBE_STATE_"))
}
