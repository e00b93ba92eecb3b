// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package exec tells of the life of processes and of what they ask a capability for.
// No program of it runs on an ordinary system call. It keeps no table of processes
// and knows nothing of who a cgroup is.
package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	// DefaultRingBytes holds the starts and ends of about 1200 processes.
	DefaultRingBytes = 1 << 20
	// DefaultArgBytes is how much of a program's arguments is read.
	DefaultArgBytes = 1024
	// MaxArgBytes is how much can be.
	MaxArgBytes = 4096
)

// repeatEvery is how often a privileged call that repeats is told of.
const repeatEvery = time.Second

// Config of the probe. Apply, Losses and Clock are required.
type Config struct {
	// Apply takes one event; it must not keep it, nor what it points at, but may keep
	// a copy: strings and slices are not used again. Events of one process come in
	// the order in which they happened. It is called from Run and Collect, one call at
	// a time.
	Apply func(*process.Event)
	// Ahead, if set, is called before events are handed over that have waited in the
	// ring: what happened before them, such as a new cgroup, may wait elsewhere.
	Ahead  func()
	Losses *loss.Counters
	Clock  *probe.Clock
	// CgroupID is the root of this node's part of the cgroups, 0 for all: other
	// nodes may share the kernel. Processes outside it are left alone.
	CgroupID uint64
	// Around: the life of processes outside of CgroupID is told of too, by which the
	// ancestors of those inside are known; nothing else of them is.
	Around bool
	// RingBytes is a power of two and a multiple of the page size.
	// DefaultRingBytes if 0.
	RingBytes uint32
	// ArgBytes is how much of a program's arguments is read: DefaultArgBytes if 0,
	// nothing if negative. More than MaxArgBytes is MaxArgBytes.
	ArgBytes int
	// Watched are the numbers of the system calls that are told of when they ask for a
	// capability, WatchedCompat of the 32-bit ones.
	Watched, WatchedCompat []int32
	// Proc is where procfs is mounted, /proc if empty. The arguments of processes
	// that are older than the probe are read there.
	Proc string
}

// Probe implements probe.Probe.
type Probe struct {
	probe.Attachments
	cfg      Config
	degraded []string

	ring        *probe.Ring
	stats       *ebpf.Map
	progs       []*ebpf.Program
	repeatEvery time.Duration
	seeds       seeds

	lost     [bpfExecStatSTAT_MAX]uint64 // as last read from the kernel
	missed   uint64                      // likewise
	received atomic.Uint64
}

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	if cfg.ArgBytes == 0 {
		cfg.ArgBytes = DefaultArgBytes
	}
	cfg.ArgBytes = min(max(cfg.ArgBytes, 0), MaxArgBytes)
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	return &Probe{cfg: cfg, repeatEvery: repeatEvery}
}

// Name returns "exec".
func (p *Probe) Name() string { return "exec" }

// Degraded lists the optional parts that this kernel lacks.
func (p *Probe) Degraded() []string { return append([]string(nil), p.degraded...) }

// Received is the number of events read from the kernel.
func (p *Probe) Received() uint64 { return p.received.Load() }

// Start loads and attaches the programs and reads which processes there are.
func (p *Probe) Start() error { return probe.OrClose(p.start(), p.Close) }

// start loads all before it attaches anything: from then on until Run the ring has to
// hold what happens.
func (p *Probe) start() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the exec probe's programs: %w", err)
	}
	kernel, err := readKernel()
	if err != nil {
		return probe.Explain("the kernel does not tell of processes", err)
	}
	if err := p.configure(spec, kernel); err != nil {
		return err
	}
	core, err := p.loadCore(spec)
	if err != nil {
		return err
	}
	parts := optional(kernel, p.cfg.Proc)
	for i := range parts {
		p.loadPart(spec, core, &parts[i])
	}
	seed := part{prog: bpfProgProcessSeed}
	p.loadPart(spec, core, &seed)
	for _, h := range coreHooks() {
		if err := p.attach(core.Programs[h.prog], h.hook); err != nil {
			return err
		}
	}
	for _, o := range parts {
		if o.missing == nil {
			o.missing = p.attach(o.loaded, o.hook)
		}
		if o.missing != nil {
			p.degraded = append(p.degraded, probe.Lack(o.effect, o.hook, o.missing))
		}
	}
	p.seed(&seed)
	return nil
}

func (p *Probe) configure(spec *ebpf.CollectionSpec, k *kernel) error {
	spec.Maps[bpfMapExecRing].MaxEntries = p.cfg.RingBytes
	spec.Programs[bpfProgIoUringSubmit].AttachTo = k.ioUring
	return probe.SetVariables(spec.Variables, "exec", map[string]any{
		bpfVarWakeBytes:      uint64(p.cfg.RingBytes / 4),
		bpfVarPartRoot:       p.cfg.CgroupID,
		bpfVarLivesAround:    p.cfg.Around,
		bpfVarArgBytes:       uint64(p.cfg.ArgBytes),
		bpfVarRepeatNs:       uint64(p.repeatEvery),
		bpfVarCallArgs:       callArgs(),
		bpfVarWatched:        [2]syscalls.Set{syscalls.SetOf(p.cfg.Watched...), syscalls.SetOf(p.cfg.WatchedCompat...)},
		bpfVarIoUringRequest: k.ioUringOpcode == 0,
		bpfVarIoUringOpcode:  uint32(k.ioUringOpcode),
		bpfVarOwnPid:         ownPID(),
		bpfVarHasGroupDead:   k.groupDead,
		bpfVarThreadSize:     uint64(max(16<<10, os.Getpagesize())),
	})
}

// callArgs is how many arguments system calls have, native ones and then 32-bit ones.
func callArgs() (counts [2 * syscalls.MaxNumber]uint8) {
	for nr := range int32(syscalls.MaxNumber) {
		counts[nr] = uint8(syscalls.Count(syscalls.Native(), nr))
		counts[nr+syscalls.MaxNumber] = uint8(syscalls.Count(syscalls.Compat(), nr))
	}
	return counts
}

// ownPID is this process's pid on the host, 0 if not known.
func ownPID() uint32 {
	if !workload.SeesPIDs() {
		return 0
	}
	return uint32(os.Getpid())
}

// coreHooks is what the probe cannot do without. The end of processes comes first: who
// ends after the beginning of others is told of would be among them for ever.
func coreHooks() []part {
	return []part{
		{prog: bpfProgProcessEnded, hook: "tp_btf/sched_process_exit"},
		{prog: bpfProgProcessStarted, hook: "tp_btf/sched_process_exec"},
		{prog: bpfProgProcessForked, hook: "tp_btf/task_newtask"},
	}
}

// loadCore loads what the probe cannot do without, and makes all maps.
func (p *Probe) loadCore(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	var names []string
	for _, h := range coreHooks() {
		names = append(names, h.prog)
	}
	core, err := ebpf.NewCollection(probe.Only(spec, names...))
	if err != nil {
		return nil, probe.Explain("the kernel does not take the exec probe's programs", err)
	}
	p.Keep(probe.CloseFunc(core.Close))
	p.stats = core.Maps[bpfMapExecStats]
	p.ring, err = probe.NewRing(core.Maps[bpfMapExecRing], probe.RingConfig{
		Name: "the exec probe's ring buffer", Take: p.tell, Ahead: p.cfg.Ahead,
	})
	if err != nil {
		return nil, err
	}
	p.Keep(p.ring)
	return core, nil
}

func (p *Probe) attach(prog *ebpf.Program, hook string) error {
	if err := p.AttachTracing(prog, hook); err != nil {
		return err
	}
	p.progs = append(p.progs, prog)
	return nil
}

// loadPart loads an optional program.
func (p *Probe) loadPart(spec *ebpf.CollectionSpec, core *ebpf.Collection, o *part) {
	if o.missing != nil {
		return
	}
	coll, err := probe.LoadOne(spec, core, o.prog)
	if err != nil {
		o.missing = err
		return
	}
	p.Keep(probe.CloseFunc(coll.Close))
	o.loaded = coll.Programs[o.prog]
}

// Run hands events over until ctx is done, and once more after that. It empties the ring
// while it tells of the processes that were there before.
func (p *Probe) Run(ctx context.Context) error {
	var telling sync.WaitGroup
	telling.Go(p.tellSeeds)
	err := p.ring.Run(ctx)
	telling.Wait()
	return err
}

// tell takes one record of the ring. Until the seeds are told of it waits.
func (p *Probe) tell(raw []byte) {
	switch p.seeds.hold(raw) {
	case held:
		return
	case dropped:
		p.cfg.Losses.Add(loss.ExecRingFull, 1)
		return
	}
	p.apply(raw)
}

func (p *Probe) apply(raw []byte) {
	var e process.Event
	if err := decode(raw, &e, p.cfg.Clock); err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.received.Add(1)
	if e.What == process.Fork && p.seeds.has(e.Process.ID) {
		return
	}
	p.cfg.Apply(&e)
}

// Collect waits until the events that are in the ring have been handed over, then
// reads the loss counters.
func (p *Probe) Collect() error {
	p.tellSeeds()
	return errors.Join(p.ring.Flush(), p.readStats(), p.readMissed())
}

func (p *Probe) readStats() error {
	return probe.CountLosses("exec", p.stats, p.lost[:], p.cfg.Losses, map[bpfExecStat]loss.Stage{
		bpfExecStatSTAT_RING_FULL: loss.ExecRingFull,
		bpfExecStatSTAT_REPEATED:  loss.ExecRepeated,
	})
}

// readMissed counts what happened while the program for it was at work on the same
// CPU.
func (p *Probe) readMissed() error {
	missed, err := probe.Missed("exec", p.progs...)
	if err != nil {
		return err
	}
	p.cfg.Losses.Add(loss.ExecRingFull, missed-p.missed)
	p.missed = missed
	return nil
}

// Close detaches and unloads everything.
func (p *Probe) Close() error {
	p.progs = nil
	return p.Attachments.Close()
}
