// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cluster/clustertest"
)

// fakeAgent is a node's agent behind a port-forward.
type fakeAgent struct {
	orb8v1.UnimplementedOrbitAgentServiceServer
	node   string
	events []*orb8v1.Event
	// started is when it began; 0 for an agent that does not tell.
	started int64
	// hang keeps it from answering.
	hang     bool
	requests chan *orb8v1.ObserveRequest
	server   *grpc.Server
	listener *bufconn.Listener
}

func newAgent(t *testing.T, node string, events ...*orb8v1.Event) *fakeAgent {
	t.Helper()
	a := &fakeAgent{node: node, events: events, requests: make(chan *orb8v1.ObserveRequest, 100), listener: bufconn.Listen(1 << 16)}
	a.server = grpc.NewServer()
	orb8v1.RegisterOrbitAgentServiceServer(a.server, a)
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.server.Serve(a.listener) })
	t.Cleanup(func() {
		a.server.Stop()
		wg.Wait()
	})
	return a
}

func (a *fakeAgent) dial() (net.Conn, error) { return a.listener.Dial() }

func (a *fakeAgent) GetStatus(ctx context.Context, _ *orb8v1.GetStatusRequest) (*orb8v1.AgentStatus, error) {
	if a.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &orb8v1.AgentStatus{NodeName: a.node, Healthy: true}, nil
}

func (a *fakeAgent) Observe(r *orb8v1.ObserveRequest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	a.requests <- r
	if a.hang {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	if err := stream.Send(&orb8v1.Event{TimeNs: time.Now().UnixNano(), NodeName: a.node, Event: &orb8v1.Event_NodeStatus{
		NodeStatus: &orb8v1.NodeStatus{NodeName: a.node, State: orb8v1.NodeState_NODE_STATE_CONNECTED, StartedNs: a.started}}}); err != nil {
		return err
	}
	for _, ev := range a.events {
		if ev.GetTimeNs() < r.GetSinceNs() || r.GetResume().GetStartedNs() == a.started && ev.GetSequence() <= r.GetResume().GetAfter() && a.started != 0 {
			continue
		}
		if err := stream.Send(ev); err != nil {
			return err
		}
	}
	if d := time.Duration(r.GetSyscalls().GetDurationNs()); d > 0 {
		ctx, cancel := context.WithTimeout(stream.Context(), d)
		defer cancel()
		<-ctx.Done()
		return nil
	}
	if r.GetFollow() {
		<-stream.Context().Done()
	}
	return nil
}

// at is a flow of so many bytes.
func at(node string, ns int64, bytes uint64) *orb8v1.Event {
	return &orb8v1.Event{TimeNs: ns, NodeName: node, Event: &orb8v1.Event_Flow{Flow: &orb8v1.Flow{Total: &orb8v1.Counters{TxBytes: bytes}}}}
}

// connect returns the cluster that the server's kubeconfig names.
func connect(t *testing.T, s *clustertest.Server) *Cluster {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, s.Kubeconfig(), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Connect(Options{Kubeconfig: path})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newServer(t *testing.T) *clustertest.Server {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	// Idle connections of the client to the API server outlive a cluster.
	t.Cleanup(func() {
		goleak.VerifyNone(t, leaks, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
			goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"), goleak.IgnoreAnyFunction("net/http.(*http2ClientConn).readLoop"),
			// spdystream waits a second for somebody to take the error of a second close.
			goleak.IgnoreAnyFunction("github.com/moby/spdystream.(*Connection).shutdown"),
			goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*ClientConn).readLoop"),
			goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*clientConnReadLoop).run"))
	})
	s := clustertest.New()
	t.Cleanup(s.Close)
	return s
}

func newFleet(t *testing.T, c *Cluster, timeout time.Duration, nodes ...string) *Fleet {
	t.Helper()
	f := NewFleet(c, nodes, timeout)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// words is what a stream says, in order: "n1 connected", "n1 30".
func words(ev *orb8v1.Event) string {
	if n := ev.GetNodeStatus(); n != nil {
		text := n.GetNodeName() + " " + strings.ToLower(strings.TrimPrefix(n.GetState().String(), "NODE_STATE_"))
		if n.GetMessage() != "" {
			text += ": " + n.GetMessage()
		}
		return text
	}
	return ev.GetNodeName() + " " + time.Duration(ev.GetTimeNs()).String()
}

func all(t *testing.T, s *Stream) []string {
	t.Helper()
	var got []string
	for {
		ev, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, words(ev))
	}
}

func TestHistory(t *testing.T) {
	for _, how := range []string{"websocket", "spdy", "no right to get"} {
		t.Run(how, func(t *testing.T) {
			s := newServer(t)
			switch how {
			case "spdy":
				s.Old()
			case "no right to get":
				s.Forbid("get pods/portforward")
			}
			s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1", at("n1", 1, 1), at("n1", 3, 1), at("n1", 2, 1), at("n1", 9, 1)).dial)
			s.Set(clustertest.AgentPod("a2", "n2"), newAgent(t, "n2", at("n2", 2, 1), at("n2", 4, 1)).dial)
			s.Set(clustertest.AgentPod("a3", "n3"), nil)
			f := newFleet(t, connect(t, s), 10*time.Second)
			stream, err := f.Observe(t.Context(), &orb8v1.ObserveRequest{Last: 10})
			if err != nil {
				t.Fatal(err)
			}
			// n1's own order stays.
			want := []string{"n1 connected", "n2 connected", "n3 unavailable: port 9090 of the pod: connection refused",
				"n1 1ns", "n2 2ns", "n1 3ns", "n1 2ns", "n2 4ns", "n1 9ns"}
			if diff := cmp.Diff(want, all(t, stream)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			wantHow := "websocket"
			if how != wantHow {
				wantHow = "spdy"
			}
			if used := slices.Compact(s.Used()); len(used) != 1 || used[0] != wantHow {
				t.Errorf("port-forwards over %v, want %s", used, wantHow)
			}
		})
	}
}

func TestSnapshot(t *testing.T) {
	s := newServer(t)
	var many []*orb8v1.Event
	for i := range uint64(2000) {
		many = append(many, at("n1", 1, 5000-i))
	}
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1", many...).dial)
	s.Set(clustertest.AgentPod("a2", "n2"), newAgent(t, "n2", at("n2", 2, 4999), at("n2", 2, 7)).dial)
	hangs := newAgent(t, "n3")
	hangs.hang = true
	s.Set(clustertest.AgentPod("a3", "n3"), hangs.dial)
	waits := clustertest.AgentPod("a4", "n4")
	waits.Status.Phase, waits.Status.Conditions = "Pending", nil
	s.Set(waits, nil)
	f := newFleet(t, connect(t, s), 300*time.Millisecond)
	stream, err := f.Observe(t.Context(), &orb8v1.ObserveRequest{Snapshot: true, Sort: orb8v1.Sort_SORT_BYTES, Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	got := all(t, stream)
	want := []string{"n1 connected", "n2 connected", "n3 unavailable: no answer in time",
		"n4 unavailable: pod a4 is in phase Pending", "n1 1ns", "n1 1ns", "n2 2ns"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// numbered numbers events as an agent does.
func numbered(events ...*orb8v1.Event) []*orb8v1.Event {
	for i, ev := range events {
		ev.Sequence = uint64(i + 1)
	}
	return events
}

// live is a stream that follows, and what it has said.
type live struct {
	*Stream
	t    *testing.T
	seen []string
}

func follow(t *testing.T, s *clustertest.Server, change func(*Fleet), req *orb8v1.ObserveRequest) *live {
	t.Helper()
	f := newFleet(t, connect(t, s), 5*time.Second)
	if change != nil {
		change(f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	req.Follow = true
	stream, err := f.Observe(ctx, req)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ends with %v", err)
		}
	})
	return &live{Stream: stream, t: t}
}

// await reads until an event's words begin so.
func (l *live) await(want string) *orb8v1.Event {
	l.t.Helper()
	for {
		ev, err := l.Recv()
		if err != nil {
			l.t.Fatalf("%v, before %q; got %q", err, want, l.seen)
		}
		l.seen = append(l.seen, words(ev))
		if strings.HasPrefix(words(ev), want) {
			return ev
		}
	}
}

// An agent that goes is named, and what its successor has is fetched; a node that
// joins is taken in.
func TestComesBack(t *testing.T) {
	s := newServer(t)
	dies := newAgent(t, "n2", numbered(at("n2", 7, 1), at("n2", 8, 1))...)
	dies.started = 1
	s.Set(clustertest.AgentPod("a2", "n2"), dies.dial)
	stream := follow(t, s, nil, &orb8v1.ObserveRequest{})
	stream.await("n2 8ns")
	dies.server.Stop()
	stream.await("n2 unavailable: ")
	again := newAgent(t, "n2", numbered(at("n2", 3, 1), at("n2", 9, 1))...)
	again.started = 2
	s.Remove("a2")
	s.Set(clustertest.AgentPod("b2", "n2"), again.dial)
	s.Set(clustertest.AgentPod("a3", "n3"), newAgent(t, "n3").dial)
	stream.await("n2 connected")
	if r := <-again.requests; r.GetResume().GetStartedNs() != 1 || r.GetResume().GetAfter() != 2 || !r.GetFollow() || !r.GetProgress() {
		t.Errorf("asked again with %v", r)
	}
	stream.await("n2 3ns") // whatever its time
	stream.await("n2 9ns")
	if !slices.Contains(stream.seen, "n3 connected") {
		stream.await("n3 connected")
	}
}

// A stream that breaks goes on after the last event that came, although the next
// ones may be of earlier times, or of the same.
func TestBreaksBetweenEvents(t *testing.T) {
	s := newServer(t)
	events := numbered(at("n1", 50, 1), at("n1", 90, 2), at("n1", 90, 3), at("n1", 40, 4), at("n1", 91, 5))
	first := newAgent(t, "n1", events[:2]...)
	first.started = 7
	s.Set(clustertest.AgentPod("a1", "n1"), first.dial)
	stream := follow(t, s, nil, &orb8v1.ObserveRequest{})
	if ev := stream.await("n1 90ns"); ev.GetSequence() != 2 {
		t.Fatalf("%v", ev)
	}
	first.server.Stop()
	// The same agent, by another way.
	second := newAgent(t, "n1", events...)
	second.started = 7
	s.Set(clustertest.AgentPod("a1", "n1"), second.dial)
	var got []uint64
	for len(got) < 3 {
		if ev := stream.await("n1 "); ev.GetFlow() != nil {
			got = append(got, ev.GetSequence())
		}
	}
	if diff := cmp.Diff([]uint64{3, 4, 5}, got); diff != "" {
		t.Errorf("after the break (-want +got):\n%s", diff)
	}
}

// A stream that breaks before its first event goes on from where it began.
func TestComesBackBeforeItsFirstEvent(t *testing.T) {
	s := newServer(t)
	dies := newAgent(t, "n1")
	dies.started = 1
	s.Set(clustertest.AgentPod("a1", "n1"), dies.dial)
	stream := follow(t, s, nil, &orb8v1.ObserveRequest{})
	stream.await("n1 connected")
	dies.server.Stop()
	again := newAgent(t, "n1", numbered(at("n1", 5, 1))...)
	again.started = 1
	s.Set(clustertest.AgentPod("a1", "n1"), again.dial)
	stream.await("n1 5ns")
	if r := <-again.requests; r.GetResume().GetStartedNs() != 1 || r.GetResume().GetAfter() != 0 {
		t.Errorf("asked again with %v", r)
	}
}

// History that breaks before anything came is asked for again.
func TestHistoryThatBreaksAtOnce(t *testing.T) {
	s := newServer(t)
	dies := newAgent(t, "n1")
	dies.started = 1
	s.Set(clustertest.AgentPod("a1", "n1"), dies.dial)
	stream := follow(t, s, nil, &orb8v1.ObserveRequest{SinceNs: 3})
	stream.await("n1 connected")
	dies.server.Stop()
	again := newAgent(t, "n1", numbered(at("n1", 5, 1))...)
	s.Set(clustertest.AgentPod("a1", "n1"), again.dial)
	stream.await("n1 5ns")
	if r := <-again.requests; r.GetResume() != nil || r.GetSinceNs() != 3 {
		t.Errorf("asked again with %v", r)
	}
}

// Nodes that are gone for good are forgotten, and taken in again where they were
// left if they come back after all.
func TestGoneForGood(t *testing.T) {
	s := newServer(t)
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1").dial)
	goes := newAgent(t, "n2", numbered(at("n2", 7, 1))...)
	goes.started = 4
	s.Set(clustertest.AgentPod("a2", "n2"), goes.dial)
	stream := follow(t, s, func(f *Fleet) { f.goneAfter = time.Millisecond }, &orb8v1.ObserveRequest{})
	stream.await("n2 7ns")
	goes.server.Stop()
	s.Remove("a2")
	stream.await("n2 unavailable: ")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stream.mu.Lock()
		nodes := len(stream.now)
		stream.mu.Unlock()
		if nodes == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d nodes, want 1", nodes)
		}
	}
	back := newAgent(t, "n2", numbered(at("n2", 7, 1), at("n2", 8, 1))...)
	back.started = 4
	s.Set(clustertest.AgentPod("b2", "n2"), back.dial)
	stream.await("n2 8ns")
	if r := <-back.requests; r.GetResume().GetAfter() != 1 {
		t.Errorf("asked again with %v", r)
	}
	stream.merge.mu.Lock()
	defer stream.merge.mu.Unlock()
	if n := len(stream.merge.lanes); n != 2 {
		t.Errorf("%d lanes, want 2", n)
	}
}

// System calls are traced for a time: the stream ends by itself, and a node that comes
// back is asked for what is left of it.
func TestTraceEnds(t *testing.T) {
	s := newServer(t)
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1", at("n1", 1, 1)).dial)
	dies := newAgent(t, "n2", at("n2", 2, 1))
	dies.started = 1
	s.Set(clustertest.AgentPod("a2", "n2"), dies.dial)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const duration = 3 * time.Second
	stream, err := newFleet(t, connect(t, s), 5*time.Second).Observe(ctx, &orb8v1.ObserveRequest{
		Kinds: []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_SYSCALL}, Follow: true,
		Syscalls: &orb8v1.SyscallTrace{Calls: []string{"openat"}, DurationNs: int64(duration)},
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &live{Stream: stream, t: t}
	l.await("n2 2ns")
	dies.server.Stop()
	again := newAgent(t, "n2", at("n2", 3, 1))
	s.Set(clustertest.AgentPod("a2", "n2"), again.dial)
	l.await("n2 3ns")
	r := <-again.requests
	if d := time.Duration(r.GetSyscalls().GetDurationNs()); d <= 0 || d >= duration || r.GetResume() != nil {
		t.Errorf("asked again with %v", r)
	}
	if diff := cmp.Diff([]string{"openat"}, r.GetSyscalls().GetCalls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("ends with %v, want EOF", err)
	}
}

func TestStatus(t *testing.T) {
	s := newServer(t)
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1").dial)
	hangs := newAgent(t, "n2")
	hangs.hang = true
	s.Set(clustertest.AgentPod("a2", "n2"), hangs.dial)
	f := newFleet(t, connect(t, s), 300*time.Millisecond, "n2", "n1", "n9")
	answers, err := f.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, a := range answers {
		got[a.Agent.Node] = a.Value.GetNodeName()
		if a.Err != nil {
			got[a.Agent.Node] = Reason(a.Err)
		}
	}
	want := map[string]string{"n1": "n1", "n2": "no answer in time", "n9": "no agent's pod is on this node"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	s := newServer(t)
	c := connect(t, s)
	var none *NoAgentsError
	if _, err := c.Agents(t.Context()); !errors.As(err, &none) || none.Namespace != "orb8-system" {
		t.Errorf("without agents: %v", err)
	}
	s.Forbid("list pods")
	var forbidden *ForbiddenError
	if _, err := c.Agents(t.Context()); !errors.As(err, &forbidden) || forbidden.Error() != "no right to list pods in namespace orb8-system" {
		t.Errorf("without the right to list: %v", err)
	}
	s.Forbid("get pods/portforward", "create pods/portforward")
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1").dial)
	answers, err := newFleet(t, c, 0).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := answers[0].Err; !errors.As(err, &forbidden) || forbidden.Verb != "create" || forbidden.Resource != "pods/portforward" {
		t.Errorf("without the right to forward: %v", err)
	}
	s.CloseClientConnections()
	s.Listener.Close()
	var away *UnreachableError
	if _, err := c.Agents(t.Context()); !errors.As(err, &away) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without an API server: %v", err)
	}
}
