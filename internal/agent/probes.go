// SPDX-License-Identifier: Apache-2.0

//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/amd"
	"github.com/Ignoramuss/orb8/internal/accel/dcgm"
	"github.com/Ignoramuss/orb8/internal/accel/holders"
	"github.com/Ignoramuss/orb8/internal/accel/neuron"
	"github.com/Ignoramuss/orb8/internal/accel/nvml"
	"github.com/Ignoramuss/orb8/internal/accel/tpu"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/kube"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/cgroup"
	"github.com/Ignoramuss/orb8/internal/probe/dns"
	"github.com/Ignoramuss/orb8/internal/probe/packet"
	"github.com/Ignoramuss/orb8/internal/probe/tcp"
	"github.com/Ignoramuss/orb8/internal/procnet"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// probes is the list of all probes. A new probe is one more call of Add. What a
// reload can change is asked of now; s.Config is as it was at the start.
func probes(s Sink, now func() *config.Config, names *workload.Resolver, clock *probe.Clock) *probe.Manager {
	cgroupRoot, part := names.Mount().Path, names.Part()
	m := probe.NewManager(s.Log)

	// First, so that the others' records find names.
	helper := []probe.Option{probe.Helper()}
	if s.Config.TCP == config.ModeOff && s.Config.Packet == config.ModeOff {
		helper = append(helper, probe.Off("no probe is on that it could help"))
	}
	m.Add(cgroup.New(cgroup.Config{Ready: names.LearnAll, Made: names.Learn, Losses: s.Losses}), helper...)
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
	*Agent
	resolver *workload.Resolver
}

// NewHost returns an agent with orb8's probes for this host. deps may leave
// out all that this function knows: the probes, the resolver and the host's
// facts. Close the Host after Run has returned.
func NewHost(cfg config.Config, deps Deps, log *slog.Logger) (*Host, error) {
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
	var a *Agent
	deps.Probes = func(s Sink) *probe.Manager {
		return probes(s, func() *config.Config { return a.config() }, r, clock)
	}
	if deps.Accelerators == nil && cfg.GPU != config.ModeOff {
		if cluster != nil {
			deps.Kubelet = newKubelet(cfg, cluster, func() bool { return a.hasAccelerators() })
		}
		deps.HiddenPIDs = !workload.SeesPIDs()
		deps.Accelerators = newAccelerators(cfg, &deps, r, cluster, log)
	}
	deps.IsSelf = newSelf(cfg).is
	a, err = New(cfg, deps, log)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &Host{Agent: a, resolver: r}, nil
}

// newKubelet returns what asks this node's kubelet for the holders of devices.
func newKubelet(cfg config.Config, cluster *kube.Cluster, wanted func() bool) *holders.Kubelet {
	socket := cfg.Kubelet
	if socket == "" {
		socket = holders.DefaultSocket
		if below := filepath.Join(cfg.HostRoot, holders.DefaultSocket); exists(below) {
			socket = below
		}
	}
	slices := cluster.ResourceSlices()
	return holders.New(holders.Config{
		Socket: socket, Wanted: wanted,
		Resolve: func(ctx context.Context, driver, pool, device string) (holders.Device, bool) {
			attributes, ok := slices.Attributes(ctx, kube.ResourceDevice{Driver: driver, Pool: pool, Name: device})
			if !ok {
				return holders.Device{}, false
			}
			return holders.FromAttributes(driver, attributes)
		},
		Running: func(namespace, pod string) (runs, known bool) {
			_, runs, known = cluster.Named(namespace, pod)
			return runs, known
		},
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// driverRoot is where the host's root is looked for if nothing is said: that of the
// first process, in a container that sees it and may.
func driverRoot(cfg config.Config) string {
	if cfg.HostRoot != "" || !workload.SeesPIDs() {
		return cfg.HostRoot
	}
	const first = "/proc/1/root"
	var own, host unix.Stat_t
	if unix.Stat("/", &own) != nil || unix.Stat(first+"/", &host) != nil || own.Dev == host.Dev && own.Ino == host.Ino {
		return ""
	}
	return first
}

// acceleratorSources are the backends that read accelerators. A new one is one more
// line.
func acceleratorSources(cfg config.Config, cluster *kube.Cluster, log *slog.Logger) []accel.Source {
	root := driverRoot(cfg)
	sources := []accel.Source{
		{Backend: nvml.New(nvml.Config{HostRoot: root, Log: log})},
		{Backend: amd.New(amd.Config{})},
		{Backend: tpu.New(tpu.Config{})},
		{Backend: neuron.New(neuron.Config{HostRoot: root, Log: log})},
	}
	if cfg.DCGMURL != "off" {
		exporter := dcgm.Config{URL: cfg.DCGMURL, Find: func() ([]string, []string) { return exporters(cluster, cfg.DCGMNamespace) }}
		sources = append(sources, accel.Source{Backend: dcgm.New(exporter), Fills: true})
	}
	return sources
}

// tryTime is how long all backends together may take to be tried.
const tryTime = 5 * time.Second

// TryAccelerators reads the accelerators of this host once, and returns how that went.
func TryAccelerators(ctx context.Context) []accel.Status {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	c := accel.NewCollector(accel.Config{
		Sources:  acceleratorSources(config.Default(), nil, log),
		Interval: func() time.Duration { return tryTime }, Report: func([]accel.Report) {}, Log: log,
		Owner: func(uint32) (*workload.Identity, string) { return nil, "" },
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	for ctx.Err() == nil && !c.Answered() {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	<-done
	return c.Status()
}

// newAccelerators returns what makes the collector.
func newAccelerators(cfg config.Config, deps *Deps, names *workload.Resolver, cluster *kube.Cluster, log *slog.Logger) Accelerators {
	owner := names.Process
	if deps.HiddenPIDs {
		owner = func(uint32) (*workload.Identity, string) { return nil, "" }
	}
	var held func(*accel.Device) []accel.Holder
	if deps.Kubelet != nil {
		held = holdersOf(deps.Kubelet, cluster.Named)
	}
	sources := acceleratorSources(cfg, cluster, log)
	return func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector {
		return accel.NewCollector(accel.Config{
			Sources:  sources,
			Interval: interval, Report: report, Owner: owner, HiddenPIDs: deps.HiddenPIDs, Holders: held, Log: log,
		})
	}
}

// exporters are where a dcgm-exporter of this node may be: in one of its pods, or on
// the host itself. Any pod may have the label of one and any user may listen at its port:
// pods are believed in one namespace only, and on the host root alone. passed says who is
// not.
func exporters(cluster *kube.Cluster, namespace string) (urls, passed []string) {
	l, held, err := procnet.Loopback("/proc", dcgm.LocalPort)
	switch {
	case err != nil:
		passed = append(passed, err.Error())
	case held && l.UID != 0:
		passed = append(passed, fmt.Sprintf("port %d is user %d's, not root's: name it with dcgm_url if it is one", dcgm.LocalPort, l.UID))
	default:
		urls = append(urls, dcgm.LocalURL)
	}
	if cluster == nil || namespace == "" {
		return urls, passed
	}
	for _, addr := range cluster.Addrs(namespace, isExporter) {
		urls = append(urls, "http://"+net.JoinHostPort(addr.String(), "9400")+"/metrics")
	}
	return urls, passed
}

// isExporter goes by the labels of NVIDIA's GPU operator and of the exporter's chart.
func isExporter(labels map[string]string) bool {
	return labels["app"] == "nvidia-dcgm-exporter" || labels["app.kubernetes.io/name"] == "dcgm-exporter" || labels["app.kubernetes.io/name"] == "nvidia-dcgm-exporter"
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
	node, err := nodeName(cfg.NodeName)
	if err != nil {
		return nil, err
	}
	cluster, err := kube.New(kube.Config{Clients: clients, Node: node, Log: log})
	if err != nil {
		return nil, fmt.Errorf("use Kubernetes (or say --kubernetes=off): %w", err)
	}
	return cluster, nil
}

// Close gives back what NewHost took.
func (h *Host) Close() error { return h.resolver.Close() }

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// self recognises the agent's own sockets, and those of orb8 commands that talk
// to it.
type self struct {
	pid   uint32
	netns uint32 // 0 if it is not known
	comm  record.Comm
	ports map[uint16]bool
}

func newSelf(cfg config.Config) self {
	s := self{pid: uint32(os.Getpid()), ports: make(map[uint16]bool)}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/net", &st) == nil {
		s.netns = uint32(st.Ino)
	}
	copy(s.comm[:], "orb8")
	for _, addr := range []string{cfg.Listen, cfg.MetricsListen} {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			continue // empty: nothing is listened on
		}
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			s.ports[uint16(n)] = true
		}
	}
	return s
}

func (s self) is(f *record.Header) bool {
	if f.PID == s.pid {
		return true
	}
	// The loopback interface of another network namespace is another one.
	if f.NetNS != 0 && s.netns != 0 && f.NetNS != s.netns {
		return false
	}
	return f.Loopback && f.Protocol == record.TCP && f.Comm == s.comm && s.ports[f.RemotePort]
}
