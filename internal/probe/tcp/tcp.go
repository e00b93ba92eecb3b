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
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

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
	cfg Config

	closers  []io.Closer // in the order in which they were made
	hooks    []string
	degraded []string

	ring       *ringbuf.Reader
	drainEvery time.Duration
	iter       *link.Iter
	stats      *ebpf.Map
	sums       *ebpf.Map
	summed     map[bpfTcpSumKey]bpfTcpSum // as last reported
	tracing    probe.Tracing              // all but the next one
	states     probe.Tracing              // the program at the socket's states
	hasOps     bool

	pass, traced, tracedEnds *ebpf.Variable
	passes                   uint8
	older                    older

	seed   *probe.Walk // nil where the kernel does not let it
	seeds  seeds
	listen *ebpf.Variable // sockets that began to listen

	byFiles bool // sockets are found by open files; a test may want it so

	mu       sync.Mutex
	flushed  chan struct{} // closed by Run when a requested flush is through
	running  bool
	lost     [bpfTcpStatSTAT_MAX]uint64 // as last read from the kernel
	buf      []byte
	received atomic.Uint64
}

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	return &Probe{cfg: cfg, drainEvery: drainEvery, summed: make(map[bpfTcpSumKey]bpfTcpSum)}
}

// Name returns "tcp".
func (p *Probe) Name() string { return "tcp" }

// Hooks lists what is attached.
func (p *Probe) Hooks() []string { return p.hooks }

// Degraded lists the optional parts that this kernel lacks.
func (p *Probe) Degraded() []string { return append([]string(nil), p.degraded...) }

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
	}
}

// Start loads and attaches the programs and takes in the sockets that are
// already open.
func (p *Probe) Start() error { return probe.OrClose(p.start(), p.Close) }

func (p *Probe) start() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the tcp probe's programs: %w", err)
	}
	if err := p.configure(spec); err != nil {
		return err
	}
	core, err := p.startCore(spec)
	if err != nil {
		return err
	}
	p.startOptional(spec, core)
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
func (p *Probe) startCore(spec *ebpf.CollectionSpec) (core *ebpf.Collection, err error) {
	samplerErr := p.trySampler(spec)
	if samplerErr != nil {
		p.byFiles = true
	}
	if core, err = p.startTeller(spec); err != nil {
		return nil, errors.Join(err, samplerErr)
	}
	if p.byFiles {
		p.degraded = append(p.degraded, fmt.Sprintf("connections that no process has open and multipath ones show only when they close, "+
			"and the more files are open, the more a reading costs (%s: %v)", samplerHook, samplerErr))
	}
	return core, nil
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

func (p *Probe) startTeller(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	core, opsErr := p.startOps(spec)
	if opsErr == nil {
		return core, nil
	}
	if err := spec.Variables[bpfVarHaveOps].Set(false); err != nil {
		return nil, fmt.Errorf("set who tells of connections: %w", err)
	}
	core, err := p.loadCore(spec, bpfProgTcpSetState)
	if err != nil {
		return nil, probe.Explain("the kernel does not take the tcp probe's programs", err)
	}
	if err := p.attachTracing(core.Programs[bpfProgTcpSetState], setStateHook); err != nil {
		return nil, err
	}
	p.degraded = append(p.degraded, fmt.Sprintf("connections may be missed, see program_skipped (%s: %v)", opsHook, opsErr))
	return core, nil
}

// startOps leaves nothing behind if it fails.
func (p *Probe) startOps(spec *ebpf.CollectionSpec) (core *ebpf.Collection, err error) {
	if p.cfg.CgroupRoot == "" {
		return nil, errors.New("no cgroup2 hierarchy is mounted")
	}
	if err := spec.Variables[bpfVarHaveOps].Set(true); err != nil {
		return nil, fmt.Errorf("set who tells of connections: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, probe.CloseAll(p.closers))
			p.closers, p.hooks = nil, nil
		}
	}()
	if core, err = p.loadCore(spec, bpfProgTcpOps); err != nil {
		return nil, probe.Explain("load", err)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: p.cfg.CgroupRoot, Attach: ebpf.AttachCGroupSockOps, Program: core.Programs[bpfProgTcpOps],
	})
	if err != nil {
		return nil, probe.Explain("attach at "+p.cfg.CgroupRoot, err)
	}
	p.closers = append(p.closers, l)
	p.hooks, p.hasOps = append(p.hooks, opsHook), true
	// Of what was there before only this one tells.
	if err := p.startOne(spec, core, bpfProgTcpSetState, setStateHook); err != nil {
		p.degraded = append(p.degraded, fmt.Sprintf("the end of connections that were open before orb8 is not seen (%s: %v)", setStateHook, err))
	}
	return core, nil
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
func (p *Probe) loadCore(spec *ebpf.CollectionSpec, teller string) (*ebpf.Collection, error) {
	sampler := bpfProgTcpSample
	if p.byFiles {
		sampler = bpfProgTcpSampleFiles
	}
	coll, err := ebpf.NewCollection(probe.Only(spec, teller, sampler))
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, probe.CloseFunc(coll.Close))
	p.stats, p.sums = coll.Maps[bpfMapTcpStats], coll.Maps[bpfMapTcpSums]
	p.listen = coll.Variables[bpfVarListens]
	p.pass, p.traced, p.tracedEnds = coll.Variables[bpfVarPass], coll.Variables[bpfVarTraced], coll.Variables[bpfVarTracedEnds]
	return coll, p.openReaders(coll)
}

func (p *Probe) openReaders(core *ebpf.Collection) error {
	options, hook := link.IterOptions{Program: core.Programs[bpfProgTcpSample], Map: core.Maps[bpfMapTcpSocks]}, samplerHook
	if p.byFiles {
		options, hook = link.IterOptions{Program: core.Programs[bpfProgTcpSampleFiles]}, "iter/task_file"
	}
	it, err := link.AttachIter(options)
	if err != nil {
		return probe.Explain("attach the socket iterator", err)
	}
	p.iter = it
	p.closers = append(p.closers, it)
	p.hooks = append(p.hooks, hook)
	p.ring, err = ringbuf.NewReader(core.Maps[bpfMapTcpRing])
	if err != nil {
		return fmt.Errorf("open the tcp probe's ring buffer: %w", err)
	}
	p.closers = append(p.closers, p.ring)
	return nil
}

func (p *Probe) attachTracing(prog *ebpf.Program, hook string) error {
	with := &p.tracing
	if hook == setStateHook {
		with = &p.states
	}
	l, err := with.Attach(prog)
	if err != nil {
		return probe.Explain("attach "+hook, err)
	}
	p.closers = append(p.closers, l)
	p.hooks = append(p.hooks, hook)
	return nil
}

func (p *Probe) startOptional(spec *ebpf.CollectionSpec, core *ebpf.Collection) {
	for _, o := range optional(p.hasOps) {
		if err := p.startOne(spec, core, o.prog, o.hook); err != nil {
			p.degraded = append(p.degraded, fmt.Sprintf("%s (%s: %v)", o.effect, o.hook, err))
		}
	}
}

func (p *Probe) startOne(spec *ebpf.CollectionSpec, core *ebpf.Collection, name, hook string) error {
	if name == bpfProgTcpSeed {
		w, err := probe.NewWalk(spec, core, name)
		if err != nil {
			return err
		}
		p.seed, p.seeds = w, newSeeds(time.Now())
		p.closers = append(p.closers, w)
		return w.Run()
	}
	coll, err := probe.LoadOne(spec, core, name)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, probe.CloseFunc(coll.Close))
	return p.attachTracing(coll.Programs[name], hook)
}

// Run moves final records from the ring to Apply until ctx is done, and once
// more after that.
func (p *Probe) Run(ctx context.Context) error {
	p.setRunning(true)
	defer p.setRunning(false)
	var rec ringbuf.Record
	var s flow.Sample
	for {
		p.ring.SetDeadline(time.Now().Add(p.drainEvery))
		err := p.drain(&rec, &s)
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			p.signalFlushed()
		case errors.Is(err, os.ErrDeadlineExceeded):
		default:
			return fmt.Errorf("read the tcp probe's ring buffer: %w", err)
		}
		if ctx.Err() != nil {
			return p.drainOnce()
		}
	}
}

// drainOnce applies what is in the ring and does not wait for more.
func (p *Probe) drainOnce() error {
	var rec ringbuf.Record
	var s flow.Sample
	p.ring.SetDeadline(time.Unix(0, 1))
	if err := p.drain(&rec, &s); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, ringbuf.ErrFlushed) {
		return fmt.Errorf("read the tcp probe's ring buffer: %w", err)
	}
	return nil
}

// drain applies records until the reader returns an error, which it returns.
func (p *Probe) drain(rec *ringbuf.Record, s *flow.Sample) error {
	for {
		if err := p.ring.ReadInto(rec); err != nil {
			return err
		}
		p.apply(rec.RawSample, s)
	}
}

func (p *Probe) apply(raw []byte, s *flow.Sample) {
	if err := decode(raw, s, p.cfg.Clock); err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.received.Add(1)
	p.cfg.Apply(s)
}

func (p *Probe) setRunning(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = on
	if !on && p.flushed != nil {
		close(p.flushed)
		p.flushed = nil
	}
}

func (p *Probe) signalFlushed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flushed != nil {
		close(p.flushed)
		p.flushed = nil
	}
}

// Collect waits until the records that are in the ring have been applied, then
// reads all sockets and the loss counters.
func (p *Probe) Collect() error {
	return errors.Join(p.flushRing(), p.seedAgain(), p.sample(), p.readStats())
}

// seedAgain takes in, a few times after the start, older connections that no process
// had open then: those that a listener had not accepted yet, or that were on their way
// from one process to another. A few times after sockets began to listen it looks who
// has them: the process that made them may have made them for another.
func (p *Probe) seedAgain() error {
	if p.seed == nil {
		return nil
	}
	var listens uint64
	if err := p.listen.Get(&listens); err != nil {
		return fmt.Errorf("read how many sockets began to listen: %w", err)
	}
	if !p.seeds.due(time.Now(), listens) {
		return nil
	}
	if err := p.seed.Run(); err != nil {
		return fmt.Errorf("look who has sockets open: %w", err)
	}
	return nil
}

func (p *Probe) flushRing() error {
	p.mu.Lock()
	if !p.running {
		p.mu.Unlock()
		return p.drainOnce()
	}
	if p.flushed == nil {
		p.flushed = make(chan struct{})
	}
	done := p.flushed
	p.mu.Unlock()
	if err := p.ring.Flush(); err != nil {
		return fmt.Errorf("flush the tcp probe's ring buffer: %w", err)
	}
	select {
	case <-done:
	case <-time.After(time.Second): // Run is stuck in Apply; the next pass will see
	}
	return nil
}

// sample makes one pass over all sockets.
func (p *Probe) sample() error {
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
	if err := p.readSkips(); err != nil {
		return err
	}
	var total [bpfTcpStatSTAT_MAX]uint64
	if err := probe.ReadCounters(p.stats, total[:]); err != nil {
		return fmt.Errorf("read the tcp probe's loss counters: %w", err)
	}
	p.cfg.Losses.Add(loss.TCPRingFull, total[bpfTcpStatSTAT_RING_FULL]-p.lost[bpfTcpStatSTAT_RING_FULL])
	p.cfg.Losses.Add(loss.TCPSumsFull, total[bpfTcpStatSTAT_SUMS_FULL]-p.lost[bpfTcpStatSTAT_SUMS_FULL])
	p.cfg.Losses.Add(loss.TCPStorageFull, total[bpfTcpStatSTAT_STORAGE_FULL]-p.lost[bpfTcpStatSTAT_STORAGE_FULL])
	more := total[bpfTcpStatSTAT_RING_FULL] != p.lost[bpfTcpStatSTAT_RING_FULL]
	p.lost = total
	if more {
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

// readSkips counts what tracing programs may have missed. What sock_ops tells is not
// among it: where that is attached, the program at the socket's states matters to
// older connections only.
func (p *Probe) readSkips() error {
	skips, err := p.tracing.Skips()
	if err != nil {
		return err
	}
	p.cfg.Losses.Add(loss.ProgramSkipped, skips)
	if skips, err = p.states.Skips(); err != nil {
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

// Close detaches and unloads everything.
func (p *Probe) Close() error {
	err := probe.CloseAll(p.closers)
	p.closers, p.hooks = nil, nil
	return err
}
