/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The cgroup of a socket or a task, and whether that is one of this node's.
 */
#ifndef ORB8_CGROUP_H
#define ORB8_CGROUP_H

#include "core.h"

/* The root of this node's part of the cgroups, where it has not all of them. */
volatile const u64 part_root = 0;
#define MAX_LEVELS 16

/* NULL where the socket is of none. sk need not be a pointer that the verifier
 * knows, but a full socket. */
static __always_inline struct cgroup *sk_cgroup(struct sock *sk)
{
	/* Bit 0 says that the word holds net_cls data instead of a pointer. */
	struct sock_cgroup_data___v5_14 *data = (void *)&sk->sk_cgrp_data;
	u64 val;

	if (bpf_core_field_exists(struct sock_cgroup_data, cgroup))
		return BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	val = BPF_CORE_READ(data, val);
	return val & 1 ? 0 : (struct cgroup *)val;
}

static __always_inline u64 cgroup_id(struct cgroup *cg)
{
	return cg ? BPF_CORE_READ(cg, kn, id) : 0;
}

static __always_inline u64 ancestor_id(struct cgroup *cg, int level)
{
	struct cgroup___v6_0 *old = (void *)cg;
	struct cgroup *up = 0;
	u64 id = 0;

	if (bpf_core_field_exists(struct cgroup, ancestors)) {
		bpf_core_read(&up, sizeof(up), &cg->ancestors[level]);
		return BPF_CORE_READ(up, kn, id);
	}
	bpf_core_read(&id, sizeof(id), &old->ancestor_ids[level]);
	return id;
}

/* Whether a cgroup is in this node's part. */
static __always_inline bool in_part(struct cgroup *cg)
{
	int level;

	if (!part_root)
		return true;
	if (!cg)
		return false;
	level = BPF_CORE_READ(cg, level);
	for (int i = 0; i < MAX_LEVELS; i++) {
		if (i > level)
			break;
		if (ancestor_id(cg, i) == part_root)
			return true;
	}
	return false;
}

#endif
