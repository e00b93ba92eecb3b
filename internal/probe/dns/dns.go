// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package dns reads the DNS messages that the packet probe copies, and tells of
// queries with what came of them. It has no program of its own, and knows nothing of
// who asks.
package dns

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/Ignoramuss/orb8/internal/dns"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// expireEvery is how often queries without an answer are looked for.
const expireEvery = 100 * time.Millisecond

// Config of the probe. Ring, Decode, Note, Losses and Clock are required.
type Config struct {
	// Ring, asked at Start, has the messages; nil if there are none. Its owner closes
	// it, after this probe.
	Ring func() *ebpf.Map
	// Decode reads one record of the ring.
	Decode func(raw []byte, p *dns.Packet) error
	// Note takes what came of a query. It must not keep the sample.
	Note   func(*flow.Sample, flow.Detail)
	Losses *loss.Counters
	Clock  *probe.Clock
	// Timeout, asked again and again, says how long a query waits for its answer.
	Timeout func() time.Duration
	// Lost, if set, asked again and again, is how many messages did not fit into the
	// ring until now.
	Lost func() (uint64, error)
	// Learned, if set, is told which address was found under which name, and by the
	// client in which cgroup.
	Learned func(cgroup uint64, addr netip.Addr, name string)
	// MaxPending bounds the queries that wait; dns.DefaultMaxPending if 0.
	MaxPending int
}

// Probe implements probe.Probe.
type Probe struct {
	cfg Config

	mu      sync.Mutex // guards what is below
	ring    *probe.Ring
	matcher *dns.Matcher
	packet  dns.Packet
	counted dns.Counts // as reported
	lost    uint64     // as last asked
	expired time.Time
}

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	p := &Probe{cfg: cfg}
	p.matcher = dns.NewMatcher(dns.Config{
		Emit:    func(s *flow.Sample, x *dns.Exchange) { cfg.Note(s, x) },
		Unix:    cfg.Clock.Unix,
		Timeout: cfg.Timeout, MaxPending: cfg.MaxPending, Learned: cfg.Learned,
		Lost: func() uint64 { return p.lost },
	})
	return p
}

// Name returns "dns".
func (p *Probe) Name() string { return "dns" }

// Hooks returns nothing: the packet probe's are used.
func (p *Probe) Hooks() []string { return nil }

// Degraded returns nil: there are no optional parts.
func (p *Probe) Degraded() []string { return nil }

// Start opens the ring.
func (p *Probe) Start() error {
	ring := p.cfg.Ring()
	if ring == nil {
		return &probe.Unsupported{
			Reason: "DNS is read where the packet probe counts, and that does not run",
			Remedy: "see why in the packet probe's status; --packet=off turns DNS off as well",
		}
	}
	r, err := probe.NewRing(ring, probe.RingConfig{
		Name: "the ring buffer of DNS messages", Take: p.add, Drained: p.expire,
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ring = r
	return nil
}

// Run takes messages out of the ring until ctx is done, and once more after that.
// What still waits for its answer then is not told of.
func (p *Probe) Run(ctx context.Context) error { return p.opened().Run(ctx) }

func (p *Probe) add(raw []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cfg.Decode(raw, &p.packet); err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.matcher.Add(&p.packet)
}

// expire gives up the queries whose time is over. It is called when the ring is
// empty: an answer that has come in time is never too late.
func (p *Probe) expire() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.expired) < expireEvery {
		return nil
	}
	p.expired = now
	if p.cfg.Lost != nil { // before the clock: what is lost was lost by then
		lost, err := p.cfg.Lost()
		if err != nil {
			return err
		}
		p.lost = lost
	}
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return fmt.Errorf("read the boot clock: %w", err)
	}
	p.matcher.Expire(uint64(boot.Nano()))
	return nil
}

// Flush returns when all messages that are in the ring have been taken in, but after
// a moment at the latest.
func (p *Probe) Flush() error {
	if r := p.opened(); r != nil {
		return r.Flush()
	}
	return nil
}

// opened returns the ring; nil if the probe is not started.
func (p *Probe) opened() *probe.Ring {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ring
}

// Collect waits until the messages that are in the ring have been taken in, and
// reads the loss counters. The packet probe has that of the ring.
func (p *Probe) Collect() error {
	err := p.Flush()
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.matcher.Counts()
	p.cfg.Losses.Add(loss.DNSUncopied, now.Uncopied-p.counted.Uncopied)
	p.cfg.Losses.Add(loss.DNSPendingFull, now.Crowded-p.counted.Crowded)
	p.cfg.Losses.Add(loss.DNSSearchesFull, now.Forgotten-p.counted.Forgotten)
	p.counted = now
	return err
}

// Counts returns how many messages there were until now.
func (p *Probe) Counts() dns.Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.matcher.Counts()
}

// Close closes the reader.
func (p *Probe) Close() error {
	p.mu.Lock()
	r := p.ring
	p.ring = nil
	p.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.Close()
}
