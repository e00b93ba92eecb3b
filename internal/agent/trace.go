// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/kinds"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	defaultTraceTime = time.Minute
	maxTraceTime     = time.Hour
	defaultTraceRate = 10_000
	maxTraceRate     = 1_000_000
	// narrowedRate is how many calls a second are looked at of which some are sent.
	narrowedRate = 100_000
	// MaxTraces is how many traces there may be at a time.
	MaxTraces = 16
	// selectEvery is how often cgroups are looked for that a trace wants: those of new
	// pods. New ones below a selected one are selected by the kernel.
	selectEvery = 500 * time.Millisecond
	// summaryEvery is how often a trace is told of its sums.
	summaryEvery = time.Second
)

// Tracer traces system calls from Start to Close, for several traces at a time: each is a
// number below MaxTraces. It is used by one goroutine at a time, but for Run.
type Tracer interface {
	Start() error
	// Run hands over calls until ctx is done; then it detaches and hands over what is
	// left: calls that have ended, and as unfinished those that go on.
	Run(ctx context.Context) error
	// Collect hands over the calls that have ended until now, and counts losses.
	Collect() error
	// Flush hands over the calls that go on, as unfinished, for one trace.
	Flush(trace uint) error
	Close() error
	// Want says what a trace is to have of the cgroups that are selected for it.
	Want(trace uint, w TraceWant) error
	// Select and Drop say which these are.
	Select(cgroup uint64, trace uint) error
	Drop(cgroup uint64, trace uint) error
	// Selected has a bit for each trace by cgroup, those included that the kernel has
	// selected since they are below another; SelectedFor is that of one cgroup.
	Selected() (map[uint64]uint64, error)
	SelectedFor(cgroup uint64) (uint64, error)
	// End drops all cgroups of a trace, hands over what it had still to be told, and
	// returns which cgroups they were.
	End(trace uint) ([]uint64, error)
	// Forget gives back what is kept of cgroups that are not selected any more, and
	// ForgetCounts their counts only.
	Forget(cgroups ...uint64) error
	ForgetCounts(cgroups ...uint64) error
	// Lost is what a trace has lost since Start, as of the last Collect.
	Lost(trace uint) TraceLost
	// Hooks lists what is attached.
	Hooks() []string
	// Summary returns the counts, which go on for as long as a cgroup is selected for
	// anybody who wants them.
	Summary() ([]CallCount, error)
}

// TraceWant is what a trace is to have.
type TraceWant struct {
	// Events: each call.
	Events bool
	// Calls are names; nil means all, empty none.
	Calls []string
	// Refused calls are wanted whatever they are.
	Refused    bool
	ErrorsOnly bool
	// Rate is how many a second, by and large.
	Rate uint32
	// Count the calls.
	Count bool
}

// TraceLost is what a trace has lost, by stage.
type TraceLost struct {
	RingFull, Limited, PendingFull, Uncounted uint64
	// Missed begins and ends of calls are those of the whole node.
	Missed uint64
}

// CallCount is how often a cgroup made a system call.
type CallCount struct {
	CgroupID      uint64
	Name, ABI     string
	Calls, Errors uint64
	// Time and Max are from begin to end of the calls, in nanoseconds.
	Time, Max uint64
	// ByTime is how many calls took how long, see CallBucket.
	ByTime [CallBuckets]uint64
}

// CallBuckets is how many buckets there are for the time that a call takes.
const CallBuckets = 64

// CallBucket is the middle of a bucket, in nanoseconds: 128 for the first, which has all
// below 256, then two for each power of two.
func CallBucket(i int) uint64 {
	if i == 0 {
		return 128
	}
	low := uint64(256) << ((i - 1) / 2)
	return low + low/4 + uint64((i-1)%2)*low/2
}

// trace is one client's.
type trace struct {
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
	// end ends the stream, in order if it is with errTraceOver.
	end context.CancelCauseFunc
	// over: nothing more is done for it; rest is its stream's.
	over atomic.Bool

	// The Tracer's number for it, what that was told, and what was lost at the last look.
	slot   uint
	wanted *TraceWant
	lost   TraceLost
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

// newTrace reads what a request wants of system calls.
func (s *server) newTrace(req *orb8v1.ObserveRequest, i *interest) (*trace, error) {
	invalid := func(format string, args ...any) error {
		return status.Errorf(codes.InvalidArgument, format, args...)
	}
	want := req.GetSyscalls()
	switch {
	case s.agent.deps.Tracer == nil || s.agent.Config().Syscall == config.ModeOff:
		return nil, status.Error(codes.FailedPrecondition, "this agent does not trace system calls (syscall: off)")
	case !req.GetFollow():
		return nil, invalid("system calls are traced as they happen: follow must be set")
	case slices.ContainsFunc(i.kinds, func(k orb8v1.EventKind) bool { return !slices.Contains(withCalls, k) }):
		return nil, invalid("system calls are traced alone: ask for the other kinds in a stream of their own")
	}
	selects, narrowed, processes, err := selecting(req.GetFilters(), s.agent.node)
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
	t := &trace{
		filters: i.filters, selects: selects, processes: processes, slower: time.Duration(want.GetSlowerNs()), narrowed: narrowed || want.GetAnomaliesOnly(), rules: rulesOf(req.GetFilters()),
		cgroups: make(map[uint64]*workload.Identity), gone: make(map[uint64]*workload.Identity), before: make(map[callKey]CallCount),
		untold:     make(map[loss.Stage]uint64),
		errorsOnly: want.GetErrorsOnly(), anomaliesOnly: want.GetAnomaliesOnly(),
		summary: want.GetSummary(), rate: cmp.Or(want.GetRate(), defaultTraceRate),
		duration: cmp.Or(time.Duration(want.GetDurationNs()), defaultTraceTime),
	}
	if t.duration < 0 || t.duration > maxTraceTime {
		return nil, invalid("duration of %v: want up to %v", t.duration, maxTraceTime)
	}
	if t.rate > maxTraceRate {
		return nil, invalid("rate of %d: want up to %d a second", t.rate, maxTraceRate)
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

// withCalls are the kinds that may be asked for together with system calls.
var withCalls = []orb8v1.EventKind{
	orb8v1.EventKind_EVENT_KIND_SYSCALL, orb8v1.EventKind_EVENT_KIND_NODE_STATUS, orb8v1.EventKind_EVENT_KIND_LOST_EVENTS,
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

// errTraceOver is why a trace ends in order.
var errTraceOver = errors.New("the time of the trace is over")

// traceCalls serves a stream of system calls until its time is over, the client goes
// or the agent stops. Its end does not wait for a client that does not read.
func (s *server) traceCalls(req *orb8v1.ObserveRequest, i interest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	t, err := s.newTrace(req, &i)
	if err != nil {
		return err
	}
	i.trace = t
	if err := stream.Send(s.agent.nodeEvent()); err != nil {
		return err
	}
	if s.agent.hub.Subscribers() >= maxStreams {
		return status.Errorf(codes.ResourceExhausted, "%d streams are being served, which is the most", maxStreams)
	}
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	t.end = end
	if err := s.agent.traces.reserve(t); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	sub, _ := s.agent.hub.Subscribe(hub.Options{
		Tag: &i, Select: s.agent.selections(&i), Queue: s.agent.Config().SubscriberQueue, Low: req.GetProgress(),
	})
	defer sub.Close()
	if err := s.agent.traces.add(t); err != nil {
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	defer s.agent.traces.remove(t)
	timer := time.AfterFunc(t.duration, func() { s.agent.traces.remove(t) })
	defer timer.Stop()
	done := make(chan error, 1)
	go func() { done <- s.sendCalls(ctx, &i, sub, stream) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	late := time.NewTimer(drainTime)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return status.Errorf(codes.DeadlineExceeded, "the trace is over, and the client did not take the rest of it within %v", drainTime)
	}
}

// quietTime is for how long nothing comes that a trace has seen, once it is over and there is
// nothing more.
const quietTime = 200 * time.Millisecond

// sendCalls sends what a subscription gets until ctx is done, and then what it has.
func (s *server) sendCalls(ctx context.Context, i *interest, sub *hub.Subscription, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	for {
		item, ok := nextCall(ctx, stream.Context(), sub)
		switch {
		case ok && endsTrace(&item):
			<-ctx.Done() // which is next
			if err := s.send(stream, i, hub.Item{Lost: item.Lost}); err != nil {
				return err
			}
			return s.sendRest(ctx, i, stream)
		case ok:
			if n, isNote := item.Record.(*traceNote); isNote && n.event == nil {
				item.Record, item.Sequence = nil, 0 // something was lost
			}
			if err := errors.Join(s.sendLost(i.trace, stream), s.send(stream, i, item)); err != nil {
				return err
			}
		case stream.Context().Err() != nil:
			return status.FromContextError(stream.Context().Err()).Err()
		case ctx.Err() == nil:
			return status.Error(codes.Unavailable, errStopping.Error())
		default:
			return s.sendRest(ctx, i, stream)
		}
	}
}

// nextCall is the next item of a trace. Once ctx, that of the trace, is done, it does not
// wait for long: a client that does not read may have lost the last one.
func nextCall(ctx, stream context.Context, sub *hub.Subscription) (hub.Item, bool) {
	if item, ok := sub.Next(ctx); ok {
		return item, true
	}
	late, cancel := context.WithTimeout(stream, quietTime)
	defer cancel()
	return sub.Next(late)
}

// endsTrace reports whether an item is the last of a trace.
func endsTrace(item *hub.Item) bool {
	n, ok := item.Record.(*traceNote)
	return ok && n.over
}

// sendLost tells of what a trace has lost since it was last told.
func (s *server) sendLost(t *trace, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	lost := t.takeLost()
	for _, stage := range slices.Sorted(maps.Keys(lost)) {
		if err := stream.Send(s.agent.lostEvent(stage, lost[stage])); err != nil {
			return err
		}
	}
	return nil
}

// sendRest ends the stream of a trace that has ended with what found no room in its queue.
func (s *server) sendRest(ctx context.Context, i *interest, stream grpc.ServerStreamingServer[orb8v1.Event]) error {
	if err := s.sendLost(i.trace, stream); err != nil {
		return err
	}
	if i.trace.over.Load() {
		for _, e := range i.trace.rest {
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
	if why := context.Cause(ctx); !errors.Is(why, errTraceOver) {
		return status.Error(codes.Unavailable, why.Error())
	}
	return nil
}

// want is what the Tracer is to hand over for a trace. Where calls are chosen here, by
// more than their name, more than the rate of them are looked at.
func (t *trace) want(rules *anomaly.Engine) TraceWant {
	if t.summary {
		return TraceWant{Count: true}
	}
	w := TraceWant{Events: true, Rate: t.rate, ErrorsOnly: t.errorsOnly}
	if t.names != nil {
		w.Calls = slices.Sorted(maps.Keys(t.names))
	} else if t.except != nil {
		w.Calls = syscalls.Names()
	}
	w.Calls = slices.DeleteFunc(w.Calls, func(name string) bool { return t.except[name] })
	if t.narrowed {
		w.Rate = max(w.Rate, narrowedRate)
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

// allows counts a call as sent, unless there were too many in its second. Calls come out
// of order by less than a second; more is a clock that was set back. It is called by
// its stream's filters only.
func (t *trace) allows(at int64) bool {
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

// takes reports whether a call is one of those that the trace asks for.
func (t *trace) takes(c *calls.Record) bool {
	switch {
	case c.Traces>>t.slot&1 == 0, t.summary, len(t.names) > 0 && !t.names[c.Name], t.except[c.Name], c.Latency < t.slower, t.anomaliesOnly && len(c.Rules) == 0:
		return false
	case t.errorsOnly:
		return c.Returned && syscalls.Errno(c.Return) != ""
	}
	return true
}
