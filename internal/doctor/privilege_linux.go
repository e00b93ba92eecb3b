// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// caps are the effective capabilities of this process.
type caps struct {
	known bool
	root  bool
	set   uint64
}

func (c caps) has(capability int) bool { return c.set&(1<<capability) != 0 }

// load reports whether BPF programs of all kinds may be loaded. SYS_ADMIN
// stands in for the three (kernel/bpf/syscall.c).
func (c caps) load() bool {
	return c.has(unix.CAP_SYS_ADMIN) || c.has(unix.CAP_BPF) && c.has(unix.CAP_PERFMON) && c.has(unix.CAP_NET_ADMIN)
}

// readCaps reads this process's user and capabilities from procfs.
func (h *host) readCaps() caps {
	text, err := os.ReadFile(filepath.Join(h.Proc, "self/status"))
	if err != nil {
		return caps{}
	}
	return parseCaps(string(text))
}

// parseCaps reads the text of /proc/<pid>/status, see proc(5).
func parseCaps(text string) caps {
	var c caps
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		switch fields := strings.Fields(value); {
		case key == "Uid" && len(fields) == 4:
			c.root = fields[1] == "0"
		case key == "CapEff" && len(fields) == 1:
			set, err := strconv.ParseUint(fields[0], 16, 64)
			if err != nil { // set is then the largest number
				return caps{}
			}
			c.known, c.set = true, set
		}
	}
	return c
}

// capability is one that orb8 uses.
type capability struct {
	number  int
	name    string
	without string // what is lost without it, empty if all is
}

func capabilities() []capability {
	return []capability{
		{unix.CAP_BPF, "BPF", ""},
		{unix.CAP_PERFMON, "PERFMON", ""},
		{unix.CAP_NET_ADMIN, "NET_ADMIN", ""},
		{unix.CAP_SYS_PTRACE, "SYS_PTRACE", "details of other users' processes are missing"},
		{unix.CAP_DAC_READ_SEARCH, "DAC_READ_SEARCH", "cgroups are found more slowly, short-lived ones perhaps not at all"},
	}
}

// privileges names what is missing and what for. A user without any is warned
// only: commands that ask an agent work.
func (h *host) privileges() Finding {
	if !h.caps.known {
		return info("not checked: "+filepath.Join(h.Proc, "self/status")+" has no capabilities", "")
	}
	missing, effects := h.missing()
	who := "not root, "
	if h.caps.root {
		who = "root, "
	}
	switch {
	case h.caps.set == 0 && !h.caps.root:
		return warn("not root: this user can ask an agent but not load probes", "Run orb8 as root, with sudo.")
	case !h.caps.load():
		return fail(who+"but without "+strings.Join(missing, ", ")+": no probe can be loaded", grant(missing))
	case len(missing) > 0:
		return warn(who+"but without "+strings.Join(missing, ", ")+": "+strings.Join(effects, "; "), grant(missing))
	}
	return ok(who + "all capabilities that orb8 uses")
}

// missing lists the capabilities that are not there, with what is lost.
func (h *host) missing() (names, effects []string) {
	for _, c := range capabilities() {
		if h.caps.has(c.number) || c.without == "" && h.caps.has(unix.CAP_SYS_ADMIN) {
			continue
		}
		names = append(names, c.name)
		if c.without != "" {
			effects = append(effects, c.without)
		}
	}
	return names, effects
}

func grant(names []string) string {
	return "Grant " + strings.Join(names, ", ") + ": in Kubernetes by securityContext.capabilities.add, " +
		"in Docker by --cap-add, in a systemd unit by AmbientCapabilities."
}

// userNamespace checks that root here is root for the kernel.
func (h *host) userNamespace() Finding {
	text, err := readText(filepath.Join(h.Proc, "self/uid_map"))
	if err != nil {
		return unreadable(err, ok("the kernel has no user namespaces"))
	}
	if strings.Join(strings.Fields(text), " ") == "0 0 4294967295" {
		return ok("the host's")
	}
	return fail("a private one: capabilities do not count for BPF here",
		"Run orb8 outside of rootless containers and of user namespaces (in Kubernetes without hostUsers: false).")
}

// pidNamespace checks that the pids the kernel reports can be looked up.
func (h *host) pidNamespace() Finding {
	// PROC_PID_INIT_INO, include/linux/proc_ns.h
	return h.namespace("pid", 4026531836, warn(
		"a private one: processes of the host cannot be looked up",
		"Share the host's: hostPID: true in Kubernetes, --pid=host in Docker."))
}

// namespace compares a namespace of this process with the initial one, whose
// number is part of the kernel's interface.
func (h *host) namespace(kind string, initial uint64, private Finding) Finding {
	link, err := os.Readlink(filepath.Join(h.Proc, "self/ns", kind))
	if err != nil {
		return unreadable(err, info("not checked: the kernel does not show it", ""))
	}
	if link == fmt.Sprintf("%s:[%d]", kind, initial) {
		return ok("the host's")
	}
	return private
}

// wantMemory is what the maps of all probes may take together at their default
// sizes.
const wantMemory = 128 << 20

// memoryLimit checks RLIMIT_MEMLOCK on kernels that charge BPF maps to it, those
// before 5.11.
func (h *host) memoryLimit() Finding {
	if !h.mayLoad() {
		return h.notAllowed()
	}
	limit, err := h.memlock()
	switch {
	case err != nil:
		return info("not checked: "+err.Error(), "")
	case limit == math.MaxUint64:
		return ok("no limit on memory for BPF maps")
	case limit < wantMemory:
		return fail(fmt.Sprintf("BPF maps may take %d KiB (RLIMIT_MEMLOCK), which is too little for the probes", limit>>10),
			"Raise the limit: ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit, or grant SYS_RESOURCE.")
	}
	return ok(fmt.Sprintf("BPF maps may take %d MiB (RLIMIT_MEMLOCK)", limit>>20))
}

func memlock() (uint64, error) {
	// The library tries whether maps count against the limit at all.
	if rlimit.RemoveMemlock() == nil {
		return math.MaxUint64, nil
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return 0, fmt.Errorf("read RLIMIT_MEMLOCK: %w", err)
	}
	return limit.Cur, nil
}

// mayLoad reports whether this process may load probes.
func (h *host) mayLoad() bool { return h.caps.load() && h.userNamespace().Status == OK }

// notAllowed is the finding where the check itself needs privileges.
func (h *host) notAllowed() Finding {
	remedy := sudo
	if h.caps.root {
		remedy = "First see to privileges and user-namespace above."
	}
	return info("not checked: needs the privileges to load probes", remedy)
}
