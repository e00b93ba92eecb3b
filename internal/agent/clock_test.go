// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/flow/flowtest"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// steppedClock is a probe.Clock whose wall clock somebody sets.
type steppedClock struct {
	mu         sync.Mutex
	now        time.Time
	correction time.Duration
}

func (c *steppedClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *steppedClock) Correction() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.correction
}

func (c *steppedClock) pass(d, step time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.correction = c.now.Add(d), c.correction+step
}

// A step of the wall clock, either way, changes what time it is, not what happens:
// states go on, connections open, idle flows go after their time.
func TestWallClockSteps(t *testing.T) {
	for _, step := range []time.Duration{-time.Hour, time.Hour} {
		t.Run(step.String(), func(t *testing.T) {
			clock := &steppedClock{now: time.Unix(0, flowtest.Second(0))}
			var since []int64
			r := startRig(t, idleTimeout(30*time.Second), func(_ *config.Config, d *Deps, r *rig) {
				d.Clock = clock
				r.resolver.asked = func(p workload.Peer) { since = append(since, p.Since) }
			})
			at := func() int64 { return clock.Now().UnixNano() }
			feed := func(port uint16, state flow.State, bytes uint64) {
				s := flowtest.TCP(port, bytes, 0)
				s.First, s.Last, s.TCP.State = flowtest.Second(0), at(), state
				r.probe.feed(s)
				r.query(t, &orb8v1.QueryFlowsRequest{})
			}
			feed(1, flow.StateSynSent, 1)
			clock.pass(5*time.Second, step)
			feed(1, flow.StateEstablished, 2)
			feed(2, flow.StateEstablished, 3)
			clock.pass(31*time.Second, 0)
			r.tick(t.Context(), time.Now())
			r.tick(t.Context(), time.Now())

			want := []string{"connected", "open 1", "opened 1", "opened 2", "expire 1", "expire 2"}
			if d := cmp.Diff(want, r.observe(t, &orb8v1.ObserveRequest{Last: 9})); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			resp, err := r.client.QueryFlows(t.Context(), &orb8v1.QueryFlowsRequest{})
			if err != nil || resp.GetTotal() != 0 {
				t.Errorf("%d rows are left, %v", resp.GetTotal(), err)
			}
			// By the wall clock of the moment everything before is an hour off.
			recent := r.observe(t, &orb8v1.ObserveRequest{SinceNs: flowtest.Second(36) + int64(step)})
			if !slices.Contains(recent, "expire 2") || slices.Contains(recent, "opened 2") {
				t.Errorf("since the end: %q", recent)
			}
			if last := since[len(since)-1]; last != flowtest.Second(0)+int64(step) {
				t.Errorf("the peer is asked for at %d, want %d", last, flowtest.Second(0)+int64(step))
			}
		})
	}
}
