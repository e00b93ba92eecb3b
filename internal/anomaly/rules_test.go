// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

type scenario struct {
	name string
	do   func(w *world) []*Alert
	// summary is that of the one alert; empty if there must be none.
	summary string
}

func asUser(uid uint32) func(*process.Process) {
	return func(p *process.Process) { p.UID, p.EUID = uid, uid }
}

// setuid starts a program in a child that is user 1000, and root afterwards.
func setuid(exe process.Executable, uid uint32) func(*world) []*Alert {
	return func(w *world) []*Alert {
		p := w.fork(w.init, asUser(1000))
		return w.exec(p, exe, func(s *process.Step) { p.UID, p.EUID = uid, 0 })
	}
}

func calls(name string, capability uint8, change ...func(*process.Privilege)) func(*world) []*Alert {
	return func(w *world) []*Alert { return w.call(w.init, name, capability, change...) }
}

func runs(exe process.Executable, change ...func(*process.Step)) func(*world) []*Alert {
	return func(w *world) []*Alert { return w.run(w.init, exe, change...) }
}

func enters(exe process.Executable, change ...func(*process.Step)) func(*world) []*Alert {
	return func(w *world) []*Alert { return w.enter(exe, change...) }
}

func stdio(in, out *process.Socket) func(*process.Step) {
	return start(func(s *process.Start) { s.Stdin, s.Stdout = in, out })
}

func moved(by func(w *world) process.ID, to uint64) func(*world) []*Alert {
	return func(w *world) []*Alert {
		p := w.fork(w.init)
		p.CgroupID = to
		e := process.Event{What: process.Moved, From: cgroup1, By: p.ID}
		if by != nil {
			e.By = by(w)
		}
		return w.check(e, p)
	}
}

// forked makes a process in another cgroup than its parent.
func forked(from, to uint64) func(*world) []*Alert {
	return func(w *world) []*Alert {
		parent := w.fork(w.init, func(p *process.Process) { p.CgroupID = from })
		child := *parent
		child.CgroupID = to
		return w.check(process.Event{What: process.Fork}, w.add(parent, &child), func(s *process.Step) { s.Before = parent })
	}
}

// broughtIn is a process that kubectl exec has started in the container.
func (w *world) broughtIn(path string, change ...func(*process.Step)) *process.Process {
	p := w.runtimeIn(w.shim)
	w.exec(p, image(path), change...)
	return p
}

// truncated is loader with arguments that were not read to their end.
func truncated(path string, args ...string) func(*world) []*Alert {
	return func(w *world) []*Alert {
		return w.run(w.init, image(path), func(s *process.Step) { s.Process.Args, s.Process.ArgsTruncated = append([]string{path}, args...), true })
	}
}

// loader starts a dynamic loader with arguments.
func loader(path string, args ...string) func(*world) []*Alert {
	return runs(image(path), func(s *process.Step) { s.Process.Args = append([]string{path}, args...) })
}

// scenarios are by rule: what it is about, and what only looks like it.
var scenarios = map[string][]scenario{
	"terminal_shell": {
		{"kubectl exec -it", enters(image("/usr/bin/bash"), tty), "bash was started in the running container with a terminal"},
		{"busybox", enters(process.Executable{Path: "/bin/busybox", Called: "/bin/sh", Overlay: true}, tty), "sh was started in the running container with a terminal"},
		{"of a pod that shares its pid namespace, at once", func(w *world) []*Alert {
			w.cgroupStart = w.now.UnixNano()
			w.enter(image("/usr/sbin/nginx"))
			return w.enter(image("/usr/bin/bash"), tty)
		}, "bash was started in the running container with a terminal"},
		{"first process", enters(image("/usr/bin/bash"), tty, start(func(s *process.Start) { s.NSPID = 1 })), ""},
		{"first process in a shared pid namespace", func(w *world) []*Alert {
			w.cgroupStart = w.now.UnixNano()
			return w.enter(image("/usr/bin/bash"), tty)
		}, ""},
		{"without a terminal", enters(image("/usr/bin/bash")), ""},
		{"below another program that is brought in", func(w *world) []*Alert {
			return w.run(w.broughtIn("/usr/bin/timeout", tty), image("/bin/sh"), tty)
		}, "sh was started in the running container with a terminal"},
		{"whose terminal is opened by one that is brought in", func(w *world) []*Alert {
			return w.run(w.fork(w.broughtIn("/usr/bin/script")), image("/bin/sh"), tty)
		}, "sh was started in the running container with a terminal"},
		{"below another program, in a container older than the agent", func(w *world) []*Alert {
			w.init.Seeded = true
			return w.run(w.broughtIn("/usr/bin/timeout", tty), image("/bin/sh"), tty)
		}, "sh was started in the running container with a terminal"},
		{"from a shell that is brought in", func(w *world) []*Alert {
			return w.run(w.broughtIn("/bin/bash", tty), image("/bin/sh"), tty)
		}, ""},
		{"instead of a shell that is brought in", func(w *world) []*Alert {
			return w.exec(w.broughtIn("/bin/sh", tty), image("/bin/bash"), tty)
		}, ""},
		{"from the first process, which is a shell", func(w *world) []*Alert {
			w.cgroupStart = w.now.UnixNano()
			return w.run(w.broughtIn("/bin/bash", tty), image("/bin/sh"), tty)
		}, ""},
		{"below the first process, that has a terminal", func(w *world) []*Alert {
			w.cgroupStart = w.now.UnixNano()
			return w.run(w.broughtIn("/sbin/tini", tty), image("/bin/sh"), tty)
		}, ""},
		{"it is not known where it came from", func(w *world) []*Alert {
			w.init.Parent = process.ID{}
			return w.run(w.init, image("/bin/sh"), tty)
		}, ""},
	},
	"terminal_session": {
		{"kubectl exec -it", enters(image("/usr/bin/python3"), tty), "python3 was started in the running container with a terminal"},
		{"busybox", enters(process.Executable{Path: "/bin/busybox", Called: "/bin/top", Overlay: true}, tty), "busybox was started in the running container with a terminal"},
		{"pty.spawn", func(w *world) []*Alert {
			py := w.fork(w.init)
			w.exec(py, image("/usr/bin/python3.12"))
			return w.run(py, image("/bin/bash"), tty)
		}, "bash was started with a terminal that was opened inside the container, by python3.12"},
		{"of a shell without a terminal", func(w *world) []*Alert {
			sh := w.fork(w.init)
			w.exec(sh, image("/bin/sh"))
			return w.run(w.fork(sh), image("/bin/bash"), tty)
		}, "bash was started with a terminal that was opened inside the container, by sh"},
		{"without a terminal", enters(image("/usr/bin/psql")), ""},
		{"another program", runs(image("/usr/bin/psql"), tty), ""},
		{"a program of one that is brought in", func(w *world) []*Alert {
			return w.run(w.broughtIn("/usr/bin/psql", tty), image("/usr/bin/less"), tty)
		}, ""},
		{"from such a shell", func(w *world) []*Alert {
			sh := w.fork(w.init)
			w.exec(sh, image("/bin/bash"), tty)
			return w.run(w.fork(sh), image("/bin/sh"), tty)
		}, ""},
		{"a package's script", func(w *world) []*Alert {
			dpkg := w.fork(w.init)
			w.exec(dpkg, image("/usr/bin/dpkg"), tty)
			return w.run(dpkg, image("/bin/dash"), tty)
		}, ""},
		{"of what only goes by dpkg's name", func(w *world) []*Alert {
			dpkg := w.fork(w.init)
			w.exec(dpkg, process.Executable{Path: "/tmp/dpkg", Overlay: true, Upper: true})
			return w.run(dpkg, image("/bin/dash"), tty)
		}, "dash was started with a terminal that was opened inside the container, by dpkg"},
		{"the container's own terminal", func(w *world) []*Alert {
			w.init.TTY = true
			return w.run(w.init, image("/bin/bash"), tty)
		}, ""},
		{"first process", enters(image("/usr/bin/python3"), tty, start(func(s *process.Start) { s.NSPID = 1 })), ""},
	},
	"reverse_shell": {
		{"input", runs(image("/usr/bin/bash"), stdio(socketTo("10.0.0.9:4444"), nil)), "bash talks to 10.0.0.9:4444 through its standard input"},
		{"output", runs(image("/bin/dash"), stdio(nil, socketTo("10.0.0.9:4444"))), "dash talks to 10.0.0.9:4444 through its standard output"},
		{"loopback", runs(image("/bin/sh"), stdio(socketTo("127.0.0.1:4444"), nil)), "sh talks to 127.0.0.1:4444 through its standard input"},
		{"interpreter", runs(image("/usr/bin/python3.12"), stdio(socketTo("[2001:db8::1]:443"), nil)), "python3.12 talks to [2001:db8::1]:443 through its standard input"},
		{"child of a shell", func(w *world) []*Alert {
			sh := w.fork(w.init)
			w.exec(sh, image("/bin/bash"))
			return w.run(sh, image("/usr/bin/id"), stdio(socketTo("10.0.0.9:4444"), socketTo("10.0.0.9:4444")))
		}, "id talks to 10.0.0.9:4444 through its standard input"},
		{"what a shell sends", func(w *world) []*Alert {
			sh := w.fork(w.init)
			w.exec(sh, image("/bin/bash"))
			return w.run(sh, image("/bin/cat"), stdio(nil, socketTo("10.0.0.9:2003")))
		}, ""},
		{"pipes", runs(image("/usr/bin/bash")), ""},
		{"server of inetd", runs(image("/usr/bin/git"), stdio(socketTo("10.0.0.9:4444"), socketTo("10.0.0.9:4444"))), ""},
		{"listening socket", runs(image("/usr/bin/php"), stdio(&process.Socket{Local: netip.MustParseAddrPort("0.0.0.0:9000")}, nil)), ""},
	},
	"drifted_executable": {
		{"upper layer", runs(process.Executable{Path: "/tmp/xmrig", Overlay: true, Upper: true}), "/tmp/xmrig was started, which was changed or is not from the image"},
		{"volume", runs(process.Executable{Path: "/data/tool", Changed: epoch.Add(-time.Minute).UnixNano()}), "/data/tool was started, which was made or changed after the container started"},
		{"image", runs(image("/usr/bin/id")), ""},
		{"image unpacked late", runs(process.Executable{Path: "/usr/bin/id", Overlay: true, Changed: epoch.UnixNano()}), ""},
		{"copied by an init container", runs(process.Executable{Path: "/data/tool", Changed: epoch.Add(-2 * time.Hour).UnixNano()}), ""},
		{"start of the container not known", func(w *world) []*Alert {
			w.cgroupStart = 0
			return w.run(w.init, process.Executable{Path: "/data/tool", Changed: epoch.UnixNano()})
		}, ""},
	},
	"memfd_execution": {
		{"memfd", runs(process.Executable{Path: "memfd:x", Memfd: true}), "memfd:x was started, which is in memory only"},
		{"in place, by the first process", func(w *world) []*Alert {
			return w.exec(w.init, process.Executable{Path: "memfd:runc_cloned:/proc/self/exe", Memfd: true})
		}, "memfd:runc_cloned:/proc/self/exe was started, which is in memory only"},
		{"runtime that clones itself", func(w *world) []*Alert {
			p := w.fork(w.shim, func(p *process.Process) { p.CgroupID, p.Exe = cgroup1, process.Executable{Path: "/usr/bin/runc"} })
			return w.exec(p, process.Executable{Path: "memfd:runc_cloned:/proc/self/exe", Memfd: true})
		}, ""},
		{"file", runs(image("/usr/bin/id")), ""},
	},
	"deleted_executable": {
		{"deleted", runs(process.Executable{Path: "/tmp/x", Deleted: true, Overlay: true}), "/tmp/x was started after it was deleted"},
		{"strange name", runs(process.Executable{Path: "/tmp/\x1b[2J", Deleted: true, Overlay: true}), `"/tmp/\x1b[2J" was started after it was deleted`},
		{"there", runs(image("/usr/bin/id")), ""},
	},
	"loader_execution": {
		{"glibc's", loader("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "--library-path", "/lib", "/tmp/evil", "--list"), "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2, the dynamic loader, was started to run /tmp/evil"},
		{"glibc's older name", loader("/lib/ld-2.31.so", "evil"), "/lib/ld-2.31.so, the dynamic loader, was started to run evil"},
		{"musl's", loader("/lib/ld-musl-x86_64.so.1", "--", "/proc/self/fd/3"), "/lib/ld-musl-x86_64.so.1, the dynamic loader, was started to run /proc/self/fd/3"},
		{"musl's, which is its library", loader("/usr/lib/x86_64-linux-musl/libc.so", "/tmp/evil"), "/usr/lib/x86_64-linux-musl/libc.so, the dynamic loader, was started to run /tmp/evil"},
		{"arguments are not read", runs(image("/lib64/ld-linux-x86-64.so.2")), "/lib64/ld-linux-x86-64.so.2, the dynamic loader, was started as a program"},
		{"behind arguments that are too many to be read", truncated("/lib64/ld-linux-x86-64.so.2", "--library-path", "/lib"), "/lib64/ld-linux-x86-64.so.2, the dynamic loader, was started as a program"},
		{"a file that is called like an option", loader("/lib/ld-musl-x86_64.so.1", "--", "--list"), "/lib/ld-musl-x86_64.so.1, the dynamic loader, was started to run --list"},
		{"says something, of much", truncated("/lib64/ld-linux-x86-64.so.2", "--list", "/lib/a"), ""},
		{"says something", loader("/lib64/ld-linux-x86-64.so.2", "--verify", "/bin/ls"), ""},
		{"without a program", loader("/lib64/ld-linux-x86-64.so.2"), ""},
		{"first process", enters(image("/lib64/ld-linux-x86-64.so.2"), start(func(s *process.Start) { s.NSPID = 1 })), ""},
		{"glibc itself", loader("/lib/libc.so.6", "x"), ""},
		{"the linker", runs(image("/usr/bin/ld.bfd")), ""},
		{"another", runs(image("/usr/sbin/ldconfig")), ""},
	},
	"namespace_change": {
		{"unshare", calls("unshare", capSysAdmin, args(0x00020000|0x20000000)), "nginx called unshare for a new mount, pid namespace, with CAP_SYS_ADMIN"},
		{"refused", calls("setns", capSysAdmin, args(3, 0x00020000), denied), "nginx tried setns to enter another mount namespace, and was refused CAP_SYS_ADMIN"},
		{"clone", calls("clone", capSysAdmin, args(0x40000000|17)), "nginx called clone for a new network namespace, with CAP_SYS_ADMIN"},
		{"clone3 in its own", calls("clone3", capSysAdmin, ownUserNS), "nginx called clone3 for new namespaces, in a user namespace of its own, with CAP_SYS_ADMIN"},
		{"user namespace", func(w *world) []*Alert {
			p := w.fork(w.init, func(p *process.Process) { p.UserNS = 777 })
			return w.exec(p, image("/bin/sh"))
		}, "sh was started in another user namespace than nginx"},
		{"fork", calls("clone", capSysAdmin, args(17)), ""},
		{"a user namespace alone", calls("clone", capSysAdmin, denied, args(0x10000000|17)), ""},
		{"fork by clone3", calls("clone3", capSysAdmin), ""},
		{"first program in a pod with a user namespace", func(w *world) []*Alert {
			p := w.runtimeIn(w.shim)
			p.UserNS = 777
			return w.exec(p, image("/bin/sh"))
		}, ""},
	},
	"host_namespace": {
		{"nsenter from kubectl exec", func(w *world) []*Alert {
			p := w.runtimeIn(w.shim)
			w.exec(p, image("/usr/bin/nsenter"))
			return w.exec(p, process.Executable{Path: "/bin/sh"}, start(func(s *process.Start) { s.HostMount = true }),
				func(s *process.Step) { p.NS.Mount = hostMount })
		}, "sh was started in the host's mount namespace"},
		{"nsenter", func(w *world) []*Alert {
			p := w.fork(w.init, func(p *process.Process) { p.NS.Mount = hostMount })
			return w.exec(p, process.Executable{Path: "/bin/sh"}, start(func(s *process.Start) { s.HostMount = true }))
		}, "sh was started in the host's mount namespace"},
		{"by a grandchild", func(w *world) []*Alert {
			p := w.fork(w.fork(w.fork(w.init), func(p *process.Process) { p.NS.Mount = hostMount }))
			return w.exec(p, process.Executable{Path: "/bin/sh"}, start(func(s *process.Start) { s.HostMount = true }))
		}, "sh was started in the host's mount namespace"},
		{"by who has left them itself, as is known", func(w *world) []*Alert {
			p := w.runtimeIn(w.shim)
			w.exec(p, image("/bin/tool"))
			p.NS.Mount = hostMount
			return w.run(p, process.Executable{Path: "/bin/sh"}, start(func(s *process.Start) { s.HostMount = true }))
		}, "sh was started in the host's mount namespace"},
		{"from a shell that was told of", func(w *world) []*Alert {
			p := w.fork(w.init, func(p *process.Process) { p.NS.Mount = hostMount })
			w.exec(p, process.Executable{Path: "/bin/sh"}, start(func(s *process.Start) { s.HostMount = true }))
			return w.run(p, process.Executable{Path: "/bin/ls"}, start(func(s *process.Start) { s.HostMount = true }))
		}, ""},
		{"a file with a runtime's name", func(w *world) []*Alert {
			p := w.runtimeIn(w.shim)
			w.exec(p, image("/usr/bin/nsenter"))
			p.NS.Mount = hostMount
			return w.exec(p, process.Executable{Path: "/tmp/runc"}, start(func(s *process.Start) { s.HostMount = true }))
		}, "runc was started in the host's mount namespace"},
		{"pid namespace", func(w *world) []*Alert {
			p := w.fork(w.init, func(p *process.Process) { p.NS.PID = hostPIDNS })
			return w.exec(p, image("/bin/sh"), start(func(s *process.Start) { s.HostPID = true }))
		}, "sh was started in the host's pid namespace"},
		{"pod with hostPID", func(w *world) []*Alert {
			w.init.NS.PID, w.init.ExecNS.PID = hostPIDNS, hostPIDNS
			return w.run(w.init, image("/bin/sh"), start(func(s *process.Start) { s.HostPID = true }))
		}, ""},
		{"entered", enters(image("/bin/sh"), start(func(s *process.Start) { s.HostPID = true })), ""},
	},
	"cgroup_escape": {
		{"itself", moved(nil, hostCgroup), "nginx was moved out of its container's cgroup from inside the container"},
		{"its parent", moved(func(w *world) process.ID { return w.init.ID }, hostCgroup), "nginx was moved out of its container's cgroup from inside the container"},
		{"a sibling, into another container", moved(func(w *world) process.ID { return w.fork(w.init).ID }, cgroup2), "nginx was moved out of its container's cgroup from inside the container"},
		{"the runtime", moved(func(w *world) process.ID { return w.shim.ID }, hostCgroup), ""},
		{"below its own", moved(nil, cgroup1Sub), ""},
		{"made outside", forked(cgroup1, hostCgroup), "nginx made a process outside of its container's cgroup"},
		{"made in another container", forked(cgroup1, cgroup2), "nginx made a process outside of its container's cgroup"},
		{"made in a cgroup below", forked(cgroup1, cgroup1Sub), ""},
		{"made in the cgroup above, its own still", forked(cgroup1Sub, cgroup1), ""},
		{"put into the container by the runtime", forked(hostCgroup, cgroup1), ""},
		{"by who is not known", moved(func(*world) process.ID { return process.ID{PID: 1} }, hostCgroup), ""},
	},
	"mount": {
		{"mount", calls("mount", capSysAdmin), "nginx called mount to change what is mounted, with CAP_SYS_ADMIN"},
		{"refused", calls("fsopen", capSysAdmin, denied), "nginx tried fsopen to change what is mounted, and was refused CAP_SYS_ADMIN"},
		{"in a user namespace", calls("umount2", capSysAdmin, ownUserNS), "nginx called umount2 to change what is mounted, in a user namespace of its own, with CAP_SYS_ADMIN"},
		{"look-up of a path", calls("mount", capDACReadSearch), ""},
		{"busybox that starts itself anew", func(w *world) []*Alert {
			p := w.fork(w.init, func(p *process.Process) { p.Args = []string{"mount", "-t", "proc"} })
			w.exec(p, process.Executable{Path: "/bin/busybox", Called: "/proc/self/exe", Overlay: true})
			p.Comm = "exe"
			return w.call(p, "mount", capSysAdmin)
		}, "mount called mount to change what is mounted, with CAP_SYS_ADMIN"},
		{"another call", calls("sethostname", capSysAdmin), ""},
	},
	"pivot_root": {
		{"pivot_root", calls("pivot_root", capSysAdmin), "nginx called pivot_root to exchange its root file system, with CAP_SYS_ADMIN"},
		{"another call", calls("quotactl", capSysAdmin), ""},
	},
	"chroot": {
		{"chroot", calls("chroot", capSysChroot), "nginx called chroot to change its root directory, with CAP_SYS_CHROOT"},
		{"another capability", calls("chroot", capDACReadSearch), ""},
	},
	"device_node": {
		{"block", calls("mknodat", capMknod, args(0, 0, 0x6000|0o600, 8<<8|1)), "nginx called mknodat for the block device 8:1, with CAP_MKNOD"},
		{"character", calls("mknod", capMknod, args(0, 0x2000, 1<<8|3), denied), "nginx tried mknod for the character device 1:3, and was refused CAP_MKNOD"},
		{"FIFO", calls("mknod", capMknod, args(0, 0x1000)), ""},
	},
	"open_by_handle": {
		{"open_by_handle_at", calls("open_by_handle_at", capDACReadSearch, denied), "nginx tried open_by_handle_at to open a file wherever it is, and was refused CAP_DAC_READ_SEARCH"},
		{"another capability", calls("open_by_handle_at", capSysAdmin), ""},
	},
	"root_gained": {
		{"setuid shell", setuid(process.Executable{Path: "/bin/dash", Overlay: true}, 1000), "dash runs as root, though user 1000 started it"},
		{"deleted", func(w *world) []*Alert {
			alerts := setuid(process.Executable{Path: "/x", Overlay: true, Deleted: true}, 1000)(w)
			return slices.DeleteFunc(alerts, func(a *Alert) bool { return a.Rule.Name == "deleted_executable" })
		}, "x runs as root, though user 1000 started it"},
		{"a program that was made in the container", func(w *world) []*Alert {
			alerts := setuid(process.Executable{Path: "/bin/su", Overlay: true, Upper: true}, 1000)(w)
			return slices.DeleteFunc(alerts, func(a *Alert) bool { return a.Rule.Name == "drifted_executable" })
		}, "su runs as root, though user 1000 started it"},
		{"while it runs", func(w *world) []*Alert {
			p := w.fork(w.init)
			return w.check(process.Event{What: process.Privileged, Privilege: &process.Privilege{Capability: capSysAdmin, Call: -1}}, p,
				func(s *process.Step) { before := *p; before.UID, before.EUID = 1000, 1000; s.Before = &before })
		}, "nginx became root while it ran as user 1000"},
		{"a server that takes its rights back", func(w *world) []*Alert {
			p := w.fork(w.init)
			return w.check(process.Event{What: process.Privileged, Privilege: &process.Privilege{Capability: capSysAdmin, Call: -1}}, p,
				func(s *process.Step) { before := *p; before.EUID = 1000; s.Before = &before })
		}, ""},
		{"a server that takes its rights back and starts a program", func(w *world) []*Alert {
			p := w.fork(w.init, func(p *process.Process) { p.UID, p.EUID = 0, 1000 })
			return w.exec(p, image("/usr/sbin/sendmail"), func(*process.Step) { p.EUID = 0 })
		}, ""},
		{"an exploit that starts a program of the image", setuid(image("/usr/bin/id"), 0), "id runs as root, though user 1000 started it"},
		{"an exploit that starts su", setuid(image("/bin/su"), 0), "su runs as root, though user 1000 started it"},
		{"a shell of the image", setuid(image("/bin/dash"), 1000), "dash runs as root, though user 1000 started it"},
		{"an interpreter of the image", setuid(image("/usr/bin/perl"), 1000), "perl runs as root, though user 1000 started it"},
		{"not on an overlay", setuid(process.Executable{Path: "/opt/x"}, 1000), "x runs as root, though user 1000 started it"},
		{"root before", func(w *world) []*Alert { return w.run(w.init, image("/var/lib/x")) }, ""},
	},
	"setuid_program": {
		{"su", setuid(image("/bin/su"), 1000), "user 1000 started su, which runs as root"},
		{"su, not on an overlay", setuid(process.Executable{Path: "/bin/su"}, 1000), "user 1000 started su, which runs as root"},
		{"one that is not well known", setuid(image("/opt/google/chrome/chrome-sandbox"), 1000), "user 1000 started chrome-sandbox, which runs as root"},
		{"by root", runs(image("/bin/su")), ""},
	},
	"ptrace": {
		{"ptrace", calls("ptrace", capSysPtrace, denied), "nginx tried ptrace to reach into another process, and was refused"},
		{"process_vm_writev", calls("process_vm_writev", capSysPtrace), "nginx called process_vm_writev to reach into another process"},
		{"another capability", calls("ptrace", capSysAdmin), ""},
	},
	"process_read": {
		{"process_vm_readv", calls("process_vm_readv", capSysPtrace), "nginx called process_vm_readv to reach into another process"},
		{"pidfd_getfd", calls("pidfd_getfd", capSysPtrace, denied), "nginx tried pidfd_getfd to reach into another process, and was refused"},
		{"another capability", calls("process_vm_readv", capSysAdmin), ""},
	},
	"packet_socket": {
		{"SOCK_PACKET", calls("socket", capNetRaw, args(2, 10|0x80000, 0x300), denied), "nginx tried socket to read and send whole packets, and was refused CAP_NET_RAW"},
		{"another family's type 10", calls("socket", capNetRaw, args(10, 10)), ""},
		{"socketcall", func(w *world) []*Alert { return w.call32(102, capNetRaw, args(1)) }, "nginx called socketcall for a raw or packet socket, with CAP_NET_RAW"},
		{"socketcall for an option", func(w *world) []*Alert { return w.call32(102, capNetRaw, args(14)) }, ""},
		{"another capability of socketcall", func(w *world) []*Alert { return w.call32(102, capSysAdmin, args(1)) }, ""},
		{"tcpdump", calls("socket", capNetRaw, args(17, 3, 0x300)), "nginx called socket to read and send whole packets, with CAP_NET_RAW"},
		{"ping", calls("socket", capNetRaw, args(2, 3, 1)), ""},
	},
	"kernel_module": {
		{"load", calls("finit_module", capSysModule), "nginx called finit_module to load a kernel module, with CAP_SYS_MODULE"},
		{"remove", calls("delete_module", capSysModule, denied), "nginx tried delete_module to remove a kernel module, and was refused CAP_SYS_MODULE"},
		{"loaded", func(w *world) []*Alert {
			return w.check(process.Event{What: process.Module, Module: "rootkit"}, w.init)
		}, "nginx loaded the kernel module rootkit"},
		{"on the host", func(w *world) []*Alert {
			return w.check(process.Event{What: process.Module, Module: "ext4"}, w.shim)
		}, ""},
	},
	"bpf": {
		{"bpf", calls("bpf", 39), "nginx called bpf for BPF programs or maps, with CAP_BPF"},
		{"another call", calls("keyctl", capSysAdmin), ""},
	},
	"perf_event_open": {
		{"perf of itself", calls("perf_event_open", capPerfmon, args(0, 0)), ""},
		{"perf", calls("perf_event_open", capPerfmon, denied, args(0, math.MaxUint64)), "nginx tried perf_event_open to measure the kernel or other processes, and was refused CAP_PERFMON"},
		{"another capability", calls("perf_event_open", capSysPtrace), ""},
	},
	"raw_io": {
		{"iopl", calls("iopl", capSysRawIO), "nginx called iopl to use the machine's ports or memory, with CAP_SYS_RAWIO"},
		{"another capability", calls("ioperm", capSysAdmin), ""},
	},
	"kernel_log": {
		{"dmesg", calls("syslog", capSyslog, denied), "nginx tried syslog to read or change the kernel's log, and was refused CAP_SYSLOG"},
		{"addresses of sockets", calls("openat", capSyslog), ""},
	},
	"reboot": {
		{"reboot", calls("reboot", capSysBoot, args(0xfee1dead, 0x28121969, 0x01234567)), "nginx called reboot to stop the node or to load another kernel, with CAP_SYS_BOOT"},
		{"kexec", calls("kexec_load", capSysBoot, denied), "nginx tried kexec_load to stop the node or to load another kernel, and was refused CAP_SYS_BOOT"},
		{"Ctrl+Alt+Del off", calls("reboot", capSysBoot, args(0xfee1dead, 0x28121969, 0), denied), ""},
		{"Ctrl+Alt+Del on", calls("reboot", capSysBoot, args(0xfee1dead, 0x28121969, 0xffffffff89abcdef)), ""},
		{"another capability", calls("reboot", capSysAdmin, args(0, 0, 1)), ""},
	},
	"clock_change": {
		{"date", calls("clock_settime", capSysTime), "nginx called clock_settime to set the clock, with CAP_SYS_TIME"},
		{"another capability", calls("adjtimex", capSysAdmin), ""},
	},
	"io_uring": {
		{"openat", func(w *world) []*Alert { return w.check(process.Event{What: process.IOUring, Opcode: 18}, w.init) }, "nginx used io_uring for openat"},
		{"on the host", func(w *world) []*Alert { return w.check(process.Event{What: process.IOUring, Opcode: 18}, w.shim) }, ""},
	},
	"seccomp_kill": {
		{"SIGSYS", func(w *world) []*Alert {
			return w.check(process.Event{What: process.Exit, End: &process.End{Signal: 31}}, w.init)
		}, "nginx was killed by SIGSYS for a system call that its seccomp profile forbids"},
		{"SIGKILL", func(w *world) []*Alert {
			return w.check(process.Event{What: process.Exit, End: &process.End{Signal: 9}}, w.init)
		}, ""},
	},
}

func TestRules(t *testing.T) {
	for _, r := range Rules() {
		t.Run(r.Name, func(t *testing.T) {
			silent, found := 0, 0
			for _, tt := range scenarios[r.Name] {
				t.Run(tt.name, func(t *testing.T) {
					alerts := tt.do(newWorld(t))
					if tt.summary == "" {
						silent++
						if len(alerts) > 0 {
							t.Errorf("alerts:\n%s", summaries(alerts))
						}
						return
					}
					found++
					if want := r.Name + ": " + tt.summary; summaries(alerts) != want {
						t.Errorf("got:\n%s\nwant:\n%s", summaries(alerts), want)
					}
				})
			}
			if r.Match != nil && (silent == 0 || found == 0) {
				t.Errorf("%d cases that trigger it, %d that do not; it needs both", found, silent)
			}
		})
	}
}

func TestRulesAreComplete(t *testing.T) {
	name, technique := regexp.MustCompile(`^[a-z][a-z_]*$`), regexp.MustCompile(`^T1\d{3}(\.\d{3})?$`)
	known := make(map[string]bool)
	for _, call := range syscalls.Names() {
		known[call] = true
	}
	asked := make(map[string]bool)
	for _, call := range syscalls.Privileged() {
		asked[call] = true
	}
	seen := make(map[string]bool)
	for _, r := range Rules() {
		if seen[r.Name] || !name.MatchString(r.Name) || !technique.MatchString(r.Technique) || r.Tactic == "" {
			t.Errorf("rule %q: name, technique %q or tactic %q", r.Name, r.Technique, r.Tactic)
		}
		seen[r.Name] = true
		if r.Severity < Notice || r.Severity > Critical || len(r.Needs) == 0 || len(r.Triggers) == 0 || len(r.Silent) == 0 {
			t.Errorf("rule %s: severity, needs, triggers or silent are missing", r.Name)
		}
		if !strings.HasSuffix(r.Reason, ".") || strings.HasSuffix(r.Title, ".") {
			t.Errorf("rule %s: the reason is a sentence, the title is none", r.Name)
		}
		if (r.Match == nil) != (len(r.On) == 0) || r.Match == nil && r.Call == nil {
			t.Errorf("rule %s is never asked", r.Name)
		}
		for _, call := range r.Calls {
			if !known[call] {
				t.Errorf("rule %s: no call %s", r.Name, call)
			}
			if r.Call == nil && !asked[call] {
				t.Errorf("rule %s: nobody tells of %s", r.Name, call)
			}
		}
	}
	for rule := range scenarios {
		if !seen[rule] {
			t.Errorf("cases of %s, which is no rule", rule)
		}
	}
}

// No rule looks at what happens outside of containers.
func TestHostIsSilent(t *testing.T) {
	w := newWorld(t)
	sh := w.fork(w.shim)
	var alerts []*Alert
	alerts = append(alerts, w.exec(sh, process.Executable{Path: "memfd:x", Memfd: true}, tty)...)
	alerts = append(alerts, w.call(sh, "mount", capSysAdmin)...)
	alerts = append(alerts, w.engine.Check(nil, &process.Step{Process: sh})...)
	if len(alerts) > 0 {
		t.Errorf("alerts:\n%s", summaries(alerts))
	}
}

func TestRemote(t *testing.T) {
	w := newWorld(t)
	alerts := w.run(w.init, process.Executable{Path: "/tmp/sh", Overlay: true, Upper: true}, stdio(socketTo("10.0.0.9:4444"), nil))
	if len(alerts) != 2 {
		t.Fatalf("alerts:\n%s", summaries(alerts))
	}
	for _, a := range alerts {
		if got := a.Remote.IsValid(); got != (a.Rule.Name == "reverse_shell") {
			t.Errorf("%s: remote %v", a.Rule.Name, a.Remote)
		}
	}
}
