// SPDX-License-Identifier: Apache-2.0

package accel

import "slices"

// Metric is something that is measured of a device.
type Metric int

// The metrics. Ratios are 0 to 1, means over the sample's window.
const (
	// Utilization is the part of the time in which any kernel ran. One small
	// kernel is enough for 1: it says whether the device is used, not how well.
	Utilization Metric = iota
	// SMActive is the mean part of the multiprocessors with work, SMOccupancy
	// that of the warps that could be resident.
	SMActive
	SMOccupancy
	// TensorActive, FP64Active, FP32Active, FP16Active and IntActive are the parts of the
	// time in which each kind of pipe worked.
	TensorActive
	FP64Active
	FP32Active
	FP16Active
	IntActive
	// DRAMActive is the part of the device memory's bandwidth that was used.
	DRAMActive
	// CopyUtilization is the part of the time in which device memory was read or
	// written, from the driver: not of the bandwidth.
	CopyUtilization
	EncoderUtilization
	DecoderUtilization
	// MemoryUsed includes what the driver reserves, MemoryReserved.
	MemoryUsed
	MemoryReserved
	MemoryTotal
	PowerUsage
	PowerLimit
	// Energy since some time in the past.
	Energy
	Temperature
	MemoryTemperature
	SMClock
	MemoryClock
	// PCIeSent and PCIeReceived are seen from the device.
	PCIeSent
	PCIeReceived
	PCIeReplays
	NVLinkSent
	NVLinkReceived
	// ECCCorrected and ECCUncorrected are since the driver was loaded, the lifetime ones
	// since the device was made.
	ECCCorrected
	ECCUncorrected
	ECCCorrectedLifetime
	ECCUncorrectedLifetime
	RowsRemappedCorrectable
	RowsRemappedUncorrectable
	// RowRemapPending and RowRemapFailure are 0 or 1.
	RowRemapPending
	RowRemapFailure
	// NumMetrics is how many there are.
	NumMetrics
)

// Values has a value per Metric.
type Values [NumMetrics]Value

// Shape says what the numbers of a metric are.
type Shape uint8

// Shapes of metrics.
const (
	Gauge Shape = iota
	// Counter only grows, but begins anew with the driver.
	Counter
)

// Unit of a metric, as in the names of Prometheus metrics.
type Unit string

// Units.
const (
	Ratio   Unit = "ratio"
	Bytes   Unit = "bytes"
	Watts   Unit = "watts"
	Joules  Unit = "joules"
	Celsius Unit = "celsius"
	Hertz   Unit = "hertz"
	Count   Unit = ""
)

// About describes a metric.
type About struct {
	// Name without unit, in snake case.
	Name  string
	Unit  Unit
	Shape Shape
	// Help is a sentence without a full stop.
	Help string
}

var about = [NumMetrics]About{
	Utilization:               {"utilization", Ratio, Gauge, "Part of the time in which any kernel ran on the device"},
	SMActive:                  {"sm_active", Ratio, Gauge, "Mean part of the multiprocessors that had work"},
	SMOccupancy:               {"sm_occupancy", Ratio, Gauge, "Mean part of the possible warps that were resident"},
	TensorActive:              {"tensor_active", Ratio, Gauge, "Part of the time in which tensor pipes worked"},
	FP64Active:                {"fp64_active", Ratio, Gauge, "Part of the time in which FP64 pipes worked"},
	FP32Active:                {"fp32_active", Ratio, Gauge, "Part of the time in which FP32 pipes worked"},
	FP16Active:                {"fp16_active", Ratio, Gauge, "Part of the time in which FP16 pipes worked"},
	IntActive:                 {"int_active", Ratio, Gauge, "Part of the time in which integer pipes worked"},
	DRAMActive:                {"dram_active", Ratio, Gauge, "Part of the device memory's bandwidth that was used"},
	CopyUtilization:           {"memory_busy", Ratio, Gauge, "Part of the time in which device memory was read or written"},
	EncoderUtilization:        {"encoder_utilization", Ratio, Gauge, "Part of the time in which the video encoder worked"},
	DecoderUtilization:        {"decoder_utilization", Ratio, Gauge, "Part of the time in which the video decoder worked"},
	MemoryUsed:                {"memory_used", Bytes, Gauge, "Device memory in use, with what the driver reserves"},
	MemoryReserved:            {"memory_reserved", Bytes, Gauge, "Device memory that the driver reserves for itself"},
	MemoryTotal:               {"memory_total", Bytes, Gauge, "Device memory"},
	PowerUsage:                {"power", Watts, Gauge, "Power drawn"},
	PowerLimit:                {"power_limit", Watts, Gauge, "Power that the device may draw"},
	Energy:                    {"energy", Joules, Counter, "Energy used"},
	Temperature:               {"temperature", Celsius, Gauge, "Temperature of the device"},
	MemoryTemperature:         {"memory_temperature", Celsius, Gauge, "Temperature of the device's memory"},
	SMClock:                   {"sm_clock", Hertz, Gauge, "Clock of the multiprocessors"},
	MemoryClock:               {"memory_clock", Hertz, Gauge, "Clock of the memory"},
	PCIeSent:                  {"pcie_sent", Bytes, Counter, "Bytes that the device sent over PCIe"},
	PCIeReceived:              {"pcie_received", Bytes, Counter, "Bytes that the device received over PCIe"},
	PCIeReplays:               {"pcie_replays", Count, Counter, "PCIe packets that were sent again"},
	NVLinkSent:                {"nvlink_sent", Bytes, Counter, "Bytes that the device sent over NVLink"},
	NVLinkReceived:            {"nvlink_received", Bytes, Counter, "Bytes that the device received over NVLink"},
	ECCCorrected:              {"ecc_corrected_errors", Count, Counter, "Memory errors that were corrected, since the driver was loaded"},
	ECCUncorrected:            {"ecc_uncorrected_errors", Count, Counter, "Memory errors that could not be corrected, since the driver was loaded"},
	ECCCorrectedLifetime:      {"ecc_corrected_errors_lifetime", Count, Counter, "Memory errors that were corrected, since the device was made"},
	ECCUncorrectedLifetime:    {"ecc_uncorrected_errors_lifetime", Count, Counter, "Memory errors that could not be corrected, since the device was made"},
	RowsRemappedCorrectable:   {"rows_remapped_correctable", Count, Counter, "Memory rows replaced after correctable errors"},
	RowsRemappedUncorrectable: {"rows_remapped_uncorrectable", Count, Counter, "Memory rows replaced after uncorrectable errors"},
	RowRemapPending:           {"row_remap_pending", Count, Gauge, "1 if memory rows are to be replaced at the next reset"},
	RowRemapFailure:           {"row_remap_failure", Count, Gauge, "1 if memory rows could not be replaced"},
}

// About describes m.
func (m Metric) About() About { return about[m] }

// String returns the metric's name with its unit.
func (m Metric) String() string {
	a := about[m]
	if a.Unit == Count {
		return a.Name
	}
	return a.Name + "_" + string(a.Unit)
}

// Divided reports whether the metric is divided among the owners of a device: the
// gauges of a Share, and the counters of an Account.
func (m Metric) Divided() bool {
	return m == MemoryUsed || slices.Contains(owned[:], m) || slices.Contains(Counted(), m)
}
