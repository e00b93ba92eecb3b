// SPDX-License-Identifier: Apache-2.0

package tracing

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// baseline notes the counts that cgroups have before a trace chooses them. Those that come
// back have its own.
func (ts *Traces) baseline(t *Trace, cgroups []uint64) error {
	counts, err := ts.tracer.Summary()
	if err != nil {
		return err
	}
	for _, c := range counts {
		if slices.Contains(cgroups, c.CgroupID) && t.gone[c.CgroupID] == nil {
			t.before[callKey{c.CgroupID, c.Name, c.ABI}] = c
		}
	}
	return nil
}

// summarize sends those of the traces that want it their sums, by container. Those of
// containers that have ended are sent for the last time. With keep those that find no
// room are sent later; without, there will be others.
func (ts *Traces) summarize(keep bool, all ...*Trace) {
	all = slices.DeleteFunc(slices.Clone(all), func(t *Trace) bool { return !t.summary })
	if len(all) == 0 {
		return
	}
	counts, err := ts.tracer.Summary()
	if err != nil {
		ts.cfg.Log.Warn("read sums of system calls", "err", err)
		return
	}
	ended := make(map[uint64]bool)
	for _, t := range all {
		for _, e := range t.sums(counts) {
			ts.tell(t, e, keep)
		}
		for id := range t.gone {
			ended[id] = true
		}
		clear(t.gone)
	}
	for _, t := range ts.all {
		maps.DeleteFunc(ended, func(id uint64, _ bool) bool { return t.cgroups[id] != nil || t.gone[id] != nil })
	}
	if len(ended) == 0 {
		return
	}
	ids := slices.Collect(maps.Keys(ended))
	ts.forgetBefore(ids)
	if err := ts.tracer.ForgetCounts(ids...); err != nil {
		ts.cfg.Log.Warn("forget sums of system calls", "err", err)
	}
}

// forgetBefore forgets earlier counts of cgroups whose counts begin anew.
func (ts *Traces) forgetBefore(cgroups []uint64) {
	for _, t := range ts.all {
		maps.DeleteFunc(t.before, func(k callKey, _ CallCount) bool { return slices.Contains(cgroups, k.cgroup) })
	}
}

// sums are what a trace's cgroups have called since its begin.
func (t *Trace) sums(counts []CallCount) []*orb8v1.Event {
	byContainer := make(map[*workload.Identity]*orb8v1.SyscallSummary)
	for _, c := range counts {
		who := cmp.Or(t.cgroups[c.CgroupID], t.gone[c.CgroupID])
		if before, ok := t.before[callKey{c.CgroupID, c.Name, c.ABI}]; ok && before.Calls <= c.Calls {
			// The longest call may have been before.
			c.Calls, c.Errors, c.Time, c.Max = c.Calls-before.Calls, c.Errors-before.Errors, c.Time-before.Time, 0
			for i := range c.ByTime {
				c.ByTime[i] -= before.ByTime[i]
			}
		}
		if who == nil || c.Calls == 0 || len(t.names) > 0 && !t.names[c.Name] || t.except[c.Name] || t.errorsOnly && c.Errors == 0 {
			continue
		}
		sum := byContainer[who]
		if sum == nil {
			sum = &orb8v1.SyscallSummary{Workload: kind.Workload(who), BeginNs: t.begin.UnixNano(), Uncounted: t.uncounted}
			byContainer[who] = sum
		}
		sum.Calls = append(sum.Calls, &orb8v1.SyscallCount{
			Name: c.Name, Abi: c.ABI, Calls: c.Calls, Errors: c.Errors, TimeNs: int64(c.Time), MaxNs: int64(c.Max),
			P50Ns: c.quantile(50), P99Ns: c.quantile(99),
		})
	}
	var events []*orb8v1.Event
	for _, sum := range byContainer {
		slices.SortFunc(sum.Calls, func(a, b *orb8v1.SyscallCount) int {
			return cmp.Or(cmp.Compare(b.TimeNs, a.TimeNs), strings.Compare(a.Name, b.Name), strings.Compare(a.Abi, b.Abi))
		})
		events = append(events, &orb8v1.Event{Event: &orb8v1.Event_SyscallSummary{SyscallSummary: sum}})
	}
	slices.SortFunc(events, func(a, b *orb8v1.Event) int {
		x, y := a.GetSyscallSummary().GetWorkload(), b.GetSyscallSummary().GetWorkload()
		return cmp.Or(strings.Compare(x.GetNamespace(), y.GetNamespace()), strings.Compare(x.GetPodName(), y.GetPodName()),
			cmp.Compare(x.GetCgroupId(), y.GetCgroupId()))
	})
	return events
}

// quantile estimates within which time as many of a hundred calls returned, in nanoseconds.
func (c *CallCount) quantile(percent uint64) int64 {
	var all, seen uint64
	for _, n := range &c.ByTime {
		all += n
	}
	for i, n := range &c.ByTime {
		if seen += n; n > 0 && seen*100 >= all*percent {
			q := CallBucket(i)
			if c.Max > 0 {
				q = min(q, c.Max)
			}
			return int64(q)
		}
	}
	return 0
}
