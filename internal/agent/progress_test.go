// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/flow"
)

func TestProgress(t *testing.T) {
	type seen struct {
		event       flow.Event
		retransmits uint64
		connect     uint64
		base        uint64
		preexisting bool
	}
	type told struct {
		Retransmits uint64
		Connected   bool
	}
	const (
		ms     = 1_000_000
		open   = flow.EventOpen
		update = flow.EventUpdate
		ended  = flow.EventClose
		expire = flow.EventExpire
	)
	tests := []struct {
		name    string
		records []seen
		want    []told
		// left is how many connections are remembered at the end.
		left int
	}{
		{
			"quiet", []seen{{event: open, connect: ms}, {event: update, connect: ms, base: 1}, {event: ended, connect: ms, base: 2}},
			[]told{{0, true}, {0, false}, {0, false}}, 0,
		},
		{
			"too short to be sampled", []seen{{event: ended, connect: ms, retransmits: 1}},
			[]told{{1, true}}, 0,
		},
		{
			"retransmits", []seen{
				{event: open, retransmits: 1, connect: ms},
				{event: update, retransmits: 4, connect: ms, base: 1},
				{event: update, retransmits: 4, connect: ms, base: 2},
				{event: ended, retransmits: 5, connect: ms, base: 3},
			},
			[]told{{1, true}, {3, false}, {0, false}, {1, false}}, 0,
		},
		{
			"first retransmit later", []seen{{event: open, connect: ms}, {event: update, retransmits: 2, connect: ms, base: 1}},
			[]told{{0, true}, {2, false}}, 1,
		},
		{
			"first retransmit at the end", []seen{{event: open, connect: ms}, {event: ended, retransmits: 2, connect: ms, base: 1}},
			[]told{{0, true}, {2, false}}, 0,
		},
		{
			// The retransmit's own record leaves the base as it is.
			"opened by a retransmit", []seen{{event: open, retransmits: 1, connect: ms}, {event: ended, retransmits: 1, connect: ms}},
			[]told{{1, true}, {0, false}}, 0,
		},
		{
			"slow to connect", []seen{{event: open}, {event: update, retransmits: 1, base: 1}, {event: update, retransmits: 1, connect: ms, base: 2}, {event: update, retransmits: 1, connect: ms, base: 3}},
			[]told{{0, false}, {1, false}, {0, true}, {0, false}}, 1,
		},
		{
			"expires while it connects", []seen{{event: open}, {event: expire, base: 1}, {event: open, connect: ms, base: 1}, {event: ended, connect: ms, base: 2}},
			[]told{{0, false}, {0, false}, {0, true}, {0, false}}, 0,
		},
		{
			"never connects", []seen{{event: open}, {event: ended, base: 1}},
			[]told{{0, false}, {0, false}}, 0,
		},
		{
			"older than the agent", []seen{{event: open, retransmits: 100, preexisting: true, base: 9}, {event: update, retransmits: 101, preexisting: true, base: 9}},
			[]told{{0, false}, {1, false}}, 1,
		},
		{
			"older than the agent, seen at its end", []seen{{event: ended, retransmits: 100, preexisting: true, base: 9}},
			[]told{{0, false}}, 0,
		},
		{
			"idle for long, then back", []seen{
				{event: open, retransmits: 3, connect: ms},
				{event: expire, retransmits: 3, connect: ms},
				{event: open, retransmits: 4, connect: ms, base: 1},
				{event: ended, retransmits: 4, connect: ms, base: 2},
			},
			[]told{{3, true}, {0, false}, {1, false}, {0, false}}, 0,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newProgress()
			var got []told
			for _, r := range tt.records {
				s := tcpSample(1, 0, 0)
				s.TCP.Retransmits, s.TCP.ConnectNanos, s.TCP.Preexisting = r.retransmits, r.connect, r.preexisting
				s.Base.TxPackets = r.base
				if r.connect == 0 {
					s.TCP.State = flow.StateSynSent
				}
				n, connected := p.advance(record(r.event, s, flow.Counters{}))
				got = append(got, told{n, connected})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if len(p.of) != tt.left {
				t.Errorf("%d connections are remembered, want %d", len(p.of), tt.left)
			}
		})
	}
}

func TestProgressIsBounded(t *testing.T) {
	p := newProgress()
	for i := range maxProgress + 10 {
		s := tcpSample(1, 0, 0)
		s.TCP.Retransmits, s.Instance = 1, uint64(i)
		p.advance(record(flow.EventOpen, s, flow.Counters{}))
	}
	if len(p.of) > maxProgress {
		t.Errorf("remembers %d connections", len(p.of))
	}
}
