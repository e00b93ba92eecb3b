// SPDX-License-Identifier: Apache-2.0

// Package anomaly judges what processes do by rules. It knows nothing of BPF or of
// how alerts reach anybody.
package anomaly

import (
	"net/netip"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/record"
	"github.com/Ignoramuss/orb8/internal/syscalls"
	"github.com/Ignoramuss/orb8/internal/workload"
)

// Severity says how much an alert means.
type Severity uint8

// The severities, with the numbers of the API.
const (
	// Notice: worth knowing.
	Notice Severity = iota + 1
	// Warning: unusual in a container.
	Warning
	// Critical: hardly ever benign.
	Critical
)

// String returns the name that users write.
func (s Severity) String() string {
	return [...]string{"", "notice", "warning", "critical"}[s]
}

// What the kernel must tell for a rule.
const (
	NeedsExec    = "exec"
	NeedsCapable = "capable"
	NeedsIOUring = "io_uring"
	NeedsModule  = "module"
	NeedsCgroup  = "cgroup"
	// NeedsSyscall: the rule only flags calls of traced containers.
	NeedsSyscall = "syscall"
)

// Rule is one thing that is worth an alert. It is never changed.
type Rule struct {
	// Name is a metric's label and a key of the configuration: reverse_shell.
	Name     string
	Severity Severity
	// Technique of MITRE ATT&CK: T1059.004. Tactic is the one it serves here.
	Technique, Tactic string
	// Title says in a few words what the rule finds, Reason in a sentence why that
	// matters.
	Title, Reason string
	// Triggers and Silent are examples of what is found and of what looks like it and
	// is not, for docs/rules.md.
	Triggers, Silent []string
	// Needs names what the kernel must tell for it: the Needs constants.
	Needs []string
	// On are the kinds of steps that Match is asked about.
	On []process.What
	// Calls are the system calls that Match is asked about, of Privileged steps, and
	// Call; empty for all.
	Calls []string
	// Match reports whether the subject is what the rule is about, with the sentence
	// that tells of it. Nil if no step is.
	Match func(*Subject) (summary string, found bool)
	// Call, if set, flags calls of a traced container.
	Call func(*syscalls.Call) bool
}

// Rules returns all rules, in the order of docs/rules.md. Names differ.
func Rules() []*Rule {
	return []*Rule{
		terminalShell(), terminalSession(), reverseShell(), driftedExecutable(), memfdExecution(), deletedExecutable(),
		loaderExecution(),
		namespaceChange(), hostNamespace(), cgroupEscape(), mountCall(), pivotRoot(), changeRoot(),
		deviceNode(), openByHandle(),
		rootGained(), setuidProgram(), ptraceCall(), processRead(), packetSocket(),
		kernelModule(), bpfCall(), perfEventOpen(), rawIO(), kernelLog(), reboot(), clockChange(),
		ioUring(), seccompKill(), seccompDenied(),
	}
}

// Subject is what a rule judges: a step of a process in a container, which is not the
// container's runtime.
type Subject struct {
	*process.Step
	Workload *workload.Identity
	// Entered: the process's parent is not in its container, so that the runtime or
	// somebody on the host started it; a container's first process is one.
	Entered bool
	// First: it is the container's first process.
	First bool
	// Inside is the parent, if that is the same container's, and Outermost then the first
	// of the ancestors that is.
	Inside, Outermost *process.Process
	// Origin is where a program was started from inside the container: by its parent
	// or, if it was brought in, by what it was before. Nil if it came from the runtime.
	Origin *process.Process
	// Terminal is, of an Exec with a controlling terminal, where that is from.
	Terminal Terminal
	// Call is the name of the system call, of Privileged, or of the operation, of IOUring.
	Call string
	// Left, of Moved and Fork: a process of the container moved this one out of it, or
	// made it outside.
	Left bool
	// Remote is set by the Match of a rule that is about a connection.
	Remote netip.AddrPort
}

// Terminal is where a program's terminal is from.
type Terminal uint8

// Where terminals are from. Zero is none, that of the container itself (`tty: true`), or
// one of a shell before it.
const (
	// BroughtIn: the program, or that from which it descends, was started in the running
	// container from outside.
	BroughtIn Terminal = iota + 1
	// OpenedInside: something in the container opened it.
	OpenedInside
)

// Alert is what a rule found. It is immutable.
type Alert struct {
	Rule *Rule
	Step *process.Step
	// Workload is whose step it is.
	Workload *workload.Identity
	// Summary is the sentence that tells of it.
	Summary string
	// LookCloser is a command that shows more.
	LookCloser string
	// Exception would silence it: YAML for the agent's configuration.
	Exception string
	// Remote is the other end of a shell's socket, if that is what it is about.
	Remote netip.AddrPort
	// Repeated is how many of its rule and workload this one stands for beside itself:
	// they were found since the last alert of them, and have none of their own.
	Repeated uint64
}

// Exception silences alerts that match all of its fields that are not empty. All may
// have * at the end.
type Exception struct {
	// Rule by its name; empty for all.
	Rule string `yaml:"rule"`
	// Namespace of Kubernetes.
	Namespace string `yaml:"namespace"`
	// Workload is NAME or KIND/NAME.
	Workload string `yaml:"workload"`
	// Image is the container's: as it is named, or without its tag and digest.
	Image string `yaml:"image"`
	// Executable and Parent are paths, or the last part of one. Any ancestor will do as
	// Parent.
	Executable string `yaml:"executable"`
	Parent     string `yaml:"parent"`
}

// Record is an alert with what records of every kind have.
type Record struct {
	record.Header
	Alert *Alert
}

// RuleNames is the rule that found it.
func (r *Record) RuleNames() []string { return []string{r.Alert.Rule.Name} }

// CalledAs is the path that the process's execve was given.
func (r *Record) CalledAs() string { return r.Alert.Step.Process.Exe.Called }

// Of is the step that the alert is about.
func (r *Record) Of() *process.Step { return r.Alert.Step }
