// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package nvml

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
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
	// not be opened, which are missing.
	count         int
	missing       []int
	listed, tried time.Time
	errors        *errorLog
	kmsg          *os.File // nil where it cannot be read
}

const (
	// retryLost is how long after a device that could not be opened, or was lost, is tried
	// again. The others go on meanwhile.
	retryLost = 30 * time.Second
	// beginAnew is how long after NVML is shut down and begun anew, while a device is lost:
	// one that was reset may not be there before. All devices lose a window of GPM by that.
	beginAnew = 10 * time.Minute
	// keepLost is for how long a lost device that the driver does not list stays known.
	keepLost = 24 * time.Hour
)

// gpu is one device with what is kept of it between two readings.
type gpu struct {
	handle nvml.Device
	device *accel.Device
	gpm    *gpm
	busy   busy
	parts  map[string]*part // by UUID
	limits map[nvml.Return][]string
	// lost is when it was last found to be gone; zero if it is there. tried is when it was
	// looked for since.
	lost, tried time.Time
}

// part is a MIG instance.
type part struct {
	handle   nvml.Device
	device   *accel.Device
	shared   *accel.Device // see sliced
	instance int           // GPU instance, -1 where it is not told
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
	missing := len(b.missing) > 0 || slices.ContainsFunc(b.gpus, func(g *gpu) bool { return !g.lost.IsZero() })
	if ret != nvml.SUCCESS || n != b.count || missing && b.cfg.Now().Sub(b.listed) > beginAnew {
		// Something came or went: all handles are got anew.
		if err := b.again(); err != nil {
			return nil, err
		}
	}
	b.openMissing()
	var all []accel.Sample
	for _, g := range b.gpus {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		all = append(all, b.sample(g)...)
	}
	b.errors.deliver(all)
	return all, nil
}

// sample reads one device, or says that it is lost.
func (b *Backend) sample(g *gpu) []accel.Sample {
	now := b.cfg.Now()
	if !g.lost.IsZero() {
		if now.Sub(g.tried) < retryLost || !b.found(g, now) {
			return []accel.Sample{{Device: g.device, Time: now, Lost: true}}
		}
		b.cfg.Log.Info("GPU is there again", "gpu", g.device.ID)
	}
	r := reader{b: b}
	all := r.gpu(g)
	if !r.lost {
		return all
	}
	if g.lost.IsZero() {
		b.cfg.Log.Warn("GPU is lost", "gpu", g.device.ID)
	}
	g.free()
	g.lost, g.tried = now, now
	return []accel.Sample{{Device: g.device, Time: now, Lost: true}}
}

// found looks for a lost device: it answers again after a reset.
func (b *Backend) found(g *gpu, now time.Time) bool {
	g.tried = now
	if b.lookup("nvmlDeviceGetHandleByUUID") {
		if h, ret := b.lib.DeviceGetHandleByUUID(g.device.ID); ret == nvml.SUCCESS {
			g.handle = h
		}
	}
	if _, ret := g.handle.GetUUID(); ret != nvml.SUCCESS {
		return false
	}
	g.lost = time.Time{}
	b.errors.register(g)
	return true
}

// again shuts the library down and begins with it anew. Devices that were there and are not
// found any more stay known as lost ones.
func (b *Backend) again() error {
	before := b.gpus
	if err := errors.Join(b.shutdown(), b.open()); err != nil {
		return err
	}
	now := b.cfg.Now()
	for _, g := range before {
		if slices.ContainsFunc(b.gpus, func(o *gpu) bool { return o.device.ID == g.device.ID }) {
			continue
		}
		if g.lost.IsZero() {
			b.cfg.Log.Warn("GPU is lost", "gpu", g.device.ID)
			g.lost = now
		}
		if now.Sub(g.lost) < keepLost && !b.givenAway(g.device.PCI) {
			g.tried = now
			b.gpus = append(b.gpus, g)
		}
	}
	return nil
}

// givenAway reports whether another driver has the device now, as one for virtual machines.
func (b *Backend) givenAway(pci string) bool {
	driver, err := os.Readlink(filepath.Join(b.cfg.Sys, "bus/pci/devices", pci, "driver"))
	return pci != "" && err == nil && filepath.Base(driver) != "nvidia"
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
	b.openKmsg()
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
		return &accel.Unsupported{Reason: b.path + " and the loaded NVIDIA driver are of different versions", Remedy: "if the driver was upgraded, restart the agent; else its modules and its library do not fit: load the modules anew, or restart the host", Err: err}
	}
	return err
}

// returns are what NVML's errors that users meet mean (nvml.h, nvmlReturn_t).
func returns() map[nvml.Return]string {
	return map[nvml.Return]string{
		nvml.ERROR_UNINITIALIZED: "not initialized", nvml.ERROR_INVALID_ARGUMENT: "invalid argument",
		nvml.ERROR_NOT_SUPPORTED: "not supported", nvml.ERROR_NO_PERMISSION: "no permission",
		nvml.ERROR_NOT_FOUND: "not found", nvml.ERROR_INSUFFICIENT_POWER: "power cables are not attached",
		nvml.ERROR_DRIVER_NOT_LOADED: "driver not loaded", nvml.ERROR_TIMEOUT: "timeout", nvml.ERROR_IRQ_ISSUE: "trouble with interrupts",
		nvml.ERROR_LIBRARY_NOT_FOUND: "library not found", nvml.ERROR_CORRUPTED_INFOROM: "the device's InfoROM is corrupted",
		nvml.ERROR_GPU_IS_LOST: "GPU is lost", nvml.ERROR_RESET_REQUIRED: "GPU requires a reset",
		nvml.ERROR_OPERATING_SYSTEM: "refused by the operating system", nvml.ERROR_LIB_RM_VERSION_MISMATCH: "library and driver are of different versions",
		nvml.ERROR_IN_USE: "GPU is in use", nvml.ERROR_MEMORY: "out of memory", nvml.ERROR_NO_DATA: "no data", nvml.ERROR_NOT_READY: "not ready",
		nvml.ERROR_INSUFFICIENT_RESOURCES: "out of resources", nvml.ERROR_ARGUMENT_VERSION_MISMATCH: "version not supported",
		nvml.ERROR_UNKNOWN: "unknown error",
	}
}

// describe is what the error means, without the library, which may not be there.
func describe(ret nvml.Return) string {
	if text := returns()[ret]; text != "" {
		return fmt.Sprintf("%s (NVML error %d)", text, int(ret))
	}
	return fmt.Sprintf("NVML error %d", int(ret))
}

func (b *Backend) list() error {
	n, ret := b.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return fmt.Errorf("count GPUs: %s", describe(ret))
	}
	b.count, b.listed, b.missing = n, b.cfg.Now(), nil
	b.tried = b.listed
	for i := range n {
		b.add(i)
	}
	return nil
}

// openMissing tries those again that could not be opened.
func (b *Backend) openMissing() {
	if now := b.cfg.Now(); len(b.missing) > 0 && now.Sub(b.tried) >= retryLost {
		indices := b.missing
		b.tried, b.missing = now, nil
		for _, i := range indices {
			b.add(i)
		}
	}
}

// add opens the device with an index, or notes that it is missing.
func (b *Backend) add(index int) {
	h, ret := b.lib.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		b.cfg.Log.Warn("GPU cannot be opened", "index", index, "err", describe(ret))
		b.missing = append(b.missing, index)
		return
	}
	r := reader{b: b}
	g := &gpu{handle: h, parts: make(map[string]*part)}
	if g.device = r.describe(h, index); g.device == nil {
		b.missing = append(b.missing, index)
		return
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
	if b.errors != nil {
		b.errors.register(g)
	}
	b.gpus = append(b.gpus, g)
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
	if b.kmsg != nil {
		_ = b.kmsg.Close()
		b.kmsg = nil
	}
	return b.shutdown()
}

// free gives back what was got of a device.
func (g *gpu) free() {
	g.gpm.free()
	for _, p := range g.parts {
		p.gpm.free()
	}
	g.busy = busy{}
}

func (b *Backend) shutdown() error {
	if b.lib == nil {
		return nil
	}
	for _, g := range b.gpus {
		g.free()
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
	// refused are the calls that were, by what they returned.
	refused map[nvml.Return][]string
}

// call makes a call that may be missing in the library, or not be supported by the
// device.
func call[T any](r *reader, symbol string, f func() (T, nvml.Return)) (value T, ok bool) {
	if r.lost || !r.b.lookup(symbol) {
		return value, false
	}
	value, ret := f()
	r.note(symbol, ret)
	return value, r.check(ret)
}

func (r *reader) check(ret nvml.Return) bool {
	if ret == nvml.ERROR_GPU_IS_LOST {
		r.lost = true
	}
	return ret == nvml.SUCCESS
}

// note keeps why there is no value, where that is no matter of the device's model.
func (r *reader) note(symbol string, ret nvml.Return) {
	switch ret {
	case nvml.SUCCESS, nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_NOT_FOUND, nvml.ERROR_GPU_IS_LOST, nvml.ERROR_NO_DATA, nvml.ERROR_FUNCTION_NOT_FOUND:
		return
	}
	if r.refused == nil {
		r.refused = make(map[nvml.Return][]string)
	}
	if name := strings.TrimPrefix(symbol, "nvmlDevice"); !slices.Contains(r.refused[ret], name) {
		r.refused[ret] = append(r.refused[ret], name)
	}
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
	r.values(g, &s)
	if !divided {
		r.processes(g.handle, g, &s)
	}
	g.gpm.read(&s, func(sample nvml.GpmSample) nvml.Return { return g.handle.GpmSampleGet(sample) })
	all := []accel.Sample{s}
	if divided {
		all = append(all, r.parts(g)...)
	}
	all[0].ResetRequired = len(r.refused[nvml.ERROR_RESET_REQUIRED]) > 0
	if !maps.EqualFunc(r.refused, g.limits, slices.Equal) {
		g.limits = r.refused
		d := *g.device
		d.Limits = slices.DeleteFunc(slices.Clone(d.Limits), func(l string) bool { return strings.HasPrefix(l, notRead) })
		for _, ret := range slices.Sorted(maps.Keys(r.refused)) {
			d.Limits = append(d.Limits, fmt.Sprintf("%s%s: %s", notRead, strings.Join(r.refused[ret], ", "), describe(ret)))
		}
		g.device, all[0].Device = &d, &d
	}
	return all
}

// notRead begins a sentence on what the driver refuses.
const notRead = "the driver does not answer "

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
	var parts []*part
	there, inside := make(map[string]bool), make(map[int]int)
	for i := range n {
		h, ret := g.handle.GetMigDeviceHandleByIndex(i)
		if !r.check(ret) {
			continue // there are fewer than there could be
		}
		if p := r.part(g, h, i); p != nil {
			there[p.device.ID] = true
			inside[p.instance]++
			parts = append(parts, p)
		}
	}
	var all []accel.Sample
	for _, p := range parts {
		s := accel.Sample{Device: p.device, Time: r.b.cfg.Now()}
		r.list(p.handle, &s)
		if p.instance < 0 || inside[p.instance] == 1 {
			r.memory(p.handle, &s)
			p.gpm.read(&s, func(sample nvml.GpmSample) nvml.Return { return g.handle.GpmMigSampleGet(p.instance, sample) })
		} else {
			s.Device = p.sliced()
		}
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

// sliced is the device of a compute instance that shares a GPU instance with others: what the
// driver tells is that of all of them.
func (p *part) sliced() *accel.Device {
	if p.shared == nil {
		d := *p.device
		d.Limits = append(slices.Clone(d.Limits), "one of several compute instances of a GPU instance: memory in use and activity are told of all together only")
		p.shared = &d
	}
	return p.shared
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
	if !ok {
		instance = -1
	}
	p := &part{handle: h, device: &d, instance: instance}
	if g.gpm != nil && ok && r.b.lookup("nvmlGpmMigSampleGet") {
		p.gpm = &gpm{b: r.b}
	}
	g.parts[uuid] = p
	return p
}
