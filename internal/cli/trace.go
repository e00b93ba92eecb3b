// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/spf13/pflag"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"

	"github.com/Ignoramuss/orb8/internal/cli/render"
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

The source is this host's agent if one answers, else all agents of the
kubeconfig's current cluster, or those of --node, else, as root on Linux, probes
that run in this process for as long as the command does. Agents of a cluster are
reached through its API server, which takes the rights to list pods and to create
pods/portforward in the agents' namespace. Their events come merged by time; a
node that does not answer is named, and tried again.

Columns: LOCAL is this host's end, REMOTE the other. The arrow tells who opened
the flow: → this end, ← the other, ↔ not known. TX and RX are what was sent and
received since the flow's last line: of TCP payload bytes, in which HTTP headers and TLS
count, IP bytes for all else. RTT is the smoothed round-trip time, RETR the segments sent
again since the connection began (not since the last line). NOTE says how a connection ended, unless in order; lo is the
loopback interface. A connection that was opened and closed within a sample has one line,
its close.

With -o json every line is an orb8.v1.Event (api/orb8/v1/orb8.proto): a flow, a
connection, a change of the node's status, or lost events; 64-bit numbers are strings, as
JSON of protobuf has them (jq: tonumber). A header and, at the
end, a summary go to standard error; with -o json only the summary, and only to
a terminal. What is lost on the way is said in the stream.`

const traceNetworkExamples = `  sudo orb8 trace network                           # everything, until Ctrl-C
  orb8 trace network --protocol tcp --port 443      # by an agent that runs here
  orb8 trace network --not --ip 10.0.0.0/8          # what leaves the network
  orb8 trace network --failed                       # refused, timed out, unreachable: who, to whom
  orb8 trace network --type reset,retransmit -A
  orb8 trace network --from shop/cart --to shop/db  # by who opened the connection
  orb8 trace network --process curl,wget -o wide | less -S
  orb8 trace network --last 20                      # what happened, then exit
  orb8 trace network --since 5m --follow            # what happened, and go on
  orb8 trace network --duration 10s -o json | jq 'select(.connection).connection.flow.remote.ip'
  orb8 trace network --agent 10.0.0.5               # an agent on another host
  orb8 trace network --namespace default            # pods of a cluster, on all nodes
  orb8 trace network --context prod --node n1,n2    # on two nodes of another cluster`

// traceKind is what one kind of records brings to the trace command, which has all else:
// where the events come from, filters, time span, output, summary, losses.
type traceKind struct {
	// title says what is watched, probe who sees it if that may be off.
	title, probe string
	kinds        []orb8v1.EventKind
	// filters are the flags about events that the kind has, subjects those about whom
	// records are of, all if empty.
	filters, subjects []string
	// devices: it is accelerators that are watched, which no probe sees.
	devices bool
	// past: it is the past that is asked for, unless the command is told to follow.
	past bool
	// noTraffic: the flags of traffic make no sense.
	noTraffic bool
	// flags adds others to those of the filters; nil for none. more is a group of its own,
	// with its title.
	flags     func(*pflag.FlagSet)
	moreTitle string
	more      func(*pflag.FlagSet)
	// ends: it ends by itself, after a minute if nothing is said, and has no past.
	ends bool
	// check looks at the flags; nil if there is nothing to say.
	check func(*traceFlags) error
	// local says what the probes in this process are to look at; nil for all.
	local func(*sourceFlags)
	// request completes a request; nil if there is nothing to add.
	request func(*orb8v1.ObserveRequest)
	// idle reports whether an event of a node is not worth a line; nil if all are.
	idle func(ev *orb8v1.Event, src *source, json bool) bool
	// after says what is to be said when it is over; nil for nothing.
	after func(well bool) []string
	// about says what else is to be said before the lines, everything or only what the
	// user should know; nil for nothing.
	about   func(ctx context.Context, src *source, all bool) ([]string, error)
	lines   func(io.Writer, render.Options) render.Live
	summary func() *render.Summary
	// of reports whether an event is of the kind, and stays on the loopback interface.
	of func(*orb8v1.Event) (loopback, ok bool)
}

// traceFlags are those of every live trace.
type traceFlags struct {
	kind     traceKind
	filters  filterFlags
	source   sourceFlags
	output   outputFlags
	duration time.Duration
	since    sinceValue
	until    sinceValue
	last     uint32
	follow   bool
}

func newTraceNetwork(c *Config) *cobra.Command {
	return c.newTrace(&cobra.Command{
		Use:     "network",
		Aliases: []string{"net"},
		Short:   "Watch network flows and connections",
		Long:    traceNetworkLong,
		Example: traceNetworkExamples,
	}, traceKind{
		title:   "network flows",
		kinds:   []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW, orb8v1.EventKind_EVENT_KIND_CONNECTION},
		filters: []string{"type", "failed", "name", "from", "to"},
		lines:   func(w io.Writer, o render.Options) render.Live { return render.NewEvents(w, o) },
		summary: render.NewSummary,
		of: func(ev *orb8v1.Event) (loopback, ok bool) {
			f, ok := flowOf(ev)
			return f.GetLoopback(), ok
		},
	})
}

// newTrace completes the command that watches one kind of records.
func (c *Config) newTrace(cmd *cobra.Command, kind traceKind) *cobra.Command {
	f := &traceFlags{kind: kind}
	cmd.Args = noArguments
	cmd.RunE = running(func(cmd *cobra.Command) error { return c.trace(cmd, f) })

	filters, span, source, output := newFlagSet(), newFlagSet(), newFlagSet(), newFlagSet()
	f.filters.bindEvents(filters, kind.filters...)
	if kind.flags != nil {
		kind.flags(filters)
	}
	f.filters.bind(filters, kind.subjects...)
	switch {
	case !kind.noTraffic:
		f.source.bindTraffic(filters)
	case !kind.devices:
		f.source.bindSelf(filters)
	}
	if kind.ends {
		span.DurationVar(&f.duration, "duration", defaultTrace, "end by itself after `TIME`, at most 1h")
	} else {
		f.bindPast(span)
	}
	if kind.noTraffic {
		f.source.bindSource(source)
	} else {
		f.source.bind(source)
	}
	f.output.bind(output)
	f.output.bindQuiet(output)
	groups := []flagGroup{{filtersTitle, filters}}
	if kind.more != nil {
		more := newFlagSet()
		kind.more(more)
		groups = append(groups, flagGroup{kind.moreTitle, more})
	}
	groupFlags(cmd, append(groups, flagGroup{"Time", span}, flagGroup{"Source", source}, flagGroup{"Output", output})...)
	completeValues(cmd)
	return cmd
}

// bindPast adds the flags of what was and what is to come.
func (f *traceFlags) bindPast(span *pflag.FlagSet) {
	span.DurationVar(&f.duration, "duration", 0, "stop after `TIME`, as in 30s")
	span.Uint32Var(&f.last, "last", 0, "the latest `N` events that the agent keeps, then exit; with --follow, of each node")
	span.Var(&f.since, "since", "events since then, as in 5m, 09:30 or 2026-11-23T09:00:00Z, then exit")
	span.Var(&f.until, "until", "with --since or --last: no events of later than then")
	follow := "after --last or --since go on with what happens (the default without them)"
	if f.kind.past {
		follow = "then go on with what happens"
	}
	span.BoolVarP(&f.follow, "follow", "f", false, follow)
}

const filtersTitle = "Filters (repeatable; values of one flag are alternatives, all flags must match)"

func (f *traceFlags) check(cmd *cobra.Command) error {
	if f.kind.noTraffic {
		f.source.interval, f.source.packet = time.Second, "off"
	}
	if f.kind.local != nil {
		f.kind.local(&f.source)
	}
	changed := cmd.Flags().Changed
	switch {
	case changed("duration") && f.duration <= 0:
		return usagef("--duration %s: want more than 0", f.duration)
	case changed("last") && f.last == 0:
		return usagef("--last 0: want at least 1")
	case f.until.set() && !f.history():
		return usagef("--until ends what --since or --last begins: give one of them")
	case f.until.set() && f.following():
		return usagef("--until and --follow exclude each other, as --until and --duration do")
	case f.until.set() && f.since.set() && f.until.unixNanos(time.Now()) < f.since.unixNanos(time.Now()):
		return usagef("--until is before --since")
	}
	if f.kind.check != nil {
		if err := f.kind.check(f); err != nil {
			return err
		}
	}
	return f.source.check(cmd)
}

// defaultTrace is after which time what ends by itself does so, endGrace how long that may
// take.
const (
	defaultTrace = time.Minute
	endGrace     = 5 * time.Second
)

// deadline is when the stream is ended here, 0 for never.
func (f *traceFlags) deadline() time.Duration {
	if f.kind.ends {
		return f.duration + endGrace
	}
	return f.duration
}

// history reports whether the past is asked for.
func (f *traceFlags) history() bool { return f.kind.past || f.last > 0 || f.since.set() }

// following: a duration makes sense only for what is still to come.
func (f *traceFlags) following() bool { return f.follow || f.duration > 0 || !f.history() }
