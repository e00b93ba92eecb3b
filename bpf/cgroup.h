/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The cgroup of a socket or a task. */
#ifndef ORB8_CGROUP_H
#define ORB8_CGROUP_H

#include "core.h"

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

static __always_inline struct cgroup *task_cgroup(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp);
}

static __always_inline u64 task_cgroup_id(struct task_struct *task)
{
	return cgroup_id(task_cgroup(task));
}

/* The id of a cgroup's ancestor at a level, or its own. */
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

#endif
