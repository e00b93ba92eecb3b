// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package nvml

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// Backend implements accel.Backend.
type Backend struct {
	cfg    Config
	lib    nvml.Interface // nil while closed
	path   string
	driver string
	has    map[string]bool // functions that were looked up
	gpus   []*gpu
	// count is how many there were when they were listed, also those that could
	// not be opened.
	count  int
	listed time.Time
	errors *errorLog
}

// retryMissing is how long after a device that could not be opened is tried again.
const retryMissing = 30 * time.Second

// gpu is one device with what is kept of it between two readings.
type gpu struct {
	handle nvml.Device
	device *accel.Device
	gpm    *gpm
	// seen is when the driver took the latest sample of a process that was used,
	// in its own microseconds; each device has its own.
	seen  uint64
	parts map[string]*part // by UUID
}

// part is a MIG instance.
type part struct {
	handle   nvml.Device
	device   *accel.Device
	instance int
	gpm      *gpm
}

// New returns a backend that has not loaded anything yet.
func New(cfg Config) *Backend { return &Backend{cfg: cfg.withDefaults()} }

// Name returns "nvml".
func (b *Backend) Name() string { return "nvml" }

// Read implements accel.Backend.
func (b *Backend) Read(ctx context.Context) ([]accel.Sample, error) {
	if b.lib == nil {
		if err := b.open(); err != nil {
			return nil, err
		}
	}
	n, ret := b.lib.DeviceGetCount()
	missing := len(b.gpus) < b.count && b.cfg.Now().Sub(b.listed) > retryMissing
	if ret != nvml.SUCCESS || n != b.count || missing {
		// Something came or went: all handles are got anew.
		if err := errors.Join(b.Close(), b.open()); err != nil {
			return nil, err
		}
	}
	var all []accel.Sample
	lost := false
	for _, g := range b.gpus {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r := reader{b: b}
		samples := r.gpu(g)
		if r.lost {
			b.cfg.Log.Warn("GPU is lost", "gpu", g.device.ID)
			lost = true
			continue
		}
		all = append(all, samples...)
	}
	b.errors.deliver(all)
	if lost {
		return all, b.Close() // and begun anew, without it
	}
	return all, nil
}

// open loads the library and finds the devices.
func (b *Backend) open() error {
	b.path = b.cfg.Library
	if b.path == "" {
		// What a container runtime has put into this container fits it best.
		b.path = cmp.Or(find(""), find(b.cfg.HostRoot))
	}
	if b.path == "" {
		return &accel.Unsupported{Reason: fmt.Sprintf("no %s in %s", libraryName, strings.Join(places(), ", "))}
	}
	lib := nvml.New(nvml.WithLibraryPath(b.path))
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return b.refused(ret)
	}
	b.lib, b.has = lib, make(map[string]bool)
	b.driver, _ = call(&reader{b: b}, "nvmlSystemGetDriverVersion", lib.SystemGetDriverVersion)
	err := b.list()
	if err == nil && b.count == 0 {
		err = &accel.Unsupported{Reason: "the NVIDIA driver knows no GPU"}
	}
	if err != nil {
		return errors.Join(err, b.Close())
	}
	b.errors = newErrorLog(b)
	return nil
}

// refused explains why the library cannot be used.
func (b *Backend) refused(ret nvml.Return) error {
	err := fmt.Errorf("nvmlInit: %s", describe(ret))
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return &accel.Unsupported{Reason: "load " + b.path, Remedy: "the library is for another architecture or C library: use the container image", Err: err}
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return &accel.Unsupported{Reason: "the NVIDIA driver is not loaded", Remedy: "load it (modprobe nvidia), or see dmesg for why it was not", Err: err}
	case nvml.ERROR_NO_PERMISSION:
		return &accel.Unsupported{Reason: "no permission to use the NVIDIA driver", Remedy: "the agent needs /dev/nvidiactl and /dev/nvidia*: run it as root, in a pod with the host's /dev", Err: err}
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return &accel.Unsupported{Reason: b.path + " and the loaded NVIDIA driver are of different versions", Remedy: "restart the host, or reload the driver", Err: err}
	}
	return err
}

// describe is the error's name without the library, which may not be there.
func describe(ret nvml.Return) string { return fmt.Sprintf("NVML error %d", int(ret)) }

func (b *Backend) list() error {
	n, ret := b.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return fmt.Errorf("count GPUs: %s", describe(ret))
	}
	b.count, b.listed = n, b.cfg.Now()
	for i := range n {
		h, ret := b.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			b.cfg.Log.Warn("GPU cannot be opened", "index", i, "err", describe(ret))
			continue
		}
		r := reader{b: b}
		g := &gpu{handle: h, parts: make(map[string]*part)}
		if g.device = r.describe(h, i); g.device == nil {
			continue
		}
		if b.lookup("nvmlGpmQueryDeviceSupport") && b.lookup("nvmlGpmMetricsGet") {
			if s, ret := h.GpmQueryDeviceSupport(); ret == nvml.SUCCESS && s.IsSupportedDevice != 0 {
				g.gpm = &gpm{b: b}
			}
		}
		if g.gpm == nil {
			g.device.Limits = append(g.device.Limits,
				"no activity of multiprocessors, tensor cores and memory: GPM needs Hopper or later; a dcgm-exporter on the node can add them")
		}
		b.gpus = append(b.gpus, g)
	}
	return nil
}

// lookup reports whether the library has a function, in any version: calling one
// that it lacks ends the process.
func (b *Backend) lookup(function string) bool {
	has, known := b.has[function]
	if !known {
		for _, version := range []string{"", "_v2", "_v3"} {
			has = has || b.lib.Extensions().LookupSymbol(function+version) == nil
		}
		b.has[function] = has
	}
	return has
}

// Close gives back all handles and the library.
func (b *Backend) Close() error {
	if b.lib == nil {
		return nil
	}
	for _, g := range b.gpus {
		g.gpm.free()
		for _, p := range g.parts {
			p.gpm.free()
		}
	}
	b.errors.close()
	ret := b.lib.Shutdown()
	b.lib, b.gpus, b.errors = nil, nil, nil
	if ret != nvml.SUCCESS {
		return fmt.Errorf("shut NVML down: %s", describe(ret))
	}
	return nil
}

// reader makes the calls of one reading.
type reader struct {
	b *Backend
	// lost: the device is gone.
	lost bool
}

// call makes a call that may be missing in the library, or not be supported by the
// device.
func call[T any](r *reader, symbol string, f func() (T, nvml.Return)) (value T, ok bool) {
	if r.lost || !r.b.lookup(symbol) {
		return value, false
	}
	value, ret := f()
	return value, r.check(ret)
}

func (r *reader) check(ret nvml.Return) bool {
	if ret == nvml.ERROR_GPU_IS_LOST {
		r.lost = true
	}
	return ret == nvml.SUCCESS
}

func (r *reader) describe(h nvml.Device, index int) *accel.Device {
	uuid, ok := call(r, "nvmlDeviceGetUUID", h.GetUUID)
	if !ok {
		r.b.cfg.Log.Warn("GPU has no UUID", "index", index)
		return nil
	}
	d := &accel.Device{Vendor: accel.NVIDIA, ID: uuid, Index: fmt.Sprint(index), Driver: r.b.driver, Minor: -1, Instance: -1}
	d.Model, _ = call(r, "nvmlDeviceGetName", h.GetName)
	if n, ok := call(r, "nvmlDeviceGetMinorNumber", h.GetMinorNumber); ok {
		d.Minor = n
	}
	if pci, ok := call(r, "nvmlDeviceGetPciInfo", h.GetPciInfo); ok {
		d.PCI = pciAddress(uint64(pci.Domain), uint64(pci.Bus), uint64(pci.Device))
	}
	return d
}

// pciAddress writes a bus address as sysfs does.
func pciAddress(domain, bus, device uint64) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", domain, bus, device)
}

// gpu reads a device, and its parts if it is divided.
func (r *reader) gpu(g *gpu) []accel.Sample {
	s := accel.Sample{Device: g.device, Time: r.b.cfg.Now()}
	divided := r.divided(g)
	if divided != g.device.Divided {
		d := *g.device
		d.Divided = divided
		g.device, s.Device = &d, &d
	}
	r.values(g.handle, &s)
	if !divided {
		r.processes(g.handle, g, &s)
	}
	g.gpm.read(&s, func(sample nvml.GpmSample) nvml.Return { return g.handle.GpmSampleGet(sample) })
	all := []accel.Sample{s}
	if divided {
		all = append(all, r.parts(g)...)
	}
	return all
}

func (r *reader) divided(g *gpu) bool {
	if !r.b.lookup("nvmlDeviceGetMigMode") {
		return false
	}
	current, _, ret := g.handle.GetMigMode()
	return r.check(ret) && current == nvml.DEVICE_MIG_ENABLE
}

func (r *reader) parts(g *gpu) []accel.Sample {
	n, ok := call(r, "nvmlDeviceGetMaxMigDeviceCount", g.handle.GetMaxMigDeviceCount)
	if !ok || !r.b.lookup("nvmlDeviceGetMigDeviceHandleByIndex") {
		return nil
	}
	var all []accel.Sample
	there := make(map[string]bool)
	for i := range n {
		h, ret := g.handle.GetMigDeviceHandleByIndex(i)
		if !r.check(ret) {
			continue // there are fewer than there could be
		}
		p := r.part(g, h, i)
		if p == nil {
			continue
		}
		there[p.device.ID] = true
		s := accel.Sample{Device: p.device, Time: r.b.cfg.Now()}
		r.memory(h, &s)
		r.list(h, &s)
		p.gpm.read(&s, func(sample nvml.GpmSample) nvml.Return { return g.handle.GpmMigSampleGet(p.instance, sample) })
		all = append(all, s)
	}
	for id, p := range g.parts {
		if !there[id] {
			p.gpm.free()
			delete(g.parts, id)
		}
	}
	return all
}

func (r *reader) part(g *gpu, h nvml.Device, index int) *part {
	uuid, ok := call(r, "nvmlDeviceGetUUID", h.GetUUID)
	if !ok {
		return nil
	}
	if p := g.parts[uuid]; p != nil {
		p.handle = h
		return p
	}
	instance, ok := call(r, "nvmlDeviceGetGpuInstanceId", h.GetGpuInstanceId)
	d := *g.device
	d.ID, d.Index, d.Parent, d.Divided = uuid, fmt.Sprintf("%s:%d", g.device.Index, index), g.device.ID, false
	d.Limits = slices.Clone(g.device.Limits)
	if ok {
		d.Instance = instance
	}
	name, _ := call(r, "nvmlDeviceGetName", h.GetName)
	if _, profile, found := strings.Cut(name, "MIG "); found {
		d.Profile = profile
	}
	p := &part{handle: h, device: &d, instance: instance}
	if g.gpm != nil && ok && r.b.lookup("nvmlGpmMigSampleGet") {
		p.gpm = &gpm{b: r.b}
	}
	g.parts[uuid] = p
	return p
}
