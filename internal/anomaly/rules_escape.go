// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"fmt"
	"strings"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// escape is what the rules of this file have in common.
const escape, escalation = "T1611", "Privilege Escalation"

func namespaceChange() *Rule {
	return &Rule{
		Name: "namespace_change", Severity: Warning, Technique: escape, Tactic: escalation,
		Title:  "A process left its namespaces",
		Reason: "In other namespaces a process sees another part of the host, or has rights that its container does not.",
		Triggers: []string{
			"`unshare -m` or `nsenter` in a container, also if it is refused",
			"a program that is started in a user namespace other than its parent's (`unshare -U`)",
		},
		Silent: []string{
			"the runtime while it sets the container up",
			"threads and ordinary child processes",
		},
		Needs: []string{NeedsCapable, NeedsExec},
		On:    []process.What{process.Privileged, process.Exec},
		Calls: []string{"unshare", "setns", "clone", "clone3"},
		Match: func(s *Subject) (string, bool) {
			if s.What == process.Exec {
				return newUserNS(s)
			}
			if s.Privilege.Capability != capSysAdmin {
				return "", false
			}
			to, ok := namespaceCall(s.Call, &s.Privilege.Args)
			// A fork asks for the same capability to learn how much memory it may
			// use (cap_vm_enough_memory), always of the host; clone3 does not show its
			// flags, and with a new user namespace nothing else is asked of the host.
			if (!ok || makesUserNS(s.Call, &s.Privilege.Args)) && (!ok && s.Call != "clone3" || !s.Privilege.OwnUserNS) {
				return "", false
			}
			return privileged(s, to), true
		},
		Call: func(c *syscalls.Call) bool {
			_, ok := namespaceCall(syscalls.Name(c.ABI, c.Number), &c.Args)
			return ok
		},
	}
}

// namespaceCall tells what for a call changes namespaces; ok is false if its arguments
// do not say that it does.
func namespaceCall(call string, args *[syscalls.MaxArgs]uint64) (to string, ok bool) {
	switch call {
	case "setns":
		if kinds := namespaces(args[1]); kinds != "" {
			return "to enter another " + kinds + " namespace", true
		}
		return "to enter another namespace", true
	case "unshare", "clone":
		kinds := namespaces(args[0])
		return "for a new " + kinds + " namespace", kinds != ""
	}
	return "for new namespaces", false
}

// cloneNewUser is CLONE_NEWUSER.
const cloneNewUser = 0x10000000

// makesUserNS reports whether a call makes a user namespace, in which it has all rights.
func makesUserNS(call string, args *[syscalls.MaxArgs]uint64) bool {
	return (call == "clone" || call == "unshare") && args[0]&cloneNewUser != 0
}

// namespaces names the kinds of namespaces in the flags of clone
// (include/uapi/linux/sched.h).
func namespaces(flags uint64) string {
	var found []string
	for _, kind := range [...]struct {
		flag uint64
		name string
	}{
		{cloneNewUser, "user"}, {0x00020000, "mount"}, {0x20000000, "pid"}, {0x40000000, "network"},
		{0x08000000, "ipc"}, {0x04000000, "uts"}, {0x02000000, "cgroup"},
	} {
		if flags&kind.flag != 0 {
			found = append(found, kind.name)
		}
	}
	return strings.Join(found, ", ")
}

func newUserNS(s *Subject) (string, bool) {
	from := s.Origin
	if from == nil || from.UserNS == 0 || s.Process.UserNS == 0 || from.UserNS == s.Process.UserNS {
		return "", false
	}
	return program(s.Process) + " was started in another user namespace than " + program(from), true
}

func hostNamespace() *Rule {
	return &Rule{
		Name: "host_namespace", Severity: Critical, Technique: escape, Tactic: escalation,
		Title:  "A program was started in the host's namespaces",
		Reason: "The process has left its container: it sees the host's files or processes as the host does.",
		Triggers: []string{
			"`nsenter --target 1 --mount sh` in a privileged container that sees the host's processes",
			"the same by a child or grandchild of who entered them",
		},
		Silent: []string{
			"a pod with `hostPID`, whose processes are all in the host's pid namespace",
			"what the runtime starts",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			from := s.Origin
			if from == nil || s.Start == nil {
				return "", false
			}
			was, is := &from.ExecNS, &s.Process.NS
			switch {
			case s.Start.HostMount && was.Mount != 0 && was.Mount != is.Mount:
				return program(s.Process) + " was started in the host's mount namespace", true
			case s.Start.HostPID && was.PID != 0 && was.PID != is.PID:
				return program(s.Process) + " was started in the host's pid namespace", true
			}
			return "", false
		},
	}
}

func cgroupEscape() *Rule {
	return &Rule{
		Name: "cgroup_escape", Severity: Critical, Technique: escape, Tactic: escalation,
		Title:  "A process moved out of its container's cgroup",
		Reason: "Outside of it neither limits nor device rules nor anything that goes by cgroups reaches the process.",
		Triggers: []string{
			"a privileged container that mounts the cgroup file system and writes a pid to another cgroup's cgroup.procs",
			"one that makes a process in another cgroup from the beginning (`clone3` with CLONE_INTO_CGROUP)",
		},
		Silent: []string{
			"the runtime, kubelet or systemd moving processes",
			"cgroups that a container makes below its own",
		},
		Needs: []string{NeedsCgroup, NeedsExec},
		On:    []process.What{process.Moved, process.Fork},
		Match: func(s *Subject) (string, bool) {
			switch {
			case !s.Left:
				return "", false
			case s.What == process.Fork:
				return program(s.Process) + " made a process outside of its container's cgroup", true
			}
			return program(s.Process) + " was moved out of its container's cgroup from inside the container", true
		},
	}
}

func mountCall() *Rule {
	return &Rule{
		Name: "mount", Severity: Warning, Technique: escape, Tactic: escalation,
		Title:  "A container changed what is mounted",
		Reason: "With a mount a container reaches the host's devices and file systems, or hides files.",
		Triggers: []string{
			"`mount /dev/sda1 /mnt`, `mount -t proc proc /proc`, `umount`, also if it is refused",
			"the newer calls for the same: fsopen, fsmount, move_mount, open_tree, mount_setattr",
		},
		Silent: []string{
			"the runtime while it sets the container up",
			"volumes that the kubelet mounts",
		},
		Needs: []string{NeedsCapable},
		On:    []process.What{process.Privileged},
		Calls: []string{
			"mount", "umount", "umount2", "move_mount", "open_tree", "open_tree_attr", "fsopen", "fsconfig",
			"fsmount", "fspick", "mount_setattr",
		},
		Match: asked("to change what is mounted", capSysAdmin),
		Call: func(c *syscalls.Call) bool {
			const treeClone = 1 // OPEN_TREE_CLONE
			return syscalls.Name(c.ABI, c.Number) != "open_tree" || c.Args[2]&treeClone != 0
		},
	}
}

func pivotRoot() *Rule {
	return &Rule{
		Name: "pivot_root", Severity: Warning, Technique: escape, Tactic: escalation,
		Title:    "A container exchanged its root file system",
		Reason:   "After it the process sees other files than those of its image.",
		Triggers: []string{"`pivot_root NEW OLD`, also if it is refused", "a container engine in a container"},
		Silent:   []string{"the runtime while it sets the container up"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"pivot_root"},
		Match:    asked("to exchange its root file system", capSysAdmin),
		Call:     always,
	}
}

func changeRoot() *Rule {
	return &Rule{
		Name: "chroot", Severity: Notice, Technique: escape, Tactic: escalation,
		Title:    "A container changed its root directory",
		Reason:   "In a container that has the host's files as a volume, it is how to work on the host as if there.",
		Triggers: []string{"`chroot /host`", "servers that lock themselves into an empty directory (haproxy, postfix, sshd): name them in an exception"},
		Silent:   []string{"the runtime while it sets the container up"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"chroot"},
		Match:    asked("to change its root directory", capSysChroot),
		Call:     always,
	}
}

func deviceNode() *Rule {
	return &Rule{
		Name: "device_node", Severity: Warning, Technique: escape, Tactic: escalation,
		Title:    "A container made a device node",
		Reason:   "With a device node of the host's disk or memory a container can read and write it, if its device rules let it.",
		Triggers: []string{"`mknod /dev/disk b 8 0`, also if it is refused"},
		Silent:   []string{"`mkfifo`, and sockets"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"mknod", "mknodat"},
		Match: func(s *Subject) (string, bool) {
			kind, dev := deviceKind(s.Call, &s.Privilege.Args)
			if kind == "" || s.Privilege.Capability != capMknod {
				return "", false
			}
			return privileged(s, fmt.Sprintf("for the %s device %d:%d", kind, dev>>8&0xfff, dev&0xff|dev>>12&0xfff00)), true
		},
		Call: func(c *syscalls.Call) bool {
			kind, _ := deviceKind(syscalls.Name(c.ABI, c.Number), &c.Args)
			return kind != ""
		},
	}
}

// deviceKind is the kind of device that a call makes, empty if it makes another file,
// and its number as calls have it: 12 bits of major in the middle of 20 of minor.
func deviceKind(call string, args *[syscalls.MaxArgs]uint64) (kind string, dev uint32) {
	mode, at := args[1], args[2]
	if call == "mknodat" {
		mode, at = args[2], args[3]
	}
	switch mode & 0xf000 { // S_IFMT
	case 0x2000:
		return "character", uint32(at)
	case 0x6000:
		return "block", uint32(at)
	}
	return "", 0
}

func openByHandle() *Rule {
	return &Rule{
		Name: "open_by_handle", Severity: Critical, Technique: escape, Tactic: escalation,
		Title:    "A container opened a file by its handle",
		Reason:   "A handle names a file of the whole file system, whatever part of it the container sees: so the host's files can be read.",
		Triggers: []string{"`open_by_handle_at`, also if it is refused for want of CAP_DAC_READ_SEARCH"},
		Silent:   []string{"`name_to_handle_at`, which only asks for a handle"},
		Needs:    []string{NeedsCapable},
		On:       []process.What{process.Privileged},
		Calls:    []string{"open_by_handle_at"},
		Match:    asked("to open a file wherever it is", capDACReadSearch),
		Call:     always,
	}
}
