// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"os"
	"strings"
)

// cgroup checks where the cgroup2 hierarchy is and how much of it can be seen:
// programs attached at the top of a part see the traffic of that part only.
func (h *host) cgroup() Finding {
	m, err := h.findMount(h.Proc, h.CgroupRoot)
	if errors.Is(err, os.ErrNotExist) {
		return fail("no cgroup2 hierarchy is mounted: only TCP can be seen, and workloads only by their commands",
			"Mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified, "+
				"or boot with systemd.unified_cgroup_hierarchy=1.")
	}
	if err != nil {
		return unreadable(err, info("not checked: "+err.Error(), ""))
	}
	kind := "unified"
	if m.Hybrid {
		kind = "hybrid, with cgroup v1 beside it"
	}
	detail := m.Path + " (" + kind + ")"
	ino, err := h.inode(m.Path)
	if err != nil {
		return unreadable(err, info("not checked: "+err.Error(), ""))
	}
	// kernfs gives the number 1 to the root of each hierarchy.
	if ino != 1 {
		return warn(detail+" shows only a part of the hierarchy: other workloads' UDP and ICMP cannot be seen"+h.why(m.Root),
			"Show orb8 the host's hierarchy: mount the host's /sys/fs/cgroup into the container (hostPath, -v), "+
				"or share its namespace (--cgroupns=host), and name it with --cgroup-root.")
	}
	if why := h.why(m.Root); why != "" {
		return ok(detail + ", the whole of it although" + why[1:])
	}
	return ok(detail)
}

// why says that this process has a cgroup namespace of its own, if it has.
func (h *host) why(root string) string {
	// PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
	f := h.namespace("cgroup", 4026531835, warn("private", ""))
	if f.Status == Warn || strings.HasPrefix(root, "/..") {
		return ", this process is in a private cgroup namespace"
	}
	return ""
}
