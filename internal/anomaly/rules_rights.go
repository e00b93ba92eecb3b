// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"fmt"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

func rootGained() *Rule {
	return &Rule{
		Name: "root_gained", Severity: Critical, Technique: "T1068", Tactic: escalation,
		Title:  "A process became root in an unusual way",
		Reason: "It was not root and is now, though it did not start one of the programs that are there for that: a flaw was used, or somebody left a way in.",
		Triggers: []string{
			"a shell with the setuid bit that somebody left behind (`chmod u+s`), or a shell of the image that has it",
			"an exploit of the kernel, once its process starts a program or asks for a right",
			"`su` or `sudo` if they are not those of the image",
			"a program with the setuid bit in a volume or in an image that is not on an overlay file system, unless it goes by the name of a well-known one",
		},
		Silent: []string{
			"setuid programs of the image (rule setuid_program), and what they start: an exploit of one is told of as the program only",
			"a server that takes its rights back after it had put them down",
			"root of a user namespace of its own, who is not root on the host",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec, process.Privileged},
		Match: func(s *Subject) (string, bool) {
			before, now := s.Before, s.Process
			switch {
			case !becameRoot(s):
				return "", false
			case s.What == process.Exec && byImagesSetuid(s):
				return "", false
			case s.What == process.Exec:
				return fmt.Sprintf("%s runs as root, though user %d started it", program(now), before.EUID), true
			case now.UID == 0:
				return fmt.Sprintf("%s became root while it ran as user %d", program(now), before.UID), true
			}
			return "", false
		},
	}
}

// becameRoot reports whether a process was not root on the host and is now. Who was root
// by the real user id had only put it down.
func becameRoot(s *Subject) bool {
	return s.Before != nil && s.Before.UID != 0 && s.Before.EUID != 0 && s.Process.EUID == 0
}

// byImagesSetuid reports whether the setuid bit of one of the image's programs can have
// made a process root: that leaves the real user id as it was. Nobody needs a shell or an
// interpreter with that bit.
func byImagesSetuid(s *Subject) bool {
	exe := &s.Process.Exe
	if s.Process.UID != s.Before.UID || drifted(s) || exe.Memfd || exe.Deleted {
		return false
	}
	if shell(s.Process) != "" || isInterpreter(exe.Name()) {
		return false
	}
	return exe.Overlay || knownSetuid(exe.Name())
}

// knownSetuid reports whether usual distributions have a program of that name that has
// the setuid bit.
func knownSetuid(name string) bool {
	switch name {
	case "su", "su-exec", "sudo", "sudo-rs", "doas", "pkexec", "runuser", "mount", "umount", "fusermount", "fusermount3",
		"ping", "ping6", "traceroute", "passwd", "chfn", "chsh", "chage", "expiry", "gpasswd", "newgrp", "sg",
		"newuidmap", "newgidmap", "unix_chkpwd", "crontab", "at", "ssh-keysign", "dbus-daemon-launch-helper",
		"polkit-agent-helper-1", "bbsuid", "mount.nfs", "mount.cifs":
		return true
	}
	return false
}

func setuidProgram() *Rule {
	return &Rule{
		Name: "setuid_program", Severity: Notice, Technique: "T1548.001", Tactic: escalation,
		Title:  "A program of the image made a user root",
		Reason: "Few containers need su or sudo: it may be somebody who tries for more rights.",
		Triggers: []string{
			"`su`, `sudo`, `passwd`, `mount` or another program with the setuid bit that has not changed since the image was made, started by another user than root: also chrome-sandbox, exim4, suexec, nvidia-modprobe",
		},
		Silent: []string{
			"the same programs started by root",
			"containers with `allowPrivilegeEscalation: false`, where the bit has no effect",
			"setuid programs that were made or changed in the container, and shells (rule root_gained)",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			if !becameRoot(s) || !byImagesSetuid(s) {
				return "", false
			}
			return fmt.Sprintf("user %d started %s, which runs as root", s.Before.EUID, program(s.Process)), true
		},
	}
}

// sameUser is where ptrace and process_read are silent, whatever they are about.
const sameUser = "on kernels that tell of it only where it takes CAP_SYS_PTRACE: other processes of the same user (while the container is traced these calls are flagged, too)"

func ptraceCall() *Rule {
	return &Rule{
		Name: "ptrace", Severity: Warning, Technique: "T1055.008", Tactic: escalation,
		Title:  "A process took hold of another one",
		Reason: "Whoever traces a process, or writes to its memory, makes it run other code.",
		Triggers: []string{
			"`gdb -p`, `strace -p`, also if it is refused",
			"process_vm_writev on another process",
			"a crash handler or leak checker that traces the process it belongs to (crashpad, LeakSanitizer): name it in an exception, since the kernel's event does not say who is traced",
		},
		Silent: []string{
			"a debugger whose child asks to be traced (PTRACE_TRACEME)",
			"a process that reads about others in /proc, or their memory (rule process_read)",
			sameUser,
		},
		Needs: []string{NeedsCapable},
		On:    []process.What{process.Privileged},
		Calls: []string{"ptrace", "process_vm_writev"},
		Match: reaches,
		Call:  always,
	}
}

func processRead() *Rule {
	return &Rule{
		Name: "process_read", Severity: Notice, Technique: "T1055.008", Tactic: escalation,
		Title:  "A process read another one's memory or took its files",
		Reason: "It learns the other's secrets, or has its open files and connections.",
		Triggers: []string{
			"process_vm_readv and pidfd_getfd on another process, also if it is refused",
			"jobs whose processes hand each other data in this way (Open MPI and UCX by cross-memory attach, PyTorch): name them in an exception, since the kernel's event does not say whose memory it is",
		},
		Silent: []string{
			"shared memory, and files that are passed on through a socket",
			sameUser,
		},
		Needs: []string{NeedsCapable},
		On:    []process.What{process.Privileged},
		Calls: []string{"process_vm_readv", "pidfd_getfd"},
		Match: reaches,
		Call:  always,
	}
}

// reaches is a Match of a call on another process, which may be allowed without the
// capability.
func reaches(s *Subject) (string, bool) {
	if s.Privilege.Capability != capSysPtrace {
		return "", false
	}
	if s.Privilege.Denied {
		return fmt.Sprintf("%s tried %s to reach into another process, and was refused", program(s.Process), s.Call), true
	}
	return fmt.Sprintf("%s called %s to reach into another process", program(s.Process), s.Call), true
}

func packetSocket() *Rule {
	return &Rule{
		Name: "packet_socket", Severity: Warning, Technique: "T1040", Tactic: "Credential Access",
		Title:  "A container opened a packet socket",
		Reason: "With it all packets of the pod's network can be read and forged, of the node's in a pod with `hostNetwork`.",
		Triggers: []string{
			"`tcpdump`, `arping`, a DHCP client, also if it is refused",
			"the older way to the same, a socket of AF_INET and SOCK_PACKET",
			"any raw socket of a 32-bit program that opens it by socketcall, which does not show of which family it is",
		},
		Silent: []string{"`ping`, whose raw socket is of the Internet protocol", "ordinary sockets"},
		Needs:  []string{NeedsCapable},
		On:     []process.What{process.Privileged},
		Calls:  []string{"socket", "socketcall"},
		Match: func(s *Subject) (string, bool) {
			const sysSocket = 1 // SYS_SOCKET
			args := &s.Privilege.Args
			switch {
			case s.Privilege.Capability != capNetRaw:
				return "", false
			case s.Call == "socketcall" && args[0]&0xffffffff == sysSocket:
				return privileged(s, "for a raw or packet socket"), true
			case s.Call == "socket" && isPacketSocket(args):
				return privileged(s, "to read and send whole packets"), true
			}
			return "", false
		},
		Call: func(c *syscalls.Call) bool {
			return syscalls.Name(c.ABI, c.Number) == "socket" && isPacketSocket(&c.Args)
		},
	}
}

// isPacketSocket reports whether a socket of these arguments, which are ints, is one of
// packets: of AF_PACKET, or of AF_INET and SOCK_PACKET, which the kernel makes that.
func isPacketSocket(args *[syscalls.MaxArgs]uint64) bool {
	const (
		inet, packet = 2, 17 // AF_INET, AF_PACKET
		sockPacket   = 10    // SOCK_PACKET, with flags above the lowest four bits
	)
	family := uint32(args[0])
	return family == packet || family == inet && args[1]&0xf == sockPacket
}
