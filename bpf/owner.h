/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who makes or uses a socket. */
#ifndef ORB8_OWNER_H
#define ORB8_OWNER_H

#include "cgroup.h"

/* A process, not a thread, which may have a name of its own. */
struct owner {
	u64 cgroup_id;
	u32 pid;
	u8 comm[16];
};

/* The current task's process, in programs of any type. False for a kernel thread:
 * what those do is somebody else's. */
static __always_inline bool owner_current(struct owner *o)
{
	struct task_struct *task = (void *)bpf_get_current_task(), *leader;

	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return false;
	leader = BPF_CORE_READ(task, group_leader);
	o->cgroup_id = task_cgroup_id(task);
	o->pid = BPF_CORE_READ(task, tgid);
	bpf_probe_read_kernel(o->comm, sizeof(o->comm), &leader->comm);
	return true;
}

/* The socket that a file is, if it is one. */
static __always_inline struct sock *sock_of_file(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *socket;

	if (!file)
		return 0;
	socket = bpf_sock_from_file(file);
	return socket ? socket->sk : 0;
}

#endif
