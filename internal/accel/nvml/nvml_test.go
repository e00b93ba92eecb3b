// SPDX-License-Identifier: Apache-2.0

//go:build linux && cgo

package nvml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/accel/acceltest"
	"github.com/Ignoramuss/orb8/internal/accel/nvml/nvmltest"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// one is a GPU that says all there is.
const one = `count 1
driver 570.124.06
gpu0.uuid GPU-11111111-2222-3333-4444-555555555555
gpu0.name NVIDIA H200
gpu0.minor 3
gpu0.bus 59
gpu0.util 80
gpu0.memutil 40
gpu0.mem.used 1000
gpu0.mem.reserved 200
gpu0.mem.total 10000
gpu0.power 350000
gpu0.powerlimit 700000
gpu0.energy 123456
gpu0.temp 61
gpu0.smclock 1980
gpu0.memclock 3201
gpu0.clockevents 0x45
gpu0.ecc.corrected 3
gpu0.ecc.uncorrected 1
gpu0.remap.corrected 2
gpu0.remap.pending 1
gpu0.field82 70
gpu0.field186 355000
gpu0.field197 5000
gpu0.field198 6000
gpu0.field138 7
gpu0.field139 8
gpu0.gpm 1
gpu0.gpm2 75
gpu0.gpm3 50
gpu0.gpm5 140
gpu0.gpm10 -3
gpu0.gpm11 nan
gpu0.proc0 1001 600 30 0
gpu0.proc1 1002 -1 50 0
gpu0.proc2 1003 10 150 0
gpu0.proc3 1004 10 20 1000
gpu0.proc4 0 10 20 0
`

// newBackend reads the driver's devices until the test ends, and checks then that
// all handles were given back.
func newBackend(t *testing.T, d *nvmltest.Driver, change ...func(*Config)) *Backend {
	t.Helper()
	cfg := Config{Library: d.Library, Kmsg: "-"}
	for _, f := range change {
		f(&cfg)
	}
	b := New(cfg)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if n := d.Open(); n != 0 {
			t.Errorf("left open: %d libraries, %d GPM samples, %d event sets", n/10000, n/100%100, n%100)
		}
	})
	return b
}

func read(t *testing.T, b *Backend) []accel.Sample {
	t.Helper()
	all, err := b.Read(testwait.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestOneGPU(t *testing.T) {
	d := nvmltest.New(t)
	d.Set(one)
	b := newBackend(t, d)
	first := read(t, b)
	time.Sleep(gpmWindow + 10*time.Millisecond)
	second := read(t, b)
	if len(first) != 1 || len(second) != 1 {
		t.Fatalf("%d and %d samples", len(first), len(second))
	}
	s := &second[0]
	wantDevice := &accel.Device{
		Vendor: accel.NVIDIA, ID: "GPU-11111111-2222-3333-4444-555555555555", Index: "0", Model: "NVIDIA H200",
		PCI: "0000:3b:00.0", Driver: "570.124.06", Minor: 3, Instance: -1,
	}
	if diff := cmp.Diff(wantDevice, s.Device); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	want := map[string]string{
		"utilization_ratio": "0.8 (driver)", "memory_busy_ratio": "0.4 (driver)",
		"memory_used_bytes": "1200 (driver)", "memory_reserved_bytes": "200 (driver)", "memory_total_bytes": "10000 (driver)",
		"power_watts": "350 (driver)", "power_limit_watts": "700 (driver)", "energy_joules": "123.456 (driver)",
		"temperature_celsius": "61 (driver)", "memory_temperature_celsius": "70 (driver)",
		"sm_clock_hertz": "1.98e+09 (driver)", "memory_clock_hertz": "3.201e+09 (driver)",
		"ecc_corrected_errors": "0 (driver)", "ecc_uncorrected_errors": "0 (driver)",
		"ecc_corrected_errors_lifetime": "3 (driver)", "ecc_uncorrected_errors_lifetime": "1 (driver)",
		"rows_remapped_correctable": "2 (driver)", "rows_remapped_uncorrectable": "0 (driver)",
		"row_remap_pending": "1 (driver)", "row_remap_failure": "0 (driver)",
		"pcie_sent_bytes": "5000 (driver)", "pcie_received_bytes": "6000 (driver)",
		"nvlink_sent_bytes": "7168 (driver)", "nvlink_received_bytes": "8192 (driver)",
		// GPM, cut to what a ratio can be; what is no number is absent.
		"sm_active_ratio": "0.75 (gpm)", "sm_occupancy_ratio": "0.5 (gpm)", "tensor_active_ratio": "1 (gpm)",
		"dram_active_ratio": "0 (gpm)",
	}
	if diff := cmp.Diff(want, acceltest.Values(&s.Values)); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"sw_power_cap", "hw_thermal_slowdown"}, s.ClockEvents); diff != "" {
		t.Errorf("clock events (-want +got):\n%s", diff)
	}
	// Of the process samples one claims too much, one is old, and of one process
	// nobody knows the memory.
	processes := []accel.Process{
		{PID: 1001, Memory: accel.Of(600, accel.PerProcess), Utilization: accel.Of(0.3, accel.PerProcess)},
		{PID: 1002, Utilization: accel.Of(0.5, accel.PerProcess)},
		{PID: 1003, Memory: accel.Of(10, accel.PerProcess), Utilization: accel.Of(0, accel.PerProcess)},
		{PID: 1004, Memory: accel.Of(10, accel.PerProcess), Utilization: accel.Of(0, accel.PerProcess)},
	}
	if diff := cmp.Diff(processes, s.Processes); diff != "" || !s.ProcessesKnown {
		t.Errorf("processes, known %t (-want +got):\n%s", s.ProcessesKnown, diff)
	}
	if first[0].Values[accel.SMActive].Known() || first[0].Processes[0].Utilization.Known() || s.Window < gpmWindow {
		t.Errorf("the first reading has a window: %v; the second %v", acceltest.Values(&first[0].Values), s.Window)
	}
	// Too soon for another GPM window.
	if third := read(t, b); third[0].Values[accel.SMActive].Known() {
		t.Error("a GPM value of a window that is too short")
	}
}

// An older driver lacks much of it, and calling what a library lacks would end
// the process.
func TestOldDriver(t *testing.T) {
	d := nvmltest.New(t, "-DOLD")
	d.Set(one)
	b := newBackend(t, d)
	read(t, b)
	s := read(t, b)[0]
	want := map[string]string{
		"utilization_ratio": "0.8 (driver)", "memory_busy_ratio": "0.4 (driver)",
		"memory_used_bytes": "1000 (driver)", "memory_total_bytes": "10000 (driver)",
		"power_watts": "350 (driver)", "power_limit_watts": "700 (driver)", "energy_joules": "123.456 (driver)",
		"temperature_celsius": "61 (driver)", "sm_clock_hertz": "1.98e+09 (driver)", "memory_clock_hertz": "3.201e+09 (driver)",
	}
	if diff := cmp.Diff(want, acceltest.Values(&s.Values)); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	if len(s.Device.Limits) != 1 || !strings.Contains(s.Device.Limits[0], "GPM") {
		t.Errorf("limits %q", s.Device.Limits)
	}
}

// What the driver does not tell is absent, and not 0.
func TestNothingSupported(t *testing.T) {
	d := nvmltest.New(t)
	d.Set("count 1\ngpu0.uuid GPU-1\ngpu0.mem.used 0xffffffffffffffff\ngpu0.mem.total 0xffffffffffffffff\n")
	if got := acceltest.Values(&read(t, newBackend(t, d))[0].Values); len(got) != 0 {
		t.Errorf("values %v", got)
	}
}

func TestEightGPUs(t *testing.T) {
	d := nvmltest.New(t)
	var all strings.Builder
	fmt.Fprintln(&all, "count 8")
	for i := range 8 {
		fmt.Fprintf(&all, "gpu%d.uuid GPU-%d\ngpu%d.util %d\ngpu%d.proc0 %d 10 %d 0\n", i, i, i, 10*i, i, 100+i, 10*i)
	}
	d.Set(all.String())
	b := newBackend(t, d)
	read(t, b)
	for i, s := range read(t, b) {
		if s.Device.Index != fmt.Sprint(i) || s.Values[accel.Utilization].V != float64(i)/10 ||
			len(s.Processes) != 1 || s.Processes[0].Utilization.V != float64(i)/10 {
			t.Errorf("GPU %d: %+v, %v, %+v", i, s.Device, acceltest.Values(&s.Values), s.Processes)
		}
	}
}

// A device that is lost stays known as such, the others go on with the same handles, and it
// is there again when it is.
func TestLostGPU(t *testing.T) {
	d := nvmltest.New(t)
	const two = "count 2\ngpu0.uuid GPU-0\ngpu0.util 1\ngpu0.gpm 1\ngpu1.uuid GPU-1\ngpu1.util 2\ngpu1.gpm 1\n"
	states := func(all []accel.Sample) (states []string) {
		for _, s := range all {
			state := s.Device.ID
			if s.Lost {
				state += " lost"
				if got := acceltest.Values(&s.Values); len(got) != 0 {
					t.Errorf("%s has %v", state, got)
				}
			}
			states = append(states, state)
		}
		return states
	}
	now := time.Now()
	b := newBackend(t, d, func(c *Config) { c.Now = func() time.Time { return now }; c.Sys = t.TempDir() })
	begun := func() int { return d.Inits() }
	for step, c := range []struct {
		state string
		after time.Duration
		want  []string
		begun int
	}{
		{two, 0, []string{"GPU-0", "GPU-1"}, 1},
		{two + "gpu0.lost 1\n", time.Second, []string{"GPU-0 lost", "GPU-1"}, 1},
		{two + "gpu0.lost 1\n", time.Minute, []string{"GPU-0 lost", "GPU-1"}, 1},
		{two, time.Second, []string{"GPU-0 lost", "GPU-1"}, 1}, // not looked for yet
		{two, retryLost, []string{"GPU-0", "GPU-1"}, 1},
		// NVML lists it no more: the count is what is there.
		{strings.Replace(two, "count 2", "count 1", 1), time.Second, []string{"GPU-0", "GPU-1 lost"}, 2},
		{strings.Replace(two, "count 2", "count 1", 1) + "gpu1.lost 1\n", time.Hour, []string{"GPU-0", "GPU-1 lost"}, 3},
		{two, time.Second, []string{"GPU-0", "GPU-1"}, 4},
		{two + "gpu1.lost 1\n", time.Second, []string{"GPU-0", "GPU-1 lost"}, 4},
		{two + "gpu1.lost 1\n", beginAnew + time.Second, []string{"GPU-0", "GPU-1 lost"}, 5},
		{strings.Replace(two, "count 2", "count 1", 1), keepLost + time.Second, []string{"GPU-0"}, 6},
	} {
		d.Set(c.state)
		now = now.Add(c.after)
		if diff := cmp.Diff(c.want, states(read(t, b))); diff != "" || begun() != c.begun {
			t.Errorf("step %d: begun %d times, want %d (-want +got):\n%s", step, begun(), c.begun, diff)
		}
	}
}

// A device that another driver has been given is not lost.
func TestGPUGivenAway(t *testing.T) {
	d := nvmltest.New(t)
	const two = "count 2\ngpu0.uuid GPU-0\ngpu0.bus 1\ngpu1.uuid GPU-1\ngpu1.bus 2\n"
	sys := t.TempDir()
	dir := filepath.Join(sys, "bus/pci/devices/0000:02:00.0")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Symlink("../../../bus/pci/drivers/vfio-pci", filepath.Join(dir, "driver"))); err != nil {
		t.Fatal(err)
	}
	d.Set(two)
	b := newBackend(t, d, func(c *Config) { c.Sys = sys })
	read(t, b)
	d.Set(strings.Replace(two, "count 2", "count 1", 1))
	if all := read(t, b); len(all) != 1 {
		t.Errorf("%d devices, want the one that is left", len(all))
	}
}

func TestMIG(t *testing.T) {
	d := nvmltest.New(t)
	const state = `count 1
gpu0.uuid GPU-0
gpu0.name NVIDIA H100 80GB HBM3
gpu0.bus 1
gpu0.mig 1
gpu0.gpm 1
gpu0.power 300000
gpu0.proc0 1 1 1 0
gpu0.mig0.uuid MIG-a
gpu0.mig0.name NVIDIA H100 80GB HBM3 MIG 1g.10gb
gpu0.mig0.mem.used 100
gpu0.mig0.mem.total 1000
gpu0.mig0.gpm2 30
gpu0.mig0.proc0 77 90 0 0
gpu0.mig2.uuid MIG-b
gpu0.mig2.name NVIDIA H100 80GB HBM3 MIG 3g.40gb
gpu0.mig2.gpm2 60
`
	d.Set(state)
	b := newBackend(t, d)
	read(t, b)
	time.Sleep(gpmWindow + 10*time.Millisecond)
	all := read(t, b)
	if len(all) != 3 || !all[0].Device.Divided || all[0].Processes != nil {
		t.Fatalf("%+v", all)
	}
	a, c := all[1], all[2]
	if a.Device.ID != "MIG-a" || a.Device.Index != "0:0" || a.Device.Parent != "GPU-0" || a.Device.Profile != "1g.10gb" ||
		a.Device.PCI != "0000:01:00.0" || c.Device.Index != "0:2" || c.Device.Profile != "3g.40gb" {
		t.Errorf("parts %+v, %+v", a.Device, c.Device)
	}
	if a.Values[accel.SMActive].V != 0.3 || c.Values[accel.SMActive].V != 0.6 || a.Values[accel.MemoryUsed].V != 100 ||
		a.Values[accel.PowerUsage].Known() || len(a.Processes) != 1 || a.Processes[0].PID != 77 {
		t.Errorf("%v %+v, %v", acceltest.Values(&a.Values), a.Processes, acceltest.Values(&c.Values))
	}
	d.Set(strings.Replace(state, "gpu0.mig 1", "gpu0.mig 0", 1))
	if all := read(t, b); len(all) != 1 || all[0].Device.Divided || len(all[0].Processes) != 1 {
		t.Errorf("undivided: %+v", all)
	}
}

func TestXIDs(t *testing.T) {
	d := nvmltest.New(t)
	kmsg := filepath.Join(t.TempDir(), "kmsg")
	if err := os.WriteFile(kmsg, []byte("6,1,1,-;NVRM: Xid (PCI:0000:3b:00): 13, pid=1, before orb8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Set(one)
	b := newBackend(t, d, func(c *Config) { c.Kmsg = kmsg })
	if s := read(t, b); s[0].Errors != nil {
		t.Errorf("errors from before: %+v", s[0].Errors)
	}
	f, err := os.OpenFile(kmsg, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("6,2,2,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=1001, name=python, MMU fault\n"); err != nil {
		t.Fatal(err)
	}
	d.Set(one + "xid 0 31\nxid 0 79\n")
	got := read(t, b)[0].Errors
	for i := range got {
		got[i].Time = time.Time{}
	}
	want := []accel.DeviceError{
		{Code: 31, PID: 1001, Message: "pid=1001, name=python, MMU fault"}, // and not its event once more
		{Code: 79},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
	// Event 79 comes first, its line after it; then the same error once more, twice.
	if _, err := f.WriteString("6,3,3,-;NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus\n"); err != nil {
		t.Fatal(err)
	}
	if s := read(t, b); s[0].Errors != nil {
		t.Errorf("told again: %+v", s[0].Errors)
	}
	d.Set(one + "xid 0 31\nxid 0 79\nxid 0 48\nxid 0 48\n")
	if s := read(t, b); len(s[0].Errors) != 2 {
		t.Errorf("the same error twice: %+v", s[0].Errors)
	}
}

func TestUnsupported(t *testing.T) {
	unsupported := new(accel.Unsupported)
	if _, err := New(Config{HostRoot: t.TempDir()}).Read(testwait.Context(t)); !errors.As(err, &unsupported) || !strings.Contains(err.Error(), "/usr/lib64") {
		t.Errorf("no library: %v", err)
	}
	d := nvmltest.New(t)
	for code, want := range map[int]string{9: "not loaded", 4: "permission", 18: "different versions"} {
		d.Set(fmt.Sprintf("init %d\n", code))
		_, err := newBackend(t, d).Read(testwait.Context(t))
		if !errors.As(err, &unsupported) || !strings.Contains(err.Error(), want) || unsupported.Remedy == "" {
			t.Errorf("init says %d: %v", code, err)
		}
	}
	d.Set("count 0\n")
	if _, err := newBackend(t, d).Read(testwait.Context(t)); !errors.As(err, &unsupported) {
		t.Errorf("no GPU: %v", err)
	}
	text := filepath.Join(t.TempDir(), libraryName)
	if err := os.WriteFile(text, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Library: text}).Read(testwait.Context(t)); !errors.As(err, &unsupported) {
		t.Errorf("no ELF: %v", err)
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "run/nvidia/driver/usr/lib64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := find(root); got != "" {
		t.Errorf("found %s", got)
	}
	want := filepath.Join(dir, libraryName)
	if err := os.WriteFile(want, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := find(root); got != want {
		t.Errorf("found %q, want %q", got, want)
	}
}

func FuzzParseXID(f *testing.F) {
	f.Add("6,2,2,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=1001, name=python, MMU fault\n SUBSYSTEM=pci\n")
	f.Add("NVRM: Xid (PCI:0001:ff:1f.1): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")
	f.Add("NVRM: Xid (PCI:0000:3b:00): 43")
	f.Add("6,1,2,-;NVRM: Xid (PCI:0000:3b:00 GPU-I:05 GPU-CI:00): 31, pid=77, name=python, Ch 00000008")
	f.Fuzz(func(t *testing.T, record string) {
		at, e, ok := parseXID(record)
		if ok && (at.pci == "" || at.instance < -1 || e.Message == "" || len(e.Message) > maxMessage) {
			t.Errorf("%q: %+v %+v", record, at, e)
		}
	})
}

// BenchmarkEightGPUs reads eight GPUs with two processes each through the stand-in
// library, which searches a text in each call: BenchmarkStandIn is one of them.
func BenchmarkEightGPUs(b *testing.B) {
	b.Setenv("ORB8_FAKE_NVML_ONCE", "1")
	d := nvmltest.New(b)
	text := "count 8\n" // before the library is loaded, which reads it once
	for i := range 8 {
		for line := range strings.Lines(one) {
			if rest, ok := strings.CutPrefix(line, "gpu0."); ok {
				text += fmt.Sprintf("gpu%d.%s", i, strings.Replace(rest, "GPU-1", fmt.Sprint("GPU-", i), 1))
			}
		}
	}
	d.Set(text)
	backend := New(Config{Library: d.Library, Kmsg: "-"})
	defer func() { _ = backend.Close() }()
	if all, err := backend.Read(b.Context()); err != nil || len(all) != 8 {
		b.Fatal(len(all), err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := backend.Read(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStandIn is one call of the stand-in library.
func BenchmarkStandIn(b *testing.B) {
	b.Setenv("ORB8_FAKE_NVML_ONCE", "1")
	d := nvmltest.New(b)
	d.Set(one)
	backend := New(Config{Library: d.Library, Kmsg: "-"})
	defer func() { _ = backend.Close() }()
	if _, err := backend.Read(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		_, _ = backend.gpus[0].handle.GetTemperature(0)
	}
}

// kmsgFile is a kernel's log for tests; add appends a line.
func kmsgFile(t *testing.T) (path string, add func(string)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "kmsg")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return path, func(line string) {
		t.Helper()
		if _, err := f.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestXIDsCountedOnce: the driver's events and the kernel's log tell of the same errors. One
// happened as often as the one that tells of it more often says.
func TestXIDsCountedOnce(t *testing.T) {
	const line = "6,2,2,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=1001, name=python, MMU fault"
	for _, tt := range []struct {
		lines, events int
		later         bool // the events come with the next reading
		want          []int
	}{
		{2, 2, false, []int{2, 0}},
		{3, 1, false, []int{3, 0}},
		{1, 3, false, []int{3, 0}},
		{2, 2, true, []int{2, 0}},
		{1, 3, true, []int{1, 2}},
		{0, 2, false, []int{2, 0}},
	} {
		t.Run(fmt.Sprintf("%d lines, %d events, later %t", tt.lines, tt.events, tt.later), func(t *testing.T) {
			d := nvmltest.New(t)
			d.Set(one)
			kmsg, add := kmsgFile(t)
			b := newBackend(t, d, func(c *Config) { c.Kmsg = kmsg })
			read(t, b)
			for range tt.lines {
				add(line)
			}
			events := one + strings.Repeat("xid 0 31\n", tt.events)
			if !tt.later {
				d.Set(events)
			}
			got := []int{len(read(t, b)[0].Errors)}
			d.Set(events)
			got = append(got, len(read(t, b)[0].Errors))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("errors by reading (-want +got):\n%s", diff)
			}
		})
	}
}

// TestXIDsOfInstances: an error of a MIG instance is that one's, by the number of its GPU
// instance.
func TestXIDsOfInstances(t *testing.T) {
	d := nvmltest.New(t)
	const state = "count 1\ngpu0.uuid GPU-0\ngpu0.bus 59\ngpu0.mig 1\n" +
		"gpu0.mig0.uuid MIG-a\ngpu0.mig0.gi 5\ngpu0.mig1.uuid MIG-b\ngpu0.mig1.gi 3\n"
	d.Set(state)
	kmsg, add := kmsgFile(t)
	b := newBackend(t, d, func(c *Config) { c.Kmsg = kmsg })
	read(t, b)
	add("6,1,2,-;NVRM: Xid (PCI:0000:3b:00 GPU-I:05 GPU-CI:00): 31, pid=77, name=python, Ch 00000008")
	add("6,1,3,-;NVRM: Xid (PCI:0000:3b:00): 48, pid='<unknown>', name=<unknown>, DBE")
	d.Set(state + "xid 0 31 5 0\nxid 0 43 3 0\nxid 0 45 9 0\n")
	got := make(map[string][]uint64)
	for _, s := range read(t, b) {
		for _, e := range s.Errors {
			got[s.Device.ID] = append(got[s.Device.ID], e.Code)
			if e.Code == 31 && e.PID != 77 {
				t.Errorf("XID 31 of process %d", e.PID)
			}
		}
	}
	want := map[string][]uint64{"MIG-a": {31}, "MIG-b": {43}, "GPU-0": {48, 45}} // 45: of one that has gone
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLostGPUsError: what led to the loss is told of in the same reading, and is that device's.
func TestLostGPUsError(t *testing.T) {
	d := nvmltest.New(t)
	const two = "count 2\ngpu0.uuid GPU-0\ngpu0.bus 59\ngpu1.uuid GPU-1\ngpu1.bus 60\n"
	d.Set(two)
	kmsg, add := kmsgFile(t)
	b := newBackend(t, d, func(c *Config) { c.Kmsg, c.Sys = kmsg, t.TempDir() })
	read(t, b)
	add("6,1,2,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")
	d.Set(two + "gpu0.lost 1\n")
	all := read(t, b)
	if len(all) != 2 || !all[0].Lost || len(all[0].Errors) != 1 || all[0].Errors[0].Code != 79 || all[1].Lost {
		t.Errorf("%+v", all)
	}
	// NVML is begun anew, and the log is read on meanwhile.
	add("6,1,2,-;NVRM: Xid (PCI:0000:3c:00): 31, pid=7, name=a, MMU fault")
	d.Set(strings.Replace(two, "count 2", "count 1", 1) + "gpu1.lost 1\n")
	n := 0
	for _, s := range read(t, b) {
		n += len(s.Errors)
	}
	if n != 1 {
		t.Errorf("%d errors while NVML was begun anew, want 1", n)
	}
}

// TestMeanUtilization: the device's value is the mean of the driver's samples since the reading
// before, or of GPM, and a moment's only where there is neither.
func TestMeanUtilization(t *testing.T) {
	const gpu = "count 1\ngpu0.uuid GPU-0\ngpu0.util 0\n"
	samples := "gpu0.utilsample0 90 100\ngpu0.utilsample1 60 0.02\ngpu0.utilsample2 30 0.01\ngpu0.utilsample3 0 0\n"
	for name, tt := range map[string]struct {
		state     string
		want      string
		momentary bool
	}{
		"samples":        {gpu + samples, "0.3 (driver)", false},
		"none since":     {gpu + "gpu0.utilsample0 90 100\n", "0 (driver)", true},
		"no samples":     {gpu, "0 (driver)", true},
		"GPM":            {gpu + samples + "gpu0.gpm 1\ngpu0.gpm1 40\n", "0.4 (gpm)", false},
		"GPM without it": {gpu + "gpu0.gpm 1\ngpu0.gpm2 40\n", "0 (driver)", true},
	} {
		t.Run(name, func(t *testing.T) {
			d := nvmltest.New(t)
			d.Set(tt.state)
			b := newBackend(t, d)
			if first := read(t, b)[0]; !first.Momentary {
				t.Errorf("the first reading has a mean: %v", first.Values[accel.Utilization])
			}
			time.Sleep(gpmWindow + 10*time.Millisecond)
			s := read(t, b)[0]
			if got := s.Values[accel.Utilization].String(); got != tt.want || s.Momentary != tt.momentary {
				t.Errorf("%s, of a moment: %t, want %s and %t", got, s.Momentary, tt.want, tt.momentary)
			}
		})
	}
}

// TestMIGUtilization: NVML tells none of instances, GPM does.
func TestMIGUtilization(t *testing.T) {
	d := nvmltest.New(t)
	d.Set("count 1\ngpu0.uuid GPU-0\ngpu0.mig 1\ngpu0.gpm 1\ngpu0.mig0.uuid MIG-a\ngpu0.mig0.gi 5\ngpu0.mig0.gpm1 0\ngpu0.mig0.gpm2 0\ngpu0.mig0.proc0 77 1000\n")
	b := newBackend(t, d)
	read(t, b)
	time.Sleep(gpmWindow + 10*time.Millisecond)
	if s := read(t, b)[1]; s.Values[accel.Utilization].String() != "0 (gpm)" || !s.ProcessesKnown || len(s.Processes) != 1 {
		t.Errorf("%v, %+v", acceltest.Values(&s.Values), s.Processes)
	}
}

// TestComputeInstances: what is told of a GPU instance is not told thrice where three compute
// instances are in it.
func TestComputeInstances(t *testing.T) {
	d := nvmltest.New(t)
	var state strings.Builder
	state.WriteString("count 1\ngpu0.uuid GPU-0\ngpu0.mig 1\ngpu0.gpm 1\n")
	for i := range 4 {
		gi := 2
		if i == 3 {
			gi = 4
		}
		fmt.Fprintf(&state, "gpu0.mig%d.uuid MIG-%d\ngpu0.mig%d.gi %d\ngpu0.mig%d.ci %d\ngpu0.mig%d.mem.used 100\ngpu0.mig%d.mem.total 1000\ngpu0.mig%d.proc0 %d 10\n",
			i, i, i, gi, i, i, i, i, i, 100+i)
	}
	d.Set(state.String())
	all := read(t, newBackend(t, d))
	if len(all) != 5 {
		t.Fatalf("%d devices", len(all))
	}
	for i, s := range all[1:] {
		alone := i == 3
		if s.Values[accel.MemoryUsed].Known() != alone || len(s.Processes) != 1 || (len(s.Device.Limits) == 0) != alone {
			t.Errorf("%s: %v, %+v, %q", s.Device.ID, acceltest.Values(&s.Values), s.Processes, s.Device.Limits)
		}
	}
}

// TestProcessSamples: the driver takes one of each process about once a second, at times of
// their own. A process whose latest is not old keeps it; one without did not run.
func TestProcessSamples(t *testing.T) {
	const state = "count 1\ngpu0.uuid GPU-0\ngpu0.util 50\ngpu0.proc0 101 1\ngpu0.proc1 102 1\ngpu0.proc2 103 1\n"
	d := nvmltest.New(t)
	d.Set(state)
	b := newBackend(t, d)
	parts := func() (all []string) {
		for _, p := range read(t, b)[0].Processes {
			all = append(all, p.Utilization.String())
		}
		return all
	}
	if diff := cmp.Diff([]string{"-", "-", "-"}, parts()); diff != "" {
		t.Errorf("at first (-want +got):\n%s", diff)
	}
	time.Sleep(50 * time.Millisecond)
	// Of 101 two since then, of 102 one of before then, of 103 one that is too old.
	d.Set(state + "gpu0.sample0 101 30 0.01\ngpu0.sample1 101 50 0\ngpu0.sample2 102 20 0.5\ngpu0.sample3 103 90 10\n")
	if diff := cmp.Diff([]string{"0.4 (process)", "0.2 (process)", "0 (process)"}, parts()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	d.Set(state) // no samples at all: nobody ran, but for who has a fresh one
	if diff := cmp.Diff([]string{"0.5 (process)", "0.2 (process)", "0 (process)"}, parts()); diff != "" {
		t.Errorf("without samples (-want +got):\n%s", diff)
	}
	d.Set(state + "gpu0.error nvmlDeviceGetProcessUtilization 4\n")
	if diff := cmp.Diff([]string{"-", "-", "-"}, parts()); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
}

// TestClockSetBack: stamps are by the wall clock; when it is set back, samples go on to count.
func TestClockSetBack(t *testing.T) {
	ahead := time.Hour
	d := nvmltest.New(t)
	d.Set("count 1\ngpu0.uuid GPU-0\ngpu0.proc0 101 1 30 -3600\n")
	b := newBackend(t, d, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(ahead) } })
	read(t, b)
	read(t, b)
	ahead = 0
	d.Set("count 1\ngpu0.uuid GPU-0\ngpu0.proc0 101 1 30 0\n")
	read(t, b)
	if got := read(t, b)[0].Processes[0].Utilization.String(); got != "0.3 (process)" {
		t.Errorf("after the clock was set back: %s", got)
	}
}

// TestRefused: what the driver refuses is absent, and why is said with the device.
func TestRefused(t *testing.T) {
	const state = "count 1\ngpu0.uuid GPU-0\ngpu0.util 10\ngpu0.temp 50\ngpu0.proc0 101 1\ngpu0.gfx0 102 1\n"
	d := nvmltest.New(t)
	d.Set(state + "gpu0.error nvmlDeviceGetComputeRunningProcesses 4\ngpu0.error nvmlDeviceGetTemperature 16\n")
	b := newBackend(t, d)
	s := read(t, b)[0]
	limits := strings.Join(s.Device.Limits, "\n")
	if s.ProcessesKnown || s.Values[accel.Temperature].Known() || !strings.Contains(limits, "GetComputeRunningProcesses: no permission") ||
		!strings.Contains(limits, "GetTemperature: GPU requires a reset") {
		t.Errorf("known: %t, %v, %q", s.ProcessesKnown, acceltest.Values(&s.Values), s.Device.Limits)
	}
	d.Set(state)
	s = read(t, b)[0]
	if !s.ProcessesKnown || len(s.Processes) != 2 || strings.Contains(strings.Join(s.Device.Limits, ""), notRead) {
		t.Errorf("afterwards: known: %t, %+v, %q", s.ProcessesKnown, s.Processes, s.Device.Limits)
	}
}

// TestVolatileECC: errors since the driver was loaded are not those of the device's life.
func TestVolatileECC(t *testing.T) {
	d := nvmltest.New(t)
	d.Set("count 1\ngpu0.uuid GPU-0\ngpu0.ecc.corrected 3\ngpu0.ecc.uncorrected 2\ngpu0.ecc.volatile.corrected 1\n")
	want := map[string]string{
		"ecc_corrected_errors": "1 (driver)", "ecc_uncorrected_errors": "0 (driver)",
		"ecc_corrected_errors_lifetime": "3 (driver)", "ecc_uncorrected_errors_lifetime": "2 (driver)",
	}
	if diff := cmp.Diff(want, acceltest.Values(&read(t, newBackend(t, d))[0].Values)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRecovery: what the driver wants done is taken over, of whatever type it is.
func TestRecovery(t *testing.T) {
	for value, want := range map[string]accel.Recovery{
		"0 uint": accel.RecoveryNone, "1 uint": accel.RecoveryReset, "2 ullong": accel.RecoveryReboot, "4 int": accel.RecoveryDrainAndReset,
		"99 uint": accel.RecoveryUnknown, "": accel.RecoveryUnknown,
	} {
		t.Run(value, func(t *testing.T) {
			d := nvmltest.New(t)
			state := "count 1\ngpu0.uuid GPU-0\ngpu0.power 1000\n"
			if value != "" {
				state += "gpu0.field230 " + value + "\n"
			}
			d.Set(state)
			if got := read(t, newBackend(t, d))[0].Recovery; got != want {
				t.Errorf("%d, want %d", got, want)
			}
		})
	}
}
