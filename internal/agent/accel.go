// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/agent/config"
	"github.com/Ignoramuss/orb8/internal/agent/metrics"
	"github.com/Ignoramuss/orb8/internal/agent/stream"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/hub"
	"github.com/Ignoramuss/orb8/internal/kind/accelerators"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// Accelerators makes the agent's collector of accelerators; report takes what it
// reads, and interval says how often it is to.
type Accelerators func(interval func() time.Duration, report func([]accel.Report)) *accel.Collector

// accelState is what the agent knows of accelerators; nil if it reads none.
type accelState struct {
	collector *accel.Collector
	ledger    *accel.Ledger
}

func (a *Agent) newAccelerators(newCollector Accelerators) *accelState {
	if newCollector == nil {
		return nil
	}
	return &accelState{collector: newCollector(a.acceleratorInterval, a.reportAccelerators), ledger: accel.NewLedger()}
}

// acceleratorInterval is the time between two samples as things are.
func (a *Agent) acceleratorInterval() time.Duration {
	if a.hub.Any(func(s *hub.Subscription) bool { return stream.InterestOf(s).Accelerators() }) {
		return min(a.Config().GPUInterval, followInterval)
	}
	return a.Config().GPUInterval
}

// reportAccelerators takes what was read of some devices.
func (a *Agent) reportAccelerators(reports []accel.Report) {
	at := a.holdersAt()
	for i := range reports {
		r := &reports[i]
		r.HoldersAt = at
		a.setExecutables(r)
		a.accel.ledger.Add(r)
		a.lanes.Accelerators.Publish(r)
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
func (a *Agent) latestAccelerators(i *stream.Interest) []*orb8v1.Event {
	if a.accel == nil || !i.Accelerators() {
		return nil
	}
	var all []*orb8v1.Event
	for _, r := range a.accel.ledger.Reports() {
		if !accelerators.Wanted(&r, i.Filters) {
			continue
		}
		ev := a.acceleratorEvent(&r, i.Filters)
		for _, e := range a.accel.ledger.Errors(r.Device.ID) {
			if accelerators.MatchesOwner(i.Filters, e.Owner, nil) {
				ev.GetAccelerator().PastErrors = append(ev.GetAccelerator().PastErrors, accelerators.Error(e.DeviceError))
			}
		}
		all = append(all, ev)
	}
	return all
}

// acceleratorEvent is a reading as an event, of which the filters let through what they match.
func (a *Agent) acceleratorEvent(r *accel.Report, filters *filter.Set) *orb8v1.Event {
	return accelerators.Event(r, filters, a.node, &accelerators.Facts{
		HoldersKnown: a.holdersKnown(), Allocatable: a.allocatable,
		IdleSince: func(owner *workload.Identity, device string) time.Time {
			account, _ := a.accel.ledger.Account(owner, device)
			return account.IdleSince
		},
	})
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
		Accounts: a.accel.ledger.Accounts(), Errors: a.accel.ledger.ErrorCounts(), DeviceErrors: a.accel.ledger.DeviceErrors(), Backends: a.accel.collector.Status(),
		Kubelet: a.kubeletUp(now),
	}
	for _, r := range a.accel.ledger.Reports() {
		if now.Sub(r.Time) <= maxReportAge {
			f.Reports = append(f.Reports, r)
		}
	}
	return f
}
