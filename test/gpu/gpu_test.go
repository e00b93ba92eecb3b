// SPDX-License-Identifier: Apache-2.0

//go:build gpu

// Package gpu compares what orb8 says of real NVIDIA GPUs with what nvidia-smi says in
// the same second. test/gpu/run.sh builds and runs it.
package gpu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// tools is where run.sh has built orb8 and load; recordings go to records, if it is set.
func tools() string   { return os.Getenv("ORB8_GPU_TOOLS") }
func records() string { return os.Getenv("ORB8_GPU_RECORDS") }

// run returns what a command prints.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, complaint.Bytes())
	}
	return out
}

// record keeps what was seen, for the tests that need no GPU.
func record(t *testing.T, name string, text []byte) {
	t.Helper()
	if records() == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(records(), name), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// smi is what nvidia-smi says of one GPU; NaN for what it does not know.
type smi struct {
	uuid, name, pci, driver                                string
	total, used, reserved, utilization, temperature, power float64
	processes                                              map[uint32]float64 // MiB
}

func number(s string) float64 {
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil {
		return math.NaN()
	}
	return v
}

func rows(t *testing.T, text []byte) [][]string {
	t.Helper()
	r := csv.NewReader(bytes.NewReader(text))
	r.TrimLeadingSpace = true
	all, err := r.ReadAll()
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return all
}

func askSMI(t *testing.T, name string) map[string]*smi {
	t.Helper()
	gpus := run(t, "nvidia-smi", "--format=csv,noheader,nounits",
		"--query-gpu=uuid,name,pci.bus_id,driver_version,memory.total,memory.used,memory.reserved,utilization.gpu,temperature.gpu,power.draw")
	apps := run(t, "nvidia-smi", "--format=csv,noheader,nounits", "--query-compute-apps=gpu_uuid,pid,used_memory")
	record(t, name+".gpus.csv", gpus)
	record(t, name+".apps.csv", apps)
	all := make(map[string]*smi)
	for _, f := range rows(t, gpus) {
		all[f[0]] = &smi{
			uuid: f[0], name: f[1], pci: f[2], driver: f[3], total: number(f[4]), used: number(f[5]), reserved: number(f[6]),
			utilization: number(f[7]), temperature: number(f[8]), power: number(f[9]),
			processes: make(map[uint32]float64),
		}
	}
	for _, f := range rows(t, apps) {
		if pid, err := strconv.ParseUint(strings.TrimSpace(f[1]), 10, 32); err == nil && all[f[0]] != nil {
			all[f[0]].processes[uint32(pid)] = number(f[2])
		}
	}
	return all
}

func askOrb8(t *testing.T, name string) map[string]*orb8v1.AcceleratorSample {
	t.Helper()
	out := run(t, filepath.Join(tools(), "orb8"), "gpus", "--local", "-o", "json")
	record(t, name+".orb8.json", out)
	all := make(map[string]*orb8v1.AcceleratorSample)
	for line := range bytes.Lines(out) {
		ev := new(orb8v1.Event)
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(line, ev); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if s := ev.GetAccelerator(); s != nil {
			all[s.GetDevice().GetId()] = s
		}
	}
	return all
}

func value(s *orb8v1.AcceleratorSample, name string) float64 {
	if m := s.GetValues()[name]; m != nil {
		return m.GetValue()
	}
	return math.NaN()
}

// near fails if both are known and further apart than by.
func near(t *testing.T, what string, orb8, smi, by float64) {
	t.Helper()
	switch {
	case math.IsNaN(orb8) && !math.IsNaN(smi):
		t.Errorf("%s: orb8 does not know it, nvidia-smi has %g", what, smi)
	case math.Abs(orb8-smi) > by:
		t.Errorf("%s: orb8 has %g, nvidia-smi %g, more than %g apart", what, orb8, smi, by)
	default:
		t.Logf("%s: orb8 %g, nvidia-smi %g", what, orb8, smi)
	}
}

// load keeps the first GPU busy until the test ends.
func load(t *testing.T, args ...string) (pid uint32) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(tools(), "load"), args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("load %s: %q, %v", strings.Join(args, " "), line, err)
	}
	time.Sleep(3 * time.Second) // until the driver's averages know it
	return uint32(cmd.Process.Pid)
}

// both asks both, one right after the other, and compares what must agree at any time.
func both(t *testing.T, name string) (map[string]*orb8v1.AcceleratorSample, map[string]*smi) {
	t.Helper()
	ours, theirs := askOrb8(t, name), askSMI(t, name)
	if len(ours) == 0 || len(theirs) == 0 {
		t.Fatalf("orb8 sees %d GPUs, nvidia-smi %d", len(ours), len(theirs))
	}
	for id, n := range theirs {
		s := ours[id]
		if s == nil {
			t.Errorf("orb8 does not see GPU %s", id)
			continue
		}
		d := s.GetDevice()
		if d.GetModel() != n.name || d.GetDriverVersion() != n.driver || !strings.EqualFold("0000"+d.GetPciAddress(), n.pci) {
			t.Errorf("identity: %v, nvidia-smi has %q %q %q", d, n.name, n.driver, n.pci)
		}
		near(t, "memory, MiB", value(s, "memory_total_bytes")/(1<<20), n.total, 1)
		reserved := n.reserved
		if math.IsNaN(reserved) {
			reserved = 0
		}
		near(t, "memory in use, MiB", value(s, "memory_used_bytes")/(1<<20), n.used+reserved, 64)
		near(t, "temperature", value(s, "temperature_celsius"), n.temperature, 5)
		near(t, "power, W", value(s, "power_watts"), n.power, 0.2*n.power+20)
		for name, whole := range s.GetValues() {
			sum, parts := 0.0, 0
			for _, sh := range s.GetShares() {
				if m := sh.GetValues()[name]; m != nil {
					sum, parts = sum+m.GetValue(), parts+1
				}
			}
			if parts > 0 && math.Abs(sum-whole.GetValue()) > 0.01*whole.GetValue() {
				t.Errorf("%s: the parts add up to %g, the device has %g", name, sum, whole.GetValue())
			}
		}
	}
	return ours, theirs
}

// first is the GPU that load uses: that of the lowest index.
func first(all map[string]*orb8v1.AcceleratorSample) *orb8v1.AcceleratorSample {
	for _, s := range all {
		if s.GetDevice().GetIndex() == "0" {
			return s
		}
	}
	return nil
}

// processOf finds a process among those of a GPU.
func processOf(s *orb8v1.AcceleratorSample, pid uint32) *orb8v1.AcceleratorProcess {
	for _, sh := range s.GetShares() {
		for _, p := range sh.GetProcesses() {
			if p.GetProcess().GetPid() == pid {
				return p
			}
		}
	}
	return nil
}

func TestIdle(t *testing.T) {
	ours, theirs := both(t, "idle")
	for id, s := range ours {
		near(t, "utilization", 100*value(s, "utilization_ratio"), theirs[id].utilization, 5)
	}
}

func TestContextOnly(t *testing.T) {
	pid := load(t, "context", "60", "1024")
	ours, theirs := both(t, "context")
	s := first(ours)
	near(t, "utilization", 100*value(s, "utilization_ratio"), theirs[s.GetDevice().GetId()].utilization, 5)
	memory(t, s, theirs[s.GetDevice().GetId()], pid, 1024)
}

// memory checks that of a process: at least what it allocated.
func memory(t *testing.T, s *orb8v1.AcceleratorSample, n *smi, pid uint32, least float64) {
	t.Helper()
	p := processOf(s, pid)
	if p == nil {
		t.Errorf("process %d is not among those of the GPU, of which nvidia-smi has %v: %v", pid, n.processes, s.GetShares())
		return
	}
	got := p.GetMemoryBytes().GetValue() / (1 << 20)
	if got < least {
		t.Errorf("process %d has %g MiB, it allocated %g", pid, got, least)
	}
	if want, ok := n.processes[pid]; ok {
		near(t, fmt.Sprintf("memory of process %d, MiB", pid), got, want, 16)
	}
}

func TestCompute(t *testing.T) {
	pid := load(t, "compute", "60", "2048")
	ours, theirs := both(t, "compute")
	s := first(ours)
	n := theirs[s.GetDevice().GetId()]
	near(t, "utilization", 100*value(s, "utilization_ratio"), n.utilization, 10)
	if u := value(s, "utilization_ratio"); u < 0.9 {
		t.Errorf("utilization %g of a GPU that computes all the time", u)
	}
	if v := value(s, "sm_active_ratio"); v < 0.5 { // false where it is not known
		t.Errorf("multiprocessors with work: %g", v)
	}
	memory(t, s, n, pid, 2048)
}

func TestMemoryBound(t *testing.T) {
	load(t, "memory", "60", "4096")
	ours, theirs := both(t, "memory")
	s := first(ours)
	near(t, "utilization", 100*value(s, "utilization_ratio"), theirs[s.GetDevice().GetId()].utilization, 10)
	if v := value(s, "dram_active_ratio"); v < 0.3 {
		t.Errorf("memory bandwidth in use: %g", v)
	}
}

// TestTwoProcesses: each has its part, and one more than the other.
func TestTwoProcesses(t *testing.T) {
	much := load(t, "compute", "60", "2048", "60")
	little := load(t, "compute", "60", "1024", "15")
	ours, theirs := both(t, "two")
	s := first(ours)
	n := theirs[s.GetDevice().GetId()]
	memory(t, s, n, much, 2048)
	memory(t, s, n, little, 1024)
	a, b := processOf(s, much), processOf(s, little)
	if a == nil || b == nil {
		return
	}
	if x, y := a.GetUtilizationRatio(), b.GetUtilizationRatio(); x == nil || y == nil || x.GetValue() <= y.GetValue() {
		t.Errorf("utilization of two unequal processes: %v and %v", x, y)
	}
}
