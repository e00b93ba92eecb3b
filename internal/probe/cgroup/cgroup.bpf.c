//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Tells of every new cgroup of the cgroup2 hierarchy, with its path: those of a
 * short-lived container are gone before its connections have been looked at.
 */
#include "count.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PATH_BYTES 504

struct cgroup_made {
	u64 id;
	char path[PATH_BYTES]; /* ends with a NUL */
};

enum cgroup_stat {
	STAT_RING_FULL,
	STAT_PATH_TOO_LONG,
	STAT_MAX,
};

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct cgroup_made made;
	enum cgroup_stat stat;
};
const struct mirrored *const volatile mirrored = 0;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 10);
} cgroup_ring SEC(".maps");

DEFINE_STATS(cgroup_stats)

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_mkdir, struct cgroup *cg, const char *path)
{
	struct cgroup_made *e;
	long n;

	if (cg->root->hierarchy_id) /* one of cgroup v1 */
		return 0;
	e = bpf_ringbuf_reserve(&cgroup_ring, sizeof(*e), 0);
	if (!e) {
		count(STAT_RING_FULL);
		return 0;
	}
	e->id = cg->kn->id;
	n = bpf_probe_read_kernel_str(e->path, sizeof(e->path), path);
	if (n <= 0 || n == sizeof(e->path)) {
		count(STAT_PATH_TOO_LONG);
		bpf_ringbuf_discard(e, 0);
		return 0;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}
