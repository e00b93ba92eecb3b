// SPDX-License-Identifier: Apache-2.0

package processes

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const second = int64(time.Second)

func parent() *process.Process {
	return &process.Process{
		ID: process.ID{PID: 41, Start: 4}, Comm: "sh", Args: []string{"sh"}, Started: 100 * second,
		Exe: process.Executable{Path: "/usr/bin/dash", Called: "/bin/sh"},
	}
}

// started is a record of a program's start, as the agent publishes it: by then its times are
// those of the wall clock, which here is five seconds ahead.
func started() *process.Record {
	p := &process.Process{
		ID: process.ID{PID: 42, Start: 5}, Parent: process.ID{PID: 41, Start: 4}, NSPID: 7, Comm: "app",
		Args: []string{"app", "", "-v"}, ArgsTruncated: true, Started: 110 * second, Execed: 120 * second, TTY: true,
		Exe:   process.Executable{Path: "/tmp/app", Called: "app", Memfd: true, Deleted: true, Upper: true, Changed: 99},
		Creds: process.Creds{UID: 1000, EUID: 1}, NS: process.Namespaces{Net: 3}, CgroupID: 9,
	}
	r := process.NewRecord(&process.Step{
		Event: process.Event{What: process.Exec, Time: 120 * second}, Process: p, Before: parent(),
		Ancestors: []*process.Process{parent()},
	})
	r.Owner, r.Self = &workload.Identity{Kind: "Unit", Name: "app.service"}, true
	r.Shift(5 * time.Second)
	return &r
}

func ended() *process.Record {
	r := started()
	s := *r.Step
	s.What, s.Time, s.Before = process.Exit, 122*second, nil
	s.End = &process.End{Code: 3, Signal: 11, CoreDumped: true}
	again := process.NewRecord(&s)
	again.Owner = r.Owner
	return &again
}

func TestEvent(t *testing.T) {
	want := &orb8v1.Event{TimeNs: 125 * second, NodeName: "n", Event: &orb8v1.Event_Process{Process: &orb8v1.ProcessEvent{
		Step: orb8v1.ProcessStep_PROCESS_STEP_EXEC, Workload: &orb8v1.Workload{Kind: "Unit", Name: "app.service"},
		Process: &orb8v1.ProcessInfo{
			Pid: 42, ParentPid: 41, PidInNamespace: 7, Command: "app", Arguments: []string{"app", "", "-v"}, ArgumentsTruncated: true,
			Uid: 1000, EffectiveUid: 1, StartedNs: 115 * second, Terminal: true,
			Executable: &orb8v1.Executable{Path: "/tmp/app", Called: "app", Memfd: true, Deleted: true, UpperLayer: true, ChangedNs: 99},
		},
		Ancestors: []*orb8v1.ProcessInfo{{
			Pid: 41, Command: "sh", Arguments: []string{"sh"}, StartedNs: 105 * second,
			Executable: &orb8v1.Executable{Path: "/usr/bin/dash", Called: "/bin/sh"},
		}},
		PreviousExecutable: "/usr/bin/dash", Self: true,
	}}}
	got := Event(started(), "n")
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	x := Event(ended(), "n").GetProcess()
	if x.GetStep() != orb8v1.ProcessStep_PROCESS_STEP_EXIT || x.GetExitCode() != 3 || x.GetSignal() != 11 || !x.GetCoreDumped() ||
		x.GetLifetimeNs() != 12*second || x.GetPreviousExecutable() != "" {
		t.Errorf("%v", x)
	}
	// Between them nothing that the API has is left out.
	for _, m := range []protoreflect.Message{got.GetProcess().ProtoReflect(), got.GetProcess().GetProcess().ProtoReflect()} {
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			if f := fields.Get(i); !m.Has(f) && (f.Parent() != x.ProtoReflect().Descriptor() || !x.ProtoReflect().Has(f)) {
				t.Errorf("%s is empty", f.FullName())
			}
		}
	}
}

func TestWanted(t *testing.T) {
	exit := []orb8v1.ProcessStep{orb8v1.ProcessStep_PROCESS_STEP_EXIT}
	if !Wanted(started(), nil) || !Wanted(ended(), nil) || Wanted(started(), exit) || !Wanted(ended(), exit) {
		t.Error("other steps than those asked for")
	}
}

type meter map[string]uint64

func (m meter) Count(family, value string, n uint64) { m[family+" "+value] += n }
func (m meter) Observe(string, uint64)               {}

func TestMeasure(t *testing.T) {
	m := meter{}
	for _, end := range []*process.End{{}, {Code: 1}, {Signal: 9}} {
		r := ended()
		r.Step.End = end
		Measure(r, m)
	}
	Measure(started(), m)
	want := meter{startsTotal + " ": 1, exitsTotal + " success": 1, exitsTotal + " failure": 1, exitsTotal + " signal": 1}
	if d := cmp.Diff(want, m); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
