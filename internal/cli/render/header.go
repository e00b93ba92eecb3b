// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// Header says what is watched and from where.
type Header struct {
	// What is being shown, for instance "network flows".
	What string
	// Source of the data, for instance "agent localhost:9090".
	Source  string
	Status  *orb8v1.AgentStatus
	Filters []string
	// Warnings are things that the user should know before reading on.
	Warnings []string
}

// Write writes the header, a line for each thing to say.
func (h Header) Write(w io.Writer, o Options) error {
	s := h.Status
	about := []string{h.What}
	if s.GetNodeName() != "" {
		about = append(about, "node "+clean(s.GetNodeName()))
	}
	about = append(about, h.Source)
	if s.GetKernelRelease() != "" {
		about = append(about, "kernel "+clean(s.GetKernelRelease()))
	}
	lines := []headline{{text: strings.Join(about, " · "), style: styleTitle}}
	lines = append(lines, probeLines(s.GetProbes())...)
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
		name := clean(p.GetName())
		if p.GetState() == orb8v1.ProbeState_PROBE_STATE_RUNNING {
			running = append(running, name)
		} else {
			lines = append(lines, headline{probeTrouble(p), styleWarn})
		}
		for _, d := range p.GetDegraded() {
			lines = append(lines, headline{"probe " + name + " without: " + clean(d), styleWarn})
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
		text += ": " + clean(p.GetReason())
	}
	if p.GetRemedy() != "" {
		text += " (" + clean(p.GetRemedy()) + ")"
	}
	return text
}

func probeState(s orb8v1.ProbeState) string {
	if s == orb8v1.ProbeState_PROBE_STATE_UNSPECIFIED {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(s.String(), "PROBE_STATE_"))
}
