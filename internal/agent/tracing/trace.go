// SPDX-License-Identifier: Apache-2.0

package tracing

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/kinds"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// DefaultRate is how many calls a second a trace is told of unless it asks for others.
	DefaultRate = 10_000
	maxRate     = 1_000_000
	// A trace is over by itself.
	defaultDuration = time.Minute
	maxDuration     = time.Hour
	// NarrowedRate is how many calls a second are looked at of which some are sent.
	NarrowedRate = 100_000
	// selectEvery is how often cgroups are looked for that a trace wants: those of new
	// pods. New ones below a selected one are selected by the kernel.
	selectEvery = 500 * time.Millisecond
	// summaryEvery is how often a trace is told of its sums.
	summaryEvery = time.Second
)

// Trace is one client's.
type Trace struct {
	// filters say which calls are sent, selects which cgroups are traced.
	filters, selects *filter.Set
	// narrowed: the filters choose among a container's calls, by more than their name.
	narrowed bool
	names    map[string]bool
	except   map[string]bool
	slower   time.Duration
	// processes: containers and units are chosen by what runs in them.
	processes     bool
	rules         []string
	errorsOnly    bool
	anomaliesOnly bool
	summary       bool
	rate          uint32
	duration      time.Duration
	begin         time.Time
	// end ends the stream, in order if it is with ErrOver.
	end context.CancelCauseFunc
	// over: nothing more is done for it; rest is its stream's.
	over atomic.Bool

	// The Tracer's number for it, what that was told, and what was lost at the last look.
	slot   uint
	wanted *Want
	lost   Lost
	// untold is what was lost and its stream has not told of yet.
	lostMu sync.Mutex
	untold map[loss.Stage]uint64
	// rest is what it is told in the end, when nothing may push it out. When the trace is
	// over, it is the stream's.
	rest []*orb8v1.Event
	// before are the counts at its begin, of cgroups that were counted for others then.
	before map[callKey]CallCount
	// uncounted calls are missing from its counts.
	uncounted uint64
	// cgroups are those that it wants, gone those that have ended since its last sums.
	cgroups, gone map[uint64]*workload.Identity
	// told are the workloads that its client knows of, nil before it was told of any.
	told []*workload.Identity

	// The second and what was sent of it; of its stream's filters. limited is what was not
	// sent since that was read last.
	second  int64
	sent    uint32
	limited atomic.Uint64
}

type callKey struct {
	cgroup    uint64
	name, abi string
}

// NewTrace reads what a request wants of system calls; filters are the request's, compiled
// are the same. An error is one for the client.
func NewTrace(want *orb8v1.SyscallTrace, filters []*orb8v1.Filter, compiled *filter.Set, node string) (*Trace, error) {
	invalid := func(format string, args ...any) error {
		return status.Errorf(codes.InvalidArgument, format, args...)
	}
	selects, narrowed, processes, err := selecting(filters, node)
	if err != nil {
		return nil, err
	}
	narrowed = narrowed || want.GetSlowerNs() > 0
	switch {
	case want.GetSummary() && want.GetAnomaliesOnly():
		return nil, invalid("a summary has all calls, which rules do not look at: ask for anomalies without it")
	case want.GetSummary() && narrowed:
		return nil, invalid("a summary has all calls of a container: it takes filters for pods, workloads, namespaces, nodes, labels and containers only, and no time")
	}
	t := &Trace{
		filters: compiled, selects: selects, processes: processes, slower: time.Duration(want.GetSlowerNs()), narrowed: narrowed || want.GetAnomaliesOnly(), rules: rulesOf(filters),
		cgroups: make(map[uint64]*workload.Identity), gone: make(map[uint64]*workload.Identity), before: make(map[callKey]CallCount),
		untold:     make(map[loss.Stage]uint64),
		errorsOnly: want.GetErrorsOnly(), anomaliesOnly: want.GetAnomaliesOnly(),
		summary: want.GetSummary(), rate: cmp.Or(want.GetRate(), DefaultRate),
		duration: cmp.Or(time.Duration(want.GetDurationNs()), defaultDuration),
	}
	if t.duration < 0 || t.duration > maxDuration {
		return nil, invalid("duration of %v: want up to %v", t.duration, maxDuration)
	}
	if t.rate > maxRate {
		return nil, invalid("rate of %d: want up to %d a second", t.rate, maxRate)
	}
	for _, list := range []struct {
		names []string
		to    *map[string]bool
	}{{want.GetCalls(), &t.names}, {want.GetExcept(), &t.except}} {
		for _, name := range list.names {
			if err := syscalls.CheckName(name); err != nil {
				return nil, invalid("%q: %v", name, err)
			}
			if *list.to == nil {
				*list.to = make(map[string]bool)
			}
			(*list.to)[name] = true
		}
	}
	return t, nil
}

// Duration is for how long it runs.
func (t *Trace) Duration() time.Duration { return t.duration }

// Rest is what its stream is told in the end, nothing before the trace is over.
func (t *Trace) Rest() []*orb8v1.Event {
	if !t.over.Load() {
		return nil
	}
	return t.rest
}

// rulesOf are the rules of which one must flag a call; none means that no filter says so.
func rulesOf(filters []*orb8v1.Filter) (rules []string) {
	for _, f := range filters {
		if !f.GetNegate() {
			rules = append(rules, f.GetRules()...)
		}
	}
	return rules
}

// selecting compiles those of the filters that tell one container from another, or, if
// there are none, those that do so by what runs in it (processes); it is an error if there
// are none either. narrowed: there are others.
func selecting(filters []*orb8v1.Filter, node string) (set *filter.Set, narrowed, processes bool, err error) {
	var kept []*orb8v1.Filter
	chosen := false
	for _, f := range filters {
		only := &orb8v1.Filter{
			Negate: f.GetNegate(), Namespaces: f.GetNamespaces(), Pods: f.GetPods(), LabelSelector: f.GetLabelSelector(),
			Workloads: f.GetWorkloads(), Nodes: f.GetNodes(), Containers: f.GetContainers(), Services: f.GetServices(),
		}
		whole := proto.Equal(only, f)
		narrowed = narrowed || !whole
		if f.GetNegate() && !whole {
			continue // what is to be left out is known of each call only
		}
		kept = append(kept, only)
		chosen = chosen || !f.GetNegate() && (len(only.Namespaces)+len(only.Pods)+len(only.Workloads)+len(only.Containers)+len(only.Services) > 0 || only.LabelSelector != "")
	}
	if !chosen {
		kept = slices.DeleteFunc(slices.Clone(filters), func(f *orb8v1.Filter) bool {
			return f.GetNegate() || len(f.GetProcesses())+len(f.GetExecutables()) == 0
		})
		processes = len(kept) > 0
	}
	if !chosen && !processes {
		return nil, false, false, status.Error(codes.InvalidArgument,
			"every system call of a node becomes slower while some are traced: say of which pods, workloads, namespaces, containers or processes")
	}
	set, err = kinds.Compile(kept, filter.WithNode(node))
	if err != nil {
		return nil, false, false, status.Error(codes.InvalidArgument, err.Error())
	}
	return set, narrowed, processes, nil
}

// want is what the Tracer is to hand over for a trace. Where calls are chosen here, by
// more than their name, more than the rate of them are looked at.
func (t *Trace) want(rules *anomaly.Engine) Want {
	if t.summary {
		return Want{Count: true}
	}
	w := Want{Events: true, Rate: t.rate, ErrorsOnly: t.errorsOnly}
	if t.names != nil {
		w.Calls = slices.Sorted(maps.Keys(t.names))
	} else if t.except != nil {
		w.Calls = syscalls.Names()
	}
	w.Calls = slices.DeleteFunc(w.Calls, func(name string) bool { return t.except[name] })
	if t.narrowed {
		w.Rate = max(w.Rate, NarrowedRate)
	}
	if !t.anomaliesOnly && len(t.rules) == 0 {
		return w
	}
	flagged, refused := rules.FlaggedCalls(t.rules...)
	w.Calls, w.Refused = []string{}, refused
	for _, name := range flagged {
		if (t.names == nil || t.names[name]) && !t.except[name] {
			w.Calls = append(w.Calls, name)
		}
	}
	return w
}

// Allows counts a call as sent, unless there were too many in its second. Calls come out
// of order by less than a second; more is a clock that was set back. It is called by
// its stream's filters only.
func (t *Trace) Allows(at int64) bool {
	if second := at / int64(time.Second); second > t.second || second < t.second-1 {
		t.second, t.sent = second, 0
	}
	if t.sent >= t.rate {
		t.limited.Add(1)
		return false
	}
	t.sent++
	return true
}

// Takes reports whether a call is one of those that the trace asks for.
func (t *Trace) Takes(c *calls.Record) bool {
	switch {
	case c.Traces>>t.slot&1 == 0, t.summary, len(t.names) > 0 && !t.names[c.Name], t.except[c.Name], c.Latency < t.slower, t.anomaliesOnly && len(c.Rules) == 0:
		return false
	case t.errorsOnly:
		return c.Returned && syscalls.Errno(c.Return) != ""
	}
	return true
}
