// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/Ignoramuss/orb8/internal/cli/render"
	"github.com/Ignoramuss/orb8/internal/cluster"
)

// header tells, on standard error, what is shown and where it comes from;
// headless, only what the user should be warned of.
func (c *Config) header(headless bool, what string, src *source, filters *filterFlags, cmd *cobra.Command) error {
	warnings := warningsOf(src, filters, cmd)
	if headless {
		for _, w := range warnings {
			fmt.Fprintf(c.Stderr, "orb8: warning: %s\n", w)
		}
		return nil
	}
	asked := filters.asked
	if flag := cmd.Flags().Lookup("no-loopback"); flag != nil && flag.Changed {
		asked = append(slices.Clone(asked), "no loopback")
	}
	h := render.Header{
		What: what, Source: src.name, Statuses: src.statuses(), Probes: probesOf(src.only),
		Filters: asked, Warnings: warnings,
	}
	return h.Write(c.Stderr, terminalOptions(c.Stderr, c.Getenv))
}

// warningsOf lists what makes the output differ from what the flags suggest.
func warningsOf(src *source, filters *filterFlags, cmd *cobra.Command) []string {
	warnings := slices.Clone(src.warnings)
	var away []render.Said
	for _, n := range src.nodes {
		if n.Err != nil {
			away = append(away, render.Said{Node: n.Agent.Node, Text: cluster.Reason(n.Err)})
		}
	}
	warnings = append(warnings, render.Together(away, "node %s does not answer", "%d nodes do not answer")...)
	var pods uint32
	for _, s := range src.statuses() {
		pods += s.GetPodsTracked()
	}
	if len(filters.kubernetes) > 0 && pods == 0 {
		flags := slices.Compact(slices.Sorted(slices.Values(filters.kubernetes)))
		warnings = append(warnings, "no pods are known there, so nothing can match "+strings.Join(flags, ", "))
	}
	if changed := cmd.Flags().Changed; !src.local && (changed("interval") || changed("packet")) {
		warnings = append(warnings, "--interval and --packet have no effect on an agent; --local loads the probes in this process")
	}
	var sick []render.Said
	for _, s := range src.statuses() {
		switch {
		case s.GetHealthy():
		case src.many():
			sick = append(sick, render.Said{Node: s.GetNodeName(), Text: s.GetHealthMessage()})
		default:
			warnings = append(warnings, "the agent is not healthy: "+s.GetHealthMessage())
		}
	}
	return append(warnings, render.Together(sick, "the agent on %s is not healthy", "the agents on %d nodes are not healthy")...)
}

// summary closes a stream. After Ctrl-C the terminal has put ^C on the line.
func (c *Config) summary(s *render.Summary, d time.Duration, interrupted bool) error {
	if interrupted && isTerminal(c.Stderr) {
		fmt.Fprintln(c.Stderr)
	}
	return s.Write(c.Stderr, terminalOptions(c.Stderr, c.Getenv), d)
}
