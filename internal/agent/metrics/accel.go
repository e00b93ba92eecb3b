// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// GPUFacts is what there is to say of accelerators at one time.
type GPUFacts struct {
	Reports  []accel.Report
	Accounts []accel.Account
	Errors   []accel.ErrorCount
	// DeviceErrors counts those of each device, whoever they were about.
	DeviceErrors []accel.DeviceErrors
	Backends     []accel.Status
	// Kubelet is nil where no kubelet is asked.
	Kubelet *bool
}

// gpuScrape adds values up by their labels: two owners that are told apart
// otherwise may have the same.
type gpuScrape struct {
	scrape
	sums map[string]*gpuPoint
}

type gpuPoint struct {
	family familyID
	labels []string
	v      float64
}

func (g *gpuScrape) add(f familyID, v float64, labels []string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	key := strconv.Itoa(int(f)) + "\x00" + strings.Join(labels, "\x00")
	if p := g.sums[key]; p != nil {
		p.v += v
		return
	}
	g.sums[key] = &gpuPoint{f, labels, v}
}

// set is add for what is 1 or is not there.
func (g *gpuScrape) set(f familyID, labels []string) {
	g.add(f, 0, labels)
	g.sums[strconv.Itoa(int(f))+"\x00"+strings.Join(labels, "\x00")].v = 1
}

func deviceLabels(d *accel.Device, extra ...string) []string {
	return append([]string{d.Vendor, d.Index, d.ID, d.Model}, extra...)
}

// unattributed is the workload of what no workload was found for.
const unattributed = "unattributed"

func shareLabels(d *accel.Device, owner *workload.Identity, extra ...string) []string {
	if owner == nil {
		owner = &workload.Identity{Name: unattributed}
	}
	return append(deviceLabels(d, owner.Namespace, owner.Name, owner.Kind, owner.Pod), extra...)
}

// accelerators collects what f has; nil has nothing.
func (s scrape) accelerators(f *GPUFacts) {
	if f == nil {
		return
	}
	g := &gpuScrape{scrape: s, sums: make(map[string]*gpuPoint)}
	for i := range f.Reports {
		g.device(&f.Reports[i])
	}
	for _, e := range f.DeviceErrors {
		g.add(gpuDeviceErrors, float64(e.Count), deviceLabels(e.Device))
		if e.Last != nil {
			g.add(gpuLastError, float64(e.Last.Time.UnixMilli())/1000, shareLabels(e.Device, e.Last.Owner, strconv.FormatUint(e.Last.Code, 10)))
		}
	}
	for i := range f.Accounts {
		g.account(&f.Accounts[i])
	}
	for _, e := range f.Errors {
		g.add(gpuErrors, float64(e.Count), shareLabels(e.Device, e.Owner, strconv.FormatUint(e.Code, 10)))
	}
	for _, b := range f.Backends {
		g.backend(b)
	}
	if f.Kubelet != nil {
		g.add(gpuHolders, truth(*f.Kubelet), nil)
	}
	types := families(s.metrics.pod)
	for _, p := range g.sums {
		kind := prometheus.GaugeValue
		if types[p.family].Type == "counter" {
			kind = prometheus.CounterValue
		}
		s.send(s.descs[p.family], kind, p.v, p.labels)
	}
}

func (g *gpuScrape) device(r *accel.Report) {
	d := r.Device
	g.set(gpuInfo, deviceLabels(d, d.PCI, d.Driver, d.Parent, d.Profile))
	g.add(gpuLost, truth(r.Lost), deviceLabels(d))
	verdict := accel.HealthOf(&r.Sample).Verdict
	for _, v := range accel.Verdicts() {
		g.add(gpuHealth, truth(v == verdict), deviceLabels(d, string(v)))
	}
	for m := range accel.NumMetrics {
		if v := r.Values[m]; v.Known() {
			g.add(gpuDevice+familyID(m), v.V, deviceLabels(d, v.Method.String()))
		}
	}
	for _, reason := range r.ClockEvents {
		g.set(gpuClockEvent, deviceLabels(d, reason))
	}
	for i := range r.Shares {
		g.share(d, &r.Shares[i])
	}
}

func (g *gpuScrape) share(d *accel.Device, s *accel.Share) {
	for m := range accel.NumMetrics {
		if v := s.Values[m]; v.Known() && m.Divided() {
			g.add(gpuShare+familyID(m), v.V, shareLabels(d, s.Owner, v.Method.String()))
		}
	}
	g.add(gpuProcesses, float64(len(s.Processes)), shareLabels(d, s.Owner))
	if !s.Held {
		return
	}
	g.set(gpuHeld, shareLabels(d, s.Owner, s.Resource, s.Source, strconv.FormatBool(s.Shared)))
	if m := s.Values[accel.MemoryUsed]; m.Known() {
		if s.Idle == accel.Busy {
			m.V = 0
		}
		g.add(gpuIdleMemory, m.V, shareLabels(d, s.Owner))
	}
}

func (g *gpuScrape) account(a *accel.Account) {
	for _, m := range accel.Counted() {
		if v := a.Counters[m]; v.Known() {
			g.add(gpuShare+familyID(m), v.V, shareLabels(a.Device, a.Owner, v.Method.String()))
		}
	}
	if a.Owner == nil {
		return
	}
	g.add(gpuHeldSeconds, a.Held.Seconds(), shareLabels(a.Device, a.Owner))
	g.add(gpuUsedSeconds, a.Used.Seconds(), shareLabels(a.Device, a.Owner))
	if a.HoldersKnown {
		g.add(gpuUnallocatedSeconds, a.Unallocated.Seconds(), shareLabels(a.Device, a.Owner))
	}
	if a.Held == 0 {
		return
	}
	for _, reason := range accel.IdleReasons() {
		g.add(gpuIdleSeconds, a.Idle[reason].Seconds(), shareLabels(a.Device, a.Owner, string(reason)))
	}
}

func (g *gpuScrape) backend(b accel.Status) {
	for _, state := range accel.States() {
		g.add(gpuBackendState, truth(b.State == state), []string{b.Name, state.String()})
	}
	g.add(gpuBackendDevices, float64(b.Devices), []string{b.Name})
	g.add(gpuReads, float64(b.Reads), []string{b.Name, "ok"})
	g.add(gpuReads, float64(b.Failed), []string{b.Name, "error"})
	g.add(gpuReadsSkipped, float64(b.Skipped), []string{b.Name})
	g.add(gpuReadSeconds, b.ReadTime.Seconds(), []string{b.Name})
}
