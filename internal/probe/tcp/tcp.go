// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package tcp reads TCP flows from the kernel's per-socket counters. No program
// of it runs per packet. It knows nothing of tables or of who a socket's owner
// is beyond its cgroup, pid and command.
package tcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// DefaultRingBytes holds about 19,400 final records.
const DefaultRingBytes = 4 << 20

// drainEvery is how long a final record may wait in the ring.
const drainEvery = 100 * time.Millisecond

// Config of the probe. Apply, Losses and Clock are required.
type Config struct {
	// Apply takes a sample in; it must not keep it. It is called from the
	// goroutines of Run and Collect.
	Apply  func(*flow.Sample)
	Losses *loss.Counters
	Clock  *probe.Clock
	// RingBytes is a power of two and a multiple of the page size.
	// DefaultRingBytes if 0.
	RingBytes uint32
	// CgroupRoot is where the cgroup2 hierarchy is mounted, or this node's part of
	// it. Without it tracing programs tell of connections, and may miss some.
	CgroupRoot string
	// CgroupID is the root of this node's part of the cgroups, 0 for all: other
	// nodes may share the kernel. Sockets outside it are left alone.
	CgroupID uint64
}

// Probe implements probe.Probe.
type Probe struct {
	probe.Object
	cfg Config

	ring   *probe.Ring
	iter   *link.Iter
	sums   *ebpf.Map
	summed map[bpfTcpSumKey]bpfTcpSum // as last reported
	states probe.Tracing              // the program at the socket's states
	hasOps bool

	pass, traced, tracedEnds *ebpf.Variable
	passes                   uint8
	older                    older

	walks  []*probe.Walk // take in open sockets; none where the kernel does not let it
	seeds  seeds
	listen *ebpf.Variable // sockets that began to listen

	byFiles bool // sockets are found by open files; a test may want it so

	buf      []byte
	sample   flow.Sample // of the ring's last record
	received atomic.Uint64
}

const name = "tcp"

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	return &Probe{
		cfg: cfg, Object: probe.NewObject(name, cfg.Losses),
		summed: make(map[bpfTcpSumKey]bpfTcpSum),
	}
}

// Name returns "tcp".
func (p *Probe) Name() string { return name }

// Received is the number of records read from the kernel.
func (p *Probe) Received() uint64 { return p.received.Load() }

// optional programs, each with what is missing without it.
func optional(hasOps bool) []struct{ prog, hook, effect string } {
	retransmits := "retransmits show at the next interval, not at once"
	if hasOps {
		retransmits += ", of connections that are older than orb8"
	}
	return []struct{ prog, hook, effect string }{
		{bpfProgTcpReceiveReset, "tp_btf/tcp_receive_reset", "resets received are told only by the socket's error"},
		{bpfProgTcpSendReset, "tp_btf/tcp_send_reset", "resets sent are told only by how the socket closed"},
		{bpfProgTcpRetransmit, "tp_btf/tcp_retransmit_skb", retransmits},
		{bpfProgTcpError, "tp_btf/inet_sk_error_report", "a failed connection may show as aborted if the program is quick to ask why"},
		{bpfProgTcpSeed, "iter/task_file", "sockets that were open before orb8 show only when they close"},
		{bpfProgTcpSeedHeld, "iter/tcp", "connections of the kernel itself that are older than orb8 show only when they close"},
	}
}

// Start loads and attaches the programs and takes in the sockets that are
// already open.
func (p *Probe) Start() error { return p.Undo(p.start()) }

func (p *Probe) start() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the tcp probe's programs: %w", err)
	}
	if err := p.configure(spec); err != nil {
		return err
	}
	if err := p.startCore(spec); err != nil {
		return err
	}
	for _, o := range optional(p.hasOps) {
		p.Lacks(o.effect, o.hook, p.startOne(o.prog, o.hook))
	}
	return nil
}

const (
	opsHook      = "cgroup/sock_ops"
	setStateHook = "tp_btf/inet_sock_set_state"
	samplerHook  = "iter/bpf_sk_storage_map"
)

// startCore starts what tells of connections and what reads them: sock_ops, or else a
// tracing program, which may miss some; an iterator over socket storage, or else one
// over open files.
func (p *Probe) startCore(spec *ebpf.CollectionSpec) error {
	samplerErr := p.trySampler(spec)
	if samplerErr != nil {
		p.byFiles = true
	}
	if err := p.startTeller(spec); err != nil {
		return errors.Join(err, samplerErr)
	}
	p.Lacks("connections that no process has open and multipath ones show only when they close, "+
		"and the more files are open, the more a reading costs", samplerHook, samplerErr)
	return nil
}

// trySampler tells why the iterator over socket storage cannot be used, if so. There are
// kernels that keep programs from the iterators that may write into maps.
func (p *Probe) trySampler(spec *ebpf.CollectionSpec) error {
	if p.byFiles {
		return errors.New("not wanted")
	}
	coll, err := ebpf.NewCollection(probe.Only(spec, bpfProgTcpSample))
	if err != nil {
		return probe.Explain("load", err)
	}
	coll.Close()
	return nil
}

func (p *Probe) startTeller(spec *ebpf.CollectionSpec) error {
	opsErr := p.startOps(spec)
	if opsErr == nil {
		return nil
	}
	if err := spec.Variables[bpfVarHaveOps].Set(false); err != nil {
		return fmt.Errorf("set who tells of connections: %w", err)
	}
	if err := p.loadCore(spec, bpfProgTcpSetState); err != nil {
		return probe.Explain("the kernel does not take the tcp probe's programs", err)
	}
	if err := p.AttachCounted(&p.states, p.Core.Programs[bpfProgTcpSetState], setStateHook); err != nil {
		return err
	}
	p.Lacks("connections may be missed, see program_skipped", opsHook, opsErr)
	return nil
}

// startOps leaves nothing behind if it fails.
func (p *Probe) startOps(spec *ebpf.CollectionSpec) (err error) {
	if p.cfg.CgroupRoot == "" {
		return errors.New("no cgroup2 hierarchy is mounted")
	}
	if err := spec.Variables[bpfVarHaveOps].Set(true); err != nil {
		return fmt.Errorf("set who tells of connections: %w", err)
	}
	defer func() { err = p.Undo(err) }()
	if err := p.loadCore(spec, bpfProgTcpOps); err != nil {
		return probe.Explain("load", err)
	}
	if err := p.AttachCgroup(p.Core.Programs[bpfProgTcpOps], ebpf.AttachCGroupSockOps, p.cfg.CgroupRoot, opsHook); err != nil {
		return err
	}
	p.hasOps = true
	// Of what was there before only this one tells.
	p.Lacks("the end of connections that were open before orb8 is not seen", setStateHook, p.startOne(bpfProgTcpSetState, setStateHook))
	return nil
}

func (p *Probe) configure(spec *ebpf.CollectionSpec) error {
	spec.Maps[bpfMapTcpRing].MaxEntries = p.cfg.RingBytes
	if err := spec.Variables[bpfVarWakeBytes].Set(uint64(p.cfg.RingBytes / 4)); err != nil {
		return fmt.Errorf("set the ring's wake-up mark: %w", err)
	}
	if err := spec.Variables[bpfVarPartRoot].Set(p.cfg.CgroupID); err != nil {
		return fmt.Errorf("set the node's root cgroup: %w", err)
	}
	return nil
}

// loadCore loads what the probe cannot do without: what tells of connections, what
// reads them, and all maps.
func (p *Probe) loadCore(spec *ebpf.CollectionSpec, teller string) error {
	sampler := bpfProgTcpSample
	if p.byFiles {
		sampler = bpfProgTcpSampleFiles
	}
	if err := p.Load(spec, teller, sampler); err != nil {
		return err
	}
	p.sums, p.listen = p.Core.Maps[bpfMapTcpSums], p.Core.Variables[bpfVarListens]
	p.pass, p.traced, p.tracedEnds = p.Core.Variables[bpfVarPass], p.Core.Variables[bpfVarTraced], p.Core.Variables[bpfVarTracedEnds]
	p.Counts(p.Core.Maps[bpfMapTcpStats], lossStages()...)
	return p.openReaders()
}

// lossStages are what the kernel's counters count.
func lossStages() []loss.Stage {
	stages := make([]loss.Stage, bpfTcpStatSTAT_MAX)
	stages[bpfTcpStatSTAT_RING_FULL] = loss.TCPRingFull
	stages[bpfTcpStatSTAT_SUMS_FULL] = loss.TCPSumsFull
	stages[bpfTcpStatSTAT_STORAGE_FULL] = loss.TCPStorageFull
	return stages
}

func (p *Probe) openReaders() error {
	options, hook := link.IterOptions{Program: p.Core.Programs[bpfProgTcpSample], Map: p.Core.Maps[bpfMapTcpSocks]}, samplerHook
	if p.byFiles {
		options, hook = link.IterOptions{Program: p.Core.Programs[bpfProgTcpSampleFiles]}, "iter/task_file"
	}
	it, err := link.AttachIter(options)
	if err != nil {
		return probe.Explain("attach the socket iterator", err)
	}
	p.iter = it
	p.Attached(it, hook)
	p.ring, err = p.Ring(p.Core.Maps[bpfMapTcpRing], drainEvery, func(raw []byte) { p.apply(raw, &p.sample) })
	return err
}

// startOne starts an optional part.
func (p *Probe) startOne(name, hook string) error {
	if name == bpfProgTcpSeed || name == bpfProgTcpSeedHeld {
		w, err := p.Walk(name)
		if err != nil {
			return err
		}
		p.walks, p.seeds = append(p.walks, w), newSeeds(time.Now())
		return w.Run()
	}
	prog, err := p.LoadOne(name)
	switch {
	case err != nil:
		return err
	case hook == setStateHook:
		return p.AttachCounted(&p.states, prog, hook)
	}
	return p.AttachTracing(prog, hook)
}

// Run moves final records from the ring to Apply until ctx is done, and once
// more after that.
func (p *Probe) Run(ctx context.Context) error { return p.ring.Run(ctx) }

func (p *Probe) apply(raw []byte, s *flow.Sample) {
	if err := decode(raw, s, p.cfg.Clock); err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.received.Add(1)
	p.cfg.Apply(s)
}

// Collect waits until the records that are in the ring have been applied, then
// reads all sockets and the loss counters.
func (p *Probe) Collect() error {
	return errors.Join(p.ring.Settle(), p.seedAgain(), p.readSockets(), p.readStats())
}

// seedAgain takes in, a few times after the start, older connections that no process
// had open then: those that a listener had not accepted yet, or that were on their way
// from one process to another. A few times after sockets began to listen it looks who
// has them: the process that made them may have made them for another.
func (p *Probe) seedAgain() error {
	if len(p.walks) == 0 {
		return nil
	}
	var listens uint64
	if err := p.listen.Get(&listens); err != nil {
		return fmt.Errorf("read how many sockets began to listen: %w", err)
	}
	if !p.seeds.due(time.Now(), listens) {
		return nil
	}
	return p.look()
}

// look takes in the sockets that are open.
func (p *Probe) look() error {
	for _, w := range p.walks {
		if err := w.Run(); err != nil {
			return fmt.Errorf("look at the sockets that are open: %w", err)
		}
	}
	return nil
}

// readSockets makes one pass over all sockets.
func (p *Probe) readSockets() error {
	p.passes++
	if err := errors.Join(p.pass.Set(p.passes), p.traced.Set(uint64(0))); err != nil {
		return fmt.Errorf("begin a pass over all sockets: %w", err)
	}
	r, err := p.iter.Open()
	if err != nil {
		return fmt.Errorf("open the socket iterator: %w", err)
	}
	err = p.readRecords(r)
	return errors.Join(err, r.Close())
}

func (p *Probe) readRecords(r io.Reader) error {
	if p.buf == nil {
		p.buf = make([]byte, 64<<10)
	}
	var s flow.Sample
	have := 0
	for {
		n, err := r.Read(p.buf[have:])
		have += n
		at := 0
		for ; have-at >= recordSize; at += recordSize {
			p.apply(p.buf[at:have], &s)
		}
		have = copy(p.buf, p.buf[at:have])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the socket iterator: %w", err)
		}
	}
}

func (p *Probe) readStats() error {
	grown, err := p.ReadLosses()
	if err != nil {
		return err
	}
	if err := p.readSkips(); err != nil {
		return err
	}
	if grown[loss.TCPRingFull] > 0 {
		return p.readSums()
	}
	return nil
}

// readSums applies what final records would have added that were lost.
func (p *Probe) readSums() error {
	var k bpfTcpSumKey
	var sum bpfTcpSum
	var s flow.Sample
	all := p.sums.Iterate()
	for all.Next(&k, &sum) {
		before := p.summed[k]
		if sum == before {
			continue
		}
		p.summed[k] = sum
		decodeSum(&k, &sum, &before, &s, p.cfg.Clock)
		p.cfg.Apply(&s)
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("read the tcp probe's sums: %w", err)
	}
	return nil
}

// readSkips counts what the program at the socket's states may have missed. What sock_ops
// tells is not among it: where that is attached, it matters to older connections only.
func (p *Probe) readSkips() error {
	skips, err := p.states.Skips()
	if err != nil {
		return err
	}
	if !p.hasOps {
		p.cfg.Losses.Add(loss.ProgramSkipped, skips)
		return nil
	}
	var traced, ends uint64
	if err := errors.Join(p.traced.Get(&traced), p.tracedEnds.Get(&ends)); err != nil {
		return fmt.Errorf("read how many connections a tracing program follows: %w", err)
	}
	p.cfg.Losses.Add(loss.ProgramSkipped, p.older.pass(traced, ends, skips))
	return nil
}
