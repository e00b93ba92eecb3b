// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// rest reads a stream to its end, which is in order.
func (c *calls) rest() (all []*orb8v1.Event) {
	c.t.Helper()
	for {
		ev, err := c.next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, ev)
	}
}

// lostBy are the losses by stage that events tell of.
func lostBy(all []*orb8v1.Event) map[string]uint64 {
	lost := make(map[string]uint64)
	for _, ev := range all {
		if l := ev.GetLostEvents(); l != nil {
			lost[l.GetStage()] += l.GetCount()
		}
	}
	return lost
}

// crowdedTrace is one that nobody reads, with room for two events in its queue.
func crowdedTrace(t *testing.T, r *rig, tracer *fakeTracer, summary bool) (*trace, *subscription) {
	t.Helper()
	tr := &trace{
		summary: summary, selects: mustSelect(t, inShop()), filters: mustSelect(t, inShop()), rate: defaultTraceRate, end: func(error) {},
		cgroups: make(map[uint64]*workload.Identity), gone: make(map[uint64]*workload.Identity), before: make(map[callKey]CallCount),
		untold: make(map[loss.Stage]uint64),
	}
	sub, _ := r.hub.subscribe(interest{trace: tr, filters: tr.filters}, 2, pastQuery{})
	t.Cleanup(func() { r.hub.unsubscribe(sub) })
	if err := r.traces.add(tr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.traces.remove(tr) })
	tracer.mu.Lock()
	defer tracer.mu.Unlock()
	tracer.waiting = []TracedCall{aCall(t, 1, "read", 1), aCall(t, 1, "read", 2)}
	return tr, sub
}

// take empties a subscription's queue.
func take(sub *subscription) (all []*orb8v1.Event) {
	for {
		select {
		case q := <-sub.queue:
			all = append(all, q.update.event(&sub.interest))
		default:
			return all
		}
	}
}

// What finds no room in a stream's queue is told of when there is room.
func TestTraceLossesWait(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	tr, sub := crowdedTrace(t, r, tracer, false)
	tracer.mu.Lock()
	tracer.lost[0].Limited, tracer.lost[0].RingFull = 100, 7
	tracer.mu.Unlock()
	tr.limited.Add(5)
	r.traces.tick(true) // the targets and a call fill it
	all := take(sub)
	if len(all) != 2 || all[0].GetSyscallTargets() == nil || all[1].GetSyscall() == nil {
		t.Fatalf("queued: %v", all)
	}
	r.traces.tick(true)
	if lost := lostBy(take(sub)); len(lost) != 2 || lost["syscall_limited"] != 105 || lost["syscall_ring_full"] != 7 {
		t.Errorf("told that it has lost %v", lost)
	}
	if n := r.losses.Get(loss.SyscallLimited); n != 5 {
		t.Errorf("%d counted here as beyond the rate, want 5", n)
	}
	r.traces.tick(true)
	if all := take(sub); len(all) != 0 {
		t.Errorf("told again: %v", all)
	}
}

func TestTraceTargetsWait(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	_, sub := crowdedTrace(t, r, tracer, false)
	if err := tracer.Collect(); err != nil {
		t.Fatal(err)
	}
	r.resolver.put(3, &workload.Identity{Namespace: "shop", Pod: "late", CgroupID: 3, ContainerID: bankContainer})
	r.traces.tick(false)
	take(sub)
	r.traces.tick(false)
	if all := take(sub); len(all) != 1 || len(all[0].GetSyscallTargets().GetWorkloads()) != 2 {
		t.Errorf("told of %v, want both targets", all)
	}
}

// The last losses and sums of a trace come after its queue, however full that is, and
// also where others go on.
func TestTraceEndsCrowded(t *testing.T) {
	for _, others := range []bool{false, true} {
		tracer := new(fakeTracer)
		r := containerRig(t, withTracer(tracer))
		if others {
			r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Pods: []string{"db"}}).targets()
		}
		tr, sub := crowdedTrace(t, r, tracer, true)
		for range 2 {
			r.hub.tell(new(orb8v1.Event), func(i *interest) bool { return i.trace == tr })
		}
		tracer.count(CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 3, Time: 50})
		tracer.mu.Lock()
		tracer.lost[tr.slot].PendingFull = 9
		tracer.mu.Unlock()
		r.traces.remove(tr)
		take(sub)
		var sum *orb8v1.SyscallSummary
		for _, ev := range tr.rest {
			if s := ev.GetSyscallSummary(); s != nil {
				sum = s
			}
		}
		if len(sum.GetCalls()) != 1 || sum.GetUncounted() != 9 || lostBy(tr.rest)["syscall_pending_full"] != 9 {
			t.Errorf("others %v: left to be told of is %v", others, tr.rest)
		}
	}
}

// And its client gets them.
func TestTraceSendsRest(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer), func(c *Config, _ *Deps, _ *rig) { c.SubscriberQueue = 1 })
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{DurationNs: int64(300 * time.Millisecond)}, inShop())
	stream.targets()
	tracer.mu.Lock()
	tracer.lost[0] = TraceLost{RingFull: 1, Limited: 2, PendingFull: 3, Missed: 4}
	tracer.mu.Unlock()
	lost := lostBy(stream.rest())
	for stage, want := range map[string]uint64{"syscall_ring_full": 1, "syscall_limited": 2, "syscall_pending_full": 3, "syscall_missed": 4} {
		if lost[stage] != want {
			t.Errorf("%s: told of %d, want %d", stage, lost[stage], want)
		}
	}
}

// A call that ends while a trace does, and others go on, is told of.
func TestTraceEndsBesideOthers(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Pods: []string{"db"}}).targets()
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{DurationNs: int64(300 * time.Millisecond)}, inShop())
	stream.targets()
	tracer.mu.Lock()
	pause, late := aCall(t, 1, "pause", 0), aCall(t, 1, "read", 3)
	pause.Traces, late.Traces = 1<<1, 1<<1
	tracer.goingOn = []TracedCall{pause}
	tracer.onFlush = func() {
		tracer.mu.Lock()
		defer tracer.mu.Unlock()
		tracer.waiting = []TracedCall{late}
		tracer.lost[1].RingFull = 6
	}
	tracer.mu.Unlock()
	all := stream.rest()
	var names []string
	for _, ev := range all {
		if c := ev.GetSyscall(); c != nil {
			names = append(names, c.GetName())
		}
	}
	if !slices.Equal(names, []string{"pause", "read"}) || lostBy(all)["syscall_ring_full"] != 6 {
		t.Errorf("told of %v", all)
	}
}

// Nothing is kept of cgroups that the kernel has selected just before the end.
func TestTraceForgetsInherited(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Pods: []string{"db"}}).targets()
	r.traceCalls(t.Context(), t, nil, inShop()).targets()
	r.traces.mu.Lock()
	defer r.traces.mu.Unlock()
	ending := r.traces.all[1]
	tracer.mu.Lock()
	tracer.selected[9], tracer.selected[10] = 1<<1, 1<<1|1
	tracer.mu.Unlock()
	r.traces.drop(ending, errTraceOver)
	tracer.mu.Lock()
	defer tracer.mu.Unlock()
	slices.Sort(tracer.released)
	if !slices.Equal(tracer.released, []uint64{1, 9}) {
		t.Errorf("given back is what was kept of %v, want 1 and 9", tracer.released)
	}
}

// A trace that had nothing to trace has lost nothing, whatever its number has.
func TestTraceOldLosses(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	first := r.traceCalls(t.Context(), t, nil, inShop())
	first.targets()
	tracer.mu.Lock()
	tracer.lost[1].Limited = 500 // of one that had the number before
	tracer.mu.Unlock()
	r.resolver.put(1, nil) // which is found out when the second begins
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{DurationNs: int64(100 * time.Millisecond)}, &orb8v1.Filter{Pods: []string{"late"}})
	if lost := lostBy(stream.rest()); len(lost) != 0 {
		t.Errorf("told of another's losses: %v", lost)
	}
}

// The last sums of a container that has ended wait for room, and so do its counts.
func TestSummaryOfEndedWaits(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	r.resolver.put(3, &workload.Identity{Namespace: "shop", Pod: "late", CgroupID: 3, ContainerID: bankContainer})
	tr, sub := crowdedTrace(t, r, tracer, true)
	r.hub.tell(new(orb8v1.Event), func(i *interest) bool { return i.trace == tr })
	tracer.count(CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 3, Time: 50})
	r.resolver.put(1, nil)
	r.traces.tick(true)
	take(sub)
	r.traces.tick(true)
	var sum *orb8v1.SyscallSummary
	for _, ev := range take(sub) {
		if s := ev.GetSyscallSummary(); s != nil {
			sum = s
		}
	}
	if sum.GetWorkload().GetPodName() != "web" || len(sum.GetCalls()) != 1 {
		t.Errorf("the last sums are %v", sum)
	}
}

// Counts that begin anew are compared with none from before.
func TestSummaryBeginsAnew(t *testing.T) {
	web := &workload.Identity{Namespace: "shop", Pod: "web", CgroupID: 1}
	key := callKey{1, "read", "amd64"}
	tr := &trace{summary: true, cgroups: map[uint64]*workload.Identity{1: web}, before: map[callKey]CallCount{key: {Calls: 10, Time: 100}}}
	all := tr.sums([]CallCount{{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 2, Time: 7}})
	if len(all) != 1 || all[0].GetSyscallSummary().GetCalls()[0].GetCalls() != 2 {
		t.Errorf("summary: %v", all)
	}
	ts := &traces{all: []*trace{tr}}
	if ts.forgetBefore([]uint64{2}); len(tr.before) != 1 {
		t.Error("forgotten is what was before in another cgroup")
	}
	if ts.forgetBefore([]uint64{1}); len(tr.before) != 0 {
		t.Errorf("before are still %v", tr.before)
	}
}

// A container that ended and comes back, as one whose directory could not be read, has
// counts that make sense.
func TestSummaryForgetsBefore(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	web := &workload.Identity{Namespace: "shop", Pod: "web", CgroupID: 1, ContainerID: shopContainer}
	r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Summary: true}, inShop()).targets()
	r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Pods: []string{"db"}}).targets()
	tracer.count(CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 10, Time: 100})
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Summary: true, DurationNs: int64(2 * time.Second)}, inShop())
	stream.targets()
	tracer.count(CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 13, Time: 150})
	r.resolver.put(1, nil)
	r.traces.tick(true)
	r.resolver.put(1, web)
	r.traces.tick(true)
	tracer.count(CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 12, Time: 10})
	var got []uint64
	for _, ev := range stream.rest() {
		if s := ev.GetSyscallSummary(); s != nil {
			got = append(got, s.GetCalls()[0].GetCalls())
		}
	}
	if len(got) < 2 || got[0] != 3 || got[len(got)-1] != 12 {
		t.Errorf("counted %v, want 3 and at last 12", got)
	}
}

// A container that a walk does not find is not gone.
func TestTraceFailedWalk(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Summary: true}, inShop()).targets()
	r.resolver.mu.Lock()
	r.resolver.unread = map[uint64]bool{1: true}
	r.resolver.mu.Unlock()
	r.traces.tick(true)
	if running, selected, _ := tracer.state(); !running || !slices.Equal(selected, []uint64{1}) {
		t.Errorf("running %v, selected %v", running, selected)
	}
}

func TestTraceClockSetBack(t *testing.T) {
	tr := &trace{rate: 10}
	allowed := func(at int64, n int) (in int) {
		for range n {
			if tr.allows(at) {
				in++
			}
		}
		return in
	}
	if n := allowed(second(100), 20); n != 10 {
		t.Errorf("%d of 20 are within the rate", n)
	}
	if n := allowed(second(99), 5); n != 0 {
		t.Errorf("%d that come late are within the rate", n)
	}
	if n := allowed(second(40), 20); n != 10 {
		t.Errorf("%d of 20 are within the rate after the clock was set back", n)
	}
}

func mustSelect(t *testing.T, filters ...*orb8v1.Filter) *filter.Set {
	t.Helper()
	set, err := filter.Compile(filters)
	if err != nil {
		t.Fatal(err)
	}
	return set
}
