// SPDX-License-Identifier: Apache-2.0

package amd

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/acceltest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// tree has two AMD GPUs, the second of which says little, a connector and another
// vendor's card.
func tree() map[string]string {
	const a, b = "class/drm/card1/device/", "class/drm/card2/device/"
	const h = a + "hwmon/hwmon4/"
	return map[string]string{
		"module/amdgpu/version": "6.10.5",
		a + "vendor":            "0x1002", a + "device": "0x74a1", a + "uevent": "DRIVER=amdgpu\nPCI_SLOT_NAME=0000:C1:00.0",
		a + "unique_id": "95ae4b2d7f3c1a08", a + "product_name": "AMD Instinct MI300X OAM", a + "current_compute_partition": "SPX",
		a + "gpu_busy_percent": "93", a + "mem_busy_percent": "41", a + "mem_info_vram_used": "1000", a + "mem_info_vram_total": "206141652992",
		a + "pcie_replay_count": "3", a + "ras/umc_err_count": "ue: 1\nce: 20", a + "ras/gfx_err_count": "ue: 0\nce: 2",
		h + "power1_average": "512000000", h + "power1_cap": "750000000",
		h + "temp1_label": "edge", h + "temp1_input": "48000", h + "temp2_label": "junction", h + "temp2_input": "61000",
		h + "temp3_label": "mem", h + "temp3_input": "55000",
		h + "freq1_label": "sclk", h + "freq1_input": "2100000000", h + "freq2_label": "mclk", h + "freq2_input": "1300000000",
		b + "vendor": "0x1002", b + "device": "0x74a9", b + "uevent": "PCI_SLOT_NAME=0000:0a:00.0",
		b + "mem_info_vram_total": "100", b + "mem_info_vram_used": "oops", b + "gpu_busy_percent": "101", b + "current_compute_partition": "CPX",
		"class/drm/card0/device/vendor":         "0x1a03",
		"class/drm/card1-DP-1/device/vendor":    "0x1002",
		"class/kfd/kfd/topology/nodes/0/gpu_id": "0", "class/kfd/kfd/topology/nodes/0/properties": "cpu_cores_count 96",
		"class/kfd/kfd/topology/nodes/1/gpu_id": "30381", "class/kfd/kfd/topology/nodes/1/properties": "location_id 49408\ndomain 0",
		"class/kfd/kfd/topology/nodes/2/gpu_id": "30999", "class/kfd/kfd/topology/nodes/2/properties": "location_id 2560\ndomain 0",
		"class/kfd/kfd/proc/1200/vram_30381": "600", "class/kfd/kfd/proc/1200/vram_30999": "0",
		"class/kfd/kfd/proc/1201/vram_30381": "0", "class/kfd/kfd/proc/1201/queues/0/gpuid": "30381",
		"class/kfd/kfd/proc/1202/vram_30381": "0", "class/kfd/kfd/proc/1202/pasid": "32770",
		"class/kfd/kfd/proc/self/vram_30381": "1",
	}
}

func TestRead(t *testing.T) {
	sys := t.TempDir()
	acceltest.Tree(t, sys, tree())
	b := New(Config{Sys: sys})
	all, err := b.Read(testwait.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 {
		t.Fatalf("%d devices: %+v", len(all), all)
	}
	little, s := all[0], all[1] // by bus address
	want := &accel.Device{
		Vendor: accel.AMD, ID: "amd-95ae4b2d7f3c1a08", Index: "1", Model: "AMD Instinct MI300X OAM", PCI: "0000:c1:00.0",
		Driver: "6.10.5", Minor: 1, Instance: -1, Limits: s.Device.Limits,
	}
	if diff := cmp.Diff(want, s.Device); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	wantValues := map[string]string{
		"utilization_ratio": "0.93 (driver)", "memory_busy_ratio": "0.41 (driver)",
		"memory_used_bytes": "1000 (driver)", "memory_total_bytes": "2.06141652992e+11 (driver)",
		"pcie_replays": "3 (driver)", "ecc_uncorrected_errors": "1 (driver)", "ecc_corrected_errors": "22 (driver)",
		"power_watts": "512 (driver)", "power_limit_watts": "750 (driver)",
		"temperature_celsius": "61 (driver)", "memory_temperature_celsius": "55 (driver)",
		"sm_clock_hertz": "2.1e+09 (driver)", "memory_clock_hertz": "1.3e+09 (driver)",
	}
	if diff := cmp.Diff(wantValues, acceltest.Values(&s.Values)); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	wantProcesses := []accel.Process{{PID: 1200, Memory: accel.Of(600, accel.PerProcess)}, {PID: 1201, Memory: accel.Of(0, accel.PerProcess)}}
	if diff := cmp.Diff(wantProcesses, s.Processes); diff != "" || !s.ProcessesKnown {
		t.Errorf("processes, known %t (-want +got):\n%s", s.ProcessesKnown, diff)
	}
	// What is no number, or more than there can be, is absent.
	if diff := cmp.Diff(map[string]string{"memory_total_bytes": "100 (driver)"}, acceltest.Values(&little.Values)); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	if d := little.Device; d.ID != "0000:0a:00.0" || d.Model != "AMD GPU 74a9" || !strings.Contains(strings.Join(d.Limits, ";"), "partitioned (CPX)") {
		t.Errorf("%+v", d)
	}
	if !little.ProcessesKnown || len(little.Processes) != 0 {
		t.Errorf("processes %v, known %t", little.Processes, little.ProcessesKnown)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Without KFD it is not known that there are no processes.
func TestWithoutKFD(t *testing.T) {
	sys := t.TempDir()
	files := tree()
	maps.DeleteFunc(files, func(name, _ string) bool { return strings.HasPrefix(name, "class/kfd") })
	acceltest.Tree(t, sys, files)
	all, err := New(Config{Sys: sys}).Read(testwait.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.ProcessesKnown || !strings.Contains(strings.Join(s.Device.Limits, ";"), "no processes") {
			t.Errorf("%s: known %t, limits %v", s.Device.ID, s.ProcessesKnown, s.Device.Limits)
		}
	}
}

func TestNone(t *testing.T) {
	unsupported := new(accel.Unsupported)
	if _, err := New(Config{Sys: t.TempDir()}).Read(testwait.Context(t)); !errors.As(err, &unsupported) || unsupported.Remedy != "" {
		t.Errorf("%v", err)
	}
}

// A tree of any content gives sound values, or none.
func FuzzRead(f *testing.F) {
	f.Add("93", "1000", "ue: 1\nce: 20", "location_id 49408\ndomain 0", "61000")
	f.Add("-1", "0x10", "ce: 99999999999999999999", "domain", "")
	f.Fuzz(func(t *testing.T, busy, used, ras, properties, temp string) {
		sys := t.TempDir()
		files := tree()
		const a = "class/drm/card1/device/"
		files[a+"gpu_busy_percent"], files[a+"mem_info_vram_used"], files[a+"ras/umc_err_count"] = busy, used, ras
		files["class/kfd/kfd/topology/nodes/1/properties"], files[a+"hwmon/hwmon4/temp1_input"] = properties, temp
		files[a+"uevent"] = properties
		acceltest.Tree(t, sys, files)
		all, err := New(Config{Sys: sys}).Read(testwait.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		acceltest.Sound(t, all)
	})
}
