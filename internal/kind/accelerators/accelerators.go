// SPDX-License-Identifier: Apache-2.0

// Package accelerators is the kind of record that tells of accelerators: a reading of a
// device, divided among those who use it.
package accelerators

import (
	"slices"
	"strings"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/accel"
	"github.com/Ignoramuss/orb8/internal/filter"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// Facts are what an event says beside its reading.
type Facts struct {
	// HoldersKnown: a workload that does not hold a device is known not to.
	HoldersKnown bool
	// Allocatable reports whether the kubelet has a device to give.
	Allocatable func(*accel.Device) bool
	// IdleSince is since when an owner leaves a device idle, zero if it does not.
	IdleSince func(owner *workload.Identity, device string) time.Time
}

// Wanted reports whether the filters match one of a device's shares. A device
// without any is matched as one of nobody's.
func Wanted(r *accel.Report, filters *filter.Set) bool {
	if len(r.Shares) == 0 {
		return MatchesOwner(filters, nil, nil)
	}
	return slices.ContainsFunc(r.Shares, func(s accel.Share) bool { return MatchesOwner(filters, s.Owner, s.Processes) })
}

// Event is a reading as an event: it has those shares of a device, and those errors, that the
// filters match.
func Event(r *accel.Report, filters *filter.Set, node string, facts *Facts) *orb8v1.Event {
	if filters.Empty() {
		return event(r, r.Shares, node, facts)
	}
	var shares []accel.Share
	for i := range r.Shares {
		if MatchesOwner(filters, r.Shares[i].Owner, r.Shares[i].Processes) {
			shares = append(shares, r.Shares[i])
		}
	}
	some := *r
	some.Errors = nil
	for _, e := range r.Errors {
		if MatchesOwner(filters, e.Owner, nil) {
			some.Errors = append(some.Errors, e)
		}
	}
	return event(&some, shares, node, facts)
}

// MatchesOwner reports whether the filters match an owner with one of its processes,
// which is to them like a record without addresses.
func MatchesOwner(filters *filter.Set, owner *workload.Identity, processes []accel.Process) bool {
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

// event tells of a device with some of its shares.
func event(r *accel.Report, shares []accel.Share, node string, facts *Facts) *orb8v1.Event {
	sample := &orb8v1.AcceleratorSample{
		Device: device(r.Device), WindowNs: int64(r.Window), Values: values(&r.Values),
		Lost: r.Lost, ClockEvents: r.ClockEvents, HoldersKnown: facts.HoldersKnown, Allocatable: facts.Allocatable(r.Device),
	}
	health := accel.HealthOf(&r.Sample)
	sample.Health = &orb8v1.AcceleratorHealth{Verdict: string(health.Verdict), Causes: health.Causes, Remedy: health.Remedy}
	for i := range shares {
		sample.Shares = append(sample.Shares, share(r, &shares[i], facts))
	}
	for _, e := range r.Errors {
		sample.Errors = append(sample.Errors, Error(e))
	}
	return &orb8v1.Event{
		TimeNs: r.Time.UnixNano(), NodeName: node, Event: &orb8v1.Event_Accelerator{Accelerator: sample},
	}
}

// Error is an error of a device as a message.
func Error(e accel.DeviceError) *orb8v1.AcceleratorError {
	return &orb8v1.AcceleratorError{
		Code: e.Code, Pid: e.PID, Message: strings.ToValidUTF8(e.Message, "\uFFFD"), TimeNs: e.Time.UnixNano(),
		Workload: kind.Workload(e.Owner),
	}
}

func device(d *accel.Device) *orb8v1.Accelerator {
	return &orb8v1.Accelerator{
		Vendor: d.Vendor, Id: d.ID, Index: d.Index, Model: d.Model, PciAddress: d.PCI, DriverVersion: d.Driver,
		ParentId: d.Parent, Profile: d.Profile, Divided: d.Divided, Limits: slices.Clone(d.Limits),
	}
}

func share(r *accel.Report, s *accel.Share, facts *Facts) *orb8v1.AcceleratorShare {
	out := &orb8v1.AcceleratorShare{
		Workload: kind.Workload(s.Owner), Held: s.Held, Shared: s.Shared, Resource: s.Resource,
		Values: values(&s.Values), Idle: string(s.Idle),
	}
	for _, p := range s.Processes {
		out.Processes = append(out.Processes, &orb8v1.AcceleratorProcess{
			Process: &orb8v1.Process{Pid: p.PID, Command: p.Command, Executable: p.Executable}, Graphics: p.Graphics,
			MemoryBytes: measurement(p.Memory), UtilizationRatio: measurement(p.Utilization),
		})
	}
	if s.Owner == nil {
		return out
	}
	if since := facts.IdleSince(s.Owner, r.Device.ID); !since.IsZero() {
		out.IdleSinceNs = since.UnixNano()
	}
	return out
}

func values(v *accel.Values) map[string]*orb8v1.Measurement {
	var all map[string]*orb8v1.Measurement
	for m := range accel.NumMetrics {
		if !v[m].Known() {
			continue
		}
		if all == nil {
			all = make(map[string]*orb8v1.Measurement)
		}
		all[m.String()] = measurement(v[m])
	}
	return all
}

func measurement(v accel.Value) *orb8v1.Measurement {
	if !v.Known() {
		return nil
	}
	return &orb8v1.Measurement{Value: v.V, Method: v.Method.String()}
}
