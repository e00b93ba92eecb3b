// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

var everything = interest{flows: true}

// numbered is a record that the tests tell by its local port and second.
func numbered(n int) *flow.Record {
	r := recordOf(flow.EventUpdate, udpSample(uint16(n), 10, 0), flow.Counters{TxBytes: 10, TxPackets: 1})
	r.Time = second(int64(n))
	return r
}

// took is what a subscriber received: a port per update, or minus the number of
// events lost.
func took(t *testing.T, s *subscription, n int) []int {
	t.Helper()
	ctx := testwait.Context(t)
	var got []int
	for len(got) < n {
		q, ok := s.next(ctx)
		if !ok {
			return append(got, 0)
		}
		if q.lost > 0 {
			got = append(got, -int(q.lost))
		}
		if q.update != nil {
			got = append(got, int(q.update.rec.LocalPort))
		}
	}
	return got
}

func ports(h history) []int {
	var p []int
	for _, u := range h.updates {
		p = append(p, int(u.rec.LocalPort))
	}
	return p
}

func TestSlowSubscriberLosesIsCountedAndTold(t *testing.T) {
	losses := new(loss.Counters)
	h := newHub("n", 0, losses)
	slow, _ := h.subscribe(everything, 2, past{})
	quick, _ := h.subscribe(everything, 16, past{})
	for n := 1; n <= 5; n++ {
		h.publish(numbered(n))
	}
	if got := losses.Get(loss.SubscriberSlow); got != 3 {
		t.Errorf("counted %d lost, want 3", got)
	}
	// One is read, so that the next fits and carries how many are missing.
	if diff := cmp.Diff([]int{1}, took(t, slow, 1)); diff != "" {
		t.Error(diff)
	}
	h.publish(numbered(6))
	h.publish(numbered(7))
	if diff := cmp.Diff([]int{2, -3, 6}, took(t, slow, 3)); diff != "" {
		t.Errorf("in the order of things (-want +got)\n%s", diff)
	}
	// Nothing follows the last loss, and it is told all the same.
	if diff := cmp.Diff([]int{-1}, took(t, slow, 1)); diff != "" {
		t.Errorf("loss with nothing after it (-want +got)\n%s", diff)
	}
	h.close()
	if diff := cmp.Diff([]int{0}, took(t, slow, 1)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{1, 2, 3, 4, 5, 6, 7, 0}, took(t, quick, 8)); diff != "" {
		t.Errorf("the quick one (-want +got)\n%s", diff)
	}
}

func TestCloseTellsTheLastLoss(t *testing.T) {
	h := newHub("n", 0, new(loss.Counters))
	s, _ := h.subscribe(everything, 1, past{})
	h.publish(numbered(1))
	h.publish(numbered(2))
	h.close()
	if diff := cmp.Diff([]int{1, -1, 0}, took(t, s, 3)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	h.unsubscribe(s)
	late, _ := h.subscribe(everything, 1, past{})
	if diff := cmp.Diff([]int{0}, took(t, late, 1)); diff != "" {
		t.Errorf("subscribed after close (-want +got)\n%s", diff)
	}
}

func TestHistory(t *testing.T) {
	h := newHub("n", 4, new(loss.Counters))
	for n := 1; n <= 6; n++ {
		h.publish(numbered(n))
	}
	even, err := filter.Compile([]*orb8v1.Filter{{Ports: []uint32{2, 4, 6}}})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		i    interest
		p    past
		want []int
	}{
		{"none asked for", everything, past{}, nil},
		{"last", everything, past{last: 2}, []int{5, 6}},
		{"last is more than is kept", everything, past{last: 100}, []int{3, 4, 5, 6}},
		{"since", everything, past{since: second(5)}, []int{5, 6}},
		{"since long ago", everything, past{since: 1}, []int{3, 4, 5, 6}},
		{"since and last", everything, past{since: second(4), last: 2}, []int{5, 6}},
		{"last that match", interest{flows: true, filters: even}, past{last: 2}, []int{4, 6}},
		{"connections only", interest{connections: true}, past{last: 2}, nil},
		{"resume", everything, past{resume: true, after: 4}, []int{5, 6}},
		{"resume from the oldest", everything, past{resume: true, after: 2}, []int{3, 4, 5, 6}},
		{"resume at the end", everything, past{resume: true, after: 6}, nil},
		{"resume what matches", interest{flows: true, filters: even}, past{resume: true, after: 4}, []int{6}},
		{"all since the start", everything, past{resume: true, since: second(5)}, []int{5, 6}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ports(h.past(&tt.i, tt.p))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if got := h.kept(); got != 4 {
		t.Errorf("keeps %d, want 4", got)
	}
}

// What is no longer kept is counted and told.
func TestResumeGap(t *testing.T) {
	losses := new(loss.Counters)
	h := newHub("n", 4, losses)
	for n := 1; n <= 10; n++ {
		h.publish(numbered(n))
	}
	for _, tt := range []struct{ after, missing uint64 }{{6, 0}, {5, 1}, {0, 6}} {
		before := losses.Get(loss.ResumeGap)
		got := h.past(&everything, past{resume: true, after: tt.after})
		if got.missing != tt.missing || losses.Get(loss.ResumeGap)-before != tt.missing || len(got.updates) != 4 {
			t.Errorf("after %d: %d missing, %d sent, want %d missing", tt.after, got.missing, len(got.updates), tt.missing)
		}
	}
	off := newHub("n", 0, losses)
	off.publish(numbered(1))
	if got := off.past(&everything, past{resume: true}); got.missing != 1 || got.updates != nil {
		t.Errorf("without history: %+v", got)
	}
}

// A subscriber that nothing matches for is told how far things have gone, once.
func TestQuietStreamIsToldHowFar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub("n", 4, new(loss.Counters))
		s, _ := h.subscribe(interest{connections: true}, 1, past{})
		s.idle = time.Second
		h.publish(numbered(1))
		h.publish(numbered(2))
		if q, ok := s.next(t.Context()); !ok || q.reached != 2 || q.update != nil {
			t.Errorf("%+v, %t", q, ok)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if q, ok := s.next(ctx); ok {
			t.Errorf("told again: %+v", q)
		}
	})
}

func TestHistoryOff(t *testing.T) {
	h := newHub("n", 0, new(loss.Counters))
	h.publish(numbered(1))
	if got := h.past(&everything, past{last: 1}); got.updates != nil || h.kept() != 0 {
		t.Errorf("got %v", got)
	}
}

// TestSubscribeMissesNothing: what is not in the history comes by the queue,
// and nothing comes by both.
func TestSubscribeMissesNothing(t *testing.T) {
	const total = 2000
	h := newHub("n", total, new(loss.Counters))
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; n <= total; n++ {
			h.publish(numbered(n))
		}
		h.close()
	})
	s, recent := h.subscribe(everything, total, past{last: total})
	got := ports(recent)
	got = append(got, took(t, s, total+1-len(got))...)
	testwait.Return(t, "the publisher", wg.Wait)
	want := make([]int, total+1)
	for i := range total {
		want[i] = i + 1
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWants(t *testing.T) {
	open := recordOf(flow.EventOpen, tcpSample(1, 1, 1), flow.Counters{})
	update := recordOf(flow.EventUpdate, tcpSample(1, 1, 1), flow.Counters{})
	own := recordOf(flow.EventOpen, tcpSample(1, 1, 1), flow.Counters{})
	own.Self = true
	tests := []struct {
		name              string
		i                 interest
		open, update, own bool
	}{
		{"nothing", interest{}, false, false, false},
		{"flows", interest{flows: true}, true, true, false},
		{"flows with own", interest{flows: true, self: true}, true, true, true},
		{"connections", interest{connections: true}, true, false, false},
		{"status", interest{status: true, losses: true}, false, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := []bool{tt.i.wants(open), tt.i.wants(update), tt.i.wants(own)}
			if diff := cmp.Diff([]bool{tt.open, tt.update, tt.own}, got); diff != "" {
				t.Errorf("open, update, own (-want +got)\n%s", diff)
			}
		})
	}
}

// TestUpdateIsBuiltOnce: all subscribers share what is made from a record.
func TestUpdateIsBuiltOnce(t *testing.T) {
	h := newHub("n", 0, new(loss.Counters))
	a, _ := h.subscribe(everything, 1, past{})
	b, _ := h.subscribe(everything, 1, past{})
	h.publish(numbered(1))
	ctx := testwait.Context(t)
	qa, _ := a.next(ctx)
	qb, _ := b.next(ctx)
	if qa.update.event(&everything) != qb.update.event(&everything) {
		t.Error("each subscriber has its own event")
	}
	if &qa.update.networkEvents()[0] != &qb.update.networkEvents()[0] {
		t.Error("each subscriber has its own network events")
	}
}

func TestTell(t *testing.T) {
	h := newHub("n", 4, new(loss.Counters))
	all, _ := h.subscribe(interest{status: true}, 1, past{})
	none, _ := h.subscribe(everything, 1, past{})
	e := &orb8v1.Event{NodeName: "n"}
	h.tell(e, func(i *interest) bool { return i.status })
	q, _ := all.next(testwait.Context(t))
	if q.update.event(&all.interest) != e {
		t.Error("the event did not come")
	}
	if len(none.queue) != 0 || h.kept() != 0 {
		t.Error("the event went where it does not belong")
	}
}

func TestNextEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub("n", 0, new(loss.Counters))
		s, _ := h.subscribe(everything, 1, past{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, ok := s.next(ctx); ok {
			t.Error("an event from nowhere")
		}
		h.unsubscribe(s)
		if h.subscribers() != 0 {
			t.Error("still subscribed")
		}
	})
}

func TestPublishDoesNotAllocateWithoutSubscribers(t *testing.T) {
	h := newHub("n", 4096, new(loss.Counters))
	r := numbered(1)
	if n := testing.AllocsPerRun(1000, func() { h.publish(r) }); n != 0 {
		t.Errorf("%v allocations without a subscriber", n)
	}
	other, err := filter.Compile([]*orb8v1.Filter{{Ports: []uint32{9}}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = h.subscribe(interest{flows: true, filters: other}, 1, past{})
	if n := testing.AllocsPerRun(1000, func() { h.publish(r) }); n != 0 {
		t.Errorf("%v allocations for a subscriber that does not want the event", n)
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, bb := range []struct {
		name string
		subs int
	}{{"no subscriber", 0}, {"one subscriber", 1}, {"ten subscribers", 10}} {
		b.Run(bb.name, func(b *testing.B) {
			h := newHub("n", 4096, new(loss.Counters))
			for range bb.subs {
				s, _ := h.subscribe(everything, 4096, past{})
				go func() {
					for {
						if _, ok := s.next(context.Background()); !ok {
							return
						}
					}
				}()
			}
			r := numbered(1)
			b.ReportAllocs()
			for b.Loop() {
				h.publish(r)
			}
			h.close()
		})
	}
}

func BenchmarkConvert(b *testing.B) {
	r := recordOf(flow.EventUpdate, tcpSample(1, 1000, 1000), flow.Counters{TxBytes: 1000, TxPackets: 1, RxBytes: 1000, RxPackets: 1})
	b.Run("flow event", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			flowEvent(r, "n")
		}
	})
	b.Run("network events", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			networkEvents(r)
		}
	})
}
