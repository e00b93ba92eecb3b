// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

func newTrace(c *Config) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "trace",
		Short:   "Watch events as they happen",
		GroupID: groupSee,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTraceNetwork(c), newTraceDNS(c), newTraceExec(c), newTraceSyscall(c), newTraceGPU(c))
	return cmd
}

const traceNetworkLong = `Watch network flows: TCP connections as they open, close and fail, and what every
flow carried since its last line.

The source is an agent on localhost:9090 if one answers, else all agents of the
kubeconfig's current cluster, or those of --node, else, as root on Linux, probes
that run in this process for as long as the command does. Agents of a cluster are
reached through its API server, which takes the rights to list pods and to create
pods/portforward in the agents' namespace. Their events come merged by time; a
node that does not answer is named, and tried again.

Columns: LOCAL is this host's end, REMOTE the other. The arrow tells who opened
the flow: → this end, ← the other, ↔ not known. TX and RX are what was sent and
received since the flow's last line: TCP payload bytes, IP bytes for all else.
RTT is the smoothed round-trip time, RETR the segments sent again since the
connection began. NOTE says how a connection ended, unless in order: refused (a reset,
or ICMP's port unreachable), unreachable (ICMP said so), timeout (the kernel gave up),
aborted (the program gave up before any answer). An attempt for which no SYN was made,
as for want of a route, is not seen. lo is the loopback interface. An address that a workload looked up stands under the name that
it asked for.

--type drop shows packets that the kernel dropped, with the kernel's own reason, and
--type overflow connections that a full listen queue turned away, where a server that
listens at all addresses has the address 0.0.0.0 or ::, so that --pod or --port finds
it and --ip does not; without --type neither is shown. At most 100 drops a second and CPU are told of, all are counted.

With -o json every line is an orb8.v1.Event (api/orb8/v1/orb8.proto): a flow, a
connection, a drop, an overflow, a change of the node's status, or lost events. A header and, at the
end, a summary go to standard error; with -o json only the summary, and only to
a terminal. What is lost on the way is said in the stream.`

const traceNetworkExamples = `  sudo orb8 trace network                           # everything, until Ctrl-C
  orb8 trace network --protocol tcp --port 443      # by an agent that runs here
  orb8 trace network --not --ip 10.0.0.0/8          # what leaves the network
  orb8 trace network --type connect --failed        # refused, timed out, unreachable: who, to whom
  orb8 trace network --type reset,retransmit -A
  orb8 trace network --type drop                    # packets that the kernel dropped, and why
  orb8 trace network --process curl,wget -o wide | less -S
  orb8 trace network --last 20                      # what happened, then exit
  orb8 trace network --since 5m --follow            # what happened, and go on
  orb8 trace network --duration 10s -o json | jq 'select(.connection).connection.flow.remote.ip'
  orb8 trace network --agent 10.0.0.5               # an agent on another host
  orb8 trace network --namespace default            # pods of a cluster, on all nodes
  orb8 trace network --context prod --node n1,n2    # on two nodes of another cluster`

// traceKind is what a trace shows.
type traceKind struct {
	title string
	// only is the kind of the events that are asked for; unspecified for flows and
	// what happens to them.
	only orb8v1.EventKind
	// probe is the one that all of them come from, empty if there are several.
	probe string
	// past: what is kept is shown, and what happens only if that is asked for.
	past bool
}

// traffic: what is shown has two ends on a network.
func (k *traceKind) traffic() bool {
	return k.only == orb8v1.EventKind_EVENT_KIND_UNSPECIFIED || k.only == orb8v1.EventKind_EVENT_KIND_DNS
}

// traceFlags are those of every live trace.
type traceFlags struct {
	kind     traceKind
	filters  filterFlags
	source   sourceFlags
	output   outputFlags
	duration time.Duration
	since    sinceValue
	last     uint32
	follow   bool
	// serverSide: DNS as its servers see it.
	serverSide bool
	// exits: processes that end as well.
	exits bool
	// calls is how system calls are traced, nil where none are.
	calls *callFlags
}

func newTraceNetwork(c *Config) *cobra.Command {
	f := &traceFlags{kind: traceKind{title: "network flows"}}
	cmd := &cobra.Command{
		Use:     "network",
		Aliases: []string{"net"},
		Short:   "Watch network flows and connections",
		Long:    traceNetworkLong,
		Example: traceNetworkExamples,
	}
	filters := newFlagSet()
	f.filters.bind(filters)
	f.filters.bindExtra(filters, "type", "failed", "name")
	return c.newTraceCommand(cmd, f, filters)
}

// newTraceCommand completes a command with the flags that every live trace has.
func (c *Config) newTraceCommand(cmd *cobra.Command, f *traceFlags, filters *pflag.FlagSet) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.RunE = running(func(cmd *cobra.Command) error { return c.trace(cmd, f) })
	span, source, output := newFlagSet(), newFlagSet(), newFlagSet()
	f.bindSpan(span)
	if f.kind.traffic() {
		f.source.bindTraffic(filters)
		f.source.bind(source)
	} else {
		f.source.bindSource(source)
		f.source.interval, f.source.packet = time.Second, "auto"
	}
	f.output.bind(output)
	f.output.bindQuiet(output)
	groups := []flagGroup{{filtersTitle, filters}}
	if f.calls != nil {
		calls := newFlagSet()
		f.calls.bind(calls)
		groups = append(groups, flagGroup{"System calls", calls})
	}
	groupFlags(cmd, append(groups, flagGroup{"Time", span}, flagGroup{"Source", source}, flagGroup{"Output", output})...)
	completeValues(cmd)
	return cmd
}

// bindSpan adds the flags that say from when to when.
func (f *traceFlags) bindSpan(fs *pflag.FlagSet) {
	if f.calls != nil {
		fs.DurationVar(&f.duration, "duration", defaultTrace, "end by itself after `TIME`, at most 1h")
		return
	}
	last := "the latest `N` events that the agent keeps, then exit; with --follow, of each node"
	since := "events since then, as in 5m or 2026-11-23T09:00:00Z, then exit"
	follow := "after --last or --since go on with what happens (the default without them)"
	if f.kind.past {
		last = "only the latest `N`; with --follow, of each node"
		since = "only those since then, as in 1h or 2026-11-23T09:00:00Z"
		follow = "then go on with those that come"
	}
	fs.DurationVar(&f.duration, "duration", 0, "stop after `TIME`, as in 30s")
	fs.Uint32Var(&f.last, "last", 0, last)
	fs.Var(&f.since, "since", since)
	fs.BoolVarP(&f.follow, "follow", "f", false, follow)
}

// kinds are those to ask for. Drops, overflows, processes and alerts come only where
// they are named: of what is shown by default they would be most on a busy node.
func (f *traceFlags) kinds() []orb8v1.EventKind {
	if f.kind.only != orb8v1.EventKind_EVENT_KIND_UNSPECIFIED {
		return []orb8v1.EventKind{f.kind.only}
	}
	kinds := []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW, orb8v1.EventKind_EVENT_KIND_CONNECTION}
	byType := map[string]orb8v1.EventKind{
		"dns": orb8v1.EventKind_EVENT_KIND_DNS, "drop": orb8v1.EventKind_EVENT_KIND_DROP,
		"overflow": orb8v1.EventKind_EVENT_KIND_LISTEN_OVERFLOW,
		"exec":     orb8v1.EventKind_EVENT_KIND_PROCESS, "exit": orb8v1.EventKind_EVENT_KIND_PROCESS,
		"alert": orb8v1.EventKind_EVENT_KIND_ALERT,
	}
	for _, t := range f.filters.positive.GetTypes() {
		if k, ok := byType[strings.ToLower(t)]; ok && !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// onlyDrops: nothing is asked for but what was dropped.
func (f *traceFlags) onlyDrops() bool {
	types := f.filters.positive.GetTypes()
	return len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool {
		t = strings.ToLower(t)
		return t != "drop" && t != "overflow"
	})
}

func (f *traceFlags) view() orb8v1.DnsView {
	switch {
	case f.kind.only != orb8v1.EventKind_EVENT_KIND_DNS:
		return orb8v1.DnsView_DNS_VIEW_UNSPECIFIED
	case f.serverSide:
		return orb8v1.DnsView_DNS_VIEW_SERVER
	}
	return orb8v1.DnsView_DNS_VIEW_CLIENT
}

// missing says where the probes do not run that the trace is about.
func (f *traceFlags) missing(src *source) []string {
	if f.kind.probe != "" {
		return missingProbe(src, f.kind.probe)
	}
	var lines []string
	kinds := f.kinds()
	if slices.Contains(kinds, orb8v1.EventKind_EVENT_KIND_DROP) {
		lines = append(lines, missingProbe(src, "drop")...)
	}
	if slices.Contains(kinds, orb8v1.EventKind_EVENT_KIND_PROCESS) || slices.Contains(kinds, orb8v1.EventKind_EVENT_KIND_ALERT) {
		lines = append(lines, missingProbe(src, "exec")...)
	}
	return lines
}

// missingProbe says on which nodes a probe does not run, and why.
func missingProbe(src *source, name string) []string {
	var lines []string
	for _, s := range src.statuses() {
		why := "its agent is older and has no " + name + " probe"
		for _, p := range s.GetProbes() {
			if p.GetName() != name {
				continue
			}
			why = ""
			if p.GetState() == orb8v1.ProbeState_PROBE_STATE_OFF {
				why = "its " + name + " probe is off: " + p.GetReason()
				if p.GetRemedy() != "" {
					why += " (" + p.GetRemedy() + ")"
				}
			}
		}
		if why != "" {
			lines = append(lines, "nothing can come from node "+s.GetNodeName()+": "+why)
		}
	}
	return lines
}

const filtersTitle = "Filters (repeatable; values of one flag are alternatives, all flags must match)"

func (f *traceFlags) check(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	switch {
	case changed("duration") && f.duration <= 0:
		return usagef("--duration %s: want more than 0", f.duration)
	case changed("last") && f.last == 0:
		return usagef("--last 0: want at least 1")
	}
	if f.calls != nil {
		if err := f.calls.check(f); err != nil {
			return err
		}
	}
	return f.source.check(cmd)
}

// history reports whether the past is asked for.
func (f *traceFlags) history() bool { return f.kind.past || f.last > 0 || f.since.set() }

// following: a duration makes sense only for what is still to come.
func (f *traceFlags) following() bool { return f.follow || f.duration > 0 || !f.history() }
