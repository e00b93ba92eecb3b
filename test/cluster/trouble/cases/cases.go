// SPDX-License-Identifier: Apache-2.0

// Package cases has which alerts the deeds of the command trouble are to raise, and which
// deeds are to raise none. It knows nothing of what runs them.
package cases

import (
	"fmt"
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/internal/anomaly"
)

// What deeds say where the kernel refuses.
const (
	// Refused: for want of a right.
	Refused = "operation not permitted"
	// Absent: the kernel is built without the call.
	Absent = "function not implemented"
	// Barred: a file may not be opened.
	Barred = "permission denied"
)

// The programs of the containers: trouble itself, and busybox.
const (
	Self    = "/trouble"
	Busybox = "/bin/busybox"
)

// Outcome is what became of a deed, as trouble tells it.
type Outcome struct {
	Status int
	// Signal ended it, if it is not empty.
	Signal string
	// Output has what it wrote.
	Output string
}

// Is reports whether the deed ended as is wanted: if answer is empty with success, else
// without, having said answer or by the signal of that name.
func (o *Outcome) Is(answer string) bool {
	if answer == "" {
		return o.Status == 0
	}
	return o.Status != 0 && (strings.Contains(o.Output, answer) || o.Signal == answer)
}

// Found is an alert as far as the cases tell it.
type Found struct {
	Rule, Executable, Call string
	Denied                 bool
}

// Trouble is a deed that rules find.
type Trouble struct {
	// Pod names the pod, or the container, by what it may do: see Troubles.
	Pod string
	// Deed is what the pod's first process is asked for, with spaces between the
	// arguments. Terminal: instead that is what kubectl exec -t starts.
	Deed     string
	Terminal bool
	// Answer is part of what it says where the kernel refuses; empty where the kernel
	// does not.
	Answer string
	// Absent: kernels may be built without the call.
	Absent bool
	// Barred: a machine may keep its first process even from privileged pods.
	Barred bool
	Alerts []Found
}

// Key names a case among the alerts.
func (c *Trouble) Key() string { return c.Pod + ": " + strings.TrimPrefix(c.Deed, Self+" ") }

// NotTried tells why what came of the deed shows that this machine has no way to try it,
// empty if it has one.
func (c *Trouble) NotTried(o *Outcome) string {
	switch {
	case c.Absent && o.Is(Absent):
		return "this kernel is built without it: " + strings.TrimSpace(o.Output)
	case c.Barred && o.Is(Barred):
		return "this machine does not let a pod: " + strings.TrimSpace(o.Output)
	}
	return ""
}

// Troubles are what every rule is tried with. All but those of the pod able, which has
// SYS_ADMIN besides what containers have, are without the right to do harm, and the
// kernel refuses most of them. The pod user is user 1000, host is privileged and among
// the host's processes, cgroups is privileged and has the cgroup hierarchy.
//
// listener is an address that ends shells, victim is in the name of another container's
// cgroup, hostTrue is the file that /bin/true is on the host.
func Troubles(listener, victim, hostTrue string) []Trouble {
	denied := func(rule, call string) []Found { return []Found{{rule, Self, call, true}} }
	granted := func(rule, call string) []Found { return []Found{{rule, Self, call, false}} }
	program := func(path string, rules ...string) (all []Found) {
		for _, rule := range rules {
			all = append(all, Found{Rule: rule, Executable: path})
		}
		return all
	}
	return []Trouble{
		{Pod: "plain", Deed: "/bin/sh -c :", Terminal: true, Alerts: program(Busybox, "terminal_shell")},
		{Pod: "plain", Deed: "/trouble spawn /suid/sh -c :", Terminal: true,
			Alerts: append(program(Self, "terminal_session"), program("/suid/sh", "terminal_shell")...)},
		{Pod: "plain", Deed: "pty /bin/sh -c :", Alerts: program(Busybox, "terminal_session")},
		{Pod: "plain", Deed: "reverse " + listener, Alerts: program(Busybox, "reverse_shell")},
		{Pod: "plain", Deed: "drift /tmp/drifted", Alerts: program("/tmp/drifted", "drifted_executable")},
		{Pod: "plain", Deed: "drift /data/drifted", Alerts: program("/data/drifted", "drifted_executable")},
		{Pod: "plain", Deed: "memfd", Alerts: program("memfd:copy", "memfd_execution")},
		{Pod: "plain", Deed: "deleted /tmp/gone", Alerts: program("/tmp/gone", "deleted_executable", "drifted_executable")},
		{Pod: "plain", Deed: "spawn /lib/ld-trouble.so.1 nothing", Alerts: program("/lib/ld-trouble.so.1", "loader_execution")},

		{Pod: "plain", Deed: "unshare", Answer: Refused, Alerts: denied("namespace_change", "unshare")},
		{Pod: "plain", Deed: "setns /proc/1/ns/net", Answer: Refused, Alerts: denied("namespace_change", "setns")},
		{Pod: "plain", Deed: "userns nothing", Alerts: append(granted("namespace_change", "clone"), program(Self, "namespace_change")...)},
		{Pod: "plain", Deed: "mount", Answer: Refused, Alerts: denied("mount", "mount")},
		{Pod: "plain", Deed: "umount /proc", Answer: Refused, Alerts: denied("mount", "umount2")},
		{Pod: "plain", Deed: "pivot", Answer: Refused, Alerts: denied("pivot_root", "pivot_root")},
		{Pod: "plain", Deed: "chroot", Alerts: granted("chroot", "chroot")},
		{Pod: "plain", Deed: "mknod", Alerts: granted("device_node", "mknodat")},
		{Pod: "plain", Deed: "handle", Answer: Refused, Alerts: denied("open_by_handle", "open_by_handle_at")},

		{Pod: "plain", Deed: "ptrace", Answer: Refused, Alerts: denied("ptrace", "ptrace")},
		{Pod: "plain", Deed: "vmread", Answer: Refused, Alerts: denied("process_read", "process_vm_readv")},
		{Pod: "plain", Deed: "packet", Alerts: granted("packet_socket", "socket")},
		{Pod: "plain", Deed: "module", Answer: Refused, Absent: true, Alerts: denied("kernel_module", "init_module")},
		{Pod: "plain", Deed: "bpf", Answer: Refused, Alerts: denied("bpf", "bpf")},
		{Pod: "plain", Deed: "perf", Answer: Barred, Alerts: denied("perf_event_open", "perf_event_open")},
		{Pod: "plain", Deed: "iopl", Answer: Refused, Absent: true, Alerts: denied("raw_io", "iopl")},
		{Pod: "plain", Deed: "syslog", Answer: Refused, Alerts: denied("kernel_log", "syslog")},
		{Pod: "plain", Deed: "reboot", Answer: Refused, Alerts: denied("reboot", "reboot")},
		{Pod: "plain", Deed: "kexec", Answer: Refused, Absent: true, Alerts: denied("reboot", "kexec_load")},
		{Pod: "plain", Deed: "clock", Answer: Refused, Alerts: denied("clock_change", "settimeofday")},
		{Pod: "plain", Deed: "uring 0", Alerts: program(Self, "io_uring")},
		{Pod: "plain", Deed: "seccomp-kill", Answer: "bad system call", Alerts: program(Self, "seccomp_kill")},

		{Pod: "able", Deed: "packet-old", Alerts: granted("packet_socket", "socket")},
		{Pod: "able", Deed: "own-root", Alerts: slices.Concat(
			granted("namespace_change", "unshare"), granted("mount", "mount"), granted("pivot_root", "pivot_root"))},
		{Pod: "able", Deed: "move-mount", Alerts: append(granted("mount", "open_tree"), granted("mount", "move_mount")...)},
		{Pod: "user", Deed: "spawn /suid/sh -c :", Alerts: program("/suid/sh", "root_gained")},
		{Pod: "user", Deed: "spawn /suid/trouble nothing", Alerts: program("/suid/trouble", "setuid_program")},
		{Pod: "user", Deed: "spawn /suid/su nothing", Alerts: program("/suid/su", "setuid_program")},
		{Pod: "host", Deed: "nsenter 1 /bin/true", Barred: true, Alerts: append(granted("namespace_change", "setns"), program(hostTrue, "host_namespace")...)},
		{Pod: "cgroups", Deed: "cgroup-move " + victim, Alerts: program(Self, "cgroup_escape")},
		{Pod: "cgroups", Deed: "cgroup-fork " + victim, Alerts: program(Self, "cgroup_escape")},
	}
}

// Twin is a deed that looks like what a rule is about, and is not.
type Twin struct {
	Rule, Pod, Deed string
	// Answer as of Trouble.
	Answer string
	// Barred: a machine may refuse it to everybody, of which there is no alert either.
	Barred bool
}

// Ended reports whether the deed ended as it is to.
func (c *Twin) Ended(o *Outcome) bool { return o.Is(c.Answer) || c.Barred && o.Is(Barred) }

// Twins are the benign twins of all rules. The pods calm-NAME are like the pods NAME
// of Troubles, but that calm-user cannot gain rights and that calm-host is not
// privileged; calm has programs in /tools that were there before it, and calm-volumes
// many volumes. ownContainer is in the name of the cgroup of calm-cgroups.
func Twins(ownContainer string) []Twin {
	return []Twin{
		{Rule: "terminal_shell", Pod: "calm", Deed: "spawn /bin/sh -c :"},
		{Rule: "terminal_session", Pod: "calm", Deed: "pty /bin/ls /"},
		{Rule: "reverse_shell", Pod: "calm", Deed: "pipe-shell"},
		{Rule: "reverse_shell", Pod: "calm", Deed: "unixsocket-shell"},
		{Rule: "drifted_executable", Pod: "calm", Deed: "spawn /tools/tool nothing"},
		{Rule: "drifted_executable", Pod: "calm", Deed: "script /tmp/script"},
		{Rule: "memfd_execution", Pod: "calm", Deed: "memfd-map"},
		{Rule: "deleted_executable", Pod: "calm", Deed: "remove /tools/removed"},
		{Rule: "loader_execution", Pod: "calm", Deed: "spawn /lib/ld-trouble.so.1 --verify nothing", Answer: "no deed"},
		{Rule: "namespace_change", Pod: "calm", Deed: "nothing"},
		{Rule: "namespace_change", Pod: "calm", Deed: "unshare-files"},
		{Rule: "host_namespace", Pod: "calm-host", Deed: "spawn /bin/sh -c :"},
		{Rule: "cgroup_escape", Pod: "calm-cgroups", Deed: "cgroup-below " + ownContainer},
		// The runtime mounts and changes roots when it makes a container.
		{Rule: "mount", Pod: "calm-volumes", Deed: "nothing"},
		{Rule: "pivot_root", Pod: "calm-volumes", Deed: "nothing"},
		{Rule: "chroot", Pod: "calm-volumes", Deed: "nothing"},
		// The same right is asked for by another call, or the call fails before it is.
		{Rule: "mount", Pod: "calm", Deed: "hostname", Answer: Refused},
		{Rule: "pivot_root", Pod: "calm", Deed: "hostname", Answer: Refused},
		{Rule: "chroot", Pod: "calm", Deed: "chroot-nowhere", Answer: "no such file"},
		{Rule: "device_node", Pod: "calm", Deed: "mkfifo"},
		{Rule: "open_by_handle", Pod: "calm", Deed: "handle-of"},
		{Rule: "root_gained", Pod: "calm", Deed: "spawn /suid/sh -c :"},
		{Rule: "root_gained", Pod: "calm", Deed: "rest"},
		{Rule: "root_gained", Pod: "calm", Deed: "drop"},
		{Rule: "root_gained", Pod: "calm-user", Deed: "spawn /suid/sh -c :"},
		{Rule: "root_gained", Pod: "calm-user", Deed: "setuid", Answer: Refused},
		{Rule: "setuid_program", Pod: "calm", Deed: "spawn /suid/su nothing"},
		{Rule: "setuid_program", Pod: "calm-user", Deed: "spawn /suid/su nothing"},
		{Rule: "ptrace", Pod: "calm", Deed: "ptrace-child"},
		{Rule: "process_read", Pod: "calm", Deed: "vmread-self"},
		{Rule: "packet_socket", Pod: "calm", Deed: "ping"},
		{Rule: "packet_socket", Pod: "calm", Deed: "netlink"},
		{Rule: "kernel_module", Pod: "calm", Deed: "spawn /bin/ls /sys/module"},
		{Rule: "bpf", Pod: "calm", Deed: "seccomp-deny"},
		{Rule: "perf_event_open", Pod: "calm", Deed: "perf-self", Barred: true},
		{Rule: "raw_io", Pod: "calm", Deed: "spawn /bin/ls /dev"},
		{Rule: "kernel_log", Pod: "calm", Deed: "spawn /bin/busybox logger hello"},
		{Rule: "reboot", Pod: "calm", Deed: "killed", Answer: "killed"},
		{Rule: "reboot", Pod: "calm", Deed: "reboot-keys", Answer: Refused},
		{Rule: "clock_change", Pod: "calm", Deed: "clock-read"},
		{Rule: "io_uring", Pod: "calm", Deed: "aio"},
		{Rule: "seccomp_kill", Pod: "calm", Deed: "seccomp-deny"},
	}
}

// Untried names the rules for which there is no case, or no twin, with what lacks.
func Untried(all []Trouble, calm []Twin) (lacks []string) {
	for _, r := range anomaly.Rules() {
		if r.Match == nil {
			continue // it only flags calls of traces
		}
		tried := slices.ContainsFunc(all, func(c Trouble) bool {
			return slices.ContainsFunc(c.Alerts, func(f Found) bool { return f.Rule == r.Name })
		})
		silent := slices.ContainsFunc(calm, func(c Twin) bool { return c.Rule == r.Name })
		switch {
		case !tried:
			lacks = append(lacks, r.Name+": nothing triggers it")
		case !silent:
			lacks = append(lacks, r.Name+": no benign twin is tried")
		}
	}
	return lacks
}

// Sorted returns alerts in an order that does not depend on how they came, each once:
// the same capability may be asked for twice.
func Sorted(all []Found) []Found {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Found) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return slices.Compact(all)
}
