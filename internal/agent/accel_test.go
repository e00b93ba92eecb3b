// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/stream"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/testwait"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// gpus is a backend of two GPUs: on one two pods share, the other does nothing.
type gpus struct{ reads, closes atomic.Int32 }

func (g *gpus) Name() string { return "fake" }
func (g *gpus) Close() error { g.closes.Add(1); return nil }

func (g *gpus) Read(context.Context) ([]accel.Sample, error) {
	n := g.reads.Add(1)
	all := make([]accel.Sample, 2)
	for i := range all {
		s := &all[i]
		s.Device = &accel.Device{Vendor: accel.NVIDIA, ID: string(rune('A' + i)), Index: string(rune('0' + i)), Limits: []string{"none"}}
		s.Time, s.Window, s.ProcessesKnown = time.Now(), time.Second, true
		s.Values[accel.Utilization], s.Values[accel.MemoryUsed] = accel.Of(float64(1-i), accel.Driver), accel.Of(100, accel.Driver)
		s.Values[accel.PowerUsage] = accel.Of(float64(n), accel.Driver)
	}
	all[0].ClockEvents = []string{"sw_power_cap"}
	all[0].Errors = []accel.DeviceError{{Code: 79, PID: 11, Message: "off \xff the bus", Time: time.Now()}}
	for _, pid := range []uint32{11, 12} {
		all[0].Processes = append(all[0].Processes, accel.Process{
			PID: pid, Memory: accel.Of(30, accel.PerProcess), Utilization: accel.Of(0.25, accel.PerProcess),
		})
	}
	return all, nil
}

func withGPUs(g *gpus) rigOption {
	owner := func(pid uint32) (*workload.Identity, string) {
		return &workload.Identity{Namespace: "ml", Pod: map[uint32]string{11: "train", 12: "infer"}[pid]}, "python"
	}
	return func(cfg *config.Config, deps *Deps, _ *rig) {
		cfg.GPUInterval = config.MinGPUInterval
		deps.Accelerators = func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector {
			return accel.NewCollector(accel.Config{
				Sources: []accel.Source{{Backend: g}}, Interval: interval, Report: report, Owner: owner, Log: quiet(),
			})
		}
	}
}

// gpuEvents reads samples until there are n.
func gpuEvents(t *testing.T, r *rig, n int, req *orb8v1.ObserveRequest) []*orb8v1.AcceleratorSample {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testwait.Limit)
	defer cancel()
	req.Kinds = append(req.Kinds, orb8v1.EventKind_EVENT_KIND_ACCELERATOR)
	stream, err := r.client.Observe(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	var all []*orb8v1.AcceleratorSample
	for len(all) < n {
		ev, err := stream.Recv()
		if err != nil {
			t.Fatalf("%v after %d samples", err, len(all))
		}
		switch s := ev.GetAccelerator(); {
		case s != nil:
			if ev.GetNodeName() != "node-a" || ev.GetTimeNs() == 0 {
				t.Errorf("%v", ev)
			}
			all = append(all, s)
		case ev.GetFlow() != nil || ev.GetConnection() != nil:
			t.Errorf("a flow: %v", ev)
		}
	}
	return all
}

func TestAccelerators(t *testing.T) {
	g := new(gpus)
	r := startRig(t, withGPUs(g))
	r.await(t, "a reading", func() bool { return len(r.accel.ledger.Reports()) == 2 })
	both := gpuEvents(t, r, 2, &orb8v1.ObserveRequest{Snapshot: true})
	busy, idle := both[0], both[1]
	if busy.GetDevice().GetId() != "A" || busy.GetDevice().GetVendor() != "nvidia" || busy.GetWindowNs() != int64(time.Second) ||
		busy.GetClockEvents()[0] != "sw_power_cap" || busy.GetErrors()[0].GetCode() != 79 || len(busy.GetDevice().GetLimits()) != 1 {
		t.Errorf("%v", busy)
	}
	type share struct {
		Pod, Command                string
		Utilization, Memory, Method string
	}
	var got []share
	for _, s := range busy.GetShares() {
		sh := share{Pod: s.GetWorkload().GetPodName()}
		if p := s.GetProcesses(); len(p) > 0 {
			sh.Command = p[0].GetProcess().GetCommand()
		}
		u, m := s.GetValues()["utilization_ratio"], s.GetValues()["memory_used_bytes"]
		sh.Utilization, sh.Memory, sh.Method = accel.Of(u.GetValue(), 1).String(), accel.Of(m.GetValue(), 1).String(), u.GetMethod()
		got = append(got, sh)
	}
	want := []share{
		{"infer", "python", "0.25 (driver)", "30 (driver)", "process"},
		{"train", "python", "0.25 (driver)", "30 (driver)", "process"},
		{"", "", "0.5 (driver)", "40 (driver)", "remainder"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("shares (-want +got):\n%s", diff)
	}
	if v := idle.GetValues()["utilization_ratio"]; v == nil || v.GetValue() != 0 || idle.GetValues()["sm_active_ratio"] != nil {
		t.Errorf("what is 0 and what is not known: %v", idle.GetValues())
	}

	// Filters are about the shares; a device without a matching one does not come.
	train := []*orb8v1.Filter{{Pods: []string{"train"}}}
	for _, req := range []*orb8v1.ObserveRequest{
		{Snapshot: true, Filters: train},
		{Follow: true, Filters: []*orb8v1.Filter{{Processes: []string{"python"}}}},
		{Follow: true, Filters: []*orb8v1.Filter{{Processes: []string{"12"}}}},
	} {
		n := 1
		if req.GetFollow() {
			n = 3
		}
		for _, s := range gpuEvents(t, r, n, req) {
			if s.GetDevice().GetId() != "A" || len(s.GetShares()) == 3 {
				t.Errorf("%v: device %s with %d shares", req, s.GetDevice().GetId(), len(s.GetShares()))
			}
			for _, sh := range s.GetShares() {
				if pods := req.GetFilters()[0].GetPods(); pods != nil && sh.GetWorkload().GetPodName() != pods[0] {
					t.Errorf("%v: a share of pod %q", req, sh.GetWorkload().GetPodName())
				}
			}
			for _, e := range s.GetErrors() {
				if e.GetWorkload().GetPodName() != "train" {
					t.Errorf("%v: an error of %v", req, e.GetWorkload())
				}
			}
		}
	}
	status := r.status().GetAccelerators()
	if len(status) != 1 || status[0].GetName() != "fake" || status[0].GetState() != "running" || status[0].GetDevices() != 2 {
		t.Errorf("status %v", status)
	}
	if s := startRig(t).status().GetAccelerators(); s != nil {
		t.Errorf("without accelerators: %v", s)
	}
}

// Other streams do not get them, and while nobody follows nothing is made of them.
func TestAcceleratorsOnlyWhereAskedFor(t *testing.T) {
	r := startRig(t, withGPUs(new(gpus)))
	i := new(stream.Interest)
	sub, _ := r.hub.Subscribe(hub.Options{Tag: i, Select: r.streams.Selections(i), Queue: 16})
	r.await(t, "readings", func() bool { return r.accel.collector.Status()[0].Reads > 3 })
	sub.Close()
	for item, ok := sub.Next(t.Context()); ok; item, ok = sub.Next(t.Context()) {
		if item.Record != nil {
			t.Errorf("nobody asked for %+v", item)
		}
	}
}

// SIGUSR1 lets the driver go; a reload does not blind what has not changed.
func TestReleaseAccelerators(t *testing.T) {
	g := new(gpus)
	r := startRig(t, withGPUs(g), func(cfg *config.Config, deps *Deps, _ *rig) {
		deps.Reload = func() (config.Config, error) { return *cfg, nil }
	})
	r.await(t, "a reading", func() bool { return g.reads.Load() > 0 })
	before := g.reads.Load()
	r.reload()
	r.await(t, "a reading after the reload", func() bool { return g.reads.Load() > before+1 })
	if n := g.closes.Load(); n != 0 {
		t.Errorf("a reload has released %d times", n)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the release", func() bool { return g.closes.Load() > 0 })
	if n := g.closes.Load(); n != 1 {
		t.Errorf("released %d times", n)
	}
}

type noGPUs struct{ gpus }

func (*noGPUs) Read(context.Context) ([]accel.Sample, error) {
	return nil, &accel.Unsupported{Reason: "no driver", Remedy: "load it"}
}

// An agent that must read accelerators says why it does not; another has none.
func TestAcceleratorsThatMustBe(t *testing.T) {
	for mode, want := range map[config.Mode]string{
		config.ModeOn:   "accelerators are set to on and cannot be read: fake is off: no driver (load it)",
		config.ModeAuto: "",
	} {
		r := startRig(t, withGPUs(nil), func(cfg *config.Config, deps *Deps, _ *rig) {
			cfg.GPU = mode
			deps.Accelerators = func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector {
				return accel.NewCollector(accel.Config{
					Sources: []accel.Source{{Backend: new(noGPUs)}}, Interval: interval, Report: report, Log: quiet(),
				})
			}
		})
		r.await(t, "the outcome", func() bool { return r.accel.collector.Status()[0].Reason == "no driver" })
		if got := r.status().GetHealthMessage(); got != want {
			t.Errorf("%s: %q, want %q", mode, got, want)
		}
	}
}

// What a driver that hangs said last is not shown as if it were so.
func TestOldReadingsAreNotShown(t *testing.T) {
	r := startRig(t, withGPUs(new(gpus)))
	r.await(t, "a reading", func() bool { return len(r.gpuFacts(time.Now()).Reports) == 2 })
	if f := r.gpuFacts(time.Now().Add(maxReportAge + time.Minute)); len(f.Reports) != 0 || len(f.Accounts) == 0 {
		t.Errorf("%d reports, %d accounts after %v", len(f.Reports), len(f.Accounts), maxReportAge)
	}
}

func TestMetricsDCGMIsServed(t *testing.T) {
	for _, on := range []bool{true, false} {
		r := startRig(t, withGPUs(new(gpus)), func(cfg *config.Config, _ *Deps, _ *rig) {
			cfg.MetricsListen, cfg.MetricsDCGM = "127.0.0.1:0", on
		})
		r.await(t, "a reading", func() bool { return len(r.accel.ledger.Reports()) == 2 })
		w := body(r.http.Handler, "/metrics/dcgm")
		if got := strings.Contains(w, "\nDCGM_FI_DEV_GPU_UTIL{"); got != on {
			t.Errorf("metrics.dcgm %v: served %v", on, got)
		}
	}
}

func body(h http.Handler, path string) string {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Body.String()
}
