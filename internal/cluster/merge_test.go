// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// put adds events of the given ranks; an event's time tells it from others.
func put(t *testing.T, l *lane, ranks ...int64) {
	t.Helper()
	ctx := testwait.Context(t) // a full lane waits
	for _, r := range ranks {
		if err := l.push(ctx, r, &orb8v1.Event{TimeNs: r}); err != nil {
			t.Fatal(err)
		}
	}
}

// take returns all that may go out now, and how long the next has to wait.
func take(m *merge) (got []int64, wait time.Duration) {
	for {
		ev, wait := m.next(time.Now(), false)
		if ev == nil {
			return got, wait
		}
		got = append(got, ev.GetTimeNs())
	}
}

func TestMergeWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := func(m *merge, want []int64, wantWait time.Duration) {
			t.Helper()
			got, wait := take(m)
			if diff := cmp.Diff(want, got); diff != "" || wait != wantWait {
				t.Errorf("then %s, want %s (-want +got):\n%s", wait, wantWait, diff)
			}
		}
		m := newMerge(200 * time.Millisecond)
		a, b := m.lane("a"), m.lane("b")
		put(t, a, 5, 7)
		check(m, nil, 200*time.Millisecond)
		time.Sleep(150 * time.Millisecond)
		put(t, b, 6)
		check(m, []int64{5, 6}, 50*time.Millisecond) // both have something to compare
		time.Sleep(50 * time.Millisecond)
		check(m, []int64{7}, 0)

		// A clock that runs ahead delays its node, but does not silence it.
		put(t, a, 1_000_000)
		var got []int64
		for i := range int64(50) {
			put(t, b, 10+i)
			some, _ := take(m)
			got = append(got, some...)
			time.Sleep(10 * time.Millisecond)
		}
		if !slices.Contains(got, 1_000_000) {
			t.Errorf("after 500 ms only %v", got)
		}
		time.Sleep(time.Second)

		// A node that is away is not waited for.
		take(m)
		b.expect(false)
		put(t, a, 1_000_001)
		check(m, []int64{1_000_001}, 0)
	})
}

// Nodes that tell low watermarks come in the exact order of time, whatever order they send
// in and however late the others' watermarks come.
func TestMergeByWatermark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := func(m *merge, want ...int64) {
			t.Helper()
			got, _ := take(m)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
		m := newMerge(200 * time.Millisecond)
		a, b := m.lane("a"), m.lane("b")
		a.advance(1)
		b.advance(1)
		put(t, a, 7, 5, 9) // 5 has waited for the name of its pod
		check(m)
		time.Sleep(time.Second) // longer than any window
		put(t, b, 6)
		b.advance(8)
		check(m) // a may still send one before 5
		a.advance(9)
		check(m, 5, 6, 7)
		put(t, b, 8, 10)
		check(m, 8)
		b.advance(11)
		check(m, 9)
		a.advance(10)
		b.advance(3) // watermarks do not go back
		check(m, 10)

		// A node that is stuck is not waited for, but those that go on are.
		time.Sleep(stallTime)
		c := m.lane("c")
		c.advance(1)
		put(t, a, 12, 11)
		a.advance(13)
		check(m)
		c.advance(12)
		check(m, 11, 12)

		// An event that waits in vain goes out all the same.
		b.begin()
		b.advance(1)
		a.advance(15)
		put(t, a, 14)
		for range 5 {
			time.Sleep(stallTime / 5)
			c.advance(13)
			b.advance(13)
		}
		check(m, 14)

		// Another agent on the node begins anew, and may be one that tells none.
		b.begin()
		c.expect(false)
		put(t, a, 20)
		a.advance(30)
		check(m)
		time.Sleep(200 * time.Millisecond)
		check(m, 20)
	})
}

// TestMergeExact: without a window nothing goes out before all have spoken.
func TestMergeExact(t *testing.T) {
	m := newMerge(0)
	a, b := m.lane("a"), m.lane("b")
	put(t, a, 1, 3, 2)
	if got, wait := take(m); got != nil || wait != 0 {
		t.Errorf("got %v before b has said anything", got)
	}
	put(t, b, 2)
	if got, _ := take(m); !cmp.Equal(got, []int64{1, 2}) {
		t.Errorf("got %v, want 1 and 2", got)
	}
	b.expect(false)
	if got, _ := take(m); !cmp.Equal(got, []int64{3, 2}) { // a's own order stays
		t.Errorf("got %v, want 3 and 2", got)
	}
}

// TestMergeIsBounded: a node that is faster than the reader waits, and one that
// fills its lane does not wait for the others.
func TestMergeIsBounded(t *testing.T) {
	m := newMerge(200 * time.Millisecond)
	a := m.lane("a")
	m.lane("b")
	for i := range int64(laneSize) {
		put(t, a, i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.push(ctx, laneSize, &orb8v1.Event{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("event %d into a lane of %d: %v", laneSize+1, laneSize, err)
	}
	if ev, _ := m.next(time.Now(), false); ev == nil {
		t.Error("a full lane waits")
	}
	put(t, a, laneSize)
}
