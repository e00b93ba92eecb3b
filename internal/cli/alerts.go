// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const alertsLong = `Show alerts: what rules found in what containers do.

First come the alerts that the agents still have, or those of --since and --last; with
--follow the command then goes on with those that come. An alert has its time, severity,
rule and pod, and what happened. With -o wide all of it is shown: the process with its
parents and its file, the system call, why that matters, a command to look closer, and
the exception that silences it, for the configuration of the agent.

  notice     worth knowing
  warning    unusual in a container
  critical   hardly ever benign

'orb8 rules' lists the rules, docs/rules.md describes each, what it finds and what it
leaves alone. The same of the same workload is not told again and again: what more was
found within a minute comes as one alert when that is over, which says how many there
were. Agents keep the latest alerts (history in their configuration) in memory: they are
gone when an agent starts anew.

The source is found as by 'orb8 trace network'; with --follow as root on Linux it may be
this process. With -o json every line is an orb8.v1.Event with an alert in it, a change
of the node's status, or lost events. The exit code is 0 whether there are alerts or not.`

const alertsExamples = `  orb8 alerts -A                                    # all that are kept
  orb8 alerts -A --since 1h -o wide                 # with who, why, and what to do
  orb8 alerts --severity warning --follow           # warnings and criticals, as they come
  orb8 alerts -n shop --rule reverse_shell --last 5
  orb8 alerts --not --workload Deployment/ci-runner
  orb8 alerts -o json | jq -r '.alert | select(.) | [.rule, .workload.podName, .summary] | @tsv'`

func newAlerts(c *Config) *cobra.Command {
	return c.newTrace(&cobra.Command{
		Use: "alerts", Short: "Show what rules found in what containers do", Long: alertsLong, Example: alertsExamples, GroupID: groupSee,
	}, traceKind{
		title: "alerts", probe: "exec", past: true,
		kinds:    []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_ALERT},
		filters:  []string{"rule", "severity"},
		subjects: processFilters(), noTraffic: true,
		local:   func(f *sourceFlags) { f.only = onlyExec },
		about:   aboutRules,
		lines:   func(w io.Writer, o render.Options) render.Live { return render.NewAlerts(w, o) },
		summary: render.NewAlertSummary,
		of:      func(ev *orb8v1.Event) (loopback, ok bool) { return false, ev.GetAlert() != nil },
	})
}

// aboutRules says which rules are off, and where: what they are about raises no alert.
func aboutRules(_ context.Context, src *source, _ bool) ([]string, error) {
	var lines []string
	for _, s := range src.statuses() {
		var off []string
		for _, r := range s.GetRules() {
			if r.GetOff() {
				off = append(off, r.GetName())
			}
		}
		if len(off) > 0 {
			slices.Sort(off)
			lines = append(lines, render.Clean("rules off on "+s.GetNodeName()+": "+strings.Join(off, ", ")))
		}
	}
	return lines, nil
}
