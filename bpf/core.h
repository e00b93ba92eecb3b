/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel types that orb8's programs read, written by hand. Every access
 * is relocated by field name against the running kernel's BTF, so only names
 * and types matter here, not order or completeness.
 */
#ifndef ORB8_CORE_H
#define ORB8_CORE_H

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10

#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_MPTCP 262

#define __core __attribute__((preserve_access_index))

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef _Bool bool;
#define true 1
#define false 0

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
} __core;

struct ns_common {
	unsigned int inum;
} __core;

struct net {
	struct ns_common ns;
} __core;

typedef struct {
	struct net *net;
} __core possible_net_t;

struct kernfs_node {
	u64 id;
} __core;

struct cgroup_root {
	int hierarchy_id; /* 0 for cgroup2 */
} __core;

struct cgroup {
	struct cgroup_root *root;
	struct kernfs_node *kn;
	int level;
	struct cgroup *ancestors[]; /* since 6.1, one per level with itself as the last */
} __core;

struct cgroup___v6_0 {
	int level;
	u64 ancestor_ids[];
} __core;

struct sock_cgroup_data {
	struct cgroup *cgroup; /* since 5.15 */
} __core;

/* Before 5.15 the cgroup shares a word with net_cls data, see sk_cgroup_id. */
struct sock_cgroup_data___v5_14 {
	u64 val;
} __core;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
} __core;

struct sock {
	struct sock_common __sk_common;
	int sk_err;
	u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
} __core;

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
} __core;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
} __core;

struct minmax_sample {
	u32 t;
	u32 v;
} __core;

struct minmax {
	struct minmax_sample s[3];
} __core;

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u32 segs_in;
	u32 segs_out;
	u64 bytes_received;
	u64 bytes_sent;
	u64 bytes_acked;
	u64 bytes_retrans;
	u32 snd_una;
	u32 snd_nxt;
	u32 write_seq;
	u32 srtt_us; /* eight times the smoothed round-trip time */
	u32 snd_cwnd;
	u32 total_retrans;
	u8 bpf_sock_ops_cb_flags;
	struct minmax rtt_min;
} __core;

enum sock_flags {
	SOCK_DEAD,
	SOCK_DONE, /* set by tcp_fin(): the peer's FIN has been taken in */
};

enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
	TCP_NEW_SYN_RECV,
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} __core;

struct files_struct {
	struct fdtable *fdt;
} __core;

struct css_set {
	struct cgroup *dfl_cgrp; /* of cgroup2 */
} __core;

struct cred;
struct files_struct;
struct mm_struct;
struct nsproxy;
struct pid;
struct signal_struct;

#define PF_KTHREAD 0x00200000

struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	int exit_code;
	char comm[16];
	u64 start_boottime;
	void *stack;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	const struct cred *real_cred;
	struct css_set *cgroups;
	struct files_struct *files;
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	struct pid *thread_pid;
	struct signal_struct *signal;
} __core;

struct socket {
	struct sock *sk;
} __core;

struct file;
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	u64 session_id;
	u64 seq_num;
} __core;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __core;

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
} __core;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} __core;

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
} __core;

/* An IPv6 address, or an IPv4 one mapped into it, in network order. */
union addr {
	u8 b[16];
	__be32 w[4];
	u64 d[2];
};

static __always_inline void addr_set_v4(union addr *a, __be32 v4)
{
	a->d[0] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

static __always_inline bool same_addr(union addr *a, union addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

#endif
