// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cli/render"
)

// trace asks for events and writes them until they end or ctx does.
func (c *Config) trace(cmd *cobra.Command, f *traceFlags) (err error) {
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
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	f.source.cluster.nodes = f.filters.positive.GetNodes()
	src, err := c.open(ctx, &f.source)
	if err != nil {
		return unlessDone(ctx, err)
	}
	defer closing(src.close, &err)
	options.Nodes = src.many()
	if src.local && !f.following() {
		return f.noPast()
	}
	src.warnings = append(src.warnings, f.missing(src)...)
	src.warnings = append(src.warnings, f.beyond(src, time.Now())...)
	src.warnings = append(src.warnings, f.offRules(src)...)
	if err := c.header(f.output.headless(options), f.kind.title, src, &f.filters, cmd); err != nil {
		return err
	}
	if f.calls != nil && !f.output.quiet {
		fmt.Fprintln(c.Stderr, costOf(src, f.duration))
	}
	t := newTracer(c, f, src, options)
	start := time.Now()
	if d := f.deadline(); d > 0 {
		defer time.AfterFunc(d, cancel).Stop()
	}
	err = t.run(ctx, f.request(filters, start, src))
	if errors.As(err, new(*usageError)) {
		return err
	}
	return errors.Join(err, c.conclude(cmd, t, options, start, err == nil))
}

// conclude says what there was, or if all went well that there was nothing.
func (c *Config) conclude(cmd *cobra.Command, t *tracer, options render.Options, start time.Time, well bool) error {
	f, stopped := t.flags, cmd.Context().Err() != nil
	if well && !t.follow && !stopped {
		for _, line := range f.fewer(t.src, t.records) {
			fmt.Fprintln(c.Stderr, "orb8: warning: "+line)
		}
	}
	switch {
	case t.follow && f.output.summed(options, c.Stderr):
		if well && t.targets != nil && len(t.targets) == 0 {
			fmt.Fprintln(c.Stderr, "nothing was traced: no container matched")
		}
		if t.ended {
			fmt.Fprintf(c.Stderr, "ended by itself after %s; --duration makes it longer or shorter\n", render.Span(f.duration))
		}
		return c.summary(t.summary, time.Since(start), stopped)
	case well && f.kind.past && !t.follow && !t.any && !stopped && !f.output.headless(options):
		fmt.Fprintln(c.Stderr, noAlerts(f, t.src, start))
	}
	return nil
}

// noPast says that what is asked for is not kept where there is no agent.
func (f *traceFlags) noPast() error {
	add := "leave out --last and --since, or add --follow"
	if f.kind.past {
		add = "add --follow for what comes from now on"
	}
	return &failure{what: "the probes in this process have no past to show",
		remedy: []string{add, "or start an agent, which keeps it: sudo orb8 agent"}}
}

// endGrace is how long an agent may take to end a trace of system calls by itself.
const endGrace = 5 * time.Second

// deadline is when the stream is ended here, 0 for never.
func (f *traceFlags) deadline() time.Duration {
	if f.calls != nil {
		return f.duration + endGrace
	}
	return f.duration
}

// unlessDone drops an error that only says that the user stopped the command.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (f *traceFlags) request(filters []*orb8v1.Filter, now time.Time, src *source) *orb8v1.ObserveRequest {
	if f.kind.only == orb8v1.EventKind_EVENT_KIND_PROCESS && !f.exits {
		filters = append(filters, &orb8v1.Filter{Types: []string{"exec"}})
	}
	r := &orb8v1.ObserveRequest{
		Filters:     filters,
		Kinds:       append(f.kinds(), orb8v1.EventKind_EVENT_KIND_NODE_STATUS, orb8v1.EventKind_EVENT_KIND_LOST_EVENTS),
		DnsView:     f.view(),
		Follow:      f.following(),
		SinceNs:     f.since.unixNanos(now),
		Last:        f.last,
		IncludeSelf: f.source.includeSelf,
		Syscalls:    f.calls.request(f.duration),
	}
	if f.kind.past && r.Last == 0 && r.SinceNs == 0 {
		r.SinceNs = 1 // all that is kept
	}
	if f.lastHere(src) {
		// The last N are counted over all nodes and after loopback is left out;
		// with loopback, no node has more than N of them.
		if f.source.noLoopback {
			r.Last, r.SinceNs = 0, max(r.SinceNs, 1)
		}
	}
	return r
}

// lastHere reports whether --last is counted here and not in the agent.
func (f *traceFlags) lastHere(src *source) bool {
	return (f.source.noLoopback || src.many()) && !src.local && f.last > 0 && !f.following()
}

// keeper returns how many flow events to hold back and show at the end, or 0.
func keeper(f *traceFlags, src *source) int {
	if f.lastHere(src) {
		return int(f.last)
	}
	return 0
}

// tracer moves events from a stream to the screen.
type tracer struct {
	src     *source
	flags   *traceFlags
	follow  bool
	summary *render.Summary
	events  liveView
	out     *bufio.Writer
	// keep is how many events of the past to show, the last ones; 0 means all.
	keep    int
	kept    []*orb8v1.Event
	greeted map[string]bool
	// any: something of what was asked for has come. ended: the agent has ended the
	// stream.
	any, ended bool
	// records is how many of those were shown.
	records uint64
	// targets are the nodes on which something was traced, nil before one has told.
	targets map[string]bool
	// window is the size that lines are laid out for; measure tells what it is
	// by now, nil if it never changes.
	window  render.Options
	measure func() render.Options
}

func newTracer(c *Config, f *traceFlags, src *source, options render.Options) *tracer {
	t := &tracer{
		src: src, flags: f, follow: f.following(), summary: render.NewSummary(),
		out: bufio.NewWriter(c.Stdout), keep: keeper(f, src), window: options,
	}
	t.summary.Of = f.subject()
	if isTerminal(c.Stdout) {
		t.measure = func() render.Options { return terminalOptions(c.Stdout, c.Getenv) }
	}
	t.events = newView(t.out, f, src, options, t.measure != nil)
	return t
}

// streamBuffer is how many events may wait for the screen here; what waits
// longer waits in the agent, which counts what it cannot keep.
const streamBuffer = 256

func (t *tracer) run(parent context.Context, req *orb8v1.ObserveRequest) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	// When the user has seen enough, what has happened so far still comes.
	defer context.AfterFunc(parent, func() { t.src.end(ctx, cancel) })()
	stream, err := t.src.ask.Observe(ctx, req)
	if err != nil {
		cancel()
		return unlessDone(parent, explain("observe", t.src.name, err))
	}
	events, end := receive(ctx, stream)
	werr := t.write(events)
	cancel()
	for range events { // until the receiver has ended
	}
	switch err := <-end; {
	case werr != nil:
		return werr
	case parent.Err() != nil:
		return nil
	case !errors.Is(err, io.EOF):
		return explain("observe", t.src.name, err)
	case t.flags.calls != nil:
		t.ended = true
	case t.follow:
		return &failure{what: t.src.name + " ended the stream", remedy: []string{"see whether it still runs: orb8 status"}}
	}
	return nil
}

// receive reads the stream in a goroutine, which ends with the stream or ctx,
// closes the events and sends the reason.
func receive(ctx context.Context, stream events) (<-chan *orb8v1.Event, <-chan error) {
	events, end := make(chan *orb8v1.Event, streamBuffer), make(chan error, 1)
	go func() {
		defer close(events)
		for {
			ev, err := stream.Recv()
			if err != nil {
				end <- err
				return
			}
			select {
			case events <- ev:
			case <-ctx.Done():
				end <- ctx.Err()
				return
			}
		}
	}()
	return events, end
}

// write writes events until there are no more. It flushes when it would wait.
func (t *tracer) write(events <-chan *orb8v1.Event) error {
	if err := t.events.Titles(); err != nil {
		return err
	}
	for {
		ev, ok, err := t.next(events)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := t.take(ev); err != nil {
			return err
		}
	}
	for _, ev := range t.kept {
		if err := t.show(ev); err != nil {
			return err
		}
	}
	if v, ok := t.events.(finisher); ok {
		if err := v.Finish(); err != nil {
			return err
		}
	}
	return t.out.Flush()
}

func (t *tracer) next(events <-chan *orb8v1.Event) (*orb8v1.Event, bool, error) {
	select {
	case ev, ok := <-events:
		return ev, ok, nil
	default:
	}
	if v, ok := t.events.(drawer); ok {
		if err := v.Draw(); err != nil {
			return nil, false, err
		}
	}
	if err := t.out.Flush(); err != nil {
		return nil, false, err
	}
	ev, ok := <-events
	return ev, ok, t.resize()
}

// resize follows the window's size, under new titles if the width is another.
func (t *tracer) resize() error {
	if t.measure == nil {
		return nil
	}
	was, is := t.window, t.measure()
	if is.Width == was.Width && is.Height == was.Height {
		return nil
	}
	t.window = is
	t.events.Resize(is.Width, is.Height)
	if is.Width == was.Width {
		return nil
	}
	return t.events.Titles()
}

func (t *tracer) take(ev *orb8v1.Event) error {
	loopback, isRecord := recordOf(ev)
	t.any = t.any || isRecord
	switch {
	case t.greeting(ev) || t.idle(ev):
		return nil
	case !isRecord:
		return t.show(ev)
	case t.flags.source.noLoopback && loopback:
		return nil
	case t.keep > 0:
		if len(t.kept) == t.keep {
			t.kept = t.kept[1:]
		}
		t.kept = append(t.kept, ev)
		return nil
	}
	return t.show(ev)
}

func (t *tracer) show(ev *orb8v1.Event) error {
	if _, isRecord := recordOf(ev); isRecord {
		t.records++
	}
	t.summary.Add(ev)
	return t.events.Write(ev)
}

// greeting reports whether ev is the status that opens a stream and says no
// more than that the node is there.
func (t *tracer) greeting(ev *orb8v1.Event) bool {
	n := ev.GetNodeStatus()
	if n == nil || t.greeted[n.GetNodeName()] || t.src.joined(n.GetNodeName()) {
		return false
	}
	if t.greeted == nil {
		t.greeted = map[string]bool{}
	}
	t.greeted[n.GetNodeName()] = true
	return n.GetState() != orb8v1.NodeState_NODE_STATE_UNAVAILABLE
}

// idle reports whether ev only says that one of several nodes has nothing to trace.
func (t *tracer) idle(ev *orb8v1.Event) bool {
	x := ev.GetSyscallTargets()
	if x == nil {
		return false
	}
	if t.targets == nil {
		t.targets = map[string]bool{}
	}
	if len(x.GetWorkloads()) > 0 {
		t.targets[ev.GetNodeName()] = true
	}
	return t.src.many() && !t.targets[ev.GetNodeName()] && t.window.Format != render.JSON
}

// recordOf reports whether an event is one of those that are asked for, rather than
// about them, and whether it is about the loopback interface.
func recordOf(ev *orb8v1.Event) (loopback, ok bool) {
	switch x := ev.GetEvent().(type) {
	case *orb8v1.Event_Flow:
		return x.Flow.GetLoopback(), true
	case *orb8v1.Event_Connection:
		return x.Connection.GetFlow().GetLoopback(), true
	case *orb8v1.Event_Dns:
		return x.Dns.GetLoopback(), true
	case *orb8v1.Event_Drop:
		return x.Drop.GetLoopback(), true
	case *orb8v1.Event_ListenOverflow:
		return x.ListenOverflow.GetLoopback(), true
	case *orb8v1.Event_Process, *orb8v1.Event_Alert, *orb8v1.Event_Syscall, *orb8v1.Event_SyscallSummary:
		return false, true
	}
	return false, false
}
