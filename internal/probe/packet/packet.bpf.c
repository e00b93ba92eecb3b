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
#include "owner.h"
#include "ring.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define LOOPBACK_IFINDEX 1
#define MAX_EXTENSION_HEADERS 6
#define MAX_OFFSET 0x3fff /* one less than a power of two */

#define MAX_DNS_PORTS 8
/* What is copied of a DNS message at most: as much as fits into an IPv6 packet that
 * is sure to arrive, and over TCP the length that stands before it. */
#define DNS_BYTES 1234

#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH 51
#define NEXTHDR_DEST 60
#define NEXTHDR_MOBILITY 135

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

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
	STAT_SUMMED, /* in packet_others only */
	STAT_UNREADABLE, /* the headers could not be read */
	STAT_STORAGE_FULL, /* nothing could be kept beside a socket */
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

/* The sums of what the other two have no room for, by cgroup, protocol and loopback:
 * all else in the key is zero. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct packet_key);
	__type(value, struct packet_flow);
} packet_others SEC(".maps");

enum direction {
	NEITHER,
	SENT,
	RECEIVED,
};

/* What is kept beside each socket. */
struct sock_info {
	/* Where the datagram goes that a task is sending, if it says so itself. */
	union addr to;
	u64 task; /* 0: no such datagram is under way */
	u16 to_port; /* host order */
	u8 first; /* a direction: that of the socket's first datagram */
	u8 older; /* than the probe: which was the first is not known */
	struct owner owner;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct sock_info);
} packet_socks SEC(".maps");

DEFINE_STATS(packet_stats)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} dns_ring SEC(".maps");

/* Count TCP too, because its sockets cannot be read here. */
volatile const bool count_tcp = false;

/* Where DNS is spoken, in host order; the rest is 0. All 0 to copy nothing. */
volatile const u16 dns_ports[MAX_DNS_PORTS];

/* Bytes waiting in dns_ring at which the reader is woken at once, and how far beyond
 * that it still is. */
volatile const u64 dns_wake_bytes = 1 << 20;
#define DNS_WAKE_WINDOW (32 * (sizeof(struct dns_message) + DNS_BYTES))

/* Boot time at which what was under way when the probe began is over. */
volatile const u64 settled_ns = 0;

/* Boot time less monotonic time, which a suspended machine moves; kept up to
 * date from outside. */
volatile u64 boot_offset;

/* Entries that had no packet after this time are being taken out: nothing is
 * added to them any more, so that their last reading is exact. 0 for none. It is
 * set from outside, which then waits for the programs that may not have seen it.
 * Whoever has seen it adds to entries with a later last_ns only, and never sets
 * that back. */
volatile u64 retire_before;

/* Entries made in packet_flows so far. */
volatile u64 inserted;

/* When a flow last had a packet need not be exact: the clock that the kernel
 * itself reads at each tick costs a fifth of the other one. */
static __always_inline u64 coarse_boot_ns(void)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ktime_get_coarse_ns))
		return bpf_ktime_get_coarse_ns() + boot_offset;
	return bpf_ktime_get_boot_ns();
}

struct ipv4 {
	u8 version_ihl, tos;
	__be16 len, id, frag_off;
	u8 ttl, protocol;
	__be16 check;
	__be32 src, dst;
};

struct ipv6 {
	__be32 version_class_flow;
	__be16 payload_len;
	u8 next_header, hop_limit;
	union addr src, dst;
};

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
		ports = h ? linear(skb, (*h & 0xf) * 4, 4) : 0;
	} else {
		ports = linear(skb, sizeof(struct ipv6), 4);
	}
	return !ports || is_dns_port(bpf_ntohs(ports[0])) || is_dns_port(bpf_ntohs(ports[1]));
}

/* The packet may carry other addresses than those that the program knows, where the
 * host translates addresses on the way out; the two directions would then look like
 * two flows. A connected UDP socket knows its own address and its peer, and one that
 * sends to an address of its own choice has said so a moment ago, in the same task. */
static __always_inline void use_socket_ends(struct bpf_sock *sk, struct packet_key *k, bool out)
{
	u16 port = bpf_ntohs((__be16)sk->dst_port);
	union addr local, peer;
	struct sock_info *s;

	if (port) {
		if (sk->family == AF_INET) {
			/* Volatile, so that the compiler does not make one load of
			 * these and of the others', at an address that depends. */
			addr_set_v4(&local, *(volatile __be32 *)&sk->src_ip4);
			addr_set_v4(&peer, *(volatile __be32 *)&sk->dst_ip4);
		} else {
			local.w[0] = sk->src_ip6[0];
			local.w[1] = sk->src_ip6[1];
			local.w[2] = sk->src_ip6[2];
			local.w[3] = sk->src_ip6[3];
			peer.w[0] = sk->dst_ip6[0];
			peer.w[1] = sk->dst_ip6[1];
			peer.w[2] = sk->dst_ip6[2];
			peer.w[3] = sk->dst_ip6[3];
		}
		k->local = local;
		k->local_port = sk->src_port;
		if (out && k->remote_port == port && same_addr(&k->remote, &peer))
			return;
	}
	if (out) {
		s = bpf_sk_storage_get(&packet_socks, sk, 0, 0);
		if (s && s->task && s->task == bpf_get_current_task()) {
			s->task = 0;
			k->remote = s->to;
			k->remote_port = s->to_port;
			return;
		}
	}
	if (port) {
		k->remote = peer;
		k->remote_port = port;
	}
}

static __always_inline int read_ipv4(struct __sk_buff *skb, struct packet_key *k,
				     struct packet *p, bool *ports, bool out)
{
	struct ipv4 ip;

	if (load(skb, 0, &ip, sizeof(ip)))
		return -1;
	k->protocol = ip.protocol;
	p->headers = (ip.version_ihl & 0xf) * 4;
	/* Later fragments carry no ports. */
	*ports = !(ip.frag_off & bpf_htons(0x1fff));
	addr_set_v4(out ? &k->local : &k->remote, ip.src);
	addr_set_v4(out ? &k->remote : &k->local, ip.dst);
	return 0;
}

static __always_inline int read_ipv6(struct __sk_buff *skb, struct packet_key *k,
				     struct packet *p, bool *ports, bool out)
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
		u8 ext[4]; /* next header, length, and a fragment's offset */
		u32 len;

		if (next != NEXTHDR_HOP && next != NEXTHDR_ROUTING && next != NEXTHDR_FRAGMENT &&
		    next != NEXTHDR_AUTH && next != NEXTHDR_DEST && next != NEXTHDR_MOBILITY)
			break;
		if (bpf_skb_load_bytes(skb, at, ext, sizeof(ext)))
			return -1;
		if (next == NEXTHDR_FRAGMENT) {
			len = 8;
			if (ext[2] || (ext[3] & 0xf8))
				first = false;
		} else if (next == NEXTHDR_AUTH) {
			len = (ext[1] + 2) * 4;
		} else {
			len = (ext[1] + 1) * 8;
		}
		next = ext[0];
		at += len;
		if (!first)
			break;
	}
	k->protocol = next;
	p->headers = at;
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
		err = read_ipv4(skb, k, p, &ports, out);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		err = read_ipv6(skb, k, p, &ports, out);
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
	if (k->protocol == IPPROTO_UDP) {
		p->headers += 8;
		if (sk)
			use_socket_ends(sk, k, out);
	}
	return err;
}

/* Who sent first is the client, in the socket's whole life, not in that of a flow's
 * entry: after a pause a server may be the first to send. Where a socket without a peer
 * of its own does what it did not do at first, to somebody else or to the same after a
 * pause, nothing is known. */
static __always_inline u8 udp_role(struct sock_info *s, struct bpf_sock *sk, bool out)
{
	u8 now = out ? SENT : RECEIVED;

	if (s && s->older) {
		if (sk->dst_port)
			return ROLE_CLIENT; /* it called connect() */
		/* In the beginning a datagram may be the answer to an earlier one. */
		return out ? ROLE_CLIENT : bpf_ktime_get_boot_ns() < settled_ns ? ROLE_UNKNOWN : ROLE_SERVER;
	}
	if (s && !s->first)
		s->first = now;
	if (s && s->first != now) {
		if (!sk->dst_port)
			return ROLE_UNKNOWN;
		now = s->first;
	}
	return now == SENT ? ROLE_CLIENT : ROLE_SERVER;
}

static __always_inline u8 first_role(u8 protocol, struct packet *p, bool out)
{
	if (protocol == IPPROTO_TCP)
		return !p->tcp_syn ? ROLE_UNKNOWN : out ? ROLE_CLIENT : ROLE_SERVER;
	if (p->echo_request || p->echo_reply)
		return out == p->echo_request ? ROLE_CLIENT : ROLE_SERVER;
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

/* Fills in the first packet of f and puts it into the map, or adds to what another CPU
 * has put there meanwhile. False if the map is full. */
static __always_inline bool insert(void *map, struct packet_key *k, struct packet_flow *f,
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
		return true;
	other = bpf_map_lookup_elem(map, k);
	if (!other)
		return false;
	add(other, bytes, packets, out);
	return true;
}

/* There is no room for the flow's detail. */
static __always_inline void add_sum(struct packet_key *flow, u64 bytes, u64 packets, bool out)
{
	struct packet_key k = {
		.cgroup_id = flow->cgroup_id, .protocol = flow->protocol, .flags = flow->flags & FLAG_LOOPBACK,
	};
	struct packet_flow *f = bpf_map_lookup_elem(&packet_others, &k);
	struct packet_flow first = {};

	if (f && f->last_ns > retire_before) {
		add(f, bytes, packets, out);
	} else if (f || !insert(&packet_others, &k, &first, bytes, packets, out)) {
		count_in(&packet_stats, STAT_MAP_FULL, packets);
		return;
	}
	count_in(&packet_stats, STAT_SUMMED, packets);
}

static __always_inline void begin(struct packet_key *k, struct packet *p, struct bpf_sock *sk,
				  u64 cookie, u64 bytes, u64 packets, bool out)
{
	struct packet_flow f = { .cookie = cookie };
	struct sock_info *s = 0;

	if (sk) {
		s = bpf_sk_storage_get(&packet_socks, sk, 0, 0);
		if (s) {
			f.pid = s->owner.pid;
			__builtin_memcpy(f.comm, s->owner.comm, sizeof(f.comm));
		}
	}
	if (k->protocol != IPPROTO_UDP)
		f.role = first_role(k->protocol, p, out);
	else if (sk)
		f.role = udp_role(s, sk, out);
	else
		f.role = out ? ROLE_CLIENT : ROLE_SERVER;
	if (insert(&packet_flows, k, &f, bytes, packets, out))
		__sync_fetch_and_add(&inserted, 1);
	else
		add_sum(k, bytes, packets, out);
}

/* A packet of a flow whose entry is being taken out. */
static __always_inline void add_late(struct packet_key *k, u64 bytes, u64 packets, bool out)
{
	struct packet_flow *f = bpf_map_lookup_elem(&packet_late, k);
	struct packet_flow first = {};

	if (f)
		add(f, bytes, packets, out);
	else if (!insert(&packet_late, k, &first, bytes, packets, out))
		add_sum(k, bytes, packets, out);
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

/* An address that the packet has at an offset in its IP header. */
static __always_inline void ip_addr(struct __sk_buff *skb, union addr *a, u32 at4, u32 at6)
{
	__be32 v4 = 0;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		bpf_skb_load_bytes(skb, at4, &v4, sizeof(v4));
		addr_set_v4(a, v4);
	} else {
		bpf_skb_load_bytes(skb, at6, a, sizeof(*a));
	}
}

/* What dns_copy is told beside the remote address, in one number. */
#define DNS_META(headers, local_port, remote_port, protocol, out)                                   \
	((u64)(u16)(headers) | (u64)(local_port) << 16 | (u64)(remote_port) << 32 |                 \
	 (u64)(protocol) << 48 | (u64)(out) << 56)

/* Puts at most DNS_BYTES of a message into the ring. A function of its own that is not
 * static: the verifier looks at it once, and not for each way on which a packet gets
 * here. */
__noinline int dns_copy(struct __sk_buff *skb, u64 remote_low, u64 remote_high, u64 meta)
{
	u32 headers = meta & 0xffff, length = skb->len - headers, n = 0;
	bool out = meta >> 56 & 1;
	struct dns_message *m;
	struct sock_info *s = 0;
	struct bpf_sock *sk;
	u64 room, last;

	if (skb->len <= headers) /* of TCP, an acknowledgement */
		return 0;
	m = reserve_dns(length, &room);
	if (!m) {
		count(STAT_DNS_RING_FULL);
		return 0;
	}
	/* Less one, since old verifiers see that a number is not too large, but not that
	 * it is not 0. Compilers like to undo it. */
	last = (length < room ? length : room) - 1;
	asm volatile("" : "+r"(last));
	if (last < room && !bpf_skb_load_bytes(skb, headers, m + 1, last + 1))
		n = last + 1;
	m->time_ns = bpf_ktime_get_boot_ns();
	m->cgroup_id = bpf_skb_cgroup_id(skb);
	m->length = length;
	m->copied = n;
	m->local_port = meta >> 16;
	m->remote_port = meta >> 32;
	m->segment = skb->gso_size;
	m->protocol = meta >> 48;
	m->out = out;
	m->flags = skb->ifindex == LOOPBACK_IFINDEX ? FLAG_LOOPBACK : 0;
	__builtin_memset(m->pad, 0, sizeof(m->pad));
	if (out)
		ip_addr(skb, &m->local, 12, 8);
	else
		ip_addr(skb, &m->local, 16, 24);
	m->remote.w[0] = remote_low;
	m->remote.w[1] = remote_low >> 32;
	m->remote.w[2] = remote_high;
	m->remote.w[3] = remote_high >> 32;
	m->pid = 0;
	__builtin_memset(m->comm, 0, sizeof(m->comm));
	sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (sk) {
		/* A connected socket knows its ends, whatever the host makes of them. */
		if (sk->dst_port && sk->family == AF_INET) {
			addr_set_v4(&m->local, *(volatile __be32 *)&sk->src_ip4);
			if (m->protocol == IPPROTO_TCP)
				addr_set_v4(&m->remote, *(volatile __be32 *)&sk->dst_ip4);
		} else if (sk->dst_port) {
			m->local.w[0] = sk->src_ip6[0];
			m->local.w[1] = sk->src_ip6[1];
			m->local.w[2] = sk->src_ip6[2];
			m->local.w[3] = sk->src_ip6[3];
			if (m->protocol == IPPROTO_TCP) {
				m->remote.w[0] = sk->dst_ip6[0];
				m->remote.w[1] = sk->dst_ip6[1];
				m->remote.w[2] = sk->dst_ip6[2];
				m->remote.w[3] = sk->dst_ip6[3];
			}
		}
		s = bpf_sk_storage_get(&packet_socks, sk, 0, 0);
	}
	if (s) {
		m->pid = s->owner.pid;
		__builtin_memcpy(m->comm, s->owner.comm, sizeof(m->comm));
	}
	bpf_ringbuf_submit(m, wake_flags(&dns_ring, dns_wake_bytes, DNS_WAKE_WINDOW));
	return 0;
}

/* Copies DNS. */
static __always_inline void on_dns(struct __sk_buff *skb, struct packet_key *k, struct packet *p, bool out)
{
	if (!is_dns_port(k->remote_port) && !is_dns_port(k->local_port))
		return;
	dns_copy(skb, k->remote.w[0] | (u64)k->remote.w[1] << 32, k->remote.w[2] | (u64)k->remote.w[3] << 32,
		 DNS_META(p->headers, k->local_port, k->remote_port, k->protocol, out));
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
		on_dns(skb, &k, &p, out);
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
		on_dns(skb, &k, &p, out);
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
	struct sock_info *s;

	if (!count_tcp && sk->protocol == IPPROTO_TCP)
		return 1;
	s = bpf_sk_storage_get(&packet_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s) {
		count(STAT_STORAGE_FULL);
		return 1;
	}
	owner_current(&s->owner);
	return 1;
}

/* A datagram to an address that the program names itself, before anybody translates
 * it. Also from connected sockets. */
static __always_inline struct sock_info *sending(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct sock_info *s;

	if (!sk)
		return 0;
	s = bpf_sk_storage_get(&packet_socks, sk, 0, 0);
	if (!s)
		return 0;
	s->to_port = bpf_ntohs((__be16)ctx->user_port);
	s->task = bpf_get_current_task();
	return s;
}

SEC("cgroup/sendmsg4")
int packet_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct sock_info *s = sending(ctx);

	if (s)
		addr_set_v4(&s->to, ctx->user_ip4);
	return 1;
}

SEC("cgroup/sendmsg6")
int packet_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct sock_info *s = sending(ctx);

	if (s) {
		s->to.w[0] = ctx->user_ip6[0];
		s->to.w[1] = ctx->user_ip6[1];
		s->to.w[2] = ctx->user_ip6[2];
		s->to.w[3] = ctx->user_ip6[3];
	}
	return 1;
}

/* Run once at start: the owners of the sockets that are already open. */
SEC("iter/task_file")
int packet_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of_file(ctx);
	struct sock_info *s;

	if (!task || !sk || (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6))
		return 0;
	if (!count_tcp && sk->sk_protocol == IPPROTO_TCP)
		return 0;
	s = bpf_sk_storage_get(&packet_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s) {
		count(STAT_STORAGE_FULL);
		return 0;
	}
	if (s->owner.pid)
		return 0;
	s->older = 1;
	s->owner.pid = task->tgid;
	bpf_probe_read_kernel(s->owner.comm, sizeof(s->owner.comm), task->group_leader->comm);
	return 0;
}
