// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// gpuLedger has 10 s of a shared GPU with two pods and a leftover, and of one that
// a pod holds and does not use.
func gpuLedger(begin time.Time) *accel.Ledger {
	l := accel.NewLedger()
	train := &workload.Identity{Namespace: "ml", Pod: "train-0", Kind: "Job", Name: "train"}
	infer := &workload.Identity{Namespace: "ml", Pod: "infer-x", Kind: "Deployment", Name: "infer"}
	shared := &accel.Device{
		Vendor: accel.NVIDIA, ID: "GPU-a", Index: "0", Model: "H200 \xff", PCI: "0000:3b:00.0", Driver: "570", Minor: 0, Instance: -1,
	}
	whole := &accel.Device{Vendor: accel.NVIDIA, ID: "GPU-b", Index: "1", Model: "H200", Minor: 1, Instance: -1}
	for i := range 3 {
		s := accel.Sample{Device: shared, Time: begin.Add(time.Duration(i) * 5 * time.Second), ProcessesKnown: true}
		s.Values[accel.Utilization], s.Values[accel.MemoryUsed] = accel.Of(1, accel.Driver), accel.Of(1<<30, accel.Driver)
		s.Values[accel.MemoryTotal], s.Values[accel.MemoryReserved] = accel.Of(4<<30, accel.Driver), accel.Of(128<<20, accel.Driver)
		s.Values[accel.PowerUsage], s.Values[accel.Energy] = accel.Of(400, accel.Driver), accel.Of(float64(1000*i), accel.Driver)
		s.Values[accel.Temperature] = accel.Of(60, accel.Driver)
		s.ClockEvents = []string{"sw_power_cap"}
		if i == 1 {
			s.Errors = []accel.DeviceError{{Code: 31, PID: 11, Time: time.UnixMilli(1500)}}
		}
		s.Processes = []accel.Process{
			{PID: 11, Memory: accel.Of(256<<20, accel.PerProcess), Utilization: accel.Of(0.25, accel.PerProcess)},
			{PID: 12, Memory: accel.Of(512<<20, accel.PerProcess), Utilization: accel.Of(0.5, accel.PerProcess)},
		}
		r := accel.Attribute(s, []accel.Holder{
			{Owner: train, Container: "a", Resource: "nvidia.com/gpu.shared", Shared: true, Source: "device_plugin"},
		}, func(pid uint32) *workload.Identity { return map[uint32]*workload.Identity{11: train, 12: infer}[pid] })
		r.HoldersAt = s.Time
		l.Add(&r)
		s = accel.Sample{Device: whole, Time: s.Time, ProcessesKnown: true}
		s.Values[accel.Utilization], s.Values[accel.MemoryUsed] = accel.Of(0, accel.Driver), accel.Of(1<<20, accel.Driver)
		r = accel.Attribute(s, []accel.Holder{{Owner: train, Container: "a", Resource: "nvidia.com/gpu", Source: "device_plugin"}}, nil)
		r.HoldersAt = s.Time
		l.Add(&r)
	}
	return l
}

func factsOf(l *accel.Ledger) *GPUFacts {
	up := true
	f := &GPUFacts{
		Reports: l.Reports(), Accounts: l.Accounts(), Errors: l.ErrorCounts(),
		Backends:     []accel.Status{{Name: "nvml", State: accel.StateStuck, Devices: 2, Reads: 3, Failed: 1, Skipped: 4, ReadTime: time.Second}},
		DeviceErrors: l.DeviceErrors(), Kubelet: &up,
	}
	return f
}

func TestAcceleratorMetrics(t *testing.T) {
	e := exporterOf(NewWorkloads(false, 1000, new(loss.Counters)))
	f := factsOf(gpuLedger(time.Now()))
	e.facts = func() Facts { return Facts{GPUs: f} }
	const (
		a     = `model="H200 �"`
		b     = `model="H200"`
		ids   = `uuid="GPU-a",vendor="nvidia"`
		idsB  = `uuid="GPU-b",vendor="nvidia"`
		train = `namespace="ml",pod="train-0"`
		infer = `namespace="ml",pod="infer-x"`
		job   = `workload="train",workload_kind="Job"`
		dep   = `workload="infer",workload_kind="Deployment"`
		none  = `namespace="",pod=""`
		rest  = `workload="unattributed",workload_kind=""`
	)
	want := `# HELP orb8_gpu_utilization_ratio Part of the time in which any kernel ran on the device.
# TYPE orb8_gpu_utilization_ratio gauge
orb8_gpu_utilization_ratio{gpu="0",method="driver",` + a + `,` + ids + `} 1
orb8_gpu_utilization_ratio{gpu="1",method="driver",` + b + `,` + idsB + `} 0
# HELP orb8_gpu_workload_utilization_ratio Part of the time in which any kernel ran on the device: the workload's part.
# TYPE orb8_gpu_workload_utilization_ratio gauge
orb8_gpu_workload_utilization_ratio{gpu="0",method="process",` + a + `,` + infer + `,` + ids + `,` + dep + `} 0.5
orb8_gpu_workload_utilization_ratio{gpu="0",method="process",` + a + `,` + train + `,` + ids + `,` + job + `} 0.25
orb8_gpu_workload_utilization_ratio{gpu="0",method="remainder",` + a + `,` + none + `,` + ids + `,` + rest + `} 0.25
orb8_gpu_workload_utilization_ratio{gpu="1",method="exclusive",` + b + `,` + train + `,` + idsB + `,` + job + `} 0
orb8_gpu_workload_utilization_ratio{gpu="1",method="remainder",` + b + `,` + none + `,` + idsB + `,` + rest + `} 0
# HELP orb8_gpu_workload_energy_joules_total Energy used: the workload's part.
# TYPE orb8_gpu_workload_energy_joules_total counter
orb8_gpu_workload_energy_joules_total{gpu="0",method="estimated",` + a + `,` + infer + `,` + ids + `,` + dep + `} 1000
orb8_gpu_workload_energy_joules_total{gpu="0",method="estimated",` + a + `,` + train + `,` + ids + `,` + job + `} 500
orb8_gpu_workload_energy_joules_total{gpu="0",method="remainder",` + a + `,` + none + `,` + ids + `,` + rest + `} 500
# HELP orb8_gpu_workload_idle_seconds_total Time for which the pod held the device in vain; reason is no_process, context_only (a process that runs nothing) or low_util (less than 5 %).
# TYPE orb8_gpu_workload_idle_seconds_total counter
orb8_gpu_workload_idle_seconds_total{gpu="0",` + a + `,` + train + `,reason="context_only",` + ids + `,` + job + `} 0
orb8_gpu_workload_idle_seconds_total{gpu="0",` + a + `,` + train + `,reason="low_util",` + ids + `,` + job + `} 0
orb8_gpu_workload_idle_seconds_total{gpu="0",` + a + `,` + train + `,reason="no_process",` + ids + `,` + job + `} 0
orb8_gpu_workload_idle_seconds_total{gpu="1",` + b + `,` + train + `,reason="context_only",` + idsB + `,` + job + `} 0
orb8_gpu_workload_idle_seconds_total{gpu="1",` + b + `,` + train + `,reason="low_util",` + idsB + `,` + job + `} 0
orb8_gpu_workload_idle_seconds_total{gpu="1",` + b + `,` + train + `,reason="no_process",` + idsB + `,` + job + `} 10
# HELP orb8_gpu_workload_unallocated_seconds_total Time for which the workload had the device open and did not hold it.
# TYPE orb8_gpu_workload_unallocated_seconds_total counter
orb8_gpu_workload_unallocated_seconds_total{gpu="0",` + a + `,` + infer + `,` + ids + `,` + dep + `} 10
orb8_gpu_workload_unallocated_seconds_total{gpu="0",` + a + `,` + train + `,` + ids + `,` + job + `} 0
orb8_gpu_workload_unallocated_seconds_total{gpu="1",` + b + `,` + train + `,` + idsB + `,` + job + `} 0
# HELP orb8_gpu_errors_total Errors that the driver reported (XIDs), with whom they were about where that is known.
# TYPE orb8_gpu_errors_total counter
orb8_gpu_errors_total{code="31",gpu="0",` + a + `,` + train + `,` + ids + `,` + job + `} 1
# HELP orb8_gpu_device_errors_total Errors that the driver reported (XIDs) since the device was first seen, whoever they were about: 0 before the first.
# TYPE orb8_gpu_device_errors_total counter
orb8_gpu_device_errors_total{gpu="0",` + a + `,` + ids + `} 1
orb8_gpu_device_errors_total{gpu="1",` + b + `,` + idsB + `} 0
# HELP orb8_gpu_last_error_timestamp_seconds When the driver reported its latest error, in Unix time, with its code and whom it was about.
# TYPE orb8_gpu_last_error_timestamp_seconds gauge
orb8_gpu_last_error_timestamp_seconds{code="31",gpu="0",` + a + `,` + train + `,` + ids + `,` + job + `} 1.5
# HELP orb8_gpu_backend_state 1 for the state of each way to read accelerators: running, off, failed or stuck.
# TYPE orb8_gpu_backend_state gauge
orb8_gpu_backend_state{backend="nvml",state="failed"} 0
orb8_gpu_backend_state{backend="nvml",state="off"} 0
orb8_gpu_backend_state{backend="nvml",state="running"} 0
orb8_gpu_backend_state{backend="nvml",state="stuck"} 1
`
	if err := testutil.CollectAndCompare(e, strings.NewReader(want), "orb8_gpu_utilization_ratio", "orb8_gpu_workload_utilization_ratio",
		"orb8_gpu_workload_energy_joules_total", "orb8_gpu_workload_idle_seconds_total", "orb8_gpu_workload_unallocated_seconds_total",
		"orb8_gpu_errors_total", "orb8_gpu_device_errors_total", "orb8_gpu_last_error_timestamp_seconds", "orb8_gpu_backend_state"); err != nil {
		t.Error(err)
	}
}

// gathered maps each family to the sums of its values by the label uuid.
func gathered(t *testing.T, c prometheus.Collector, by string) map[string]map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sums := make(map[string]map[string]float64)
	for _, f := range all {
		of := make(map[string]float64)
		for _, m := range f.GetMetric() {
			i := slices.IndexFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == by })
			if i >= 0 {
				of[m.GetLabel()[i].GetValue()] += m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
			}
		}
		sums[f.GetName()] = of
	}
	return sums
}

// The series by workload add up to those of the device.
func TestAcceleratorMetricsAddUp(t *testing.T) {
	e := exporterOf(NewWorkloads(false, 1000, new(loss.Counters)))
	f := factsOf(gpuLedger(time.Now()))
	e.facts = func() Facts { return Facts{GPUs: f} }
	sums := gathered(t, e, "uuid")
	compared := 0
	for m := range accel.NumMetrics {
		name := m.String()
		if m.About().Shape == accel.Counter {
			name += "_total"
		}
		for uuid, whole := range sums["orb8_gpu_"+name] {
			if parts, ok := sums["orb8_gpu_workload_"+name][uuid]; ok {
				compared++
				if math.Abs(parts-whole) > 0.01*whole {
					t.Errorf("%s of %s: the parts add up to %g, the device has %g", name, uuid, parts, whole)
				}
			} else if m.Divided() {
				t.Errorf("%s of %s is not divided", name, uuid)
			}
		}
	}
	if compared < 5 {
		t.Errorf("only %d values compared", compared)
	}
}

// TestHealthMetrics: each device has one verdict, also one that has no values.
func TestHealthMetrics(t *testing.T) {
	l := accel.NewLedger()
	for i, change := range []func(*accel.Sample){
		func(*accel.Sample) {}, func(s *accel.Sample) { s.Lost = true }, func(s *accel.Sample) { s.Recovery = accel.RecoveryReset },
	} {
		s := accel.Sample{Device: &accel.Device{Vendor: accel.NVIDIA, ID: fmt.Sprint("GPU-", i), Index: fmt.Sprint(i), Instance: -1}, Time: time.Now()}
		change(&s)
		r := accel.Attribute(s, nil, nil)
		l.Add(&r)
	}
	f := factsOf(l)
	e := exporterOf(NewWorkloads(false, 1000, new(loss.Counters)))
	e.facts = func() Facts { return Facts{GPUs: f} }
	for by, want := range map[string]map[string]float64{
		"verdict": {"ok": 1, "degraded": 0, "reset_needed": 1, "drain": 1, "replace": 0},
		"uuid":    {"GPU-0": 1, "GPU-1": 1, "GPU-2": 1},
	} {
		if diff := cmp.Diff(want, gathered(t, e, by)["orb8_gpu_health"]); diff != "" {
			t.Errorf("by %s (-want +got):\n%s", by, diff)
		}
	}
	if diff := cmp.Diff(map[string]float64{"GPU-0": 0, "GPU-1": 1, "GPU-2": 0}, gathered(t, e, "uuid")["orb8_gpu_lost"]); diff != "" {
		t.Errorf("lost (-want +got):\n%s", diff)
	}
}

// dcgm-exporter's names, with no device's value under two pods.
func TestDCGMMetrics(t *testing.T) {
	f := factsOf(gpuLedger(time.Now()))
	e := NewDCGM("node-a", func() *GPUFacts { return f })
	const a = `DCGM_FI_DRIVER_VERSION="570",GPU_I_ID="",GPU_I_PROFILE="",Hostname="node-a",UUID="GPU-a",`
	const tail = `pci_bus_id="00000000:3B:00.0",`
	want := `# HELP DCGM_FI_DEV_GPU_UTIL Utilization, in percent.
# TYPE DCGM_FI_DEV_GPU_UTIL untyped
DCGM_FI_DEV_GPU_UTIL{DCGM_FI_DRIVER_VERSION="",GPU_I_ID="",GPU_I_PROFILE="",Hostname="node-a",UUID="GPU-b",container="a",device="nvidia1",gpu="1",modelName="H200",namespace="ml",pci_bus_id="",pod="train-0"} 0
DCGM_FI_DEV_GPU_UTIL{` + a + `container="",device="nvidia0",gpu="0",modelName="H200 �",namespace="",` + tail + `pod=""} 25
DCGM_FI_DEV_GPU_UTIL{` + a + `container="",device="nvidia0",gpu="0",modelName="H200 �",namespace="ml",` + tail + `pod="infer-x"} 50
DCGM_FI_DEV_GPU_UTIL{` + a + `container="a",device="nvidia0",gpu="0",modelName="H200 �",namespace="ml",` + tail + `pod="train-0"} 25
# HELP DCGM_FI_DEV_GPU_TEMP Temperature, in degrees Celsius.
# TYPE DCGM_FI_DEV_GPU_TEMP untyped
DCGM_FI_DEV_GPU_TEMP{` + a + `container="",device="nvidia0",gpu="0",modelName="H200 �",namespace="",` + tail + `pod=""} 60
# HELP DCGM_FI_DEV_XID_ERRORS The latest XID; orb8_gpu_errors_total counts them.
# TYPE DCGM_FI_DEV_XID_ERRORS untyped
DCGM_FI_DEV_XID_ERRORS{` + a + `container="",device="nvidia0",gpu="0",modelName="H200 �",namespace="",` + tail + `pod=""} 31
DCGM_FI_DEV_XID_ERRORS{DCGM_FI_DRIVER_VERSION="",GPU_I_ID="",GPU_I_PROFILE="",Hostname="node-a",UUID="GPU-b",container="a",device="nvidia1",gpu="1",modelName="H200",namespace="ml",pci_bus_id="",pod="train-0"} 0
`
	if err := testutil.CollectAndCompare(e, strings.NewReader(want), "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_XID_ERRORS"); err != nil {
		t.Error(err)
	}
	sums := gathered(t, e, "UUID")
	for name, want := range map[string]float64{
		// Ours includes what the driver reserves, DCGM's does not.
		"DCGM_FI_DEV_FB_USED": 896, "DCGM_FI_DEV_FB_RESERVED": 128, "DCGM_FI_DEV_FB_FREE": 3072, "DCGM_FI_DEV_POWER_USAGE": 400,
		"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 2e6, "DCGM_FI_PROF_GR_ENGINE_ACTIVE": 1,
	} {
		if got := sums[name]["GPU-a"]; math.Abs(got-want) > 1e-9*want {
			t.Errorf("%s: %g, want %g", name, got, want)
		}
	}
	// A MIG instance goes by its device's UUID and its own number.
	part := accel.Report{Sample: accel.Sample{Device: &accel.Device{
		Vendor: accel.NVIDIA, ID: "MIG-1", Index: "0:2", Model: "H200 MIG 1g", Parent: "GPU-a", Instance: 7, Profile: "1g.18gb", Minor: 0,
	}}}
	part.Values[accel.MemoryUsed] = accel.Of(1<<20, accel.Driver)
	f.Reports = append(f.Reports, part)
	if err := testutil.CollectAndCompare(e, strings.NewReader(""), "DCGM_FI_DEV_FB_USED"); err == nil ||
		!strings.Contains(err.Error(), `GPU_I_ID="7",GPU_I_PROFILE="1g.18gb",Hostname="node-a",UUID="GPU-a"`) {
		t.Errorf("a MIG instance: %v", err)
	}
}
