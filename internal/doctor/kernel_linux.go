// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kernel reports release and machine. What a release can do is found by trying,
// so an old one is no more than a hint.
func (h *host) kernel() Finding {
	release, machine, err := h.uname()
	if err != nil {
		return info("not checked: "+err.Error(), "")
	}
	detail := release + " on " + machine
	if machine != "x86_64" && machine != "aarch64" {
		return fail(detail+": orb8's kernel programs are built for x86_64 and aarch64", "Use a machine of one of these kinds.")
	}
	if strings.Contains(strings.ToLower(release), "microsoft") {
		detail += " (Windows Subsystem for Linux)"
	}
	if olderThan(release, 5, 8) {
		return warn(detail+": older than 5.8, the oldest that orb8 is made for",
			"Use a kernel from 5.8 on that has BTF; until then probes that this one cannot run stay off.")
	}
	return ok(detail)
}

// olderThan compares the first two numbers of a kernel release. A release
// without two numbers is not older.
func olderThan(release string, major, minor int) bool {
	var a, b int
	if n, err := fmt.Sscanf(release, "%d.%d", &a, &b); n < 2 || err != nil {
		return false
	}
	return a < major || a == major && b < minor
}

func (h *host) btf() Finding {
	const remedy = "Use a distribution's current kernel, or one built with CONFIG_DEBUG_INFO_BTF=y; " +
		"in a container, mount the host's /sys."
	path := filepath.Join(h.Sys, "kernel/btf/vmlinux")
	f, err := os.Open(path)
	if err != nil {
		return unreadable(err, fail(path+" is missing: no probe can be loaded", remedy))
	}
	defer func() { _ = f.Close() }() // read only: nothing can be lost
	var magic [2]byte
	_, err = io.ReadFull(f, magic[:])
	// 0xeB9F in the machine's byte order (include/uapi/linux/btf.h).
	if err != nil || magic != [2]byte{0x9f, 0xeb} && magic != [2]byte{0xeb, 0x9f} {
		return fail(path+" is not BTF: no probe can be loaded", remedy)
	}
	return ok(path)
}

// lockdown reads the mode in brackets, as in "none [integrity] confidentiality".
func (h *host) lockdown() Finding {
	path := filepath.Join(h.Sys, "kernel/security/lockdown")
	text, err := readText(path)
	if err != nil {
		return unreadable(err, ok("no sign of it: "+path+" does not exist"))
	}
	_, rest, _ := strings.Cut(text, "[")
	mode, _, found := strings.Cut(rest, "]")
	switch {
	case !found:
		return info("cannot be told from "+path+": "+text, "")
	case mode == "confidentiality":
		return warn("confidentiality: the kernel refuses BPF programs that read its memory",
			"Boot with lockdown=integrity, or without lockdown.")
	}
	return ok(mode)
}

func (h *host) jit() Finding {
	path := filepath.Join(h.Proc, "sys/net/core/bpf_jit_enable")
	text, err := readText(path)
	if err != nil {
		return unreadable(err, info("not checked: "+path+" does not exist", ""))
	}
	switch text {
	case "0":
		return warn("BPF programs are interpreted: several times the cost per event",
			"Turn the compiler on: sysctl -w net.core.bpf_jit_enable=1.")
	case "2":
		return warn("BPF programs are compiled, and their code is written to the kernel's log",
			"Turn the log off: sysctl -w net.core.bpf_jit_enable=1.")
	}
	return ok("BPF programs are compiled")
}

// leastOptionMemory is a small multiple of what BPF programs keep beside a socket, in
// bytes; the kernel's default is more.
const leastOptionMemory = 4096

// optionMemory looks at the bound on what may be kept beside a socket. Where a listener's
// record does not fit a second time, the kernel does not accept the connection.
func (h *host) optionMemory() Finding {
	path := filepath.Join(h.Proc, "sys/net/core/optmem_max")
	text, err := readText(path)
	if err != nil {
		return unreadable(err, info("not checked: "+path+" does not exist", ""))
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return info(fmt.Sprintf("cannot be told: %s says %q", path, text), "")
	}
	if n < leastOptionMemory {
		return warn(fmt.Sprintf("%d bytes may be kept beside a socket: with orb8's record beside a listener, connections to it may not be accepted", n),
			"Raise the bound: sysctl -w net.core.optmem_max=20480.")
	}
	return ok(fmt.Sprintf("%d bytes may be kept beside a socket", n))
}

func (h *host) statistics() Finding {
	path := filepath.Join(h.Proc, "sys/kernel/bpf_stats_enabled")
	text, err := readText(path)
	if err != nil {
		return unreadable(err, info("not checked: "+path+" does not exist", ""))
	}
	if text != "0" {
		return warn("the kernel times every run of every BPF program, which makes each dearer",
			"Turn it off unless you measure: sysctl -w kernel.bpf_stats_enabled=0.")
	}
	return ok("off")
}
