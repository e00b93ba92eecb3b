/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who a task is, and the system call that it is in.
 */
#ifndef ORB8_TASK_H
#define ORB8_TASK_H

#include "cgroup.h"
#include "regs.h"

#define PF_IO_WORKER 0x00000010
#define PF_USER_WORKER 0x00004000 /* since 6.4 */

typedef struct {
	unsigned int val;
} __core kuid_t;

struct user_namespace {
	int level; /* 0: the host's */
	struct ns_common ns;
} __core;

typedef struct {
	u64 val; /* two words of 32 bits before 6.3, the lower one first */
} __core kernel_cap_t;

struct cred {
	kuid_t uid;
	kuid_t euid;
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
} __core;

struct mnt_namespace {
	struct ns_common ns;
} __core;

struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct net *net_ns;
} __core;

struct pid_namespace {
	struct task_struct *child_reaper; /* its pid 1 */
	struct ns_common ns;
} __core;

struct upid {
	int nr;
	struct pid_namespace *ns;
} __core;

struct pid {
	unsigned int level;
	struct upid numbers[]; /* one per level, its own namespace's as the last */
} __core;

struct tty_struct;

typedef struct {
	int counter;
} __core atomic_t;

struct signal_struct {
	atomic_t live; /* threads that have not ended */
	int group_exit_code;
	unsigned int flags;
	struct tty_struct *tty;
} __core;

struct pt_regs {
	char any;
};

/* What is said of the task in every event. */
struct task_info {
	u64 start_ns; /* boot time, as are all */
	u64 parent_start_ns;
	u64 cgroup_id;
	u64 cap_effective;
	u32 pid, parent_pid;
	u32 uid, euid;
	u32 user_ns, mnt_ns, pid_ns, net_ns; /* inodes */
	u8 comm[16];
};

/* The kernel's stack of a task, for kernels without bpf_task_pt_regs: THREAD_SIZE. */
volatile const u64 thread_size = 16384;

/* A pid of the task's, in its own pid namespace if level is the pid's own. */
static __always_inline u32 pid_number(struct pid *pid, u32 level)
{
	int nr = 0;

	bpf_core_read(&nr, sizeof(nr), &pid->numbers[level].nr);
	return nr;
}

static __always_inline struct pid_namespace *pid_namespace(struct pid *pid, u32 level)
{
	struct pid_namespace *ns = 0;

	bpf_core_read(&ns, sizeof(ns), &pid->numbers[level].ns);
	return ns;
}

/* The pid namespace that the task is in, which is not always its nsproxy's. */
static __always_inline struct pid_namespace *task_pid_namespace(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);

	return pid_namespace(pid, BPF_CORE_READ(pid, level));
}

static __always_inline void set_creds(struct task_info *t, struct task_struct *task)
{
	const struct cred *cred = BPF_CORE_READ(task, real_cred);

	t->uid = BPF_CORE_READ(cred, uid.val);
	t->euid = BPF_CORE_READ(cred, euid.val);
	bpf_probe_read_kernel(&t->cap_effective, sizeof(t->cap_effective),
			      (void *)cred + bpf_core_field_offset(struct cred, cap_effective));
	t->user_ns = BPF_CORE_READ(cred, user_ns, ns.inum);
}

static __always_inline void set_parent(struct task_info *t, struct task_struct *leader)
{
	t->parent_start_ns = BPF_CORE_READ(leader, start_boottime);
	t->parent_pid = BPF_CORE_READ(leader, tgid);
}

/* Fills t from a task, any thread of the process. */
static __always_inline void set_task(struct task_info *t, struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct nsproxy *ns = BPF_CORE_READ(task, nsproxy);

	t->start_ns = BPF_CORE_READ(leader, start_boottime);
	t->pid = BPF_CORE_READ(task, tgid);
	set_parent(t, BPF_CORE_READ(leader, real_parent, group_leader));
	t->cgroup_id = task_cgroup_id(task);
	set_creds(t, task);
	t->mnt_ns = BPF_CORE_READ(ns, mnt_ns, ns.inum);
	t->net_ns = BPF_CORE_READ(ns, net_ns, ns.inum);
	t->pid_ns = BPF_CORE_READ(task_pid_namespace(task), ns.inum);
	bpf_probe_read_kernel(t->comm, sizeof(t->comm), (void *)leader + bpf_core_field_offset(struct task_struct, comm));
}

/* The registers with which the current task has entered the kernel. */
static __always_inline void *current_regs(void)
{
	struct task_struct *task;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, stack) + thread_size - bpf_core_type_size(struct pt_regs);
}

#endif
