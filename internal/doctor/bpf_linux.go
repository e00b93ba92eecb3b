// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// need is one thing that probes need of the kernel.
type need struct {
	name string
	has  string // the detail if the kernel has it
	// try returns nil if the kernel has it, and an error that wraps
	// ebpf.ErrNotSupported if it has not.
	try func() error
	// without is how much is lost, in which words.
	severity Status
	without  string
	remedy   string
}

// needs lists what the probes need, what all need first.
func needs() []need {
	const newer = "Use a later kernel: 5.11 and later have it unless it was left out when they were built."
	return []need{
		{
			"bpf", "the kernel takes BPF maps and programs", func() error { return features.HaveMapType(ebpf.Array) },
			Fail, "the kernel has no BPF", "Use a kernel built with CONFIG_BPF_SYSCALL=y.",
		},
		{
			"ring-buffer", "for events", func() error { return features.HaveMapType(ebpf.RingBuf) },
			Warn, "probe tcp is off, packet counts TCP too", newer,
		},
		{
			"tracepoints", "tp_btf programs load", tryTracepoints,
			Warn, "probe tcp is off or lacks resets and retransmits, packet counts TCP too", newer,
		},
		{
			"socket-storage", "usable in tp_btf programs", trySocketStorage,
			Warn, "probe tcp is off, packet counts TCP too, without RTT, retransmits and the reason of failures", newer,
		},
		{
			"iterators", "iter/task_file loads", func() error { return tryIterator("task_file") },
			Warn, "probe tcp does not see connections that were open before it", newer,
		},
		{
			"socket-iterator", "iter/bpf_sk_storage_map loads", func() error { return tryIterator("bpf_sk_storage_map") },
			Warn, "probe tcp finds sockets by way of all open files, which costs more and misses some until they close", newer,
		},
		{
			"older-sockets", "sockets older than the agent can be found", tryOlderSockets,
			Warn, "TCP connections that were open before the agent are not seen", newer,
		},
		{
			"cgroup-skb", "programs at cgroups load", tryCgroupSkb,
			Fail, "probe packet is off: UDP, ICMP and the rest are not seen", "Use a kernel built with CONFIG_CGROUP_BPF=y.",
		},
	}
}

// feature tries one need.
func (h *host) feature(n need) Finding {
	if !h.mayLoad() {
		return h.notAllowed()
	}
	err := n.try()
	switch {
	case err == nil:
		return ok(n.has)
	case errors.Is(err, ebpf.ErrNotSupported):
		return Finding{Status: n.severity, Detail: n.without + " (" + err.Error() + ")", Remedy: n.remedy}
	case errors.Is(err, fs.ErrPermission): // EPERM and EACCES
		return Finding{
			Status: n.severity, Detail: "the kernel refuses: " + err.Error() + ": " + n.without,
			Remedy: "See what refuses: a seccomp profile, SELinux, AppArmor or kernel lockdown; " +
				"where only some capabilities were granted, grant SYS_ADMIN too.",
		}
	}
	return warn("cannot be told: "+err.Error(), "Run orb8 trace network, which says whether its probes load.")
}

func tryTracepoints() error {
	for _, name := range []string{"inet_sock_set_state", "tcp_retransmit_skb", "tcp_send_reset", "tcp_receive_reset"} {
		if err := tryTracing(ebpf.AttachTraceRawTp, name, nil); err != nil {
			return fmt.Errorf("load tp_btf/%s: %w", name, err)
		}
	}
	return nil
}

func tryIterator(name string) error {
	if err := tryTracing(ebpf.AttachTraceIter, name, nil); err != nil {
		return fmt.Errorf("load iter/%s: %w", name, err)
	}
	return nil
}

func trySocketStorage() error {
	if err := features.HaveMapType(ebpf.SkStorage); err != nil {
		return fmt.Errorf("make socket storage: %w", err)
	}
	for _, helper := range []asm.BuiltinFunc{asm.FnSkStorageGet, asm.FnSkcToTcpSock} {
		if err := tryHelper(ebpf.AttachTraceRawTp, "inet_sock_set_state", helper); err != nil {
			return err
		}
	}
	return nil
}

func tryOlderSockets() error {
	return tryHelper(ebpf.AttachTraceIter, "task_file", asm.FnSockFromFile)
}

func tryCgroupSkb() error {
	if err := features.HaveProgramType(ebpf.CGroupSKB); err != nil {
		return fmt.Errorf("load cgroup_skb program: %w", err)
	}
	for _, helper := range []asm.BuiltinFunc{asm.FnSkbCgroupId, asm.FnSkFullsock, asm.FnKtimeGetBootNs} {
		if err := features.HaveProgramHelper(ebpf.CGroupSKB, helper); err != nil {
			return fmt.Errorf("call %s in a cgroup_skb program: %w", helperName(helper), err)
		}
	}
	return nil
}

// tryHelper tries whether programs of type tracing may call a helper, which
// features.HaveProgramHelper cannot. The call has no arguments, so the verifier
// refuses the program in any case; how it does so tells.
func tryHelper(attach ebpf.AttachType, to string, helper asm.BuiltinFunc) error {
	err := tryTracing(attach, to, asm.Instructions{helper.Call()})
	if unsupportedHelper(err) {
		err = ebpf.ErrNotSupported
	} else if errors.Is(err, unix.EACCES) { // the missing argument
		err = nil
	}
	if err != nil {
		return fmt.Errorf("call %s in a tracing program: %w", helperName(helper), err)
	}
	return nil
}

// helperName turns the library's FnSkStorageGet into the kernel's
// bpf_sk_storage_get.
func helperName(helper asm.BuiltinFunc) string {
	var b strings.Builder
	b.WriteString("bpf")
	for _, r := range strings.TrimPrefix(helper.String(), "Fn") {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// unsupportedHelper reports whether the verifier does not know a helper, or not
// for this program (check_helper_call in kernel/bpf/verifier.c).
func unsupportedHelper(err error) bool {
	verr, ok := errors.AsType[*ebpf.VerifierError](err)
	if !ok || !errors.Is(err, unix.EINVAL) {
		return false
	}
	log := strings.Join(verr.Log, "\n")
	for _, refusal := range []string{"invalid func", "unknown func", "cannot use helper", "is not allowed in probe"} {
		if strings.Contains(log, refusal) {
			return true
		}
	}
	return false
}

// tryTracing loads, and drops, a tracing program that begins with insns and
// returns 0.
func tryTracing(attach ebpf.AttachType, to string, insns asm.Instructions) error {
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Type:         ebpf.Tracing,
		AttachType:   attach,
		AttachTo:     to,
		License:      "Dual BSD/GPL",
		Instructions: append(insns, asm.Mov.Imm(asm.R0, 0), asm.Return()),
	}, ebpf.ProgramOptions{LogLevel: ebpf.LogLevelBranch})
	if err == nil {
		return prog.Close()
	}
	if errors.Is(err, btf.ErrNotFound) {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return err
}
