// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
)

// publishKinds publishes a record for each letter: f for a flow, d for a query seen
// at its client, s for one seen at its server, x for a drop, o for an overflow, p for a
// program that is started, e for a process that ends.
func publishKinds(h *hub, letters string) {
	for n, l := range letters {
		r := numbered(n + 1)
		switch l {
		case 'd', 's':
			r.Detail, r.Role = &dns.Exchange{Outcome: dns.Answered, Name: "a.test"}, flow.RoleClient
			if l == 's' {
				r.Role = flow.RoleServer
			}
		case 'x':
			r.Detail = &flow.Drop{Reason: "NO_SOCKET"}
		case 'o':
			r.Detail = &flow.ListenOverflow{Drops: 1}
		case 'p':
			r.Detail = &process.Step{Event: process.Event{What: process.Exec}}
		case 'e':
			r.Detail = &process.Step{Event: process.Event{What: process.Exit}}
		}
		h.publish(r)
	}
}

func places(h history) string {
	var all []string
	for _, u := range h.updates {
		all = append(all, fmt.Sprint(u.seq))
	}
	return strings.Join(all, " ")
}

// TestKindsDoNotPushOutEachOther: a flood of queries leaves the flows' past alone,
// and what several kinds have in common is their order.
func TestKindsDoNotPushOutEachOther(t *testing.T) {
	h := newHub("n", 3, new(loss.Counters))
	publishKinds(h, "ffxod"+strings.Repeat("d", 20)+"s")
	tests := []struct {
		name string
		i    interest
		q    pastQuery
		want string
	}{
		{"flows", interest{flows: true}, pastQuery{last: 10}, "1 2"},
		{"queries", interest{dns: true}, pastQuery{last: 10}, "24 25"},
		{"queries at the server", interest{dns: true, serverSide: true}, pastQuery{last: 10}, "26"},
		{"drops", interest{drops: true}, pastQuery{last: 10}, "3"},
		{"overflows", interest{overflows: true}, pastQuery{last: 10}, "4"},
		{"all", interest{flows: true, dns: true, drops: true, overflows: true}, pastQuery{last: 10}, "1 2 3 4 24 25"},
		{"the last of all", interest{flows: true, dns: true, drops: true}, pastQuery{last: 3}, "3 24 25"},
		{"nothing", interest{}, pastQuery{last: 10}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, places(h.query(&tt.i, tt.q))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestEndsDoNotPushOutStarts: both are kept for those who ask for processes.
func TestEndsDoNotPushOutStarts(t *testing.T) {
	h := newHub("n", 3*processShare, new(loss.Counters))
	publishKinds(h, "pp"+strings.Repeat("e", 50))
	if got := places(h.query(&interest{processes: true}, pastQuery{last: 10})); got != "1 2 50 51 52" {
		t.Errorf("kept %s, want the starts and the latest three ends", got)
	}
	few := newHub("n", 1, new(loss.Counters))
	publishKinds(few, "pppe")
	if got := places(few.query(&interest{processes: true}, pastQuery{last: 10})); got != "3 4" {
		t.Errorf("of a history of 1: %s", got)
	}
}

// TestKeptSince: each kind says from when on all of it is kept.
func TestKeptSince(t *testing.T) {
	h := newHub("n", 3, new(loss.Counters))
	publishKinds(h, "fxffddddd")
	late := numbered(2) // told of late
	late.Detail = &dns.Exchange{}
	h.publish(late)
	want := []kindKept{
		{flow.KindFlow, 3, 3, 0}, {flow.KindDNS, 3, 3, numbered(7).Time + 1}, {flow.KindDrop, 1, 3, 0},
		{flow.KindListen, 0, 3, 0}, {flow.KindExec, 0, 1, 0}, {flow.KindExit, 0, 1, 0}, {flow.KindAlert, 0, 3, 0},
	}
	if diff := cmp.Diff(want, h.kept(), cmp.AllowUnexported(kindKept{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	off := newHub("n", 0, new(loss.Counters))
	publishKinds(off, "p")
	if got := off.kept()[flow.KindExec]; got.capacity != 0 || got.since != numbered(1).Time+1 {
		t.Errorf("without a history: %+v", got)
	}
}

// TestMissingOfAKind: a resume misses only what is of a kind that it asks for.
func TestMissingOfAKind(t *testing.T) {
	h := newHub("n", 3, new(loss.Counters))
	publishKinds(h, "f"+strings.Repeat("d", 20)+"f")
	resume := func(i interest, after uint64) (string, uint64) {
		got := h.query(&i, pastQuery{resume: true, after: after})
		return places(got), got.missing
	}
	if got, missing := resume(interest{flows: true}, 0); got != "1 22" || missing != 0 {
		t.Errorf("flows: %s, %d missing", got, missing)
	}
	if got, missing := resume(interest{dns: true}, 10); got != "19 20 21" || missing != 8 {
		t.Errorf("queries after 10: %s, %d missing, want 11 to 18", got, missing)
	}
	// Beyond what is known of kinds everything counts.
	far := newHub("n", 1, new(loss.Counters))
	publishKinds(far, "ff"+strings.Repeat("d", 10*kindsPerRecord-2))
	i := interest{flows: true}
	if got := far.query(&i, pastQuery{resume: true}); got.missing != 9*kindsPerRecord {
		t.Errorf("%d missing, want %d", got.missing, 9*kindsPerRecord)
	}
	// Unless nothing was dropped of what is asked for, wherever the client is.
	i = interest{drops: true}
	for _, after := range []uint64{0, 5, math.MaxUint64} {
		if got := far.query(&i, pastQuery{resume: true, after: after}); got.missing != 0 {
			t.Errorf("after %d: %d drops missing", after, got.missing)
		}
	}
}
