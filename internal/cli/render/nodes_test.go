// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// TestNodes: what comes from several nodes says from which, at every width.
func TestNodes(t *testing.T) {
	now := time.Unix(0, 1795426872000000000)
	for _, tt := range formats {
		var b bytes.Buffer
		o := Options{Format: tt.format, Width: tt.width, Location: time.UTC, Nodes: true}
		r := NewEvents(&b, o)
		if err := r.Titles(); err != nil {
			t.Fatal(err)
		}
		for _, ev := range events(t) {
			if err := r.Write(ev); err != nil {
				t.Fatal(err)
			}
		}
		golden(t, nameOf("events_nodes", tt.format, tt.width), b.String())
		fits(t, b.String(), tt.format, tt.width)
		b.Reset()
		if err := Flows(&b, o, now, tableRows(t)); err != nil {
			t.Fatal(err)
		}
		golden(t, nameOf("flows_nodes", tt.format, tt.width), b.String())
		fits(t, b.String(), tt.format, tt.width)
	}
}

func TestStatuses(t *testing.T) {
	away := &orb8v1.AgentStatus{NodeName: "gpu-pool-a100-7f3k", HealthMessage: "unreachable: no answer in time"}
	sick := &orb8v1.AgentStatus{NodeName: "web-2", Version: "0.1.0", HealthMessage: "no probe runs: tcp is in state off: no BTF"}
	well := status()
	well.NodeName, well.Probes, well.PodsTracked = "web-3", well.Probes[:1], 31
	nodes := []NodeStatus{{Status: away, Agent: "orb8-agent-x2x9q", Away: "no answer in time"},
		{Status: status(), Agent: "orb8-agent-abcde"}, {Status: sick, Agent: "orb8-agent-12345"}, {Status: well}}
	for _, tt := range formats {
		var b bytes.Buffer
		if err := Statuses(&b, Options{Format: tt.format, Width: tt.width, Location: time.UTC}, nodes); err != nil {
			t.Fatal(err)
		}
		golden(t, nameOf("statuses", tt.format, tt.width), b.String())
		if tt.width >= 60 {
			fits(t, b.String(), tt.format, tt.width)
		}
	}
}

func TestHeaderOfNodes(t *testing.T) {
	second := status()
	second.NodeName, second.KernelRelease = "web-2", "6.12.0"
	second.Probes = second.Probes[:1]
	var b bytes.Buffer
	h := Header{What: "network flows", Source: "2 nodes of context prod", Statuses: []*orb8v1.AgentStatus{status(), second},
		Warnings: []string{"node web-3 does not answer: no answer in time"}}
	if err := h.Write(&b, Options{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "header_nodes", b.String())
}

// TestSummaryOfNodes: a node that is away, or was, is in the summary.
func TestSummaryOfNodes(t *testing.T) {
	s := NewSummary()
	state := func(node string, state orb8v1.NodeState, why string) {
		s.Add(&orb8v1.Event{NodeName: node, Event: &orb8v1.Event_NodeStatus{
			NodeStatus: &orb8v1.NodeStatus{NodeName: node, State: state, Message: why}}})
	}
	state("n1", orb8v1.NodeState_NODE_STATE_CONNECTED, "")
	state("n2", orb8v1.NodeState_NODE_STATE_UNAVAILABLE, "the agent is stopping")
	state("n3", orb8v1.NodeState_NODE_STATE_UNAVAILABLE, "no answer in time")
	state("n2", orb8v1.NodeState_NODE_STATE_CONNECTED, "")
	var b bytes.Buffer
	if err := s.Write(&b, Options{}, time.Second); err != nil {
		t.Fatal(err)
	}
	want := "0 flows in 1s: 0 B sent, 0 B received; 0 events; nothing else lost\n" +
		"NODE n2 was away for a time\nNODE n3 is unavailable: no answer in time\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Where an agent was replaced, nobody knows what was lost; where the same one was away, it
// is known.
func TestNothingLost(t *testing.T) {
	for _, tt := range []struct {
		name    string
		started []int64
		away    bool
		want    string
	}{
		{"all the time there", []int64{7, 7}, false, "nothing lost\n"},
		{"away for a time", []int64{7, 7}, true, "nothing lost\nNODE n1 was away for a time\n"},
		{"replaced", []int64{7, 8}, true, "nothing else lost\nNODE n1 has another agent since: what the one before had not told yet, and what happened until this one saw it, is missing\n"},
		{"replaced at once", []int64{7, 8}, false, "nothing else lost\nNODE n1 has another agent since: what the one before had not told yet, and what happened until this one saw it, is missing\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSummary()
			for i, at := range tt.started {
				if i > 0 && tt.away {
					s.Add(&orb8v1.Event{Event: &orb8v1.Event_NodeStatus{NodeStatus: &orb8v1.NodeStatus{
						NodeName: "n1", State: orb8v1.NodeState_NODE_STATE_UNAVAILABLE, Message: "no answer"}}})
				}
				s.Add(&orb8v1.Event{Event: &orb8v1.Event_NodeStatus{NodeStatus: &orb8v1.NodeStatus{
					NodeName: "n1", State: orb8v1.NodeState_NODE_STATE_CONNECTED, StartedNs: at}}})
			}
			var b bytes.Buffer
			if err := s.Write(&b, Options{}, time.Second); err != nil {
				t.Fatal(err)
			}
			if _, got, _ := strings.Cut(b.String(), "0 events; "); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// TestTogether: up to ten nodes are named, more are counted by what is said of them.
func TestTogether(t *testing.T) {
	var all []Said
	for i := range 10 {
		all = append(all, Said{fmt.Sprint("n", i), "no answer in time"})
	}
	got := Together(all, "node %s does not answer", "%d nodes do not answer")
	if len(got) != 10 || got[9] != "node n9 does not answer: no answer in time" {
		t.Errorf("%q", got)
	}
	all = append(all, Said{"n10", "connection refused"}, Said{"n11", "no answer in time"}, Said{"n12", "has no agent"}, Said{"n13", "connection refused"})
	got = Together(all, "node %s does not answer", "%d nodes do not answer")
	want := []string{
		"11 nodes do not answer: no answer in time (n0, n1, n2 and 8 more)", "2 nodes do not answer: connection refused (n10, n13)",
		"node n12 does not answer: has no agent",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	var statuses []*orb8v1.AgentStatus
	for i := range 300 {
		s := status()
		s.NodeName = fmt.Sprint("n", i)
		if i%2 == 0 {
			s.Probes = s.Probes[:1]
		}
		statuses = append(statuses, s)
	}
	var b bytes.Buffer
	h := Header{What: "network flows", Source: "300 nodes of context prod", Statuses: statuses}
	if err := h.Write(&b, Options{}); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 1200 || strings.Contains(b.String(), "n7,") || !strings.Contains(b.String(), "on 150 nodes (n1, n3, n5 and 147 more): probe packet off") {
		t.Errorf("%d bytes: %s", b.Len(), b.String())
	}
}
