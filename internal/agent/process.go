// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/anomaly"
	"github.com/Ignoramuss/orb8/internal/flow"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// newProcesses makes what keeps processes and judges what they do.
func (a *Agent) newProcesses(cfg *Config) error {
	secrets, err := process.NewRedactor(cfg.ProcessRedact)
	if err != nil {
		return fmt.Errorf("configuration: process_redact: %w", err)
	}
	a.processes = process.NewTable(process.Config{Redact: secrets.Redact, Alive: a.deps.Alive, Losses: a.losses})
	a.rules, err = anomaly.New(anomaly.Config{
		Off: cfg.RulesOff, Exceptions: cfg.Exceptions, Container: a.container, Process: a.processes.Find,
		Found: a.metrics.observeMatch, Losses: a.losses,
	})
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return nil
}

// reloadRules takes over which rules are off and their exceptions, which have been
// validated.
func (a *Agent) reloadRules(cfg *Config) {
	if err := a.rules.Reconfigure(cfg.RulesOff, cfg.Exceptions); err != nil {
		a.log.Error("take over rules", "err", err)
	}
}

// container returns the id of the container that a cgroup belongs to, empty if it
// belongs to none.
func (a *Agent) container(cgroup uint64) string {
	return a.deps.Resolver.Local(cgroup, 0, "", netip.Addr{}).ContainerID
}

// process takes what happened to a process.
func (a *Agent) process(e *process.Event) {
	a.processed.Add(1)
	step := a.processes.Apply(e)
	if step == nil {
		return
	}
	s := a.sampleOf(step)
	if !a.deps.Resolver.Owns(s.CgroupID) { // it is an ancestor at most
		return
	}
	a.table.Note(&s, step)
}

// sampleOf says whose a step is, and to whom its process is connected.
func (a *Agent) sampleOf(step *process.Step) flow.Sample {
	p := step.Process
	s := flow.Sample{
		Key: flow.Key{CgroupID: a.rules.Whose(step), NetNS: p.NS.Net}, PID: p.PID, First: step.Time, Last: step.Time,
	}
	copy(s.Comm[:], p.Comm)
	connect(&s, standardSocket(step.Start, netip.AddrPort{}))
	return s
}

// connect puts the ends of a socket into a sample.
func connect(s *flow.Sample, socket *process.Socket) {
	if socket == nil {
		return
	}
	s.Protocol = socket.Protocol
	s.Key.Local, s.LocalPort = flow.AddrOf(socket.Local.Addr()), socket.Local.Port()
	s.Key.Remote, s.RemotePort = flow.AddrOf(socket.Remote.Addr()), socket.Remote.Port()
}

// standardSocket is the socket that one of a program's standard files is: the one with
// that other end, or if none is given one that has any, or else any. Nil if there is
// none.
func standardSocket(s *process.Start, to netip.AddrPort) *process.Socket {
	if s == nil {
		return nil
	}
	var found *process.Socket
	for _, socket := range []*process.Socket{s.Stdin, s.Stdout, s.Stderr} {
		switch {
		case socket == nil:
		case to.IsValid() && socket.Remote == to, !to.IsValid() && socket.Remote.Port() != 0:
			return socket
		case !to.IsValid() && found == nil:
			found = socket
		}
	}
	return found
}

// awaitsImage reports whether what happened to a process has to wait for the image of
// its container, since there are exceptions that name images.
func (a *Agent) awaitsImage(local *workload.Identity, d flow.Detail) bool {
	_, ok := d.(*process.Step)
	return ok && a.rules.ByImage() && a.deps.Resolver.AwaitsImage(local)
}

// judge asks the rules about a step, and hands out what they find. It is called with
// the table locked.
func (a *Agent) judge(r *flow.Record, step *process.Step) {
	for _, alert := range a.rules.Check(r.Local, step) {
		a.alert(*r, alert)
	}
}

// alert hands out what a rule found in the step that a record is of.
func (a *Agent) alert(r flow.Record, alert *anomaly.Alert) {
	r.Detail = alert
	if alert.Remote.IsValid() {
		a.aim(&r, alert)
	}
	a.hub.publish(&r)
}

// aim makes the other end of what an alert is about that of its record.
func (a *Agent) aim(r *flow.Record, alert *anomaly.Alert) {
	was := r.Key
	connect(&r.Sample, standardSocket(alert.Step.Start, alert.Remote))
	r.Key.Remote, r.RemotePort = flow.AddrOf(alert.Remote.Addr()), alert.Remote.Port()
	if r.Key != was || r.Remote == nil {
		r.Remote = a.deps.Resolver.Remote(workload.Peer{
			Addr: r.Key.Remote.IP(), Port: r.RemotePort, Protocol: uint8(r.Protocol), Since: r.First, Cgroup: r.CgroupID,
		})
	}
}

// heldEvery is how often the rules are asked for what they held back.
const heldEvery = time.Second

// tellHeld hands out the alerts that the rules held back, once they are due.
func (a *Agent) tellHeld(ctx context.Context) {
	ticker := time.NewTicker(heldEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			a.alertHeld(false)
		}
	}
}

// alertHeld hands out the alerts that are due, or all that are held back.
func (a *Agent) alertHeld(all bool) {
	for _, alert := range a.rules.Held(all) {
		s := a.sampleOf(alert.Step)
		self := a.deps.IsSelf != nil && a.deps.IsSelf(&s)
		a.alert(flow.Record{Sample: s, Time: s.Last, Local: alert.Workload, Self: self}, alert)
	}
}

func stepPB(r *flow.Record, s *process.Step) *orb8v1.ProcessEvent {
	out := &orb8v1.ProcessEvent{
		Workload: workloadPB(r.Local), Process: processInfoPB(s.Process, s.Start), Ancestors: ancestorsPB(s),
	}
	switch s.What {
	case process.Exec:
		out.Step = orb8v1.ProcessStep_PROCESS_STEP_EXEC
		if s.Before != nil {
			out.PreviousExecutable = s.Before.Exe.Path
		}
	case process.Exit:
		out.Step = orb8v1.ProcessStep_PROCESS_STEP_EXIT
		out.LifetimeNs = s.Time - s.Process.Started
		if s.End != nil {
			out.ExitCode, out.Signal, out.CoreDumped = uint32(s.End.Code), uint32(s.End.Signal), s.End.CoreDumped
		}
	}
	return out
}

func processInfoPB(p *process.Process, start *process.Start) *orb8v1.ProcessInfo {
	info := &orb8v1.ProcessInfo{
		Pid: p.PID, ParentPid: p.Parent.PID, PidInNamespace: p.NSPID, Command: p.Comm, Arguments: p.Args, ArgumentsTruncated: p.ArgsTruncated,
		Uid: p.UID, EffectiveUid: p.EUID, StartedNs: p.Started, Terminal: start != nil && start.TTY,
	}
	if p.Exe != (process.Executable{}) {
		info.Executable = &orb8v1.Executable{
			Path: p.Exe.Path, Called: p.Exe.Called, Memfd: p.Exe.Memfd, Deleted: p.Exe.Deleted,
			UpperLayer: p.Exe.Upper, ChangedNs: p.Exe.Changed,
		}
	}
	return info
}

func ancestorsPB(s *process.Step) []*orb8v1.ProcessInfo {
	var all []*orb8v1.ProcessInfo
	for _, p := range s.Ancestors {
		all = append(all, processInfoPB(p, nil))
	}
	return all
}

func alertPB(r *flow.Record, a *anomaly.Alert) *orb8v1.Alert {
	out := &orb8v1.Alert{
		Rule: a.Rule.Name, Severity: orb8v1.Severity(a.Rule.Severity), Technique: a.Rule.Technique,
		Summary: a.Summary, Reason: a.Rule.Reason, LookCloser: a.LookCloser,
		Workload: workloadPB(r.Local), Process: processInfoPB(a.Step.Process, a.Step.Start), Ancestors: ancestorsPB(a.Step),
		Exception: a.Exception, Repeated: a.Repeated,
	}
	if a.Remote.IsValid() {
		out.Remote = remotePB(r)
	}
	if p := a.Step.Privilege; p != nil && p.Call >= 0 {
		call := syscalls.Call{ABI: p.ABI, Number: p.Call, Args: p.Args}
		out.Syscall, out.Denied = syscalls.Name(p.ABI, p.Call), p.Denied
		out.Arguments = argumentsPB(&call)
	}
	return out
}

func argumentsPB(c *syscalls.Call) []*orb8v1.SyscallArgument {
	var all []*orb8v1.SyscallArgument
	for _, arg := range syscalls.Decode(c) {
		all = append(all, &orb8v1.SyscallArgument{Name: arg.Name, Value: arg.Value, Text: arg.Text})
	}
	return all
}
