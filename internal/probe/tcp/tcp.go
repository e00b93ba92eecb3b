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

// DefaultRingBytes holds about 9,000 final records: a quarter of a second of what two
// cores can open and close over loopback.
const DefaultRingBytes = 2 << 20

const (
	// idleAfter is how long a connection that counts as idle has had no segments;
	// keep-alive probes are some.
	idleAfter = 5 * time.Minute
	// maxCgroups is how many cgroups may have sockets that are counted.
	maxCgroups = 4096
)

// Config of the probe. Apply, Losses, Clock and CgroupRoot are required.
type Config struct {
	// Apply takes a sample in; it must not keep it. It is called from the
	// goroutines of Run and Collect.
	Apply func(*flow.Sample)
	// Note, if set, takes what a listener has dropped, as a *flow.ListenOverflow; the
	// sample is its end. It must not keep the sample and is called like Apply.
	Note func(*flow.Sample, flow.Detail)
	// Sockets, if set, is called after each pass over all sockets with how many there
	// are by cgroup. It must not keep the slice.
	Sockets func([]flow.SocketCount)
	// Ahead, if set, is called before records are handed over that have waited in the
	// ring: what happened before them, and names them, may wait elsewhere.
	Ahead  func()
	Losses *loss.Counters
	Clock  *probe.Clock
	// RingBytes is a power of two and a multiple of the page size.
	// DefaultRingBytes if 0.
	RingBytes uint32
	// CgroupRoot is where the cgroup2 hierarchy is mounted, or the root of this node's
	// part of it.
	CgroupRoot string
	// CgroupID is the root of this node's part of the cgroups, 0 for all: other
	// nodes may share the kernel. Sockets outside it are left alone.
	CgroupID uint64
}

// Probe implements probe.Probe.
type Probe struct {
	probe.Attachments
	cfg      Config
	degraded []string

	ring       *probe.Ring
	final      flow.Sample   // of a record in the ring
	drainEvery time.Duration // how long that may wait
	idleAfter  time.Duration
	maxCgroups uint32
	proc       string
	iter       *link.Iter
	byFiles    bool // open files are the way to the sockets; a test may want it so
	stats      *ebpf.Map
	counts     *counts
	drops      *listenDrops // nil if nobody asks

	lost     [bpfTcpStatSTAT_MAX]uint64 // as last read from the kernel
	buf      []byte
	resets   atomic.Uint64
	received atomic.Uint64
}

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	return &Probe{cfg: cfg, drainEvery: probe.DrainEvery, idleAfter: idleAfter, maxCgroups: maxCgroups, proc: "/proc"}
}

// Name returns "tcp".
func (p *Probe) Name() string { return "tcp" }

// Degraded lists the optional parts that this kernel lacks.
func (p *Probe) Degraded() []string { return append([]string(nil), p.degraded...) }

// Received is the number of records read from the kernel.
func (p *Probe) Received() uint64 { return p.received.Load() }

// UnmatchedResets counts resets sent for packets that met no connection.
func (p *Probe) UnmatchedResets() uint64 { return p.resets.Load() }

const hookAsked = "cgroup/getsockopt"

// optional programs, each with what is missing without it.
func optional() []struct{ prog, hook, effect string } {
	return []struct{ prog, hook, effect string }{
		{bpfProgTcpReceiveReset, "tp_btf/tcp_receive_reset", "resets received are told only by the socket's error"},
		{bpfProgTcpSendReset, "tp_btf/tcp_send_reset", "resets sent are told only by how the socket closed"},
		{bpfProgTcpRetransmit, "tp_btf/tcp_retransmit_skb", "retransmits show at the next interval, not at once"},
		{bpfProgTcpError, "tp_btf/inet_sk_error_report", "a failed connection may show as aborted if the program is quick to ask why"},
		{bpfProgTcpAsked, hookAsked, "a connection that this node itself rejects may show as aborted if the program asks for the error at once"},
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
	core, err := p.loadCore(spec)
	if err != nil {
		return probe.Explain("the kernel does not take the tcp probe's programs", err)
	}
	p.stats = core.Maps[bpfMapTcpStats]
	p.counts = newCounts(core)
	if p.cfg.Note != nil {
		p.drops = newListenDrops(p.proc)
	}
	if err := p.openReaders(core); err != nil {
		return err
	}
	if err := p.AttachTracing(core.Programs[bpfProgTcpSetState], "tp_btf/inet_sock_set_state"); err != nil {
		return err
	}
	p.startOptional(spec, core)
	return nil
}

func (p *Probe) configure(spec *ebpf.CollectionSpec) error {
	spec.Maps[bpfMapTcpRing].MaxEntries = p.cfg.RingBytes
	spec.Maps[bpfMapTcpCounts].MaxEntries = p.maxCgroups
	return probe.SetVariables(spec.Variables, "tcp", map[string]any{
		bpfVarWakeBytes:    uint64(p.cfg.RingBytes / 4),
		bpfVarPartRoot:     p.cfg.CgroupID,
		bpfVarCountSockets: p.cfg.Sockets != nil,
		bpfVarIdleNs:       uint64(p.idleAfter),
	})
}

// loadCore loads what the probe cannot do without, and all maps. A kernel may keep
// programs from iterators of maps, which may write into them: open files then are the
// way to the sockets.
func (p *Probe) loadCore(spec *ebpf.CollectionSpec) (coll *ebpf.Collection, err error) {
	err = errors.New("not wanted")
	if !p.byFiles {
		coll, err = loadSampler(spec, bpfProgTcpSample)
	}
	if err != nil {
		var filesErr error
		if coll, filesErr = loadSampler(spec, bpfProgTcpSampleFiles); filesErr != nil {
			return nil, err
		}
		p.byFiles = true
		p.degraded = append(p.degraded, probe.Lack("connections that no process has open and multipath ones show only when "+
			"they close, and the more files are open, the more a reading costs",
			"iter/bpf_sk_storage_map", err))
	}
	p.Keep(probe.CloseFunc(coll.Close))
	return coll, nil
}

// loadSampler loads the probe's main program and one that reads all sockets.
func loadSampler(spec *ebpf.CollectionSpec, name string) (*ebpf.Collection, error) {
	return ebpf.NewCollection(probe.Only(spec, bpfProgTcpSetState, name))
}

func (p *Probe) openReaders(core *ebpf.Collection) error {
	options, hook := link.IterOptions{Program: core.Programs[bpfProgTcpSample], Map: core.Maps[bpfMapTcpSocks]}, "iter/bpf_sk_storage_map"
	if p.byFiles {
		options, hook = link.IterOptions{Program: core.Programs[bpfProgTcpSampleFiles]}, "iter/task_file"
	}
	it, err := link.AttachIter(options)
	if err != nil {
		return probe.Explain("attach the socket iterator", err)
	}
	p.iter = it
	p.Attached(it, hook)
	p.ring, err = probe.NewRing(core.Maps[bpfMapTcpRing], probe.RingConfig{
		Name: "the tcp probe's ring buffer", Ahead: p.cfg.Ahead, Every: p.drainEvery,
		Take: func(raw []byte) { p.apply(raw, &p.final) },
	})
	if err != nil {
		return err
	}
	p.Keep(p.ring)
	return nil
}

func (p *Probe) startOptional(spec *ebpf.CollectionSpec, core *ebpf.Collection) {
	for _, o := range optional() {
		if err := p.startOne(spec, core, o.prog, o.hook); err != nil {
			p.degraded = append(p.degraded, probe.Lack(o.effect, o.hook, err))
		}
	}
}

func (p *Probe) startOne(spec *ebpf.CollectionSpec, core *ebpf.Collection, name, hook string) error {
	if name == bpfProgTcpSeed {
		return probe.RunOnce(spec, core, name)
	}
	coll, err := probe.LoadOne(spec, core, name)
	if err != nil {
		return err
	}
	p.Keep(probe.CloseFunc(coll.Close))
	if name == bpfProgTcpAsked {
		return p.attachAsked(coll.Programs[name])
	}
	return p.AttachTracing(coll.Programs[name], hook)
}

func (p *Probe) attachAsked(prog *ebpf.Program) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: p.cfg.CgroupRoot, Attach: ebpf.AttachCGroupGetsockopt, Program: prog})
	if err != nil {
		return fmt.Errorf("attach at %s: %w", p.cfg.CgroupRoot, err)
	}
	p.Attached(l, hookAsked)
	return nil
}

// Run moves final records from the ring to Apply until ctx is done, and once more
// after that.
func (p *Probe) Run(ctx context.Context) error { return p.ring.Run(ctx) }

func (p *Probe) apply(raw []byte, s *flow.Sample) {
	overflow, err := decode(raw, s, p.cfg.Clock)
	if err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.received.Add(1)
	if overflow == nil {
		p.cfg.Apply(s)
		return
	}
	if p.drops == nil {
		return
	}
	if p.drops.bound(s, overflow); overflow.Drops > 0 {
		p.cfg.Note(s, overflow)
	}
}

// Collect waits until the records that are in the ring have been applied, then
// reads all sockets and the loss counters.
func (p *Probe) Collect() error {
	return errors.Join(p.ring.Flush(), p.sample(), p.readStats())
}

// sample makes one pass over all sockets.
func (p *Probe) sample() error {
	if err := p.counts.begin(); err != nil {
		return err
	}
	r, err := p.iter.Open()
	if err != nil {
		return fmt.Errorf("open the socket iterator: %w", err)
	}
	err = errors.Join(p.readRecords(r), r.Close())
	if err != nil || p.cfg.Sockets == nil {
		return err
	}
	sockets, err := p.counts.read()
	if err != nil {
		return err
	}
	p.cfg.Sockets(sockets)
	return nil
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
	err := probe.CountLosses("tcp", p.stats, p.lost[:], p.cfg.Losses, map[bpfTcpStat]loss.Stage{
		bpfTcpStatSTAT_RING_FULL:         loss.TCPRingFull,
		bpfTcpStatSTAT_STORAGE_FULL:      loss.TCPStorageFull,
		bpfTcpStatSTAT_SOCKETS_UNCOUNTED: loss.TCPSocketsUncounted,
	})
	p.resets.Store(p.lost[bpfTcpStatSTAT_RESETS_UNMATCHED])
	return err
}
