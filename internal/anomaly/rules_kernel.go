// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"fmt"
	"slices"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

func kernelModule() *Rule {
	return &Rule{
		Name: "kernel_module", Severity: Critical, Technique: "T1547.006", Tactic: "Persistence",
		Title:    "A container loaded or removed a kernel module",
		Reason:   "A module runs in the kernel, for the whole node.",
		Triggers: []string{"`insmod`, `modprobe`, `rmmod`, also if it is refused"},
		Silent:   []string{"a module that the kernel loads by itself, for instance for a file system"},
		Needs:    []string{NeedsCapable, NeedsModule},
		On:       []process.What{process.Privileged, process.Module},
		Calls:    []string{"init_module", "finit_module", "delete_module"},
		Match: func(s *Subject) (string, bool) {
			if s.What == process.Module {
				return fmt.Sprintf("%s loaded the kernel module %s", program(s.Process), shown(s.Module)), true
			}
			if s.Privilege.Capability != capSysModule {
				return "", false
			}
			if s.Call == "delete_module" {
				return privileged(s, "to remove a kernel module"), true
			}
			return privileged(s, "to load a kernel module"), true
		},
		Call: always,
	}
}

func bpfCall() *Rule {
	return &Rule{
		Name: "bpf", Severity: Warning, Technique: "T1014", Tactic: "Defense Evasion",
		Title:    "A container used BPF",
		Reason:   "BPF programs see and change what happens on the whole node, and can hide it.",
		Triggers: []string{"`bpftool`, and agents that load BPF programs: name them in an exception"},
		Silent:   []string{"socket filters of the classic kind (SO_ATTACH_FILTER), seccomp filters"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"bpf"},
		Match:    asked("for BPF programs or maps"),
		Call:     always,
	}
}

func perfEventOpen() *Rule {
	return &Rule{
		Name: "perf_event_open", Severity: Warning, Technique: "T1068", Tactic: escalation,
		Title:    "A container measures the kernel or other processes",
		Reason:   "Performance events of the whole node show what others do, and the call has been a way to exploit the kernel.",
		Triggers: []string{"`perf top`, profilers for the whole node, also if it is refused"},
		Silent:   []string{"a process that measures itself"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"perf_event_open"},
		Match: func(s *Subject) (string, bool) {
			if measuresItself(&s.Privilege.Args) {
				return "", false
			}
			return asked("to measure the kernel or other processes", capPerfmon, capSysAdmin)(s)
		},
		Call: func(c *syscalls.Call) bool { return !measuresItself(&c.Args) },
	}
}

// measuresItself reports whether perf_event_open is about who calls it: its second
// argument is a pid, 0 for that.
func measuresItself(args *[syscalls.MaxArgs]uint64) bool { return int32(args[1]) == 0 }

// opens are the calls that open a file, with the argument that is its path.
func opensFile(c *syscalls.Call, files ...string) bool {
	switch syscalls.Name(c.ABI, c.Number) {
	case "open":
		return slices.Contains(files, c.Strings[0])
	case "openat", "openat2":
		return slices.Contains(files, c.Strings[1])
	}
	return false
}

func rawIO() *Rule {
	return &Rule{
		Name: "raw_io", Severity: Critical, Technique: escape, Tactic: escalation,
		Title:    "A container reached for the hardware",
		Reason:   "With the machine's ports or its memory the kernel can be changed from outside of it.",
		Triggers: []string{"`iopl` and `ioperm`, also if it is refused", "in traced containers also opening /dev/mem, /dev/kmem, /dev/port or /proc/kcore"},
		Silent:   []string{"devices that the pod was given"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"iopl", "ioperm", "open", "openat", "openat2"},
		Match:    asked("to use the machine's ports or memory", capSysRawIO),
		Call: func(c *syscalls.Call) bool {
			switch syscalls.Name(c.ABI, c.Number) {
			case "iopl", "ioperm":
				return true
			}
			return opensFile(c, "/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore")
		},
	}
}

func kernelLog() *Rule {
	return &Rule{
		Name: "kernel_log", Severity: Notice, Technique: "T1082", Tactic: "Discovery",
		Title:    "A container read the kernel's log",
		Reason:   "The log tells of the node's hardware, of other containers and of addresses that help to exploit the kernel.",
		Triggers: []string{"`dmesg` where kernel.dmesg_restrict is set, also if it is refused", "in traced containers also opening /dev/kmsg, /proc/kmsg or /proc/kallsyms"},
		Silent:   []string{"programs that write to the system's log", "`dmesg` where everybody may read the log"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"syslog", "open", "openat", "openat2"},
		Match: func(s *Subject) (string, bool) {
			// Files that show addresses of the kernel ask for the same capability.
			if s.Call != "syslog" || s.Privilege.Capability != capSyslog {
				return "", false
			}
			return privileged(s, "to read or change the kernel's log"), true
		},
		Call: func(c *syscalls.Call) bool {
			return syscalls.Name(c.ABI, c.Number) == "syslog" || opensFile(c, "/dev/kmsg", "/proc/kmsg", "/proc/kallsyms")
		},
	}
}

func reboot() *Rule {
	return &Rule{
		Name: "reboot", Severity: Critical, Technique: "T1529", Tactic: "Impact",
		Title:    "A container asked for a reboot or another kernel",
		Reason:   "It stops all that runs on the node.",
		Triggers: []string{"`reboot`, `kexec -l`, also if it is refused"},
		Silent: []string{
			"a container that ends or is restarted",
			"an init program that says what Ctrl+Alt+Del is to do",
		},
		Needs: []string{NeedsCapable},
		On:    []process.What{process.Privileged},
		Calls: []string{"reboot", "kexec_load", "kexec_file_load"},
		Match: func(s *Subject) (string, bool) {
			if s.Call == "reboot" && isCtrlAltDel(&s.Privilege.Args) {
				return "", false
			}
			return asked("to stop the node or to load another kernel", capSysBoot)(s)
		},
		Call: func(c *syscalls.Call) bool {
			return syscalls.Name(c.ABI, c.Number) != "reboot" || !isCtrlAltDel(&c.Args)
		},
	}
}

// isCtrlAltDel reports whether reboot only says what the keys are to do; its third
// argument is an int.
func isCtrlAltDel(args *[syscalls.MaxArgs]uint64) bool {
	const off, on = 0, 0x89abcdef // LINUX_REBOOT_CMD_CAD_OFF and _ON
	cmd := uint32(args[2])
	return cmd == off || cmd == on
}

func clockChange() *Rule {
	return &Rule{
		Name: "clock_change", Severity: Warning, Technique: "T1562", Tactic: "Defense Evasion",
		Title:    "A container set the clock",
		Reason:   "The clock is the node's: logs, certificates and timers of everybody go by it.",
		Triggers: []string{"`date -s`, also if it is refused", "time servers such as chronyd: name them in an exception"},
		Silent:   []string{"reading the clock, `adjtimex` that only asks"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls: []string{
			"settimeofday", "stime", "clock_settime", "clock_settime64", "adjtimex", "clock_adjtime", "clock_adjtime64",
		},
		Match: asked("to set the clock", capSysTime),
		Call: func(c *syscalls.Call) bool {
			switch syscalls.Name(c.ABI, c.Number) {
			case "adjtimex", "clock_adjtime", "clock_adjtime64":
				return false // The arguments in memory say whether it only asks.
			}
			return true
		},
	}
}

func ioUring() *Rule {
	return &Rule{
		Name: "io_uring", Severity: Notice, Technique: "T1106", Tactic: "Execution",
		Title:    "A container used io_uring",
		Reason:   "What is done through io_uring does not show as system calls, which hides it from tools that watch those.",
		Triggers: []string{"each kind of io_uring operation that is new to a process, or has not been told of for a minute"},
		Silent:   []string{"more operations of the same kind", "asynchronous I/O of the older kind (io_submit)"},
		Needs:    []string{NeedsIOUring},
		On:       []process.What{process.IOUring},
		Match: func(s *Subject) (string, bool) {
			return fmt.Sprintf("%s used io_uring for %s", program(s.Process), s.Call), true
		},
		Calls: []string{"io_uring_setup"},
		Call:  always,
	}
}

// ioUringOps are the operations by number (include/uapi/linux/io_uring.h).
var ioUringOps = [...]string{
	"nop", "readv", "writev", "fsync", "read_fixed", "write_fixed", "poll_add", "poll_remove",
	"sync_file_range", "sendmsg", "recvmsg", "timeout", "timeout_remove", "accept", "async_cancel",
	"link_timeout", "connect", "fallocate", "openat", "close", "files_update", "statx", "read", "write",
	"fadvise", "madvise", "send", "recv", "openat2", "epoll_ctl", "splice", "provide_buffers",
	"remove_buffers", "tee", "shutdown", "renameat", "unlinkat", "mkdirat", "symlinkat", "linkat",
	"msg_ring", "fsetxattr", "setxattr", "fgetxattr", "getxattr", "socket", "uring_cmd", "send_zc",
	"sendmsg_zc", "read_multishot", "waitid", "futex_wait", "futex_wake", "futex_waitv",
	"fixed_fd_install", "ftruncate", "bind", "listen", "recv_zc", "epoll_wait", "readv_fixed",
	"writev_fixed", "pipe",
}

func ioUringOp(opcode uint8) string {
	if int(opcode) < len(ioUringOps) {
		return ioUringOps[opcode]
	}
	return fmt.Sprintf("operation %d", opcode)
}

func seccompKill() *Rule {
	const sigsys = 31
	return &Rule{
		Name: "seccomp_kill", Severity: Warning, Technique: "T1106", Tactic: "Execution",
		Title:    "A process was killed for a forbidden system call",
		Reason:   "Its seccomp profile did not foresee the call: the profile is too narrow, or the process does what it should not.",
		Triggers: []string{"a process that ends by SIGSYS"},
		Silent:   []string{"a call that the profile refuses with an error, and all other ends"},
		Needs:    []string{NeedsExec},
		On:       []process.What{process.Exit},
		Match: func(s *Subject) (string, bool) {
			if s.End == nil || s.End.Signal != sigsys {
				return "", false
			}
			return program(s.Process) + " was killed by SIGSYS for a system call that its seccomp profile forbids", true
		},
	}
}

func seccompDenied() *Rule {
	return &Rule{
		Name: "seccomp_denied", Severity: Notice, Technique: "T1106", Tactic: "Execution",
		Title:    "A system call was refused by seccomp",
		Reason:   "The program tried what its profile does not allow.",
		Triggers: []string{"in traced containers each call that seccomp or a tracer refuses, such as `unshare` under the default profile; there is no alert of it"},
		Silent:   []string{"calls that the kernel begins and that fail, for want of a right or for another reason"},
		Needs:    []string{NeedsSyscall},
		Call:     func(c *syscalls.Call) bool { return c.Refused },
	}
}
