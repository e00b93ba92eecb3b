// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package nvml

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/Ignoramuss/orb8/internal/accel"
)

func driver(v float64) accel.Value { return accel.Of(v, accel.Driver) }

// values reads what the driver says of the whole device.
func (r *reader) values(g *gpu, s *accel.Sample) {
	h, v := g.handle, &s.Values
	if u, ok := call(r, "nvmlDeviceGetUtilizationRates", h.GetUtilizationRates); ok && u.Gpu <= 100 && u.Memory <= 100 {
		v[accel.Utilization], v[accel.CopyUtilization] = driver(float64(u.Gpu)/100), driver(float64(u.Memory)/100)
		s.Momentary = true
	}
	if mean, ok := r.meanUtilization(g, s); ok {
		v[accel.Utilization], s.Momentary = driver(mean), false
	}
	r.memory(h, s)
	r.power(h, v)
	r.clocks(h, s)
	r.health(h, v)
	r.fields(h, s)
	for m, f := range map[accel.Metric]struct {
		symbol string
		get    func() (uint32, uint32, nvml.Return)
	}{
		accel.EncoderUtilization: {"nvmlDeviceGetEncoderUtilization", h.GetEncoderUtilization},
		accel.DecoderUtilization: {"nvmlDeviceGetDecoderUtilization", h.GetDecoderUtilization},
	} {
		if u, ok := call(r, f.symbol, func() (uint32, nvml.Return) { u, _, ret := f.get(); return u, ret }); ok && u <= 100 {
			v[m] = driver(float64(u) / 100)
		}
	}
}

// busy is what is kept of how busy a device and its processes were.
type busy struct {
	// since is when the last reading was, in the driver's microseconds; 0 before the first.
	since uint64
	// device is the stamp of the latest sample of the device, processes have the latest of
	// each process.
	device    uint64
	processes map[uint32]ran
}

// ran is how much a process ran in its latest sample.
type ran struct {
	stamp uint64
	part  float64
}

// sampled is how old the driver's latest sample of a process may be: it takes one of each
// about once a second, at a time of its own.
const sampled = 2 * time.Second

// begin returns the time of the reading before in the driver's microseconds, 0 if there was
// none; the clock may have been set back since.
func (b *busy) begin(now uint64) uint64 {
	if b.since > now {
		*b = busy{}
	}
	return b.since
}

// meanUtilization is how busy the device was since the reading before, by the driver's samples.
func (r *reader) meanUtilization(g *gpu, s *accel.Sample) (float64, bool) {
	now := uint64(s.Time.UnixMicro())
	before := g.busy.begin(now)
	if before == 0 || r.lost || !r.b.lookup("nvmlDeviceGetSamples") {
		return 0, false
	}
	kind, samples, ret := g.handle.GetSamples(nvml.GPU_UTILIZATION_SAMPLES, max(before, g.busy.device))
	r.note("nvmlDeviceGetSamples", ret)
	if !r.check(ret) {
		return 0, false
	}
	sum, n := 0.0, 0
	for i := range samples {
		u, ok := number(&nvml.FieldValue{ValueType: uint32(kind), Value: samples[i].SampleValue})
		if at := samples[i].TimeStamp; !ok || u < 0 || u > 100 || at <= before || at <= g.busy.device {
			continue
		}
		sum, n = sum+u, n+1
	}
	for i := range samples {
		if at := samples[i].TimeStamp; at <= now {
			g.busy.device = max(g.busy.device, at)
		}
	}
	return sum / float64(max(n, 1)) / 100, n > 0
}

// notAvailable stands for a size that the driver does not tell.
const notAvailable = math.MaxUint64

func (r *reader) memory(h nvml.Device, s *accel.Sample) {
	used, total := uint64(notAvailable), uint64(notAvailable)
	if m, ok := r.memoryV2(h); ok {
		used, total = m.Used, m.Total
		if used != notAvailable && m.Reserved != notAvailable && m.Reserved <= total {
			used += m.Reserved
			s.Values[accel.MemoryReserved] = driver(float64(m.Reserved))
		}
	} else if m, ok := call(r, "nvmlDeviceGetMemoryInfo", h.GetMemoryInfo); ok {
		used, total = m.Used, m.Total
	}
	if total != notAvailable && total != 0 {
		s.Values[accel.MemoryTotal] = driver(float64(total))
	}
	if used != notAvailable && used <= total {
		s.Values[accel.MemoryUsed] = driver(float64(used))
	}
}

// memoryV2 calls what only newer drivers have, and not what goes by the same name.
func (r *reader) memoryV2(h nvml.Device) (nvml.Memory_v2, bool) {
	if r.b.lib.Extensions().LookupSymbol("nvmlDeviceGetMemoryInfo_v2") != nil {
		return nvml.Memory_v2{}, false
	}
	return call(r, "nvmlDeviceGetMemoryInfo", h.GetMemoryInfo_v2)
}

func (r *reader) power(h nvml.Device, v *accel.Values) {
	if mw, ok := call(r, "nvmlDeviceGetPowerUsage", h.GetPowerUsage); ok {
		v[accel.PowerUsage] = driver(float64(mw) / 1000)
	}
	if mw, ok := call(r, "nvmlDeviceGetEnforcedPowerLimit", h.GetEnforcedPowerLimit); ok {
		v[accel.PowerLimit] = driver(float64(mw) / 1000)
	}
	if mj, ok := call(r, "nvmlDeviceGetTotalEnergyConsumption", h.GetTotalEnergyConsumption); ok {
		v[accel.Energy] = driver(float64(mj) / 1000)
	}
	if t, ok := call(r, "nvmlDeviceGetTemperature", func() (uint32, nvml.Return) { return h.GetTemperature(nvml.TEMPERATURE_GPU) }); ok {
		v[accel.Temperature] = driver(float64(t))
	}
}

// reasons for which clocks are held back, by bit; idle ones and settings of the
// user are not among them.
func reasons() map[uint64]string {
	return map[uint64]string{
		nvml.ClocksEventReasonSwPowerCap:              "sw_power_cap",
		nvml.ClocksThrottleReasonHwSlowdown:           "hw_slowdown",
		nvml.ClocksEventReasonSyncBoost:               "sync_boost",
		nvml.ClocksEventReasonSwThermalSlowdown:       "sw_thermal_slowdown",
		nvml.ClocksThrottleReasonHwThermalSlowdown:    "hw_thermal_slowdown",
		nvml.ClocksThrottleReasonHwPowerBrakeSlowdown: "hw_power_brake",
		nvml.ClocksEventReasonBoardLimit:              "board_limit",
		nvml.ClocksEventReasonReliability:             "reliability",
	}
}

func (r *reader) clocks(h nvml.Device, s *accel.Sample) {
	for m, kind := range map[accel.Metric]nvml.ClockType{accel.SMClock: nvml.CLOCK_SM, accel.MemoryClock: nvml.CLOCK_MEM} {
		if mhz, ok := call(r, "nvmlDeviceGetClockInfo", func() (uint32, nvml.Return) { return h.GetClockInfo(kind) }); ok {
			s.Values[m] = driver(float64(mhz) * 1e6)
		}
	}
	bits, ok := call(r, "nvmlDeviceGetCurrentClocksEventReasons", h.GetCurrentClocksEventReasons)
	if !ok {
		bits, _ = call(r, "nvmlDeviceGetCurrentClocksThrottleReasons", h.GetCurrentClocksThrottleReasons)
	}
	names := reasons()
	for bit := uint64(1); bit != 0; bit <<= 1 {
		if bits&bit != 0 && names[bit] != "" {
			s.ClockEvents = append(s.ClockEvents, names[bit])
		}
	}
}

func (r *reader) health(h nvml.Device, v *accel.Values) {
	if n, ok := call(r, "nvmlDeviceGetPcieReplayCounter", h.GetPcieReplayCounter); ok {
		v[accel.PCIeReplays] = driver(float64(n))
	}
	for _, e := range []struct {
		metric accel.Metric
		kind   nvml.MemoryErrorType
		over   nvml.EccCounterType
	}{
		{accel.ECCCorrected, nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.VOLATILE_ECC},
		{accel.ECCUncorrected, nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC},
		{accel.ECCCorrectedLifetime, nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.AGGREGATE_ECC},
		{accel.ECCUncorrectedLifetime, nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.AGGREGATE_ECC},
	} {
		if n, ok := call(r, "nvmlDeviceGetTotalEccErrors", func() (uint64, nvml.Return) { return h.GetTotalEccErrors(e.kind, e.over) }); ok {
			v[e.metric] = driver(float64(n))
		}
	}
	if !r.b.lookup("nvmlDeviceGetRemappedRows") {
		return
	}
	corrected, uncorrected, pending, failed, ret := h.GetRemappedRows()
	if !r.check(ret) {
		return
	}
	flag := map[bool]float64{true: 1}
	v[accel.RowsRemappedCorrectable], v[accel.RowsRemappedUncorrectable] = driver(float64(corrected)), driver(float64(uncorrected))
	v[accel.RowRemapPending], v[accel.RowRemapFailure] = driver(flag[pending]), driver(flag[failed])
}

// fields reads values that the driver has by number (nvml.h, NVML_FI_DEV_*).
func (r *reader) fields(h nvml.Device, s *accel.Sample) {
	v := &s.Values
	if r.lost || !r.b.lookup("nvmlDeviceGetFieldValues") {
		return
	}
	const allLinks = math.MaxUint32
	wanted := []struct {
		metric accel.Metric
		id     uint32
		scope  uint32
		factor float64
	}{
		{accel.MemoryTemperature, nvml.FI_DEV_MEMORY_TEMP, 0, 1},
		{accel.PowerUsage, nvml.FI_DEV_POWER_INSTANT, 0, 1e-3}, // mW; a moment, where there is no mean
		{accel.PCIeSent, nvml.FI_DEV_PCIE_COUNT_TX_BYTES, 0, 1},
		{accel.PCIeReceived, nvml.FI_DEV_PCIE_COUNT_RX_BYTES, 0, 1},
		{accel.NVLinkSent, nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_TX, allLinks, 1024},
		{accel.NVLinkReceived, nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_RX, allLinks, 1024},
	}
	values := make([]nvml.FieldValue, len(wanted), len(wanted)+1)
	for i, w := range wanted {
		values[i].FieldId, values[i].ScopeId = w.id, w.scope
	}
	values = append(values, nvml.FieldValue{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION})
	if !r.check(h.GetFieldValues(values)) {
		return
	}
	for i, w := range wanted {
		if n, ok := number(&values[i]); ok && n >= 0 {
			v[w.metric] = v[w.metric].Or(driver(n * w.factor))
		}
	}
	if n, ok := number(&values[len(wanted)]); ok && n >= 0 && n <= float64(nvml.GPU_RECOVERY_ACTION_SYSTEM_REBOOT) {
		s.Recovery = accel.RecoveryNone + accel.Recovery(n)
	}
}

// number reads a field's value, which has one of several types.
func number(f *nvml.FieldValue) (float64, bool) {
	if nvml.Return(f.NvmlReturn) != nvml.SUCCESS {
		return 0, false
	}
	raw := binary.NativeEndian.Uint64(f.Value[:])
	switch nvml.ValueType(f.ValueType) {
	case nvml.VALUE_TYPE_DOUBLE:
		n := math.Float64frombits(raw)
		return n, !math.IsNaN(n) && !math.IsInf(n, 0)
	case nvml.VALUE_TYPE_UNSIGNED_INT:
		return float64(uint32(raw)), true
	case nvml.VALUE_TYPE_SIGNED_INT:
		return float64(int32(uint32(raw))), true
	case nvml.VALUE_TYPE_SIGNED_LONG_LONG:
		return float64(int64(raw)), true
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG:
		return float64(raw), raw != notAvailable
	}
	return 0, false
}

// list finds the processes on a device, or on a part of one.
func (r *reader) list(h nvml.Device, s *accel.Sample) {
	add := func(symbol string, graphics bool, get func() ([]nvml.ProcessInfo, nvml.Return)) (ok bool) {
		all, ok := call(r, symbol, get)
		for _, p := range all {
			r.add(s, p, graphics)
		}
		return ok
	}
	// Who computes is what matters: without that list, nobody is known to do nothing.
	s.ProcessesKnown = add("nvmlDeviceGetComputeRunningProcesses", false, h.GetComputeRunningProcesses)
	add("nvmlDeviceGetMPSComputeRunningProcesses", false, h.GetMPSComputeRunningProcesses)
	add("nvmlDeviceGetGraphicsRunningProcesses", true, h.GetGraphicsRunningProcesses)
}

// add adds a process, once: one that draws and computes is in both lists.
func (r *reader) add(s *accel.Sample, p nvml.ProcessInfo, graphics bool) {
	if p.Pid == 0 {
		return
	}
	var memory accel.Value
	if p.UsedGpuMemory != notAvailable {
		memory = accel.Of(float64(p.UsedGpuMemory), accel.PerProcess)
	}
	for i := range s.Processes {
		if s.Processes[i].PID == p.Pid {
			s.Processes[i].Graphics = s.Processes[i].Graphics && graphics
			return
		}
	}
	s.Processes = append(s.Processes, accel.Process{PID: p.Pid, Graphics: graphics, Memory: memory})
}

// processes lists them with what part of the time each ran: the mean of the driver's samples
// since the reading before. Samples of more than all of the time are of no use; drivers have
// been seen to give them.
func (r *reader) processes(h nvml.Device, g *gpu, s *accel.Sample) {
	r.list(h, s)
	before := g.busy.begin(uint64(s.Time.UnixMicro()))
	g.busy.since = uint64(s.Time.UnixMicro())
	if r.lost || !r.b.lookup("nvmlDeviceGetProcessUtilization") {
		return
	}
	// A little further back than the reading before, so that each process has one.
	from := uint64(0)
	if back := uint64(sampled.Microseconds()); before > back {
		from = before - back
	}
	samples, ret := h.GetProcessUtilization(from)
	r.note("nvmlDeviceGetProcessUtilization", ret)
	if ret != nvml.ERROR_NOT_FOUND && !r.check(ret) {
		return
	}
	now := uint64(r.b.cfg.Now().UnixMicro())
	means, latest := r.means(g, samples, before, now)
	g.busy.processes = latest
	if before == 0 {
		return // all that the driver remembers: of no known window
	}
	for i := range s.Processes {
		p := &s.Processes[i]
		part, ok := means[p.PID]
		if !ok {
			// Without a sample it did not run, or its latest one is not due yet.
			if last, had := latest[p.PID]; had && now-min(last.stamp, now) <= uint64(sampled.Microseconds()) {
				part = last.part
			}
		}
		p.Utilization = accel.Of(part, accel.PerProcess)
	}
}

// means are those of each process's samples since the reading before; latest has the latest
// sample of each.
func (r *reader) means(g *gpu, samples []nvml.ProcessUtilizationSample, before, now uint64) (means map[uint32]float64, latest map[uint32]ran) {
	type sum struct{ sum, n float64 }
	sums := make(map[uint32]sum)
	latest = make(map[uint32]ran)
	for pid, last := range g.busy.processes {
		if now-min(last.stamp, now) <= uint64(sampled.Microseconds()) {
			latest[pid] = last
		}
	}
	for _, u := range samples {
		if u.SmUtil > 100 || u.Pid == 0 || u.TimeStamp == 0 || u.TimeStamp > now {
			continue
		}
		part := float64(u.SmUtil) / 100
		if u.TimeStamp > before && u.TimeStamp > g.busy.processes[u.Pid].stamp {
			m := sums[u.Pid]
			sums[u.Pid] = sum{m.sum + part, m.n + 1}
		}
		if u.TimeStamp > latest[u.Pid].stamp {
			latest[u.Pid] = ran{u.TimeStamp, part}
		}
	}
	means = make(map[uint32]float64, len(sums))
	for pid, m := range sums {
		means[pid] = m.sum / m.n
	}
	return means, latest
}

// gpm keeps the earlier of the two samples that ratios are made from.
type gpm struct {
	b      *Backend
	sample nvml.GpmSample
	taken  time.Time
}

// ratios that GPM has in percent.
func ratios() map[nvml.GpmMetricId]accel.Metric {
	return map[nvml.GpmMetricId]accel.Metric{
		nvml.GPM_METRIC_GRAPHICS_UTIL:   accel.Utilization,
		nvml.GPM_METRIC_SM_UTIL:         accel.SMActive,
		nvml.GPM_METRIC_SM_OCCUPANCY:    accel.SMOccupancy,
		nvml.GPM_METRIC_ANY_TENSOR_UTIL: accel.TensorActive,
		nvml.GPM_METRIC_DRAM_BW_UTIL:    accel.DRAMActive,
		nvml.GPM_METRIC_FP64_UTIL:       accel.FP64Active,
		nvml.GPM_METRIC_FP32_UTIL:       accel.FP32Active,
		nvml.GPM_METRIC_FP16_UTIL:       accel.FP16Active,
		nvml.GPM_METRIC_INTEGER_UTIL:    accel.IntActive,
	}
}

// read takes a sample with get and compares it with the one before, if that is
// long enough ago. It does nothing where GPM is not there.
func (g *gpm) read(s *accel.Sample, get func(nvml.GpmSample) nvml.Return) {
	if g == nil || g.sample != nil && s.Time.Sub(g.taken) < gpmWindow {
		return
	}
	next, ret := g.b.lib.GpmSampleAlloc()
	if ret != nvml.SUCCESS {
		return
	}
	if get(next) != nvml.SUCCESS {
		_ = next.Free()
		return
	}
	before, since := g.sample, g.taken
	g.sample, g.taken = next, s.Time
	if before == nil {
		return
	}
	defer func() { _ = before.Free() }()
	var want nvml.GpmMetricsGetType
	want.Sample1, want.Sample2 = before, next
	for id := range ratios() {
		want.Metrics[want.NumMetrics].MetricId = uint32(id)
		want.NumMetrics++
	}
	if g.b.lib.GpmMetricsGet(&want) != nvml.SUCCESS {
		return
	}
	s.Window = s.Time.Sub(since)
	for i := range want.NumMetrics {
		m := &want.Metrics[i]
		if nvml.Return(m.NvmlReturn) == nvml.SUCCESS && !math.IsNaN(m.Value) {
			metric := ratios()[nvml.GpmMetricId(m.MetricId)]
			s.Values[metric] = accel.Of(min(max(m.Value/100, 0), 1), accel.GPM)
			s.Momentary = s.Momentary && metric != accel.Utilization
		}
	}
}

func (g *gpm) free() {
	if g != nil && g.sample != nil {
		_ = g.sample.Free()
		g.sample = nil
	}
}
