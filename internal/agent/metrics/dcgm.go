// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Ignoramuss/orb8/internal/accel"
)

// dcgmMetric is a metric of NVIDIA's dcgm-exporter, made from one of ours.
type dcgmMetric struct {
	name   string
	metric accel.Metric
	// times is what our unit is multiplied by.
	times float64
	help  string
}

const (
	percent   = 100
	mebibytes = 1.0 / (1 << 20)
	milli     = 1000
	megahertz = 1e-6
)

// dcgmMetrics are those that dashboards for dcgm-exporter use, under their names
// up to version 4.5.
func dcgmMetrics() []dcgmMetric {
	return []dcgmMetric{
		{"DCGM_FI_DEV_GPU_UTIL", accel.Utilization, percent, "Utilization, in percent"},
		{"DCGM_FI_DEV_MEM_COPY_UTIL", accel.CopyUtilization, percent, "Time in which memory was read or written, in percent"},
		{"DCGM_FI_DEV_ENC_UTIL", accel.EncoderUtilization, percent, "Utilization of the encoder, in percent"},
		{"DCGM_FI_DEV_DEC_UTIL", accel.DecoderUtilization, percent, "Utilization of the decoder, in percent"},
		{"DCGM_FI_DEV_FB_RESERVED", accel.MemoryReserved, mebibytes, "Memory that the driver reserves, in MiB"},
		{"DCGM_FI_DEV_FB_TOTAL", accel.MemoryTotal, mebibytes, "Memory, in MiB"},
		{"DCGM_FI_DEV_POWER_USAGE", accel.PowerUsage, 1, "Power drawn, in W"},
		{"DCGM_FI_DEV_POWER_MGMT_LIMIT", accel.PowerLimit, 1, "Power that may be drawn, in W"},
		{"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", accel.Energy, milli, "Energy used, in mJ"},
		{"DCGM_FI_DEV_GPU_TEMP", accel.Temperature, 1, "Temperature, in degrees Celsius"},
		{"DCGM_FI_DEV_MEMORY_TEMP", accel.MemoryTemperature, 1, "Temperature of the memory, in degrees Celsius"},
		{"DCGM_FI_DEV_SM_CLOCK", accel.SMClock, megahertz, "Clock of the multiprocessors, in MHz"},
		{"DCGM_FI_DEV_MEM_CLOCK", accel.MemoryClock, megahertz, "Clock of the memory, in MHz"},
		{"DCGM_FI_DEV_PCIE_REPLAY_COUNTER", accel.PCIeReplays, 1, "PCIe packets that were sent again"},
		{"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", accel.ECCCorrected, 1, "Memory errors that were corrected, since the driver was loaded"},
		{"DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", accel.ECCCorrectedLifetime, 1, "Memory errors that were corrected, since the device was made"},
		{"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", accel.ECCUncorrected, 1, "Memory errors that could not be corrected, since the driver was loaded"},
		{"DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", accel.ECCUncorrectedLifetime, 1, "Memory errors that could not be corrected, since the device was made"},
		{"DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", accel.RowsRemappedCorrectable, 1, "Memory rows replaced after correctable errors"},
		{"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", accel.RowsRemappedUncorrectable, 1, "Memory rows replaced after uncorrectable errors"},
		{"DCGM_FI_DEV_ROW_REMAP_FAILURE", accel.RowRemapFailure, 1, "1 if memory rows could not be replaced"},
		{"DCGM_FI_PROF_GR_ENGINE_ACTIVE", accel.Utilization, 1, "Part of the time in which anything ran"},
		{"DCGM_FI_PROF_SM_ACTIVE", accel.SMActive, 1, "Mean part of the multiprocessors that had work"},
		{"DCGM_FI_PROF_SM_OCCUPANCY", accel.SMOccupancy, 1, "Mean part of the possible warps that were resident"},
		{"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", accel.TensorActive, 1, "Part of the time in which tensor pipes worked"},
		{"DCGM_FI_PROF_PIPE_FP64_ACTIVE", accel.FP64Active, 1, "Part of the time in which FP64 pipes worked"},
		{"DCGM_FI_PROF_PIPE_FP32_ACTIVE", accel.FP32Active, 1, "Part of the time in which FP32 pipes worked"},
		{"DCGM_FI_PROF_PIPE_FP16_ACTIVE", accel.FP16Active, 1, "Part of the time in which FP16 pipes worked"},
		{"DCGM_FI_PROF_DRAM_ACTIVE", accel.DRAMActive, 1, "Part of the memory's bandwidth that was used"},
	}
}

const (
	dcgmUsed = "DCGM_FI_DEV_FB_USED"
	dcgmFree = "DCGM_FI_DEV_FB_FREE"
	dcgmXID  = "DCGM_FI_DEV_XID_ERRORS"
)

// DCGM serves NVIDIA GPUs as dcgm-exporter does, for dashboards that are
// there already. Where several pods share a device, what can be divided is there
// once for each, as its part, and once without a pod for the rest, so that sums
// over pods are the device's.
type DCGM struct {
	node  string
	gpus  func() *GPUFacts
	descs map[string]*prometheus.Desc
}

// NewDCGM returns an exporter of what gpus returns at each scrape; nil is nothing. node is
// the value of the label Hostname.
func NewDCGM(node string, gpus func() *GPUFacts) *DCGM {
	e := &DCGM{node: node, gpus: gpus, descs: make(map[string]*prometheus.Desc)}
	labels := []string{
		"gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION", "GPU_I_PROFILE", "GPU_I_ID",
		"namespace", "pod", "container",
	}
	add := func(name, help string) { e.descs[name] = prometheus.NewDesc(name, help+".", labels, nil) }
	for _, m := range dcgmMetrics() {
		add(m.name, m.help)
	}
	add(dcgmUsed, "Memory in use, without what the driver reserves, in MiB")
	add(dcgmFree, "Memory not in use, in MiB")
	add(dcgmXID, "The latest XID; orb8_gpu_errors_total counts them")
	return e
}

// Describe implements prometheus.Collector.
func (e *DCGM) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range e.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (e *DCGM) Collect(ch chan<- prometheus.Metric) {
	f := e.gpus()
	if f == nil {
		return
	}
	models := make(map[string]string) // of whole devices, by id
	for i := range f.Reports {
		models[f.Reports[i].Device.ID] = f.Reports[i].Device.Model
	}
	last := make(map[string]uint64)
	for _, e := range f.DeviceErrors {
		if e.Last != nil {
			last[e.Device.ID] = e.Last.Code
		}
	}
	for i := range f.Reports {
		if r := &f.Reports[i]; r.Device.Vendor == accel.NVIDIA {
			e.report(ch, r, models, last[r.Device.ID])
		}
	}
}

func (e *DCGM) report(ch chan<- prometheus.Metric, r *accel.Report, models map[string]string, xid uint64) {
	d := r.Device
	index, _, part := strings.Cut(d.Index, ":")
	uuid, model, instance := d.ID, d.Model, ""
	if part { // dcgm-exporter names the whole device, and tells parts by their number
		uuid, instance = d.Parent, strconv.Itoa(d.Instance)
		if of := models[d.Parent]; of != "" {
			model = of
		}
	}
	file := ""
	if d.Minor >= 0 {
		file = fmt.Sprintf("nvidia%d", d.Minor)
	}
	labels := []string{index, uuid, dcgmPCI(d.PCI), file, model, e.node, d.Driver, d.Profile, instance}
	emit := func(name string, v float64, s *accel.Share) {
		pod := []string{"", "", ""}
		if s != nil && s.Owner != nil && s.Owner.Pod != "" {
			pod = []string{s.Owner.Namespace, s.Owner.Pod, strings.Join(s.Containers, ",")}
		}
		all := append(append([]string{}, labels...), pod...)
		for i, l := range all {
			all[i] = strings.ToValidUTF8(l, "\uFFFD")
		}
		ch <- constMetric(e.descs[name], prometheus.UntypedValue, v, all)
	}
	alone := soleOwner(r)
	for _, m := range dcgmMetrics() {
		switch v := r.Values[m.metric]; {
		case !v.Known():
		case alone == nil && m.metric.Divided() && m.metric.About().Shape == accel.Gauge && len(r.Shares) > 0:
			divide(r, m.metric, func(v float64, s *accel.Share) { emit(m.name, v*m.times, s) })
		default:
			emit(m.name, v.V*m.times, alone)
		}
	}
	e.used(r, alone, emit)
	if total, used := r.Values[accel.MemoryTotal], r.Values[accel.MemoryUsed]; total.Known() && used.Known() {
		emit(dcgmFree, (total.V-used.V)*mebibytes, alone)
	}
	if !part {
		emit(dcgmXID, float64(xid), alone)
	}
}

// used emits the memory in use. Ours includes what the driver reserves, DCGM's does not.
func (e *DCGM) used(r *accel.Report, alone *accel.Share, emit func(string, float64, *accel.Share)) {
	used, reserved := r.Values[accel.MemoryUsed], r.Values[accel.MemoryReserved].V
	switch {
	case !used.Known():
	case alone == nil && len(r.Shares) > 0:
		divide(r, accel.MemoryUsed, func(v float64, s *accel.Share) {
			if s == nil {
				v = max(v-reserved, 0)
			}
			emit(dcgmUsed, v*mebibytes, s)
		})
	default:
		emit(dcgmUsed, max(used.V-reserved, 0)*mebibytes, alone)
	}
}

// soleOwner is the share of the pod that has the whole device, as holder or user.
func soleOwner(r *accel.Report) *accel.Share {
	var sole *accel.Share
	for i := range r.Shares {
		s := &r.Shares[i]
		if s.Owner == nil {
			continue
		}
		if sole != nil || s.Shared {
			return nil
		}
		sole = s
	}
	return sole
}

// divide yields what each pod has of a metric, and what is left.
func divide(r *accel.Report, m accel.Metric, yield func(float64, *accel.Share)) {
	rest := r.Values[m].V
	for i := range r.Shares {
		s := &r.Shares[i]
		if s.Owner == nil || s.Owner.Pod == "" || !s.Values[m].Known() {
			continue
		}
		rest -= s.Values[m].V
		yield(s.Values[m].V, s)
	}
	yield(max(rest, 0), nil)
}

// dcgmPCI writes an address as NVML does: 0000:3b:00.0 is 00000000:3B:00.0.
func dcgmPCI(address string) string {
	if address == "" {
		return ""
	}
	return "0000" + strings.ToUpper(address)
}
