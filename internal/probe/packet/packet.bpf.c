//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Flows of everything that is not TCP, and of TCP where sockets cannot be read,
 * counted per packet at the cgroup2 root and aggregated here. A packet passes
 * once per endpoint: on the way out before fragmentation, on the way in after
 * reassembly. Every program returns 1: nothing is ever dropped. Messages of DNS,
 * and of nothing else, are copied as well.
 */
#include "count.h"
#include "net.h"
#include "ring.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MAX_OFFSET 0x3fff /* one less than a power of two */

#define MAX_DNS_PORTS 8
/* What is copied of a DNS message at most: as much as fits into an IPv6 packet that
 * is sure to arrive, and over TCP the length that stands before it. */
#define DNS_BYTES 1234

enum role {
	ROLE_UNKNOWN,
	ROLE_CLIENT,
	ROLE_SERVER,
};

enum packet_flag {
	FLAG_LOOPBACK = 1,
	/* Ends of an echo, which share all else on loopback. */
	FLAG_ECHO_CLIENT = 2,
	FLAG_ECHO_SERVER = 4,
};

struct packet_key {
	union addr local, remote;
	u64 cgroup_id;
	u16 local_port, remote_port; /* host order; of an echo, local_port is its id */
	u16 icmp; /* type << 8 | code */
	u8 protocol;
	u8 flags;
};

struct packet_flow {
	u64 start_ns, last_ns; /* boot time */
	u64 tx_bytes, tx_packets, rx_bytes, rx_packets;
	u64 cookie; /* of an echo's socket */
	u32 pid;
	u8 role;
	u8 pad[3];
	u8 comm[16];
};

/* Who made a socket. */
struct owner {
	u32 pid;
	u8 comm[16];
};

/* A DNS message, or what a TCP segment has of one or more. The bytes follow it, and
 * what else is behind them has no meaning. */
struct dns_message {
	u64 time_ns; /* boot time */
	u64 cgroup_id;
	union addr local, remote;
	u32 length; /* of the whole payload */
	u32 copied;
	u32 pid;
	u16 local_port, remote_port;
	u16 segment; /* of several messages in one packet (UDP_SEGMENT), the length of each */
	u8 protocol;
	u8 out;
	u8 flags;
	u8 pad[3];
	u8 comm[16];
};

enum packet_stat {
	STAT_MAP_FULL,
	STAT_UNREADABLE, /* the headers could not be read */
	STAT_DNS_RING_FULL,
	STAT_MAX,
};

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct packet_key key;
	struct packet_flow flow;
	struct dns_message dns;
	enum role role;
	enum packet_flag flag;
	enum packet_stat stat;
};
const struct mirrored *const volatile mirrored = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct packet_key);
	__type(value, struct packet_flow);
} packet_flows SEC(".maps");

/* What comes for entries of packet_flows while they are taken out, see
 * retire_before. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct packet_key);
	__type(value, struct packet_flow);
} packet_late SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct owner);
} packet_owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} dns_ring SEC(".maps");

DEFINE_STATS(packet_stats)

/* Count TCP too, because its sockets cannot be read here. */
volatile const bool count_tcp = false;

/* Where DNS is spoken, in host order; the rest is 0. All 0 to copy nothing. */
volatile const u16 dns_ports[MAX_DNS_PORTS];

/* Bytes waiting in dns_ring at which the reader is woken at once, and how far beyond
 * that it still is. */
volatile const u64 dns_wake_bytes = 1 << 20;
#define DNS_WAKE_WINDOW (32 * (sizeof(struct dns_message) + DNS_BYTES))

/* Boot time less monotonic time, which a suspended machine moves; kept up to
 * date from outside. */
volatile u64 boot_offset;

/* Entries that had no packet after this time are being taken out: nothing is
 * added to them any more, so that their last reading is exact. 0 for none. It is
 * set from outside, which then waits for the programs that may not have seen it.
 * Whoever has seen it adds to entries with a later last_ns only, and never sets
 * that back. */
volatile u64 retire_before;

/* When a flow last had a packet need not be exact: the clock that the kernel
 * itself reads at each tick costs a fifth of the other one. */
static __always_inline u64 coarse_boot_ns(void)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ktime_get_coarse_ns))
		return bpf_ktime_get_coarse_ns() + boot_offset;
	return bpf_ktime_get_boot_ns();
}

/* What the headers of one packet say, beside its key. */
struct packet {
	u32 headers; /* bytes before the payload, repeated in each segment */
	u16 echo_id;
	u8 echo_request, echo_reply;
	u8 tcp_syn; /* SYN without ACK */
};

/* Where a packet has n bytes at offset at, if they are in its linear part, as
 * headers nearly always are: reading there costs no call. */
static __always_inline void *linear(struct __sk_buff *skb, u32 at, u32 n)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	void *from = data + (at & MAX_OFFSET);

	return at <= MAX_OFFSET && from + n <= end ? from : 0;
}

static __always_inline int load(struct __sk_buff *skb, u32 at, void *to, u32 n)
{
	void *from = linear(skb, at, n);

	if (!from)
		return bpf_skb_load_bytes(skb, at, to, n);
	__builtin_memcpy(to, from, n);
	return 0;
}

/* The usual answer at the price of a few loads; false if more must be read. */
static __always_inline bool plain_tcp(struct __sk_buff *skb)
{
	void *h;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		h = linear(skb, 0, sizeof(struct ipv4));
		return h && ((struct ipv4 *)h)->protocol == IPPROTO_TCP;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		h = linear(skb, 0, sizeof(struct ipv6));
		return h && ((struct ipv6 *)h)->next_header == IPPROTO_TCP;
	}
	return false;
}

static __always_inline bool is_dns_port(u16 port)
{
#pragma unroll
	for (int i = 0; i < MAX_DNS_PORTS; i++) {
		if (!dns_ports[i])
			break;
		if (dns_ports[i] == port)
			return true;
	}
	return false;
}

/* Whether a packet of plain_tcp may carry DNS. */
static __always_inline bool tcp_of_dns(struct __sk_buff *skb)
{
	__be16 *ports;
	u8 *h;

	if (!dns_ports[0])
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		h = linear(skb, 0, 1);
		ports = h ? linear(skb, ipv4_header_len(*h), 4) : 0;
	} else {
		ports = linear(skb, sizeof(struct ipv6), 4);
	}
	return !ports || is_dns_port(bpf_ntohs(ports[0])) || is_dns_port(bpf_ntohs(ports[1]));
}

/* A connected UDP socket knows its own address and its peer by the one that it
 * connected to. The packet may carry others where the host translates addresses
 * on the way out, and the two directions would then look like two flows. */
static __always_inline bool socket_ends(struct bpf_sock *sk, struct packet_key *k)
{
	u16 port;

	if (!sk)
		return false;
	port = bpf_ntohs((__be16)sk->dst_port);
	if (!port)
		return false;
	k->local_port = sk->src_port;
	k->remote_port = port;
	if (sk->family == AF_INET) {
		addr_set_v4(&k->local, sk->src_ip4);
		addr_set_v4(&k->remote, sk->dst_ip4);
	} else {
		k->local.w[0] = sk->src_ip6[0];
		k->local.w[1] = sk->src_ip6[1];
		k->local.w[2] = sk->src_ip6[2];
		k->local.w[3] = sk->src_ip6[3];
		k->remote.w[0] = sk->dst_ip6[0];
		k->remote.w[1] = sk->dst_ip6[1];
		k->remote.w[2] = sk->dst_ip6[2];
		k->remote.w[3] = sk->dst_ip6[3];
	}
	return true;
}

static __always_inline bool use_socket_ends(struct bpf_sock *sk, struct packet_key *k)
{
	return k->protocol == IPPROTO_UDP && socket_ends(sk, k);
}

static __always_inline int read_ipv4(struct __sk_buff *skb, struct bpf_sock *sk,
				     struct packet_key *k, struct packet *p, bool *ports, bool out)
{
	struct ipv4 ip;

	if (load(skb, 0, &ip, sizeof(ip)))
		return -1;
	k->protocol = ip.protocol;
	p->headers = ipv4_header_len(ip.version_ihl);
	if (use_socket_ends(sk, k))
		return 0;
	*ports = !ipv4_is_later_fragment(&ip);
	addr_set_v4(out ? &k->local : &k->remote, ip.src);
	addr_set_v4(out ? &k->remote : &k->local, ip.dst);
	return 0;
}

static __always_inline int read_ipv6(struct __sk_buff *skb, struct bpf_sock *sk,
				     struct packet_key *k, struct packet *p, bool *ports, bool out)
{
	struct ipv6 ip;
	u32 at = sizeof(ip);
	bool first = true;
	u8 next;

	if (load(skb, 0, &ip, sizeof(ip)))
		return -1;
	next = ip.next_header;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct ipv6_ext ext;

		if (!ipv6_is_ext(next))
			break;
		if (bpf_skb_load_bytes(skb, at, &ext, sizeof(ext)))
			return -1;
		at += ipv6_ext_len(next, &ext);
		first = !ipv6_is_later_fragment(next, &ext);
		next = ext.next_header;
		if (!first)
			break;
	}
	k->protocol = next;
	p->headers = at;
	if (use_socket_ends(sk, k))
		return 0;
	*ports = first;
	*(out ? &k->local : &k->remote) = ip.src;
	*(out ? &k->remote : &k->local) = ip.dst;
	return 0;
}

static __always_inline int read_ports(struct __sk_buff *skb, struct packet_key *k,
				      struct packet *p, bool out)
{
	__be16 h[2]; /* source, destination */

	if (load(skb, p->headers, h, sizeof(h)))
		return -1;
	k->local_port = bpf_ntohs(out ? h[0] : h[1]);
	k->remote_port = bpf_ntohs(out ? h[1] : h[0]);
	return 0;
}

static __always_inline int read_tcp(struct __sk_buff *skb, struct packet_key *k, struct packet *p,
				    bool out)
{
	u8 h[2]; /* header length, flags */

	if (read_ports(skb, k, p, out) || load(skb, p->headers + 12, h, sizeof(h)))
		return -1;
	p->tcp_syn = (h[1] & 0x12) == 0x02;
	p->headers += (h[0] >> 4) * 4;
	return 0;
}

/* Both halves of an echo are one flow, under the request's type. */
static __always_inline int read_icmp(struct __sk_buff *skb, struct packet_key *k, struct packet *p,
				     u8 request, u8 reply)
{
	u8 h[6];

	if (load(skb, p->headers, h, 2))
		return -1;
	p->echo_request = h[0] == request;
	p->echo_reply = h[0] == reply;
	if ((p->echo_request || p->echo_reply) && !load(skb, p->headers, h, sizeof(h)))
		p->echo_id = h[4] << 8 | h[5];
	k->icmp = (p->echo_reply ? request : h[0]) << 8 | h[1];
	return 0;
}

static __always_inline int read_headers(struct __sk_buff *skb, struct bpf_sock *sk,
					struct packet_key *k, struct packet *p, bool out)
{
	bool ports = false;
	int err;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		err = read_ipv4(skb, sk, k, p, &ports, out);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		err = read_ipv6(skb, sk, k, p, &ports, out);
	else
		return -1;
	if (err)
		return err;
	if (ports) {
		switch (k->protocol) {
		case IPPROTO_TCP:
			return count_tcp || dns_ports[0] ? read_tcp(skb, k, p, out) : 0;
		case IPPROTO_UDP:
			err = read_ports(skb, k, p, out);
			break;
		case IPPROTO_ICMP:
			return read_icmp(skb, k, p, ICMP_ECHO, ICMP_ECHOREPLY);
		case IPPROTO_ICMPV6:
			return read_icmp(skb, k, p, ICMPV6_ECHO_REQUEST, ICMPV6_ECHO_REPLY);
		}
	}
	if (k->protocol == IPPROTO_UDP)
		p->headers += 8;
	return err;
}

static __always_inline u8 first_role(u8 protocol, struct packet *p, bool out)
{
	if (protocol == IPPROTO_TCP)
		return !p->tcp_syn ? ROLE_UNKNOWN : out ? ROLE_CLIENT : ROLE_SERVER;
	if (p->echo_request || p->echo_reply)
		return out == p->echo_request ? ROLE_CLIENT : ROLE_SERVER;
	if (protocol == IPPROTO_UDP)
		return out ? ROLE_CLIENT : ROLE_SERVER;
	return ROLE_UNKNOWN;
}

static __always_inline void add(struct packet_flow *f, u64 bytes, u64 packets, bool out)
{
	u64 now;

	if (out) {
		__sync_fetch_and_add(&f->tx_bytes, bytes);
		__sync_fetch_and_add(&f->tx_packets, packets);
	} else {
		__sync_fetch_and_add(&f->rx_bytes, bytes);
		__sync_fetch_and_add(&f->rx_packets, packets);
	}
	/* Never back: what was not retired a moment ago must not look as if it was. */
	now = coarse_boot_ns();
	if (now > f->last_ns)
		f->last_ns = now;
}

/* Fills in the first packet of f and puts it into the map. */
static __always_inline void insert(void *map, struct packet_key *k, struct packet_flow *f,
				   u64 bytes, u64 packets, bool out)
{
	struct packet_flow *other;

	f->start_ns = f->last_ns = bpf_ktime_get_boot_ns();
	if (out) {
		f->tx_bytes = bytes;
		f->tx_packets = packets;
	} else {
		f->rx_bytes = bytes;
		f->rx_packets = packets;
	}
	if (!bpf_map_update_elem(map, k, f, BPF_NOEXIST))
		return;
	/* Either another CPU was first, or the map is full. */
	other = bpf_map_lookup_elem(map, k);
	if (other)
		add(other, bytes, packets, out);
	else
		count_in(&packet_stats, STAT_MAP_FULL, packets);
}

static __always_inline void begin(struct packet_key *k, struct packet *p, struct bpf_sock *sk,
				  u64 cookie, u64 bytes, u64 packets, bool out)
{
	struct packet_flow f = { .cookie = cookie };
	struct owner *o;

	f.role = first_role(k->protocol, p, out);
	if (sk) {
		o = bpf_sk_storage_get(&packet_owners, sk, 0, 0);
		if (o) {
			f.pid = o->pid;
			__builtin_memcpy(f.comm, o->comm, sizeof(f.comm));
		}
	}
	insert(&packet_flows, k, &f, bytes, packets, out);
}

/* A packet of a flow whose entry is being taken out. */
static __always_inline void add_late(struct packet_key *k, u64 bytes, u64 packets, bool out)
{
	struct packet_flow *f = bpf_map_lookup_elem(&packet_late, k);
	struct packet_flow first = {};

	if (f)
		add(f, bytes, packets, out);
	else
		insert(&packet_late, k, &first, bytes, packets, out);
}

/* Every raw ICMP socket gets a copy of every echo. Only the one that takes part
 * in it counts: the one that asked, or that was the first to be asked. */
static __always_inline bool takes_echo(struct packet_flow *f, u64 cookie, struct packet *p, bool out)
{
	if (!f)
		return out || p->echo_request;
	if (out)
		f->cookie = cookie;
	return f->cookie == cookie;
}

/* Room in the ring for a message. A reserved record has a size that is known
 * beforehand; most messages are short. */
static __always_inline struct dns_message *reserve_dns(u32 length, u64 *room)
{
#define RESERVE(n) (*room = (n), bpf_ringbuf_reserve(&dns_ring, sizeof(struct dns_message) + (n), 0))
	if (length <= 96)
		return RESERVE(96);
	if (length <= 200)
		return RESERVE(200);
	if (length <= 400)
		return RESERVE(400);
	if (length <= 800)
		return RESERVE(800);
	return RESERVE(DNS_BYTES);
#undef RESERVE
}

/* Puts at most DNS_BYTES of a message into the ring. */
static __always_inline void copy_dns(struct __sk_buff *skb, struct packet_key *k, struct packet *p,
				     struct bpf_sock *sk, bool out, u32 length)
{
	u64 room, last;
	struct dns_message *m = reserve_dns(length, &room);
	struct owner *o;
	u32 n = 0;

	if (!m) {
		count(STAT_DNS_RING_FULL);
		return;
	}
	/* Less one, since old verifiers see that a number is not too large, but not that
	 * it is not 0. Compilers like to undo it. */
	last = (length < room ? length : room) - 1;
	asm volatile("" : "+r"(last));
	if (last < room && !bpf_skb_load_bytes(skb, p->headers, m + 1, last + 1))
		n = last + 1;
	m->time_ns = bpf_ktime_get_boot_ns();
	m->cgroup_id = k->cgroup_id;
	m->local = k->local;
	m->remote = k->remote;
	m->length = length;
	m->copied = n;
	m->local_port = k->local_port;
	m->remote_port = k->remote_port;
	m->segment = skb->gso_size;
	m->protocol = k->protocol;
	m->out = out;
	m->flags = k->flags;
	__builtin_memset(m->pad, 0, sizeof(m->pad));
	o = sk ? bpf_sk_storage_get(&packet_owners, sk, 0, 0) : 0;
	m->pid = o ? o->pid : 0;
	if (o)
		__builtin_memcpy(m->comm, o->comm, sizeof(m->comm));
	else
		__builtin_memset(m->comm, 0, sizeof(m->comm));
	bpf_ringbuf_submit(m, wake_flags(&dns_ring, dns_wake_bytes, DNS_WAKE_WINDOW));
}

/* Copies DNS. */
static __always_inline void on_dns(struct __sk_buff *skb, struct packet_key *k, struct packet *p,
				   struct bpf_sock *sk, bool out)
{
	if (!is_dns_port(k->remote_port) && !is_dns_port(k->local_port))
		return;
	if (skb->len <= p->headers) /* of TCP, an acknowledgement */
		return;
	if (k->protocol == IPPROTO_TCP)
		socket_ends(sk, k);
	copy_dns(skb, k, p, sk, out, skb->len - p->headers);
}

static __always_inline int on_packet(struct __sk_buff *skb, bool out)
{
	struct packet_key k;
	struct packet p;
	struct packet_flow *f;
	struct bpf_sock *sk;
	u64 bytes, packets, cookie = 0;

	if (!count_tcp && plain_tcp(skb) && !tcp_of_dns(skb))
		return 1;
	__builtin_memset(&k, 0, sizeof(k));
	__builtin_memset(&p, 0, sizeof(p));
	sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (read_headers(skb, sk, &k, &p, out)) {
		count(STAT_UNREADABLE);
		return 1;
	}
	if (!count_tcp && k.protocol == IPPROTO_TCP && !dns_ports[0])
		return 1;
	packets = skb->gso_segs > 1 ? skb->gso_segs : 1;
	bytes = skb->len + (packets - 1) * p.headers;
	k.cgroup_id = bpf_skb_cgroup_id(skb);
	if (skb->ifindex == LOOPBACK_IFINDEX)
		k.flags |= FLAG_LOOPBACK;
	if (p.echo_request || p.echo_reply) {
		k.flags |= out == p.echo_request ? FLAG_ECHO_CLIENT : FLAG_ECHO_SERVER;
		k.local_port = p.echo_id;
		cookie = bpf_get_socket_cookie(skb);
	}
	if (!count_tcp && k.protocol == IPPROTO_TCP) {
		on_dns(skb, &k, &p, sk, out);
		return 1;
	}
	f = bpf_map_lookup_elem(&packet_flows, &k);
	if (cookie && !takes_echo(f, cookie, &p, out))
		return 1;
	if (f && f->last_ns <= retire_before)
		add_late(&k, bytes, packets, out);
	else if (f)
		add(f, bytes, packets, out);
	else
		begin(&k, &p, sk, cookie, bytes, packets, out);
	if (dns_ports[0] && (k.protocol == IPPROTO_UDP || k.protocol == IPPROTO_TCP))
		on_dns(skb, &k, &p, sk, out);
	return 1;
}

SEC("cgroup_skb/ingress")
int packet_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, false);
}

SEC("cgroup_skb/egress")
int packet_egress(struct __sk_buff *skb)
{
	return on_packet(skb, true);
}

/* Notes who makes a socket, once per socket: packets themselves are often
 * handled while some other process runs. */
SEC("cgroup/sock_create")
int packet_sock_create(struct bpf_sock *sk)
{
	struct owner *o;

	if (!count_tcp && sk->protocol == IPPROTO_TCP)
		return 1;
	o = bpf_sk_storage_get(&packet_owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!o)
		return 1;
	o->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(o->comm, sizeof(o->comm));
	return 1;
}

/* Run once at start: the owners of the sockets that are already open. */
SEC("iter/task_file")
int packet_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of_file(ctx);
	struct owner *o;

	if (!task || !sk || (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6))
		return 0;
	o = bpf_sk_storage_get(&packet_owners, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!o || o->pid)
		return 0;
	o->pid = task->tgid;
	bpf_probe_read_kernel(o->comm, sizeof(o->comm), task->group_leader->comm);
	return 0;
}
