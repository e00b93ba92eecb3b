// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/tracing"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// fakeTracer hands over what it is given, for selected cgroups, as the kernel would.
type fakeTracer struct {
	apply func(*calls.Record)

	mu        sync.Mutex
	startErr  error
	selectErr error
	breaks    chan error // what Run ends with by itself
	starts    int
	running   bool
	selected  map[uint64]uint64
	wants     [tracing.MaxTraces]tracing.Want
	lost      [tracing.MaxTraces]tracing.Lost
	waiting   []calls.Record // handed over when all that has ended is
	goingOn   []calls.Record // handed over as unfinished
	onFlush   func()         // what happens just then, without mu
	counts    []tracing.CallCount
	forgotten []uint64 // whose counts were
	released  []uint64 // of which nothing is kept
}

func withTracer(f *fakeTracer) rigOption {
	return func(_ *config.Config, d *Deps, _ *rig) {
		f.breaks = make(chan error, 1)
		d.Tracer = func(_ *loss.Counters, apply func(*calls.Record)) tracing.Tracer {
			f.apply = apply
			return f
		}
	}
}

func (f *fakeTracer) Start() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.startErr != nil {
		return f.startErr
	}
	f.starts++
	f.running, f.selected = true, make(map[uint64]uint64)
	return nil
}

func (f *fakeTracer) Run(ctx context.Context) error {
	select {
	case err := <-f.breaks:
		return err
	case <-ctx.Done():
		return f.Collect()
	}
}

func (f *fakeTracer) Flush(trace uint) error {
	f.mu.Lock()
	goingOn, onFlush := slices.Clone(f.goingOn), f.onFlush
	f.mu.Unlock()
	for i := range goingOn {
		c := &goingOn[i]
		if c.Traces &= 1 << trace; c.Traces != 0 {
			c.Unfinished, c.Returned = true, false
			f.call(c)
		}
	}
	if onFlush != nil {
		onFlush()
	}
	return nil
}

func (f *fakeTracer) Hooks() []string { return []string{"fake/sys_enter"} }

func (f *fakeTracer) Collect() error {
	f.mu.Lock()
	waiting := f.waiting
	f.waiting = nil
	f.mu.Unlock()
	for i := range waiting {
		f.call(&waiting[i])
	}
	return nil
}

func (f *fakeTracer) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = false
	return nil
}

func (f *fakeTracer) Select(cgroup uint64, trace uint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.selectErr != nil {
		return f.selectErr
	}
	f.selected[cgroup] |= 1 << trace
	return nil
}

func (f *fakeTracer) Drop(cgroup uint64, trace uint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(cgroup, trace)
	return nil
}

func (f *fakeTracer) drop(cgroup uint64, trace uint) {
	if f.selected[cgroup] &^= 1 << trace; f.selected[cgroup] == 0 {
		delete(f.selected, cgroup)
	}
}

func (f *fakeTracer) Selected() (map[uint64]uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.selected), nil
}

func (f *fakeTracer) SelectedFor(cgroup uint64) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.selected[cgroup], nil
}

func (f *fakeTracer) End(trace uint) (had []uint64, err error) {
	f.mu.Lock()
	for id, bits := range f.selected {
		if bits>>trace&1 != 0 {
			had = append(had, id)
			f.drop(id, trace)
		}
	}
	f.wants[trace] = tracing.Want{}
	f.mu.Unlock()
	return had, f.Collect()
}

func (f *fakeTracer) Want(trace uint, w tracing.Want) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wants[trace] = w
	return nil
}

func (f *fakeTracer) Lost(trace uint) tracing.Lost {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost[trace]
}

func (f *fakeTracer) Forget(cgroups ...uint64) error {
	f.mu.Lock()
	f.released = append(f.released, cgroups...)
	f.mu.Unlock()
	return f.ForgetCounts(cgroups...)
}

func (f *fakeTracer) ForgetCounts(cgroups ...uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgotten = append(f.forgotten, cgroups...)
	f.counts = slices.DeleteFunc(f.counts, func(c tracing.CallCount) bool { return slices.Contains(cgroups, c.CgroupID) })
	return nil
}

func (f *fakeTracer) Summary() ([]tracing.CallCount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.counts), nil
}

func (f *fakeTracer) count(c ...tracing.CallCount) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts = c
}

// call hands over a call for the traces that it says or, if it says none, for those that
// have selected its cgroup.
func (f *fakeTracer) call(c *calls.Record) {
	f.mu.Lock()
	if c.Traces == 0 {
		c.Traces = uint32(f.selected[c.CgroupID])
	}
	ok := f.running && c.Traces != 0
	f.mu.Unlock()
	if ok {
		f.apply(c)
	}
}

// state has what the first trace wants.
func (f *fakeTracer) state() (running bool, selected []uint64, want tracing.Want) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running, slices.Sorted(maps.Keys(f.selected)), f.wants[0]
}

func (f *fakeTracer) wantOf(trace uint) tracing.Want {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wants[trace]
}

// aCall by process 100 of a cgroup.
func aCall(t *testing.T, cgroup uint64, name string, ret int64) calls.Record {
	t.Helper()
	return calls.Record{
		Call:   syscalls.Call{ABI: process.AMD64, Number: callNumber(t, name), Return: ret, Returned: true},
		Header: record.Header{Time: second(5), CgroupID: cgroup, PID: 100, Comm: record.Comm{'a', 'p', 'p'}},
		TID:    101, Latency: time.Millisecond,
	}
}

// callStream is a stream of system calls.
type callStream struct {
	t      *testing.T
	stream interface {
		Recv() (*orb8v1.Event, error)
	}
}

func (r *rig) traceCalls(ctx context.Context, t *testing.T, want *orb8v1.SyscallTrace, filters ...*orb8v1.Filter) *callStream {
	t.Helper()
	stream, err := r.client.Observe(ctx, &orb8v1.ObserveRequest{
		Kinds: []orb8v1.EventKind{
			orb8v1.EventKind_EVENT_KIND_SYSCALL, orb8v1.EventKind_EVENT_KIND_NODE_STATUS, orb8v1.EventKind_EVENT_KIND_LOST_EVENTS,
		}, Follow: true, Filters: filters, Syscalls: want,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &callStream{t, stream}
}

// next waits for an event of interest; the error is that of the stream's end.
func (c *callStream) next() (*orb8v1.Event, error) {
	for {
		ev, err := c.stream.Recv()
		if err != nil || ev.GetNodeStatus() == nil {
			return ev, err
		}
	}
}

// lastSummary is what the stream ends with.
func (c *callStream) lastSummary() (last *orb8v1.SyscallSummary) {
	c.t.Helper()
	for {
		ev, err := c.next()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			c.t.Fatal(err)
		}
		last = ev.GetSyscallSummary()
	}
}

// targets waits until it is told whom it traces.
func (c *callStream) targets() []string {
	c.t.Helper()
	for {
		ev, err := c.next()
		if err != nil {
			c.t.Fatal(err)
		}
		if ev.GetSyscallTargets() != nil {
			names := []string{}
			for _, w := range ev.GetSyscallTargets().GetWorkloads() {
				names = append(names, w.GetPodName())
			}
			return names
		}
	}
}

func inShop() *orb8v1.Filter { return &orb8v1.Filter{Namespaces: []string{"shop"}} }

func TestTrace(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	ctx, cancel := context.WithCancel(t.Context())
	stream := r.traceCalls(ctx, t, &orb8v1.SyscallTrace{Calls: []string{"openat", "chroot"}}, inShop())
	if got := stream.targets(); !slices.Equal(got, []string{"web"}) {
		t.Fatalf("traced are %v, want web", got)
	}
	running, selected, want := tracer.state()
	if !running || !slices.Equal(selected, []uint64{1}) || !want.Events || want.Rate != tracing.DefaultRate ||
		!slices.Equal(want.Calls, []string{"chroot", "openat"}) {
		t.Errorf("running %v, selected %v, wanted %+v", running, selected, want)
	}
	if got := r.syscallProbe(t); got.GetState() != orb8v1.ProbeState_PROBE_STATE_RUNNING || len(got.GetHooks()) != 1 {
		t.Errorf("while it traces the probe is %v", got)
	}
	for _, c := range []calls.Record{aCall(t, 1, "read", 3), aCall(t, 2, "openat", 3), aCall(t, 1, "openat", -2), aCall(t, 1, "chroot", 0)} {
		tracer.call(&c)
	}
	ev, err := stream.next()
	if err != nil {
		t.Fatal(err)
	}
	call := ev.GetSyscall()
	if call.GetName() != "openat" || call.GetError() != "ENOENT" || call.GetReturnValue() != -2 || call.GetWorkload().GetPodName() != "web" ||
		call.GetThreadId() != 101 || call.GetLatencyNs() != 1e6 || call.GetProcess().GetCommand() != "app" || len(call.GetArguments()) == 0 {
		t.Errorf("call: %v", call)
	}
	if ev, _ = stream.next(); ev.GetSyscall().GetName() != "chroot" || !slices.Contains(ev.GetSyscall().GetRules(), "chroot") {
		t.Errorf("a call that a rule flags: %v", ev)
	}
	cancel()
	eventuallyTrue(t, "the tracer ends with its client", func() bool {
		running, _, _ := tracer.state()
		return !running
	})
	eventuallyTrue(t, "the probe is idle", func() bool {
		return r.syscallProbe(t).GetState() == orb8v1.ProbeState_PROBE_STATE_IDLE
	})
}

// syscallProbe is what the agent says of it.
func (r *rig) syscallProbe(t *testing.T) *orb8v1.ProbeStatus {
	t.Helper()
	s, err := r.client.GetStatus(t.Context(), &orb8v1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.GetProbes() {
		if p.GetName() == "syscall" {
			return p
		}
	}
	t.Fatal("the status has no syscall probe")
	return nil
}

func eventuallyTrue(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("never: %s", what)
		}
	}
}

// What is on its way when the time is over still comes, then the stream ends in order.
func TestTraceEndsByItself(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{DurationNs: int64(300 * time.Millisecond), AnomaliesOnly: true}, inShop())
	stream.targets()
	tracer.mu.Lock()
	tracer.waiting = []calls.Record{aCall(t, 1, "read", 3), aCall(t, 1, "chroot", 0)}
	tracer.mu.Unlock()
	ev, err := stream.next()
	if err != nil || ev.GetSyscall().GetName() != "chroot" {
		t.Fatalf("got %v, %v; want the call that waited", ev, err)
	}
	if _, err := stream.next(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
	if running, _, _ := tracer.state(); running {
		t.Error("the tracer runs on")
	}
}

func TestTraceSummary(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Summary: true, DurationNs: int64(300 * time.Millisecond)}, inShop())
	stream.targets()
	if _, _, want := tracer.state(); want.Events || !want.Count {
		t.Errorf("a summary wants %+v", want)
	}
	tracer.count(
		tracing.CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 3, Errors: 1, Time: 50, Max: 40},
		tracing.CallCount{CgroupID: 1, Name: "write", ABI: "amd64", Calls: 1, Time: 900, Max: 900},
		tracing.CallCount{CgroupID: 2, Name: "write", ABI: "amd64", Calls: 5, Time: 900, Max: 900})
	last := stream.lastSummary()
	got := last.GetCalls()
	if last.GetWorkload().GetPodName() != "web" || len(got) != 2 || got[0].GetName() != "write" ||
		got[1].GetCalls() != 3 || got[1].GetErrors() != 1 || got[1].GetTimeNs() != 50 || got[1].GetMaxNs() != 40 {
		t.Errorf("summary: %v", last)
	}
}

// A pod that comes later is traced too; while there is none, nothing is attached.
func TestTraceOfALaterPod(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Pods: []string{"late"}})
	if got := stream.targets(); len(got) != 0 {
		t.Errorf("traced are %v", got)
	}
	if running, _, _ := tracer.state(); running {
		t.Error("the tracer runs for nobody")
	}
	r.resolver.mu.Lock()
	r.resolver.local[3] = &workload.Identity{Namespace: "shop", Pod: "late", CgroupID: 3, ContainerID: bankContainer}
	r.resolver.mu.Unlock()
	if got := stream.targets(); !slices.Equal(got, []string{"late"}) {
		t.Errorf("traced are %v, want late", got)
	}
	if _, selected, _ := tracer.state(); !slices.Equal(selected, []uint64{3}) {
		t.Errorf("selected are %v", selected)
	}
}

// Two clients share a tracer, each with its own wishes.
func TestTwoTraces(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	web := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{ErrorsOnly: true, Rate: 5}, inShop())
	web.targets()
	if _, _, want := tracer.state(); !want.ErrorsOnly || want.Rate != 5 {
		t.Errorf("wanted %+v", want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	db := r.traceCalls(ctx, t, &orb8v1.SyscallTrace{Calls: []string{"read"}}, &orb8v1.Filter{Pods: []string{"db"}})
	db.targets()
	_, selected, want := tracer.state()
	if !slices.Equal(selected, []uint64{1, 2}) || !want.ErrorsOnly || want.Rate != 5 || want.Calls != nil {
		t.Errorf("selected %v, the first wants %+v", selected, want)
	}
	if want := tracer.wantOf(1); want.ErrorsOnly || want.Rate != tracing.DefaultRate || !slices.Equal(want.Calls, []string{"read"}) {
		t.Errorf("the second wants %+v", want)
	}
	for _, c := range []calls.Record{
		aCall(t, 1, "read", 3), aCall(t, 2, "write", 3), aCall(t, 1, "read", -11), aCall(t, 2, "read", 3),
	} {
		tracer.call(&c)
	}
	if ev, err := web.next(); err != nil || ev.GetSyscall().GetError() != "EAGAIN" {
		t.Errorf("web: %v, %v", ev, err)
	}
	if ev, err := db.next(); err != nil || ev.GetSyscall().GetName() != "read" || ev.GetSyscall().GetWorkload().GetPodName() != "db" {
		t.Errorf("db: %v, %v", ev, err)
	}
	cancel()
	eventuallyTrue(t, "the rest goes on alone", func() bool {
		running, selected, _ := tracer.state()
		return running && slices.Equal(selected, []uint64{1})
	})
	if !slices.Contains(tracer.forgotten, 2) {
		t.Errorf("forgotten are %v, want what only the second had", tracer.forgotten)
	}
	if tracer.starts != 1 {
		t.Errorf("started %d times", tracer.starts)
	}
}

func TestTraceRefuses(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	kinds := []orb8v1.EventKind{orb8v1.EventKind_EVENT_KIND_SYSCALL}
	for _, c := range []struct {
		req  *orb8v1.ObserveRequest
		code codes.Code
		says string
	}{
		{&orb8v1.ObserveRequest{Follow: true}, codes.InvalidArgument, "say of which pods"},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{{Ports: []uint32{80}}}}, codes.InvalidArgument, "say of which pods"},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{{Pods: []string{"web"}, Negate: true}}}, codes.InvalidArgument, "say of which pods"},
		{&orb8v1.ObserveRequest{Filters: []*orb8v1.Filter{inShop()}}, codes.InvalidArgument, "follow"},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{inShop()}, Syscalls: &orb8v1.SyscallTrace{Calls: []string{"opn"}}}, codes.InvalidArgument, `"opn"`},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{inShop()}, Syscalls: &orb8v1.SyscallTrace{DurationNs: int64(2 * time.Hour)}}, codes.InvalidArgument, "1h"},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{inShop()}, Syscalls: &orb8v1.SyscallTrace{Rate: 1 << 30}}, codes.InvalidArgument, "a second"},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{inShop()}, Syscalls: &orb8v1.SyscallTrace{Summary: true, AnomaliesOnly: true}}, codes.InvalidArgument, "rules"},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{inShop(), {Rules: []string{"chroot"}}}, Syscalls: &orb8v1.SyscallTrace{Summary: true}}, codes.InvalidArgument, "containers only"},
		{&orb8v1.ObserveRequest{Follow: true, Filters: []*orb8v1.Filter{inShop(), {Processes: []string{"sh"}, Negate: true}}, Syscalls: &orb8v1.SyscallTrace{Summary: true}}, codes.InvalidArgument, "containers only"},
	} {
		c.req.Kinds = kinds
		stream, err := r.client.Observe(t.Context(), c.req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&callStream{t, stream}).next()
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %v that says %q", c.req, err, c.code, c.says)
		}
	}
	tracer.mu.Lock()
	tracer.startErr = errors.New("no sys_enter here")
	tracer.mu.Unlock()
	if _, err := r.traceCalls(t.Context(), t, nil, inShop()).next(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no sys_enter") {
		t.Errorf("a tracer that does not start: %v", err)
	}
	off := containerRig(t, withTracer(tracer), func(c *config.Config, _ *Deps, _ *rig) { c.Syscall = config.ModeOff })
	if _, err := off.traceCalls(t.Context(), t, nil, inShop()).next(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("with syscall: off: %v", err)
	}
	if got := off.syscallProbe(t); got.GetState() != orb8v1.ProbeState_PROBE_STATE_OFF || got.GetReason() == "" {
		t.Errorf("with syscall: off the probe is %v", got)
	}
}

// A trace has its own limit, and is told of its own losses only.
func TestTraceRates(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	web := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Rate: 3, DurationNs: int64(3 * time.Second)}, inShop())
	web.targets()
	db := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{DurationNs: int64(3 * time.Second)}, &orb8v1.Filter{Pods: []string{"db"}})
	db.targets()
	for range 10 {
		for _, c := range []calls.Record{aCall(t, 1, "read", 3), aCall(t, 2, "read", 3)} {
			tracer.call(&c)
		}
	}
	tracer.mu.Lock()
	tracer.lost[0].Limited, tracer.lost[0].RingFull, tracer.lost[0].Missed = 100, 7, 2
	tracer.mu.Unlock()
	// As the syscall probe counts them too.
	r.losses.Add(loss.SyscallLimited, 100)
	r.losses.Add(loss.SyscallRingFull, 7)
	r.losses.Add(loss.ProgramSkipped, 2)
	r.watch.look()
	count := func(c *callStream) (told int, lost map[string]uint64) {
		lost = make(map[string]uint64)
		for {
			ev, err := c.next()
			if errors.Is(err, io.EOF) {
				return told, lost
			}
			if err != nil {
				t.Fatal(err)
			}
			if ev.GetSyscall() != nil {
				told++
			}
			if l := ev.GetLostEvents(); l != nil {
				lost[l.GetStage()] += l.GetCount()
			}
		}
	}
	if told, lost := count(web); told != 3 || lost["syscall_limited"] != 107 || lost["syscall_ring_full"] != 7 || lost["program_skipped"] != 2 {
		t.Errorf("web is told of %d calls and that it has lost %v; want 3, 107 beyond the rate, 7 and 2", told, lost)
	}
	if told, lost := count(db); told != 10 || len(lost) != 0 {
		t.Errorf("db is told of %d calls and that it has lost %v, want 10 and nothing", told, lost)
	}
}

// Where rules choose, the kernel looks for what they flag, and for more than the rate.
func TestTraceOfRules(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	for i, c := range []struct {
		want     *orb8v1.SyscallTrace
		filters  []*orb8v1.Filter
		calls    []string
		missing  string
		refused  bool
		rateMore bool
	}{
		{&orb8v1.SyscallTrace{AnomaliesOnly: true, Rate: 10}, nil, []string{"chroot", "unshare"}, "getppid", true, true},
		{&orb8v1.SyscallTrace{AnomaliesOnly: true, Rate: 10, Calls: []string{"chroot", "getppid"}}, nil, []string{"chroot"}, "unshare", true, true},
		{&orb8v1.SyscallTrace{Rate: 10}, []*orb8v1.Filter{{Rules: []string{"chroot"}}}, []string{"chroot"}, "unshare", false, true},
		{&orb8v1.SyscallTrace{Rate: 10, Calls: []string{"getppid"}}, []*orb8v1.Filter{{Processes: []string{"sh"}}}, []string{"getppid"}, "chroot", false, true},
		{&orb8v1.SyscallTrace{Rate: 10, Calls: []string{"getppid"}}, nil, []string{"getppid"}, "chroot", false, false},
	} {
		stream := r.traceCalls(t.Context(), t, c.want, append(c.filters, inShop())...)
		stream.targets()
		w := tracer.wantOf(uint(i))
		for _, name := range c.calls {
			if !slices.Contains(w.Calls, name) {
				t.Errorf("%d: %s is not in %v", i, name, w.Calls)
			}
		}
		if slices.Contains(w.Calls, c.missing) || w.Refused != c.refused || (w.Rate > 10) != c.rateMore {
			t.Errorf("%d: wanted %+v", i, w)
		}
	}
}

// A container that has ended is in the sums, if it lived for a moment only.
func TestSummaryOfEnded(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Summary: true, DurationNs: int64(4 * time.Second)}, inShop())
	stream.targets()
	r.resolver.put(3, &workload.Identity{Namespace: "shop", Pod: "job", CgroupID: 3, ContainerID: bankContainer})
	tracer.mu.Lock()
	tracer.selected[3] = 1 // as the kernel does it
	tracer.mu.Unlock()
	r.traces.Learn(3)
	tracer.count(tracing.CallCount{CgroupID: 3, Name: "read", ABI: "amd64", Calls: 2, Time: 7}, tracing.CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 1, Time: 1})
	if got := stream.targets(); !slices.Contains(got, "job") {
		t.Errorf("chosen are %v, want the new one too", got)
	}
	r.resolver.put(3, nil)
	last := make(map[string]*orb8v1.SyscallSummary)
	for {
		ev, err := stream.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if s := ev.GetSyscallSummary(); s != nil {
			last[s.GetWorkload().GetPodName()] = s
		}
	}
	if s := last["job"]; len(s.GetCalls()) != 1 || s.GetCalls()[0].GetCalls() != 2 {
		t.Errorf("summary of what has ended: %v", s)
	}
	if last["web"] == nil {
		t.Error("no summary of the other")
	}
	if !slices.Contains(tracer.forgotten, 3) {
		t.Errorf("counts were forgotten of %v, want 3", tracer.forgotten)
	}
}

// What was counted for another before is not this one's, and the longest call is not
// known.
func TestSummaryLater(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	first := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Summary: true}, inShop())
	first.targets()
	tracer.count(tracing.CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 10, Time: 100, Max: 90})
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Summary: true, DurationNs: int64(time.Second)}, inShop())
	stream.targets()
	tracer.count(tracing.CallCount{CgroupID: 1, Name: "read", ABI: "amd64", Calls: 13, Errors: 1, Time: 150, Max: 90})
	last := stream.lastSummary()
	if got := last.GetCalls(); len(got) != 1 || got[0].GetCalls() != 3 || got[0].GetTimeNs() != 50 || got[0].GetMaxNs() != 0 {
		t.Errorf("summary: %v", last)
	}
}

// A trace ends in time although its client reads nothing and calls keep coming.
func TestTraceEndsUnread(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{DurationNs: int64(300 * time.Millisecond), Rate: 1_000_000}, inShop())
	stream.targets()
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				c := aCall(t, 1, "read", 3)
				tracer.call(&c)
			}
		}
	})
	begin := time.Now()
	eventuallyTrue(t, "the tracer ends", func() bool {
		running, _, _ := tracer.state()
		return !running
	})
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	close(stop)
	flood.Wait()
	eventuallyTrue(t, "the stream ends", func() bool { return r.hub.Subscribers() == 0 })
	for {
		if _, err := stream.next(); err != nil {
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("the stream ends with %v", err)
			}
			return
		}
	}
}

func TestTraceBreaks(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, nil, inShop())
	stream.targets()
	tracer.breaks <- errors.New("the ring has gone")
	if _, err := stream.next(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the ring has gone") {
		t.Errorf("a tracer that ends by itself: %v", err)
	}
	if got := r.syscallProbe(t); got.GetState() != orb8v1.ProbeState_PROBE_STATE_IDLE {
		t.Errorf("afterwards the probe is %v", got)
	}
	stream = r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Pods: []string{"web", "late"}})
	stream.targets()
	tracer.mu.Lock()
	tracer.selectErr = errors.New("no more cgroups")
	tracer.mu.Unlock()
	r.resolver.put(3, &workload.Identity{Namespace: "shop", Pod: "late", CgroupID: 3, ContainerID: bankContainer})
	for {
		ev, err := stream.next()
		if err == nil && ev.GetSyscallTargets() != nil {
			continue
		}
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no more cgroups") {
			t.Errorf("a container that cannot be selected: %v, %v", ev, err)
		}
		break
	}
}

// What the kernel selects below a selected cgroup, and the filters leave out, is dropped.
func TestTraceDropsInherited(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, nil, inShop())
	stream.targets()
	other := &workload.Identity{Namespace: "bank", Pod: "db", CgroupID: 5, ContainerID: bankContainer}
	r.resolver.put(5, other)
	tracer.mu.Lock()
	tracer.selected[5] = 1
	tracer.mu.Unlock()
	eventuallyTrue(t, "it is dropped", func() bool {
		_, selected, _ := tracer.state()
		return slices.Equal(selected, []uint64{1})
	})
}

// A new cgroup is selected when it becomes known, not at the next walk.
func TestTraceSelectsAtOnce(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Pods: []string{"late"}})
	stream.targets()
	for id := uint64(10); id < 15; id++ {
		before := r.resolver.walked()
		r.resolver.put(id, &workload.Identity{Namespace: "shop", Pod: "late", CgroupID: id, ContainerID: bankContainer})
		r.traces.Learn(id)
		eventuallyTrue(t, "it is selected", func() bool {
			_, selected, _ := tracer.state()
			return slices.Contains(selected, id)
		})
		if r.resolver.walked() == before {
			return
		}
	}
	t.Error("it is selected by a walk only")
}

func TestTraceNoResult(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, nil, inShop())
	stream.targets()
	c := aCall(t, 1, "rt_sigreturn", 0)
	c.Returned = false
	tracer.call(&c)
	if ev, err := stream.next(); err != nil || !ev.GetSyscall().GetNoResult() || ev.GetSyscall().GetUnfinished() {
		t.Errorf("a call without a result: %v, %v", ev, err)
	}
}

func TestTooManyTraces(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	for range tracing.MaxTraces {
		r.traceCalls(t.Context(), t, nil, inShop()).targets()
	}
	if _, err := r.traceCalls(t.Context(), t, nil, inShop()).next(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "16 traces") {
		t.Errorf("one too many: %v", err)
	}
}

// TestTraceLeavesOut: calls by name, and those that were quick.
func TestTraceLeavesOut(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	stream := r.traceCalls(t.Context(), t, &orb8v1.SyscallTrace{Except: []string{"read"}, SlowerNs: int64(2 * time.Millisecond)}, inShop())
	stream.targets()
	_, _, want := tracer.state()
	if slices.Contains(want.Calls, "read") || !slices.Contains(want.Calls, "write") || want.Rate != tracing.NarrowedRate {
		t.Errorf("wanted %+v", want)
	}
	quick, read, slow := aCall(t, 1, "write", 1), aCall(t, 1, "read", 1), aCall(t, 1, "write", 2)
	read.Latency, slow.Latency = time.Second, 2*time.Millisecond
	for _, c := range []calls.Record{quick, read, slow} {
		tracer.call(&c)
	}
	ev, err := stream.next()
	if err != nil || ev.GetSyscall().GetName() != "write" || ev.GetSyscall().GetReturnValue() != 2 {
		t.Errorf("%v, %v", ev, err)
	}
	for _, wrong := range []*orb8v1.SyscallTrace{{Except: []string{"raed"}}, {SlowerNs: 1, Summary: true}} {
		if _, err := r.traceCalls(t.Context(), t, wrong, inShop()).next(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}

// TestTraceByProcess: without another choice the containers are traced in which a process of
// that name runs, and only its calls are sent.
func TestTraceByProcess(t *testing.T) {
	tracer := new(fakeTracer)
	r := containerRig(t, withTracer(tracer))
	r.begin(100, 1)
	r.begin(200, 2)
	r.exec(aProcess(300, 200, 2, "/usr/bin/psql"), nil)
	stream := r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Processes: []string{"psql"}})
	if got := stream.targets(); !slices.Equal(got, []string{"db"}) {
		t.Fatalf("traced are %v, want db", got)
	}
	other, its := aCall(t, 2, "read", 1), aCall(t, 2, "write", 2)
	its.PID, its.Comm = 300, record.Comm{'p', 's', 'q', 'l'}
	for _, c := range []calls.Record{other, its} {
		tracer.call(&c)
	}
	if ev, err := stream.next(); err != nil || ev.GetSyscall().GetName() != "write" {
		t.Errorf("%v, %v", ev, err)
	}
	r.exec(aProcess(400, 100, 1, "/usr/bin/psql"), nil)
	if got := stream.targets(); len(got) != 2 {
		t.Errorf("traced are %v, want both", got)
	}
	if _, err := r.traceCalls(t.Context(), t, nil, &orb8v1.Filter{Processes: []string{"psql"}, Negate: true}).next(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("all but psql: %v", err)
	}
}
