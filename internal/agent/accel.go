// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/metrics"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// Accelerators makes the agent's collector of accelerators; report takes what it
// reads, and interval says how often it is to.
type Accelerators func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector

// accelerators is what the agent knows of accelerators; nil if it reads none.
type accelerators struct {
	collector *accel.Collector
	ledger    *accel.Ledger
}

func (a *Agent) newAccelerators(newCollector Accelerators) *accelerators {
	if newCollector == nil {
		return nil
	}
	return &accelerators{collector: newCollector(a.acceleratorInterval, a.reportAccelerators), ledger: accel.NewLedger()}
}

// acceleratorInterval is the time between two samples as things are.
func (a *Agent) acceleratorInterval() time.Duration {
	if a.hub.Any(func(s *hub.Subscription) bool { return interestOf(s).accelerators() }) {
		return min(a.Config().GPUInterval, followInterval)
	}
	return a.Config().GPUInterval
}

// reportAccelerators takes what was read of some devices.
func (a *Agent) reportAccelerators(reports []accel.Report) {
	for i := range reports {
		r := &reports[i]
		a.setExecutables(r)
		a.accel.ledger.Add(r)
		a.accelLane.Publish(r)
	}
}

// executableLag is for how long a process has to have been there: what has happened lately
// may not have been told yet.
const executableLag = 250 * time.Millisecond

// setExecutables says what the processes on a device run.
func (a *Agent) setExecutables(r *accel.Report) {
	at := a.deps.Clock.Now().Add(-executableLag).UnixNano()
	for i := range r.Shares {
		for j := range r.Shares[i].Processes {
			p := &r.Shares[i].Processes[j]
			p.Executable, _ = a.processes.Executable(process.Sighting{PID: p.PID, Comm: p.Command, First: at, Time: at})
		}
	}
}

// latestAccelerators are the events of a snapshot.
func (a *Agent) latestAccelerators(i *interest) []*orb8v1.Event {
	if a.accel == nil || !i.accelerators() {
		return nil
	}
	var all []*orb8v1.Event
	for _, r := range a.accel.ledger.Reports() {
		if !wantsAccelerator(i, &r) {
			continue
		}
		ev := a.filteredEvent(&r, i.filters)
		for _, e := range a.accel.ledger.Errors(r.Device.ID) {
			if matchesOwner(i.filters, e.Owner, nil) {
				ev.GetAccelerator().PastErrors = append(ev.GetAccelerator().PastErrors, errorPB(e.DeviceError, e.Owner))
			}
		}
		all = append(all, ev)
	}
	return all
}

// wantsAccelerator reports whether the filters match one of a device's shares. A device
// without any is matched as one of nobody's.
func wantsAccelerator(i *interest, r *accel.Report) bool {
	if len(r.Shares) == 0 {
		return matchesOwner(i.filters, nil, nil)
	}
	return slices.ContainsFunc(r.Shares, func(s accel.Share) bool { return matchesOwner(i.filters, s.Owner, s.Processes) })
}

// filteredEvent has those shares of a device, and those errors, that the filters match.
func (a *Agent) filteredEvent(r *accel.Report, filters *filter.Set) *orb8v1.Event {
	if filters.Empty() {
		return a.acceleratorEvent(r, r.Shares)
	}
	var shares []accel.Share
	for i := range r.Shares {
		if matchesOwner(filters, r.Shares[i].Owner, r.Shares[i].Processes) {
			shares = append(shares, r.Shares[i])
		}
	}
	some := *r
	some.Errors = nil
	for _, e := range r.Errors {
		if matchesOwner(filters, accel.Blame(r, e.PID), nil) {
			some.Errors = append(some.Errors, e)
		}
	}
	return a.acceleratorEvent(&some, shares)
}

// matchesOwner reports whether the filters match an owner with one of its processes,
// which is to them like a record without addresses.
func matchesOwner(filters *filter.Set, owner *workload.Identity, processes []accel.Process) bool {
	h := record.Header{Owner: owner}
	if h.Owner == nil {
		h.Owner = new(workload.Identity)
	}
	if len(processes) == 0 {
		return filters.Match(&h, nil)
	}
	return slices.ContainsFunc(processes, func(p accel.Process) bool {
		h.PID, h.Comm = p.PID, record.Comm{}
		copy(h.Comm[:len(h.Comm)-1], p.Command)
		h.Executable = p.Executable
		return filters.Match(&h, nil)
	})
}

// acceleratorEvent tells of a device with some of its shares.
func (a *Agent) acceleratorEvent(r *accel.Report, shares []accel.Share) *orb8v1.Event {
	sample := &orb8v1.AcceleratorSample{
		Device: acceleratorPB(r.Device), WindowNs: int64(r.Window), Values: valuesPB(&r.Values),
		ClockEvents: r.ClockEvents, HoldersKnown: a.holdersKnown(), Allocatable: a.allocatable(r.Device),
	}
	for i := range shares {
		sample.Shares = append(sample.Shares, a.sharePB(r, &shares[i]))
	}
	for _, e := range r.Errors {
		sample.Errors = append(sample.Errors, errorPB(e, accel.Blame(r, e.PID)))
	}
	return &orb8v1.Event{
		TimeNs: r.Time.UnixNano(), NodeName: a.node, Event: &orb8v1.Event_Accelerator{Accelerator: sample},
	}
}

func errorPB(e accel.DeviceError, owner *workload.Identity) *orb8v1.AcceleratorError {
	return &orb8v1.AcceleratorError{
		Code: e.Code, Pid: e.PID, Message: strings.ToValidUTF8(e.Message, "\uFFFD"), TimeNs: e.Time.UnixNano(),
		Workload: kind.Workload(owner),
	}
}

func acceleratorPB(d *accel.Device) *orb8v1.Accelerator {
	return &orb8v1.Accelerator{
		Vendor: d.Vendor, Id: d.ID, Index: d.Index, Model: d.Model, PciAddress: d.PCI, DriverVersion: d.Driver,
		ParentId: d.Parent, Profile: d.Profile, Divided: d.Divided, Limits: slices.Clone(d.Limits),
	}
}

func (a *Agent) sharePB(r *accel.Report, s *accel.Share) *orb8v1.AcceleratorShare {
	out := &orb8v1.AcceleratorShare{
		Workload: kind.Workload(s.Owner), Held: s.Held, Shared: s.Shared, Resource: s.Resource,
		Values: valuesPB(&s.Values), Idle: string(s.Idle),
	}
	for _, p := range s.Processes {
		out.Processes = append(out.Processes, &orb8v1.AcceleratorProcess{
			Process: &orb8v1.Process{Pid: p.PID, Command: p.Command, Executable: p.Executable}, Graphics: p.Graphics,
			MemoryBytes: measurementPB(p.Memory), UtilizationRatio: measurementPB(p.Utilization),
		})
	}
	if s.Owner == nil {
		return out
	}
	if account, ok := a.accel.ledger.Account(s.Owner, r.Device.ID); ok && !account.IdleSince.IsZero() {
		out.IdleSinceNs = account.IdleSince.UnixNano()
	}
	return out
}

func valuesPB(v *accel.Values) map[string]*orb8v1.Measurement {
	var all map[string]*orb8v1.Measurement
	for m := range accel.NumMetrics {
		if !v[m].Known() {
			continue
		}
		if all == nil {
			all = make(map[string]*orb8v1.Measurement)
		}
		all[m.String()] = measurementPB(v[m])
	}
	return all
}

func measurementPB(v accel.Value) *orb8v1.Measurement {
	if !v.Known() {
		return nil
	}
	return &orb8v1.Measurement{Value: v.V, Method: v.Method.String()}
}

// lacksAccelerators says why none can be read although they must (mode on).
func (a *Agent) lacksAccelerators() string {
	if a.accel == nil || a.Config().GPU != config.ModeOn {
		return ""
	}
	var why []string
	for _, s := range a.accel.collector.Status() {
		if s.State == accel.StateRunning {
			return ""
		}
		text := s.Name + " is " + s.State.String() + ": " + s.Reason
		if s.Remedy != "" {
			text += " (" + s.Remedy + ")"
		}
		why = append(why, text)
	}
	return "accelerators are set to on and cannot be read: " + strings.Join(why, "; ")
}

func (a *Agent) acceleratorStatus() []*orb8v1.AcceleratorStatus {
	if a.accel == nil {
		return nil
	}
	var all []*orb8v1.AcceleratorStatus
	for _, s := range a.accel.collector.Status() {
		all = append(all, &orb8v1.AcceleratorStatus{
			Name: s.Name, State: s.State.String(), Reason: s.Reason, Remedy: s.Remedy,
			Devices: uint32(s.Devices), Skipped: s.Skipped, Failed: s.Failed,
		})
	}
	return append(all, a.nameless()...)
}

// maxReportAge is how old a reading may be whose gauges are still shown: what a
// driver that hangs said last is not how things are.
const maxReportAge = 30 * time.Second

// gpuFacts returns nil if no accelerators are read.
func (a *Agent) gpuFacts(now time.Time) *metrics.GPUFacts {
	if a.accel == nil {
		return nil
	}
	f := &metrics.GPUFacts{
		Accounts: a.accel.ledger.Accounts(), Errors: a.accel.ledger.ErrorCounts(), Backends: a.accel.collector.Status(),
		LastError: make(map[string]uint64), Kubelet: a.kubeletUp(now),
	}
	for _, r := range a.accel.ledger.Reports() {
		if now.Sub(r.Time) <= maxReportAge {
			f.Reports = append(f.Reports, r)
			if all := a.accel.ledger.Errors(r.Device.ID); len(all) > 0 {
				f.LastError[r.Device.ID] = all[len(all)-1].Code
			}
		}
	}
	return f
}
