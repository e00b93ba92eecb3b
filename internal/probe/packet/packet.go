// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package packet counts flows per packet at the cgroup2 root: everything over
// IP that is not TCP, and TCP where sockets cannot be read. On the way it copies
// DNS messages, for another probe to read. It knows nothing of tables or of who a
// cgroup is.
package packet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// DefaultMapEntries bounds the flows that the kernel keeps between two reads
// and until they are idle.
const DefaultMapEntries = 65536

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
	// Idle, asked at each reading, says how long an entry stays in the kernel
	// without traffic: the flow table's expiry time. Always 30 s if nil.
	Idle func() time.Duration
	// Batch is how many entries one read takes; 4096 if 0.
	Batch int
	// CountTCP, asked at Start, says whether TCP is counted here too.
	CountTCP func() bool
	// DNSPorts are the ports, 8 at most, whose messages are copied into DNSRing; none
	// to copy nothing.
	DNSPorts []uint16
	// DNSRingBytes is a power of two and a multiple of the page size;
	// DefaultDNSRingBytes if 0.
	DNSRingBytes uint32
}

// DefaultDNSRingBytes holds about 10,000 short messages, or 2,300 of 401 to 800 bytes.
const DefaultDNSRingBytes = 2 << 20

// Probe implements probe.Probe.
type Probe struct {
	probe.Attachments
	cfg      Config
	degraded []string

	flows      *ebpf.Map
	stats      *ebpf.Map
	bootOffset *ebpf.Variable
	dnsRing    *ebpf.Map

	drainer  drainer
	lost     [bpfPacketStatSTAT_MAX]uint64 // as last read from the kernel
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
	return &Probe{cfg: cfg}
}

// Name returns "packet".
func (p *Probe) Name() string { return "packet" }

// Degraded lists the optional parts that this kernel lacks.
func (p *Probe) Degraded() []string { return append([]string(nil), p.degraded...) }

// Received is the number of flow readings that had news.
func (p *Probe) Received() uint64 { return p.received.Load() }

// DNSRing has the copies of DNS messages, see DecodeDNS. It is nil unless the probe
// runs with DNSPorts, and closed with the probe.
func (p *Probe) DNSRing() *ebpf.Map { return p.dnsRing }

// DNSLost is how many messages did not fit into the ring of DNS messages until now.
func (p *Probe) DNSLost() (uint64, error) {
	var total [bpfPacketStatSTAT_MAX]uint64
	if err := probe.ReadCounters(p.stats, total[:]); err != nil {
		return 0, fmt.Errorf("read the packet probe's loss counters: %w", err)
	}
	return total[bpfPacketStatSTAT_DNS_RING_FULL], nil
}

// CountsTCP reports whether the probe has taken TCP over.
func (p *Probe) CountsTCP() bool { return p.tcp }

// Start loads and attaches the programs.
func (p *Probe) Start() error { return probe.OrClose(p.start(), p.Close) }

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
	core, err := ebpf.NewCollection(probe.Only(spec, bpfProgPacketIngress, bpfProgPacketEgress))
	if err != nil {
		return probe.Explain("the kernel does not take the packet probe's programs", err)
	}
	p.Keep(probe.CloseFunc(core.Close))
	p.flows, p.stats = core.Maps[bpfMapPacketFlows], core.Maps[bpfMapPacketStats]
	p.bootOffset = core.Variables[bpfVarBootOffset]
	if len(p.cfg.DNSPorts) > 0 {
		p.dnsRing = core.Maps[bpfMapDnsRing]
	}
	if err := p.setBootOffset(); err != nil {
		return err
	}
	settle, err := probe.NewSettler()
	if err != nil {
		return probe.Explain("wait for the packet probe's programs", err)
	}
	p.Keep(settle)
	p.drainer = newDrainer(kernel{
		flows: p.flows, late: core.Maps[bpfMapPacketLate],
		retireBefore: core.Variables[bpfVarRetireBefore], settle: settle.Settle,
	}, p.cfg)
	// Owners first, so that the first packet's flow already has one.
	p.startOwners(spec, core)
	if err := p.attach(core.Programs[bpfProgPacketIngress], ebpf.AttachCGroupInetIngress, "cgroup_skb/ingress"); err != nil {
		return err
	}
	return p.attach(core.Programs[bpfProgPacketEgress], ebpf.AttachCGroupInetEgress, "cgroup_skb/egress")
}

func (p *Probe) configure(spec *ebpf.CollectionSpec) error {
	spec.Maps[bpfMapPacketFlows].MaxEntries = p.cfg.MapEntries
	if n := p.cfg.LateEntries; n != 0 {
		spec.Maps[bpfMapPacketLate].MaxEntries = n
	}
	if err := spec.Variables[bpfVarCountTcp].Set(p.tcp); err != nil {
		return fmt.Errorf("set whether TCP is counted: %w", err)
	}
	return p.configureDNS(spec)
}

func (p *Probe) configureDNS(spec *ebpf.CollectionSpec) error {
	ring := spec.Maps[bpfMapDnsRing]
	if len(p.cfg.DNSPorts) == 0 {
		ring.MaxEntries = uint32(os.Getpagesize()) // no smaller ring can be made
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

// maxDNSPorts is MAX_DNS_PORTS of the program.
const maxDNSPorts = 8

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

func (p *Probe) attach(prog *ebpf.Program, at ebpf.AttachType, hook string) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: p.cfg.CgroupRoot, Attach: at, Program: prog})
	if err != nil {
		return probe.Explain(fmt.Sprintf("attach %s at %s", hook, p.cfg.CgroupRoot), err)
	}
	p.Attached(l, hook)
	return nil
}

// startOwners attaches what names the process behind a flow.
func (p *Probe) startOwners(spec *ebpf.CollectionSpec, core *ebpf.Collection) {
	coll, err := probe.LoadOne(spec, core, bpfProgPacketSockCreate)
	if err == nil {
		p.Keep(probe.CloseFunc(coll.Close))
		err = p.attach(coll.Programs[bpfProgPacketSockCreate], ebpf.AttachCGroupInetSockCreate, "cgroup/sock_create")
	}
	if err != nil {
		p.degraded = append(p.degraded, probe.Lack("flows other than TCP have no process", "cgroup/sock_create", err))
		return
	}
	if err := probe.RunOnce(spec, core, bpfProgPacketSeed); err != nil {
		p.degraded = append(p.degraded, probe.Lack("sockets older than orb8 have no process, except TCP's", "iter/task_file", err))
	}
}

// Run waits for ctx: this probe has no events of its own.
func (p *Probe) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Collect reads all flows that had traffic since the last call, lets go of the
// idle ones and reads the loss counters.
func (p *Probe) Collect() error {
	if err := p.setBootOffset(); err != nil {
		return err
	}
	n, err := p.drainer.drain()
	p.received.Add(n)
	return errors.Join(err, p.readStats())
}

func (p *Probe) readStats() error {
	return probe.CountLosses("packet", p.stats, p.lost[:], p.cfg.Losses, stages())
}

func stages() map[bpfPacketStat]loss.Stage {
	all := make(map[bpfPacketStat]loss.Stage)
	for s := range bpfPacketStatSTAT_MAX {
		all[s] = loss.PacketUnreadable
	}
	all[bpfPacketStatSTAT_MAP_FULL] = loss.PacketMapFull
	all[bpfPacketStatSTAT_DNS_RING_FULL] = loss.DNSRingFull
	return all
}

// Close detaches and unloads everything.
func (p *Probe) Close() error {
	p.dnsRing = nil
	return p.Attachments.Close()
}
