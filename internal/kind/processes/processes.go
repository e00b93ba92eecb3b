// SPDX-License-Identifier: Apache-2.0

// Package processes is the kind of record that tells of programs that were started and
// processes that ended: how the API shows them, what only they can be filtered by, and
// their metrics.
package processes

import (
	"slices"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/kind"
	"github.com/Ignoramuss/orb8/internal/process"
)

// Event is a record as an event.
func Event(r *process.Record, node string) *orb8v1.Event {
	s := r.Step
	shift := r.Time - s.Time // the record has the wall clock's times, its step the probe's
	x := &orb8v1.ProcessEvent{Workload: kind.Workload(r.Owner), Process: Info(s.Process, shift), Ancestors: Infos(s.Ancestors, shift), Self: r.Self}
	switch x.Step = step(s); x.GetStep() {
	case orb8v1.ProcessStep_PROCESS_STEP_EXEC:
		if s.Before != nil {
			x.PreviousExecutable = s.Before.Exe.Path
		}
	case orb8v1.ProcessStep_PROCESS_STEP_EXIT:
		x.LifetimeNs = max(0, s.Time-s.Process.Started)
		if s.End != nil {
			x.ExitCode, x.Signal, x.CoreDumped = uint32(s.End.Code), uint32(s.End.Signal), s.End.CoreDumped
		}
	}
	return &orb8v1.Event{TimeNs: r.Time, NodeName: node, Event: &orb8v1.Event_Process{Process: x}}
}

func step(s *process.Step) orb8v1.ProcessStep {
	switch s.What {
	case process.Exec:
		return orb8v1.ProcessStep_PROCESS_STEP_EXEC
	case process.Exit:
		return orb8v1.ProcessStep_PROCESS_STEP_EXIT
	}
	return orb8v1.ProcessStep_PROCESS_STEP_UNSPECIFIED
}

// Wanted reports whether a stream that asks for steps takes the record; without any it
// takes all.
func Wanted(r *process.Record, steps []orb8v1.ProcessStep) bool {
	return len(steps) == 0 || slices.Contains(steps, step(r.Step))
}

// Infos are processes as the API has them, see Info.
func Infos(all []*process.Process, shift int64) []*orb8v1.ProcessInfo {
	var infos []*orb8v1.ProcessInfo
	for _, p := range all {
		infos = append(infos, Info(p, shift))
	}
	return infos
}

// Info is a process as the API has it; shift is what to add to its times for those of the
// wall clock, in nanoseconds.
func Info(p *process.Process, shift int64) *orb8v1.ProcessInfo {
	x := &orb8v1.ProcessInfo{
		Pid: p.PID, ParentPid: p.Parent.PID, PidInNamespace: p.NSPID, Command: p.Comm,
		Arguments: p.Args, ArgumentsTruncated: p.ArgsTruncated,
		Uid: p.UID, EffectiveUid: p.EUID, StartedNs: p.Started + shift, Terminal: p.TTY,
	}
	if p.Exe != (process.Executable{}) {
		x.Executable = &orb8v1.Executable{
			Path: p.Exe.Path, Called: p.Exe.Called, Memfd: p.Exe.Memfd, Deleted: p.Exe.Deleted,
			UpperLayer: p.Exe.Upper, ChangedNs: p.Exe.Changed,
		}
	}
	return x
}

// The families of metrics.
const (
	startsTotal = "orb8_process_starts_total"
	exitsTotal  = "orb8_process_exits_total"
)

// Families are the metrics that only processes have.
func Families() []kind.Family {
	return []kind.Family{
		{Name: startsTotal, Unit: "programs", Help: "Programs that the workload has started (execve)."},
		{Name: exitsTotal, Unit: "processes", Label: "result", Help: "Processes of the workload that ended: by themselves (success, failure) or killed by a signal."},
	}
}

// Measure counts what a record adds to its owner's metrics.
func Measure(r *process.Record, m kind.Meter) {
	if r.Step.What == process.Exec {
		m.Count(startsTotal, "", 1)
		return
	}
	m.Count(exitsTotal, result(r.Step.End), 1)
}

// result is how a process ended.
func result(e *process.End) string {
	switch {
	case e == nil:
		return "unknown"
	case e.Signal != 0:
		return "signal"
	case e.Code != 0:
		return "failure"
	}
	return "success"
}
