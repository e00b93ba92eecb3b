// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

const (
	hostCgroup  = 1
	cgroup1     = 10
	cgroup1Sub  = 11
	cgroup2     = 20
	hostMount   = 100
	mount1      = 200
	hostPIDNS   = 101
	pidNS1      = 201
	hostUserNS  = 102
	containerID = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	otherID     = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func containerOf(cgroup uint64) string {
	switch cgroup {
	case cgroup1, cgroup1Sub:
		return containerID
	case cgroup2:
		return otherID
	}
	return ""
}

// world is a node with a container: a model of the process table.
type world struct {
	t       testing.TB
	engine  *Engine
	losses  *loss.Counters
	now     time.Time
	nextPID uint32
	web     *workload.Identity
	// cgroupStart is when the container started.
	cgroupStart int64
	shim, init  *process.Process
	parents     map[process.ID]*process.Process
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	w := &world{
		t: t, losses: new(loss.Counters), now: epoch, nextPID: 1000, parents: make(map[process.ID]*process.Process),
		web: &workload.Identity{
			Namespace: "shop", Pod: "web-1", Kind: "Deployment", Name: "web", ContainerID: containerID,
			CgroupID: cgroup1,
		},
		cgroupStart: epoch.Add(-time.Hour).UnixNano(),
	}
	cfg := Config{Container: containerOf, Losses: w.losses, Now: func() time.Time { return w.now }, Process: w.find}
	for _, f := range change {
		f(&cfg)
	}
	engine, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.engine = engine
	w.shim = w.add(nil, &process.Process{
		Comm: "containerd-shim", Exe: process.Executable{Path: "/usr/bin/containerd-shim-runc-v2"}, CgroupID: hostCgroup,
		Creds: process.Creds{UserNS: hostUserNS}, NS: process.Namespaces{Mount: hostMount, PID: hostPIDNS},
		Started: epoch.Add(-2 * time.Hour).UnixNano(),
	})
	w.init = w.add(w.shim, &process.Process{
		Comm: "nginx", Exe: process.Executable{Path: "/usr/sbin/nginx", Overlay: true}, CgroupID: cgroup1,
		Creds: process.Creds{UserNS: hostUserNS}, NS: process.Namespaces{Mount: mount1, PID: pidNS1},
		Started: w.cgroupStart,
	})
	return w
}

func (w *world) find(id process.ID) *process.Process { return w.parents[id] }

// add puts a process into the table, with an ID.
func (w *world) add(parent, p *process.Process) *process.Process {
	w.nextPID++
	p.ID = process.ID{PID: w.nextPID, Start: uint64(w.nextPID)}
	if p.ExecNS == (process.Namespaces{}) {
		p.ExecNS = p.NS
	}
	if parent != nil {
		p.Parent = parent.ID
	}
	w.parents[p.ID] = p
	return p
}

// fork makes a copy of a process as its child.
func (w *world) fork(parent *process.Process, change ...func(*process.Process)) *process.Process {
	child := *parent
	child.Seeded, child.Started = false, w.now.UnixNano()
	for _, f := range change {
		f(&child)
	}
	w.add(parent, &child)
	w.check(process.Event{What: process.Fork}, &child)
	return &child
}

func (w *world) ancestors(p *process.Process) (all []*process.Process) {
	for p = w.parents[p.Parent]; p != nil; p = w.parents[p.Parent] {
		all = append(all, p)
	}
	return all
}

// identity is whose step it is.
func (w *world) identity(cgroup uint64) *workload.Identity {
	id := *w.web
	id.ContainerID = containerOf(cgroup)
	return &id
}

func (w *world) check(e process.Event, p *process.Process, change ...func(*process.Step)) []*Alert {
	e.Time = w.now.UnixNano()
	step := &process.Step{Event: e, Process: p, Ancestors: w.ancestors(p), CgroupStart: w.cgroupStart}
	for _, f := range change {
		f(step)
	}
	return w.engine.Check(w.identity(w.engine.Whose(step)), step)
}

// exec lets a process start an executable in place.
func (w *world) exec(p *process.Process, exe process.Executable, change ...func(*process.Step)) []*Alert {
	before := *p
	p.Exe, p.Comm, p.Execed, p.ExecNS = exe, base(exe.Path), w.now.UnixNano(), p.NS
	if exe.Memfd {
		p.Comm = "7"
	}
	p.Comm = p.Comm[:min(len(p.Comm), 15)]
	change = append([]func(*process.Step){func(s *process.Step) { s.Before = &before }}, change...)
	change = append(change, func(s *process.Step) { p.TTY = s.Start.TTY })
	return w.check(process.Event{What: process.Exec, Start: &process.Start{NSPID: p.PID - 900}}, p, change...)
}

// run starts an executable in a child of parent.
func (w *world) run(parent *process.Process, exe process.Executable, change ...func(*process.Step)) []*Alert {
	return w.exec(w.fork(parent), exe, change...)
}

// enter starts an executable in the container as the runtime does with kubectl exec.
func (w *world) enter(exe process.Executable, change ...func(*process.Step)) []*Alert {
	return w.exec(w.fork(w.runtimeIn(w.shim)), exe, append(change, func(s *process.Step) { s.Ancestors = w.ancestors(w.init) })...)
}

// runtimeIn is a runtime's process that is about to start a program in the container.
func (w *world) runtimeIn(parent *process.Process) *process.Process {
	return w.fork(parent, func(p *process.Process) {
		p.Exe, p.Comm = process.Executable{Path: "/usr/bin/runc"}, "runc:[2:INIT]"
		p.CgroupID, p.NS = cgroup1, process.Namespaces{Mount: mount1, PID: pidNS1}
	})
}

// call lets a process ask for a capability in a system call.
func (w *world) call(p *process.Process, name string, capability uint8, change ...func(*process.Privilege)) []*Alert {
	nr, ok := syscalls.Number(process.AMD64, name)
	if !ok {
		w.t.Fatalf("no call %s", name)
	}
	privilege := &process.Privilege{Capability: capability, ABI: process.AMD64, Call: nr}
	for _, f := range change {
		f(privilege)
	}
	return w.check(process.Event{What: process.Privileged, Privilege: privilege}, p)
}

// call32 is call of a 32-bit program.
func (w *world) call32(nr int32, capability uint8, change ...func(*process.Privilege)) []*Alert {
	privilege := &process.Privilege{Capability: capability, ABI: process.I386, Call: nr}
	for _, f := range change {
		f(privilege)
	}
	return w.check(process.Event{What: process.Privileged, Privilege: privilege}, w.init)
}

func args(values ...uint64) func(*process.Privilege) {
	return func(p *process.Privilege) { copy(p.Args[:], values) }
}

func denied(p *process.Privilege) { p.Denied = true }

func ownUserNS(p *process.Privilege) { p.OwnUserNS = true }

func socketTo(remote string) *process.Socket {
	return &process.Socket{
		Protocol: record.TCP, Local: netip.MustParseAddrPort("10.1.0.5:40000"), Remote: netip.MustParseAddrPort(remote),
	}
}

func image(path string) process.Executable {
	return process.Executable{Path: path, Called: path, Overlay: true, Changed: epoch.Add(-24 * time.Hour).UnixNano()}
}

func start(f func(*process.Start)) func(*process.Step) { return func(s *process.Step) { f(s.Start) } }

var tty = start(func(s *process.Start) { s.TTY = true })

func summaries(alerts []*Alert) string {
	var all []string
	for _, a := range alerts {
		all = append(all, a.Rule.Name+": "+a.Summary)
	}
	return strings.Join(all, "\n")
}
