// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

const alertsLong = `Show alerts: what rules found in what containers do.

First come the alerts that the agents still have, or those of --since and --last; with
--follow the command then goes on with those that come. An alert is a line with its
time, severity, rule and pod, and what happened. With -o wide, and if there is only
one, all of it is shown: the process with its parents and its file, the system call,
why that matters, a command to look closer, and the exception that silences it, for
the configuration of the agent.

  notice     worth knowing
  warning    unusual in a container
  critical   hardly ever benign

docs/rules.md describes each rule, what it finds and what it leaves alone. The same of
the same workload is not told again and again: what more was found within a minute comes
as one alert when that is over, which says how many there were.

What an agent keeps is bounded (history in its configuration). If that, or the agent's
own age, does not reach back as far as --since, the command says since when it does.

The source is an agent on localhost:9090 if one answers, else all agents of the
kubeconfig's current cluster, or those of --node; with --follow as root on Linux also
this process. With -o json every line is an orb8.v1.Event with an alert in it, a change
of the node's status, or lost events. The exit code is 0 whether there are alerts or not.`

const alertsExamples = `  orb8 alerts -A                                    # all that are kept
  orb8 alerts -A --since 1h -o wide                 # with who, why, and what to do
  orb8 alerts --severity warning --follow           # warnings and criticals, as they come
  orb8 alerts -n shop --rule reverse_shell --last 5
  orb8 alerts --not --workload Deployment/ci-runner
  orb8 alerts -o json | jq -r '.alert | select(.) | [.rule, .workload.podName, .summary] | @tsv'`

func newAlerts(c *Config) *cobra.Command {
	f := &traceFlags{kind: traceKind{title: "alerts", only: orb8v1.EventKind_EVENT_KIND_ALERT, probe: "exec", past: true}}
	cmd := &cobra.Command{Use: "alerts", Short: "Show what rules found", Long: alertsLong, Example: alertsExamples, GroupID: groupSee}
	filters := newFlagSet()
	f.filters.bindExtra(filters, "rule", "severity", "executable")
	f.filters.bind(filters, processFilters()...)
	return c.newTraceCommand(cmd, f, filters)
}

// offRules says where rules are off that are asked for by name.
func (f *traceFlags) offRules(src *source) []string {
	var lines []string
	for _, rule := range f.filters.positive.GetRules() {
		var nodes []string
		for _, s := range src.statuses() {
			if slices.Contains(s.GetRulesOff(), rule) {
				nodes = append(nodes, s.GetNodeName())
			}
		}
		if len(nodes) > 0 {
			lines = append(lines, "the rule "+rule+" is off on "+nameNodes(src, nodes)+" (rules_off) and finds nothing there")
		}
	}
	return lines
}

// noAlerts says since when there were none that would be known, and who has looked.
func noAlerts(f *traceFlags, src *source, now time.Time) string {
	what := "no alerts"
	if len(f.filters.asked) > 0 {
		what = "no alerts that match"
	}
	since, watched := f.since.unixNanos(now), 0
	var forgetful []string
	off := map[string]bool{}
	for _, s := range src.statuses() {
		on := slices.ContainsFunc(s.GetProbes(), func(p *orb8v1.ProbeStatus) bool {
			return p.GetName() == f.kind.probe && p.GetState() != orb8v1.ProbeState_PROBE_STATE_OFF
		})
		if !on {
			continue
		}
		watched++
		k := f.keptBy(s)
		since = max(since, k.since, s.GetStartedNs())
		if k.none {
			forgetful = append(forgetful, s.GetNodeName())
		}
		for _, rule := range s.GetRulesOff() {
			if asked := f.filters.positive.GetRules(); len(asked) == 0 || slices.Contains(asked, rule) {
				off[rule] = true
			}
		}
	}
	switch {
	case watched == 0:
		return what + ": the rules run nowhere there (see orb8 status)"
	case len(forgetful) > 0:
		return what + " are kept on " + nameNodes(src, forgetful) + ", whose history is 0: use --follow for those that come"
	}
	if since != 0 {
		what += " since " + time.Unix(0, since).Format(time.DateTime)
	}
	if src.many() {
		what += fmt.Sprintf("; the rules run on %s of %s",
			render.Plural(uint64(watched), "node", "nodes"), render.Plural(uint64(len(src.nodes)), "node", "nodes"))
	} else {
		what += "; the rules run on node " + src.status.GetNodeName()
	}
	if len(off) > 0 {
		what += ", those that are off left out: " + strings.Join(slices.Sorted(maps.Keys(off)), ", ")
	}
	return what
}
