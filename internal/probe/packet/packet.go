// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package packet counts flows per packet at the cgroup2 root: everything over
// IP that is not TCP, and TCP where sockets cannot be read. It also copies DNS messages,
// for another probe to read. It knows nothing of tables or of who a cgroup is.
package packet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// DefaultMapEntries bounds the flows that the kernel keeps between two reads
// and until they are idle.
const DefaultMapEntries = 65536

// lookEvery is how often the probe looks whether its map fills up.
const lookEvery = 200 * time.Millisecond

// settleTime is how long a datagram that is received may be the answer to one that was
// sent before the probe began.
const settleTime = 5 * time.Second

// Config of the probe. Apply, Losses, Clock and CgroupRoot are required.
type Config struct {
	// Apply takes a sample in; it must not keep it.
	Apply  func(*flow.Sample)
	Losses *loss.Counters
	Clock  *probe.Clock
	// CgroupRoot is where the cgroup2 hierarchy is mounted.
	CgroupRoot string
	// MapEntries is DefaultMapEntries if 0.
	MapEntries uint32
	// LateEntries bounds the flows that have packets while their entries are taken
	// out; 1024 if 0.
	LateEntries uint32
	// OtherEntries bounds the cgroups and protocols whose sums are kept where the two
	// above are full; 4096 if 0.
	OtherEntries uint32
	// Idle, asked at each reading, says how long an entry stays in the kernel
	// without traffic: the flow table's expiry time. Always 30 s if nil.
	Idle func() time.Duration
	// Batch is how many entries one read takes; 4096 if 0.
	Batch int
	// CountTCP, asked at Start, says whether TCP is counted here too.
	CountTCP func() bool
	// DNSPorts are the ports, 8 at most, whose messages are copied into the ring of
	// DNSMessages; none to copy nothing.
	DNSPorts []uint16
	// DNSRingBytes is a power of two and a multiple of the page size;
	// DefaultDNSRingBytes if 0.
	DNSRingBytes uint32
}

// DefaultDNSRingBytes holds about 10,000 short messages, or 2,300 of 401 to 800 bytes.
const DefaultDNSRingBytes = 2 << 20

// maxDNSPorts is MAX_DNS_PORTS of the program.
const maxDNSPorts = dns.MaxPorts

// Probe implements probe.Probe.
type Probe struct {
	probe.Object
	cfg Config

	flows      *ebpf.Map
	bootOffset *ebpf.Variable
	inserted   *ebpf.Variable // entries ever made

	mu       sync.Mutex // of all below, but for what is set at the start
	drainer  drainer
	seen     uint64 // inserted, as of the last drain
	tcp      bool
	received atomic.Uint64
}

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	if cfg.MapEntries == 0 {
		cfg.MapEntries = DefaultMapEntries
	}
	if cfg.Batch == 0 {
		cfg.Batch = 4096
	}
	if cfg.DNSRingBytes == 0 {
		cfg.DNSRingBytes = DefaultDNSRingBytes
	}
	if cfg.Idle == nil {
		cfg.Idle = func() time.Duration { return 30 * time.Second }
	}
	return &Probe{cfg: cfg, Object: probe.NewObject(name, cfg.Losses)}
}

const name = "packet"

// Name returns "packet".
func (p *Probe) Name() string { return name }

// Received is the number of flow readings that had news.
func (p *Probe) Received() uint64 { return p.received.Load() }

// CountsTCP reports whether the probe has taken TCP over.
func (p *Probe) CountsTCP() bool { return p.tcp }

// Start loads and attaches the programs.
func (p *Probe) Start() error { return p.Undo(p.start()) }

func (p *Probe) start() error {
	if p.cfg.CgroupRoot == "" {
		return &probe.Unsupported{
			Reason: "no cgroup2 hierarchy is mounted",
			Remedy: "mount one (mount -t cgroup2 none /sys/fs/cgroup/unified; in a pod, hostPath /sys/fs/cgroup at /host/sys/fs/cgroup) or name it with --cgroup-root",
		}
	}
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the packet probe's programs: %w", err)
	}
	p.tcp = p.cfg.CountTCP != nil && p.cfg.CountTCP()
	if err := p.configure(spec); err != nil {
		return err
	}
	if err := p.Load(spec, bpfProgPacketIngress, bpfProgPacketEgress); err != nil {
		return probe.Explain("the kernel does not take the packet probe's programs", err)
	}
	core := p.Core
	p.flows = core.Maps[bpfMapPacketFlows]
	p.Counts(core.Maps[bpfMapPacketStats], lossStages()...)
	p.bootOffset, p.inserted = core.Variables[bpfVarBootOffset], core.Variables[bpfVarInserted]
	if err := p.setBootOffset(); err != nil {
		return err
	}
	settle, err := probe.NewSettler()
	if err != nil {
		return probe.Explain("wait for the packet probe's programs", err)
	}
	p.Keep(settle)
	p.drainer = newDrainer(kernel{
		flows: p.flows, late: core.Maps[bpfMapPacketLate], others: core.Maps[bpfMapPacketOthers],
		retireBefore: core.Variables[bpfVarRetireBefore], settle: settle.Settle,
	}, p.cfg)
	// Owners first, so that the first packet's flow already has one.
	p.startOwners()
	if err := p.AttachCgroup(core.Programs[bpfProgPacketIngress], ebpf.AttachCGroupInetIngress, p.cfg.CgroupRoot, "cgroup_skb/ingress"); err != nil {
		return err
	}
	return p.AttachCgroup(core.Programs[bpfProgPacketEgress], ebpf.AttachCGroupInetEgress, p.cfg.CgroupRoot, "cgroup_skb/egress")
}

func (p *Probe) configure(spec *ebpf.CollectionSpec) error {
	spec.Maps[bpfMapPacketFlows].MaxEntries = p.cfg.MapEntries
	if n := p.cfg.LateEntries; n != 0 {
		spec.Maps[bpfMapPacketLate].MaxEntries = n
	}
	if n := p.cfg.OtherEntries; n != 0 {
		spec.Maps[bpfMapPacketOthers].MaxEntries = n
	}
	if !p.tcp {
		// Only listeners have sockets cloned from them.
		spec.Maps[bpfMapPacketSocks].Flags &^= unix.BPF_F_CLONE
	}
	now, err := bootNow()
	if err != nil {
		return err
	}
	if err := spec.Variables[bpfVarSettledNs].Set(now + uint64(settleTime)); err != nil {
		return fmt.Errorf("set when the packet probe's start is over: %w", err)
	}
	if err := spec.Variables[bpfVarCountTcp].Set(p.tcp); err != nil {
		return fmt.Errorf("set whether TCP is counted: %w", err)
	}
	return p.configureDNS(spec)
}

func (p *Probe) configureDNS(spec *ebpf.CollectionSpec) error {
	ring := spec.Maps[bpfMapDnsRing]
	if len(p.cfg.DNSPorts) == 0 {
		ring.MaxEntries = uint32(os.Getpagesize()) // the least there can be
		return nil
	}
	ring.MaxEntries = p.cfg.DNSRingBytes
	var ports [maxDNSPorts]uint16
	if n := copy(ports[:], p.cfg.DNSPorts); n < len(p.cfg.DNSPorts) {
		return fmt.Errorf("%d DNS ports, want %d at most", len(p.cfg.DNSPorts), maxDNSPorts)
	}
	if err := spec.Variables[bpfVarDnsPorts].Set(ports); err != nil {
		return fmt.Errorf("set the ports of DNS: %w", err)
	}
	if err := spec.Variables[bpfVarDnsWakeBytes].Set(uint64(p.cfg.DNSRingBytes / 4)); err != nil {
		return fmt.Errorf("set the DNS ring's wake-up mark: %w", err)
	}
	return nil
}

// DNSMessages returns the ring of DNS messages, see DecodeDNS, and how to read how many did
// not fit into it until now. It is nil unless the probe runs with DNSPorts. The ring is
// closed with the probe.
func (p *Probe) DNSMessages() (ring *ebpf.Map, lost func() (uint64, error)) {
	if p.Core == nil || len(p.cfg.DNSPorts) == 0 {
		return nil, nil
	}
	stats := p.Core.Maps[bpfMapPacketStats]
	return p.Core.Maps[bpfMapDnsRing], func() (uint64, error) {
		var total [bpfPacketStatSTAT_MAX]uint64
		err := probe.ReadCounters(stats, total[:])
		return total[bpfPacketStatSTAT_DNS_RING_FULL], err
	}
}

// setBootOffset tells the programs how far boot time is ahead of the monotonic
// clock: as long as the machine was suspended.
func (p *Probe) setBootOffset() error {
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	boot, err := bootNow()
	if err != nil {
		return err
	}
	if err := p.bootOffset.Set(boot - uint64(mono.Nano())); err != nil {
		return fmt.Errorf("set the packet probe's clock: %w", err)
	}
	return nil
}

// startOwners attaches what names the process behind a flow.
func (p *Probe) startOwners() {
	const owners = "cgroup/sock_create"
	if err := p.attachOne(bpfProgPacketSockCreate, ebpf.AttachCGroupInetSockCreate, owners); err != nil {
		p.Lacks("flows other than TCP have no process", owners, err)
		return
	}
	for _, s := range []struct {
		prog, hook string
		at         ebpf.AttachType
	}{
		{bpfProgPacketSendmsg4, "cgroup/sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{bpfProgPacketSendmsg6, "cgroup/sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
	} {
		p.Lacks("datagrams to another address than their socket's peer are shown as the peer's, "+
			"and those that are translated and have no peer as two flows", s.hook, p.attachOne(s.prog, s.at, s.hook))
	}
	p.Lacks("sockets older than orb8 have no process, except TCP's", "iter/task_file", p.seed())
}

// attachOne loads and attaches an optional program.
func (p *Probe) attachOne(name string, at ebpf.AttachType, hook string) error {
	prog, err := p.LoadOne(name)
	if err != nil {
		return err
	}
	return p.AttachCgroup(prog, at, p.cfg.CgroupRoot, hook)
}

// seed finds the owners of sockets that are there already.
func (p *Probe) seed() error { return p.RunOnce(bpfProgPacketSeed) }

// Run reads the flows, until ctx is done, whenever so many have come since the last
// reading that the map might be full before the next one.
func (p *Probe) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		filling, err := p.filling()
		if err == nil && filling {
			err = p.Collect()
		}
		if err != nil {
			return err
		}
	}
}

// filling reports whether a quarter of the map has been filled since the last reading,
// which leaves it half empty.
func (p *Probe) filling() (bool, error) {
	var inserted uint64
	if err := p.inserted.Get(&inserted); err != nil {
		return false, fmt.Errorf("read how many flows came: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return inserted-p.seen >= uint64(p.cfg.MapEntries)/4, nil
}

// Collect reads all flows that had traffic since the last call, lets go of the
// idle ones and reads the loss counters.
func (p *Probe) Collect() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.inserted.Get(&p.seen); err != nil {
		return fmt.Errorf("read how many flows came: %w", err)
	}
	if err := p.setBootOffset(); err != nil {
		return err
	}
	n, err := p.drainer.drain()
	p.received.Add(n)
	return errors.Join(err, p.readStats())
}

func (p *Probe) readStats() error {
	_, err := p.ReadLosses()
	return err
}

// lossStages are what the kernel's counters count.
func lossStages() []loss.Stage {
	stages := make([]loss.Stage, bpfPacketStatSTAT_MAX)
	for i := range stages {
		stages[i] = lossStage(bpfPacketStat(i))
	}
	return stages
}

func lossStage(s bpfPacketStat) loss.Stage {
	switch s {
	case bpfPacketStatSTAT_MAP_FULL:
		return loss.PacketMapFull
	case bpfPacketStatSTAT_SUMMED:
		return loss.PacketSummed
	case bpfPacketStatSTAT_STORAGE_FULL:
		return loss.PacketStorageFull
	case bpfPacketStatSTAT_DNS_RING_FULL:
		return loss.DNSRingFull
	}
	return loss.PacketUnreadable
}
