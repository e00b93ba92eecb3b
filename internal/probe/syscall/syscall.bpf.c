//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The system calls of selected cgroups, for several traces at a time: each is a bit in
 * the selection. A call is counted here, by cgroup and number, or told of one by one,
 * with what its arguments point at, as each of the traces wants it. For everybody else
 * both programs end after the look-up of the cgroup.
 */
#include "cgroup.h"
#include "count.h"
#include "path.h"
#include "regs.h"
#include "ring.h"
#include "select.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ARG_SLOTS 8 /* a power of two, for old verifiers */
#define MAX_NUMBER 512
#define NUMBER_WORDS (MAX_NUMBER / 64) /* a power of two, for old verifiers */
#define MAX_TRACES 16
#define MAX_ERRNO 4095
#define SECOND 1000000000ULL

/* Of a text that is longer than TEXT_SHOWN the rest is cut off: one byte more and a
 * zero are read to see which is. */
#define TEXT_SHOWN 255
#define TEXT_ROOM (TEXT_SHOWN + 2)
#define TEXT_BYTES (CALL_ARGS * TEXT_ROOM)
#define ADDR_BYTES 128 /* struct sockaddr_storage */
#define HOW_BYTES 24 /* struct open_how */

#define AF_UNIX 1
#define SOCKFS_MAGIC 0x534f434b
#define PIPEFS_MAGIC 0x50495045
#define ANON_INODE_FS_MAGIC 0x09041934
#define NSFS_MAGIC 0x6e736673
#define PID_FS_MAGIC 0x50494446 /* since 6.9 */

#define barrier() asm volatile("" ::: "memory")

typedef __s32 s32;
typedef __s64 s64;

struct hlist_bl_node {
	struct hlist_bl_node **pprev;
} __core;

struct dentry___hash {
	struct hlist_bl_node d_hash;
} __core;

struct unix_address {
	int len;
	char name[];
} __core;

struct unix_sock {
	struct unix_address *addr;
	struct sock *peer;
} __core;

enum call_flag {
	FLAG_COMPAT = 1, /* a 32-bit call */
	FLAG_RETURNED = 2, /* ret is what it returned */
	FLAG_UNFINISHED = 4, /* it goes on, or never returns */
	FLAG_REFUSED = 8, /* it was not begun */
};

/* What is kept in text of an argument. */
enum kind {
	KIND_NONE,
	KIND_STRING,
	KIND_ADDR, /* struct sockaddr */
	KIND_HOW, /* struct open_how, the part of it that is given */
	/* What a file descriptor stands for: */
	KIND_PATH,
	KIND_PATH_END, /* what is known of one with too many folders */
	KIND_DELETED, /* the path of a file that has no name any more */
	KIND_NAME, /* of what is in no folder */
	KIND_ANON, /* likewise, without a file system */
	KIND_PIPE, /* struct inode_text */
	KIND_NAMESPACE, /* likewise */
	KIND_PIDFD, /* empty */
	KIND_INET, /* struct inet_text */
	KIND_UNIX, /* struct sockaddr, empty if it has none */
	KIND_UNIX_PEER, /* of the other end, if this one has none */
	KIND_SOCKET, /* struct socket_text */
};

struct inode_text {
	u64 ino;
};

struct inet_text {
	union addr local, remote;
	u16 local_port, remote_port; /* host order */
	u16 protocol;
	u16 pad;
};

struct socket_text {
	u16 family, protocol;
};

/* What is told of a call. Only as much of text as is used goes to the ring. */
struct call {
	u64 now_ns; /* boot time, of the end; until then of the begin */
	u64 latency_ns;
	u64 cgroup_id;
	u64 args[ARG_SLOTS];
	s64 ret;
	u32 pid, tid;
	u32 parent; /* process */
	s32 nr;
	u32 used; /* of text */
	u32 traces; /* those that are told of it */
	u16 at[ARG_SLOTS]; /* where in text */
	u16 len[ARG_SLOTS];
	u8 kind[ARG_SLOTS];
	u8 cut; /* a bit for each argument that has more */
	u8 flags;
	char comm[16];
	char text[TEXT_BYTES];
};

/* What is kept of a thread from its first call in a selected cgroup until its end. A
 * call that ends without a begin was refused if the thread is known, and else had begun
 * before. */
struct thread {
	u64 changes; /* even, or the rest is being written */
	u64 moves; /* of all processes, when the call began */
	u32 in_call;
	u32 wanted; /* by which traces the call is to be told of */
	struct call call;
};

enum reads_flag {
	READS_ADDR_AT_END = 1, /* the kernel fills the address */
	READS_NO_RETURN = 2, /* exit */
	READS_EXEC = 4, /* the memory is another one afterwards */
};

#define NO_ARG 0xff

/* As syscalls.Reads. */
struct call_reads {
	u8 strings, files;
	u8 addr, addr_len; /* NO_ARG for none */
	u8 how; /* before its length, 0 for none */
	u8 flags;
};

/* What a trace wants to be told of, set at any time: at most so many calls a second, 0
 * for none; those with a bit in only, unless all are, or refused ones if those are; of
 * these those that failed. */
struct trace_wish {
	u32 per_second;
	u8 all_calls, refused_calls, errors_only;
	u8 pad;
	u64 only[2 * NUMBER_WORDS]; /* native, then compat */
};

/* The second and what a trace was told of in it. */
struct trace_budget {
	u64 second, told;
};

struct count_key {
	u64 cgroup_id;
	s32 nr;
	u32 compat;
};

#define BUCKETS 64 /* a power of two, for old verifiers */

struct call_counts {
	u64 calls, errors, time_ns, max_ns;
	/* By their time: those below 256 ns, then two for each power of two. */
	u32 by_time[BUCKETS];
};

enum syscall_stat {
	STAT_RING_FULL,
	STAT_LIMITED,
	STAT_PENDING_FULL,
	STAT_UNCOUNTED,
	STAT_MAX,
};

/* A power of two that is at least that many, so that a trace's begin is a shift. */
#define STATS_SHIFT 2
_Static_assert(STAT_MAX <= 1 << STATS_SHIFT, "room for the counters of a trace");

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct thread thread;
	struct call call;
	struct call_reads reads;
	struct inode_text inode;
	struct inet_text inet;
	struct socket_text socket;
	struct count_key key;
	struct call_counts counts;
	struct trace_wish wish;
	enum call_flag flag;
	enum kind kind;
	enum reads_flag reads_flag;
	enum syscall_stat stat;
};
const struct mirrored *const volatile mirrored = 0;

/* By the address of the task, which stays when execve gives a thread another id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64);
	__type(value, struct thread);
} syscall_threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct count_key);
	__type(value, struct call_counts);
} syscall_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} syscall_ring SEC(".maps");

/* Of each trace, STAT_MAX of 1 << STATS_SHIFT. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_TRACES << STATS_SHIFT);
	__type(key, u32);
	__type(value, u64);
} syscall_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TRACES);
	__type(key, u32);
	__type(value, struct trace_wish);
} syscall_wishes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TRACES);
	__type(key, u32);
	__type(value, struct trace_budget);
} syscall_budgets SEC(".maps");

/* When processes were moved to another cgroup, boot time by process id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, u64);
} syscall_moves SEC(".maps");

/* A file's description while it is being made: len bytes at at. Nothing else runs on
 * the processor meanwhile. */
struct description {
	struct path_buffer buf;
	u64 at, len;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct description);
} syscall_descriptions SEC(".maps");

/* The bit of the selection that is the first trace's. */
volatile const u32 first_bit = 0;

/* Native and compat. */
volatile const struct call_reads reads_of[2][MAX_NUMBER] = {};

/* Bytes waiting in the ring at which the reader is woken at once. */
volatile const u64 wake_bytes = 1 << 20;
#define WAKE_WINDOW (8 * sizeof(struct call))

/* orb8 itself, whose calls would make more of them. */
volatile u32 own_tgid;

/* The traces that calls are counted for. */
volatile u32 counting;

/* The programs are about to be detached, which begins with that of begins: an end without
 * one says nothing. */
volatile u32 ending;

/* How often any process was moved. */
u64 moves;

static const struct thread new_thread;

static __always_inline bool is_error(struct call *c)
{
	return (c->flags & FLAG_RETURNED) && c->ret < 0 && c->ret >= -MAX_ERRNO;
}

static __always_inline u32 compat_of(struct call *c)
{
	return c->flags & FLAG_COMPAT ? 1 : 0;
}

/* The traces that have selected a cgroup. */
static __always_inline u32 traces_of(u64 cgroup_id)
{
	return selected(cgroup_id) >> first_bit & ((1 << MAX_TRACES) - 1);
}

static __noinline int count_for(u32 traces, u32 stat)
{
	for (u32 i = 0; i < MAX_TRACES; i++)
		if (traces >> i & 1)
			count_in(&syscall_stats, (i << STATS_SHIFT) + stat, 1);
	return 0;
}

static __always_inline bool wishes(struct trace_wish *w, u32 nr, u32 flags)
{
	u64 word = nr / 64 + (flags & FLAG_COMPAT ? NUMBER_WORDS : 0);

	if (!w->per_second)
		return false;
	if (w->all_calls || (w->refused_calls && (flags & FLAG_REFUSED)))
		return true;
	if (nr >= MAX_NUMBER)
		return false;
	asm volatile("" : "+r"(word));
	return w->only[word & (2 * NUMBER_WORDS - 1)] >> (nr % 64) & 1;
}

/* Those of the traces that want to be told of a call. Not static, so that the verifier
 * looks at it once; likewise below. */
__noinline u32 asked_by(u32 traces, u32 nr, u32 flags)
{
	u32 asked = 0;

	for (u32 i = 0; i < MAX_TRACES; i++) {
		u32 key = i;
		struct trace_wish *w;

		if (!(traces >> i & 1))
			continue;
		w = bpf_map_lookup_elem(&syscall_wishes, &key);
		if (w && wishes(w, nr, flags))
			asked |= 1 << i;
	}
	return asked;
}

static __always_inline void get_reads(struct call *c, struct call_reads *r)
{
	static const struct call_reads none = { .addr = NO_ARG, .addr_len = NO_ARG };
	u32 nr = c->nr;

	*r = none;
	if (nr < MAX_NUMBER)
		__builtin_memcpy(r, (void *)&reads_of[compat_of(c)][nr], sizeof(*r));
}

/* The process's name, as all probes have it: a thread may have one of its own. And who its
 * parent is now. */
static __always_inline void identify(struct call *c)
{
	struct task_struct *leader = BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), group_leader);
	u64 id = bpf_get_current_pid_tgid();

	c->pid = id >> 32;
	c->tid = id;
	c->parent = BPF_CORE_READ(leader, real_parent, tgid);
	bpf_probe_read_kernel(c->comm, sizeof(c->comm), &leader->comm);
}

/* --- what the arguments point at ------------------------------------------ */

/* The index of an argument, in a way that old verifiers understand. */
static __always_inline u64 slot(u64 i)
{
	asm volatile("" : "+r"(i));
	return i & (ARG_SLOTS - 1);
}

/* A length, likewise. */
static __always_inline u64 at_most(u64 n, u64 max)
{
	asm volatile("" : "+r"(n));
	return n > max ? max : n;
}

/* Notes that argument i has n bytes of text, which are at the end of what is used. */
static __always_inline void keep(struct call *c, u64 i, u8 kind, u64 n)
{
	u64 used = c->used;

	c->kind[i] = kind;
	c->at[i] = used;
	c->len[i] = n;
	c->used = used + n;
}

static __noinline int read_string(struct call *c, u64 i)
{
	u64 used = c->used;
	long n;

	i = slot(i);
	if (used > TEXT_BYTES - TEXT_ROOM)
		return 0;
	if (!c->args[i])
		return 0;
	n = bpf_probe_read_user_str(c->text + used, TEXT_ROOM, (void *)c->args[i]);
	if (n < 0)
		return 0;
	if (n > 0) /* 5.10 does not count the zero of an empty text */
		n--;
	if (n > TEXT_SHOWN) {
		n = TEXT_SHOWN;
		c->cut |= 1 << i;
	}
	keep(c, i, KIND_STRING, n);
	return 0;
}

/* len is the argument that has the length, or points at it. */
static __noinline int read_addr(struct call *c, u64 i, u64 len, bool at_end)
{
	u64 used = c->used;
	u32 given = 0;
	u64 n;

	i = slot(i);
	len = slot(len);
	if (used > TEXT_BYTES - TEXT_ROOM)
		return 0;
	if (!c->args[i])
		return 0;
	if (at_end)
		bpf_probe_read_user(&given, sizeof(given), (void *)c->args[len]);
	else
		given = c->args[len];
	n = at_most(given, ADDR_BYTES);
	if (!n || bpf_probe_read_user(c->text + used, n, (void *)c->args[i]))
		return 0;
	keep(c, i, KIND_ADDR, n);
	return 0;
}

static __noinline int read_how(struct call *c, u64 i)
{
	u64 used = c->used;
	u64 n;

	i = slot(i);
	if (used > TEXT_BYTES - TEXT_ROOM)
		return 0;
	n = at_most(c->args[slot(i + 1)], HOW_BYTES);
	if (!n || bpf_probe_read_user(c->text + used, n, (void *)c->args[i]))
		return 0;
	keep(c, i, KIND_HOW, n);
	return 0;
}

static __always_inline struct description *description(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&syscall_descriptions, &zero);
}

static __always_inline u32 describe_inet(struct description *d, struct sock *sk, u16 family)
{
	struct inet_text *t = (void *)d->buf.b;

	d->len = sizeof(*t);
	if (family == AF_INET6) {
		bpf_core_read(&t->local, sizeof(t->local), &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(&t->remote, sizeof(t->remote), &sk->__sk_common.skc_v6_daddr);
	} else {
		addr_set_v4(&t->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		addr_set_v4(&t->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	}
	t->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	t->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	t->protocol = BPF_CORE_READ(sk, sk_protocol);
	return KIND_INET;
}

static __always_inline u32 describe_unix(struct description *d, struct unix_sock *sk)
{
	struct unix_address *addr = BPF_CORE_READ(sk, addr);
	u32 kind = KIND_UNIX;
	u64 len;

	if (!addr) {
		struct unix_sock *peer = (void *)BPF_CORE_READ(sk, peer);

		kind = KIND_UNIX_PEER;
		addr = BPF_CORE_READ(peer, addr);
	}
	if (!addr)
		return KIND_UNIX;
	len = at_most(BPF_CORE_READ(addr, len), ADDR_BYTES);
	d->len = len;
	bpf_probe_read_kernel(d->buf.b, len, (void *)addr + bpf_core_field_offset(struct unix_address, name));
	return kind;
}

static __always_inline u32 describe_socket(struct description *d, struct file *file)
{
	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct sock *sk = BPF_CORE_READ(socket, sk);
	struct socket_text *t = (void *)d->buf.b;
	u16 family;

	if (!sk)
		return KIND_NONE;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family == AF_INET || family == AF_INET6)
		return describe_inet(d, sk, family);
	if (family == AF_UNIX && bpf_core_type_exists(struct unix_sock)) /* it may be a module's */
		return describe_unix(d, (void *)sk);
	d->len = sizeof(*t);
	t->family = family;
	t->protocol = BPF_CORE_READ(sk, sk_protocol);
	return KIND_SOCKET;
}

static __always_inline u32 describe_path(struct description *d, struct file *file, bool anon)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	struct dentry___hash *hash = (void *)dentry;

	read_path(&d->buf, (void *)file + bpf_core_field_offset(struct file, f_path));
	d->at = d->buf.at;
	d->len = PATH_BYTES - d->at;
	if (anon)
		return KIND_ANON;
	if (d->buf.flags & PATH_DETACHED)
		return KIND_NAME;
	if (d->buf.flags & PATH_TRUNCATED) {
		d->len = at_most(d->len, TEXT_SHOWN);
		d->at = PATH_BYTES - d->len;
		return KIND_PATH_END;
	}
	if (BPF_CORE_READ(hash, d_hash.pprev) || BPF_CORE_READ(dentry, d_parent) == dentry)
		return KIND_PATH;
	return KIND_DELETED;
}

static __always_inline u32 describe_inode(struct description *d, struct inode *inode, u32 kind)
{
	struct inode_text *t = (void *)d->buf.b;

	d->len = sizeof(*t);
	t->ino = BPF_CORE_READ(inode, i_ino);
	return kind;
}

/* Makes the description of what the current process has under a number, and returns its
 * kind. Not static, so that the verifier looks at it once and not at each call of it. */
__noinline int describe_file(u32 fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct description *d = description();
	struct file *file = 0;
	struct inode *inode;
	unsigned long magic;

	if (!d || fd >= BPF_CORE_READ(fdt, max_fds))
		return KIND_NONE;
	bpf_probe_read_kernel(&file, sizeof(file), BPF_CORE_READ(fdt, fd) + fd);
	if (!file)
		return KIND_NONE;
	d->at = d->len = 0;
	inode = BPF_CORE_READ(file, f_inode);
	magic = BPF_CORE_READ(inode, i_sb, s_magic);
	if (magic == SOCKFS_MAGIC)
		return describe_socket(d, file);
	if (magic == PIPEFS_MAGIC)
		return describe_inode(d, inode, KIND_PIPE);
	if (magic == NSFS_MAGIC)
		return describe_inode(d, inode, KIND_NAMESPACE);
	if (magic == PID_FS_MAGIC)
		return KIND_PIDFD;
	return describe_path(d, file, magic == ANON_INODE_FS_MAGIC);
}

static __noinline int read_file(struct call *c, u64 i)
{
	u64 used = c->used;
	struct description *d;
	u64 at, len;
	int kind;

	i = slot(i);
	if (used > TEXT_BYTES - TEXT_ROOM)
		return 0;
	kind = describe_file(c->args[i]);
	d = description();
	if (!kind || !d)
		return 0;
	if (d->len > TEXT_SHOWN)
		c->cut |= 1 << i;
	at = d->at & (PATH_BYTES - 1);
	len = at_most(d->len, TEXT_SHOWN);
	if (bpf_probe_read_kernel(c->text + used, len, d->buf.b + at))
		return 0;
	c->kind[i] = kind;
	c->at[i] = used;
	c->len[i] = len;
	c->used = used + len;
	return 0;
}

/* All that is there before the call; later again what could not be read then: the
 * kernel has brought its page in. Files are others then. */
static __always_inline void read_in(struct call *c, struct call_reads *r, bool files)
{
	for (int i = 0; i < CALL_ARGS; i++) {
		if (c->kind[i] != KIND_NONE)
			continue;
		if (r->strings >> i & 1)
			read_string(c, i);
		if (files && c->kind[i] == KIND_NONE && (r->files >> i & 1))
			read_file(c, i);
	}
	if (r->addr != NO_ARG && !(r->flags & READS_ADDR_AT_END) && c->kind[slot(r->addr)] == KIND_NONE)
		read_addr(c, r->addr, r->addr_len, false);
	if (r->how && c->kind[slot(r->how)] == KIND_NONE)
		read_how(c, r->how);
}

static __always_inline void read_out(struct call *c, struct call_reads *r)
{
	if (r->addr != NO_ARG && (r->flags & READS_ADDR_AT_END) && c->ret >= 0)
		read_addr(c, r->addr, r->addr_len, true);
}

/* --- telling --------------------------------------------------------------- */

/* The bucket of a time. */
static __always_inline u64 bucket(u64 ns)
{
	u64 n = ns >> 8, bits = 0, half;

	if (!n)
		return 0;
	if (ns >> 39) /* nine minutes */
		return BUCKETS - 1;
#pragma unroll
	for (int step = 16; step; step /= 2)
		if (n >> step) {
			n >>= step;
			bits += step;
		}
	half = ns >> (bits + 7) & 1;
	return 1 + 2 * bits + half;
}

static __always_inline void count_call(struct call *c, u32 traces)
{
	struct count_key key = { .cgroup_id = c->cgroup_id, .nr = c->nr, .compat = compat_of(c) };
	static const struct call_counts zero = {};
	struct call_counts *n;
	u64 at;

	n = bpf_map_lookup_elem(&syscall_counts, &key);
	if (!n) {
		bpf_map_update_elem(&syscall_counts, &key, &zero, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&syscall_counts, &key);
	}
	if (!n) {
		count_for(traces, STAT_UNCOUNTED);
		return;
	}
	n->calls++;
	n->errors += is_error(c);
	n->time_ns += c->latency_ns;
	if (c->latency_ns > n->max_ns)
		n->max_ns = c->latency_ns;
	at = bucket(c->latency_ns);
	asm volatile("" : "+r"(at));
	n->by_time[at & (BUCKETS - 1)]++;
}

/* Processors that do so at once may let through some more. */
static __always_inline bool within(struct trace_budget *b, u64 second, u32 limit)
{
	volatile u64 *told = &b->told;

	if (second != b->second) {
		b->second = second;
		*told = 0;
	}
	if (*told >= limit)
		return false;
	__sync_fetch_and_add(&b->told, 1);
	return true;
}

/* Those of the traces that may be told of one more call. */
__noinline u32 admitted(u32 traces, u64 now_ns, u32 failed)
{
	u32 in = 0;

	for (u32 i = 0; i < MAX_TRACES; i++) {
		u32 key = i;
		struct trace_wish *w;
		struct trace_budget *b;

		if (!(traces >> i & 1))
			continue;
		w = bpf_map_lookup_elem(&syscall_wishes, &key);
		b = bpf_map_lookup_elem(&syscall_budgets, &key);
		if (!w || !b || !w->per_second || (w->errors_only && !failed))
			continue;
		if (within(b, now_ns / SECOND, w->per_second))
			in |= 1 << i;
		else
			count_in(&syscall_stats, (i << STATS_SHIFT) + STAT_LIMITED, 1);
	}
	return in;
}

static __always_inline void tell(struct call *c, u32 traces)
{
	u32 used = c->used;

	c->traces = admitted(traces, c->now_ns, is_error(c));
	if (!c->traces)
		return;
	identify(c);
	if (used > TEXT_BYTES)
		return;
	if (bpf_ringbuf_output(&syscall_ring, c, __builtin_offsetof(struct call, text) + used,
			       wake_flags(&syscall_ring, wake_bytes, WAKE_WINDOW)))
		count_for(c->traces, STAT_RING_FULL);
}

/* Counts and tells the traces of a call that has ended, or never returns. */
static __always_inline void finish(struct thread *t, u32 traces)
{
	struct call *c = &t->call;
	u64 begin_ns = c->now_ns;

	c->now_ns = bpf_ktime_get_boot_ns();
	c->latency_ns = c->flags & FLAG_REFUSED ? 0 : c->now_ns - begin_ns;
	if (traces & counting)
		count_call(c, traces & counting);
	if (t->wanted & traces)
		tell(c, t->wanted & traces);
}

/* --- programs -------------------------------------------------------------- */

static __always_inline struct thread *find_thread(void)
{
	u64 key = bpf_get_current_task();

	return bpf_map_lookup_elem(&syscall_threads, &key);
}

static __always_inline struct thread *make_thread(void)
{
	u64 key = bpf_get_current_task();

	bpf_map_update_elem(&syscall_threads, &key, &new_thread, BPF_NOEXIST);
	return bpf_map_lookup_elem(&syscall_threads, &key);
}

/* Whether a thread may have been elsewhere since its begin or end was seen last: what
 * has ended there was not seen. */
static __always_inline bool was_away(struct thread *t)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 *at;

	if (t->moves == *(volatile u64 *)&moves)
		return false;
	at = bpf_map_lookup_elem(&syscall_moves, &tgid);
	return at && *at >= t->call.now_ns;
}

/* That is known of a thread whose call began before. */
static __always_inline void in_unknown_call(struct thread *t, u64 cgroup_id)
{
	t->in_call = 0;
	t->call.cgroup_id = cgroup_id;
	t->moves = *(volatile u64 *)&moves;
	t->call.now_ns = bpf_ktime_get_boot_ns();
}

static __always_inline bool is_self(void)
{
	return bpf_get_current_pid_tgid() >> 32 == own_tgid;
}

/* What a begin says of a call, or the end of one without. */
static __always_inline void fill(struct thread *t, void *regs, s32 nr, u64 cgroup_id, u32 traces, u32 flags)
{
	struct call *c = &t->call;

	t->moves = *(volatile u64 *)&moves;
	c->cgroup_id = cgroup_id;
	c->nr = nr;
	c->flags = flags | (in_compat() ? FLAG_COMPAT : 0);
	c->now_ns = bpf_ktime_get_boot_ns();
	c->ret = 0;
	c->used = 0;
	c->cut = 0;
	__builtin_memset(c->kind, 0, sizeof(c->kind));
	READ_CALL_ARGS(c->args, regs, c->flags & FLAG_COMPAT, READ_KNOWN);
	t->wanted = asked_by(traces, c->nr, c->flags);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(syscall_enter, void *regs, long nr)
{
	u64 cgroup_id = bpf_get_current_cgroup_id();
	u32 traces = traces_of(cgroup_id);
	struct thread *t;
	struct call_reads r;

	if (!traces || is_self())
		return 0;
	t = find_thread();
	if (!t)
		t = make_thread();
	if (!t) {
		count_for(traces, STAT_PENDING_FULL);
		return 0;
	}
	t->changes++;
	barrier();
	fill(t, regs, nr, cgroup_id, traces, 0);
	get_reads(&t->call, &r);
	if (t->wanted) {
		identify(&t->call);
		read_in(&t->call, &r, true);
	}
	t->in_call = !(r.flags & READS_NO_RETURN);
	barrier();
	t->changes++;
	if (t->in_call)
		return 0;
	t->call.flags |= FLAG_UNFINISHED;
	finish(t, traces);
	return 0;
}

/* A call without a begin. */
static __always_inline void refused(struct thread *t, void *regs, s32 nr, u64 cgroup_id, u32 traces)
{
	struct call_reads r;

	fill(t, regs, nr, cgroup_id, traces, FLAG_REFUSED);
	if (!t->wanted)
		return;
	get_reads(&t->call, &r);
	read_in(&t->call, &r, true);
}

static __always_inline void set_return(struct call *c, s64 ret)
{
	if (c->flags & FLAG_COMPAT) {
		ret = (s32)ret;
		if (ret >= 0 || ret < -MAX_ERRNO)
			ret = (u32)ret;
	}
	c->ret = ret;
	c->flags |= FLAG_RETURNED;
}

/* What a call returns, unless its registers are not those of its end (sigreturn has
 * restored others), or it was refused by a signal, which leaves the number. A program
 * that has just been started has no number either, on arm64 before 6.6. */
static __always_inline void returned(struct call *c, s64 ret, s32 nr, bool exec)
{
	if (nr == -1 && c->nr != -1 && !exec)
		return;
	if (c->flags & FLAG_REFUSED && ret == (on_x86() ? nr : (s64)c->args[0]))
		return;
	set_return(c, ret);
}

/* The end of a thread's call, of which the begin was seen or which was refused. */
static __always_inline void end_call(struct thread *t, void *regs, long ret, s32 nr, u64 cgroup_id, u32 traces)
{
	struct call *c = &t->call;
	struct call_reads r;

	if (!t->in_call)
		refused(t, regs, nr, cgroup_id, traces);
	t->in_call = 0;
	c->cgroup_id = cgroup_id;
	if (c->nr == -1 && !(c->flags & FLAG_REFUSED)) { /* a tracer has put it there */
		c->flags |= FLAG_REFUSED;
		t->wanted |= asked_by(traces, c->nr, c->flags);
	}
	get_reads(c, &r);
	returned(c, ret, nr, r.flags & READS_EXEC);
	if (t->wanted) {
		if (!(r.flags & READS_EXEC))
			read_in(c, &r, false);
		read_out(c, &r);
	}
	finish(t, traces);
}

SEC("tp_btf/sys_exit")
int BPF_PROG(syscall_exit, void *regs, long ret)
{
	u64 cgroup_id = bpf_get_current_cgroup_id();
	u32 traces = traces_of(cgroup_id);
	struct thread *t;
	s32 nr;

	if (!traces || is_self())
		return 0;
	t = find_thread();
	if (!t) {
		t = make_thread();
		if (t)
			in_unknown_call(t, cgroup_id);
		return 0;
	}
	nr = CALL_NUMBER(regs, READ_KNOWN);
	if (!t->in_call && (nr == -1 || ending))
		return 0;
	t->changes++;
	barrier();
	if (was_away(t))
		in_unknown_call(t, cgroup_id);
	else
		end_call(t, regs, ret, nr, cgroup_id, traces);
	barrier();
	t->changes++;
	return 0;
}

/* A thread that ends in a call was killed. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(syscall_thread_end)
{
	u64 key = bpf_get_current_task();
	struct thread *t = find_thread();
	u32 traces;

	if (!t)
		return 0;
	traces = traces_of(bpf_get_current_cgroup_id());
	if (t->in_call && traces && !was_away(t)) {
		t->changes++;
		t->in_call = 0;
		barrier();
		t->call.flags |= FLAG_UNFINISHED;
		finish(t, traces);
	}
	bpf_map_delete_elem(&syscall_threads, &key);
	return 0;
}

/* A call that ends in another cgroup is not told of where that is not selected, and what
 * then comes back is in another call. */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(syscall_moved, struct cgroup *to, const char *path, struct task_struct *task)
{
	u64 now = bpf_ktime_get_boot_ns();
	u32 tgid = task->tgid;

	if (to->root->hierarchy_id) /* one of cgroup v1 */
		return 0;
	bpf_map_update_elem(&syscall_moves, &tgid, &now, BPF_ANY);
	__sync_fetch_and_add(&moves, 1);
	return 0;
}

/* Run once, by orb8, whose process id in the first namespace only the kernel knows. */
SEC("raw_tp/sys_enter")
int syscall_self(void *ctx)
{
	own_tgid = bpf_get_current_pid_tgid() >> 32;
	return 0;
}
