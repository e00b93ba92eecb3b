// SPDX-License-Identifier: Apache-2.0

package accel

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Ignoramuss/orb8/internal/workload"
)

// scripted is a backend that does what a test says.
type scripted struct {
	name   string
	read   func(ctx context.Context) ([]Sample, error)
	closed atomic.Int32
}

func (s *scripted) Name() string                               { return s.name }
func (s *scripted) Read(ctx context.Context) ([]Sample, error) { return s.read(ctx) }
func (s *scripted) Close() error                               { s.closed.Add(1); return nil }

func always(values map[Metric]Value) func(context.Context) ([]Sample, error) {
	return func(context.Context) ([]Sample, error) {
		s := Sample{Device: &Device{ID: "GPU-1"}, Time: time.Now()}
		for m, v := range values {
			s.Values[m] = v
		}
		return []Sample{s}, nil
	}
}

// collect runs a collector over the sources for a while of the bubble's time.
func collect(t *testing.T, d time.Duration, sources ...Source) (*Collector, []Report) {
	t.Helper()
	var reports []Report
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	c := NewCollector(Config{
		Sources: sources, Interval: func() time.Duration { return time.Second },
		Owner:  func(uint32) (*workload.Identity, string) { return nil, "" },
		Report: func(r []Report) { reports = append(reports, r...) },
	})
	c.Run(ctx)
	return c, reports
}

func TestCollectorSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &scripted{name: "one", read: always(nil)}
		c, reports := collect(t, 4500*time.Millisecond, Source{Backend: b})
		synctest.Wait()
		if s := c.Status()[0]; len(reports) != 5 || s.State != StateRunning || s.Reads != 5 || s.Devices != 1 {
			t.Errorf("%d reports, status %+v", len(reports), s)
		}
		if b.closed.Load() != 1 {
			t.Errorf("closed %d times", b.closed.Load())
		}
	})
}

// A driver that hangs is told of, holds up nothing and is taken up again.
func TestCollectorStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var first atomic.Bool
		hangs := &scripted{name: "hangs", read: func(ctx context.Context) ([]Sample, error) {
			if first.CompareAndSwap(false, true) {
				time.Sleep(20 * time.Second) // whatever ctx says
			}
			return always(nil)(ctx)
		}}
		well := &scripted{name: "well", read: always(nil)}
		c, reports := collect(t, 10500*time.Millisecond, Source{Backend: hangs}, Source{Backend: well})
		s := c.Status()
		if s[0].State != StateStuck || s[0].Skipped < 5 || s[0].Reason == "" || s[1].State != StateRunning || len(reports) != 11 {
			t.Errorf("%d reports, status %+v", len(reports), s)
		}
		if time.Since(began) > 11*time.Second {
			t.Errorf("the end took until %v", time.Since(began))
		}
		first.Store(false)
		c, _ = collect(t, 30*time.Second, Source{Backend: hangs})
		if s := c.Status()[0]; s.State != StateRunning || s.Skipped == 0 {
			t.Errorf("later: %+v", s)
		}
		time.Sleep(time.Minute) // for the calls under way to come back
	})
}

func TestCollectorFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		absent := &scripted{name: "absent", read: func(context.Context) ([]Sample, error) {
			return nil, &Unsupported{Reason: "no library", Remedy: "install it"}
		}}
		reads := 0
		failing := &scripted{name: "failing", read: func(ctx context.Context) ([]Sample, error) {
			if reads++; reads < 3 {
				return nil, errors.New("driver says no")
			}
			return always(nil)(ctx)
		}}
		c, reports := collect(t, 25500*time.Millisecond, Source{Backend: absent}, Source{Backend: failing})
		s := c.Status()
		if s[0].State != StateOff || s[0].Reason != "no library" || s[0].Remedy != "install it" {
			t.Errorf("absent: %+v", s[0])
		}
		if s[1].State != StateRunning || s[1].Failed != 2 || len(reports) != 6 {
			t.Errorf("failing: %+v, %d reports", s[1], len(reports))
		}
	})
}

func TestCollectorRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &scripted{name: "one", read: always(nil)}
		var n atomic.Int32
		c := NewCollector(Config{
			Sources: []Source{{Backend: b}}, Interval: func() time.Duration { return time.Second },
			Owner: func(uint32) (*workload.Identity, string) { return nil, "" }, Report: func([]Report) { n.Add(1) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		go c.Run(ctx)
		time.Sleep(2500 * time.Millisecond)
		c.Release()
		time.Sleep(10 * time.Second)
		if s := c.Status()[0]; b.closed.Load() != 1 || n.Load() != 3 || s.State != StateOff {
			t.Errorf("closed %d times, %d reports, %+v", b.closed.Load(), n.Load(), s)
		}
		time.Sleep(10 * time.Second)
		if s := c.Status()[0]; n.Load() < 4 || s.State != StateRunning {
			t.Errorf("later: %d reports, %+v", n.Load(), s)
		}
		cancel()
		synctest.Wait()
	})
}

// A second source adds what the first does not know, and changes nothing else.
func TestCollectorFills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		main := &scripted{name: "nvml", read: always(map[Metric]Value{Utilization: Of(0.5, Driver)})}
		fill := &scripted{name: "dcgm", read: func(context.Context) ([]Sample, error) {
			same, other := Sample{Device: &Device{ID: "gpu-1"}, Time: time.Now()}, Sample{Device: &Device{ID: "GPU-2"}, Time: time.Now()}
			same.Values[Utilization], same.Values[TensorActive] = Of(0.9, DCGM), Of(0.1, DCGM)
			return []Sample{same, other}, nil
		}}
		_, reports := collect(t, 5500*time.Millisecond, Source{Backend: main}, Source{Backend: fill, Fills: true})
		last := make(map[string]Report)
		for _, r := range reports[4:] { // once both have been read
			last[r.Device.ID] = r
		}
		one := last["GPU-1"]
		if one.Values[Utilization] != Of(0.5, Driver) || one.Values[TensorActive] != Of(0.1, DCGM) {
			t.Errorf("filled in: %v", one.Values)
		}
		if _, ok := last["GPU-2"]; !ok || len(last) != 2 {
			t.Errorf("devices %v", last)
		}
	})
}

// A source counts as one that has answered only when its devices are known, or a second
// source could take them for its own in between.
func TestCollectorAnswersWithDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Collector
		reports := 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		c = NewCollector(Config{
			Sources: []Source{{Backend: &scripted{name: "nvml", read: always(nil)}}}, Interval: func() time.Duration { return time.Second },
			Owner: func(uint32) (*workload.Identity, string) { return nil, "" },
			Report: func([]Report) {
				reports++
				if c.Answered() {
					t.Error("answered before its devices were known")
				}
			},
		})
		c.Run(ctx)
		if reports != 1 || !c.Answered() {
			t.Errorf("%d reports, answered: %t", reports, c.Answered())
		}
	})
}

// Under MPS the driver tells what the server did, which is its clients' doing: whose, nobody
// knows. They are not idle.
func TestCollectorMPS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &scripted{name: "nvml", read: func(context.Context) ([]Sample, error) {
			return []Sample{gpuSample(0.8, 40, 300, process(50, 1, 0.8), process(100, 10, 0), process(200, 20, 0))}, nil
		}}
		var got []Report
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		NewCollector(Config{
			Sources: []Source{{Backend: b}}, Interval: func() time.Duration { return time.Second },
			Holders: func(*Device) []Holder { return []Holder{held("a", true), held("b", true)} },
			Owner: func(pid uint32) (*workload.Identity, string) {
				if pid == 50 {
					return nil, "nvidia-cuda-mps"
				}
				return ownerOf(pid), "python"
			},
			Report: func(r []Report) { got = append(got, r...) },
		}).Run(ctx)
		want := []summary{
			{"a", "-", "10 (process)", "-", "-", Busy}, {"b", "-", "20 (process)", "-", "-", Busy},
			{"", "0.8 (remainder)", "10 (remainder)", "300 (remainder)", "0.4 (remainder)", Busy},
		}
		if diff := cmp.Diff(want, summarize(got[0].Shares)); diff != "" {
			t.Errorf("shares (-want +got):\n%s", diff)
		}
	})
}

// Without the host's processes a holder is not called idle, since it cannot be known
// whose those on its device are.
func TestCollectorHiddenPIDs(t *testing.T) {
	for hidden, want := range map[bool]summary{
		false: {"a", "0 (process)", "0 (process)", "0 (estimated)", "-", NoProcess},
		true:  {"a", "0.5 (exclusive)", "40 (exclusive)", "300 (exclusive)", "0.25 (exclusive)", Busy},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &scripted{name: "one", read: func(context.Context) ([]Sample, error) {
				return []Sample{gpuSample(0.5, 40, 300, process(7, 25, 0.5))}, nil
			}}
			var got []Report
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			NewCollector(Config{
				Sources: []Source{{Backend: b}}, Interval: func() time.Duration { return time.Second }, HiddenPIDs: hidden,
				Holders: func(*Device) []Holder { return []Holder{held("a", false)} },
				Owner:   func(uint32) (*workload.Identity, string) { return nil, "" },
				Report:  func(r []Report) { got = append(got, r...) },
			}).Run(ctx)
			if len(got) != 1 || summarize(got[0].Shares)[0] != want || len(got[0].Shares[1].Processes) != 1 {
				t.Errorf("hidden %t: %+v", hidden, got)
			}
		})
	}
}
