// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package host makes an agent for this host: its probes, what names workloads, the drivers
// of its accelerators.
package host

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/agent"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/tracing"
	"github.com/Ignoramuss/orb8/internal/kind/calls"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/cgroup"
	"github.com/Ignoramuss/orb8/internal/probe/dns"
	"github.com/Ignoramuss/orb8/internal/probe/exec"
	"github.com/Ignoramuss/orb8/internal/probe/packet"
	"github.com/Ignoramuss/orb8/internal/probe/tcp"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// probes is the list of all probes. A new probe is one more call of Add. What a
// reload can change is asked of now; s.Config is as it was at the start.
func probes(s agent.Sink, now func() *config.Config, names *workload.Resolver, clock *probe.Clock, helpers []string, selection *probe.Selection) *probe.Manager {
	cgroupRoot, part := names.Mount().Path, names.Part()
	m := probe.NewManager(s.Log)

	// First, so that the others' records find names.
	helper := []probe.Option{probe.Helper()}
	if s.Config.TCP == config.ModeOff && s.Config.Packet == config.ModeOff && s.Config.Exec == config.ModeOff {
		helper = append(helper, probe.Off("no probe is on that it could help"))
	}
	m.Add(cgroup.New(cgroup.Config{Ready: names.LearnAll, Losses: s.Losses, Selection: selection, Made: func(id uint64, path string) {
		names.Learn(id, path)
		s.Made(id)
	}}), helper...)
	tcpProbe := tcp.New(tcp.Config{
		Apply: s.Apply, Losses: s.Losses, Clock: clock, RingBytes: uint32(s.Config.TCPRingBytes),
		CgroupRoot: cgroupRoot + part.Path, CgroupID: part.CgroupID,
	})
	packetProbe := packet.New(packet.Config{
		DNSPorts: s.Config.CopiedPorts(), DNSRingBytes: uint32(s.Config.DNSRingBytes),
		Apply: s.Apply, Losses: s.Losses, Clock: clock, CgroupRoot: cgroupRoot + part.Path,
		MapEntries: uint32(s.Config.PacketMapEntries),
		Idle:       func() time.Duration { return now().IdleTimeout },
		CountTCP:   func() bool { return s.Config.TCP != config.ModeOff && !m.Running(tcpProbe.Name()) },
	})

	m.Add(tcpProbe, append(modeOptions(tcpProbe, s.Config.TCP), probe.Fallback(func() (string, bool) {
		return "the packet probe counts TCP per packet, without round-trip times, retransmits and processes",
			m.Running(packetProbe.Name())
	}))...)
	m.Add(packetProbe, modeOptions(packetProbe, s.Config.Packet)...)
	dnsProbe := dns.New(dns.Config{
		Messages: packetProbe.DNSMessages, Decode: packet.DecodeDNS, Submit: s.Query, Losses: s.Losses, Clock: clock,
		Timeout: func() time.Duration { return now().DNSTimeout }, Learned: names.LookedUp,
	})
	s.Messages(dnsProbe.Counts)
	dnsOptions := modeOptions(dnsProbe, s.Config.DNS)
	if s.Config.Packet == config.ModeOff && dnsOptions == nil {
		dnsOptions = []probe.Option{probe.Off("turned off by --packet=off: the packet probe's programs read DNS")}
	}
	m.Add(dnsProbe, dnsOptions...)
	execProbe := exec.New(exec.Config{
		Apply: s.Process, Read: s.ProcessesRead, Losses: s.Losses, Clock: clock, CgroupID: part.CgroupID, Around: true,
		RingBytes: uint32(s.Config.ExecRingBytes), ArgBytes: s.Config.ProcessArgs,
		Watched:       syscalls.Numbers(syscalls.Native(), syscalls.Privileged()...),
		WatchedCompat: syscalls.Numbers(syscalls.Compat(), syscalls.Privileged()...),
	})
	execOptions := modeOptions(execProbe, s.Config.Exec)
	if slices.Contains(helpers, execProbe.Name()) {
		execOptions = append(execOptions, probe.Helper())
	}
	m.Add(execProbe, execOptions...)
	return m
}

func modeOptions(p probe.Probe, m config.Mode) []probe.Option {
	if m == config.ModeOff {
		return []probe.Option{probe.Off("turned off by --" + p.Name() + "=off")}
	}
	return nil
}

// Host is an agent together with what it needs of this host.
type Host struct {
	*agent.Agent
	resolver  *workload.Resolver
	selection *probe.Selection // nil if there is none
}

// New returns an agent with orb8's probes for this host. deps may leave
// out all that this function knows: the probes, the resolver and the host's
// facts. Close the Host after Run has returned.
func New(cfg config.Config, deps agent.Deps, log *slog.Logger) (*Host, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		// Only kernels before 5.11 need it; there the probes say what fails.
		log.Debug("raise the memlock limit", "err", err)
	}
	cluster, err := newCluster(cfg, deps.Version, log)
	if err != nil {
		return nil, err
	}
	names := workload.Config{Root: cfg.CgroupRoot, Names: workload.NewNames()}
	if cluster != nil {
		deps.Cluster, names.Cluster, names.PodUID = cluster, cluster, os.Getenv("POD_UID")
		deps.Allow = cluster.Allow
	}
	r, err := workload.NewResolver(names)
	if err != nil {
		return nil, fmt.Errorf("find out about cgroups: %w", err)
	}
	root := r.Mount().Path
	deps.Resolver = r
	deps.CgroupRoot = root + r.Part().Path
	if p := r.Part().Path; p != "" {
		log.Info("this node has a part of the cgroups", "root", p)
	}
	if d := r.Degraded(); d != "" {
		log.Warn("workloads are named less well", "why", d)
	}
	deps.KernelRelease = kernelRelease()
	clock := probe.NewClock()
	deps.Clock = clock
	var a *agent.Agent
	selection, err := selectionOf(cfg, log)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if selection != nil {
		deps.Tracer = func(losses *loss.Counters, apply func(*calls.Record)) tracing.Tracer {
			return newTracer(selection, clock, losses, apply)
		}
	}
	deps.Probes = func(s agent.Sink) *probe.Manager {
		return probes(s, func() *config.Config { return a.Config() }, r, clock, deps.Helpers, selection)
	}
	if deps.Accelerators == nil && cfg.GPU != config.ModeOff {
		if cluster != nil {
			deps.Kubelet = newKubelet(cfg, cluster, func() bool { return a.HasAccelerators() })
		}
		deps.HiddenPIDs = !workload.SeesPIDs()
		deps.Accelerators = newAccelerators(cfg, &deps, r, cluster, log)
	}
	deps.IsSelf = newSelf(cfg).is
	if workload.SeesPIDs() {
		deps.Running = func(id process.ID) bool { return exec.Running("/proc", id) }
	}
	h := &Host{resolver: r, selection: selection}
	a, err = agent.New(cfg, deps, log)
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.Agent = a
	return h, nil
}

// selectionOf is what traces of system calls need, nil where they are turned off or the
// kernel has no such map.
func selectionOf(cfg config.Config, log *slog.Logger) (*probe.Selection, error) {
	if cfg.Syscall == config.ModeOff {
		return nil, nil
	}
	selection, err := probe.NewSelection()
	if u, ok := errors.AsType[*probe.Unsupported](err); ok {
		log.Warn("system calls cannot be traced", "err", u)
		return nil, nil
	}
	return selection, err
}

// newCluster returns what knows the cluster, or nil outside Kubernetes.
func newCluster(cfg config.Config, version string, log *slog.Logger) (*kube.Cluster, error) {
	inside := os.Getenv("KUBERNETES_SERVICE_HOST") != "" || cfg.Kubeconfig != ""
	if cfg.Kubernetes == config.ModeOff || cfg.Kubernetes == config.ModeAuto && !inside {
		return nil, nil
	}
	clients, err := kube.Connect(cfg.Kubeconfig, version)
	if err != nil {
		return nil, fmt.Errorf("use Kubernetes (or say --kubernetes=off): %w", err)
	}
	node, err := agent.NodeName(cfg.NodeName)
	if err != nil {
		return nil, err
	}
	cluster, err := kube.New(kube.Config{
		Clients: clients, Node: node, Log: log,
		OwnOnly: cfg.KubernetesPeers == config.PeersOwn, MaxPods: maxPods(memlimit.FromCgroup),
	})
	if err != nil {
		return nil, fmt.Errorf("use Kubernetes (or say --kubernetes=off): %w", err)
	}
	return cluster, nil
}

// podBytes is what a pod of another node takes, with what the garbage collector leaves, and
// podShare the part of its memory that the agent has for them.
const (
	podBytes = 1536
	podShare = 2
)

// maxPods is of how many pods the agent keeps names, so that it does not die of a large
// cluster, come back and ask for all pods again: 0 for any number, where nothing bounds its
// memory.
func maxPods(limit func() (uint64, error)) int {
	bytes, err := limit()
	if err != nil || bytes == 0 || bytes > math.MaxInt64/2 {
		return 0
	}
	return int(bytes / podShare / podBytes)
}

// Close gives back what New took.
func (h *Host) Close() error {
	err := h.resolver.Close()
	if h.selection != nil {
		err = errors.Join(err, h.selection.Close())
	}
	return err
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
