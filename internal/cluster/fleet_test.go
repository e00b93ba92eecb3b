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
		NodeStatus: &orb8v1.NodeStatus{NodeName: a.node, State: orb8v1.NodeState_NODE_STATE_CONNECTED}}}); err != nil {
		return err
	}
	for _, ev := range a.events {
		if ev.GetTimeNs() < r.GetSinceNs() {
			continue
		}
		if err := stream.Send(ev); err != nil {
			return err
		}
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

// TestComesBack: an agent that goes is named, and what its successor has is
// fetched; a node that joins is taken in.
func TestComesBack(t *testing.T) {
	s := newServer(t)
	now := time.Now().UnixNano()
	s.Set(clustertest.AgentPod("a1", "n1"), newAgent(t, "n1", at("n1", now, 1)).dial)
	dies := newAgent(t, "n2", at("n2", now+1, 1))
	s.Set(clustertest.AgentPod("a2", "n2"), dies.dial)
	f := newFleet(t, connect(t, s), 5*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := f.Observe(ctx, &orb8v1.ObserveRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	await := func(want string) {
		t.Helper()
		for !seen[want] {
			ev, err := stream.Recv()
			if err != nil {
				t.Fatalf("%v, before %q", err, want)
			}
			seen[words(ev)] = true
			seen[strings.SplitAfter(words(ev), ": ")[0]] = true
		}
	}
	await("n1 " + time.Duration(now).String())
	await("n2 " + time.Duration(now+1).String())
	dies.server.Stop()
	await("n2 unavailable: ")
	again := newAgent(t, "n2", at("n2", now, 1), at("n2", now+5, 1))
	s.Remove("a2")
	s.Set(clustertest.AgentPod("b2", "n2"), again.dial)
	s.Set(clustertest.AgentPod("a3", "n3"), newAgent(t, "n3").dial)
	delete(seen, "n2 connected")
	await("n2 connected")
	if r := <-again.requests; r.GetSinceNs() != now+2 || !r.GetFollow() {
		t.Errorf("asked again with %v, want since %d", r, now+2)
	}
	await("n2 " + time.Duration(now+5).String())
	await("n3 connected")
	cancel()
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ends with %v", err)
	}
}

// A stream that breaks before its first event goes on from where it began.
func TestComesBackBeforeItsFirstEvent(t *testing.T) {
	s := newServer(t)
	dies := newAgent(t, "n1")
	s.Set(clustertest.AgentPod("a1", "n1"), dies.dial)
	f := newFleet(t, connect(t, s), 5*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := f.Observe(ctx, &orb8v1.ObserveRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	greeting, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	dies.server.Stop()
	missed := greeting.GetTimeNs() + 1
	again := newAgent(t, "n1", at("n1", greeting.GetTimeNs()-1, 1), at("n1", missed, 2))
	s.Remove("a1")
	s.Set(clustertest.AgentPod("b1", "n1"), again.dial)
	for {
		ev, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.GetFlow() != nil {
			if ev.GetTimeNs() != missed {
				t.Errorf("got what happened before the stream began: %v", ev)
			}
			break
		}
	}
	if r := <-again.requests; r.GetSinceNs() != greeting.GetTimeNs() {
		t.Errorf("asked again with %v, want since %d", r, greeting.GetTimeNs())
	}
	cancel()
	for err == nil {
		_, err = stream.Recv()
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
