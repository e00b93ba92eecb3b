// SPDX-License-Identifier: Apache-2.0

//go:build linux

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/packet"
	"github.com/Ignoramuss/orb8/internal/probe/tcp"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// probes is the list of all probes. A new probe is one more call of Add. What a
// reload can change is asked of now; s.Config is as it was at the start.
func probes(s Sink, now func() *Config, cgroupRoot string) *probe.Manager {
	clock := probe.NewClock()
	m := probe.NewManager(s.Log)

	tcpProbe := tcp.New(tcp.Config{
		Apply: s.Apply, Losses: s.Losses, Clock: clock, RingBytes: uint32(s.Config.TCPRingBytes),
	})
	packetProbe := packet.New(packet.Config{
		Apply: s.Apply, Losses: s.Losses, Clock: clock, CgroupRoot: cgroupRoot,
		MapEntries: uint32(s.Config.PacketMapEntries),
		Idle:       func() time.Duration { return now().IdleTimeout },
		CountTCP:   func() bool { return s.Config.TCP != ModeOff && !m.Running(tcpProbe.Name()) },
	})

	m.Add(tcpProbe, append(modeOptions(tcpProbe, s.Config.TCP), probe.Fallback(func() (string, bool) {
		return "the packet probe counts TCP per packet, without round-trip times, retransmits and processes",
			m.Running(packetProbe.Name())
	}))...)
	m.Add(packetProbe, modeOptions(packetProbe, s.Config.Packet)...)
	return m
}

func modeOptions(p probe.Probe, m Mode) []probe.Option {
	if m == ModeOff {
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
func NewHost(cfg Config, deps Deps, log *slog.Logger) (*Host, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		// Only kernels before 5.11 need it; there the probes say what fails.
		log.Debug("raise the memlock limit", "err", err)
	}
	r, err := workload.NewResolver(workload.Config{Root: cfg.CgroupRoot})
	if err != nil {
		return nil, fmt.Errorf("find out about cgroups: %w", err)
	}
	root := r.Mount().Path
	deps.Resolver = r
	deps.CgroupRoot = root
	deps.KernelRelease = kernelRelease()
	var a *Agent
	deps.Probes = func(s Sink) *probe.Manager {
		return probes(s, func() *Config { return a.config() }, root)
	}
	deps.IsSelf = newSelf(cfg).is
	a, err = New(cfg, deps, log)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &Host{Agent: a, resolver: r}, nil
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
	comm  flow.Comm
	ports map[uint16]bool
}

func newSelf(cfg Config) self {
	s := self{pid: uint32(os.Getpid()), ports: make(map[uint16]bool)}
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

func (s self) is(f *flow.Sample) bool {
	if f.PID == s.pid {
		return true
	}
	return f.Loopback && f.Protocol == flow.TCP && f.Comm == s.comm && s.ports[f.RemotePort]
}
