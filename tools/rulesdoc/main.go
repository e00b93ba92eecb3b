// SPDX-License-Identifier: Apache-2.0

// Command rulesdoc prints docs/rules.md from the rules in the code:
//
//	go run ./tools/rulesdoc > docs/rules.md
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/Ignoramuss/orb8/internal/anomaly"
)

const intro = `<!-- Made by "go run ./tools/rulesdoc > docs/rules.md"; edit the rules in internal/anomaly. -->
# Rules

What containers do is judged by these rules, from what the kernel tells without a cost on ordinary system calls. What a rule finds is an alert: ` + "`orb8 alerts`" + ` lists them, ` + "`orb8_syscall_alerts_total`" + ` counts them, and ` + "`orb8 rules`" + ` says which are on and how often each has found something.

%s
What it takes for a rule is in the column "needs"; [kernels.md](kernels.md) has which kernel tells it. Where the kernel refused what was tried, the alert says so.

## What seccomp refuses

"Also if it is refused" is about the kernel's check of rights: a process that lacks the capability is told of. What a container's seccomp profile refuses never gets as far as that check, and raises no alert. Under the runtime's default profile (` + "`seccompProfile: {type: RuntimeDefault}`" + `, or a kubelet with ` + "`seccompDefault`" + `; without either Kubernetes uses none) that is most of what namespace_change, mount, pivot_root, open_by_handle, kernel_module, bpf, perf_event_open, raw_io, kernel_log, reboot and clock_change are about, as long as the container does not have the capability, and newer runtimes' profiles also refuse io_uring.

## What is not judged

Nothing outside of containers, and nothing that a container's runtime does while it sets the container up. The runtime is known by a parent outside of the container and by an executable (runc, crun, youki and their like) that was not started in the container's mount namespace; a process that is started in the container under such a name is judged like any other. A runtime of another name, or one that takes longer than a minute, raises alerts when its containers start: name it in an exception.

Of gVisor and Kata Containers the host's kernel sees the sandbox, not what the pod's programs do on the sandbox's own kernel, so most rules find nothing there. The sandbox itself is judged: ` + "`runsc`" + ` and what starts a virtual machine are expected to raise alerts when they set themselves up, and to need an exception such as ` + "`{executable: runsc}`" + `. Neither has been tested.

## How often

Of the same rule, workload, executable and system call (or io_uring operation) up to three different alerts are told in a minute, each once, and of the same rule and workload 20 in all. The others are counted in ` + "`orb8_lost_events_total{stage=\"alerts_limited\"}`" + `: within a minute or so the last of them is told of, with how many there were, or the next one that is told of says so.

## Ordinary workloads

Run for five minutes each in pods of the test cluster, beside each other, on Linux 6.18 with containerd 1.6 and runc (2026-12-01): redis-server with snapshots, a log of changes and redis-benchmark; nginx with requests; Python with processes, threads, subprocesses and sockets; a JVM with threads, garbage collections and a child program; a shell as entrypoint with cron, find, tar and gzip; and a pod that installs and removes Debian packages with apt-get and dpkg. The first five raised no alert. The sixth raised drifted_executable for ` + "`hello`, `less` and `ssh`" + `, which it had installed and then started, 35 times each, told three times each in a minute at most: that is what the rule is about, and where it is wanted an exception for the workload silences it. Installing by itself raised none. ` + "`test/cluster/run.sh -run TestOrdinaryWorkloads`" + ` runs them again (see there).

## Events of Kubernetes

With ` + "`alert_events: critical`" + ` (or warning, notice) in the agent's configuration alerts at least that severe are also written as Events of their pods, for ` + "`kubectl describe pod`" + ` and what else watches Events: reason ` + "`ReverseShell`" + ` for reverse_shell and so on. With the chart's ` + "`config.alert_events`" + ` the agent gets the right to create them; whoever may read Events in the pod's namespace sees them. At most five a second are written, 64 may wait; others are counted in ` + "`orb8_lost_events_total{stage=\"alert_events_untold\"}`" + `.

## Exceptions

Each alert shows the exception that would silence it, to be put into the agent's configuration file:

` + "```yaml" + `
exceptions:
- {rule: mount, namespace: storage, workload: DaemonSet/csi-node, executable: /usr/bin/mount}
- {rule: terminal_shell, namespace: dev-*}
- {workload: tools, parent: sshd}
rules_off: [io_uring, chroot]
` + "```" + `

An exception silences what matches all of its keys; ` + "`*`" + ` may stand at the end of a value. ` + "`rules_off`" + ` switches rules off altogether. Both are read again when the agent reloads its configuration.

| key | meaning |
|---|---|
| ` + "`rule`" + ` | name of the rule |
| ` + "`namespace`" + ` | Kubernetes namespace |
| ` + "`workload`" + ` | NAME or KIND/NAME of the pod's owner; outside Kubernetes the container, as Container/ with the first 12 digits of its id |
| ` + "`image`" + ` | of the container, as its pod's status names it (` + "`registry.example/team/app:1.2`" + `, or with its digest), or without tag and digest (` + "`registry.example/team/app`" + `); Kubernetes only. In a container's first second, before the kubelet has reported it, all images of the pod have to match |
| ` + "`executable`" + ` | path of the program, or the last part of it; of a script its own path will do as well as its interpreter's |
| ` + "`parent`" + ` | the same of the parent, its parent, or any before |
`

// techniques are names of MITRE ATT&CK, by number.
var techniques = map[string]string{
	"T1014":     "Rootkit",
	"T1040":     "Network Sniffing",
	"T1055.008": "Process Injection: Ptrace System Calls",
	"T1059.004": "Command and Scripting Interpreter: Unix Shell",
	"T1068":     "Exploitation for Privilege Escalation",
	"T1070.004": "Indicator Removal: File Deletion",
	"T1082":     "System Information Discovery",
	"T1105":     "Ingress Tool Transfer",
	"T1106":     "Native API",
	"T1218":     "System Binary Proxy Execution",
	"T1529":     "System Shutdown/Reboot",
	"T1547.006": "Boot or Logon Autostart Execution: Kernel Modules and Extensions",
	"T1548.001": "Abuse Elevation Control Mechanism: Setuid and Setgid",
	"T1562":     "Impair Defenses",
	"T1609":     "Container Administration Command",
	"T1611":     "Escape to Host",
	"T1620":     "Reflective Code Loading",
}

func main() {
	if _, err := os.Stdout.WriteString(page()); err != nil {
		fmt.Fprintln(os.Stderr, "rulesdoc:", err)
		os.Exit(1)
	}
}

// page is docs/rules.md.
func page() string {
	w := new(strings.Builder)
	fmt.Fprintf(w, intro, table(anomaly.Rules()))
	for _, r := range anomaly.Rules() {
		section(w, r)
	}
	return w.String()
}

func table(rules []*anomaly.Rule) string {
	w := new(strings.Builder)
	w.WriteString("| rule | severity | what it finds | technique | needs |\n|---|---|---|---|---|\n")
	for _, r := range rules {
		fmt.Fprintf(w, "| [%s](#%s) | %s | %s | %s | %s |\n", r.Name, r.Name, r.Severity, r.Title, link(r.Technique, r.Technique), strings.Join(r.Needs, ", "))
	}
	return w.String()
}

func section(w *strings.Builder, r *anomaly.Rule) {
	fmt.Fprintf(w, "\n## %s\n\n%s. %s\n\n", r.Name, r.Title, r.Reason)
	fmt.Fprintf(w, "Severity: %s. Technique: %s (%s). Needs: %s.\n", r.Severity,
		link(r.Technique, r.Technique+" "+techniques[r.Technique]), r.Tactic, strings.Join(r.Needs, ", "))
	if slices.Contains(r.Needs, anomaly.NeedsCapable) {
		w.WriteString("A system call that the container's seccomp profile refuses raises no alert ([why](#what-seccomp-refuses)).\n")
	}
	list(w, "What triggers it", r.Triggers)
	list(w, "What does not", r.Silent)
	fmt.Fprintf(w, "\nSilence it: `- {rule: %s, namespace: NAMESPACE, workload: KIND/NAME, executable: PATH}` below `exceptions`, as its alert shows it.\n", r.Name)
}

func list(w *strings.Builder, title string, items []string) {
	fmt.Fprintf(w, "\n%s:\n\n", title)
	for _, item := range items {
		fmt.Fprintf(w, "- %s\n", item)
	}
}

// link is a technique's page.
func link(technique, text string) string {
	return "[" + text + "](https://attack.mitre.org/techniques/" + strings.ReplaceAll(technique, ".", "/") + "/)"
}
