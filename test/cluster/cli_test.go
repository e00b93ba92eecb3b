// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// statuses asks `orb8 status -o json`, which prints one line for each agent.
func (l *lab) statuses(ctx context.Context) (map[string]*orb8v1.AgentStatus, error) {
	out, err := l.cli(ctx, "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	all := map[string]*orb8v1.AgentStatus{}
	for text := range strings.Lines(string(out)) {
		s := &orb8v1.AgentStatus{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), s); err != nil {
			return nil, fmt.Errorf("%w: %s", err, text)
		}
		all[s.GetNodeName()] = s
	}
	return all, nil
}

// agentRun is an agent's process on a node.
type agentRun struct {
	node    string
	started int64
}

// lost is how many records an agent has lost by itself. Events that a client did
// not take, or asked for too late, depend on the client and the machine.
func lost(s *orb8v1.AgentStatus) uint64 {
	n := s.GetEventsDropped()
	for _, l := range s.GetLosses() {
		if l.GetStage() == "subscriber_slow" || l.GetStage() == "resume_gap" {
			n -= l.GetCount()
		}
	}
	return n
}

// noteLosses keeps what was lost before the tests, which is not their matter.
func (l *lab) noteLosses(ctx context.Context) error {
	return poll(ctx, 30*time.Second, func() error {
		all, err := l.statuses(ctx)
		if err != nil {
			return err
		}
		l.lost = map[agentRun]uint64{}
		for node, s := range all {
			l.lost[agentRun{node, s.GetStartedNs()}] = lost(s)
		}
		return nil
	})
}

// TestServiceFilter asks for a connection by the Service that it went to.
func TestServiceFilter(t *testing.T) {
	l := shared
	res := l.netpeer(t, l.client1, "", "tcp", "-send", "3000", "-receive", "4000", l.clusterIP(t.Context(), "far", 4))
	for flag, want := range map[string]bool{"far": true, l.namespace + "/far": true, "near": false, "no-such/far": false} {
		eventually(t, 10*time.Second, func() error {
			out, err := l.cli(t.Context(), "flows", "-o", "json", "--limit", "0", "-A", "--service", flag)
			if err != nil {
				return err
			}
			events, err := parseEvents(out)
			if err != nil {
				return err
			}
			found := slices.ContainsFunc(events, func(e *orb8v1.Event) bool { return isFrom(e.GetFlow(), res) })
			if found != want {
				return fmt.Errorf("--service %s: found %v, want %v", flag, found, want)
			}
			return nil
		})
	}
}

// TestFilters asks for one connection between two workloads in several ways.
func TestFilters(t *testing.T) {
	l := shared
	args, tx, rx := l.transferTo(l.far, 70)
	res := l.netpeer(t, l.client1, "", args...)
	l.expectBoth(t, l.client1, l.far, res, tx, rx)
	const client, server = 1, 2 // whose rows are wanted
	cases := []struct {
		flags string
		want  int
	}{
		{"-A", client | server},
		{"-A --pod client-1", client},
		{"-A --workload far", server},
		{"-A --workload StatefulSet/far", server},
		{"-A --selector app=far", server},
		{"-A --node " + l.client1.Spec.NodeName, client},
		{"--namespace " + l.namespace, client | server},
		{"--namespace no-such", 0},
		{"-A --not --pod client-1", server},
		{"-A --service far", 0},
	}
	for _, c := range cases {
		t.Run(c.flags, func(t *testing.T) {
			out, err := l.cli(t.Context(), append([]string{"flows", "-o", "json", "--limit", "0"}, strings.Fields(c.flags)...)...)
			if err != nil {
				t.Fatal(err)
			}
			events, err := parseEvents(out)
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for _, e := range events {
				switch f := e.GetFlow(); {
				case isFrom(f, res):
					got |= client
				case isTo(f, res, l.far):
					got |= server
				}
			}
			if got != c.want {
				t.Errorf("rows %b, want %b (1: the client's, 10: the server's)", got, c.want)
			}
		})
	}
}

// output keeps what a command that still runs has printed.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

// events are those of the whole lines so far.
func (o *output) events() ([]*orb8v1.Event, error) {
	o.mu.Lock()
	text := bytes.Clone(o.text.Bytes())
	o.mu.Unlock()
	return parseEvents(text[:bytes.LastIndexByte(text, '\n')+1])
}

// startTrace starts `orb8 trace` and waits until all agents have a subscriber. What
// it prints grows until end is called.
func (l *lab) startTrace(t *testing.T) (out *output, end func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	var stdout output
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, l.orb8, "trace", "network", "-o", "json", "--namespace", l.namespace,
		"--kubeconfig", l.kubeconfig, "--orb8-namespace", l.agents)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, 10*time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		cancel()
		if err := cmd.Wait(); err != nil {
			t.Logf("orb8 trace ended with %v: %s", err, &stderr)
		}
	})
	t.Cleanup(end)
	eventually(t, 30*time.Second, func() error {
		all, err := l.statuses(t.Context())
		if err != nil {
			return err
		}
		for _, node := range l.nodes {
			if all[node].GetSubscribers() == 0 {
				return fmt.Errorf("the agent on %s has no subscriber", node)
			}
		}
		return nil
	})
	return &stdout, end
}

// inOrder checks that the events of all nodes together are in the order of time.
func inOrder(t *testing.T, events []*orb8v1.Event) {
	t.Helper()
	var last *orb8v1.Event
	for _, e := range events {
		if _, is := flowOf(e); !is {
			continue
		}
		if last.GetTimeNs() > e.GetTimeNs() {
			t.Errorf("an event of %s comes %v after a later one of %s", e.GetNodeName(), time.Duration(last.GetTimeNs()-e.GetTimeNs()), last.GetNodeName())
		}
		last = e
	}
}

// flowOf is the flow that an event is about, if it is.
func flowOf(e *orb8v1.Event) (*orb8v1.Flow, bool) {
	f := e.GetFlow()
	if c := e.GetConnection(); c != nil {
		f = c.GetFlow()
	}
	return f, f != nil
}

// TestTrace watches a Service's connection as it happens.
func TestTrace(t *testing.T) {
	l := shared
	out, end := l.startTrace(t)
	res := l.netpeer(t, l.client1, "", "tcp", "-send", "12345", "-receive", "54321", l.clusterIP(t.Context(), "far", 4))
	eventually(t, 15*time.Second, func() error {
		events, err := out.events()
		if err != nil {
			return err
		}
		for _, e := range events {
			f, _ := flowOf(e)
			if isFrom(f, res) && f.GetEvent() == orb8v1.FlowEvent_FLOW_EVENT_CLOSE {
				return nil
			}
		}
		return fmt.Errorf("the connection's end is not among %d events", len(events))
	})
	time.Sleep(time.Second) // the server's node may tell of its end later
	end()
	events, err := out.events()
	if err != nil {
		t.Fatal(err)
	}
	inOrder(t, events)
	found := false
	for _, e := range events {
		f, _ := flowOf(e)
		if !isFrom(f, res) || f.GetTotal().GetTxBytes() == 0 {
			continue
		}
		found = true
		want := seen{Local: l.client1.identity(), Remote: with(l.far.identity(), "far"), TxBytes: 12345, RxBytes: 54321, Role: "client"}
		if d := cmp.Diff(want, seenIn(f)); d != "" && f.GetEvent() == orb8v1.FlowEvent_FLOW_EVENT_CLOSE {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	if !found {
		t.Error(fmt.Sprint("the connection is not among ", len(events), " events"))
	}
}
