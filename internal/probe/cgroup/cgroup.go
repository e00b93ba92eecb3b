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
	"time"
	"unsafe"

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
	// Selection, if set, gets the new cgroups below selected ones and loses those that
	// are removed.
	Selection *probe.Selection
}

// Probe implements probe.Probe.
type Probe struct {
	probe.Object
	cfg  Config
	ring *probe.Ring
}

const name = "cgroup"

// New returns a probe that is not started.
func New(cfg Config) *Probe { return &Probe{cfg: cfg, Object: probe.NewObject(name, cfg.Losses)} }

// Name returns "cgroup".
func (p *Probe) Name() string { return name }

// Start loads and attaches the programs.
func (p *Probe) Start() error {
	if p.cfg.Ready != nil {
		defer p.cfg.Ready()
	}
	return p.Undo(p.start())
}

func (p *Probe) start() error {
	spec, err := loadBpf()
	if err != nil {
		return fmt.Errorf("read the cgroup probe's programs: %w", err)
	}
	if err := p.LoadOn(spec, p.cfg.Selection.Maps(), bpfProgCgroupMkdir, bpfProgCgroupRmdir); err != nil {
		return probe.Explain("the kernel does not take the cgroup probe's programs", err)
	}
	p.Counts(p.Core.Maps[bpfMapCgroupStats], loss.CgroupUntold, loss.CgroupUntold, loss.SelectionFull)
	if p.ring, err = p.Ring(p.Core.Maps[bpfMapCgroupRing], wakeEvery, p.take); err != nil {
		return err
	}
	return errors.Join(
		p.AttachTracing(p.Core.Programs[bpfProgCgroupMkdir], "tp_btf/cgroup_mkdir"),
		p.AttachTracing(p.Core.Programs[bpfProgCgroupRmdir], "tp_btf/cgroup_rmdir"))
}

// wakeEvery bounds how long Run goes on after its context is done.
const wakeEvery = 200 * time.Millisecond

// Run tells of new cgroups, as they are made, until ctx is done.
func (p *Probe) Run(ctx context.Context) error { return p.ring.Run(ctx) }

func (p *Probe) take(raw []byte) {
	id, path, err := decode(raw)
	if err != nil {
		p.cfg.Losses.Add(loss.DecodeFailed, 1)
		return
	}
	p.cfg.Made(id, path)
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
	_, err := p.ReadLosses()
	return err
}
