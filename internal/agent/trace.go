// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/stream"
	"github.com/Ignoramuss/orb8/internal/agent/tracing"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
)

// newTrace reads what a request wants of system calls.
func (s *server) newTrace(req *orb8v1.ObserveRequest, i *stream.Interest) (*tracing.Trace, error) {
	switch {
	case s.agent.deps.Tracer == nil || s.agent.Config().Syscall == config.ModeOff:
		return nil, status.Error(codes.FailedPrecondition, "this agent does not trace system calls (syscall: off)")
	case !req.GetFollow():
		return nil, status.Error(codes.InvalidArgument, "system calls are traced as they happen: follow must be set")
	case slices.ContainsFunc(i.Kinds, func(k orb8v1.EventKind) bool { return !slices.Contains(withCalls, k) }):
		return nil, status.Error(codes.InvalidArgument, "system calls are traced alone: ask for the other kinds in a stream of their own")
	}
	return tracing.NewTrace(req.GetSyscalls(), req.GetFilters(), i.Filters, s.agent.node)
}

// newTraces makes what runs traces.
func (a *Agent) newTraces() *tracing.Traces {
	return tracing.New(tracing.Config{
		Tracer: a.deps.Tracer, Resolver: a.deps.Resolver, Rules: a.rules, Losses: a.losses, Running: a.processes.Running,
		Call: func(c *calls.Record) {
			a.processed.Add(1)
			c.Executable, _ = a.executable(&c.Header)
			c.Shift(a.deps.Clock.Correction())
			a.lanes.Calls.Publish(&stream.Call{Record: c})
		},
		Note: a.lanes.Notes.Publish, Event: a.event, Log: a.log,
		Off: func() bool { return a.Config().Syscall == config.ModeOff },
	})
}

// withCalls are the kinds that may be asked for together with system calls.
var withCalls = []orb8v1.EventKind{
	orb8v1.EventKind_EVENT_KIND_SYSCALL, orb8v1.EventKind_EVENT_KIND_NODE_STATUS, orb8v1.EventKind_EVENT_KIND_LOST_EVENTS,
}

// traceCalls serves a stream of system calls until its time is over, the client goes
// or the agent stops. Its end does not wait for a client that does not read.
func (s *server) traceCalls(req *orb8v1.ObserveRequest, i stream.Interest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	t, err := s.newTrace(req, &i)
	if err != nil {
		return err
	}
	i.Trace = t
	if err := stream.Send(s.agent.nodeEvent()); err != nil {
		return err
	}
	if s.agent.hub.Subscribers() >= maxStreams {
		return status.Errorf(codes.ResourceExhausted, "%d streams are being served, which is the most", maxStreams)
	}
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	if err := s.agent.traces.Reserve(t); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	sub, _ := s.agent.hub.Subscribe(hub.Options{
		Tag: &i, Select: s.agent.streams.Selections(&i), Queue: s.agent.Config().SubscriberQueue, Low: req.GetProgress(),
	})
	defer sub.Close()
	if err := s.agent.traces.Add(t, end); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	defer s.agent.traces.Remove(t)
	timer := time.AfterFunc(t.Duration(), func() { s.agent.traces.Remove(t) })
	defer timer.Stop()
	done := make(chan error, 1)
	go func() { done <- s.sendCalls(ctx, &i, sub, stream) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(drainTime)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return status.Errorf(codes.DeadlineExceeded, "the trace is over, and the client did not take the rest of it within %v", drainTime)
	}
}

// quietTime is for how long nothing comes that a trace has seen, once it is over and there is
// nothing more.
const quietTime = 200 * time.Millisecond

// sendCalls sends what a subscription gets until ctx is done, and then what it has.
func (s *server) sendCalls(ctx context.Context, i *stream.Interest, sub *hub.Subscription, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	for {
		item, ok := nextCall(ctx, stream.Context(), sub)
		switch {
		case ok && endsTrace(&item):
			<-ctx.Done() // which is next
			if err := s.send(stream, i, hub.Item{Lost: item.Lost}); err != nil {
				return err
			}
			return s.sendRest(ctx, i, stream)
		case ok:
			if n, isNote := item.Record.(*tracing.Note); isNote && n.Event == nil {
				item.Record, item.Sequence = nil, 0 // something was lost
			}
			if err := errors.Join(s.sendLost(i.Trace, stream), s.send(stream, i, item)); err != nil {
				return err
			}
		case stream.Context().Err() != nil:
			return status.FromContextError(stream.Context().Err()).Err()
		case ctx.Err() == nil:
			return status.Error(codes.Unavailable, tracing.ErrStopping.Error())
		default:
			return s.sendRest(ctx, i, stream)
		}
	}
}

// nextCall is the next item of a trace. Once ctx, that of the trace, is done, it does not
// wait for long: a client that does not read may have lost the last one.
func nextCall(ctx, stream context.Context, sub *hub.Subscription) (hub.Item, bool) {
	if item, ok := sub.Next(ctx); ok {
		return item, true
	}
	late, cancel := context.WithTimeout(stream, quietTime)
	defer cancel()
	return sub.Next(late)
}

// endsTrace reports whether an item is the last of a trace.
func endsTrace(item *hub.Item) bool {
	n, ok := item.Record.(*tracing.Note)
	return ok && n.Over
}

// sendLost tells of what a trace has lost since it was last told.
func (s *server) sendLost(t *tracing.Trace, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	lost := t.TakeLost()
	for _, stage := range slices.Sorted(maps.Keys(lost)) {
		if err := stream.Send(s.agent.lostEvent(stage, lost[stage])); err != nil {
			return err
		}
	}
	return nil
}

// sendRest ends the stream of a trace that has ended with what found no room in its queue.
func (s *server) sendRest(ctx context.Context, i *stream.Interest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	if err := s.sendLost(i.Trace, stream); err != nil {
		return err
	}
	for _, e := range i.Trace.Rest() {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	if why := context.Cause(ctx); !errors.Is(why, tracing.ErrOver) {
		return status.Error(codes.Unavailable, why.Error())
	}
	return nil
}
