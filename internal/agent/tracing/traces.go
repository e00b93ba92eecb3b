// SPDX-License-Identifier: Apache-2.0

package tracing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// ErrOver is why a trace ends in order, ErrStopping why all do when the agent stops.
var (
	ErrOver     = errors.New("the time of the trace is over")
	ErrStopping = errors.New("the agent is stopping")
)

// Resolver names cgroups, see workload.Resolver.
type Resolver interface {
	Local(cgroup uint64, pid uint32, comm string, addr netip.Addr) *workload.Identity
	Cgroups() map[uint64]*workload.Identity
	Owns(cgroup uint64) bool
	Alive(cgroup uint64) bool
}

// Config is what Traces need of an agent.
type Config struct {
	// Tracer makes what traces, which hands each call to a function that keeps it; nil if
	// there is none.
	Tracer   func(*loss.Counters, func(*calls.Record)) Tracer
	Resolver Resolver
	Rules    *anomaly.Engine
	Losses   *loss.Counters
	// Running are the processes of this node.
	Running func() []*process.Process
	// Call takes a call that has been traced, without its executable, and hands it
	// to those who trace it. Note does so with what a trace is told beside.
	Call func(*calls.Record)
	Note func(*Note)
	// Event dates an event of this node.
	Event func(*orb8v1.Event) *orb8v1.Event
	// Off: they are turned off.
	Off func() bool
	Log *slog.Logger
}

// Traces runs the Tracer while there is a trace that has something to trace here.
type Traces struct {
	cfg Config
	// made are new cgroups, of which news says that there are some, while running: there
	// are traces.
	running atomic.Int32
	news    chan struct{}
	madeMu  sync.Mutex
	made    []uint64

	mu     sync.Mutex
	all    []*Trace
	taken  uint32 // a bit for each number that a trace has
	tracer Tracer // nil while it does not run
	stop   context.CancelFunc
	done   chan error
	began  time.Time
}

// New returns no traces yet; Run is to be called.
func New(cfg Config) *Traces { return &Traces{cfg: cfg, news: make(chan struct{}, 1)} }

// Running is how many traces there are.
func (ts *Traces) Running() int { return int(ts.running.Load()) }

// Reserve gives a trace its number. What others were told of under that number has been
// published by then, so that a stream that begins later has none of it.
func (ts *Traces) Reserve(t *Trace) error {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for slot := range uint(MaxTraces) {
		if ts.taken>>slot&1 == 0 {
			t.slot = slot
			ts.taken |= 1 << slot
			return nil
		}
	}
	return fmt.Errorf("%d traces of system calls are running on this node, which is the most", MaxTraces)
}

// Add begins a trace, which has a number. end ends its stream, in order if it is with
// ErrOver.
func (ts *Traces) Add(t *Trace, end context.CancelCauseFunc) error {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.end = end
	t.begin = time.Now()
	ts.all = append(ts.all, t)
	ts.running.Add(1)
	return ts.update()[t]
}

// Remove ends a trace, if it has not ended: what it has seen is in its stream's queue
// afterwards.
func (ts *Traces) Remove(t *Trace) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if !slices.Contains(ts.all, t) {
		return
	}
	ts.drop(t, ErrOver)
}

// drop ends a trace, for a reason, and all that is done for it, and then its stream.
func (ts *Traces) drop(t *Trace, why error) {
	var had iter.Seq[uint64]
	switch {
	case ts.tracer == nil:
	case !slices.ContainsFunc(ts.all, func(o *Trace) bool { return o != t && len(o.cgroups) > 0 }):
		ts.halt()
	default:
		had = ts.finish(t)
	}
	ts.countLost(t)
	ts.tellLost(t)
	t.over.Store(true)
	ts.cfg.Note(&Note{Trace: t, Over: true})
	t.end(why)
	ts.all = slices.DeleteFunc(ts.all, func(o *Trace) bool { return o == t })
	ts.taken &^= 1 << t.slot
	ts.running.Add(-1)
	if ts.tracer == nil {
		return
	}
	if err := ts.forget(had); err != nil {
		ts.cfg.Log.Warn("end a trace of system calls", "err", err)
	}
}

// finish takes one of several traces from the Tracer, tells it of all that it has seen,
// and returns which cgroups it had. Calls end until it is taken away: what has been told
// of as unfinished may be told of again.
func (ts *Traces) finish(t *Trace) iter.Seq[uint64] {
	had := make(map[uint64]bool)
	for _, ids := range []map[uint64]*workload.Identity{t.cgroups, t.gone} {
		for id := range ids {
			had[id] = true
		}
	}
	err := errors.Join(ts.tracer.Collect(), ts.tracer.Flush(t.slot))
	selected, endErr := ts.tracer.End(t.slot)
	if err := errors.Join(err, endErr); err != nil {
		ts.cfg.Log.Warn("end a trace of system calls", "err", err)
	}
	for _, id := range selected {
		had[id] = true
	}
	ts.countLost(t)
	ts.tellLost(t)
	ts.summarize(true, t)
	return maps.Keys(had)
}

// forget gives back what is kept of those cgroups that no trace wants and that the kernel
// has not selected for any either.
func (ts *Traces) forget(cgroups iter.Seq[uint64]) error {
	var ids []uint64
	for id := range cgroups {
		if slices.ContainsFunc(ts.all, func(o *Trace) bool { return o.cgroups[id] != nil || o.gone[id] != nil }) {
			continue
		}
		bits, err := ts.tracer.SelectedFor(id)
		if err != nil {
			return err
		}
		if bits == 0 {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	ts.forgetBefore(ids)
	return ts.tracer.Forget(ids...)
}

// Run keeps traces up to date until ctx is done.
func (ts *Traces) Run(ctx context.Context) {
	ticker := time.NewTicker(selectEvery)
	defer ticker.Stop()
	for round := 1; ; {
		select {
		case <-ctx.Done():
			ts.endAll()
			return
		case <-ts.news:
			ts.admit() //nolint:contextcheck // the Tracer ends when its last trace does
			continue
		case <-ticker.C:
		}
		ts.tick(round%int(summaryEvery/selectEvery) == 0) //nolint:contextcheck // likewise
		round++
	}
}

// endAll ends all traces, since the agent stops.
func (ts *Traces) endAll() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.dropAll(ErrStopping)
}

func (ts *Traces) dropAll(why error) {
	ts.halt()
	for len(ts.all) > 0 {
		ts.drop(ts.all[0], why)
	}
}

func (ts *Traces) tick(sums bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ts.all) == 0 {
		return
	}
	ts.update()
	if !sums {
		return
	}
	if ts.tracer != nil {
		if err := ts.tracer.Collect(); err != nil {
			ts.cfg.Log.Warn("read traced system calls", "err", err)
		}
	}
	for _, t := range ts.all {
		ts.countLost(t)
		ts.tellLost(t)
	}
	if ts.tracer != nil {
		ts.summarize(false, ts.all...)
	}
}

// Learn is told of a new cgroup. It does not wait.
func (ts *Traces) Learn(cgroup uint64) {
	if ts.running.Load() == 0 {
		return
	}
	ts.madeMu.Lock()
	ts.made = append(ts.made, cgroup)
	ts.madeMu.Unlock()
	select {
	case ts.news <- struct{}{}:
	default:
	}
}

// admit selects new cgroups that traces want, and drops those that the kernel has
// selected and that none wants.
func (ts *Traces) admit() {
	ts.madeMu.Lock()
	ids := ts.made
	ts.made = nil
	ts.madeMu.Unlock()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	var added []uint64
	for _, id := range ids {
		if len(ts.all) == 0 || !ts.cfg.Resolver.Owns(id) {
			continue
		}
		who := ts.cfg.Resolver.Local(id, 0, "", netip.Addr{})
		for _, t := range ts.all {
			if !t.processes && t.matches(id, who) {
				t.cgroups[id] = who
			}
		}
		added = append(added, id)
	}
	if len(added) == 0 {
		return
	}
	held := make(map[uint64]uint64)
	if ts.tracer != nil {
		for _, id := range added {
			bits, err := ts.tracer.SelectedFor(id)
			if err != nil {
				ts.cfg.Log.Warn("trace system calls", "err", err)
			}
			held[id] = bits
		}
	}
	ts.bring(held, func(*Trace) iter.Seq[uint64] { return slices.Values(added) })
}

// update selects the cgroups that traces want, and runs the Tracer if there are any. It
// returns why traces have failed, which it ends. It is called with ts.mu held.
func (ts *Traces) update() map[*Trace]error {
	held := make(map[uint64]uint64)
	if ts.tracer != nil { // before the walk: what the kernel adds later is left alone
		var err error
		if held, err = ts.tracer.Selected(); err != nil {
			ts.cfg.Log.Warn("trace system calls", "err", err)
		}
	}
	cgroups := ts.cfg.Resolver.Cgroups()
	for _, t := range ts.all {
		t.choose(ts.among(t, cgroups), ts.cfg.Resolver.Alive)
	}
	return ts.bring(held, func(t *Trace) iter.Seq[uint64] { return maps.Keys(t.cgroups) })
}

// bring brings the Tracer to where the traces want it. held are the cgroups that were
// selected, of those that are looked at.
func (ts *Traces) bring(held map[uint64]uint64, looked func(*Trace) iter.Seq[uint64]) map[*Trace]error {
	failed := make(map[*Trace]error)
	if !slices.ContainsFunc(ts.all, func(t *Trace) bool { return len(t.cgroups) > 0 }) {
		ts.halt()
		ts.tellTargets()
		return failed
	}
	err := ts.ensure()
	for _, t := range ts.all {
		e := err
		if e == nil {
			e = ts.choosing(t, held, looked(t))
		}
		if e != nil {
			failed[t] = e
		}
	}
	for t, err := range failed {
		ts.cfg.Log.Warn("trace of system calls fails", "err", err)
		ts.drop(t, err)
	}
	if err := ts.unselect(held); err != nil {
		ts.cfg.Log.Warn("trace system calls", "err", err)
	}
	ts.tellTargets()
	return failed
}

// choosing says to the Tracer what a trace wants, of which cgroups.
func (ts *Traces) choosing(t *Trace, held map[uint64]uint64, cgroups iter.Seq[uint64]) error {
	if t.wanted == nil {
		t.lost = ts.tracer.Lost(t.slot)
	}
	if w := t.want(ts.cfg.Rules); t.wanted == nil || !reflect.DeepEqual(w, *t.wanted) {
		if err := ts.tracer.Want(t.slot, w); err != nil {
			return err
		}
		t.wanted = &w
	}
	var fresh []uint64
	counted := false // some are selected for others already
	for id := range cgroups {
		if t.cgroups[id] != nil && held[id]>>t.slot&1 == 0 {
			fresh = append(fresh, id)
			counted = counted || held[id] != 0 && t.gone[id] == nil
		}
	}
	if counted && t.summary {
		if err := ts.baseline(t, fresh); err != nil {
			return err
		}
	}
	for _, id := range fresh {
		if err := ts.tracer.Select(id, t.slot); err != nil {
			return err
		}
	}
	return nil
}

// unselect drops cgroups that were selected for traces that do not want them.
func (ts *Traces) unselect(held map[uint64]uint64) error {
	if ts.tracer == nil {
		return nil
	}
	var dropped []uint64
	for id, bits := range held {
		for _, t := range ts.all {
			if t.cgroups[id] != nil {
				bits &^= 1 << t.slot
			}
		}
		for slot := range uint(MaxTraces) {
			if bits>>slot&1 == 0 {
				continue
			}
			if err := ts.tracer.Drop(id, slot); err != nil {
				return err
			}
			dropped = append(dropped, id)
		}
	}
	return ts.forget(slices.Values(slices.Compact(dropped)))
}

// tellTargets tells each trace whom it traces, if that has changed.
func (ts *Traces) tellTargets() {
	for _, t := range ts.all {
		now := t.targets()
		if t.told != nil && slices.Equal(now, t.told) {
			continue
		}
		targets := new(orb8v1.SyscallTargets)
		for _, who := range now {
			targets.Workloads = append(targets.Workloads, kind.Workload(who))
		}
		ts.tell(t, &orb8v1.Event{Event: &orb8v1.Event_SyscallTargets{SyscallTargets: targets}}, false)
		t.told = now
	}
}

// Note is what one trace is told of beside calls: an event, or that it is over, or else
// that something was lost.
type Note struct {
	Trace *Trace
	Event *orb8v1.Event
	Over  bool
}

// tell tells a trace of something or, with keep, its stream in the end: that nothing may
// push out.
func (ts *Traces) tell(t *Trace, e *orb8v1.Event, keep bool) {
	e = ts.cfg.Event(e)
	if keep {
		t.rest = append(t.rest, e)
		return
	}
	ts.cfg.Note(&Note{Trace: t, Event: e})
}

// countLost notes what a trace has lost since the last look.
func (ts *Traces) countLost(t *Trace) {
	beyond := t.limited.Swap(0)
	ts.cfg.Losses.Add(loss.SyscallLimited, beyond)
	t.miss(loss.SyscallLimited, beyond)
	if ts.tracer == nil || t.wanted == nil { // the Tracer does not know of it
		return
	}
	now, before := ts.tracer.Lost(t.slot), t.lost
	t.lost = now
	t.miss(loss.SyscallRingFull, now.RingFull-before.RingFull)
	t.miss(loss.SyscallLimited, now.Limited-before.Limited)
	t.miss(loss.SyscallPendingFull, now.PendingFull-before.PendingFull)
	t.miss(loss.ProgramSkipped, now.Missed-before.Missed)
	if t.summary {
		t.miss(loss.SyscallUncounted, now.Uncounted-before.Uncounted)
		t.uncounted += now.Uncounted - before.Uncounted + now.PendingFull - before.PendingFull
	}
}

// tellLost has a trace's stream tell of what was lost since it told last.
func (ts *Traces) tellLost(t *Trace) {
	t.lostMu.Lock()
	some := len(t.untold) > 0
	t.lostMu.Unlock()
	if some {
		ts.cfg.Note(&Note{Trace: t})
	}
}

// TakeLost returns what was lost and not told of yet, which is told then.
func (t *Trace) TakeLost() map[loss.Stage]uint64 {
	t.lostMu.Lock()
	defer t.lostMu.Unlock()
	lost := t.untold
	t.untold = make(map[loss.Stage]uint64)
	return lost
}

// miss notes that something was lost.
func (t *Trace) miss(stage loss.Stage, n uint64) {
	if n == 0 {
		return
	}
	t.lostMu.Lock()
	defer t.lostMu.Unlock()
	t.untold[stage] += n
}

// targets are the containers that a trace has chosen, or where it has cgroups outside
// of any those; never nil.
func (t *Trace) targets() []*workload.Identity {
	all := make([]*workload.Identity, 0, len(t.cgroups))
	for _, who := range t.cgroups {
		if who.ContainerID != "" || who.PodUID == "" {
			all = append(all, who)
		}
	}
	slices.SortFunc(all, func(a, b *workload.Identity) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod), cmp.Compare(a.CgroupID, b.CgroupID))
	})
	return all
}

func (t *Trace) matches(id uint64, who *workload.Identity) bool {
	return t.selects.Match(&record.Header{CgroupID: id, Owner: who}, nil)
}

// among are the cgroups that a trace chooses among: where it does so by processes, those
// with one that it wants.
func (ts *Traces) among(t *Trace, all map[uint64]*workload.Identity) map[uint64]*workload.Identity {
	if !t.processes {
		return all
	}
	some := make(map[uint64]*workload.Identity)
	for _, p := range ts.cfg.Running() {
		h := record.Header{CgroupID: p.CgroupID, PID: p.PID, Executable: p.Exe.Path, Owner: all[p.CgroupID]}
		copy(h.Comm[:len(h.Comm)-1], p.Comm)
		if h.Owner != nil && t.selects.Match(&h, nil) {
			some[p.CgroupID] = h.Owner
		}
	}
	return some
}

// choose finds the cgroups that a trace wants among all that were found. Those that it
// counts it keeps, and those that are alive though they were not found.
func (t *Trace) choose(cgroups map[uint64]*workload.Identity, alive func(uint64) bool) {
	for id, who := range t.cgroups {
		if cgroups[id] == nil && !alive(id) {
			if t.summary {
				t.gone[id] = who
			}
			delete(t.cgroups, id)
		}
	}
	for id, who := range cgroups {
		switch {
		case t.processes || t.matches(id, who):
			t.cgroups[id] = who
		case !t.summary:
			delete(t.cgroups, id)
		}
	}
}

// ensure runs the Tracer.
func (ts *Traces) ensure() error {
	if ts.tracer != nil {
		return nil
	}
	tracer := ts.cfg.Tracer(ts.cfg.Losses, ts.apply)
	if err := tracer.Start(); err != nil {
		return fmt.Errorf("trace system calls: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ts.tracer, ts.stop, ts.done, ts.began = tracer, stop, make(chan error, 1), time.Now()
	ts.cfg.Log.Info("tracing of system calls begins")
	go func(done chan<- error) {
		err := tracer.Run(ctx)
		done <- err
		if ctx.Err() == nil {
			ts.broken(tracer, cmp.Or(err, errors.New("it has stopped")))
		}
	}(ts.done)
	return nil
}

// broken ends the traces of a Tracer that has ended by itself.
func (ts *Traces) broken(tracer Tracer, err error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.tracer != tracer {
		return
	}
	ts.dropAll(fmt.Errorf("tracing of system calls has failed: %w", err))
}

// halt ends the Tracer, when all that it has seen has been told of.
func (ts *Traces) halt() {
	if ts.tracer == nil {
		return
	}
	ts.stop()
	if err := errors.Join(<-ts.done, ts.tracer.Collect()); err != nil {
		ts.cfg.Log.Error("trace system calls", "err", err)
	}
	for _, t := range ts.all {
		ts.countLost(t)
		ts.tellLost(t)
	}
	ts.summarize(true, ts.all...)
	if err := ts.tracer.Close(); err != nil {
		ts.cfg.Log.Error("end the trace of system calls", "err", err)
	}
	ts.cfg.Log.Info("tracing of system calls has ended", "took", time.Since(ts.began).Round(time.Millisecond))
	ts.tracer = nil
	for _, t := range ts.all { // counts begin anew with the next one
		t.wanted, t.lost = nil, Lost{}
		clear(t.before)
	}
}

// Status is that of the syscall probe.
func (ts *Traces) Status() *orb8v1.ProbeStatus {
	s := &orb8v1.ProbeStatus{Name: "syscall", State: orb8v1.ProbeState_PROBE_STATE_IDLE, Reason: "loaded while somebody traces system calls of this node"}
	switch {
	case ts.cfg.Off():
		s.State, s.Reason = orb8v1.ProbeState_PROBE_STATE_OFF, "turned off by --syscall=off"
		return s
	case ts.cfg.Tracer == nil:
		s.State, s.Reason = orb8v1.ProbeState_PROBE_STATE_OFF, "the kernel has no map of selected cgroups for it"
		return s
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.tracer != nil {
		s.State, s.Hooks = orb8v1.ProbeState_PROBE_STATE_RUNNING, ts.tracer.Hooks()
		s.Reason = fmt.Sprintf("traces that clients run: %d; each system call of every process takes about 0.1 to 0.3 µs longer meanwhile", len(ts.all))
	}
	return s
}

// apply takes a traced call.
func (ts *Traces) apply(c *calls.Record) {
	c.Name, c.Rules = syscalls.Name(c.ABI, c.Number), ts.cfg.Rules.Flags(&c.Call)
	c.Owner = ts.cfg.Resolver.Local(c.CgroupID, 0, "", netip.Addr{}) // as it was chosen by
	ts.cfg.Call(c)
}
