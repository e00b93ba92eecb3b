// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package tpu reads Google TPUs: the chips from the PCI bus, who has them from open
// device files, and what they do from the runtime of the workload itself, which serves
// metrics over gRPC in the network namespace of its pod. It has been tested against
// a server written after the runtime's published protocol, not on real hardware.
package tpu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/sysfs"
)

const (
	googleVendor = "0x1ae0"
	// DefaultPort is where the runtime serves its metrics.
	DefaultPort = 8431
	// askTimeout is for one question to one runtime.
	askTimeout = 2 * time.Second
	// scanGap is the least time between two looks at the files that all processes
	// have open.
	scanGap = 10 * time.Second
)

// models by PCI device id.
var models = map[string]string{
	"0x0027": "TPU v2/v3", "0x005e": "TPU v4", "0x0062": "TPU v5p", "0x0063": "TPU v5e", "0x006f": "TPU v6e", "0x0076": "TPU7x",
}

// Config of the backend.
type Config struct {
	// Sys and Proc are where these are mounted. Default /sys and /proc.
	Sys, Proc string
	// Port of the runtime. Default DefaultPort.
	Port int
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Backend implements accel.Backend.
type Backend struct {
	cfg     Config
	scanned time.Time
	users   []user
}

// New returns a backend that has not looked at anything yet.
func New(cfg Config) *Backend {
	cfg.Sys, cfg.Proc, cfg.Port = cmp.Or(cfg.Sys, "/sys"), cmp.Or(cfg.Proc, "/proc"), cmp.Or(cfg.Port, DefaultPort)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Backend{cfg: cfg}
}

// Name returns "tpu".
func (b *Backend) Name() string { return "tpu" }

// Close forgets who uses the chips; nothing is held open.
func (b *Backend) Close() error {
	b.scanned, b.users = time.Time{}, nil
	return nil
}

// chip is one on the bus.
type chip struct {
	device *accel.Device
	// files are the names of its device file: /dev/accel0 or /dev/vfio/11.
	files []string
}

// Read implements accel.Backend.
func (b *Backend) Read(ctx context.Context) ([]accel.Sample, error) {
	chips := b.chips()
	if len(chips) == 0 {
		return nil, &accel.Unsupported{Reason: "no TPU"}
	}
	now := b.cfg.Now()
	if now.Sub(b.scanned) >= scanGap || b.gone() {
		b.users, b.scanned = b.scan(chips), now
	}
	all := make([]accel.Sample, len(chips))
	for i := range all {
		all[i] = accel.Sample{Device: chips[i].device, Time: now, ProcessesKnown: true}
	}
	var asked []string // network namespaces
	for _, u := range b.users {
		for _, i := range u.chips {
			all[i].Processes = append(all[i].Processes, accel.Process{PID: u.pid})
		}
	}
	for _, u := range b.users {
		if slices.Contains(asked, u.netns) {
			continue
		}
		asked = append(asked, u.netns)
		if err := b.ask(ctx, u.pid, b.chipsIn(u.netns), all); err != nil {
			for _, i := range b.chipsIn(u.netns) {
				limit(all[i].Device, "what it does is not known: "+err.Error())
			}
		}
	}
	for i := range all {
		if len(all[i].Processes) == 0 { // nobody has it open
			all[i].Values[accel.Utilization] = accel.Of(0, accel.Runtime)
		}
		for j := range all[i].Processes {
			if p := &all[i].Processes[j]; len(all[i].Processes) == 1 {
				p.Memory, p.Utilization = all[i].Values[accel.MemoryUsed], all[i].Values[accel.Utilization]
			}
		}
	}
	return all, nil
}

// limit replaces what is said of a device, which belongs to this reading.
func limit(d *accel.Device, sentence string) { d.Limits = []string{sentence} }

func (b *Backend) chips() []chip {
	dirs, _ := filepath.Glob(filepath.Join(b.cfg.Sys, "bus/pci/devices/*"))
	slices.Sort(dirs)
	var all []chip
	for _, dir := range dirs {
		if sysfs.Text(dir, "vendor") != googleVendor {
			continue
		}
		model, ok := models[sysfs.Text(dir, "device")]
		if !ok {
			continue // a network card, say
		}
		address := filepath.Base(dir)
		c := chip{device: &accel.Device{
			Vendor: accel.Google, ID: "tpu-" + address, Index: strconv.Itoa(len(all)), Model: model, PCI: address, Minor: -1, Instance: -1,
		}}
		if named, _ := filepath.Glob(filepath.Join(dir, "accel/accel[0-9]*")); len(named) == 1 {
			c.files = append(c.files, "/dev/"+filepath.Base(named[0]))
		}
		if group, err := os.Readlink(filepath.Join(dir, "iommu_group")); err == nil {
			c.files = append(c.files, "/dev/vfio/"+filepath.Base(group))
		}
		all = append(all, c)
	}
	return all
}

// user is a process that has chips open.
type user struct {
	pid   uint32
	start string
	netns string
	chips []int
}

// gone reports whether one of the known users has ended.
func (b *Backend) gone() bool {
	return slices.ContainsFunc(b.users, func(u user) bool { return b.startTime(strconv.Itoa(int(u.pid))) != u.start })
}

// scan looks for processes that have a chip's file open.
func (b *Backend) scan(chips []chip) []user {
	entries, _ := os.ReadDir(b.cfg.Proc)
	var all []user
	for _, e := range entries {
		pid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		dir := filepath.Join(b.cfg.Proc, e.Name())
		u := user{pid: uint32(pid), start: b.startTime(e.Name())}
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			if err != nil || !strings.HasPrefix(target, "/dev/") {
				continue
			}
			i := slices.IndexFunc(chips, func(c chip) bool { return slices.Contains(c.files, target) })
			if i >= 0 && !slices.Contains(u.chips, i) {
				u.chips = append(u.chips, i)
			}
		}
		if len(u.chips) == 0 {
			continue
		}
		slices.Sort(u.chips)
		u.netns, _ = os.Readlink(filepath.Join(dir, "ns/net"))
		all = append(all, u)
	}
	return all
}

// startTime tells a process from a later one of the same number; empty if it has gone.
func (b *Backend) startTime(pid string) string {
	text := sysfs.Text(filepath.Join(b.cfg.Proc, pid), "stat")
	_, rest, ok := strings.Cut(text, ") ") // the command may have anything in it
	if i := strings.LastIndex(text, ") "); ok && i >= 0 {
		rest = text[i+2:]
	}
	if fields := strings.Fields(rest); len(fields) > 19 {
		return fields[19]
	}
	return ""
}

// chipsIn are those that the processes of a network namespace have, in their order.
func (b *Backend) chipsIn(netns string) []int {
	var all []int
	for _, u := range b.users {
		if u.netns == netns {
			all = append(all, u.chips...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// ask asks the runtime in the network namespace of a process what its chips do. A
// runtime counts the chips that it has from 0; chips with two cores, which it counts
// one by one, are joined.
func (b *Backend) ask(ctx context.Context, pid uint32, chips []int, all []accel.Sample) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := dial(b.cfg.Proc, pid, b.cfg.Port)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, q := range []struct {
		name   string
		metric accel.Metric
		times  float64
		mean   bool
	}{
		{"tpu.runtime.hbm.memory.usage.bytes", accel.MemoryUsed, 1, false},
		{"tpu.runtime.hbm.memory.total.bytes", accel.MemoryTotal, 1, false},
		{"tpu.runtime.tensorcore.dutycycle.percent", accel.Utilization, 0.01, true},
	} {
		values, err := query(ctx, conn, q.name)
		if err != nil {
			return explain(err, b.cfg.Port)
		}
		for i, v := range perChip(values, len(chips), q.mean) {
			v.V *= q.times
			if q.metric == accel.Utilization && v.V > 1 {
				v.V = 1
			}
			all[chips[i]].Values[q.metric] = v
		}
	}
	return nil
}

// perChip joins values by the runtime's device numbers to values by chip; nothing if
// their numbers do not fit.
func perChip(values map[int64]float64, chips int, mean bool) []accel.Value {
	if chips == 0 || len(values) == 0 || len(values)%chips != 0 {
		return nil
	}
	cores := len(values) / chips
	all := make([]accel.Value, chips)
	for device, v := range values {
		if device < 0 || device >= int64(len(values)) || !(v >= 0) {
			return nil
		}
		c := &all[int(device)/cores]
		if mean {
			v /= float64(cores)
		}
		*c = accel.Of(c.V+v, accel.Runtime)
	}
	return all
}

// explain says what to do about a runtime that cannot be asked.
func explain(err error, port int) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return errors.New("entering the pod's network namespace takes the capability SYS_ADMIN (extraCapabilities of the chart)")
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the workload's TPU runtime has not answered on port %d in %v", port, askTimeout)
	}
	return fmt.Errorf("ask the workload's TPU runtime on port %d: %w", port, err)
}
