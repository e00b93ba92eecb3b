//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TCP flows from the kernel's own per-socket counters. Nothing here runs per
 * packet: a program on the socket's state changes keeps a small record beside
 * each socket and reports its end, an iterator reads the counters of all
 * tracked sockets at each interval, counts the sockets by what they do, and
 * tells what listeners dropped.
 */
#include "cgroup.h"
#include "count.h"
#include "ring.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ETIMEDOUT 110
#define SOL_SOCKET 1
#define SO_ERROR 4
#define PF_KTHREAD 0x00200000

enum role {
	ROLE_UNKNOWN,
	ROLE_CLIENT,
	ROLE_SERVER,
	ROLE_LISTENER, /* never leaves the kernel */
};

enum tcp_flag {
	FLAG_PREEXISTING = 1, /* older than the agent */
	FLAG_RESET_SENT = 2,
	FLAG_RESET_RECEIVED = 4,
	FLAG_FIN_RECEIVED = 8,
	FLAG_FINAL = 16, /* the socket has reached CLOSE */
};

/* What is kept beside each socket. A listener's record is cloned to the sockets
 * that it accepts, and names their owner. */
struct sock_state {
	u64 start_ns; /* boot time; 0: not yet a connection */
	u64 syn_ns;
	u64 established_ns;
	u64 cgroup_id;
	/* The socket's segment counters, extended to 64 bits at each reading. */
	u64 segs_out, segs_in;
	/* Counters at the start: a socket may be connected again. */
	u64 origin_tx, origin_rx, origin_out, origin_in;
	/* Totals at the last report by the iterator. */
	u64 base_tx_bytes, base_rx_bytes, base_tx_segs, base_rx_segs;
	u64 retrans_reported_ns;
	u64 moved_ns; /* the pass at which the segment counters had moved, or the start */
	u64 counted_ns; /* the pass at which the socket was last counted */
	u32 pid;
	u32 netns;
	u32 drops; /* of a listener: sk_drops as last told */
	u8 comm[16];
	u8 role;
	u8 flags;
	u8 reported_state; /* 0: never reported */
	u8 closed;
	u8 pad[2];
	u16 err; /* as reported, or as the program took it before the close */
};

struct tcp_record {
	u64 now_ns; /* boot time, as are the other times */
	u64 start_ns;
	u64 syn_ns;
	u64 established_ns;
	u64 cgroup_id;
	u64 tx_bytes, rx_bytes, tx_segs, rx_segs;
	u64 base_tx_bytes, base_rx_bytes, base_tx_segs, base_rx_segs;
	u64 acked_bytes, retrans_bytes;
	union addr local, remote;
	u32 pid;
	u32 netns;
	u32 retrans;
	u32 srtt_us;
	u32 rtt_min_us;
	u32 cwnd;
	/* Only these, the local end and the owner are set if the state is LISTEN. */
	u32 drops; /* since last told */
	u32 backlog, max_backlog;
	u16 local_port, remote_port; /* host order */
	u16 err;
	u8 state;
	u8 old_state;
	u8 role;
	u8 flags;
	u8 pad[2];
	u8 comm[16];
};

/* What a cgroup's sockets did at a pass. */
struct tcp_count {
	u64 pass_ns;
	u32 established, idle, half_open, half_closed;
};

enum tcp_stat {
	STAT_RING_FULL,
	STAT_STORAGE_FULL,
	STAT_RESETS_UNMATCHED,
	STAT_SOCKETS_UNCOUNTED,
	STAT_MAX,
};

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct tcp_record record;
	struct tcp_count count;
	enum role role;
	enum tcp_flag flag;
	enum tcp_stat stat;
};
const struct mirrored *const volatile mirrored = 0;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct sock_state);
} tcp_socks SEC(".maps");

struct listener {
	u32 netns;
	u32 port; /* host order */
};

struct owner {
	u32 pid;
	u8 comm[16];
};

/* Owners of listeners that are older than the agent and are not plain TCP. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct listener);
	__type(value, struct owner);
} tcp_listeners SEC(".maps");

/* By cgroup id. An entry of another pass than the latest is stale. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set by the loader */
	__type(key, u64);
	__type(value, struct tcp_count);
} tcp_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} tcp_ring SEC(".maps");

DEFINE_STATS(tcp_stats)

/* Bytes waiting in the ring at which the reader is woken at once. */
volatile const u64 wake_bytes = 1 << 20;
#define WAKE_WINDOW (16 * sizeof(struct tcp_record))

/* Boot time at which the reader began the latest pass over all sockets, so that
 * none of them costs a look at the clock. */
volatile u64 pass_ns = 0;

volatile const bool count_sockets = true;
volatile const u64 idle_ns = 300 * 1000000000ULL;

/* Whether a socket is of this node. Only asked when a connection begins. */
static __always_inline bool is_ours(struct sock *sk)
{
	return !part_root || in_part(sk_cgroup(sk));
}

static __always_inline u64 sk_cgroup_id(struct sock *sk)
{
	struct cgroup *cg;

	if (!bpf_core_field_exists(struct sock_cgroup_data, cgroup))
		return cgroup_id(sk_cgroup(sk));
	cg = sk->sk_cgrp_data.cgroup;
	return cg ? cg->kn->id : 0;
}

static __always_inline void set_owner(struct sock_state *st, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;

	st->pid = task->tgid;
	bpf_probe_read_kernel(st->comm, sizeof(st->comm), leader->comm);
}

static __always_inline bool fin_received(struct sock *sk)
{
	return (sk->__sk_common.skc_flags >> bpf_core_enum_value(enum sock_flags, SOCK_DONE)) & 1;
}

/* True once the FIN has been sent; state is the last one before CLOSE. */
static __always_inline bool fin_sent(struct tcp_sock *tp, int state)
{
	switch (state) {
	case TCP_FIN_WAIT1:
	case TCP_FIN_WAIT2:
	case TCP_CLOSING:
	case TCP_LAST_ACK:
	case TCP_TIME_WAIT:
		return tp->snd_nxt == tp->write_seq;
	}
	return false;
}

/* The unique payload sent: retransmissions count once. Neither SYN nor FIN is in
 * bytes_sent, but packets that this host itself dropped are, once per attempt;
 * so the sequence numbers bound it, which count SYN and FIN as a byte. */
static __always_inline u64 payload_sent(struct tcp_sock *tp, struct sock_state *st, int state)
{
	u64 sent = tp->bytes_sent - tp->bytes_retrans - st->origin_tx;
	u64 extra = (st->role == ROLE_CLIENT) + fin_sent(tp, state);
	u64 bound = tp->bytes_acked + (u32)(tp->snd_nxt - tp->snd_una);

	if (st->origin_tx)
		return sent;
	bound = bound > extra ? bound - extra : 0;
	return sent < bound ? sent : bound;
}

/* bytes_received follows rcv_nxt and so counts the peer's FIN as a byte. */
static __always_inline u64 payload_received(struct sock *sk, struct tcp_sock *tp)
{
	u64 n = tp->bytes_received;

	return n && fin_received(sk) ? n - 1 : n;
}

/* Takes a 32-bit counter into its 64-bit extension. The same reading may come
 * twice and a reading may be older than the last one, since nobody holds the
 * socket's lock. */
static __always_inline u64 extend(u64 old, u32 cur)
{
	u64 v = (old & ~0xffffffffULL) | cur;

	if ((__s32)(cur - (u32)old) < 0)
		return old;
	return v < old ? v + (1ULL << 32) : v;
}

static __always_inline void advance_segs(struct sock_state *st, struct tcp_sock *tp)
{
	st->segs_out = extend(st->segs_out, tp->segs_out);
	st->segs_in = extend(st->segs_in, tp->segs_in);
}

static __always_inline void start(struct sock_state *st, struct sock *sk, u64 now)
{
	st->start_ns = now;
	st->cgroup_id = sk_cgroup_id(sk);
	st->netns = sk->__sk_common.skc_net.net->ns.inum;
	st->base_tx_bytes = 0;
	st->base_rx_bytes = 0;
	st->base_tx_segs = 0;
	st->base_rx_segs = 0;
	st->retrans_reported_ns = 0;
	st->moved_ns = now;
	st->drops = 0;
	st->flags = 0;
	st->reported_state = 0;
	st->closed = 0;
	st->err = 0;
}

static __always_inline void set_ends(struct tcp_record *r, struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET) {
		addr_set_v4(&r->local, sk->__sk_common.skc_rcv_saddr);
		addr_set_v4(&r->remote, sk->__sk_common.skc_daddr);
	} else {
		r->local.w[0] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		r->local.w[1] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		r->local.w[2] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		r->local.w[3] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3];
		r->remote.w[0] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0];
		r->remote.w[1] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1];
		r->remote.w[2] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2];
		r->remote.w[3] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
	}
}

/* state is the socket's, or the last one before CLOSE. */
static __always_inline void fill(struct tcp_record *r, struct sock *sk, struct tcp_sock *tp,
				 struct sock_state *st, int state)
{
	bool fin = fin_received(sk);

	r->now_ns = bpf_ktime_get_boot_ns();
	r->start_ns = st->start_ns;
	r->syn_ns = st->syn_ns;
	r->established_ns = st->established_ns;
	r->cgroup_id = st->cgroup_id;
	r->tx_bytes = payload_sent(tp, st, state);
	r->rx_bytes = payload_received(sk, tp) - st->origin_rx;
	r->tx_segs = st->segs_out - st->origin_out;
	r->rx_segs = st->segs_in - st->origin_in;
	r->base_tx_bytes = st->base_tx_bytes;
	r->base_rx_bytes = st->base_rx_bytes;
	r->base_tx_segs = st->base_tx_segs;
	r->base_rx_segs = st->base_rx_segs;
	r->acked_bytes = tp->bytes_acked;
	r->retrans_bytes = tp->bytes_retrans;
	set_ends(r, sk);
	r->pid = st->pid;
	r->netns = st->netns;
	r->retrans = tp->total_retrans;
	r->srtt_us = tp->srtt_us;
	r->rtt_min_us = tp->rtt_min.s[0].v;
	r->cwnd = tp->snd_cwnd;
	r->drops = 0;
	r->backlog = 0;
	r->max_backlog = 0;
	/* skc_num is already zero when a socket without a bound port closes. */
	r->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	r->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	r->err = sk->sk_err ? sk->sk_err : st->err;
	r->role = st->role;
	r->flags = st->flags | (fin ? FLAG_FIN_RECEIVED : 0);
	__builtin_memset(r->pad, 0, sizeof(r->pad));
	__builtin_memcpy(r->comm, st->comm, sizeof(r->comm));
}

static __always_inline void submit(struct tcp_record *r)
{
	bpf_ringbuf_submit(r, wake_flags(&tcp_ring, wake_bytes, WAKE_WINDOW));
}

/* Puts a record into the ring. */
static __always_inline void emit(struct sock *sk, struct tcp_sock *tp, struct sock_state *st,
				 int oldstate, int newstate)
{
	struct tcp_record *r = bpf_ringbuf_reserve(&tcp_ring, sizeof(*r), 0);

	if (!r) {
		if (newstate == TCP_CLOSE) /* all else is read again */
			count(STAT_RING_FULL);
		return;
	}
	fill(r, sk, tp, st, oldstate);
	r->state = newstate;
	r->old_state = oldstate;
	if (newstate == TCP_CLOSE)
		r->flags |= FLAG_FINAL;
	submit(r);
}

struct mptcp_sock {
	struct sock *first;
} __core;

/* The TCP socket within a multipath one, which only bpf_probe_read may look into. */
static __always_inline struct sock *within(struct sock *sk)
{
	if (sk->sk_protocol != IPPROTO_MPTCP || !bpf_core_field_exists(struct mptcp_sock, first))
		return 0;
	return BPF_CORE_READ((struct mptcp_sock *)sk, first);
}

/* What a listener dropped: its queues were full or memory was short. The kernel
 * counts more here, see listenDrops in drops.go. */
static __always_inline u32 sk_drops(struct sock *sk)
{
	struct sock *tcp = within(sk);

	if (!bpf_core_field_exists(struct sock, sk_drops.counter))
		return 0;
	return tcp ? BPF_CORE_READ(tcp, sk_drops.counter) : sk->sk_drops.counter;
}

/* r is all zero. */
static __always_inline void fill_listener(struct tcp_record *r, struct sock *sk,
					  struct sock_state *st, u32 drops)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct sock *tcp = within(sk);

	r->now_ns = bpf_ktime_get_boot_ns();
	r->cgroup_id = sk_cgroup_id(sk);
	set_ends(r, sk);
	r->pid = st->pid;
	r->netns = sk->__sk_common.skc_net.net->ns.inum;
	r->drops = drops;
	r->backlog = tcp ? BPF_CORE_READ(tcp, sk_ack_backlog) : sk->sk_ack_backlog;
	r->max_backlog = tcp ? BPF_CORE_READ(tcp, sk_max_ack_backlog) : sk->sk_max_ack_backlog;
	/* skc_num is zero already when a TCP socket closes */
	r->local_port = tp ? bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport) : sk->__sk_common.skc_num;
	r->state = TCP_LISTEN;
	r->role = st->role;
	__builtin_memcpy(r->comm, st->comm, sizeof(r->comm));
}

/* What a listener dropped after the last pass. A pass at this very moment tells the
 * same. */
static __always_inline void on_unlisten(struct sock *sk, struct sock_state *st)
{
	u32 drops = sk_drops(sk);
	struct tcp_record *r;

	if (drops == st->drops)
		return;
	r = bpf_ringbuf_reserve(&tcp_ring, sizeof(*r), 0);
	if (!r) {
		count(STAT_RING_FULL);
		return;
	}
	__builtin_memset(r, 0, sizeof(*r));
	fill_listener(r, sk, st, drops - st->drops);
	submit(r);
	st->drops = drops;
}

static __always_inline struct sock_state *state_of(struct sock *sk)
{
	return bpf_sk_storage_get(&tcp_socks, sk, 0, 0);
}

static __always_inline struct sock_state *make_state(struct sock *sk)
{
	struct sock_state *st = bpf_sk_storage_get(&tcp_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!st)
		count(STAT_STORAGE_FULL);
	return st;
}

/* A connection is being made by the current process. */
static __always_inline void on_connect(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	u64 now = bpf_ktime_get_boot_ns();
	struct sock_state *st;

	if (!tp || !is_ours(sk))
		return;
	st = make_state(sk);
	if (!st)
		return;
	start(st, sk, now);
	st->syn_ns = now;
	st->established_ns = 0;
	st->role = ROLE_CLIENT;
	st->segs_out = st->origin_out = tp->segs_out;
	st->segs_in = st->origin_in = tp->segs_in;
	st->origin_tx = tp->bytes_sent - tp->bytes_retrans;
	st->origin_rx = tp->bytes_received;
	set_owner(st, bpf_get_current_task_btf());
}

/* See seed_multipath. */
static __always_inline void owner_by_port(struct sock_state *st, struct sock *sk)
{
	struct listener l = { .netns = st->netns, .port = sk->__sk_common.skc_num };
	struct owner *o = bpf_map_lookup_elem(&tcp_listeners, &l);

	if (!o)
		return;
	st->pid = o->pid;
	__builtin_memcpy(st->comm, o->comm, sizeof(st->comm));
}

/* The handshake is done. On the server's side this is the first that is seen
 * of the new socket; its record was cloned from the listener's. */
static __always_inline void on_established(struct sock *sk, int oldstate)
{
	struct sock_state *st = state_of(sk);

	/* Where both ends connect at the same time, SYN_RECV comes between. */
	if (oldstate == TCP_SYN_SENT || (st && st->role == ROLE_CLIENT)) {
		if (st) {
			st->established_ns = bpf_ktime_get_boot_ns();
			st->err = 0;
		}
		return;
	}
	if (!st && !is_ours(sk))
		return;
	st = make_state(sk);
	if (!st)
		return;
	start(st, sk, bpf_ktime_get_boot_ns());
	st->established_ns = st->start_ns;
	st->syn_ns = 0;
	st->role = ROLE_SERVER;
	st->segs_out = st->origin_out = 0;
	st->segs_in = st->origin_in = 0;
	st->origin_tx = 0;
	st->origin_rx = 0;
	if (!st->pid)
		owner_by_port(st, sk);
}

static __always_inline void on_listen(struct sock *sk)
{
	struct sock_state *st;

	if (!is_ours(sk))
		return;
	st = make_state(sk);
	if (!st)
		return;
	st->role = ROLE_LISTENER;
	st->start_ns = 0;
	st->drops = sk_drops(sk);
	set_owner(st, bpf_get_current_task_btf());
}

/* close() and shutdown() run in the process that uses the socket. That may be
 * another than the listener's: a worker, or a child that was handed it. */
static __always_inline void on_local_close(struct sock *sk)
{
	struct sock_state *st = state_of(sk);
	struct task_struct *task;

	if (!st || st->role != ROLE_SERVER)
		return;
	task = bpf_get_current_task_btf();
	/* Multipath sockets are closed by a kernel thread. */
	if (task->tgid && task->tgid != st->pid && !(task->flags & PF_KTHREAD))
		set_owner(st, task);
}

/* A socket that was open before the agent: its past traffic is part of its
 * totals but not of what is counted from now on. */
static __always_inline void adopt(struct sock_state *st, struct sock *sk, struct tcp_sock *tp)
{
	u8 state = sk->__sk_common.skc_state;

	start(st, sk, bpf_ktime_get_boot_ns());
	st->flags = FLAG_PREEXISTING;
	st->segs_out = tp->segs_out;
	st->segs_in = tp->segs_in;
	/* Only the side that connected has had its SYN acknowledged as a byte
	 * of bytes_acked; the difference tells while no FIN has been sent. */
	if (state == TCP_SYN_SENT) {
		st->role = ROLE_CLIENT;
	} else if (state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT) {
		u64 extra = tp->bytes_acked + (u32)(tp->snd_nxt - tp->snd_una) -
			    (tp->bytes_sent - tp->bytes_retrans);

		st->role = extra == 1 ? ROLE_CLIENT : extra == 0 ? ROLE_SERVER : ROLE_UNKNOWN;
	}
	st->base_tx_bytes = payload_sent(tp, st, state);
	st->base_rx_bytes = payload_received(sk, tp);
	st->base_tx_segs = st->segs_out;
	st->base_rx_segs = st->segs_in;
}

static __always_inline void on_close(struct sock *sk, int oldstate)
{
	struct sock_state *st;
	struct tcp_sock *tp;

	if (oldstate == TCP_CLOSE)
		return;
	st = state_of(sk);
	if (oldstate == TCP_LISTEN) {
		if (st && st->role == ROLE_LISTENER)
			on_unlisten(sk, st);
		return;
	}
	/* A socket that the handshake never finished for, unless both ends
	 * connected at the same time. */
	if (oldstate == TCP_SYN_RECV && (!st || !st->start_ns))
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	if (!st || !st->start_ns) {
		/* Older than the agent and held by no file, so the seeding
		 * missed it. */
		if (!is_ours(sk))
			return;
		st = make_state(sk);
		if (!st)
			return;
		adopt(st, sk, tp);
	}
	if (st->closed)
		return;
	/* An ICMP message that came while the program was in connect() only left this. */
	if (oldstate == TCP_SYN_SENT && !st->err)
		st->err = sk->sk_err_soft;
	advance_segs(st, tp);
	emit(sk, tp, st, oldstate, TCP_CLOSE);
	st->closed = 1;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_set_state, struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	switch (newstate) {
	case TCP_SYN_SENT:
		on_connect(sk);
		break;
	case TCP_ESTABLISHED:
		on_established(sk, oldstate);
		break;
	case TCP_LISTEN:
		on_listen(sk);
		break;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		/* With TCP Fast Open a server may be done before the handshake is. */
		if (oldstate == TCP_SYN_RECV)
			on_established(sk, oldstate);
		on_local_close(sk);
		break;
	case TCP_CLOSE:
		on_close(sk, oldstate);
		break;
	}
	return 0;
}

/* Retransmissions show at once, at most one record per socket and second; the
 * count itself is the socket's own. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit, struct sock *sk)
{
	struct sock_state *st = state_of(sk);
	struct tcp_sock *tp;
	u64 now;

	if (!st || !st->start_ns || st->closed)
		return 0;
	now = bpf_ktime_get_boot_ns();
	if (st->retrans_reported_ns && now - st->retrans_reported_ns < 1000000000ULL)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	st->retrans_reported_ns = now;
	advance_segs(st, tp);
	emit(sk, tp, st, sk->__sk_common.skc_state, sk->__sk_common.skc_state);
	return 0;
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_send_reset, struct sock *sk)
{
	/* NULL for a packet that met no socket; a listener's, a request's or a
	 * closed socket's reset is not part of a connection either. */
	struct sock_state *st = sk ? state_of(sk) : 0;

	if (st && st->start_ns && !st->closed)
		st->flags |= FLAG_RESET_SENT;
	else if (!st || !st->closed)
		count(STAT_RESETS_UNMATCHED);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_receive_reset, struct sock *sk)
{
	struct sock_state *st = state_of(sk);

	if (st)
		st->flags |= FLAG_RESET_RECEIVED;
	return 0;
}

/* Older kernels report a connection's error before they close the socket, and a
 * quick program may have taken it away by then. */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(tcp_error, struct sock *sk)
{
	int err = sk->sk_err;
	struct sock_state *st;

	if (!err || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (sk->__sk_common.skc_state != TCP_SYN_SENT && err != ETIMEDOUT)
		return 0;
	st = state_of(sk);
	if (st)
		st->err = err;
	return 0;
}

/* What a program that asks for the error of its connection is told, and thereby takes
 * from the socket. No answer is changed: where this copy of one is only a part of it, or
 * the call failed, the kernel must not write it back, nor fail for its size, which an
 * optlen of 0 tells it. */
SEC("cgroup/getsockopt")
int tcp_asked(struct bpf_sockopt *ctx)
{
	int *err = ctx->optval;
	struct bpf_sock *sk = ctx->sk;
	struct sock_state *st;

	if (ctx->retval || (__u64)ctx->optlen > (__u64)(ctx->optval_end - ctx->optval)) {
		ctx->optlen = 0;
		return 1;
	}
	if (ctx->level != SOL_SOCKET || ctx->optname != SO_ERROR || (void *)(err + 1) > ctx->optval_end || !*err)
		return 1;
	if (!sk || sk->protocol != IPPROTO_TCP || sk->state != TCP_SYN_SENT)
		return 1;
	st = bpf_sk_storage_get(&tcp_socks, sk, 0, 0);
	if (st)
		st->err = *err;
	return 1;
}

/* Adds a socket to what its cgroup has. Of a connection that is being made only the
 * client's side is a socket yet. A multipath connection counts once per path. */
static __always_inline void tally(struct sock_state *st, u8 state)
{
	struct tcp_count zero = {}, *c;
	u64 id = st->cgroup_id; /* Linux 6.1 takes no key from the iterator's value */

	if (!count_sockets || st->counted_ns == pass_ns)
		return; /* a socket may come twice in a pass */
	st->counted_ns = pass_ns;
	if (state != TCP_ESTABLISHED && state != TCP_SYN_SENT && state != TCP_CLOSE_WAIT &&
	    state != TCP_FIN_WAIT2)
		return;
	c = bpf_map_lookup_elem(&tcp_counts, &id);
	if (!c) {
		bpf_map_update_elem(&tcp_counts, &id, &zero, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&tcp_counts, &id);
		if (!c) {
			count(STAT_SOCKETS_UNCOUNTED);
			return;
		}
	}
	if (c->pass_ns != pass_ns) {
		*c = zero;
		c->pass_ns = pass_ns;
	}
	if (state == TCP_ESTABLISHED) {
		c->established++;
		/* One that began during this pass has moved after its begin. */
		c->idle += (__s64)(pass_ns - st->moved_ns) >= (__s64)idle_ns;
	} else if (state == TCP_SYN_SENT) {
		c->half_open++;
	} else {
		c->half_closed++;
	}
}

/* A socket that is shown again since the page was full is only told of once: what
 * was told is noted after it has been written. */
static __always_inline void sample_listener(struct seq_file *seq, struct sock *sk,
					    struct sock_state *st, struct tcp_record *r)
{
	u32 drops = sk_drops(sk);

	if (drops == st->drops || sk->__sk_common.skc_state != TCP_LISTEN)
		return;
	fill_listener(r, sk, st, drops - st->drops);
	if (!bpf_seq_write(seq, r, sizeof(*r)))
		st->drops = drops;
}

/* Writes a tracked socket's record if it changed since the last pass. */
static __always_inline void sample(struct seq_file *seq, struct sock *sk, struct sock_state *st)
{
	struct tcp_record r = {};
	struct tcp_sock *tp;
	bool moved;
	u8 state;

	if (st->role == ROLE_LISTENER) {
		sample_listener(seq, sk, st, &r);
		return;
	}
	if (!st->start_ns || st->closed)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	state = sk->__sk_common.skc_state;
	advance_segs(st, tp);
	moved = st->segs_out - st->origin_out != st->base_tx_segs ||
		st->segs_in - st->origin_in != st->base_rx_segs;
	if (moved)
		st->moved_ns = pass_ns;
	tally(st, state);
	if (state == st->reported_state && !moved)
		return;
	fill(&r, sk, tp, st, state);
	r.state = state;
	r.old_state = st->reported_state;
	if (bpf_seq_write(seq, &r, sizeof(r)))
		return; /* the page is full: this socket comes again */
	st->reported_state = state;
	st->base_tx_bytes = r.tx_bytes;
	st->base_rx_bytes = r.rx_bytes;
	st->base_tx_segs = r.tx_segs;
	st->base_rx_segs = r.rx_segs;
}

/* One pass over all tracked sockets of all network namespaces. */
SEC("iter/bpf_sk_storage_map")
int tcp_sample(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock_state *st = ctx->value;
	struct sock *sk = ctx->sk;

	if (sk && st)
		sample(ctx->meta->seq, sk, st);
	return 0;
}

/* The record of a multipath listener that has none within, or none that can be reached:
 * of one older than the agent, or found by its file. It is beside the outer socket. */
static __always_inline struct sock_state *multipath_listener(struct sock *sk, struct task_struct *task)
{
	struct sock_state *st;

	if (sk->__sk_common.skc_state != TCP_LISTEN || !is_ours(sk))
		return 0;
	st = make_state(sk);
	if (!st || st->role == ROLE_LISTENER)
		return st;
	st->role = ROLE_LISTENER;
	set_owner(st, task);
	return st;
}

/* The same by way of open files, for kernels that are kept from the iterator above. A
 * socket that several processes hold comes more than once in a pass, one that none
 * holds does not come. */
SEC("iter/task_file")
int tcp_sample_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of_file(ctx);
	struct sock_state *st;

	if (!task || !sk)
		return 0;
	st = sk->sk_protocol == IPPROTO_TCP ? state_of(sk) :
	     sk->sk_protocol == IPPROTO_MPTCP ? multipath_listener(sk, task) : 0;
	if (st)
		sample(ctx->meta->seq, sk, st);
	return 0;
}

/* A file may hold a multipath socket, as those of Go's listeners do. The TCP
 * socket within it cannot be given a record here, so the owner of a listener is
 * noted under its port instead, for what it accepts. */
static __always_inline int seed_multipath(struct sock *sk, struct task_struct *task)
{
	struct listener l = {};
	struct sock_state *st;
	struct owner o = {};

	if (sk->__sk_common.skc_state != TCP_LISTEN)
		return 0;
	st = multipath_listener(sk, task);
	if (st)
		st->drops = sk_drops(sk);
	l.netns = sk->__sk_common.skc_net.net->ns.inum;
	l.port = sk->__sk_common.skc_num;
	o.pid = task->tgid;
	bpf_probe_read_kernel(o.comm, sizeof(o.comm), task->group_leader->comm);
	bpf_map_update_elem(&tcp_listeners, &l, &o, BPF_ANY);
	return 0;
}

/* Run once at start, after the others are attached: takes in the sockets that
 * are already open, with their owners. */
SEC("iter/task_file")
int tcp_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of_file(ctx);
	struct sock_state *st;
	struct tcp_sock *tp;
	u8 state;

	if (!task || !sk)
		return 0;
	if (sk->sk_protocol == IPPROTO_MPTCP)
		return seed_multipath(sk, task);
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	state = sk->__sk_common.skc_state;
	if (state == TCP_CLOSE)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || !is_ours(sk))
		return 0;
	st = make_state(sk);
	if (!st || st->pid)
		return 0;
	if (!st->start_ns) {
		if (state == TCP_LISTEN) {
			st->role = ROLE_LISTENER;
			st->drops = sk_drops(sk);
		} else {
			adopt(st, sk, tp);
		}
	}
	set_owner(st, task);
	return 0;
}
