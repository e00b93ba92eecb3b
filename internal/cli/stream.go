// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
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
	if slices.Contains(f.filters.positive.GetTypes(), "retransmit") {
		options.Keep = []string{"RETR"}
	}
	if src.local && !f.following() {
		return &failure{what: "the probes in this process have no past to show",
			remedy: []string{"leave out --last and --since, or add --follow", "or start an agent, which keeps it: sudo orb8 agent"}}
	}
	src.warnings = append(src.warnings, absent(src, f.kind.probe)...)
	if err := c.header(f.output.headless(options), f.kind.title, src, &f.filters, cmd); err != nil {
		return err
	}
	if f.kind.about != nil {
		lines, err := f.kind.about(ctx, src, !f.output.headless(options))
		if err != nil {
			return unlessDone(ctx, err)
		}
		for _, line := range lines {
			fmt.Fprintln(c.Stderr, line)
		}
	}
	t := newTracer(c, f, src, options)
	start := time.Now()
	if d := f.deadline(); d > 0 {
		defer time.AfterFunc(d, cancel).Stop()
	}
	err = t.run(ctx, f.request(filters, start, src))
	if f.kind.after != nil && f.output.summed(options, c.Stderr) {
		for _, line := range f.kind.after(err == nil) {
			fmt.Fprintln(c.Stderr, line)
		}
		if t.ended {
			fmt.Fprintf(c.Stderr, "ended by itself after %s; --duration makes it longer or shorter\n", render.Span(f.duration))
		}
	}
	if t.follow && f.output.summed(options, c.Stderr) && !errors.As(err, new(*usageError)) {
		err = errors.Join(err, c.summary(t.summary, time.Since(start), cmd.Context().Err() != nil))
	}
	return err
}

// unlessDone drops an error that only says that the user stopped the command.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (f *traceFlags) request(filters []*orb8v1.Filter, now time.Time, src *source) *orb8v1.ObserveRequest {
	r := &orb8v1.ObserveRequest{
		Filters:     filters,
		Kinds:       append(slices.Clone(f.kind.kinds), orb8v1.EventKind_EVENT_KIND_NODE_STATUS, orb8v1.EventKind_EVENT_KIND_LOST_EVENTS),
		Follow:      f.following(),
		SinceNs:     f.since.unixNanos(now),
		Last:        f.last,
		IncludeSelf: f.source.includeSelf, NoLoopback: f.source.noLoopback,
	}
	if f.kind.past && !src.local && r.GetLast() == 0 {
		r.SinceNs = max(r.GetSinceNs(), 1) // all that is kept
	}
	if f.lastHere(src) {
		// The last N are counted over all nodes and after loopback is left out;
		// with loopback, no node has more than N of them.
		if f.source.noLoopback || f.until.set() {
			r.Last, r.SinceNs = 0, max(r.SinceNs, 1)
		}
	}
	if f.kind.request != nil {
		f.kind.request(r)
	}
	return r
}

// absent names the nodes whose agents do not see what is watched.
func absent(src *source, probe string) []string {
	var old, off []render.Said
	for _, s := range src.statuses() {
		i := slices.IndexFunc(s.GetProbes(), func(p *orb8v1.ProbeStatus) bool { return p.GetName() == probe })
		switch {
		case probe == "":
		case i < 0:
			old = append(old, render.Said{Node: s.GetNodeName()})
		case s.GetProbes()[i].GetState() == orb8v1.ProbeState_PROBE_STATE_IDLE: // until somebody asks
		case s.GetProbes()[i].GetState() != orb8v1.ProbeState_PROBE_STATE_RUNNING:
			p := s.GetProbes()[i]
			why := p.GetReason()
			if p.GetRemedy() != "" {
				why += " (" + p.GetRemedy() + ")"
			}
			off = append(off, render.Said{Node: s.GetNodeName(), Text: why})
		}
	}
	without := "has no " + probe + " probe: it is of another version"
	warnings := render.Together(old, "the agent on %s "+without, "the agent on %d nodes "+without)
	return append(warnings, render.Together(off, "the "+probe+" probe on %s is off", "the "+probe+" probe on %d nodes is off")...)
}

// lastHere reports whether --last is counted here and not in the agent.
func (f *traceFlags) lastHere(src *source) bool {
	return (f.source.noLoopback || f.until.set() || src.many()) && !src.local && f.last > 0 && !f.following()
}

// keeper returns how many flow events to hold back and show at the end, or 0.
func keeper(f *traceFlags, src *source) int {
	if f.lastHere(src) {
		return int(f.last)
	}
	return 0
}

func meanings(all []*orb8v1.AgentStatus) map[string]string {
	m := map[string]string{}
	for _, s := range all {
		for _, l := range s.GetLosses() {
			m[l.GetStage()] = l.GetMeaning()
		}
	}
	return m
}

// tracer moves events from a stream to the screen.
type tracer struct {
	src     *source
	flags   *traceFlags
	follow  bool
	summary *render.Summary
	events  render.Live
	out     *bufio.Writer
	// keep is how many events of the past to show, the last ones; 0 means all.
	keep int
	kept []*orb8v1.Event
	// until is after when events are left out, 0 for never.
	until   int64
	greeted map[string]bool
	// ended: the stream came to its end by itself.
	ended bool
	// window is the size that lines are laid out for; measure tells what it is
	// by now, nil if it never changes.
	window  render.Options
	measure func() render.Options
}

func newTracer(c *Config, f *traceFlags, src *source, options render.Options) *tracer {
	t := &tracer{
		src: src, flags: f, follow: f.following(), summary: f.kind.summary(),
		out: bufio.NewWriter(c.Stdout), keep: keeper(f, src), window: options, until: f.until.unixNanos(time.Now()),
	}
	if isTerminal(c.Stdout) {
		t.measure = func() render.Options { return terminalOptions(c.Stdout, c.Getenv) }
	}
	t.events = f.kind.lines(t.out, options)
	t.events.Explain(meanings(src.statuses()))
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
	events, end := receive(stream)
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
	case t.flags.kind.ends:
		t.ended = true
	case t.follow:
		return &failure{what: t.src.name + " ended the stream", remedy: []string{"see whether it still runs: orb8 status"}}
	}
	return nil
}

// receive reads the stream in a goroutine, which ends with the stream, closes the events and
// sends the reason. The events must be read until they are closed: when the stream's context is
// done, what it held back to order it still comes.
func receive(stream events) (<-chan *orb8v1.Event, <-chan error) {
	events, end := make(chan *orb8v1.Event, streamBuffer), make(chan error, 1)
	go func() {
		defer close(events)
		for {
			ev, err := stream.Recv()
			if err != nil {
				end <- err
				return
			}
			events <- ev
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

// finisher is a renderer that has something to write at the end, and over what it has
// written before whenever it would wait.
type finisher interface {
	Draw() error
	Finish() error
}

func (t *tracer) next(events <-chan *orb8v1.Event) (*orb8v1.Event, bool, error) {
	select {
	case ev, ok := <-events:
		return ev, ok, nil
	default:
	}
	if v, ok := t.events.(finisher); ok {
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
	loopback, ok := t.flags.kind.of(ev)
	switch {
	case t.greeting(ev), t.flags.kind.devices && t.src.local && ev.GetNodeStatus() != nil: // no probe is wanted
		return nil
	case t.flags.kind.idle != nil && t.flags.kind.idle(ev, t.src, t.window.Format == render.JSON):
		return nil
	case !ok:
		return t.show(ev)
	case t.flags.source.noLoopback && loopback, t.until > 0 && ev.GetTimeNs() > t.until:
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

func flowOf(ev *orb8v1.Event) (*orb8v1.Flow, bool) {
	switch x := ev.GetEvent().(type) {
	case *orb8v1.Event_Flow:
		return x.Flow, true
	case *orb8v1.Event_Connection:
		return x.Connection.GetFlow(), true
	}
	return nil, false
}
