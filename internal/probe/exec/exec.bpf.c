//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The life of processes, and what they ask a capability for. No program here runs
 * on an ordinary system call: the kernel calls them when a process is made, starts
 * an executable, ends or moves to another cgroup, and when a capability is checked.
 */
#include "count.h"
#include "part.h"
#include "path.h"
#include "ring.h"
#include "task.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define S_IFMT 00170000
#define S_IFSOCK 0140000

#define CLONE_THREAD 0x00010000
#define SIGNAL_GROUP_EXIT 4
#define PTRACE_MODE_ATTACH 2
#define CAP_SYS_PTRACE 19

#define EEXIST 17
#define ENOSPC 28

#define PID_NS_INIT_INO 0xeffffffcU /* the first pid namespace */

#define STD_FILES 3
#define CALLED_BYTES 4096
#define ARGS_BYTES 4096 /* at most, see arg_bytes */
#define TAIL_BYTES (PATH_BYTES + CALLED_BYTES + ARGS_BYTES)
#define MODULE_BYTES 64

#define CALLS 512 /* those above are not watched */

/* As in package process. */
enum what {
	WHAT_SEEN,
	WHAT_FORK,
	WHAT_EXEC,
	WHAT_EXIT,
	WHAT_MOVED,
	WHAT_PRIVILEGED,
	WHAT_IO_URING,
	WHAT_MODULE,
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

enum call_flag {
	CALL_DENIED = 1,
	CALL_OWN_USERNS = 2,
	CALL_COMPAT = 4,
};

enum exec_stat {
	STAT_RING_FULL,
	STAT_REPEATED,
	STAT_SHARE_FULL,
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

struct exec_call {
	struct exec_head head;
	u64 args[CALL_ARGS];
	int nr;
	u8 capability;
	u8 flags;
	u8 pad[2];
};

struct exec_io_uring {
	struct exec_head head;
	u8 opcode;
	u8 pad[7];
};

struct exec_module {
	struct exec_head head;
	char name[MODULE_BYTES];
};

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct exec_head head;
	struct exec_start start;
	struct exec_exit exit;
	struct exec_moved moved;
	struct exec_call call;
	struct exec_io_uring io_uring;
	struct exec_module module;
	enum what what;
	enum start_flag start_flag;
	enum call_flag call_flag;
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

struct io_kiocb {
	u8 opcode;
} __core;

struct module {
	char name[56];
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

struct told {
	struct process process;
	u64 args[CALL_ARGS];
	int nr;
	u8 capability;
	u8 flags;
	u8 pad[2];
};

/* When a process's privileged call was told of last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct told);
	__type(value, u64);
} exec_told SEC(".maps");

struct operation {
	struct process process;
	u64 opcode;
};

/* When a process's io_uring operation of a kind was told of last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct operation);
	__type(value, u64);
} exec_operations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* set by the loader */
} exec_ring SEC(".maps");

/* What a cgroup has put into the ring while little room was left. */
struct share {
	u64 turn; /* how many shares of the ring had been read when it began to */
	u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u64); /* cgroup id */
	__type(value, struct share);
} exec_shares SEC(".maps");

DEFINE_STATS(exec_stats)

/* Bytes waiting in the ring at which the reader is woken at once. */
volatile const u64 wake_bytes = 1 << 18;
#define WAKE_WINDOW (sizeof(struct exec_start) + TAIL_BYTES)

volatile const u64 arg_bytes = 1024; /* as many are read of the arguments */
volatile const u64 repeat_ns = 1000000000; /* a call that repeats is told of as often */
/* As often an io_uring operation that repeats: there may be millions a second. */
volatile const u64 repeat_io_uring_ns = 60000000000;
/* The system calls that are watched, native and 32-bit ones, a bit for each. */
volatile const u64 watched[2 * CALLS / 64];
/* How many arguments each of them has: what else is in the registers is of chance. */
volatile const u8 call_args[2 * CALLS];
/* What the process that reads the ring asks for is not told of: it calls bpf() all
 * the time. 0: not known. */
volatile const u32 own_pid = 0;
/* What the io_uring tracepoint hands over: a request, or the opcode as this
 * argument. */
volatile const bool io_uring_request = true;
volatile const u32 io_uring_opcode = 0;
volatile const bool has_group_dead = false; /* the exit tracepoint says who is the last thread */

/* While more bytes than this wait in the ring, each cgroup may add only a quarter as many
 * before as many have been read: whoever fills the ring leaves room for the others. */
volatile const u64 share_mark = 1 << 19;

/* Whether a cgroup has had its share of the ring. */
static __always_inline bool had_share(u64 cgroup, u64 size)
{
	u64 share = share_mark / 4, turn;
	struct share first = {}, *s;

	if (bpf_ringbuf_query(&exec_ring, BPF_RB_AVAIL_DATA) <= share_mark)
		return false;
	turn = bpf_ringbuf_query(&exec_ring, BPF_RB_CONS_POS) / share;
	s = bpf_map_lookup_elem(&exec_shares, &cgroup);
	if (!s || s->turn != turn) {
		first.turn = turn;
		first.bytes = size;
		bpf_map_update_elem(&exec_shares, &cgroup, &first, BPF_ANY);
		return false;
	}
	if (s->bytes + size > share)
		return true;
	__sync_fetch_and_add(&s->bytes, size);
	return false;
}

static __always_inline long submit(struct exec_head *record, u64 size)
{
	long err;

	if (had_share(record->task.cgroup_id, size)) {
		count(STAT_SHARE_FULL);
		return -ENOSPC;
	}
	err = bpf_ringbuf_output(&exec_ring, record, size, wake_flags(&exec_ring, wake_bytes, WAKE_WINDOW));
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

/* Whether the life of processes outside of this node's part is told of as well: a
 * container's process has its parents there. */
volatile const bool lives_around = false;

/* Whether a process's life is told of. */
static __always_inline bool is_told(struct task_struct *task)
{
	return lives_around || is_ours(task);
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

	if (!s || !is_told(task))
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
	submit(&s->start.head, sizeof(s->start) + at);
	return 0;
}

SEC("tp_btf/task_newtask")
int BPF_PROG(process_forked, struct task_struct *task, u64 clone_flags)
{
	struct exec_head h = {};

	if (clone_flags & CLONE_THREAD || !is_told(task))
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
	if (!is_last(task, has_group_dead ? ctx[1] : 0) || !is_told(task))
		return 0;
	set_head(&e.head, WHAT_EXIT, task);
	e.status = exit_status(task);
	submit(&e.head, sizeof(e));
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(process_moved, struct cgroup *to, const char *path, struct task_struct *task, bool threadgroup)
{
	struct task_struct *by = current_task();
	struct exec_moved e = {};

	/* Another hierarchy than cgroup2, or a thread alone. */
	if (to->root->hierarchy_id || task->pid != task->tgid || (!lives_around && !in_part(to)))
		return 0;
	if (!BPF_CORE_READ(task, signal, live.counter)) /* its end was told of, or will be */
		return 0;
	set_head(&e.head, WHAT_MOVED, task);
	e.head.task.cgroup_id = cgroup_id(to);
	e.by_start_ns = BPF_CORE_READ(by, group_leader, start_boottime);
	e.by_pid = BPF_CORE_READ(by, tgid);
	submit(&e.head, sizeof(e));
	return 0;
}

/* Tells of a call, unless it was told of a moment ago. */
static __always_inline void tell_once(struct exec_call *e)
{
	struct told key = {
		.process = {e->head.task.start_ns, e->head.task.pid},
		.nr = e->nr, .capability = e->capability, .flags = e->flags,
	};
	u64 call = (u32)e->nr + (e->flags & CALL_COMPAT ? CALLS : 0), args;
	u64 *last;

	asm volatile("" : "+r"(call)); /* for old verifiers, as in add_name() */
	args = call_args[call & (2 * CALLS - 1)];
#pragma unroll
	for (u64 i = 0; i < CALL_ARGS; i++)
		if (i < args)
			key.args[i] = e->args[i];
	last = bpf_map_lookup_elem(&exec_told, &key);
	if (last && e->head.now_ns - *last < repeat_ns) {
		count(STAT_REPEATED);
		return;
	}
	bpf_map_update_elem(&exec_told, &key, &e->head.now_ns, BPF_ANY);
	if (submit(&e->head, sizeof(*e))) /* the next one is told of */
		bpf_map_delete_elem(&exec_told, &key);
}

static __always_inline bool is_watched(int nr, bool compat)
{
	u64 word = (u32)nr / 64;

	if ((u32)nr >= CALLS)
		return false;
	if (compat)
		word += CALLS / 64;
	asm volatile("" : "+r"(word));
	return watched[word & (2 * CALLS / 64 - 1)] >> (nr & 63) & 1;
}

/* Tells that the current process has asked for a capability, if it did so by a
 * system call that is watched. Nothing comes before the look at that: a fork asks,
 * and whoever maps memory. A page fault may look like a call with a number below 64 on
 * x86, where the exception's error code stands in its place. */
static __always_inline void tell_call(u64 capability, u32 flags)
{
	struct task_struct *task = current_task();
	void *regs = current_regs();
	struct exec_call e = {};
	bool compat = in_compat();
	int nr = CALL_NUMBER(regs, READ_ANY);

	if (!is_watched(nr, compat))
		return;
	if (BPF_CORE_READ(task, flags) & (PF_KTHREAD | PF_IO_WORKER | PF_USER_WORKER) || !is_ours(task))
		return; /* the first three are in no call */
	if (own_pid && BPF_CORE_READ(task, tgid) == own_pid)
		return;
	READ_CALL_ARGS(e.args, regs, compat, READ_ANY);
	e.nr = nr;
	e.capability = capability;
	e.flags = flags | (compat ? CALL_COMPAT : 0);
	set_head(&e.head, WHAT_PRIVILEGED, task);
	tell_once(&e);
}

static __always_inline u32 cap_flags(struct user_namespace *target, long ret)
{
	return (ret ? CALL_DENIED : 0) | (BPF_CORE_READ(target, level) ? CALL_OWN_USERNS : 0);
}

SEC("tp_btf/cap_capable")
int BPF_PROG(capable, const struct cred *cred, struct user_namespace *target, struct user_namespace *holder,
	     int cap, int ret)
{
	tell_call(cap, cap_flags(target, ret));
	return 0;
}

SEC("fexit/cap_capable")
int BPF_PROG(capable_exit, const struct cred *cred, struct user_namespace *target, int cap, unsigned int opts,
	     int ret)
{
	tell_call(cap, cap_flags(target, ret));
	return 0;
}

/* One process that reads or writes another needs no capability if both are the same
 * user's. */
SEC("fexit/security_ptrace_access_check")
int BPF_PROG(ptrace_access, struct task_struct *child, unsigned int mode, int ret)
{
	if (mode & PTRACE_MODE_ATTACH)
		tell_call(CAP_SYS_PTRACE, ret ? CALL_DENIED : 0);
	return 0;
}

/* io_uring_submit_req since 6.4, before it io_uring_submit_sqe: the loader finds out
 * which, and what it hands over. */
SEC("tp_btf/io_uring_submit_req")
int io_uring_submit(u64 *ctx)
{
	struct task_struct *task = current_task();
	struct exec_io_uring e = {};
	struct operation key = {};
	struct io_kiocb *request;
	u64 now = bpf_ktime_get_boot_ns(), *last;

	if (io_uring_request) {
		request = (void *)ctx[0];
		key.opcode = BPF_CORE_READ(request, opcode);
	} else {
		/* The verifier wants a constant as the argument's place. */
		volatile u64 *args = ctx;

		if (io_uring_opcode == 1)
			key.opcode = (u8)args[1];
		else
			key.opcode = (u8)args[2];
	}
	key.process.start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	key.process.pid = bpf_get_current_pid_tgid() >> 32;
	last = bpf_map_lookup_elem(&exec_operations, &key);
	if ((last && now - *last < repeat_io_uring_ns) || !is_ours(task))
		return 0;
	bpf_map_update_elem(&exec_operations, &key, &now, BPF_ANY);
	set_head(&e.head, WHAT_IO_URING, task);
	e.opcode = key.opcode;
	if (submit(&e.head, sizeof(e))) /* the next one is told of */
		bpf_map_delete_elem(&exec_operations, &key);
	return 0;
}

SEC("tp_btf/module_load")
int BPF_PROG(module_loaded, struct module *module)
{
	struct task_struct *task = current_task();
	struct exec_module e = {};

	if (!is_ours(task))
		return 0;
	set_head(&e.head, WHAT_MODULE, task);
	bpf_probe_read_kernel_str(e.name, sizeof(e.name), (void *)module + bpf_core_field_offset(struct module, name));
	submit(&e.head, sizeof(e));
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
	if (!s || !BPF_CORE_READ(task, signal, live.counter) || !is_told(task))
		return 0;
	set_start(s, WHAT_SEEN, task);
	size = s->start.path_len;
	if (size > PATH_BYTES)
		return 0;
	bpf_seq_write(ctx->meta->seq, s, sizeof(s->start) + size);
	return 0;
}
