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
	// DefaultRingBytes holds the starts and ends of about 2400 processes.
	DefaultRingBytes = 2 << 20
	// maxArgBytes is how much of a program's arguments there is room for.
	maxArgBytes = process.MaxArgBytes
)

// repeatEvery is how often a privileged call that repeats is told of.
const repeatEvery = time.Second

// Config of the probe. Apply, Losses and Clock are required.
type Config struct {
	// Apply takes one event; it must not keep it, nor what it points at, but may keep
	// a copy: strings and slices are not used again. Events of one process come in
	// the order in which they happened. It is called from Run and Collect, one call at
	// a time.
	Apply  func(*process.Event)
	Losses *loss.Counters
	Clock  *probe.Clock
	// Read, if set, is told up to when, in Unix nanoseconds, all that has happened has
	// been handed over; 0 when the probe fails.
	Read func(until int64)
	// CgroupID is the root of this node's part of the cgroups, 0 for all: other
	// nodes may share the kernel. Processes outside it are left alone.
	CgroupID uint64
	// Around: the life of processes outside of CgroupID is told of too, by which the
	// ancestors of those inside are known; nothing else of them is.
	Around bool
	// RingBytes is a power of two and a multiple of the page size.
	// DefaultRingBytes if 0.
	RingBytes uint32
	// ArgBytes is how much of a program's arguments is read, at most process.MaxArgBytes.
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
	probe.Object
	cfg Config

	ring        *probe.Ring
	repeatEvery time.Duration
	seeds       seeds
	received    atomic.Uint64
}

const name = "exec"

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	cfg.ArgBytes = min(max(cfg.ArgBytes, 0), maxArgBytes)
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	return &Probe{cfg: cfg, Object: probe.NewObject(name, cfg.Losses), repeatEvery: repeatEvery}
}

// Name returns "exec".
func (p *Probe) Name() string { return name }

// Received is the number of events read from the kernel.
func (p *Probe) Received() uint64 { return p.received.Load() }

// Start loads and attaches the programs and reads which processes there are.
func (p *Probe) Start() error { return p.Undo(p.start()) }

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
	if err := p.loadCore(spec); err != nil {
		return err
	}
	parts := optional(kernel, p.cfg.Proc)
	for i := range parts {
		if o := &parts[i]; o.missing == nil {
			o.loaded, o.missing = p.LoadOne(o.prog)
		}
	}
	seed, seedErr := p.LoadOne(bpfProgProcessSeed)
	for _, h := range hooks() {
		if err := p.AttachTracing(p.Core.Programs[h.prog], h.hook); err != nil {
			return err
		}
	}
	for _, o := range parts {
		if o.missing == nil {
			o.missing = p.AttachTracing(o.loaded, o.hook)
		}
		p.Lacks(o.effect, o.hook, o.missing)
	}
	p.seed(seed, seedErr)
	return nil
}

func (p *Probe) configure(spec *ebpf.CollectionSpec, k *kernel) error {
	spec.Maps[bpfMapExecRing].MaxEntries = p.cfg.RingBytes
	spec.Programs[bpfProgIoUringSubmit].AttachTo = k.ioUring
	for name, value := range map[string]any{
		bpfVarWakeBytes:      uint64(p.cfg.RingBytes / 8),
		bpfVarShareMark:      uint64(p.cfg.RingBytes / 2),
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
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s of the exec probe's programs: %w", name, err)
		}
	}
	return nil
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

// hooks are what the probe cannot do without. The end of processes comes first: who
// ends after the beginning of others is told of would be among them for ever.
func hooks() []struct{ prog, hook string } {
	return []struct{ prog, hook string }{
		{bpfProgProcessEnded, "tp_btf/sched_process_exit"},
		{bpfProgProcessStarted, "tp_btf/sched_process_exec"},
		{bpfProgProcessForked, "tp_btf/task_newtask"},
	}
}

// loadCore loads what the probe cannot do without, and makes all maps.
func (p *Probe) loadCore(spec *ebpf.CollectionSpec) error {
	var names []string
	for _, h := range hooks() {
		names = append(names, h.prog)
	}
	if err := p.Load(spec, names...); err != nil {
		return probe.Explain("the kernel does not take the exec probe's programs", err)
	}
	p.Counts(p.Core.Maps[bpfMapExecStats], loss.ExecRingFull, loss.ExecRepeated, loss.ExecShareFull)
	var err error
	if p.ring, err = p.Ring(p.Core.Maps[bpfMapExecRing], drainEvery, p.tell); err == nil {
		p.ring.Drained = p.drained
	}
	return err
}

// submitTime is how long a program may take from reading the clock to handing the event
// over; some are held up.
const submitTime = 20 * time.Millisecond

// drained says that what has happened until a moment ago has been handed over.
func (p *Probe) drained() error {
	if p.cfg.Read != nil && p.seeds.toldAll() {
		p.cfg.Read(p.cfg.Clock.Now().Add(-submitTime).UnixNano())
	}
	return nil
}

// drainEvery is how long an event may wait in the ring.
const drainEvery = 100 * time.Millisecond

// Run hands events over until ctx is done, and once more after that. It empties the ring
// while it tells of the processes that were there before.
func (p *Probe) Run(ctx context.Context) error {
	var telling sync.WaitGroup
	telling.Go(p.tellSeeds)
	err := p.ring.Run(ctx)
	telling.Wait()
	if err != nil && p.cfg.Read != nil {
		p.cfg.Read(0)
	}
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
	_, err := p.ReadLosses()
	return errors.Join(p.ring.Settle(), err)
}
