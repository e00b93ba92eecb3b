// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// TestNumbersAreThoseOfTheAPI guards the conversions by number.
func TestNumbersAreThoseOfTheAPI(t *testing.T) {
	for _, s := range []struct {
		name string
		ours int
		api  protoreflect.Enum
	}{
		{"running", int(probe.StateRunning), orb8v1.ProbeState_PROBE_STATE_RUNNING},
		{"fallback", int(probe.StateFallback), orb8v1.ProbeState_PROBE_STATE_FALLBACK},
		{"off", int(probe.StateOff), orb8v1.ProbeState_PROBE_STATE_OFF},
	} {
		if s.ours != int(s.api.Number()) {
			t.Errorf("%s: %d, but the API's is %d", s.name, s.ours, s.api.Number())
		}
	}
}

func TestProbesPB(t *testing.T) {
	got := probesPB([]probe.Status{
		{Name: "tcp", State: probe.StateFallback, Reason: "r", Remedy: "m", Hooks: []string{"h"}, Degraded: []string{"d"}},
	})
	want := []*orb8v1.ProbeStatus{
		{Name: "tcp", State: orb8v1.ProbeState_PROBE_STATE_FALLBACK, Reason: "r", Remedy: "m", Hooks: []string{"h"}, Degraded: []string{"d"}},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLossesPB(t *testing.T) {
	var c loss.Counters
	c.Add(loss.TCPRingFull, 3)
	got := lossesPB(&c)
	if len(got) != len(loss.Stages()) {
		t.Fatalf("%d stages, want %d", len(got), len(loss.Stages()))
	}
	want := &orb8v1.LossCount{Stage: "tcp_ring_full", Count: 3, Meaning: loss.TCPRingFull.Meaning()}
	if diff := cmp.Diff(want, got[loss.TCPRingFull], protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
