// SPDX-License-Identifier: Apache-2.0

// Package neuron reads AWS Trainium and Inferentia: from the stream of neuron-monitor,
// which it runs, or where that is not installed from the Neuron driver's sysfs, which
// tells less. It has been tested with streams and trees written after the Neuron
// documentation, not on real hardware.
package neuron

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/sysfs"
)

// monitorPath is where the Neuron tools install it.
const monitorPath = "opt/aws/neuron/bin/neuron-monitor"

// Config of the backend.
type Config struct {
	// HostRoot is where the host's root is mounted; empty for this one's.
	HostRoot string
	// Sys is where sysfs is mounted. Default /sys.
	Sys string
	// Monitor is the path of neuron-monitor; looked for if empty. "-" for none.
	Monitor string
	Log     *slog.Logger
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Backend implements accel.Backend.
type Backend struct {
	cfg    Config
	stream *stream // nil while neuron-monitor does not run
}

// New returns a backend that has not started anything yet.
func New(cfg Config) *Backend {
	cfg.Sys = cmp.Or(cfg.Sys, "/sys")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Backend{cfg: cfg}
}

// Name returns "neuron".
func (b *Backend) Name() string { return "neuron" }

// Close ends neuron-monitor.
func (b *Backend) Close() error {
	if b.stream == nil {
		return nil
	}
	err := b.stream.close()
	b.stream = nil
	return err
}

// Read implements accel.Backend.
func (b *Backend) Read(ctx context.Context) ([]accel.Sample, error) {
	present := b.present()
	if len(present) == 0 {
		return nil, errors.Join(&accel.Unsupported{Reason: "no Neuron device"}, b.Close())
	}
	monitor := b.cfg.Monitor
	if monitor == "" {
		monitor = filepath.Join("/", b.cfg.HostRoot, monitorPath)
	}
	if info, err := os.Stat(monitor); err != nil || !info.Mode().IsRegular() {
		return b.fromSysfs(present), nil
	}
	if b.stream == nil {
		var err error
		if b.stream, err = start(monitor); err != nil { //nolint:contextcheck // it outlives the reading
			return nil, fmt.Errorf("run %s: %w", monitor, err)
		}
	}
	line, at, err := b.stream.latest(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read from %s: %w", monitor, err), b.Close())
	}
	report, err := parse(line)
	if err != nil {
		return nil, fmt.Errorf("read from %s: %w", monitor, err)
	}
	samples := report.samples(at)
	if len(samples) == 0 { // it does not say how many there are
		return b.fromSysfs(present), nil
	}
	for i := range samples {
		b.describe(samples[i].Device)
	}
	return samples, nil
}

func (b *Backend) dir() string { return filepath.Join(b.cfg.Sys, "devices/virtual/neuron_device") }

// present are the numbers of the devices that the driver shows.
func (b *Backend) present() []int {
	dirs, _ := filepath.Glob(filepath.Join(b.dir(), "neuron[0-9]*"))
	var all []int
	for _, d := range dirs {
		if n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), "neuron")); err == nil {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all
}

// describe adds what the driver knows of a device.
func (b *Backend) describe(d *accel.Device) {
	info := filepath.Join(b.dir(), "neuron"+d.Index, "info")
	if serial := sysfs.Text(info, "serial_number"); serial != "" {
		d.ID = "neuron-" + serial
	}
	d.Model = cmp.Or(sysfs.Text(info, "architecture/device_name"), d.Model)
	d.Driver = sysfs.Text(b.cfg.Sys, "module/neuron/version")
}

// fromSysfs reads what the driver tells without neuron-monitor. A write to these files
// would set them to 0.
func (b *Backend) fromSysfs(present []int) []accel.Sample {
	all := make([]accel.Sample, 0, len(present))
	for _, n := range present {
		dir := filepath.Join(b.dir(), fmt.Sprint("neuron", n))
		s := accel.Sample{Device: newDevice(n), Time: b.cfg.Now()}
		b.describe(s.Device)
		s.Device.Limits = append(s.Device.Limits, "no utilization and no processes: neuron-monitor is not installed in /"+monitorPath)
		cores, _ := filepath.Glob(filepath.Join(dir, "neuron_core[0-9]*"))
		for _, core := range cores {
			if v := sysfs.Number(1, core, "stats/memory_usage/device_mem/present"); v.Known() {
				s.Values[accel.MemoryUsed] = accel.Of(s.Values[accel.MemoryUsed].V+v.V, accel.Driver)
			}
		}
		memory, sram := sysfs.Number(1, dir, "stats/hardware/mem_ecc_uncorrected"), sysfs.Number(1, dir, "stats/hardware/sram_ecc_uncorrected")
		if memory.Known() || sram.Known() {
			s.Values[accel.ECCUncorrected] = accel.Of(memory.V+sram.V, accel.Driver)
		}
		all = append(all, s)
	}
	return all
}

func newDevice(n int) *accel.Device {
	return &accel.Device{
		Vendor: accel.AWS, ID: fmt.Sprint("neuron", n), Index: strconv.Itoa(n), Model: "AWS Neuron device", Minor: n, Instance: -1,
	}
}
