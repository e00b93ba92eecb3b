//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The life of processes. No program here runs on an ordinary system call: the kernel
 * calls them when a process is made, starts an executable, ends, or moves to another
 * cgroup.
 */
#include "count.h"
#include "path.h"
#include "ring.h"
#include "task.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define S_IFMT 00170000
#define S_IFSOCK 0140000

#define CLONE_THREAD 0x00010000
#define SIGNAL_GROUP_EXIT 4

#define EEXIST 17

#define PID_NS_INIT_INO 0xeffffffcU /* the first pid namespace */

#define STD_FILES 3
#define CALLED_BYTES 4096
#define ARGS_BYTES 4096 /* at most, see arg_bytes */
#define TAIL_BYTES (PATH_BYTES + CALLED_BYTES + ARGS_BYTES)

/* As in package process. */
enum what {
	WHAT_SEEN,
	WHAT_FORK,
	WHAT_EXEC,
	WHAT_EXIT,
	WHAT_MOVED,
};

enum start_flag {
	START_PATH_TRUNCATED = 1,
	START_ARGS_TRUNCATED = 2,
	START_MEMFD = 4,
	START_DELETED = 8,
	START_OVERLAY = 16,
	START_UPPER = 32,
	START_TTY = 64,
	START_HOST_MOUNT = 128,
	START_HOST_PID = 256,
};

enum exec_stat {
	STAT_RING_FULL,
	STAT_MAX,
};

/* What all records begin with. */
struct exec_head {
	u64 now_ns;
	u32 what;
	u32 pad;
	struct task_info task;
};

/* A standard file that is a socket. */
struct exec_socket {
	union addr local, remote;
	u16 local_port, remote_port; /* host order */
	u8 protocol; /* 0: it is none */
	u8 pad[3];
};

/* Of SEEN and EXEC. Behind it come the path, what was called, and the arguments,
 * each with a zero byte at its end. */
struct exec_start {
	struct exec_head head;
	u64 changed_ns; /* Unix time */
	u32 ns_pid; /* in its own pid namespace */
	u32 flags;
	u32 path_len, called_len, args_len;
	u32 pad;
	struct exec_socket std[STD_FILES];
};

struct exec_exit {
	struct exec_head head;
	u32 status; /* as wait() gives it */
	u32 pad;
};

struct exec_moved {
	struct exec_head head;
	u64 by_start_ns;
	u32 by_pid;
	u32 pad;
};

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct exec_head head;
	struct exec_start start;
	struct exec_exit exit;
	struct exec_moved moved;
	enum what what;
	enum start_flag start_flag;
	enum exec_stat stat;
};
const struct mirrored *const volatile mirrored = 0;

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start, arg_end;
} __core;

struct linux_binprm {
	const char *filename;
} __core;

/* A record that is too large for the stack. */
struct scratch {
	struct exec_start start;
	char tail[TAIL_BYTES];
	struct path_buffer path;
};

/* One for the program on exec, which nothing interrupts that uses it, and one for
 * the iterator. */
enum { SCRATCH_EXEC, SCRATCH_SEED, SCRATCH_MAX };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCH_MAX);
	__type(key, u32);
	__type(value, struct scratch);
} exec_scratch SEC(".maps");

struct process {
	u64 start_ns;
	u64 pid;
};

/* Those whose end was told of: two threads that end at the same time may both find
 * that no other is left. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct process);
	__type(value, u8);
} exec_ended SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* set by the loader */
} exec_ring SEC(".maps");

DEFINE_STATS(exec_stats)

/* Bytes waiting in the ring at which the reader is woken at once. */
volatile const u64 wake_bytes = 1 << 18;
#define WAKE_WINDOW (sizeof(struct exec_start) + TAIL_BYTES)

volatile const u64 arg_bytes = 1024; /* as many are read of the arguments */
volatile const bool has_group_dead = false; /* the exit tracepoint says who is the last thread */

static __always_inline long submit(void *record, u64 size)
{
	long err = bpf_ringbuf_output(&exec_ring, record, size, wake_flags(&exec_ring, wake_bytes, WAKE_WINDOW));

	if (err)
		count(STAT_RING_FULL);
	return err;
}

static __always_inline struct task_struct *current_task(void)
{
	return (void *)bpf_get_current_task();
}

/* Whether a task is of this node. */
static __always_inline bool is_ours(struct task_struct *task)
{
	return !part_root || in_part(task_cgroup(task));
}

static __always_inline void set_head(struct exec_head *h, u32 what, struct task_struct *task)
{
	h->now_ns = bpf_ktime_get_boot_ns();
	h->what = what;
	set_task(&h->task, task);
}

/* The host's first mount namespace, that of its pid 1. */
static __always_inline u32 host_mount_ns(struct pid *pid)
{
	return BPF_CORE_READ(pid_namespace(pid, 0), child_reaper, nsproxy, mnt_ns, ns.inum);
}

static __always_inline void set_namespaces(struct exec_start *s, struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);

	s->ns_pid = pid_number(pid, BPF_CORE_READ(pid, level));
	if (s->head.task.pid_ns == PID_NS_INIT_INO)
		s->flags |= START_HOST_PID;
	if (s->head.task.mnt_ns == host_mount_ns(pid))
		s->flags |= START_HOST_MOUNT;
}

static __always_inline void set_socket(struct exec_socket *to, struct file *file)
{
	unsigned short mode = BPF_CORE_READ(file, f_inode, i_mode);
	unsigned short family, protocol;
	struct socket *socket;
	struct sock *sk;

	to->protocol = 0;
	if ((mode & S_IFMT) != S_IFSOCK)
		return;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (protocol == IPPROTO_MPTCP)
		protocol = IPPROTO_TCP;
	if ((family != AF_INET && family != AF_INET6) || (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP))
		return;
	if (family == AF_INET) {
		addr_set_v4(&to->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		addr_set_v4(&to->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else {
		BPF_CORE_READ_INTO(&to->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&to->remote, sk, __sk_common.skc_v6_daddr);
	}
	to->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	to->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	to->protocol = protocol;
}

static __always_inline void set_std(struct exec_start *s, struct task_struct *task)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **fds = BPF_CORE_READ(table, fd);
	struct file *file;

	for (int i = 0; i < STD_FILES; i++) {
		file = 0;
		bpf_probe_read_kernel(&file, sizeof(file), &fds[i]);
		set_socket(&s->std[i], file);
	}
}

static __always_inline void set_exe(struct scratch *s, struct file *file)
{
	struct path *path = (void *)file + bpf_core_field_offset(struct file, f_path);
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	u64 at, len;

	s->start.path_len = 0;
	s->start.changed_ns = 0;
	if (!file)
		return;
	read_path(&s->path, path);
	if (s->path.flags & PATH_TRUNCATED)
		s->start.flags |= START_PATH_TRUNCATED;
	if (is_memfd(&s->path, inode))
		s->start.flags |= START_MEMFD;
	else if (!BPF_CORE_READ(inode, i_nlink))
		s->start.flags |= START_DELETED;
	if (on_overlay(inode)) {
		s->start.flags |= START_OVERLAY;
		if (in_upper(inode))
			s->start.flags |= START_UPPER;
	}
	s->start.changed_ns = ctime_ns(inode);
	at = s->path.at;
	len = PATH_BYTES - at;
	asm volatile("" : "+r"(len), "+r"(at)); /* for old verifiers, as in add_name() */
	if (len > PATH_BYTES || at >= PATH_BYTES)
		return;
	bpf_probe_read_kernel(s->tail, len, &s->path.b[at]);
	s->start.path_len = len;
}

/* Reads the arguments behind what is in the tail, which they must not be longer
 * than. They are on the stack of the new program, where the kernel has just put
 * them. */
static __always_inline u64 read_args(struct scratch *s, u64 at, struct task_struct *task)
{
	unsigned long from = BPF_CORE_READ(task, mm, arg_start);
	u64 len = BPF_CORE_READ(task, mm, arg_end) - from;
	u64 most = arg_bytes;

	s->start.args_len = 0;
	if (!most)
		return at;
	if (len > most) {
		s->start.flags |= START_ARGS_TRUNCATED;
		len = most;
	}
	asm volatile("" : "+r"(len));
	if (len > ARGS_BYTES || at > PATH_BYTES + CALLED_BYTES)
		return at;
	if (bpf_probe_read_user(&s->tail[at], len, (void *)from)) {
		s->start.flags |= START_ARGS_TRUNCATED;
		return at;
	}
	s->start.args_len = len;
	return at + len;
}

/* Fills all of a start but what was called and the arguments. */
static __always_inline void set_start(struct scratch *s, u32 what, struct task_struct *task)
{
	s->start.flags = 0;
	s->start.called_len = 0;
	s->start.args_len = 0;
	set_head(&s->start.head, what, task);
	if (BPF_CORE_READ(task, signal, tty))
		s->start.flags |= START_TTY;
	set_namespaces(&s->start, task);
	set_std(&s->start, task);
	set_exe(s, BPF_CORE_READ(task, mm, exe_file));
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_started, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	u32 slot = SCRATCH_EXEC;
	struct scratch *s = bpf_map_lookup_elem(&exec_scratch, &slot);
	u64 at, len;

	if (!s || !is_ours(task))
		return 0;
	set_start(s, WHAT_EXEC, task);
	at = s->start.path_len;
	if (at > PATH_BYTES)
		return 0;
	len = bpf_probe_read_kernel_str(&s->tail[at], CALLED_BYTES, BPF_CORE_READ(bprm, filename));
	asm volatile("" : "+r"(len)); /* for old verifiers, as in add_name() */
	if (len > CALLED_BYTES) /* an error */
		len = 0;
	s->start.called_len = len;
	at += len;
	at = read_args(s, at, task);
	asm volatile("" : "+r"(at));
	if (at > TAIL_BYTES)
		return 0;
	submit(s, sizeof(s->start) + at);
	return 0;
}

SEC("tp_btf/task_newtask")
int BPF_PROG(process_forked, struct task_struct *task, u64 clone_flags)
{
	struct exec_head h = {};

	if (clone_flags & CLONE_THREAD || !is_ours(task))
		return 0;
	set_head(&h, WHAT_FORK, task);
	/* With CLONE_PARENT the parent is not who forks. */
	set_parent(&h.task, BPF_CORE_READ(current_task(), group_leader));
	submit(&h, sizeof(h));
	return 0;
}

/* What wait() will say of a process. */
static __always_inline u32 exit_status(struct task_struct *task)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);

	if (BPF_CORE_READ(signal, flags) & SIGNAL_GROUP_EXIT)
		return BPF_CORE_READ(signal, group_exit_code);
	return BPF_CORE_READ(task, group_leader, exit_code);
}

/* Whether an update with BPF_NOEXIST has found an entry. Old kernels leave the upper
 * half of the result out. */
static __always_inline bool has_been(long result)
{
	return (int)result == -EEXIST;
}

static __always_inline bool is_last(struct task_struct *task, u64 group_dead)
{
	struct process key = {};
	u8 one = 1;

	if (has_group_dead)
		return group_dead & 1;
	if (BPF_CORE_READ(task, signal, live.counter))
		return false;
	key.start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	key.pid = BPF_CORE_READ(task, tgid);
	return !has_been(bpf_map_update_elem(&exec_ended, &key, &one, BPF_NOEXIST));
}

SEC("tp_btf/sched_process_exit")
int process_ended(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct exec_exit e = {};

	/* The second argument is there since 6.16. */
	if (!is_last(task, has_group_dead ? ctx[1] : 0) || !is_ours(task))
		return 0;
	set_head(&e.head, WHAT_EXIT, task);
	e.status = exit_status(task);
	submit(&e, sizeof(e));
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(process_moved, struct cgroup *to, const char *path, struct task_struct *task, bool threadgroup)
{
	struct task_struct *by = current_task();
	struct exec_moved e = {};

	/* Another hierarchy than cgroup2, or a thread alone. */
	if (to->root->hierarchy_id || task->pid != task->tgid || !in_part(to))
		return 0;
	if (!BPF_CORE_READ(task, signal, live.counter)) /* its end was told of, or will be */
		return 0;
	set_head(&e.head, WHAT_MOVED, task);
	e.head.task.cgroup_id = cgroup_id(to);
	e.by_start_ns = BPF_CORE_READ(by, group_leader, start_boottime);
	e.by_pid = BPF_CORE_READ(by, tgid);
	submit(&e, sizeof(e));
	return 0;
}

/* Tells of one process that was there before. */
SEC("iter/task")
int process_seed(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	u32 slot = SCRATCH_SEED;
	struct scratch *s;
	u64 size;

	if (!task || task->pid != task->tgid)
		return 0;
	s = bpf_map_lookup_elem(&exec_scratch, &slot);
	/* The end of one without threads was told of, or will be. */
	if (!s || !BPF_CORE_READ(task, signal, live.counter) || !is_ours(task))
		return 0;
	set_start(s, WHAT_SEEN, task);
	size = s->start.path_len;
	if (size > PATH_BYTES)
		return 0;
	bpf_seq_write(ctx->meta->seq, s, sizeof(s->start) + size);
	return 0;
}
