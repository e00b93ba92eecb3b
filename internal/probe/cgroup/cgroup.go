// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package cgroup tells of new cgroups as they are made. It makes nothing of
// their paths.
package cgroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe"
)

// Config of the probe. Made and Losses are required.
type Config struct {
	// Ready, if set, is called by Start once new cgroups are told of, or cannot be:
	// those that are there already may be looked at.
	Ready func()
	// Made is told of a new cgroup: its id, and its path below the root of the
	// cgroup2 hierarchy, beginning with a slash. It is called from Run.
	Made   func(id uint64, path string)
	Losses *loss.Counters
}

// Probe implements probe.Probe.
type Probe struct {
	cfg     Config
	closers []io.Closer // in the order in which they were made
	hooks   []string
	ring    *ringbuf.Reader
	stats   *ebpf.Map
	tracing probe.Tracing
	lost    [bpfCgroupStatSTAT_MAX]uint64 // as last read from the kernel
}

// New returns a probe that is not started.
func New(cfg Config) *Probe { return &Probe{cfg: cfg} }

// Name returns "cgroup".
func (p *Probe) Name() string { return "cgroup" }

// Hooks lists what is attached.
func (p *Probe) Hooks() []string { return p.hooks }

// Degraded returns nil: there are no optional parts.
func (p *Probe) Degraded() []string { return nil }

// Start loads and attaches the program.
func (p *Probe) Start() error {
	if p.cfg.Ready != nil {
		defer p.cfg.Ready()
	}
	return probe.OrClose(p.start(), p.Close)
}

func (p *Probe) start() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the cgroup probe's program: %w", err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return probe.Explain("the kernel does not take the cgroup probe's program", err)
	}
	p.closers = append(p.closers, probe.CloseFunc(coll.Close))
	p.stats = coll.Maps[bpfMapCgroupStats]
	if p.ring, err = ringbuf.NewReader(coll.Maps[bpfMapCgroupRing]); err != nil {
		return fmt.Errorf("open the cgroup probe's ring buffer: %w", err)
	}
	p.closers = append(p.closers, p.ring)
	const hook = "tp_btf/cgroup_mkdir"
	l, err := p.tracing.Attach(coll.Programs[bpfProgCgroupMkdir])
	if err != nil {
		return probe.Explain("attach "+hook, err)
	}
	p.closers = append(p.closers, l)
	p.hooks = append(p.hooks, hook)
	return nil
}

// wakeEvery bounds how long Run goes on after its context is done.
const wakeEvery = 200 * time.Millisecond

// Run tells of new cgroups, as they are made, until ctx is done.
func (p *Probe) Run(ctx context.Context) error {
	var rec ringbuf.Record
	for ctx.Err() == nil {
		p.ring.SetDeadline(time.Now().Add(wakeEvery))
		err := p.ring.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the cgroup probe's ring buffer: %w", err)
		}
		id, path, err := decode(rec.RawSample)
		if err != nil {
			p.cfg.Losses.Add(loss.DecodeFailed, 1)
			continue
		}
		p.cfg.Made(id, path)
	}
	return nil
}

// decode reads one record of the ring.
func decode(raw []byte) (id uint64, path string, err error) {
	const at = unsafe.Offsetof(bpfCgroupMade{}.Path)
	if len(raw) < int(unsafe.Sizeof(bpfCgroupMade{})) {
		return 0, "", fmt.Errorf("record of %d bytes, want %d", len(raw), unsafe.Sizeof(bpfCgroupMade{}))
	}
	text := raw[at:]
	end := bytes.IndexByte(text, 0)
	if end <= 0 || text[0] != '/' {
		return 0, "", errors.New("the path does not begin with a slash or has no end")
	}
	return binary.NativeEndian.Uint64(raw), string(text[:end]), nil
}

// Collect reads the loss counters.
func (p *Probe) Collect() error {
	skips, err := p.tracing.Skips()
	if err != nil {
		return err
	}
	p.cfg.Losses.Add(loss.ProgramSkipped, skips)
	var total [bpfCgroupStatSTAT_MAX]uint64
	if err := probe.ReadCounters(p.stats, total[:]); err != nil {
		return fmt.Errorf("read the cgroup probe's loss counters: %w", err)
	}
	for i := range total {
		p.cfg.Losses.Add(loss.CgroupUntold, total[i]-p.lost[i])
	}
	p.lost = total
	return nil
}

// Close detaches and unloads everything.
func (p *Probe) Close() error {
	err := probe.CloseAll(p.closers)
	p.closers, p.hooks = nil, nil
	return err
}
