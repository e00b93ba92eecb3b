// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"math"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// number is a record of one kind, letter one of another. Their time is their value.
type (
	number int
	letter int
)

const room = 4096

func newHub(keep int) (*Hub, *Lane[number], *loss.Counters) {
	losses := new(loss.Counters)
	h := New(losses)
	return h, NewLane(h, keep, room, func(n *number) int64 { return int64(*n) }), losses
}

func (l *Lane[T]) publish(all ...T) {
	for i := range all {
		l.Publish(&all[i])
	}
}

func every[T any](*T) bool { return true }

func all[T any](l *Lane[T]) []Selection { return []Selection{Select(l, every[T])} }

// value is what a subscriber received: a record, or minus the number of those lost.
func values(i Item) (got []int) {
	if i.Lost > 0 {
		got = append(got, -int(i.Lost))
	}
	switch r := i.Record.(type) {
	case *number:
		got = append(got, int(*r))
	case *letter:
		got = append(got, 1000+int(*r))
	}
	return got
}

// took is the next n values, with a 0 at the end of all.
func took(t *testing.T, s *Subscription, n int) []int {
	t.Helper()
	ctx := testwait.Context(t)
	var got []int
	for len(got) < n {
		i, ok := s.Next(ctx)
		if !ok {
			return append(got, 0)
		}
		got = append(got, values(i)...)
	}
	return got
}

func past(h History) (got []int) {
	for _, i := range h.Items {
		got = append(got, values(i)...)
	}
	return got
}

func TestSlowSubscriberLosesIsCountedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, l, losses := newHub(0)
		slow, _ := h.Subscribe(Options{Select: all(l), Queue: 2})
		quick, _ := h.Subscribe(Options{Select: all(l), Queue: 16})
		l.publish(1, 2, 3, 4, 5)
		synctest.Wait()
		if got := losses.Get(loss.SubscriberSlow); got != 3 {
			t.Errorf("counted %d lost, want 3", got)
		}
		// One is read, so that the next fits and carries how many are missing.
		if diff := cmp.Diff([]int{1}, took(t, slow, 1)); diff != "" {
			t.Error(diff)
		}
		l.publish(6, 7)
		synctest.Wait()
		if diff := cmp.Diff([]int{2, -3, 6}, took(t, slow, 3)); diff != "" {
			t.Errorf("in the order of things (-want +got)\n%s", diff)
		}
		// Nothing follows the last loss, and it is told all the same.
		if diff := cmp.Diff([]int{-1}, took(t, slow, 1)); diff != "" {
			t.Errorf("loss with nothing after it (-want +got)\n%s", diff)
		}
		h.Close()
		if diff := cmp.Diff([]int{0}, took(t, slow, 1)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]int{1, 2, 3, 4, 5, 6, 7, 0}, took(t, quick, 8)); diff != "" {
			t.Errorf("the quick one (-want +got)\n%s", diff)
		}
		slow.Close()
		quick.Close()
	})
}

func TestCloseTellsTheLastLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, l, _ := newHub(0)
		s, _ := h.Subscribe(Options{Select: all(l), Queue: 1})
		l.publish(1, 2)
		h.Close()
		synctest.Wait()
		if diff := cmp.Diff([]int{1, -1, 0}, took(t, s, 3)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		s.Close()
		late, _ := h.Subscribe(Options{Select: all(l), Queue: 1})
		if diff := cmp.Diff([]int{0}, took(t, late, 1)); diff != "" {
			t.Errorf("subscribed after close (-want +got)\n%s", diff)
		}
		h.Notify("late", func(*Subscription) bool { return true })
		late.Close()
	})
}

func even(n *number) bool { return *n%2 == 0 }

func TestHistory(t *testing.T) {
	h, l, _ := newHub(4)
	l.publish(1, 2, 3, 4, 5, 6)
	evens := []Selection{Select(l, even)}
	tests := []struct {
		name   string
		selecs []Selection
		p      Past
		want   []int
	}{
		{"none asked for", all(l), Past{}, nil},
		{"last", all(l), Past{Last: 2}, []int{5, 6}},
		{"last is more than is kept", all(l), Past{Last: 100}, []int{3, 4, 5, 6}},
		{"since", all(l), Past{Since: 5}, []int{5, 6}},
		{"since long ago", all(l), Past{Since: 1}, []int{3, 4, 5, 6}},
		{"since and last", all(l), Past{Since: 4, Last: 2}, []int{5, 6}},
		{"last that match", evens, Past{Last: 2}, []int{4, 6}},
		{"last one that matches", evens, Past{Last: 1}, []int{6}},
		{"nothing selected", nil, Past{Last: 2}, nil},
		{"resume", all(l), Past{Resume: true, After: 4}, []int{5, 6}},
		{"resume from the oldest", all(l), Past{Resume: true, After: 2}, []int{3, 4, 5, 6}},
		{"resume at the end", all(l), Past{Resume: true, After: 6}, nil},
		{"resume what matches", evens, Past{Resume: true, After: 4}, []int{6}},
		{"all since the start", all(l), Past{Resume: true, Since: 5}, []int{5, 6}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, past(h.Past(Options{Select: tt.selecs, Past: tt.p}))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if got := l.Kept(); got != 4 {
		t.Errorf("keeps %d, want 4", got)
	}
}

// TestReach: who asks for the past can tell how far back it goes.
func TestReach(t *testing.T) {
	h, l, _ := newHub(4)
	reach := func() int64 { return h.Past(Options{Select: all(l), Past: Past{Since: 1}}).Since }
	if l.publish(1, 2, 3, 4); reach() != 0 {
		t.Errorf("with all that there was it reaches to %d", reach())
	}
	if l.publish(5, 6); reach() != 3 {
		t.Errorf("it reaches to %d, want 3", reach())
	}
	sub, past := h.Subscribe(Options{Select: all(l), Past: Past{Since: 1}, Queue: 1})
	defer sub.Close()
	if past.Since != 3 {
		t.Errorf("for who follows it reaches to %d, want 3", past.Since)
	}
	h, l, _ = newHub(0)
	if l.publish(1); reach() != math.MaxInt64 {
		t.Errorf("nothing is kept, and it reaches to %d", reach())
	}
}

func TestHistoryByTime(t *testing.T) {
	h, l, _ := newHub(10)
	l.publish(1, 5, 3, 4)
	got := h.Past(Options{Select: all(l), Past: Past{Last: 3}})
	got.Sort()
	if diff := cmp.Diff([]int{3, 4, 5}, past(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// More history than a window has, with a lane whose ring has no room beyond it.
func TestLongHistory(t *testing.T) {
	const keep = 5 * window
	losses := new(loss.Counters)
	h := New(losses)
	l := NewLane(h, keep, 0, func(n *number) int64 { return int64(*n) })
	for n := range number(3 * keep) {
		l.publish(n + 1)
	}
	got := past(h.Past(Options{Select: all(l), Past: Past{Last: 3 * keep}}))
	if len(got) != keep || got[0] != 2*keep+1 || got[keep-1] != 3*keep {
		t.Errorf("%d of the past, %v", len(got), got)
	}
	if got := h.Past(Options{Select: all(l), Past: Past{Resume: true, After: 10}}); got.Missing != 2*keep-10 || len(got.Items) != keep {
		t.Errorf("%d missing, %d sent", got.Missing, len(got.Items))
	}
}

// What is no longer kept is counted and told.
func TestResumeGap(t *testing.T) {
	h, l, losses := newHub(4)
	l.publish(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	for _, tt := range []struct{ after, missing uint64 }{{6, 0}, {5, 1}, {0, 6}} {
		before := losses.Get(loss.ResumeGap)
		got := h.Past(Options{Select: all(l), Past: Past{Resume: true, After: tt.after}})
		if got.Missing != tt.missing || losses.Get(loss.ResumeGap)-before != tt.missing || len(got.Items) != 4 {
			t.Errorf("after %d: %d missing, %d sent, want %d missing", tt.after, got.Missing, len(got.Items), tt.missing)
		}
	}
	off, l, _ := newHub(0)
	l.publish(1)
	if got := off.Past(Options{Select: all(l), Past: Past{Resume: true}}); got.Missing != 1 || got.Items != nil {
		t.Errorf("without history: %+v", got)
	}
}

// Many records of one kind push out none of another, and all kinds come in one order.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, numbers, losses := newHub(4)
		letters := NewLane(h, 4, room, func(l *letter) int64 { return int64(*l) })
		both := func() []Selection { return []Selection{Select(numbers, every[number]), Select(letters, every[letter])} }
		s, _ := h.Subscribe(Options{Select: both(), Queue: 4 * room})
		letters.publish(1, 2)
		for n := range number(2 * room) {
			numbers.publish(n + 1)
			if n == 0 {
				letters.publish(3)
			}
			synctest.Wait()
		}
		if diff := cmp.Diff([]int{1001, 1002, 1, 1003, 2, 3}, took(t, s, 6)); diff != "" {
			t.Errorf("in one order (-want +got)\n%s", diff)
		}
		s.Close()
		want := []int{1001, 1002, 1003, 2*room - 3, 2*room - 2, 2*room - 1, 2 * room}
		if diff := cmp.Diff(want, past(h.Past(Options{Select: both(), Past: Past{Since: 1}}))); diff != "" {
			t.Errorf("history (-want +got)\n%s", diff)
		}
		// A resume misses those numbers that are gone, and no letter.
		got := h.Past(Options{Select: both(), Past: Past{Resume: true, After: 3}})
		if diff := cmp.Diff(want[2:], past(got)); diff != "" || got.Missing != 2*room-4 {
			t.Errorf("%d missing (-want +got)\n%s", got.Missing, diff)
		}
		if got := h.Past(Options{Select: all(letters), Past: Past{Resume: true, After: 1}}); got.Missing != 0 || len(got.Items) != 2 {
			t.Errorf("letters alone: %d missing, %d sent", got.Missing, len(got.Items))
		}
		if n := losses.Get(loss.SubscriberSlow); n != 0 {
			t.Errorf("%d lost", n)
		}
	})
}

// What is overwritten before it was looked through is counted and told.
func TestOverrun(t *testing.T) {
	h, l, losses := newHub(0)
	held, hold := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s, _ := h.Subscribe(Options{Queue: 2 * room, Select: []Selection{Select(l, func(*number) bool {
		once.Do(func() { close(held); <-hold }) // a filter that takes long
		return true
	})}})
	defer s.Close()
	l.publish(1)
	testwait.Receive(t, "the first record is looked at", held)
	const more = room + 100
	for n := range number(more) {
		l.publish(n + 2)
	}
	close(hold)
	if diff := cmp.Diff([]int{1, -100, 102, 103}, took(t, s, 4)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if n := losses.Get(loss.SubscriberSlow); n != 100 {
		t.Errorf("%d counted, want 100", n)
	}
}

// A filter is matched with nothing locked: whoever publishes does not wait for it.
func TestFiltersHoldNobodyUp(t *testing.T) {
	h, l, _ := newHub(0)
	held, hold := make(chan struct{}, 1), make(chan struct{})
	s, _ := h.Subscribe(Options{Queue: 8, Select: []Selection{Select(l, func(*number) bool {
		held <- struct{}{}
		<-hold
		return true
	})}})
	l.publish(1)
	testwait.Receive(t, "a record is looked at", held)
	testwait.Return(t, "publishing", func() { l.publish(2) })
	testwait.Return(t, "other subscribers", func() {
		o, _ := h.Subscribe(Options{Select: all(l), Queue: 1})
		o.Close()
	})
	close(hold)
	<-held
	s.Close()
}

// A subscriber that nothing matches for is told how far things have gone, once.
func TestQuietStreamIsToldHowFar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, l, _ := newHub(4)
		s, _ := h.Subscribe(Options{Queue: 1, Idle: time.Second, Select: []Selection{Select(l, even)}})
		defer s.Close()
		l.publish(1, 3)
		if i, ok := s.Next(t.Context()); !ok || i.Sequence != 2 || i.Record != nil {
			t.Errorf("%+v, %t", i, ok)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if i, ok := s.Next(ctx); ok {
			t.Errorf("told again: %+v", i)
		}
	})
}

// The low watermark comes after all that was published before it.
func TestLow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, l, _ := newHub(4)
		h.Advance(3)
		s, _ := h.Subscribe(Options{Queue: 200, Low: true, Select: all(l)})
		other, _ := h.Subscribe(Options{Queue: 200, Select: all(l)})
		defer s.Close()
		defer other.Close()
		if i, ok := s.Next(t.Context()); !ok || i.Low != 3 || i.Record != nil || i.Sequence != 0 {
			t.Errorf("in the beginning %+v, %t", i, ok)
		}
		for n := range number(2 * window) {
			l.publish(n)
		}
		h.Advance(100)
		h.Advance(50) // never back
		for n := range 2 * window {
			if i, _ := s.Next(t.Context()); i.Low != 0 || i.Sequence != uint64(n+1) {
				t.Fatalf("record %d: %+v", n, i)
			}
		}
		if i, ok := s.Next(t.Context()); !ok || i.Low != 100 || i.Sequence != 2*window {
			t.Errorf("at the end %+v, %t", i, ok)
		}
		synctest.Wait()
		if len(s.queue) != 0 || len(other.queue) != 2*window {
			t.Errorf("%d and %d items more", len(s.queue), len(other.queue))
		}
	})
}

func TestHistoryOff(t *testing.T) {
	h, l, _ := newHub(0)
	l.publish(1)
	if got := h.Past(Options{Select: all(l), Past: Past{Last: 1}}); got.Items != nil || l.Kept() != 0 {
		t.Errorf("got %v", got)
	}
}

// What is not in the history comes by the queue, and nothing comes by both.
func TestSubscribeMissesNothing(t *testing.T) {
	const total = 2000
	h, l, _ := newHub(total)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range number(total) {
			l.publish(n + 1)
		}
		h.Close()
	})
	s, recent := h.Subscribe(Options{Select: all(l), Queue: total, Past: Past{Last: total}})
	defer s.Close()
	got := past(recent)
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

func TestNotify(t *testing.T) {
	h, l, _ := newHub(4)
	one, _ := h.Subscribe(Options{Queue: 1, Tag: "one"})
	none, _ := h.Subscribe(Options{Select: all(l), Queue: 1})
	defer one.Close()
	defer none.Close()
	h.Notify("event", func(s *Subscription) bool { return s.Tag == "one" })
	if i, _ := one.Next(testwait.Context(t)); i.Notice != "event" {
		t.Errorf("%+v came", i)
	}
	if len(none.queue) != 0 || l.Kept() != 0 {
		t.Error("the notice went where it does not belong")
	}
	if !h.Any(func(s *Subscription) bool { return s.Tag == "one" }) || h.Any(func(s *Subscription) bool { return s.Tag == "two" }) {
		t.Error("the wrong subscriptions are there")
	}
}

// A notice comes in its place among the records, however far the subscriber is behind.
func TestNoticesKeepTheirPlace(t *testing.T) {
	h, l, losses := newHub(0)
	held, hold := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s, _ := h.Subscribe(Options{Queue: 2 * room, Select: []Selection{Select(l, func(*number) bool {
		once.Do(func() { close(held); <-hold })
		return true
	})}})
	defer s.Close()
	l.publish(1)
	testwait.Receive(t, "the first record is looked at", held)
	notify := func() { h.Notify("notice", func(*Subscription) bool { return true }) }
	notify()
	for n := range number(window + 1) {
		l.publish(n + 2)
	}
	notify()
	notify()
	l.publish(window + 3)
	for range maxNotices {
		notify()
	}
	close(hold)
	ctx := testwait.Context(t)
	var at []uint64
	var lost uint64
	last := uint64(0)
	for last < window+3 || len(at) < maxNotices {
		i, ok := s.Next(ctx)
		if !ok {
			t.Fatalf("after %d notices and record %d: the end", len(at), last)
		}
		lost += i.Lost
		if i.Notice != nil {
			at = append(at, last)
		} else {
			last = i.Sequence
		}
	}
	if diff := cmp.Diff([]uint64{1, window + 2, window + 2, window + 3}, at[:4]); diff != "" {
		t.Errorf("after which records (-want +got)\n%s", diff)
	}
	l.publish(window + 4)
	i, _ := s.Next(ctx)
	if lost += i.Lost; lost != 3 || losses.Get(loss.SubscriberSlow) != 3 {
		t.Errorf("%d told as lost, %d counted, want 3", lost, losses.Get(loss.SubscriberSlow))
	}
}

func TestNextEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, l, _ := newHub(0)
		s, _ := h.Subscribe(Options{Select: all(l), Queue: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, ok := s.Next(ctx); ok {
			t.Error("an event from nowhere")
		}
		s.Close()
		if h.Subscribers() != 0 {
			t.Error("still subscribed")
		}
	})
}

func TestPublishDoesNotAllocate(t *testing.T) {
	h, l, _ := newHub(4096)
	r := number(1)
	if n := testing.AllocsPerRun(1000, func() { l.Publish(&r) }); n != 0 {
		t.Errorf("%v allocations without a subscriber", n)
	}
	s, _ := h.Subscribe(Options{Queue: 1, Select: []Selection{Select(l, even)}})
	defer s.Close()
	if n := testing.AllocsPerRun(20_000, func() { l.Publish(&r) }); n != 0 {
		t.Errorf("%v allocations for a subscriber that does not want the event", n)
	}
}

// big is as large as a record of a flow.
type big [42]uint64

func BenchmarkPublish(b *testing.B) {
	for _, bb := range []struct {
		name string
		subs int
	}{{"no subscriber", 0}, {"one subscriber", 1}, {"ten subscribers", 10}} {
		b.Run(bb.name, func(b *testing.B) {
			losses := new(loss.Counters)
			h := New(losses)
			l := NewLane(h, 4096, 8192, func(r *big) int64 { return int64(r[0]) })
			var wg sync.WaitGroup
			for range bb.subs {
				s, _ := h.Subscribe(Options{Select: all(l), Queue: 4096})
				wg.Go(func() {
					for {
						if _, ok := s.Next(context.Background()); !ok {
							break
						}
					}
					s.Close()
				})
			}
			var r big
			b.ReportAllocs()
			for b.Loop() {
				l.Publish(&r)
			}
			b.ReportMetric(float64(losses.Get(loss.SubscriberSlow))/float64(b.N), "lost/op")
			h.Close()
			wg.Wait()
		})
	}
}

// BenchmarkBurst is many records at once for a subscriber that wants few of them: none are
// to be lost.
func BenchmarkBurst(b *testing.B) {
	for _, procs := range []int{1, 2} {
		b.Run(map[int]string{1: "one processor", 2: "two"}[procs], func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			losses := new(loss.Counters)
			h := New(losses)
			l := NewLane(h, 4096, 8192, func(r *big) int64 { return int64(r[0]) })
			s, _ := h.Subscribe(Options{Queue: 4096, Select: []Selection{Select(l, func(r *big) bool { return r[0]%1000 == 0 })}})
			defer s.Close()
			var r big
			for b.Loop() {
				for range 100_000 {
					r[0]++
					l.Publish(&r)
				}
				for len(s.queue) > 0 {
					<-s.queue
				}
			}
			b.ReportMetric(float64(losses.Get(loss.SubscriberSlow))/float64(b.N), "lost/op")
		})
	}
}
