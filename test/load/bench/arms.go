// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	queries "github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/naming"
	"github.com/Ignoramuss/orb8/internal/probe"
	"github.com/Ignoramuss/orb8/internal/probe/dns"
	"github.com/Ignoramuss/orb8/internal/probe/packet"
	"github.com/Ignoramuss/orb8/internal/probe/tcp"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// arm is one of the things that are compared.
type arm struct {
	name        string
	tcp, packet bool
	// dns has the packet probe copy DNS messages, which it does unless it is told not to.
	dns bool
	// tracing has tracing programs tell of connections, as where there is no cgroup2.
	tracing bool
	// empty attaches programs that do nothing where packet attaches its own.
	empty bool
	// exec attaches the exec probe.
	exec bool
	// calls traces the system calls of a container that is not there.
	calls bool
	// probed is the time that the arm has been attached since it last read the
	// kernel: it does so each second, as an agent that is being followed.
	probed time.Duration
}

const (
	armNone     = "none"
	armControl  = "control"
	armTCP      = "--packet=off"
	armTracing  = "tracing"
	armAll      = "everything on"
	armNoDNS    = "--dns=off"
	armFallback = "fallback"
	armEmpty    = "empty programs"
)

func (a *arm) attaches() bool { return a.tcp || a.packet || a.empty || a.exec || a.calls }

func newArms() []*arm {
	return []*arm{
		{name: armNone},
		{name: armControl},
		{name: armTCP, tcp: true},
		{name: armTracing, tcp: true, tracing: true},
		{name: armAll, tcp: true, packet: true, dns: true},
		{name: armNoDNS, tcp: true, packet: true},
		{name: armFallback, packet: true},
		{name: armEmpty, empty: true},
	}
}

// host is what the probes need of this machine.
type host struct {
	resolver *workload.Resolver
	clock    *probe.Clock
}

func newHost() (*host, error) {
	r, err := workload.NewResolver(workload.Config{})
	if err != nil {
		return nil, err
	}
	return &host{resolver: r, clock: probe.NewClock()}, nil
}

func (h *host) cgroupRoot() string { return h.resolver.Mount().Path }

// attached is an arm at work: its probes, and the goroutines that read them.
type attached struct {
	arm    *arm
	probes []probe.Probe
	table  *flow.Table
	empty  io.Closer // or nil
	cancel context.CancelFunc
	group  errgroup.Group
}

const collectEvery = time.Second

// attach starts the arm's probes and what an agent does with them.
func (h *host) attach(ctx context.Context, a *arm) (*attached, error) {
	losses := new(loss.Counters)
	var lane *naming.Lane[flow.Record]
	t := flow.NewTable(flow.Config{MaxFlows: 100_000, IdleTimeout: 30 * time.Second, Losses: losses},
		func(r *flow.Record) { lane.Submit(r) })
	lane = naming.NewLane(naming.New(naming.Config{Resolver: h.resolver, Losses: losses}),
		func(r *flow.Record) *record.Header { return &r.Header }, func(*flow.Record) {}, t.Named)
	at := &attached{arm: a, table: t}
	if a.tcp {
		cfg := tcp.Config{Apply: t.Apply, Losses: losses, Clock: h.clock, CgroupRoot: h.cgroupRoot()}
		if a.tracing {
			cfg.CgroupRoot = ""
		}
		at.probes = append(at.probes, tcp.New(cfg))
	}
	if a.packet {
		at.probes = append(at.probes, h.packetProbes(a, t, losses)...)
	}
	if a.exec {
		p, err := h.execProbe(losses)
		if err != nil {
			return nil, err
		}
		at.probes = append(at.probes, p)
	}
	if a.calls {
		p, err := h.callProbe(losses)
		if err != nil {
			return nil, err
		}
		at.probes = append(at.probes, p)
	}
	for i, p := range at.probes {
		if err := p.Start(); err != nil {
			at.probes = at.probes[:i]
			return nil, errors.Join(err, at.closeProbes())
		}
	}
	if a.empty {
		var err error
		if at.empty, err = attachEmpty(h.cgroupRoot()); err != nil {
			return nil, err
		}
	}
	ctx, at.cancel = context.WithCancel(ctx)
	for _, p := range at.probes {
		at.group.Go(func() error { return p.Run(ctx) })
	}
	at.group.Go(func() error { return at.collect(ctx) })
	return at, nil
}

func (h *host) packetProbes(a *arm, t *flow.Table, losses *loss.Counters) []probe.Probe {
	cfg := packet.Config{
		Apply: t.Apply, Losses: losses, Clock: h.clock, CgroupRoot: h.cgroupRoot(),
		CountTCP: func() bool { return !a.tcp },
	}
	if !a.dns {
		return []probe.Probe{packet.New(cfg)}
	}
	cfg.DNSPorts = []uint16{dnsServer}
	p := packet.New(cfg)
	return []probe.Probe{p, dns.New(dns.Config{
		Messages: p.DNSMessages, Decode: packet.DecodeDNS, Submit: func(*queries.Record) {}, Losses: losses,
		Clock: h.clock, Timeout: func() time.Duration { return 5 * time.Second },
	})}
}

func (at *attached) collect(ctx context.Context) error {
	begin := time.Now()
	defer func() { at.arm.probed += time.Since(begin) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(collectEvery - at.arm.probed - time.Since(begin)):
		}
		begin, at.arm.probed = time.Now(), 0
		for _, p := range at.probes {
			if err := p.Collect(); err != nil {
				return err
			}
		}
		at.table.Expire(time.Now())
	}
}

// detach takes everything out of the kernel again.
func (at *attached) detach() error {
	at.cancel()
	return errors.Join(at.group.Wait(), at.closeProbes())
}

func (at *attached) closeProbes() error {
	var errs []error
	if at.empty != nil {
		errs = append(errs, at.empty.Close())
	}
	for i := len(at.probes) - 1; i >= 0; i-- {
		errs = append(errs, at.probes[i].Close())
	}
	return errors.Join(errs...)
}
