//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Tells of every new cgroup of the cgroup2 hierarchy, with its path: those of a
 * short-lived container are gone before its connections have been looked at. One below
 * a selected cgroup is selected too, before it can have a process.
 */
#include "cgroup.h"
#include "count.h"
#include "select.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PATH_BYTES 504

struct cgroup_made {
	u64 id;
	char path[PATH_BYTES]; /* ends with a NUL */
};

enum cgroup_stat {
	STAT_RING_FULL,
	STAT_PATH_TOO_LONG,
	STAT_SELECTION_FULL,
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

static __always_inline void inherit(struct cgroup *cg, u64 id)
{
	int level = cg->level;
	u64 who;

	if (level < 1)
		return;
	who = selected(ancestor_id(cg, level - 1));
	if (who && bpf_map_update_elem(&selected_cgroups, &id, &who, BPF_ANY))
		count(STAT_SELECTION_FULL);
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_mkdir, struct cgroup *cg, const char *path)
{
	struct cgroup_made *e;
	u64 id;
	long n;

	if (cg->root->hierarchy_id) /* one of cgroup v1 */
		return 0;
	id = cg->kn->id;
	inherit(cg, id);
	e = bpf_ringbuf_reserve(&cgroup_ring, sizeof(*e), 0);
	if (!e) {
		count(STAT_RING_FULL);
		return 0;
	}
	e->id = id;
	n = bpf_probe_read_kernel_str(e->path, sizeof(e->path), path);
	if (n <= 0 || n == sizeof(e->path)) {
		count(STAT_PATH_TOO_LONG);
		bpf_ringbuf_discard(e, 0);
		return 0;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Nothing runs in it any more. */
SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(cgroup_rmdir, struct cgroup *cg)
{
	u64 id;

	if (cg->root->hierarchy_id)
		return 0;
	id = cg->kn->id;
	bpf_map_delete_elem(&selected_cgroups, &id);
	return 0;
}
