// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package drop counts the packets that the kernel drops, with the kernel's reasons,
// and tells of some of them. It knows nothing of who a cgroup or an address is.
package drop

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

const (
	// DefaultRingBytes holds about 2900 events.
	DefaultRingBytes = 256 << 10
	// DefaultMapEntries bounds the cgroups, or pairs of addresses, and reasons that
	// the kernel tells apart between two reads.
	DefaultMapEntries = 8192
)

// Config of the probe. Note, Count, Losses and Clock are required.
type Config struct {
	// Note takes one packet that was dropped; it must not keep the sample. It is
	// called from Run.
	Note func(*flow.Sample, flow.Detail)
	// Count takes how many packets were dropped since the last time; it must not
	// keep the slice. It is called from Collect.
	Count  func([]flow.DropCount)
	Losses *loss.Counters
	Clock  *probe.Clock
	// CgroupID is the root of this node's part of the cgroups, 0 for all: other
	// nodes may share the kernel. What sockets outside it lose is left alone.
	CgroupID uint64
	// Events is how many packets Note is called with at most, per second and CPU.
	Events int
	// RingBytes is a power of two and a multiple of the page size.
	// DefaultRingBytes if 0.
	RingBytes uint32
	// MapEntries is DefaultMapEntries if 0.
	MapEntries uint32

	// types are the running kernel's if nil.
	types *btf.Spec
	// symbols is the path of the kernel's symbols, /proc/kallsyms if empty.
	symbols string
}

// Probe implements probe.Probe.
type Probe struct {
	probe.Attachments
	cfg      Config
	degraded []string

	kernel  *kernel
	symbols symbols
	counter counter
	ring    *probe.Ring
	stats   *ebpf.Map
	prog    *ebpf.Program

	lost     [bpfDropStatSTAT_MAX]uint64 // as last read from the kernel
	missed   uint64                      // likewise
	sample   flow.Sample                 // of an event
	received atomic.Uint64
}

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	if cfg.MapEntries == 0 {
		cfg.MapEntries = DefaultMapEntries
	}
	if cfg.symbols == "" {
		cfg.symbols = "/proc/kallsyms"
	}
	return &Probe{cfg: cfg, symbols: symbols{path: cfg.symbols}}
}

// Name returns "drop".
func (p *Probe) Name() string { return "drop" }

// Degraded lists what this kernel does not tell.
func (p *Probe) Degraded() []string { return append([]string(nil), p.degraded...) }

// Received is the number of events read from the kernel.
func (p *Probe) Received() uint64 { return p.received.Load() }

// Start loads and attaches the program.
func (p *Probe) Start() error { return probe.OrClose(p.start(), p.Close) }

func (p *Probe) start() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the drop probe's program: %w", err)
	}
	if err := p.learnKernel(); err != nil {
		return probe.Explain("the kernel does not tell of dropped packets", err)
	}
	if err := p.configure(spec); err != nil {
		return err
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return probe.Explain("the kernel does not take the drop probe's program", err)
	}
	p.Keep(probe.CloseFunc(coll.Close))
	if err := p.openReaders(coll); err != nil {
		return err
	}
	return p.AttachTracing(p.prog, "tp_btf/kfree_skb")
}

// learnKernel finds out what this kernel tells of a packet that it drops.
func (p *Probe) learnKernel() (err error) {
	types := p.cfg.types
	if types == nil {
		if types, err = btf.LoadKernelSpec(); err != nil {
			return err
		}
	}
	if p.kernel, err = readKernel(types); err != nil {
		return err
	}
	p.degraded = p.kernel.degraded()
	if err := p.symbols.readable(); err != nil && p.cfg.Events > 0 {
		p.degraded = append(p.degraded, probe.Lack("drops are told of without the function that dropped", p.cfg.symbols, err))
	}
	return nil
}

func (p *Probe) configure(spec *ebpf.CollectionSpec) error {
	spec.Maps[bpfMapDropRing].MaxEntries = p.cfg.RingBytes
	spec.Maps[bpfMapDropCountsA].MaxEntries = p.cfg.MapEntries
	spec.Maps[bpfMapDropCountsB].MaxEntries = p.cfg.MapEntries
	return probe.SetVariables(spec.Variables, "drop", map[string]any{
		bpfVarWakeBytes:       uint64(p.cfg.RingBytes / 4),
		bpfVarPartRoot:        p.cfg.CgroupID,
		bpfVarEventsPerSecond: uint32(p.cfg.Events),
		bpfVarHasReason:       p.kernel.reason,
		bpfVarHasRxSk:         p.kernel.rxSock,
		bpfVarReasons:         p.kernel.reasons,
	})
}

func (p *Probe) openReaders(coll *ebpf.Collection) (err error) {
	p.stats, p.prog = coll.Maps[bpfMapDropStats], coll.Programs[bpfProgDropSkb]
	if p.ring, err = probe.NewRing(coll.Maps[bpfMapDropRing], probe.RingConfig{
		Name: "the drop probe's ring buffer", Take: p.take,
	}); err != nil {
		return err
	}
	p.Keep(p.ring)
	settle, err := probe.NewSettler()
	if err != nil {
		return probe.Explain("wait for the drop probe's program", err)
	}
	p.Keep(settle)
	p.counter = counter{
		maps:   [2]*ebpf.Map{coll.Maps[bpfMapDropCountsA], coll.Maps[bpfMapDropCountsB]},
		active: coll.Variables[bpfVarActive], rest: coll.Variables[bpfVarDropCrowded], settle: settle.Settle,
	}
	return nil
}

// Run tells of packets that were dropped until ctx is done, and once more after that.
func (p *Probe) Run(ctx context.Context) error { return p.ring.Run(ctx) }

// take tells of one packet.
func (p *Probe) take(raw []byte) {
	e, err := readEvent(raw)
	if err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.received.Add(1)
	decode(&e, &p.sample, p.cfg.Clock)
	p.cfg.Note(&p.sample, p.detail(&e))
}

// Collect reads how many packets were dropped since the last call, and the loss
// counters.
func (p *Probe) Collect() error {
	counts, err := p.counter.collect(p.kernel.name)
	missed, missedErr := p.readMissed()
	if missed > 0 {
		counts = append(counts, flow.DropCount{Reason: otherReason, Packets: missed})
	}
	if len(counts) > 0 {
		p.cfg.Count(counts)
	}
	return errors.Join(err, missedErr, p.readStats())
}

// readMissed returns how many packets were dropped since the last call while the
// program was at work on the same CPU.
func (p *Probe) readMissed() (uint64, error) {
	total, err := probe.Missed("drop", p.prog)
	if err != nil {
		return 0, err
	}
	missed := total - p.missed
	p.missed = total
	p.cfg.Losses.Add(loss.DropMapFull, missed)
	return missed, nil
}

func (p *Probe) readStats() error {
	return probe.CountLosses("drop", p.stats, p.lost[:], p.cfg.Losses, map[bpfDropStat]loss.Stage{
		bpfDropStatSTAT_MAP_FULL:  loss.DropMapFull,
		bpfDropStatSTAT_RING_FULL: loss.DropRingFull,
		bpfDropStatSTAT_LIMITED:   loss.DropEventsLimited,
	})
}
