// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/workload"
)

func pod(name string) *workload.Identity {
	return &workload.Identity{Namespace: "ml", Pod: name, Kind: "Job", Name: "train"}
}

// owners maps processes to pods: 100 to 199 are pod a's, 200 to 299 b's, and so
// on; nobody knows those below 100.
func ownerOf(pid uint32) *workload.Identity {
	if pid < 100 {
		return nil
	}
	return pod(string(rune('a' + pid/100 - 1)))
}

func process(pid uint32, memory, utilization float64) Process {
	return Process{PID: pid, Memory: Of(memory, PerProcess), Utilization: Of(utilization, PerProcess)}
}

func gpuSample(util, memory, power float64, processes ...Process) Sample {
	s := Sample{Device: &Device{Vendor: NVIDIA, ID: "GPU-1"}, Time: time.Unix(1000, 0), Processes: processes, ProcessesKnown: true}
	s.Values[Utilization], s.Values[MemoryUsed] = Of(util, Driver), Of(memory, Driver)
	s.Values[PowerUsage], s.Values[TensorActive] = Of(power, Driver), Of(util/2, GPM)
	return s
}

// moment is a GPU whose utilization is one of the moment, with work on its multiprocessors over
// the window.
func moment(util, power float64, processes ...Process) Sample {
	s := gpuSample(util, 40, power, processes...)
	s.Momentary = true
	s.Values[SMActive], s.Values[TensorActive] = Of(0.3, GPM), Of(0.5, GPM)
	return s
}

func reserved(s Sample, v float64) Sample {
	s.Values[MemoryReserved] = Of(v, Driver)
	return s
}

func held(name string, shared bool) Holder {
	return Holder{Owner: pod(name), Container: "main", Resource: "nvidia.com/gpu", Shared: shared, Source: "device_plugin"}
}

// summary of a share is what tests look at.
type summary struct {
	Owner                              string
	Utilization, Memory, Power, Tensor string
	Idle                               Idle
}

func summarize(shares []Share) []summary {
	var all []summary
	for _, s := range shares {
		name := ""
		if s.Owner != nil {
			name = s.Owner.Pod
		}
		all = append(all, summary{
			name, s.Values[Utilization].String(), s.Values[MemoryUsed].String(), s.Values[PowerUsage].String(),
			s.Values[TensorActive].String(), s.Idle,
		})
	}
	return all
}

func TestAttribute(t *testing.T) {
	unknownUse := Process{PID: 100, Memory: Of(10, PerProcess)}
	noProcesses := gpuSample(0.5, 40, 300)
	noProcesses.ProcessesKnown = false
	hidden := gpuSample(0.5, 40, 300, process(1, 25, 0.5))
	hidden.ProcessesKnown = false
	for name, c := range map[string]struct {
		sample  Sample
		holders []Holder
		want    []summary
	}{
		"one holder has everything": {
			gpuSample(0.5, 40, 300, process(100, 30, 0.2)), []Holder{held("a", false)},
			[]summary{
				{"a", "0.5 (exclusive)", "30 (process)", "300 (exclusive)", "0.25 (exclusive)", Busy},
				{"", "0 (remainder)", "10 (remainder)", "0 (remainder)", "0 (remainder)", Busy},
			},
		},
		"one holder, and the processes cannot be seen": {
			noProcesses, []Holder{held("a", false)},
			[]summary{{"a", "0.5 (exclusive)", "40 (exclusive)", "300 (exclusive)", "0.25 (exclusive)", Busy}},
		},
		"one holder, and whose the processes are cannot be seen": {
			hidden, []Holder{held("a", false)},
			[]summary{
				{"a", "0.5 (exclusive)", "40 (exclusive)", "300 (exclusive)", "0.25 (exclusive)", Busy},
				{"", "0 (remainder)", "0 (remainder)", "0 (remainder)", "0 (remainder)", Busy},
			},
		},
		"two holders, and whose the processes are cannot be seen": {
			hidden, []Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "-", "-", "-", "-", Busy}, {"b", "-", "-", "-", "-", Busy},
				{"", "0.5 (remainder)", "40 (remainder)", "300 (remainder)", "0.25 (remainder)", Busy},
			},
		},
		"two share": {
			gpuSample(1, 40, 300, process(100, 10, 0.25), process(200, 20, 0.5)), []Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "0.25 (process)", "10 (process)", "75 (estimated)", "-", Busy},
				{"b", "0.5 (process)", "20 (process)", "150 (estimated)", "-", Busy},
				{"", "0.25 (remainder)", "10 (remainder)", "75 (remainder)", "0.5 (remainder)", Busy},
			},
		},
		"the processes claim more than the device did": {
			gpuSample(0.5, 40, 300, process(100, 40, 0.5), process(200, 40, 0.5)), []Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "0.25 (process)", "20 (process)", "150 (estimated)", "-", Busy},
				{"b", "0.25 (process)", "20 (process)", "150 (estimated)", "-", Busy},
				{"", "0 (remainder)", "0 (remainder)", "0 (remainder)", "0.25 (remainder)", Busy},
			},
		},
		"one of two does nothing, one has nothing there": {
			gpuSample(0.8, 40, 300, process(100, 10, 0), process(300, 10, 0.8)), []Holder{held("a", true), held("b", true), held("c", true)},
			[]summary{
				{"a", "0 (process)", "10 (process)", "0 (estimated)", "-", ContextOnly},
				{"b", "0 (process)", "0 (process)", "0 (estimated)", "-", NoProcess},
				{"c", "0.8 (process)", "10 (process)", "300 (estimated)", "-", Busy},
				{"", "0 (remainder)", "20 (remainder)", "0 (remainder)", "0.4 (remainder)", Busy},
			},
		},
		"somebody uses what another holds": {
			gpuSample(0.5, 40, 100, process(200, 30, 0.5)), []Holder{held("a", false)},
			[]summary{
				{"a", "0 (process)", "0 (process)", "0 (estimated)", "-", NoProcess},
				{"b", "0.5 (process)", "30 (process)", "100 (estimated)", "-", Busy},
				{"", "0 (remainder)", "10 (remainder)", "0 (remainder)", "0.25 (remainder)", Busy},
			},
		},
		"used without being held, alone": {
			gpuSample(0.5, 40, 100, process(200, 40, 0.1)), nil,
			[]summary{{"b", "0.5 (exclusive)", "40 (process)", "100 (exclusive)", "0.25 (exclusive)", Busy}},
		},
		"a process of nobody": {
			gpuSample(0.5, 40, 100, process(1, 40, 0.5)), []Holder{held("a", false)},
			[]summary{
				{"a", "0 (process)", "0 (process)", "0 (estimated)", "-", NoProcess},
				{"", "0.5 (remainder)", "40 (remainder)", "100 (remainder)", "0.25 (remainder)", Busy},
			},
		},
		"the utilization of processes is not known": {
			gpuSample(0.5, 40, 100, unknownUse, Process{PID: 200}), []Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "-", "10 (process)", "-", "-", Busy},
				{"b", "-", "-", "-", "-", Busy},
				{"", "0.5 (remainder)", "30 (remainder)", "100 (remainder)", "0.25 (remainder)", Busy},
			},
		},
		"a moment of idleness, and processes that ran": { // over the time before it
			moment(0, 300, process(100, 10, 0.4), process(200, 20, 0.4)), []Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "0.4 (process)", "10 (process)", "150 (estimated)", "-", Busy},
				{"b", "0.4 (process)", "20 (process)", "150 (estimated)", "-", Busy},
				{"", "0 (remainder)", "10 (remainder)", "0 (remainder)", "0.5 (remainder)", Busy},
			},
		},
		"a moment of work, and processes that ran little": {
			moment(1, 300, process(100, 10, 0.1), process(200, 20, 0.1)), []Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "0.1 (process)", "10 (process)", "150 (estimated)", "-", Busy},
				{"b", "0.1 (process)", "20 (process)", "150 (estimated)", "-", Busy},
				{"", "0 (remainder)", "10 (remainder)", "0 (remainder)", "0.5 (remainder)", Busy},
			},
		},
		"a moment, and of one process it is not known": {
			moment(0, 300, process(100, 10, 0.4), Process{PID: 200}), []Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "0.4 (process)", "10 (process)", "-", "-", Busy},
				{"b", "-", "-", "-", "-", Busy},
				{"", "0 (remainder)", "30 (remainder)", "300 (remainder)", "0.5 (remainder)", Busy},
			},
		},
		"a moment of idleness, and of no process it is known": {
			moment(0, 300, Process{PID: 100, Memory: Of(10, PerProcess)}, Process{PID: 200, Memory: Of(20, PerProcess)}),
			[]Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "-", "10 (process)", "-", "-", Busy}, {"b", "-", "20 (process)", "-", "-", Busy},
				{"", "0 (remainder)", "10 (remainder)", "300 (remainder)", "0.5 (remainder)", Busy},
			},
		},
		"a moment of idleness of a holder whose multiprocessors had work": {
			moment(0, 300, Process{PID: 100, Memory: Of(40, PerProcess)}), []Holder{held("a", false)},
			[]summary{{"a", "0 (exclusive)", "40 (process)", "300 (exclusive)", "0.5 (exclusive)", Busy}},
		},
		"one holder, and the memory of a process is not told": {
			reserved(gpuSample(0.5, 1200, 300, Process{PID: 100}, process(100, 30, 0.5)), 200), []Holder{held("a", false)},
			[]summary{
				{"a", "0.5 (exclusive)", "1000 (exclusive)", "300 (exclusive)", "0.25 (exclusive)", Busy},
				{"", "0 (remainder)", "200 (remainder)", "0 (remainder)", "0 (remainder)", Busy},
			},
		},
		"two holders, and the memory of a process is not told": {
			gpuSample(0.5, 40, 300, Process{PID: 100, Utilization: Of(0.25, PerProcess)}, process(100, 30, 0.25), process(200, 5, 0)),
			[]Holder{held("a", true), held("b", true)},
			[]summary{
				{"a", "0.5 (process)", "-", "300 (estimated)", "-", Busy},
				{"b", "0 (process)", "5 (process)", "0 (estimated)", "-", ContextOnly},
				{"", "0 (remainder)", "35 (remainder)", "0 (remainder)", "0.25 (remainder)", Busy},
			},
		},
		"nobody is there": {gpuSample(0, 0, 0), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := Attribute(c.sample, c.holders, ownerOf)
			if d := cmp.Diff(c.want, summarize(got.Shares)); d != "" {
				t.Errorf("shares (-want +got):\n%s", d)
			}
		})
	}
}

// Whatever a device does and whoever uses it: what the shares have adds up to
// what the device has, nothing is negative, and no value of the device is at two
// shares.
func TestPartsAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	maybe := func(max float64) Value {
		switch r.IntN(4) {
		case 0:
			return Value{}
		case 1:
			return Of(0, Driver)
		}
		return Of(r.Float64()*max, Driver)
	}
	for range 100_000 {
		s := Sample{Device: &Device{ID: "GPU-1"}, Time: time.Unix(1000, 0), ProcessesKnown: r.IntN(4) > 0, Momentary: r.IntN(2) > 0}
		for m := range s.Values {
			s.Values[m] = maybe(1)
		}
		s.Values[MemoryUsed] = maybe(80e9)
		for range r.IntN(5) {
			s.Processes = append(s.Processes, Process{
				PID: 50 + uint32(r.IntN(400)), Memory: maybe(60e9), Utilization: maybe(1),
			})
		}
		var holders []Holder
		for i := range r.IntN(4) {
			holders = append(holders, held(string(rune('a'+i)), r.IntN(2) == 0))
		}
		report := Attribute(s, holders, ownerOf)
		for _, m := range append(owned[:], MemoryUsed) {
			if problem := addsUp(m, &report); problem != "" {
				t.Fatalf("%s: %s\nsample %+v\nshares %+v", m, problem, s, summarize(report.Shares))
			}
		}
	}
}

func addsUp(m Metric, r *Report) string {
	whole := r.Values[m]
	total, exclusive := 0.0, 0
	for _, s := range r.Shares {
		v := s.Values[m]
		switch {
		case !v.Known():
			continue
		case !whole.Known() && m != Utilization && m != MemoryUsed:
			return "a share has what the device has not"
		case v.V < 0 || math.IsNaN(v.V):
			return fmt.Sprintf("a share has %v", v)
		case v.Method == Exclusive:
			exclusive++
		}
		total += v.V
	}
	switch {
	case exclusive > 1:
		return "several have all of it"
	case !whole.Known() || len(r.Shares) == 0:
		return ""
	case math.Abs(total-whole.V) > 0.01*whole.V+1e-9:
		return fmt.Sprintf("the shares have %g of %g", total, whole.V)
	}
	return ""
}

func TestDividedDeviceHasNoShares(t *testing.T) {
	s := gpuSample(0.5, 40, 300, process(100, 1, 1))
	s.Device = &Device{ID: "GPU-1", Divided: true}
	if got := Attribute(s, []Holder{held("a", false)}, ownerOf); got.Shares != nil {
		t.Errorf("shares: %+v", summarize(got.Shares))
	}
}
