// SPDX-License-Identifier: Apache-2.0

//go:build linux

package probe

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Explain turns an error of loading or attaching what into an *Unsupported that
// says what the kernel or the process lacks. It returns nil for nil.
func Explain(what string, err error) error {
	if err == nil {
		return nil
	}
	u := &Unsupported{Reason: what, Err: err}
	ve, rejected := errors.AsType[*ebpf.VerifierError](err)
	judged := rejected && verifierReason(ve) != ""
	if !judged && !mayLoad() && !errors.Is(err, fs.ErrPermission) {
		// A feature test that was not allowed takes that for an old kernel.
		u.Err, err = fs.ErrPermission, unix.EPERM
	}
	switch {
	case os.Geteuid() != 0 && !judged && errors.Is(err, fs.ErrPermission):
		u.Remedy = "run as root, or with the capabilities BPF, PERFMON, NET_ADMIN, SYS_PTRACE and DAC_READ_SEARCH"
	case errors.Is(err, unix.EPERM) && !judged:
		u.Remedy = "the process lacks a capability, or the kernel is locked down; `orb8 doctor` tells which"
	case missingBTF():
		u.Reason, u.Err = "the kernel has no BTF (/sys/kernel/btf/vmlinux)", nil
		u.Remedy = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y; the usual distributions have it since Linux 5.8"
	case rejected:
		u.Err = errors.New(cmp.Or(verifierReason(ve), ve.Error()))
		u.Remedy = "this kernel lacks what the program uses; a newer one helps, see docs/kernels.md"
	case errors.Is(err, ebpf.ErrNotSupported):
		u.Remedy = "a newer kernel helps, see docs/kernels.md"
	}
	return u
}

// mayLoad reports whether this process has the capability to load programs.
func mayLoad() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return true
	}
	has := func(c int) bool { return caps[c/32].Effective&(1<<(c%32)) != 0 }
	return has(unix.CAP_BPF) || has(unix.CAP_SYS_ADMIN)
}

func missingBTF() bool {
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	return errors.Is(err, fs.ErrNotExist)
}

// Lack says what is not told without an optional part of a probe: its effect, the hook
// and why the part is missing.
func Lack(effect, hook string, err error) string {
	return fmt.Sprintf("%s (%s: %s)", effect, hook, lackReason(err))
}

func lackReason(err error) string {
	ve, rejected := errors.AsType[*ebpf.VerifierError](err)
	if errors.Is(err, unix.EPERM) && (!rejected || verifierReason(ve) == "") && mayLoad() && !memoryIsLimited() {
		return "the kernel refuses it: " + unix.EPERM.Error()
	}
	if rejected {
		return cmp.Or(verifierReason(ve), ve.Error())
	}
	return err.Error()
}

// memoryIsLimited reports whether RLIMIT_MEMLOCK may be why a program does not load: the
// library lifts it where maps and programs count against it.
func memoryIsLimited() bool { return rlimit.RemoveMemlock() != nil }

// verifierReason picks the line of the verifier's log that says what it did not
// accept, empty if it has not looked at the program.
func verifierReason(ve *ebpf.VerifierError) string {
	for i := len(ve.Log) - 1; i >= 0; i-- {
		line := strings.TrimSpace(ve.Log[i])
		if line != "" && !strings.HasPrefix(line, "processed ") && !strings.HasPrefix(line, "verification time") &&
			!strings.HasPrefix(line, "stack depth") {
			return line
		}
	}
	return ""
}
