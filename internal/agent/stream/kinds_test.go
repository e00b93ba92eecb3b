// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/loss"
)

const (
	ofFlows       = orb8v1.EventKind_EVENT_KIND_FLOW
	ofConnections = orb8v1.EventKind_EVENT_KIND_CONNECTION
)

func asking(kinds ...orb8v1.EventKind) Interest { return Interest{Kinds: kinds} }

func TestWants(t *testing.T) {
	open := flowtest.Record(flow.EventOpen, flowtest.TCP(1, 1, 1), flow.Counters{})
	update := flowtest.Record(flow.EventUpdate, flowtest.TCP(1, 1, 1), flow.Counters{})
	own := flowtest.Record(flow.EventOpen, flowtest.TCP(1, 1, 1), flow.Counters{})
	own.Self = true
	withOwn := asking(ofFlows)
	withOwn.Self = true
	tests := []struct {
		name              string
		i                 Interest
		open, update, own bool
	}{
		{"nothing", asking(orb8v1.EventKind_EVENT_KIND_UNSPECIFIED), false, false, false},
		{"flows", asking(ofFlows), true, true, false},
		{"flows with own", withOwn, true, true, true},
		{"connections", asking(ofConnections), true, false, false},
		{"status", asking(orb8v1.EventKind_EVENT_KIND_NODE_STATUS, orb8v1.EventKind_EVENT_KIND_LOST_EVENTS), false, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := hub.New(new(loss.Counters))
			k := New(h, 16, "node-a", nil)
			for _, r := range []*flow.Record{open, update, own} {
				k.Flows.Publish(r)
			}
			got := []bool{false, false, false}
			for _, i := range h.Past(hub.Options{Select: k.Selections(&tt.i), Past: hub.Past{Since: 1}}).Items {
				got[i.Sequence-1] = true
			}
			if diff := cmp.Diff([]bool{tt.open, tt.update, tt.own}, got); diff != "" {
				t.Errorf("open, update, own (-want +got)\n%s", diff)
			}
		})
	}
}

func TestUpdateForm(t *testing.T) {
	open := flowtest.Record(flow.EventOpen, flowtest.TCP(1, 0, 0), flow.Counters{})
	change := flowtest.Record(flow.EventUpdate, flowtest.TCP(1, 0, 0), flow.Counters{})
	tests := []struct {
		name   string
		r      *flow.Record
		i      Interest
		asConn bool
	}{
		{"open, both kinds", open, asking(ofFlows, ofConnections), true},
		{"open, connections", open, asking(ofConnections), true},
		{"open, flows", open, asking(ofFlows), false},
		{"update, both kinds", change, asking(ofFlows, ofConnections), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ev := New(hub.New(new(loss.Counters)), 16, "node-a", nil).Event(&hub.Item{Sequence: 7, Record: tt.r}, &tt.i)
			if got := ev.GetConnection() != nil; got != tt.asConn || ev.GetSequence() != 7 {
				t.Errorf("as connection: got %v, want %v", got, tt.asConn)
			}
		})
	}
}
