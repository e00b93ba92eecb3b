// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package syscall counts the system calls of selected cgroups and tells of them one by
// one. It knows nothing of what calls mean or of who a cgroup is. It is loaded only
// while somebody looks: every process of the host pays for it with each of its calls.
package syscall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

const (
	// DefaultRingBytes holds about 20,000 events.
	DefaultRingBytes = 4 << 20
	// DefaultThreads is how many threads are kept track of at a time. Each takes about
	// 2 KB of the kernel's memory.
	DefaultThreads = 16384
	// MaxTraces is how many traces there may be at a time.
	MaxTraces = 16
	// kindsBytes is how much of the kernel's memory counts may take, by and large: so
	// many kinds of calls, by cgroup, ABI and number, are told apart.
	kindsBytes         = 32 << 20
	minKinds, maxKinds = 1024, 32768
)

// Config of the probe. Selection, Losses and Clock are required, Apply too if
// anything is to be told of.
type Config struct {
	// Selection has the cgroups whose calls are seen: the bit Bit is for trace 0, and so
	// on, of MaxTraces.
	Selection *probe.Selection
	Bit       uint
	// Apply takes a call. It must not keep the event. It is called from the goroutines
	// of Run and Flush.
	Apply  func(*Event)
	Losses *loss.Counters
	Clock  *probe.Clock
	// RingBytes is a power of two and a multiple of the page size. DefaultRingBytes if
	// 0.
	RingBytes uint32
	// Threads is DefaultThreads if 0, Kinds is what takes some megabytes.
	Threads, Kinds uint32
}

// Kind is one system call by its number.
type Kind struct {
	ABI    process.ABI
	Number int32
}

// Wanted says which calls a trace is told of.
type Wanted struct {
	// PerSecond is how many calls are told of in a second, by and large; 0 for none.
	// Those beyond it are counted as lost (loss.SyscallLimited).
	PerSecond uint32
	// Calls to tell of; nil for all, empty for none.
	Calls []Kind
	// Refused calls are told of whatever they are.
	Refused bool
	// ErrorsOnly leaves out calls that did not fail.
	ErrorsOnly bool
	// Count all calls of the trace's cgroups, told of or not.
	Count bool
}

// Lost is what a trace has lost since Start.
type Lost struct {
	RingFull, Limited, PendingFull uint64
	// Uncounted calls found no room in the counts.
	Uncounted uint64
	// Missed is how often a program did not run at the begin or the end of any call of
	// the host, of which nobody knows whose it was.
	Missed uint64
}

// Probe implements probe.Probe.
type Probe struct {
	probe.Object
	cfg Config

	links  []io.Closer // what is attached, which goes first
	calls  probe.Tracing
	ring   *probe.Ring
	settle *probe.Settler
	event  Event // used again by take

	mu       sync.Mutex // for what follows
	wanted   [MaxTraces]Wanted
	lost     [MaxTraces << statsShift]uint64 // as last read from the kernel
	missed   uint64                          // likewise
	received atomic.Uint64
	detached atomic.Bool
}

// statsShift is STATS_SHIFT of the programs.
const statsShift = 2

// New returns a probe that is not started. It tells of nothing until Tell is called.
func New(cfg Config) *Probe {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	if cfg.Threads == 0 {
		cfg.Threads = DefaultThreads
	}
	if cfg.Kinds == 0 {
		cfg.Kinds = kindsFor(ebpf.MustPossibleCPU())
	}
	return &Probe{cfg: cfg, Object: probe.NewObject(name, cfg.Losses)}
}

// kindsFor is how many kinds of calls there is room for: each has counts for each CPU.
func kindsFor(cpus int) uint32 {
	size := int(unsafe.Sizeof(bpfCallCounts{}))
	return uint32(min(max(kindsBytes/(cpus*size), minKinds), maxKinds))
}

const name = "syscall"

// Name returns "syscall".
func (p *Probe) Name() string { return name }

// Hooks lists what is attached.
func (p *Probe) Hooks() []string {
	if p.detached.Load() {
		return nil
	}
	return p.Object.Hooks()
}

// Received is the number of events read from the kernel.
func (p *Probe) Received() uint64 { return p.received.Load() }

// Start loads and attaches the programs.
func (p *Probe) Start() error { return p.Undo(p.start()) }

func (p *Probe) start() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the syscall probe's programs: %w", err)
	}
	if err := p.configure(spec); err != nil {
		return err
	}
	programs := slices.Collect(maps.Keys(spec.Programs))
	if err := p.LoadOn(spec, p.cfg.Selection.Maps(), programs...); err != nil {
		return probe.Explain("the kernel does not take the syscall probe's programs", err)
	}
	if err := p.openReaders(); err != nil {
		return err
	}
	if err := p.learnSelf(); err != nil {
		return err
	}
	for trace := range p.wanted {
		if err := p.Tell(uint(trace), p.wanted[trace]); err != nil {
			return err
		}
	}
	return p.attach()
}

func (p *Probe) configure(spec *ebpf.CollectionSpec) error {
	spec.Maps[bpfMapSyscallRing].MaxEntries = p.cfg.RingBytes
	spec.Maps[bpfMapSyscallThreads].MaxEntries = p.cfg.Threads
	spec.Maps[bpfMapSyscallCounts].MaxEntries = p.cfg.Kinds
	for name, value := range map[string]any{
		bpfVarWakeBytes: uint64(p.cfg.RingBytes / 4),
		bpfVarFirstBit:  uint32(p.cfg.Bit),
		bpfVarReadsOf:   readsTable(),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s of the syscall probe's programs: %w", name, err)
		}
	}
	return nil
}

func (p *Probe) openReaders() (err error) {
	if p.ring, err = p.Ring(p.Core.Maps[bpfMapSyscallRing], drainEvery, p.take); err != nil {
		return err
	}
	if p.settle, err = probe.NewSettler(); err != nil {
		return probe.Explain("wait for the syscall probe's programs", err)
	}
	p.Keep(p.settle)
	return nil
}

// learnSelf lets the kernel note the process id that this process has in the first pid
// namespace, which may not be its own.
func (p *Probe) learnSelf() error {
	if _, err := p.Core.Programs[bpfProgSyscallSelf].Run(&ebpf.RunOptions{}); err != nil {
		return probe.Explain("run the syscall probe's program that tells this process from others", err)
	}
	return nil
}

// attach attaches the end of calls before their begin: the first end that is seen of a
// thread says nothing but that it is there.
func (p *Probe) attach() error {
	if err := p.Core.Variables[bpfVarEnding].Set(uint32(0)); err != nil {
		return fmt.Errorf("begin to trace system calls: %w", err)
	}
	for _, h := range []struct{ prog, hook string }{
		{bpfProgSyscallMoved, "tp_btf/cgroup_attach_task"},
		{bpfProgSyscallThreadEnd, "tp_btf/sched_process_exit"},
		{bpfProgSyscallExit, "tp_btf/sys_exit"},
		{bpfProgSyscallEnter, "tp_btf/sys_enter"},
	} {
		with := new(probe.Tracing)
		if h.prog == bpfProgSyscallEnter || h.prog == bpfProgSyscallExit {
			with = &p.calls
		}
		l, err := with.Attach(p.Core.Programs[h.prog])
		if err != nil {
			return probe.Explain("attach "+h.hook, err)
		}
		p.links = append(p.links, l)
		p.Attached(l, h.hook)
	}
	return nil
}

// Tell changes which calls a trace is told of. Before Start it says so from the
// beginning.
func (p *Probe) Tell(trace uint, w Wanted) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	only, err := bitmap(w.Calls)
	if err != nil {
		return err
	}
	begins := p.wanted[trace].PerSecond == 0
	p.wanted[trace] = w
	if p.Core == nil {
		return nil
	}
	if begins { // what another was told of is not off its limit
		if err := p.Core.Maps[bpfMapSyscallBudgets].Put(uint32(trace), &bpfTraceBudget{}); err != nil {
			return fmt.Errorf("begin to tell of system calls: %w", err)
		}
	}
	wish := bpfTraceWish{
		PerSecond: w.PerSecond, AllCalls: asByte(w.Calls == nil), RefusedCalls: asByte(w.Refused),
		ErrorsOnly: asByte(w.ErrorsOnly), Only: [2 * len(only[0])]uint64(slices.Concat(only[0][:], only[1][:])),
	}
	if err := p.Core.Maps[bpfMapSyscallWishes].Put(uint32(trace), &wish); err != nil {
		return fmt.Errorf("say which system calls to tell of: %w", err)
	}
	var counting uint32
	for i := range p.wanted {
		counting |= uint32(asByte(p.wanted[i].Count)) << i
	}
	if err := p.Core.Variables[bpfVarCounting].Set(counting); err != nil {
		return fmt.Errorf("say whose system calls to count: %w", err)
	}
	return nil
}

// bitmap has a bit for each of the calls, by number, native and compat.
func bitmap(calls []Kind) (only [2]syscalls.Set, err error) {
	for _, k := range calls {
		compat, ok := compatIndex(k.ABI)
		if !ok {
			continue // there are none of these here
		}
		if !only[compat].Add(k.Number) {
			return only, fmt.Errorf("tell of system call %d: numbers end at %d", k.Number, syscalls.MaxNumber-1)
		}
	}
	return only, nil
}

func asByte(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

// Run tells of calls until ctx is done. Then it detaches, so that nobody pays any
// longer, and tells of what is left: calls that have ended, then those that still go
// on. Counts can be read until Close.
func (p *Probe) Run(ctx context.Context) error {
	if err := p.ring.Run(ctx); err != nil {
		return err
	}
	if err := p.detach(); err != nil {
		return err
	}
	if err := p.ring.Settle(); err != nil {
		return err
	}
	return p.flush(1<<MaxTraces - 1)
}

// detach returns when no program runs any more. Before it detaches any, all of them know.
func (p *Probe) detach() error {
	defer p.detached.Store(true)
	return errors.Join(p.Core.Variables[bpfVarEnding].Set(uint32(1)), p.settle.Settle(), probe.CloseAll(p.links), p.settle.Settle())
}

// drainEvery is how long a call may wait in the ring.
const drainEvery = 100 * time.Millisecond

// take tells of one record of the ring.
func (p *Probe) take(raw []byte) {
	if err := decode(raw, &p.event, p.cfg.Clock); err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.received.Add(1)
	p.cfg.Apply(&p.event)
}

// Collect waits until the calls that have ended have been told of, and reads the loss
// counters.
func (p *Probe) Collect() error {
	return errors.Join(p.ring.Settle(), p.readStats())
}

func (p *Probe) readStats() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	stages := map[bpfSyscallStat]loss.Stage{
		bpfSyscallStatSTAT_RING_FULL: loss.SyscallRingFull, bpfSyscallStatSTAT_LIMITED: loss.SyscallLimited,
		bpfSyscallStatSTAT_PENDING_FULL: loss.SyscallPendingFull, bpfSyscallStatSTAT_UNCOUNTED: loss.SyscallUncounted,
	}
	now := make([]uint64, len(p.lost))
	if err := probe.ReadCounters(p.Core.Maps[bpfMapSyscallStats], now); err != nil {
		return fmt.Errorf("read the syscall probe's loss counters: %w", err)
	}
	for i, n := range now {
		if stage, ok := stages[bpfSyscallStat(i%(1<<statsShift))]; ok {
			p.cfg.Losses.Add(stage, n-p.lost[i])
		}
		p.lost[i] = n
	}
	return p.readMissed()
}

// Lost is what a trace has lost, as of the last Collect.
func (p *Probe) Lost(trace uint) Lost {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.lost[trace<<statsShift:]
	return Lost{
		RingFull: n[bpfSyscallStatSTAT_RING_FULL], Limited: n[bpfSyscallStatSTAT_LIMITED],
		PendingFull: n[bpfSyscallStatSTAT_PENDING_FULL], Uncounted: n[bpfSyscallStatSTAT_UNCOUNTED],
		Missed: p.missed,
	}
}

// readMissed counts the calls at which the kernel did not run a program since it was at
// work on the same CPU.
func (p *Probe) readMissed() error {
	missed, err := p.calls.Skips()
	p.cfg.Losses.Add(loss.ProgramSkipped, missed)
	p.missed += missed
	return err
}

// Close detaches and unloads everything.
func (p *Probe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links = nil
	return p.Object.Close()
}

// compatIndex says which of this host's ABIs one is.
func compatIndex(abi process.ABI) (int, bool) {
	for i, a := range abis() {
		if a == abi {
			return i, true
		}
	}
	return 0, false
}
