// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/process"
)

var (
	runc = process.Executable{Path: "/usr/bin/runc", Called: "/usr/bin/runc"}
	crun = process.Executable{Path: "/usr/bin/crun", Called: "/usr/bin/crun"}
)

// setUp is what a runtime does in the container before it starts its program.
func (w *world) setUp(p *process.Process) (alerts []*Alert) {
	for _, c := range []struct {
		name       string
		capability uint8
	}{
		{"unshare", capSysAdmin}, {"mount", capSysAdmin}, {"mknodat", capMknod}, {"pivot_root", capSysAdmin},
		{"umount2", capSysAdmin}, {"setns", capSysAdmin}, {"chroot", capSysChroot}, {"bpf", capSysAdmin},
	} {
		alerts = append(alerts, w.call(p, c.name, c.capability, args(0x20000, 0x2000, 0x2000))...)
	}
	return alerts
}

// inside is a process that the runtime has put into the container, in namespaces of
// its own.
func (w *world) inside(p *process.Process) {
	p.CgroupID, p.NS = cgroup1, process.Namespaces{Mount: mount1, PID: pidNS1}
}

// runcInit starts `runc init` as runc create or exec does. entered: in the cgroup from
// the beginning, by CLONE_INTO_CGROUP.
func (w *world) runcInit(exe process.Executable, entered bool) (p *process.Process, alerts []*Alert) {
	create := w.fork(w.shim)
	alerts = w.exec(create, runc)
	p = w.fork(create, func(p *process.Process) {
		if entered {
			p.CgroupID = cgroup1
		}
	})
	alerts = append(alerts, w.exec(p, exe)...)
	p.CgroupID = cgroup1
	p.Comm = "runc:[0:PARENT]"
	alerts = append(alerts, w.call(p, "setns", capSysAdmin)...)
	// For the kernel, stages 1 and 2 have stage 0's parent (CLONE_PARENT).
	stage1 := w.fork(p, func(c *process.Process) { c.Comm = "runc:[1:CHILD]" })
	alerts = append(alerts, w.call(stage1, "unshare", capSysAdmin, args(0x20000))...)
	stage2 := w.fork(stage1, func(c *process.Process) { w.inside(c); c.Comm = "runc:[2:INIT]" })
	alerts = append(alerts, w.call(stage2, "mount", capSysAdmin)...)
	w.end(p)
	w.end(stage1)
	return stage2, append(alerts, w.setUp(stage2)...)
}

func (w *world) end(p *process.Process) {
	p.Exited = true
	w.check(process.Event{What: process.Exit, End: &process.End{}}, p)
}

func nginxFirst(w *world, p *process.Process) []*Alert {
	return w.exec(p, image("/usr/sbin/nginx"), tty, start(func(s *process.Start) { s.NSPID = 1 }))
}

func TestContainerStartIsSilent(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *world) []*Alert
	}{
		{"runc", func(w *world) []*Alert {
			p, alerts := w.runcInit(runc, false)
			return append(alerts, nginxFirst(w, p)...)
		}},
		{"runc in the cgroup from the beginning", func(w *world) []*Alert {
			p, alerts := w.runcInit(runc, true)
			return append(alerts, nginxFirst(w, p)...)
		}},
		{"runc as a copy in memory", func(w *world) []*Alert {
			p, alerts := w.runcInit(process.Executable{Path: "memfd:runc_cloned:/proc/self/exe", Memfd: true}, true)
			return append(alerts, nginxFirst(w, p)...)
		}},
		{"runc from a mount of its file", func(w *world) []*Alert {
			p, alerts := w.runcInit(process.Executable{Path: "/", Called: "/proc/self/fd/7"}, true)
			return append(alerts, nginxFirst(w, p)...)
		}},
		{"runc create ends before runc start", func(w *world) []*Alert {
			p, alerts := w.runcInit(runc, false)
			w.end(w.ancestors(p)[2])
			return append(alerts, nginxFirst(w, p)...)
		}},
		{"pause", func(w *world) []*Alert {
			p, alerts := w.runcInit(runc, false)
			return append(alerts, w.exec(p, image("/pause"), start(func(s *process.Start) { s.NSPID = 1 }))...)
		}},
		{"crun", func(w *world) []*Alert {
			create := w.fork(w.shim)
			alerts := w.exec(create, crun)
			p := w.fork(create, w.inside)
			return append(append(alerts, w.setUp(p)...), nginxFirst(w, p)...)
		}},
		{"a runtime that forks in the cgroup", func(w *world) []*Alert {
			create := w.fork(w.shim)
			alerts := w.exec(create, process.Executable{Path: "/usr/bin/youki"})
			middle := w.fork(create, func(p *process.Process) { p.CgroupID, p.Comm = cgroup1, "youki:[1:INTER]" })
			p := w.fork(middle, w.inside)
			alerts = append(alerts, w.setUp(middle)...)
			alerts = append(alerts, w.setUp(p)...)
			middle.Exited = true
			return append(alerts, nginxFirst(w, p)...)
		}},
		{"hooks", func(w *world) []*Alert {
			p, alerts := w.runcInit(runc, false)
			hook := w.fork(p)
			alerts = append(alerts, w.exec(hook, process.Executable{Path: "/usr/bin/nvidia-cdi-hook", Changed: w.now.UnixNano()})...)
			alerts = append(alerts, w.setUp(hook)...)
			return append(alerts, nginxFirst(w, p)...)
		}},
		{"kubectl exec", func(w *world) []*Alert {
			p, alerts := w.runcInit(runc, true)
			return append(alerts, w.exec(p, image("/usr/bin/psql"), tty)...)
		}},
		{"an agent that starts in between", func(w *world) []*Alert {
			p := w.runtimeIn(w.shim)
			p.Seeded = true
			return append(w.setUp(p), nginxFirst(w, p)...)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.cgroupStart = w.now.UnixNano()
			if alerts := tt.do(w); len(alerts) > 0 {
				t.Errorf("alerts:\n%s", summaries(alerts))
			}
		})
	}
}

// What looks like a runtime but came from inside is judged like everything else.
func TestImpostors(t *testing.T) {
	fake := image("/tmp/runc")
	for _, tt := range []struct {
		name string
		do   func(w *world) *process.Process
	}{
		{"forked inside", func(w *world) *process.Process {
			p := w.fork(w.init)
			w.exec(p, fake)
			return p
		}},
		{"first process, in place", func(w *world) *process.Process {
			w.exec(w.init, fake)
			return w.init
		}},
		{"entrypoint of an image", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			w.exec(p, fake, start(func(s *process.Start) { s.NSPID = 1 }))
			return p
		}},
		{"child of such an entrypoint", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			w.exec(p, fake)
			return w.fork(p)
		}},
		{"orphan of such an entrypoint", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			w.exec(p, fake)
			orphan := w.fork(w.fork(p))
			w.end(p)
			w.end(w.ancestors(orphan)[0])
			return orphan
		}},
		{"entrypoint while the runtime's own process has not ended", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			stage1 := w.ancestors(p)[0]
			stage1.Exited = false
			w.exec(p, fake)
			w.end(stage1)
			return p
		}},
		{"made with another parent", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, true)
			w.exec(p, image("/bin/sh"))
			return w.fork(p, func(p *process.Process) { p.Comm = "runc" })
		}},
		{"brought in by kubectl exec", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, true)
			w.exec(p, fake)
			return p
		}},
		{"from a mount of a file", func(w *world) *process.Process {
			w.exec(w.init, process.Executable{Path: "/", Called: "/proc/self/fd/7"})
			return w.init
		}},
		{"started again", func(w *world) *process.Process {
			w.exec(w.init, fake)
			w.exec(w.init, fake)
			return w.init
		}},
		{"long-lived and older than the agent", func(w *world) *process.Process {
			w.init.Exe, w.init.Comm, w.init.Seeded = fake, "runc", true
			return w.init
		}},
		{"start of the program was missed", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			p.Comm = "nginx"
			return p
		}},
		{"start of the program was missed, and of its child not", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			p.Comm = "nginx"
			child := w.fork(p)
			w.exec(child, image("/bin/sh"))
			return child
		}},
		{"a sandbox, which stays", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			p.Exe, p.Comm = process.Executable{Path: "/usr/local/bin/runsc"}, "runsc"
			return p
		}},
		{"takes long", func(w *world) *process.Process {
			p, _ := w.runcInit(runc, false)
			w.now = w.now.Add(setupTime)
			return p
		}},
		{"ancestors are not known", func(w *world) *process.Process {
			p := w.runtimeIn(w.shim)
			p.Parent = process.ID{}
			return p
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			p := tt.do(w)
			if alerts := w.call(p, "mount", capSysAdmin); len(alerts) != 1 {
				t.Errorf("%d alerts of a mount, want 1: %s", len(alerts), summaries(alerts))
			}
		})
	}
}

// What is kept of impostors is of those that came from outside, which nobody inside can
// make more of.
func TestImpostorsAreFew(t *testing.T) {
	w := newWorld(t)
	p, _ := w.runcInit(runc, false)
	w.exec(p, image("/tmp/runc"))
	for range 10 {
		p := w.fork(p)
		w.exec(p, image("/tmp/runc"))
		w.fork(p)
	}
	if got := w.engine.containers.impostors.size(); got != 1 {
		t.Errorf("%d impostors, want 1", got)
	}
}

// The processes by which a runtime has come in are none of the container's, at any time.
func TestStagesAreNotTheContainers(t *testing.T) {
	w := newWorld(t)
	w.cgroupStart = w.now.UnixNano()
	p, _ := w.runcInit(runc, false)
	nginxFirst(w, p)
	child := w.fork(p)
	for range 3 {
		for of, parent := range map[*process.Process]*process.Process{p: nil, child: p} {
			s := &Subject{
				Step:     &process.Step{Event: process.Event{What: process.Privileged, Time: w.now.UnixNano()}, Process: of, Ancestors: w.ancestors(of)},
				Workload: w.web,
			}
			if !w.engine.containers.place(s) || s.Inside != parent || s.Outermost != parent || s.Entered != (parent == nil) {
				t.Errorf("after %v: %+v", w.now.Sub(epoch), s)
			}
		}
		w.now = w.now.Add(time.Hour)
	}
}

// A container that is older than the agent has no first process any more.
func TestFirstProcessOfOldContainer(t *testing.T) {
	w := newWorld(t)
	w.cgroupStart = w.now.Add(-time.Hour).UnixNano()
	if alerts := w.enter(image("/bin/bash"), tty); len(alerts) != 1 {
		t.Errorf("%d alerts, want that of the shell: %s", len(alerts), summaries(alerts))
	}
}
