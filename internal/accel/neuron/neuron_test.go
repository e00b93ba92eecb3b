// SPDX-License-Identifier: Apache-2.0

package neuron

import (
	"bytes"
	"context"
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
	"github.com/Ignoramuss/orb8/internal/testwait"
)

func healthy(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/healthy.json")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// broken has one part of a healthy report replaced.
func broken(t testing.TB, old, with string) []byte {
	t.Helper()
	text := healthy(t)
	if !bytes.Contains(text, []byte(old)) {
		t.Fatalf("%s is not in the report", old)
	}
	return bytes.Replace(text, []byte(old), []byte(with), 1)
}

func samples(t testing.TB, line []byte) []accel.Sample {
	t.Helper()
	r, err := parse(line)
	if err != nil {
		t.Fatal(err)
	}
	return r.samples(time.Unix(1, 0))
}

type brief struct {
	Utilization, Memory string
	Processes           string
	Known               bool
}

func briefly(all []accel.Sample) []brief {
	var out []brief
	for _, s := range all {
		b := brief{s.Values[accel.Utilization].String(), s.Values[accel.MemoryUsed].String(), "", s.ProcessesKnown}
		for _, p := range s.Processes {
			b.Processes += fmt.Sprintf("[%d %s %s]", p.PID, p.Utilization, p.Memory)
		}
		out = append(out, b)
	}
	return out
}

func TestReport(t *testing.T) {
	all := samples(t, healthy(t))
	want := []brief{
		{"0.45 (runtime)", "6.3106588e+07 (runtime)", "[20843 0.4 (runtime) 6.3106088e+07 (runtime)][21050 0.05 (runtime) 500 (runtime)]", true},
		{"0.5 (runtime)", "2000 (runtime)", "[21050 0.5 (runtime) 2000 (runtime)]", true},
		{"0 (runtime)", "0 (runtime)", "", true},
	}
	if diff := cmp.Diff(want, briefly(all)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s := &all[0]
	if s.Device.Model != "AWS Trainium" || s.Device.Index != "0" || s.Values[accel.MemoryTotal].V != 32<<30 ||
		s.Values[accel.ECCCorrected].V != 3 || s.Values[accel.ECCUncorrected].V != 3 || s.Window < time.Second {
		t.Errorf("%+v", s)
	}
	if v := all[1].Values[accel.ECCCorrected]; v.Known() {
		t.Errorf("a counter that was not told: %v", v)
	}
}

// What one runtime does not tell makes the device's value absent, never less.
func TestReportWithErrors(t *testing.T) {
	const alone = "[21050 0.5 (runtime) 2000 (runtime)]"
	idle := brief{"0 (runtime)", "0 (runtime)", "", true}
	for _, c := range []struct {
		name, old, with string
		want            []brief
	}{
		{"counters of one runtime", `"1":{"neuroncore_utilization":0}},"error":""}`, `"1":{"neuroncore_utilization":0}},"error":"no such process"}`, []brief{
			{"-", "6.3106588e+07 (runtime)", "[20843 - 6.3106088e+07 (runtime)][21050 0.05 (runtime) 500 (runtime)]", true},
			{"0.5 (runtime)", "2000 (runtime)", alone, true}, idle,
		}},
		{"memory of one runtime", `"tensors":1000}}}},"error":""}`, `"tensors":1000}}}},"error":"timed out"}`, []brief{
			{"0.45 (runtime)", "-", "[20843 0.4 (runtime) -][21050 0.05 (runtime) 500 (runtime)]", true},
			{"0.5 (runtime)", "2000 (runtime)", alone, true}, idle,
		}},
		{"a core without a number", `"0":{"neuroncore_utilization":80}`, `"0":null`, []brief{
			{"-", "6.3106588e+07 (runtime)", "[20843 0 (runtime) 6.3106088e+07 (runtime)][21050 0.05 (runtime) 500 (runtime)]", true},
			{"0.5 (runtime)", "2000 (runtime)", alone, true}, idle,
		}},
		{"a runtime of which nothing is known", `{"neuron_runtime_data":[`, `{"neuron_runtime_data":[{"pid":7,"error":"gone"},`, []brief{
			{"-", "-", "[20843 0.4 (runtime) 6.3106088e+07 (runtime)][21050 0.05 (runtime) 500 (runtime)]", false},
			{"-", "-", alone, false}, {"-", "-", "", false},
		}},
		{"cores that are not there", `"2":{"neuroncore_utilization":100}`, `"2":{"neuroncore_utilization":100},"99":{"neuroncore_utilization":100},"x":{},"-1":{}`, briefly(samples(t, healthy(t)))},
		{"more than all", `"neuroncore_utilization":100`, `"neuroncore_utilization":300`, briefly(samples(t, healthy(t)))},
	} {
		if diff := cmp.Diff(c.want, briefly(samples(t, broken(t, c.old, c.with)))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	for old, with := range map[string]string{
		`"neuron_device_count":3`: `"neuron_device_count":1000000000`,
		`34359738368,"error":""`:  `34359738368,"error":"no driver"`,
		`{"neuron_runtime_data"`:  `{"neuron_runtime_data`,
	} {
		if _, err := parse(broken(t, old, with)); err == nil {
			t.Errorf("%s: no error", with)
		}
	}
}

// tree is the driver's part of sysfs.
func tree(t *testing.T, devices int) string {
	t.Helper()
	sys := t.TempDir()
	for i := range devices {
		acceltest.Tree(t, filepath.Join(sys, "devices/virtual/neuron_device", fmt.Sprint("neuron", i)), map[string]string{
			"info/serial_number":                                 fmt.Sprint("serial", i),
			"stats/hardware/mem_ecc_uncorrected":                 "2",
			"neuron_core0/stats/memory_usage/device_mem/present": "100",
			"neuron_core1/stats/memory_usage/device_mem/present": "50",
		})
	}
	return sys
}

// monitor is a neuron-monitor in shell.
func monitor(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "healthy.json"), healthy(t), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "neuron-monitor")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncd "+dir+"\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMonitor(t *testing.T) {
	// It gets its settings, and reports again and again.
	path := monitor(t, `[ "$1" = -c ] || exit 3; grep -q '"period":"1s"' "$2" || exit 4
while :; do cat healthy.json; sleep 0.05; done`)
	b := New(Config{Sys: tree(t, 3), Monitor: path})
	all, err := b.Read(testwait.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || all[1].Device.ID != "neuron-serial1" || all[0].Values[accel.Utilization].String() != "0.45 (runtime)" {
		t.Errorf("%+v", all)
	}
	done := b.stream.done
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-done:
	default:
		t.Error("it still runs")
	}
	if again, err := b.Read(testwait.Context(t)); err != nil || len(again) != 3 {
		t.Errorf("after Close: %v", err)
	}
	_ = b.Close()
}

func TestMonitorThatFails(t *testing.T) {
	for script, want := range map[string]string{
		"echo no driver >&2; exit 2":             "exit status 2 no driver",
		"echo '{\"neuron_'; exec sleep 5":        "parse a report",
		"exec sleep 60":                          "not reported in time",
		"head -c 5000000 /dev/zero | tr '\\0' x": "token too long",
		"echo '{\"neuron_hardware_info\":{\"error\":\"EACCES\"}}'; exec sleep 5": "EACCES",
	} {
		b := New(Config{Sys: tree(t, 1), Monitor: monitor(t, script)})
		limit := testwait.Limit
		if want == "not reported in time" {
			limit = time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, err := b.Read(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", script, err, want)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Without neuron-monitor the driver's files tell less, and it is said that they do.
func TestSysfs(t *testing.T) {
	b := New(Config{Sys: tree(t, 2), Monitor: "-"})
	all, err := b.Read(testwait.Context(t))
	if err != nil || len(all) != 2 {
		t.Fatal(len(all), err)
	}
	s := &all[1]
	if s.Device.ID != "neuron-serial1" || s.Values[accel.MemoryUsed].String() != "150 (driver)" || s.Values[accel.ECCUncorrected].V != 2 ||
		s.Values[accel.Utilization].Known() || s.ProcessesKnown || !strings.Contains(s.Device.Limits[0], "neuron-monitor is not installed") {
		t.Errorf("%+v %+v", s.Device, s)
	}
	unsupported := new(accel.Unsupported)
	if _, err := New(Config{Sys: t.TempDir()}).Read(testwait.Context(t)); !errors.As(err, &unsupported) {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(healthy(f))
	f.Add(broken(f, `"error":""`, `"error":"x"`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parse(line)
		if err != nil {
			return
		}
		acceltest.Sound(t, r.samples(time.Unix(1, 0)))
	})
}
