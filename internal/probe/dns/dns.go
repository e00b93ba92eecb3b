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
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

const (
	// drainEvery is how long a message may wait in the ring.
	drainEvery = 100 * time.Millisecond
	// expireEvery is how often queries without an answer are looked for.
	expireEvery = 100 * time.Millisecond
)

// Config of the probe. Messages, Decode, Submit, Timeout, Losses and Clock are required.
type Config struct {
	// Messages, asked at Start, has the ring of messages, nil if there is none, and says
	// how many did not fit into it until now. The ring's owner closes it, after this
	// probe.
	Messages func() (ring *ebpf.Map, lost func() (uint64, error))
	// Decode reads one record of the ring.
	Decode func(raw []byte, p *dns.Packet) error
	// Submit takes what came of a query. It must not keep the record.
	Submit func(*dns.Record)
	Losses *loss.Counters
	Clock  *probe.Clock
	// Timeout, asked again and again, says how long a query waits for its answer.
	Timeout func() time.Duration
	// Learned, if set, is told which address was found under which name, and by the
	// client in which cgroup.
	Learned func(cgroup uint64, addr netip.Addr, name string)
	// MaxPending bounds the queries that wait; dns.DefaultMaxPending if 0.
	MaxPending int
}

// Probe implements probe.Probe.
type Probe struct {
	probe.Object
	cfg      Config
	ring     *probe.Ring
	readLost func() (uint64, error)

	mu      sync.Mutex // guards what is below
	matcher *dns.Matcher
	packet  dns.Packet
	counted dns.Counts // as reported
	lost    uint64     // as last read
	expired time.Time
}

const name = "dns"

// New returns a probe that is not started.
func New(cfg Config) *Probe {
	p := &Probe{cfg: cfg, Object: probe.NewObject(name, cfg.Losses)}
	p.matcher = dns.NewMatcher(dns.Config{
		Emit: cfg.Submit, Unix: cfg.Clock.Unix, Timeout: cfg.Timeout, MaxPending: cfg.MaxPending, Learned: cfg.Learned,
		Lost: func() uint64 { return p.lost },
	})
	return p
}

// Name returns "dns".
func (p *Probe) Name() string { return name }

// Start opens the ring.
func (p *Probe) Start() error {
	ring, lost := p.cfg.Messages()
	if ring == nil {
		return &probe.Unsupported{
			Reason: "DNS is read where the packet probe counts, and that does not run",
			Remedy: "see why in the packet probe's status; --packet=off turns DNS off as well",
		}
	}
	var err error
	if p.ring, err = p.Ring(ring, drainEvery, p.add); err != nil {
		return p.Undo(err)
	}
	p.ring.Drained, p.readLost = p.expire, lost
	return nil
}

// Run takes messages out of the ring until ctx is done, and once more after that.
// What still waits for its answer then is not told of.
func (p *Probe) Run(ctx context.Context) error { return p.ring.Run(ctx) }

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
	// Before the clock: what is lost was lost by then.
	lost, err := p.readLost()
	if err != nil {
		return fmt.Errorf("read how many DNS messages were lost: %w", err)
	}
	p.lost = lost
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return fmt.Errorf("read the boot clock: %w", err)
	}
	p.matcher.Expire(uint64(boot.Nano()))
	return nil
}

// Collect waits until the messages that are in the ring have been taken in, and
// reads the loss counters. The packet probe has that of the ring.
func (p *Probe) Collect() error {
	err := p.ring.Settle()
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
