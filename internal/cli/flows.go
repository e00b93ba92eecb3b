// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
	"github.com/Ignoramuss/orb8/internal/cluster"
)

const flowsLong = `Show the flow table: every flow that is open, or was until half a minute ago, with
its totals, both directions in one row.

The source is this host's agent if one answers, else all agents of the
kubeconfig's current cluster, or those of --node, else, as root on Linux, probes
that run in this process; those know TCP connections that are older than
they are, but no other traffic, so they look for a while (--duration) first.

With --since it is all flows with traffic since then, also those that have left the table,
as they were last told of. The agent keeps the latest few thousand events (its setting
history): where that is less than what was asked for, a line below the table says so.

Columns: as for 'orb8 trace network', but TX and RX are totals since the flow
began. AGE is how long ago that was, IDLE how long ago it last did anything.

With --by the flows are added up: by process (command/pid), workload, namespace, remote end
or port (that of the server). TX/s and RX/s are of the last second, or since the last
refresh; TX and RX of all flows that are in the table. Of a connection within this host both
ends are flows, so that bytes are sent by one and received by the other. With -o json
every line is an object with numbers: by, key, flows, txBytes, rxBytes, retransmits,
txBytesPerSecond, rxBytesPerSecond.

With --dns there is a row for each name that a workload asked DNS for within the last
ten minutes. It counts the queries since the name was first asked for: NXDOMAIN, FAILED
(any other error) and TIMEOUT those that brought nothing; SEARCH stands at the name that
was found and counts the queries, in other rows, that failed only because the resolver
appended a search domain to it first (ndots). MEAN and MAX are of the latency. Filters
choose the queries that are counted: by pod, container, command, address, the server's
port. A node has room for some 8,000 names; where more were asked for, a line below the
table says how many are missing, and the workloads that ask for most lack them.

With -o json every line is an orb8.v1.Event with a flow in it, as in
'orb8 trace network'. A node of a cluster that does not answer is named below the
table, with -o json by an event with a nodeStatus.`

const flowsExamples = `  orb8 flows                                    # most bytes first
  orb8 flows --limit 20 --sort rtt
  orb8 flows --watch --sort last                # refreshed until Ctrl-C
  orb8 flows --by process                       # who uses the network now, in bytes a second
  orb8 flows --by remote --watch --no-loopback  # with whom, refreshed
  orb8 flows --since 10s --protocol udp
  orb8 flows --dns --sort search                # who asks how often in vain
  orb8 flows -A --workload frontend             # of a cluster, on all nodes
  orb8 flows --context prod --node n1 -n web    # on one node of another cluster
  orb8 flows --process nginx -o wide | less -S
  orb8 flows -o json | jq -r '[.flow.process.command, .flow.total.txBytes] | @tsv'`

// tableLimit is the default number of rows for eyes; programs get all.
const tableLimit = 50

// flowsFlags are those of `orb8 flows`.
type flowsFlags struct {
	filters  filterFlags
	source   sourceFlags
	output   outputFlags
	since    sinceValue
	limit    uint32
	sort     string
	watch    bool
	every    time.Duration
	duration time.Duration
	dns      bool
	by       string
}

func newFlows(c *Config) *cobra.Command {
	var f flowsFlags
	cmd := &cobra.Command{
		Use:     "flows",
		Short:   "Show the flow table",
		Long:    flowsLong,
		Example: flowsExamples,
		GroupID: groupSee,
		Args:    noArguments,
	}
	cmd.RunE = running(func(cmd *cobra.Command) error { return c.flows(cmd, &f) })

	filters, rows, source, output := newFlagSet(), newFlagSet(), newFlagSet(), newFlagSet()
	f.filters.bindEvents(filters, "name", "from", "to")
	f.filters.bind(filters)
	f.source.bindTraffic(filters)
	rows.BoolVar(&f.dns, "dns", false, "instead: which names each workload asked DNS for, until ten minutes ago or later, and what came of it")
	rows.StringVar(&f.by, "by", "", "instead: flows added up by `WHAT`, with bytes a second, most first: "+strings.Join(render.GroupKeys(), ", "))
	rows.Uint32Var(&f.limit, "limit", tableLimit, "at most `N` rows, 0 for all; -o json and compact have all by default")
	rows.StringVar(&f.sort, "sort", "bytes", "sort by `KEY`, largest or latest first: "+strings.Join(sortNames(), ", ")+"; with --dns: "+strings.Join(dnsSortNames(), ", "))
	rows.Var(&f.since, "since", "flows with traffic since then, as in 10m, 09:30 or 2026-11-23T09:00:00Z, also those that have ended, as far as the agent's history goes back")
	rows.BoolVarP(&f.watch, "watch", "w", false, "refresh until Ctrl-C")
	rows.BoolVarP(&f.watch, "follow", "f", false, "the same as --watch")
	rows.DurationVar(&f.every, "every", 2*time.Second, "`TIME` between two refreshes")
	rows.DurationVar(&f.duration, "duration", 0, "with --watch: stop after `TIME`; else how long probes in this process look first (default 1s)")
	f.source.bind(source)
	f.output.bind(output)
	f.output.bindQuiet(output)
	groupFlags(cmd,
		flagGroup{filtersTitle, filters}, flagGroup{"Rows", rows},
		flagGroup{"Source", source}, flagGroup{"Output", output})
	completeValues(cmd)
	return cmd
}

func sortKeys() map[string]orb8v1.Sort {
	return map[string]orb8v1.Sort{
		"bytes": orb8v1.Sort_SORT_BYTES, "packets": orb8v1.Sort_SORT_PACKETS, "rtt": orb8v1.Sort_SORT_RTT,
		"retransmits": orb8v1.Sort_SORT_RETRANSMITS, "last": orb8v1.Sort_SORT_LAST_SEEN,
	}
}

// sortedColumn is the column that rows are sorted by, which is always shown.
func sortedColumn(key string) []string {
	return map[string][]string{
		"bytes": {"TX", "RX"}, "packets": {"PACKETS"}, "rtt": {"RTT"}, "retransmits": {"RETR"}, "last": {"IDLE", "LAST"},
		"queries": {"QUERIES"}, "nxdomain": {"NXDOMAIN"}, "failed": {"FAILED"}, "search": {"SEARCH"}, "latency": {"MAX"},
	}[key]
}

func sortNames() []string { return slices.Sorted(maps.Keys(sortKeys())) }

func (f *flowsFlags) check(cmd *cobra.Command) error {
	if f.dns {
		f.source.only = onlyDNS
	}
	changed := cmd.Flags().Changed
	switch {
	case f.by != "" && !slices.Contains(render.GroupKeys(), f.by):
		return usagef("--by %q: use %s", f.by, strings.Join(render.GroupKeys(), ", "))
	case f.by != "" && f.dns:
		return usagef("--by and --dns exclude each other")
	case f.by != "" && f.since.set():
		return usagef("--by adds up the flows that there are now: leave out --since")
	case f.by != "" && changed("sort"):
		return usagef("--by has most bytes a second first: leave out --sort")
	case f.dns && f.watch:
		return usagef("--dns and --watch exclude each other: orb8 trace dns follows")
	case f.dns && f.filters.byPID():
		return usagef("--dns counts by command: --process with a process id finds nothing; orb8 trace dns shows single queries")
	case f.dns && !changed("sort"):
		f.sort = "queries"
	case f.dns && dnsSorts()[f.sort] == nil:
		return usagef("--sort %q: with --dns use %s", f.sort, strings.Join(dnsSortNames(), ", "))
	case f.dns:
	case sortKeys()[f.sort] == 0:
		return usagef("--sort %q: use %s", f.sort, strings.Join(sortNames(), ", "))
	case changed("duration") && f.duration <= 0:
		return usagef("--duration %s: want more than 0", f.duration)
	case f.every < 100*time.Millisecond:
		return usagef("--every %s: want 100ms or more", f.every)
	}
	return f.source.check(cmd)
}

// flows shows the flow table once, or again and again.
func (c *Config) flows(cmd *cobra.Command, f *flowsFlags) (err error) {
	options, err := f.output.options(c, c.Stdout)
	if err != nil {
		return err
	}
	if err := f.check(cmd); err != nil {
		return err
	}
	filters, err := f.filters.filters()
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("limit") && (options.Format == render.JSON || options.Format == render.Compact) {
		f.limit = 0
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	f.source.cluster.nodes = f.filters.positive.GetNodes()
	src, err := c.open(ctx, &f.source)
	if err != nil {
		return unlessDone(ctx, err)
	}
	defer closing(src.close, &err)
	options.Nodes, options.Keep = src.many(), sortedColumn(f.sort)
	title := "flow table"
	if f.by != "" {
		title = "flows by " + f.by
	}
	if f.dns {
		title = "names asked for"
		src.warnings = append(src.warnings, absent(src, "dns")...)
	}
	if err := c.header(f.output.headless(options), title, src, &f.filters, cmd); err != nil {
		return err
	}
	if src.local && f.since.set() {
		return &failure{what: "the probes in this process have no past to show",
			remedy: []string{"leave out --since", "or start an agent, which keeps it: sudo orb8 agent"}}
	}
	v := &flowsView{c: c, f: f, src: src, filters: filters, options: options}
	if f.by != "" {
		v.groups = render.NewGroups(f.by)
	}
	if f.watch {
		if f.duration > 0 {
			defer time.AfterFunc(f.duration, cancel).Stop()
		}
		return unlessDone(ctx, v.watch(ctx))
	}
	if src.local {
		sleep(ctx, max(f.duration, f.source.interval))
	}
	switch {
	case f.dns:
		return unlessDone(cmd.Context(), v.dnsNames(ctx))
	case f.by != "":
		return unlessDone(cmd.Context(), v.sums(ctx))
	}
	return unlessDone(cmd.Context(), v.once(ctx))
}

// rateTime is between the two readings that a rate is of.
const rateTime = time.Second

// sums shows the sums once.
func (v *flowsView) sums(ctx context.Context) error {
	rows, _, err := v.snapshot(ctx)
	if err != nil {
		return err
	}
	v.groups.Read(time.Now(), rows)
	sleep(ctx, rateTime)
	if rows, _, err = v.snapshot(ctx); err != nil {
		return err
	}
	groups := v.groups.Read(time.Now(), rows)
	shown := groups[:v.limited(len(groups))]
	if err := render.WriteGroups(v.c.Stdout, v.options, v.f.by, shown); err != nil {
		return err
	}
	if err := v.missing(v.c.Stdout); err != nil {
		return err
	}
	switch {
	case v.f.output.headless(v.options):
	case len(groups) == 0:
		fmt.Fprintln(v.c.Stderr, "no flows")
	case len(shown) < len(groups):
		fmt.Fprintf(v.c.Stderr, "the first %d of %d; --limit 0 shows all\n", len(shown), len(groups))
	}
	return nil
}

// limited is how many of n rows are shown.
func (v *flowsView) limited(n int) int {
	if v.f.limit == 0 {
		return n
	}
	return min(n, int(v.f.limit))
}

// sleep returns after d, or when ctx is done.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// flowsView shows one source's flow table.
type flowsView struct {
	c       *Config
	f       *flowsFlags
	src     *source
	filters []*orb8v1.Filter
	options render.Options
	// away are the NodeStatus of the nodes that the last snapshot lacks.
	away []*orb8v1.Event
	// reach are the HistoryReach of nodes whose past is shorter than what was asked for.
	reach []*orb8v1.Event
	// groups adds rows up, nil if they are shown.
	groups *render.Groups
}

func (v *flowsView) once(ctx context.Context) error {
	rows, more, err := v.snapshot(ctx)
	if err != nil {
		return err
	}
	if v.f.since.set() {
		if rows, more, err = v.withEnded(ctx, rows); err != nil {
			return err
		}
	}
	if err := render.Flows(v.c.Stdout, v.options, time.Now(), rows); err != nil {
		return err
	}
	if err := v.missing(v.c.Stdout); err != nil {
		return err
	}
	if v.f.output.headless(v.options) {
		return nil
	}
	switch {
	case len(rows) == 0:
		fmt.Fprintln(v.c.Stderr, "no flows")
	case more:
		fmt.Fprintf(v.c.Stderr, "the first %s; --limit 0 shows all\n", render.Plural(uint64(len(rows)), "flow", "flows"))
	}
	return nil
}

// withEnded adds flows that have left the table, as they were last told of.
func (v *flowsView) withEnded(ctx context.Context, rows []*orb8v1.Event) (all []*orb8v1.Event, more bool, err error) {
	since := v.f.since.unixNanos(time.Now())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := v.src.ask.Observe(ctx, &orb8v1.ObserveRequest{
		Filters: v.filters, Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW},
		SinceNs: since, IncludeSelf: v.f.source.includeSelf, NoLoopback: v.f.source.noLoopback,
	})
	if err != nil {
		return nil, false, explain("read the history", v.src.name, err)
	}
	there := make(map[string]bool, len(rows))
	for _, ev := range rows {
		there[render.FlowKey(ev)] = true
	}
	ended := make(map[string]*orb8v1.Event)
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, explain("read the history", v.src.name, err)
		}
		switch {
		case ev.GetHistoryReach() != nil:
			v.reach = append(v.reach, ev)
		case ev.GetFlow() == nil, ev.GetFlow().GetLastSeenNs() < since, v.f.source.noLoopback && ev.GetFlow().GetLoopback():
		default:
			if key := render.FlowKey(ev); !there[key] {
				ended[key] = ev
			}
		}
	}
	rows = slices.AppendSeq(rows, maps.Values(ended))
	by := sortKeys()[v.f.sort]
	slices.SortStableFunc(rows, func(a, b *orb8v1.Event) int {
		return cmp.Or(cmp.Compare(cluster.SortKey(b.GetFlow(), by), cluster.SortKey(a.GetFlow(), by)), cmp.Compare(render.FlowKey(a), render.FlowKey(b)))
	})
	n := v.limited(len(rows))
	return rows[:n], n < len(rows), nil
}

// missing names the nodes whose rows are not there: to programs as events among
// the rows, to people below the table. A node is never left out in silence.
func (v *flowsView) missing(w io.Writer) error {
	for _, ev := range append(slices.Clone(v.away), v.reach...) {
		if v.options.Format == render.JSON {
			if err := render.WriteJSON(w, ev); err != nil {
				return err
			}
		}
	}
	if v.options.Format == render.JSON {
		w = v.c.Stderr
	}
	for _, line := range append(render.Away(v.options, v.away), render.Reaches(v.options, v.reach)...) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// watch shows the table again and again, on a terminal in place.
func (v *flowsView) watch(ctx context.Context) error {
	inPlace := isTerminal(v.c.Stdout) && v.options.Format != render.JSON
	if inPlace {
		// What is on the screen moves up instead of being overwritten.
		_, err := io.WriteString(v.c.Stdout, strings.Repeat("\n", max(v.options.Height-1, 0)))
		if err != nil {
			return err
		}
	}
	for {
		rows, _, err := v.snapshot(ctx)
		if err != nil {
			return err
		}
		if err := v.frame(rows, inPlace); err != nil {
			return err
		}
		if sleep(ctx, v.f.every); ctx.Err() != nil {
			return nil
		}
	}
}

// frame writes one round of watch.
func (v *flowsView) frame(rows []*orb8v1.Event, inPlace bool) error {
	now := time.Now()
	if inPlace { // the window may have changed
		window := terminalOptions(v.c.Stdout, v.c.Getenv)
		v.options.Width, v.options.Height = window.Width, window.Height
	}
	var text bytes.Buffer
	shown, what := len(rows), "flow"
	if v.groups != nil {
		groups := v.groups.Read(now, rows)
		groups = groups[:v.limited(len(groups))]
		shown, what = len(groups), v.f.by
		if err := render.WriteGroups(&text, v.options, v.f.by, groups); err != nil {
			return err
		}
	} else if err := render.Flows(&text, v.options, now, rows); err != nil {
		return err
	}
	if err := v.missing(&text); err != nil {
		return err
	}
	if inPlace {
		sort := v.f.sort
		if v.groups != nil {
			sort = "bytes a second"
		}
		title := fmt.Sprintf("%s  %s, by %s, from %s", now.Format(time.TimeOnly),
			render.Plural(uint64(shown), what, plural(what)), sort, v.src.name)
		_, err := io.WriteString(v.c.Stdout, screen(title+"\n"+text.String(), v.options.Height))
		return err
	}
	if v.options.Format == render.Table || v.options.Format == render.Wide {
		text.WriteByte('\n')
	}
	_, err := v.c.Stdout.Write(text.Bytes())
	return err
}

// plural of what rows are.
func plural(what string) string {
	if strings.HasSuffix(what, "s") {
		return what + "es"
	}
	return what + "s"
}

// Terminal control: to the top left, clear to the end of line or screen, break
// long lines or not (DECAWM).
const (
	cursorHome = "\x1b[H"
	clearLine  = "\x1b[K"
	clearBelow = "\x1b[J"
	wrapOff    = "\x1b[?7l"
	wrapOn     = "\x1b[?7h"
)

// screen puts text over what is on the screen. It keeps to the screen's height
// and width, so that the top never scrolls away.
func screen(text string, height int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if height > 1 && len(lines) > height-1 {
		lines = lines[:height-1]
	}
	return wrapOff + cursorHome + strings.Join(lines, clearLine+"\n") + clearLine + "\n" + clearBelow + wrapOn
}

// snapshot fetches the rows; more reports whether the limit cut some off.
func (v *flowsView) snapshot(ctx context.Context) (rows []*orb8v1.Event, more bool, err error) {
	f, since := v.f, v.f.since.unixNanos(time.Now())
	req := &orb8v1.ObserveRequest{
		Filters: v.filters, Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_FLOW},
		Snapshot: true, Sort: sortKeys()[f.sort], IncludeSelf: f.source.includeSelf,
		NoLoopback: f.source.noLoopback, ActiveSinceNs: since,
	}
	if limit := f.limit; limit > 0 && limit < 1<<31 && since == 0 && !f.source.noLoopback && v.groups == nil {
		req.Limit = limit + 1 // one more tells whether there are more
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v.away = nil
	stream, err := v.src.ask.Observe(ctx, req)
	if err != nil {
		return nil, false, explain("read the flow table", v.src.name, err)
	}
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return rows, false, nil
		}
		if err != nil {
			return nil, false, explain("read the flow table", v.src.name, err)
		}
		flow := ev.GetFlow()
		if v.src.many() && ev.GetNodeStatus().GetState() == orb8v1.NodeState_NODE_STATE_UNAVAILABLE {
			v.away = append(v.away, ev)
		}
		if flow == nil || flow.GetLastSeenNs() < since || f.source.noLoopback && flow.GetLoopback() {
			continue
		}
		if f.limit > 0 && len(rows) == int(f.limit) && v.groups == nil && (since == 0 || f.watch) {
			return rows, true, nil
		}
		rows = append(rows, ev)
	}
}
