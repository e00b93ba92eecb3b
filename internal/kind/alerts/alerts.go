// SPDX-License-Identifier: Apache-2.0

// Package alerts is the kind of record that tells of what rules found in what processes do:
// how the API shows them, what only they can be filtered by, and their metrics.
package alerts

import (
	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/kind/processes"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// Event is a record as an event.
func Event(r *anomaly.Record, node string) *orb8v1.Event {
	a, s := r.Alert, r.Alert.Step
	shift := r.Time - s.Time
	x := &orb8v1.Alert{
		Rule: a.Rule.Name, Severity: orb8v1.Severity(a.Rule.Severity), Technique: a.Rule.Technique,
		Summary: a.Summary, Reason: a.Rule.Reason, LookCloser: a.LookCloser,
		Workload: kind.Workload(r.Owner), Process: processes.Info(s.Process, shift), Ancestors: processes.Infos(s.Ancestors, shift),
		Exception: a.Exception, Repeated: a.Repeated,
	}
	if a.Remote.IsValid() {
		x.Remote = &orb8v1.Endpoint{Ip: a.Remote.Addr().String(), Port: uint32(a.Remote.Port()), Workload: kind.Workload(r.Peer)}
	}
	if p := s.Privilege; p != nil && p.Call >= 0 {
		call := syscalls.Call{ABI: p.ABI, Number: p.Call, Args: p.Args}
		x.Syscall, x.Denied, x.Arguments = syscalls.Name(p.ABI, p.Call), p.Denied, kind.Arguments(&call)
	}
	return &orb8v1.Event{TimeNs: r.Time, NodeName: node, Event: &orb8v1.Event_Alert{Alert: x}}
}

const alertsTotal = "orb8_syscall_alerts_total"

// Families are the metrics that only alerts have.
func Families() []kind.Family {
	return []kind.Family{
		{Name: alertsTotal, Unit: "alerts", Label: "rule", Help: "What rules found in what the workload does, also what is not told of one by one; docs/rules.md has the rules."},
	}
}

// Found counts what a rule found in its workload's metrics.
func Found(r *anomaly.Rule, m kind.Meter) { m.Count(alertsTotal, r.Name, 1) }
