// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/cluster"
)

// clusterOf has an agent for each time since when it keeps alerts, 0 for one that
// keeps all; they started at 50 s.
func clusterOf(keptSince ...int64) *source {
	s := &source{name: "test"}
	for i, at := range keptSince {
		s.nodes = append(s.nodes, cluster.Answer[*orb8v1.AgentStatus]{Value: &orb8v1.AgentStatus{
			NodeName: fmt.Sprint("n", i+1), StartedNs: int64(50 * time.Second),
			Probes:  []*orb8v1.ProbeStatus{{Name: "exec", State: orb8v1.ProbeState_PROBE_STATE_RUNNING}},
			History: []*orb8v1.HistoryStatus{{Kind: "alert", Capacity: 9, KeptSinceNs: at * int64(time.Second)}},
		}})
	}
	return s
}

func alertsSince(ago time.Duration) *traceFlags {
	f := &traceFlags{kind: traceKind{only: orb8v1.EventKind_EVENT_KIND_ALERT, probe: "exec", past: true}}
	f.since.ago = ago
	return f
}

// TestPushedOutOfACluster: few nodes are named, of many the one that keeps least.
func TestPushedOutOfACluster(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct {
		src   *source
		since time.Duration
		want  []string
	}{
		{clusterOf(0, 0), 900 * time.Second, nil},
		{clusterOf(0, 200), 900 * time.Second, []string{"kept on n2 since"}},
		{clusterOf(0, 200), 700 * time.Second, nil},
		{clusterOf(0, 0, 200), 0, []string{"kept on n3 since"}},
		{clusterOf(0, 200, 400, 300, 250), 0, []string{"on 4 nodes older ones were pushed out, on n3 all before"}},
		{clusterOf(0, 200), 990 * time.Second, []string{"the agent on n1 runs since", "kept on n2 since"}},
	} {
		got := alertsSince(tt.since).beyond(tt.src, now)
		if len(got) != len(tt.want) {
			t.Errorf("%q, want %q", got, tt.want)
			continue
		}
		for i, line := range got {
			if !strings.HasPrefix(line, tt.want[i]) {
				t.Errorf("%q, want %q", line, tt.want[i])
			}
		}
	}
}

// TestNoAlertsOfACluster: what is claimed holds for every node.
func TestNoAlertsOfACluster(t *testing.T) {
	now := time.Unix(1000, 0)
	src := clusterOf(0, 300)
	src.nodes[0].Value.StartedNs = int64(200 * time.Second)
	for ago, since := range map[time.Duration]int64{0: 300, 900 * time.Second: 300, 100 * time.Second: 900} {
		want := "no alerts since " + time.Unix(since, 0).Format(time.DateTime) + "; the rules run on 2 nodes of 2 nodes"
		if got := noAlerts(alertsSince(ago), src, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	src.nodes[0].Value.StartedNs = int64(600 * time.Second)
	if got := noAlerts(alertsSince(0), src, now); !strings.Contains(got, time.Unix(600, 0).Format(time.DateTime)) {
		t.Errorf("%q claims what the younger agent cannot know", got)
	}
}
