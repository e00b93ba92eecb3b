// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

const (
	// relistEvery is how often a stream that goes on looks for other agents.
	relistEvery = 5 * time.Second
	// goneAfter is after how long a node without an agent is given up. If it gets
	// one again, that is taken in.
	goneAfter = 5 * time.Minute
	// minRetry and maxRetry bound the time between two attempts at a node.
	minRetry = 500 * time.Millisecond
	maxRetry = 8 * time.Second
	// traceTime is how long system calls are traced unless the request says.
	traceTime = time.Minute
)

// Stream is the events of all agents as one stream.
type Stream struct {
	fleet  *Fleet
	req    *orb8v1.ObserveRequest
	ctx    context.Context // of the call, as in a gRPC stream
	cancel context.CancelFunc
	merge  *merge
	rank   func(*orb8v1.Event) int64
	wg     sync.WaitGroup
	// ended is closed when all nodes have ended.
	ended chan struct{}
	// left is how many flows may still come; less than 0 means any number.
	left int
	// over is the error after the last event.
	over error
	// until is when it ends by itself, zero for never: system calls are traced for a
	// time, by nodes that come later or come back for the rest of it.
	until time.Time

	mu sync.Mutex
	// fatal is an error that is no node's own.
	fatal error
	// now has the agents that there are, by node; newer is closed when another
	// map takes its place.
	now   map[string]Agent
	newer chan struct{}
	// absent says since when nodes have had no agent, parked how far the streams of
	// those had come that were given up.
	absent map[string]time.Time
	parked map[string]place
}

// place is how far a node's stream has come: the agent's start and the last event's
// sequence. The zero value is the beginning.
type place struct {
	started int64
	after   uint64
}

// Observe asks every agent for its events and merges them: a snapshot exactly
// by its sort key, its limit counted over all nodes; the past exactly by time;
// what happens exactly by time too, up to the nodes' low watermarks, unless one says
// nothing for 3 s. A node that cannot be
// asked, or whose stream breaks, is a NodeStatus event with state UNAVAILABLE and
// the reason, once until the reason changes. With follow it is tried again, and
// what it kept meanwhile is fetched; agents that come later are taken in. With
// last, every node sends its latest. The stream ends with ctx, one of system calls
// after its duration.
func (f *Fleet) Observe(ctx context.Context, req *orb8v1.ObserveRequest) (*Stream, error) {
	agents, err := f.agents(ctx)
	if err != nil {
		return nil, err
	}
	s := &Stream{
		fleet: f, req: req, merge: newMerge(0), rank: ranking(req),
		ended: make(chan struct{}), left: -1, newer: make(chan struct{}),
		absent: make(map[string]time.Time), parked: make(map[string]place),
	}
	if slices.Contains(req.GetKinds(), orb8v1.EventKind_EVENT_KIND_SYSCALL) {
		s.until = time.Now().Add(cmp.Or(time.Duration(req.GetSyscalls().GetDurationNs()), traceTime))
	}
	if req.GetFollow() {
		s.merge.window = liveWindow
	}
	if req.GetFollow() && (req.GetSinceNs() > 0 || req.GetLast() > 0 || req.GetSnapshot()) {
		s.merge.exactUntil = time.Now().Add(replayTime)
	}
	if req.GetSnapshot() && !req.GetFollow() && req.GetLimit() > 0 {
		s.left = int(req.GetLimit())
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.ctx = ctx
	s.update(ctx, agents)
	if req.GetFollow() {
		s.wg.Go(func() { s.relist(ctx) })
	}
	go func() {
		s.wg.Wait()
		close(s.ended)
		token(s.merge.changed)
	}()
	return s, nil
}

// Recv returns the next event. After the last it returns io.EOF; when ctx is
// done, what has come already and then ctx's error. All that the stream has
// started has ended by then. It must be called until it returns an error.
func (s *Stream) Recv() (*orb8v1.Event, error) {
	for s.left != 0 && s.over == nil {
		ended, done := isClosed(s.ended), s.ctx.Err()
		ev, wait := s.merge.next(time.Now(), ended || done != nil)
		switch {
		case ev != nil:
			if s.left > 0 && ev.GetFlow() != nil {
				s.left--
			}
			return ev, nil
		case ended || done != nil:
			s.over = s.end(done)
		default:
			s.merge.wait(wait, s.ctx.Done())
		}
	}
	s.cancel()
	<-s.ended
	if s.over == nil {
		s.over = io.EOF
	}
	return nil, s.over
}

// end is the error after the last event; done is the context's.
func (s *Stream) end(done error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fatal != nil:
		return s.fatal
	case done != nil:
		return done
	}
	return io.EOF
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// update takes over which agents there are and begins with nodes that are new.
func (s *Stream) update(ctx context.Context, agents []Agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.now
	s.now = make(map[string]Agent, len(agents))
	for _, a := range agents {
		s.now[a.Node] = a
		delete(s.absent, a.Node)
	}
	for node := range known { // a node whose agent is gone may get another
		if _, ok := s.now[node]; !ok {
			s.now[node] = Agent{Node: node, Reason: "its agent is gone"}
			if s.absent[node].IsZero() {
				s.absent[node] = time.Now()
			}
		}
	}
	close(s.newer)
	s.newer = make(chan struct{})
	for _, a := range agents {
		if _, ok := known[a.Node]; !ok {
			n := &node{stream: s, lane: s.merge.lane(a.Node), name: a.Node, at: s.parked[a.Node]}
			delete(s.parked, a.Node)
			s.wg.Go(func() { s.watch(ctx, n) })
		}
	}
}

// giveUp forgets a node that has been without an agent for long enough, and
// reports whether it did.
func (s *Stream) giveUp(n *node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := s.absent[n.name]
	if since.IsZero() || time.Since(since) < s.fleet.goneAfter {
		return false
	}
	delete(s.now, n.name)
	delete(s.absent, n.name)
	s.parked[n.name] = n.at
	n.lane.remove()
	return true
}

// agent returns who the node's agent is now, and what is closed when that may
// have changed.
func (s *Stream) agent(node string) (Agent, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now[node], s.newer
}

func (s *Stream) fail(err error) {
	s.mu.Lock()
	if s.fatal == nil {
		s.fatal = err
	}
	s.mu.Unlock()
	s.cancel()
}

// relist looks for other agents until the stream ends. While the API server is
// away the nodes say so themselves.
func (s *Stream) relist(ctx context.Context) {
	if !s.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, s.until)
		defer cancel()
	}
	t := time.NewTicker(relistEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		agents, err := s.fleet.agents(ctx)
		switch {
		case err == nil:
			s.update(ctx, agents)
		case errors.As(err, new(*NoAgentsError)):
			s.update(ctx, nil)
		}
	}
}

// node is one node's part of a stream.
type node struct {
	stream *Stream
	lane   *lane
	name   string
	// reason is why the node is away, as last told; empty while it is there.
	reason string
	// at is where to go on if the stream breaks.
	at place
}

// watch takes a node's events until there are no more.
func (s *Stream) watch(ctx context.Context, n *node) {
	defer n.lane.expect(false)
	retry := minRetry
	for s.until.IsZero() || time.Now().Before(s.until) {
		agent, newer := s.agent(n.name)
		began := time.Now()
		err := error(&notReadyError{agent.Reason})
		if agent.running {
			err = s.take(ctx, n, agent)
		}
		switch {
		case ctx.Err() != nil:
			return
		case status.Code(err) == codes.InvalidArgument: // every node would say so
			s.fail(err)
			return
		case errors.Is(err, io.EOF) && (!s.req.GetFollow() || !s.until.IsZero()):
			return
		}
		n.away(ctx, Reason(err))
		if !s.req.GetFollow() || s.giveUp(n) {
			return
		}
		if time.Since(began) > maxRetry {
			retry = minRetry
		}
		wait := retry/2 + rand.N(retry)
		if !s.until.IsZero() {
			wait = min(wait, time.Until(s.until))
		}
		pause(ctx, newer, wait)
		retry = min(2*retry, maxRetry)
	}
}

// pause waits for d, for other agents, or for the end of ctx.
func pause(ctx context.Context, newer <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-newer:
	case <-ctx.Done():
	}
}

// away puts a NodeStatus into the stream, unless the last one said the same.
func (n *node) away(ctx context.Context, reason string) {
	defer n.lane.expect(false) // not before: whoever waits for this node is to see why
	if n.reason == reason {
		return
	}
	n.reason = reason
	_ = n.lane.push(ctx, first, &orb8v1.Event{ // fails only when nobody reads on
		TimeNs: time.Now().UnixNano(), NodeName: n.name,
		Event: &orb8v1.Event_NodeStatus{NodeStatus: &orb8v1.NodeStatus{
			NodeName: n.name, State: orb8v1.NodeState_NODE_STATE_UNAVAILABLE, Message: reason,
		}},
	})
}

// take reads one stream of a node's agent to its end, which is the error. An
// agent that says nothing for the fleet's timeout is given up; only one that is
// followed may be silent, once it has greeted.
func (s *Stream) take(ctx context.Context, n *node, a Agent) error {
	conn, err := s.fleet.conn(a)
	if err != nil {
		return err
	}
	conn.ResetConnectBackoff() // the time between attempts is kept by watch
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(s.fleet.timeout, func() { cancel(errNoAnswer) })
	defer late.Stop()
	because := func(err error) error {
		if errors.Is(context.Cause(ctx), errNoAnswer) && conn.Trouble() == nil {
			return errNoAnswer
		}
		if errors.Is(err, io.EOF) {
			return err
		}
		return because(conn, err)
	}
	stream, err := orb8v1.NewOrbitAgentServiceClient(conn).Observe(ctx, s.request(n))
	if err != nil {
		return because(err)
	}
	started := int64(0)
	for greeted := false; ; greeted = true {
		ev, err := stream.Recv()
		if err != nil {
			return because(err)
		}
		late.Stop()
		rank := s.rank(ev)
		if !greeted { // dated now, but what follows may be the past
			n.reason, rank = "", first
			started = ev.GetNodeStatus().GetStartedNs()
			n.lane.begin()
			n.lane.expect(true)
		}
		switch ev.GetEvent().(type) {
		case nil: // an older agent's progress
		case *orb8v1.Event_Progress:
			n.lane.advance(ev.GetProgress().GetLowWatermarkNs())
		default:
			if err := n.lane.push(ctx, rank, ev); err != nil {
				return err
			}
		}
		n.reached(s, started, ev, !greeted)
		if !s.req.GetFollow() {
			late.Reset(s.fleet.timeout)
		}
	}
}

// reached notes how far a node's stream has come.
func (n *node) reached(s *Stream, started int64, ev *orb8v1.Event, greeting bool) {
	switch {
	case started == 0: // an agent that does not tell
	case !greeting:
		if seq := ev.GetSequence(); seq != 0 {
			n.at = place{started, seq}
		}
	case n.at.started == 0 && s.onlyNew():
		n.at = place{started, ev.GetSequence()}
	case n.at.started != 0 && n.at.started != started: // it sends all it has
		n.at = place{started, 0}
	}
}

// onlyNew reports whether nothing is asked for but what happens from now on.
func (s *Stream) onlyNew() bool {
	r := s.req
	return r.GetFollow() && !r.GetSnapshot() && r.GetLast() == 0 && r.GetSinceNs() == 0
}

// request is the stream's, or what continues it where it broke.
func (s *Stream) request(n *node) *orb8v1.ObserveRequest {
	req, ok := proto.Clone(s.req).(*orb8v1.ObserveRequest)
	if !ok {
		return s.req
	}
	req.Progress = true
	if !s.until.IsZero() {
		req.Syscalls = cmp.Or(req.GetSyscalls(), &orb8v1.SyscallTrace{})
		req.Syscalls.DurationNs = max(int64(time.Until(s.until)), 1)
		return req // of system calls nothing is kept
	}
	if n.at.started != 0 {
		req.Snapshot, req.Last = false, 0
		req.Resume = &orb8v1.Resume{StartedNs: n.at.started, After: n.at.after}
	}
	return req
}
