// SPDX-License-Identifier: Apache-2.0

// Package amd reads AMD GPUs from what the amdgpu driver shows in sysfs: the device
// itself, its sensors (hwmon) and the processes of its compute half (KFD). It has
// been tested with trees of files written after the kernel's documentation
// (Documentation/gpu/amdgpu), not on real hardware.
package amd

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/sysfs"
)

// Config of the backend.
type Config struct {
	// Sys is where sysfs is mounted. Default /sys.
	Sys string
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Backend implements accel.Backend. It holds nothing open.
type Backend struct{ cfg Config }

// New returns a backend.
func New(cfg Config) *Backend {
	cfg.Sys = cmp.Or(cfg.Sys, "/sys")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Backend{cfg}
}

// Name returns "amd".
func (b *Backend) Name() string { return "amd" }

// Close does nothing.
func (b *Backend) Close() error { return nil }

const (
	amdVendor  = "0x1002"
	micro      = 1e-6
	thousandth = 1e-3
)

// Read implements accel.Backend.
func (b *Backend) Read(ctx context.Context) ([]accel.Sample, error) {
	cards, err := filepath.Glob(filepath.Join(b.cfg.Sys, "class/drm/card[0-9]*"))
	if err != nil {
		return nil, err
	}
	kfd := b.kfd()
	var all []accel.Sample
	for _, card := range cards {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		dir := filepath.Join(card, "device")
		if strings.Contains(filepath.Base(card), "-") || sysfs.Text(dir, "vendor") != amdVendor {
			continue // a connector, or another vendor's
		}
		if sysfs.Text(dir, "mem_info_vram_total") == "" {
			continue // not driven by amdgpu
		}
		all = append(all, b.sample(card, dir, kfd))
	}
	if len(all) == 0 {
		return nil, &accel.Unsupported{Reason: "no AMD GPU with the amdgpu driver"}
	}
	// Cards are numbered with those of other vendors; AMD's tools count from 0, by
	// bus address.
	slices.SortFunc(all, func(a, b accel.Sample) int { return cmp.Compare(a.Device.PCI, b.Device.PCI) })
	for i := range all {
		all[i].Device.Index = strconv.Itoa(i)
	}
	return all, nil
}

func (b *Backend) sample(card, dir string, kfd *kfd) accel.Sample {
	d := b.device(card, dir)
	s := accel.Sample{Device: d, Time: b.cfg.Now()}
	v := &s.Values
	v[accel.Utilization] = sysfs.Percent(dir, "gpu_busy_percent")
	s.Momentary = v[accel.Utilization].Known()
	v[accel.CopyUtilization] = sysfs.Percent(dir, "mem_busy_percent")
	v[accel.MemoryUsed] = sysfs.Number(1, dir, "mem_info_vram_used")
	v[accel.MemoryTotal] = sysfs.Number(1, dir, "mem_info_vram_total")
	v[accel.PCIeReplays] = sysfs.Number(1, dir, "pcie_replay_count")
	errorsOf(dir, v)
	sensors(dir, v)
	if gpu, ok := kfd.gpus[d.PCI]; ok {
		s.Processes, s.ProcessesKnown = kfd.processes(gpu)
	}
	if !s.ProcessesKnown {
		d.Limits = append(d.Limits, "no processes: there is no KFD entry of this GPU")
	}
	return s
}

func (b *Backend) device(card, dir string) *accel.Device {
	d := &accel.Device{Vendor: accel.AMD, Minor: -1, Instance: -1, Limits: []string{
		"no activity of compute units, matrix cores and memory bandwidth by process: the driver does not tell it",
	}}
	d.PCI = strings.ToLower(sysfs.Field("PCI_SLOT_NAME", dir, "uevent"))
	if d.PCI == "" {
		if target, err := filepath.EvalSymlinks(dir); err == nil {
			d.PCI = filepath.Base(target)
		}
	}
	d.ID = d.PCI
	if id := sysfs.Text(dir, "unique_id"); id != "" {
		d.ID = "amd-" + strings.TrimPrefix(id, "0x")
	}
	d.Model = cmp.Or(sysfs.Text(dir, "product_name"), "AMD GPU "+strings.TrimPrefix(sysfs.Text(dir, "device"), "0x"))
	d.Driver = cmp.Or(sysfs.Text(b.cfg.Sys, "module/amdgpu/version"), "amdgpu")
	if mode := sysfs.Text(dir, "current_compute_partition"); mode != "" && mode != "SPX" {
		d.Limits = append(d.Limits, "it is partitioned ("+mode+"): values are of the whole device, its partitions are not told apart")
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(card), "card")); err == nil {
		d.Minor = n
	}
	return d
}

// errorsOf adds up the error counts of all blocks: files of lines "ue: 0", "ce: 0".
func errorsOf(dir string, v *accel.Values) {
	files, _ := filepath.Glob(filepath.Join(dir, "ras", "*_err_count"))
	for _, f := range files {
		for key, m := range map[string]accel.Metric{"ue": accel.ECCUncorrected, "ce": accel.ECCCorrected} {
			if n, err := strconv.ParseUint(sysfs.Field(key, filepath.Dir(f), filepath.Base(f)), 10, 64); err == nil {
				v[m] = accel.Of(v[m].V+float64(n), accel.Driver)
			}
		}
	}
}

// sensors reads the hwmon of a device.
func sensors(dir string, v *accel.Values) {
	all, _ := filepath.Glob(filepath.Join(dir, "hwmon/hwmon*"))
	for _, h := range all {
		v[accel.PowerUsage] = sysfs.Number(micro, h, "power1_average").Or(sysfs.Number(micro, h, "power1_input"))
		v[accel.PowerLimit] = sysfs.Number(micro, h, "power1_cap")
		v[accel.Energy] = sysfs.Number(micro, h, "energy1_input")
		labelled(h, "temp", func(label string, value accel.Value) {
			switch label {
			case "edge", "junction":
				if value.V >= v[accel.Temperature].V {
					v[accel.Temperature] = value
				}
			case "mem":
				v[accel.MemoryTemperature] = value
			}
		}, thousandth)
		labelled(h, "freq", func(label string, value accel.Value) {
			switch label {
			case "sclk":
				v[accel.SMClock] = value
			case "mclk":
				v[accel.MemoryClock] = value
			}
		}, 1)
	}
}

// labelled yields the sensors of a kind that say what they measure.
func labelled(dir, kind string, yield func(label string, value accel.Value), factor float64) {
	files, _ := filepath.Glob(filepath.Join(dir, kind+"[0-9]*_label"))
	for _, f := range files {
		if value := sysfs.Number(factor, strings.TrimSuffix(f, "_label")+"_input"); value.Known() {
			yield(sysfs.Text(f), value)
		}
	}
}

// kfd is the compute half of the driver: its numbers of GPUs by bus address, and
// where processes are.
type kfd struct {
	gpus map[string]string
	proc string
}

func (b *Backend) kfd() *kfd {
	root := filepath.Join(b.cfg.Sys, "class/kfd/kfd")
	k := &kfd{gpus: make(map[string]string), proc: filepath.Join(root, "proc")}
	nodes, _ := filepath.Glob(filepath.Join(root, "topology/nodes/*"))
	for _, n := range nodes {
		id := sysfs.Text(n, "gpu_id")
		location, err := strconv.ParseUint(sysfs.Field("location_id", n, "properties"), 10, 32)
		if id == "" || id == "0" || err != nil {
			continue // a CPU
		}
		domain, _ := strconv.ParseUint(sysfs.Field("domain", n, "properties"), 10, 32) // 0 before Linux 5.10
		address := pciAddress(domain, location)
		if k.gpus[address] == "" { // partitions of one device have nodes of their own
			k.gpus[address] = id
		}
	}
	return k
}

// pciAddress writes bus << 8 | device << 3 | function as sysfs does.
func pciAddress(domain, location uint64) string {
	hex := func(n uint64, width int) string {
		s := strconv.FormatUint(n, 16)
		return strings.Repeat("0", max(width-len(s), 0)) + s
	}
	return hex(domain, 4) + ":" + hex(location>>8&0xff, 2) + ":" + hex(location>>3&0x1f, 2) + "." + hex(location&7, 1)
}

// processes are those that have the GPU open for computing.
func (k *kfd) processes(gpu string) (all []accel.Process, known bool) {
	entries, err := os.ReadDir(k.proc)
	if err != nil {
		return nil, false
	}
	for _, e := range entries {
		pid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		memory := sysfs.Number(1, k.proc, e.Name(), "vram_"+gpu)
		if !memory.Known() || memory.V == 0 && !k.queues(e.Name(), gpu) {
			continue // it has opened the driver, and not this GPU
		}
		memory.Method = accel.PerProcess
		all = append(all, accel.Process{PID: uint32(pid), Memory: memory})
	}
	return all, true
}

// queues reports whether a process has a queue on a GPU.
func (k *kfd) queues(pid, gpu string) bool {
	files, _ := filepath.Glob(filepath.Join(k.proc, pid, "queues/*/gpuid"))
	return slices.ContainsFunc(files, func(f string) bool { return sysfs.Text(f) == gpu })
}
