//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TCP flows from the kernel's own per-socket counters. Nothing here runs per
 * packet: a program that the kernel tells of a connection's steps keeps a small
 * record beside each socket and reports its end, an iterator reads the counters of
 * all tracked sockets at each interval.
 *
 * The steps come from sock_ops at the cgroup2 root, which misses none: it runs under
 * the socket's lock. Tracing programs do miss some, see probe.Tracing; one of these
 * follows the sockets that were there before sock_ops was, and all of them where
 * there is no cgroup2.
 */
#include "cgroup.h"
#include "count.h"
#include "owner.h"
#include "part.h"
#include "ring.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ETIMEDOUT 110

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
	FLAG_TOLD = 32, /* a pass has reported before that it is established */
};

/* What is kept beside each socket. A listener's record is cloned to the sockets
 * that it accepts, and names their owner. */
struct sock_state {
	u64 start_ns; /* boot time; 0: not yet a connection */
	u64 syn_ns;
	u64 established_ns;
	u64 cgroup_id; /* of the process that connected, listens or closed; or the socket's */
	/* The socket's segment counters, extended to 64 bits at each reading. */
	u64 segs_out, segs_in;
	/* Counters at the start: a socket may be connected again. */
	u64 origin_tx, origin_rx, origin_out, origin_in;
	/* Totals at the last report by the iterator. */
	u64 base_tx_bytes, base_rx_bytes, base_tx_segs, base_rx_segs;
	u64 retrans_reported_ns;
	u32 base_retrans;
	u32 pid;
	u32 netns;
	u8 comm[16];
	u8 role;
	u8 flags;
	u8 reported_state; /* 0: never reported */
	u8 closed;
	u8 counted; /* the pass in which it was counted as traced */
	u8 pad;
	u16 err; /* as reported, should the program take it before the close */
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
	u32 retrans, base_retrans;
	u32 srtt_us;
	u32 rtt_min_us;
	u32 cwnd;
	u16 local_port, remote_port; /* host order */
	u16 err;
	u8 state;
	u8 old_state;
	u8 role;
	u8 flags;
	u8 pad[2];
	u8 comm[16];
};

struct tcp_sum_key {
	u64 cgroup_id;
	u64 loopback;
};

/* What final records would have added for which the ring had no room. */
struct tcp_sum {
	u64 start_ns, last_ns; /* boot time */
	u64 tx_bytes, rx_bytes, tx_segs, rx_segs, retrans;
};

enum tcp_stat {
	STAT_RING_FULL,
	STAT_SUMS_FULL,
	STAT_STORAGE_FULL,
	STAT_MAX,
};

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct tcp_record record;
	struct tcp_sum_key sum_key;
	struct tcp_sum sum;
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

/* Owners of listeners that are older than the agent and are not plain TCP. The ones
 * looked up least make room; nothing says when a listener goes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct listener);
	__type(value, struct owner);
} tcp_listeners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tcp_sum_key);
	__type(value, struct tcp_sum);
} tcp_sums SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} tcp_ring SEC(".maps");

DEFINE_STATS(tcp_stats)

/* Bytes waiting in the ring at which the reader is woken at once. */
volatile const u64 wake_bytes = 1 << 20;
#define WAKE_WINDOW (16 * sizeof(struct tcp_record))

/* sock_ops is attached. */
volatile const bool have_ops = false;

/* Sockets that began to listen. */
volatile u64 listens;

/* Connections seen in the latest pass of which a tracing program tells, not sock_ops. */
volatile u64 traced;
/* The latest pass. A socket may come more than once in one. */
volatile u8 pass;
/* Ends of such that were told. */
volatile u64 traced_ends;

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

static __always_inline void set_owner_current(struct sock_state *st)
{
	struct owner o;

	if (!owner_current(&o))
		return;
	st->cgroup_id = o.cgroup_id;
	st->pid = o.pid;
	__builtin_memcpy(st->comm, o.comm, sizeof(st->comm));
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

/* bytes_received follows rcv_nxt and so counts the peer's FIN as a byte. It does so just
 * before the flag is set, and most readings hold no lock: fin has to be read after
 * received. Then a reading between the two has a byte less than there is, which the next
 * one adds, and never a byte more, which nothing could take back. */
static __always_inline u64 payload_of(u64 received, bool fin)
{
	return received && fin ? received - 1 : received;
}

static __always_inline u64 payload_received(struct sock *sk, struct tcp_sock *tp)
{
	u64 received = tp->bytes_received;

	barrier();
	return payload_of(received, fin_received(sk));
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

/* cgroup_id stays as it is. */
static __always_inline void start(struct sock_state *st, struct sock *sk, u64 now)
{
	st->start_ns = now;
	st->netns = sk->__sk_common.skc_net.net->ns.inum;
	st->base_tx_bytes = 0;
	st->base_rx_bytes = 0;
	st->base_tx_segs = 0;
	st->base_rx_segs = 0;
	st->base_retrans = 0;
	st->retrans_reported_ns = 0;
	st->flags = 0;
	st->reported_state = 0;
	st->closed = 0;
	st->err = 0;
}

static __always_inline void set_ends(struct sock *sk, union addr *local, union addr *remote)
{
	if (sk->__sk_common.skc_family == AF_INET) {
		addr_set_v4(local, sk->__sk_common.skc_rcv_saddr);
		addr_set_v4(remote, sk->__sk_common.skc_daddr);
		return;
	}
	/* Not there where the kernel is built without IPv6. */
	if (!bpf_core_field_exists(struct sock_common, skc_v6_daddr))
		return;
	local->w[0] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[0];
	local->w[1] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[1];
	local->w[2] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[2];
	local->w[3] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3];
	remote->w[0] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0];
	remote->w[1] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1];
	remote->w[2] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2];
	remote->w[3] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
}

static __always_inline bool is_loopback(union addr *a)
{
	if (a->d[0])
		return false;
	if (a->w[2] == bpf_htonl(0xffff)) /* IPv4 */
		return a->b[12] == 127;
	return !a->w[2] && a->w[3] == bpf_htonl(1);
}

/* state is the socket's, or the last one before CLOSE. */
static __always_inline void fill(struct tcp_record *r, struct sock *sk, struct tcp_sock *tp,
				 struct sock_state *st, int state)
{
	u64 received = tp->bytes_received;
	bool fin;

	barrier();
	r->now_ns = bpf_ktime_get_boot_ns();
	r->start_ns = st->start_ns;
	r->syn_ns = st->syn_ns;
	r->established_ns = st->established_ns;
	r->cgroup_id = st->cgroup_id;
	r->tx_bytes = payload_sent(tp, st, state);
	r->tx_segs = st->segs_out - st->origin_out;
	r->rx_segs = st->segs_in - st->origin_in;
	r->base_tx_bytes = st->base_tx_bytes;
	r->base_rx_bytes = st->base_rx_bytes;
	r->base_tx_segs = st->base_tx_segs;
	r->base_rx_segs = st->base_rx_segs;
	r->acked_bytes = tp->bytes_acked;
	r->retrans_bytes = tp->bytes_retrans;
	set_ends(sk, &r->local, &r->remote);
	r->pid = st->pid;
	r->netns = st->netns;
	r->retrans = tp->total_retrans;
	r->base_retrans = st->base_retrans;
	r->srtt_us = tp->srtt_us;
	r->rtt_min_us = tp->rtt_min.s[0].v;
	r->cwnd = tp->snd_cwnd;
	/* skc_num is already zero when a socket without a bound port closes. */
	r->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	r->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	r->err = sk->sk_err ? sk->sk_err : st->err;
	r->role = st->role;
	fin = fin_received(sk); /* see payload_of */
	r->rx_bytes = payload_of(received, fin) - st->origin_rx;
	r->flags = st->flags | (fin ? FLAG_FIN_RECEIVED : 0);
	__builtin_memset(r->pad, 0, sizeof(r->pad));
	__builtin_memcpy(r->comm, st->comm, sizeof(r->comm));
}

/* The ring has no room for a final record: what it would have added is kept. */
static __always_inline void add_sum(struct sock *sk, struct tcp_sock *tp, struct sock_state *st,
				    int oldstate)
{
	struct tcp_sum first = { .start_ns = bpf_ktime_get_boot_ns() }, *sum;
	struct tcp_sum_key k = { .cgroup_id = st->cgroup_id };
	u64 tx = payload_sent(tp, st, oldstate), rx = payload_received(sk, tp) - st->origin_rx;
	union addr local, remote;

	count(STAT_RING_FULL);
	set_ends(sk, &local, &remote);
	k.loopback = is_loopback(&local) || is_loopback(&remote) || same_addr(&local, &remote);
	sum = bpf_map_lookup_elem(&tcp_sums, &k);
	if (!sum) {
		bpf_map_update_elem(&tcp_sums, &k, &first, BPF_NOEXIST);
		sum = bpf_map_lookup_elem(&tcp_sums, &k);
	}
	if (!sum) {
		count(STAT_SUMS_FULL);
		return;
	}
	/* A reading may be older than the last one. */
	__sync_fetch_and_add(&sum->tx_bytes, tx > st->base_tx_bytes ? tx - st->base_tx_bytes : 0);
	__sync_fetch_and_add(&sum->rx_bytes, rx > st->base_rx_bytes ? rx - st->base_rx_bytes : 0);
	__sync_fetch_and_add(&sum->tx_segs, st->segs_out - st->origin_out - st->base_tx_segs);
	__sync_fetch_and_add(&sum->rx_segs, st->segs_in - st->origin_in - st->base_rx_segs);
	__sync_fetch_and_add(&sum->retrans, tp->total_retrans - st->base_retrans);
	sum->last_ns = first.start_ns;
}

/* Puts a record into the ring. */
static __always_inline void emit(struct sock *sk, struct tcp_sock *tp, struct sock_state *st,
				 int oldstate, int newstate)
{
	struct tcp_record *r = bpf_ringbuf_reserve(&tcp_ring, sizeof(*r), 0);

	if (!r) {
		if (newstate == TCP_CLOSE) /* all else is read again */
			add_sum(sk, tp, st, oldstate);
		return;
	}
	fill(r, sk, tp, st, oldstate);
	r->state = newstate;
	r->old_state = oldstate;
	if (newstate == TCP_CLOSE)
		r->flags |= FLAG_FINAL;
	bpf_ringbuf_submit(r, wake_flags(&tcp_ring, wake_bytes, WAKE_WINDOW));
}

/* sk is a struct sock, or in sock_ops a struct bpf_sock. */
static __always_inline struct sock_state *state_of(void *sk)
{
	return bpf_sk_storage_get(&tcp_socks, sk, 0, 0);
}

static __always_inline struct sock_state *make_state(void *sk)
{
	struct sock_state *st = bpf_sk_storage_get(&tcp_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!st)
		count(STAT_STORAGE_FULL);
	return st;
}

/* A connection is being made by the current process. */
static __always_inline void begin_connect(struct sock_state *st, struct sock *sk, struct tcp_sock *tp)
{
	u64 now = bpf_ktime_get_boot_ns();

	start(st, sk, now);
	st->cgroup_id = sk_cgroup_id(sk);
	st->syn_ns = now;
	st->established_ns = 0;
	st->role = ROLE_CLIENT;
	st->segs_out = st->origin_out = tp->segs_out;
	st->segs_in = st->origin_in = tp->segs_in;
	st->origin_tx = tp->bytes_sent - tp->bytes_retrans;
	st->origin_rx = tp->bytes_received;
	st->pid = 0;
	__builtin_memset(st->comm, 0, sizeof(st->comm));
}

/* In what follows handle is what a socket's record is found by: the socket in tracing
 * programs, a struct bpf_sock in sock_ops. */
static __always_inline struct sock *sock_of(void *handle, struct tcp_sock *tp, bool in_ops)
{
	return in_ops ? (struct sock *)tp : handle;
}

static __always_inline bool on_connect(void *handle, bool in_ops)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(handle);
	struct sock_state *st;

	if (!tp || (!in_ops && !is_ours(handle)))
		return false;
	st = make_state(handle);
	if (!st)
		return false;
	begin_connect(st, sock_of(handle, tp, in_ops), tp);
	set_owner_current(st);
	return true;
}

/* See seed_multipath. */
static __always_inline void owner_by_port(struct sock_state *st, struct sock *sk)
{
	struct listener l = { .netns = st->netns, .port = sk->__sk_common.skc_num };
	struct owner *o = bpf_map_lookup_elem(&tcp_listeners, &l);

	if (!o)
		return;
	st->cgroup_id = o->cgroup_id;
	st->pid = o->pid;
	__builtin_memcpy(st->comm, o->comm, sizeof(st->comm));
}

/* The first that is seen of a socket that a listener has made; its record was cloned
 * from the listener's. */
static __always_inline void begin_accepted(struct sock_state *st, struct sock *sk)
{
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
	if (!st->cgroup_id)
		st->cgroup_id = sk_cgroup_id(sk);
}

/* The handshake is done. */
static __always_inline void on_established(struct sock *sk, int oldstate)
{
	struct sock_state *st = state_of(sk);

	/* Where both ends connect at the same time, SYN_RECV comes between. */
	if (oldstate == TCP_SYN_SENT || (st && st->role == ROLE_CLIENT)) {
		if (st)
			st->established_ns = bpf_ktime_get_boot_ns();
		return;
	}
	if (!st && !is_ours(sk))
		return;
	st = make_state(sk);
	if (st)
		begin_accepted(st, sk);
}

static __always_inline void on_listen(void *handle, bool in_ops)
{
	struct sock_state *st;

	if (!in_ops && !is_ours(handle))
		return;
	st = make_state(handle);
	if (!st)
		return;
	st->role = ROLE_LISTENER;
	st->start_ns = 0;
	set_owner_current(st);
	__sync_fetch_and_add(&listens, 1);
}

/* close() and shutdown() run in the process that uses the socket. That may be
 * another than the listener's: a worker, or a child that was handed it. In SYN_RECV
 * they only leave a note, and the step is made by an interrupt. */
static __always_inline void on_local_close(void *handle, int oldstate)
{
	struct sock_state *st;

	if (oldstate == TCP_SYN_RECV)
		return;
	st = state_of(handle);
	if (st && st->role == ROLE_SERVER)
		set_owner_current(st);
}

/* A socket that was open before the agent: its past traffic is part of its
 * totals but not of what is counted from now on. */
static __always_inline void adopt(struct sock_state *st, struct sock *sk, struct tcp_sock *tp)
{
	u8 state = sk->__sk_common.skc_state;

	start(st, sk, bpf_ktime_get_boot_ns());
	st->cgroup_id = sk_cgroup_id(sk);
	st->flags = FLAG_PREEXISTING;
	st->segs_out = tp->segs_out;
	st->segs_in = tp->segs_in;
	/* Only the side that connected has had its SYN acknowledged as a byte
	 * of bytes_acked, either its FIN. Where this host itself has dropped packets,
	 * bytes_sent has them more than once, and nothing tells. */
	if (state == TCP_SYN_SENT) {
		st->role = ROLE_CLIENT;
	} else {
		u64 extra = tp->bytes_acked + (u32)(tp->snd_nxt - tp->snd_una) -
			    (tp->bytes_sent - tp->bytes_retrans) - fin_sent(tp, state);

		st->role = extra == 1 ? ROLE_CLIENT : extra == 0 ? ROLE_SERVER : ROLE_UNKNOWN;
	}
	st->base_tx_bytes = payload_sent(tp, st, state);
	st->base_rx_bytes = payload_received(sk, tp);
	st->base_tx_segs = st->segs_out;
	st->base_rx_segs = st->segs_in;
	st->base_retrans = tp->total_retrans;
}

/* The socket's last reading. st is that of a connection. */
static __always_inline void finish(struct sock *sk, struct tcp_sock *tp, struct sock_state *st,
				   int oldstate)
{
	if (st->closed)
		return;
	advance_segs(st, tp);
	emit(sk, tp, st, oldstate, TCP_CLOSE);
	st->closed = 1;
}

/* sock_ops is also told of sockets that another agent, or an earlier one, had
 * followed. */
static __always_inline void on_close(void *handle, int oldstate, bool in_ops)
{
	struct tcp_sock *tp;
	struct sock_state *st;
	struct sock *sk;
	bool retried;

	if (oldstate == TCP_LISTEN || oldstate == TCP_CLOSE)
		return;
	st = state_of(handle);
	/* A socket that the handshake never finished for, unless both ends
	 * connected at the same time. */
	if (oldstate == TCP_SYN_RECV && (!st || !st->start_ns))
		return;
	tp = bpf_skc_to_tcp_sock(handle);
	if (!tp)
		return;
	sk = sock_of(handle, tp, in_ops);
	/* Another attempt by the same socket, which sock_ops was not told of:
	 * connect() failed before, as no port is free, or the address is not one to
	 * connect to. */
	retried = have_ops && oldstate == TCP_SYN_SENT &&
		  (in_ops ? st && st->closed : !st || !st->start_ns || st->closed);
	if (!st || !st->start_ns || retried) {
		if (!in_ops && !is_ours(sk))
			return;
		st = make_state(handle);
		if (!st)
			return;
		if (retried) {
			begin_connect(st, sk, tp);
			set_owner_current(st);
		} else {
			/* Older than the agent and held by no file, so the
			 * seeding missed it. */
			adopt(st, sk, tp);
		}
	} else if (!in_ops && have_ops && !st->closed) {
		__sync_fetch_and_add(&traced_ends, 1);
	}
	finish(sk, tp, st, oldstate);
}

/* A retransmission shows at once, at most one record per socket and second; the count
 * itself is the socket's own. While the ring fills it waits for the next pass: the room
 * is for final records, which nothing repeats. */
static __always_inline void resent(struct sock *sk, struct tcp_sock *tp, struct sock_state *st)
{
	u64 now;

	if (!st || !st->start_ns || st->closed)
		return;
	now = bpf_ktime_get_boot_ns();
	if (st->retrans_reported_ns && now - st->retrans_reported_ns < 1000000000ULL)
		return;
	if (bpf_ringbuf_query(&tcp_ring, BPF_RB_AVAIL_DATA) > wake_bytes)
		return;
	st->retrans_reported_ns = now;
	advance_segs(st, tp);
	emit(sk, tp, st, sk->__sk_common.skc_state, sk->__sk_common.skc_state);
}

#define FOLLOWED (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG)

/* sock_ops is told what happens to the socket. */
static __always_inline bool is_followed(struct tcp_sock *tp)
{
	return have_ops && (tp->bpf_sock_ops_cb_flags & FOLLOWED) == FOLLOWED;
}

/* What is told to sock_ops is not looked at twice. */
static __always_inline bool is_told(struct sock *sk)
{
	struct tcp_sock *tp;

	if (!have_ops)
		return false;
	tp = bpf_skc_to_tcp_sock(sk);
	return tp && is_followed(tp);
}

/* Whether anything is done at all where a socket comes into a state. */
static __always_inline bool matters(int newstate)
{
	switch (newstate) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		return !have_ops;
	case TCP_ESTABLISHED:
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
	case TCP_CLOSE:
		return true;
	}
	return false;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_set_state, struct sock *sk, int oldstate, int newstate)
{
	if (!matters(newstate) || sk->sk_protocol != IPPROTO_TCP || is_told(sk))
		return 0;
	switch (newstate) {
	case TCP_SYN_SENT:
		on_connect(sk, false);
		break;
	case TCP_ESTABLISHED:
		on_established(sk, oldstate);
		break;
	case TCP_LISTEN:
		on_listen(sk, false);
		break;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		/* With TCP Fast Open a server may be done before the handshake is. */
		if (oldstate == TCP_SYN_RECV)
			on_established(sk, oldstate);
		on_local_close(sk, oldstate);
		break;
	case TCP_CLOSE:
		on_close(sk, oldstate, false);
		break;
	}
	return 0;
}

/* Has the kernel tell of the socket's states and retransmissions from now on. Others
 * may have flags of their own. */
static __always_inline void follow(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | FOLLOWED);
}

static __always_inline void ops_resent(struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (tp)
		resent((struct sock *)tp, tp, state_of(sk));
}

/* A client's handshake is done, or a server's: this one before the state changes, and
 * with TCP Fast Open before the client's answer. */
static __always_inline void ops_established(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct sock_state *st = state_of(sk);
	struct tcp_sock *tp;

	/* Where both ends connect at the same time, both are told as servers are. */
	if (st && st->role == ROLE_CLIENT && st->start_ns && !st->closed) {
		st->established_ns = bpf_ktime_get_boot_ns();
		return;
	}
	if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		return; /* older than the agent, see tcp_seed */
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	st = make_state(sk);
	if (!st)
		return;
	begin_accepted(st, (struct sock *)tp);
	follow(ops);
}

SEC("sockops")
int tcp_ops(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	if (!sk)
		return 1;
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		on_listen(sk, true);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (on_connect(sk, true))
			follow(ops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		ops_established(ops, sk);
		break;
	case BPF_SOCK_OPS_RETRANS_CB:
		ops_resent(sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		switch (ops->args[1]) {
		case TCP_FIN_WAIT1:
		case TCP_LAST_ACK:
			on_local_close(sk, ops->args[0]);
			break;
		case TCP_CLOSE:
			on_close(sk, ops->args[0], true);
			break;
		}
		break;
	}
	return 1;
}

/* Of sockets that sock_ops does not tell of. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (tp && !is_followed(tp))
		resent(sk, tp, state_of(sk));
	return 0;
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_send_reset, struct sock *sk)
{
	/* NULL for a packet that met no socket; a listener's, a request's or a
	 * closed socket's reset is not part of a connection either. From about 6.5 to
	 * 6.12 the verifier believes that sk is not NULL and takes the test away: it
	 * works because bpf_sk_storage_get tests too. Nothing may read sk here. */
	struct sock_state *st = sk ? state_of(sk) : 0;

	if (st && st->start_ns && !st->closed)
		st->flags |= FLAG_RESET_SENT;
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

/* Writes a tracked socket's record if it changed since the last pass. */
static __always_inline void sample(struct seq_file *seq, struct sock *sk, struct sock_state *st)
{
	struct tcp_record r = {};
	struct tcp_sock *tp;
	u8 state;

	if (!st->start_ns || st->closed)
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	state = sk->__sk_common.skc_state;
	if (st->counted != pass && !is_followed(tp)) {
		st->counted = pass;
		traced++;
	}
	advance_segs(st, tp);
	if (state == st->reported_state && st->segs_out - st->origin_out == st->base_tx_segs &&
	    st->segs_in - st->origin_in == st->base_rx_segs)
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
	st->base_retrans = r.retrans;
	if (state != TCP_SYN_SENT)
		st->flags |= FLAG_TOLD;
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

/* The same by way of open files, for kernels that are kept from the iterator above. A
 * socket that several processes hold comes more than once in a pass, one that none
 * holds does not come. */
SEC("iter/task_file")
int tcp_sample_files(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = sock_of_file(ctx);
	struct sock_state *st;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	st = state_of(sk);
	if (st)
		sample(ctx->meta->seq, sk, st);
	return 0;
}

/* A file may hold a multipath socket, as those of Go's listeners do. The TCP
 * socket within it cannot be given a record here, so the owner of a listener is
 * noted under its port instead. */
static __always_inline int seed_multipath(struct sock *sk, struct task_struct *task)
{
	struct listener l = {};
	struct owner o = {};

	if (sk->__sk_common.skc_state != TCP_LISTEN)
		return 0;
	l.netns = sk->__sk_common.skc_net.net->ns.inum;
	l.port = sk->__sk_common.skc_num;
	o.cgroup_id = task_cgroup_id(task);
	o.pid = task->tgid;
	bpf_probe_read_kernel(o.comm, sizeof(o.comm), task->group_leader->comm);
	bpf_map_update_elem(&tcp_listeners, &l, &o, o.pid == 1 ? BPF_NOEXIST : BPF_ANY);
	return 0;
}

/* Whether the task that holds a socket is its owner rather than the one that is known.
 * A service manager makes sockets for others, and keeps some of theirs; one that is
 * held outside the cgroup where it was made has been made for that one. */
static __always_inline bool is_owner(struct sock_state *st, struct sock *sk, struct task_struct *task)
{
	if (!st->pid)
		return true;
	if (task->tgid == 1)
		return false;
	return st->pid == 1 ||
	       (st->cgroup_id == sk_cgroup_id(sk) && task_cgroup_id(task) != st->cgroup_id);
}

/* Run at start, after the others are attached, and now and then: takes in the sockets
 * that are open, with their owners. */
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
	if (!st)
		return 0;
	if (!st->start_ns) {
		if (state == TCP_LISTEN)
			st->role = ROLE_LISTENER;
		else
			adopt(st, sk, tp);
	}
	if (!is_owner(st, sk, task))
		return 0;
	st->cgroup_id = task_cgroup_id(task);
	st->pid = task->tgid;
	bpf_probe_read_kernel(st->comm, sizeof(st->comm), task->group_leader->comm);
	return 0;
}

/* After tcp_seed, in the agent's network namespace: takes in the sockets that no process
 * has open. They are the kernel's own (of network file systems and block devices), the
 * TCP sockets of multipath ones, those that are not accepted yet, and those on their way
 * to another process. */
SEC("iter/tcp")
int tcp_seed_held(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct sock *sk;

	if (!skc)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc); /* none for a request and in TIME_WAIT */
	if (!tp)
		return 0;
	sk = (struct sock *)tp;
	switch (sk->__sk_common.skc_state) {
	case TCP_CLOSE:
	case TCP_LISTEN:
	case TCP_NEW_SYN_RECV:
		return 0;
	}
	if (!is_ours(sk))
		return 0;
	st = make_state(sk);
	if (!st || st->start_ns)
		return 0;
	adopt(st, sk, tp);
	if (st->role == ROLE_SERVER)
		owner_by_port(st, sk);
	return 0;
}
