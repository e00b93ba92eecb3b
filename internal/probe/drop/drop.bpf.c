//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Packets that the kernel drops, from the one tracepoint that all of them pass. Each
 * is counted here, by the cgroup of its socket or, where no socket is known, by its
 * addresses; so many a second are also told of one by one.
 */
#include "cgroup.h"
#include "count.h"
#include "net.h"
#include "ring.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define PACKET_HOST 0
#define PACKET_OTHERHOST 3
#define PACKET_OUTGOING 4
/* Kinds of IPv4 routes to this host itself, and what says so of one of IPv6. */
#define RTN_LOCAL 2
#define RTN_BROADCAST 3
#define RTN_MULTICAST 5
#define RTF_ANYCAST 0x00100000
#define RTF_LOCAL 0x80000000
#define DST_METADATA 0x0080 /* no route, but what a tunnel says of the packet */
#define DST_POINTER (~1UL)
#define SECOND 1000000000ULL
/* Inodes of namespaces are above this, by include/linux/proc_ns.h. */
#define FIRST_INUM 0xeffffff0U

/* The core has fewer reasons; those of a subsystem have its number above bit 16. */
#define MAX_REASONS 256

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __core;

struct dst_entry {
	unsigned short flags;
} __core;

struct rtable {
	struct dst_entry dst;
	u16 rt_type;
} __core;

struct rt6_info {
	u32 rt6i_flags;
} __core;

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	unsigned int len;
	u8 pkt_type : 3;
	int skb_iif;
	__be16 protocol;
	u16 network_header;
	unsigned int tail;
	unsigned char *head, *data;
} __core;

struct sock___kern {
	unsigned int sk_kern_sock : 1;
} __core;

enum drop_flag {
	FLAG_INGRESS = 1, /* it came in, and not to be passed on */
	FLAG_LOOPBACK = 2,
};

enum reason_flag {
	REASON_CONSUMED = 1, /* it stands for no loss */
	REASON_UNASKED = 2, /* so it does for packets that nobody here has asked for */
	REASON_UNSAID = 4, /* so it does for packets that were taken in before */
};

/* Either the cgroup or the addresses are zero, or all of them. */
struct drop_key {
	u64 cgroup_id;
	union addr src, dst;
	u32 reason;
	u32 ingress; /* with addresses: as FLAG_INGRESS */
};

struct drop_event {
	u64 now_ns; /* boot time */
	u64 cgroup_id;
	u64 location; /* where the kernel dropped it */
	union addr src, dst;
	u32 netns;
	u32 ifindex;
	u32 reason;
	u32 bytes; /* of the IP packet */
	u16 src_port, dst_port; /* host order */
	u8 protocol;
	u8 tcp_flags;
	u8 flags;
	u8 pad;
};

enum drop_stat {
	STAT_MAP_FULL,
	STAT_RING_FULL,
	STAT_LIMITED,
	STAT_MAX,
};

/* Keeps these types in the object's BTF, for the Go mirrors to be made from. */
struct mirrored {
	struct drop_key key;
	struct drop_event event;
	enum drop_flag flag;
	enum reason_flag reason;
	enum drop_stat stat;
};
const struct mirrored *const volatile mirrored = 0;

/* Packets per key, in two maps: user space reads and empties the one that is not
 * active, to which no program adds any more. */
struct counts {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct drop_key);
	__type(value, u64);
} drop_counts_a SEC(".maps"), drop_counts_b SEC(".maps");

volatile u32 active;

/* What finds no room there, by reason alone; cumulative. See slot. */
u64 drop_crowded[MAX_REASONS];

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 10);
} drop_ring SEC(".maps");

DEFINE_STATS(drop_stats)

struct window {
	u64 start_ns;
	u64 told;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct window);
} drop_windows SEC(".maps");

/* Bytes waiting in the ring at which the reader is woken at once. */
volatile const u64 wake_bytes = 64 << 10;
#define WAKE_WINDOW (16 * sizeof(struct drop_event))

/* Of each CPU. 0: none is told of. */
volatile const u32 events_per_second = 0;

/* What the tracepoint of this kernel hands over beside packet and location. */
volatile const bool has_reason = false;
volatile const bool has_rx_sk = false;

/* What is known of the reasons of this kernel, see reason_flag. */
volatile const u8 reasons[MAX_REASONS] = {};

/* What the headers say. All is zero where they cannot be read. */
struct packet {
	union addr src, dst;
	u32 bytes;
	u16 src_port, dst_port;
	u8 protocol, tcp_flags;
	bool echo_reply;
};

/* The place of a reason; those of subsystems share the last one. 64 bits wide, so that
 * the verifier sees the bound. */
static __always_inline u64 slot(u64 reason)
{
	return reason < MAX_REASONS ? reason : MAX_REASONS - 1;
}

/* Reads n bytes of the packet at an offset from head, if its linear part has them, as
 * it nearly always has headers. */
static __always_inline bool load(struct sk_buff *skb, u32 at, void *to, u32 n)
{
	return at + n <= skb->tail && !bpf_probe_read_kernel(to, n, skb->head + at);
}

static __always_inline void read_ports(struct sk_buff *skb, u32 at, struct packet *p)
{
	__be16 ports[2];

	if (!load(skb, at, ports, sizeof(ports)))
		return;
	p->src_port = bpf_ntohs(ports[0]);
	p->dst_port = bpf_ntohs(ports[1]);
}

static __always_inline void read_transport(struct sk_buff *skb, u32 at, struct packet *p)
{
	u8 type;

	switch (p->protocol) {
	case IPPROTO_TCP:
		load(skb, at + 13, &p->tcp_flags, 1);
		read_ports(skb, at, p);
		break;
	case IPPROTO_UDP:
		read_ports(skb, at, p);
		break;
	case IPPROTO_ICMP:
		p->echo_reply = load(skb, at, &type, 1) && type == ICMP_ECHOREPLY;
		break;
	case IPPROTO_ICMPV6:
		p->echo_reply = load(skb, at, &type, 1) && type == ICMPV6_ECHO_REPLY;
		break;
	}
}

static __always_inline void read_ipv4(struct sk_buff *skb, u32 at, struct packet *p)
{
	struct ipv4 ip;

	if (!load(skb, at, &ip, sizeof(ip)) || ip.version_ihl >> 4 != 4)
		return;
	addr_set_v4(&p->src, ip.src);
	addr_set_v4(&p->dst, ip.dst);
	p->protocol = ip.protocol;
	p->bytes = bpf_ntohs(ip.len);
	if (!ipv4_is_later_fragment(&ip))
		read_transport(skb, at + ipv4_header_len(ip.version_ihl), p);
}

/* Returns where the payload begins, or 0 where there are no ports. */
static __always_inline u32 skip_extensions(struct sk_buff *skb, u32 at, u8 *next)
{
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		struct ipv6_ext ext;
		u8 kind = *next;

		if (!ipv6_is_ext(kind))
			return at;
		if (!load(skb, at, &ext, sizeof(ext)))
			return 0;
		*next = ext.next_header;
		if (ipv6_is_later_fragment(kind, &ext))
			return 0;
		at += ipv6_ext_len(kind, &ext);
	}
	return at;
}

static __always_inline void read_ipv6(struct sk_buff *skb, u32 at, struct packet *p)
{
	struct ipv6 ip;

	if (!load(skb, at, &ip, sizeof(ip)) || (*(u8 *)&ip) >> 4 != 6)
		return;
	p->src = ip.src;
	p->dst = ip.dst;
	p->protocol = ip.next_header;
	p->bytes = bpf_ntohs(ip.payload_len);
	if (p->bytes)
		p->bytes += sizeof(ip);
	at = skip_extensions(skb, at + sizeof(ip), &p->protocol);
	if (at)
		read_transport(skb, at, p);
}

static __always_inline void read_headers(struct sk_buff *skb, struct packet *p)
{
	u32 data = skb->data - skb->head;
	/* 0 until the stack has the packet; then data is where it begins. */
	u32 at = skb->network_header ? skb->network_header : data;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		read_ipv4(skb, at, p);
	else
		read_ipv6(skb, at, p);
	if (!p->bytes) /* longer than its header can say */
		p->bytes = skb->len + data - at;
}

/* Whether a socket has a cgroup: what stands for one in a handshake or after the
 * close is shorter, and the kernel's own are of whatever process made it do so. */
static __always_inline bool has_cgroup(struct sock *sk)
{
	struct sock___kern *kern = (void *)sk;
	u8 state;

	if (!sk)
		return false;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (!state || state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		return false;
	return !BPF_CORE_READ_BITFIELD_PROBED(kern, sk_kern_sock);
}

static __always_inline void add(void *map, struct drop_key *k)
{
	u64 one = 1, *n = bpf_map_lookup_elem(map, k);

	if (!n) {
		if (!bpf_map_update_elem(map, k, &one, BPF_NOEXIST))
			return;
		/* Either another CPU was first, or the map is full. */
		n = bpf_map_lookup_elem(map, k);
	}
	if (n) {
		__sync_fetch_and_add(n, 1);
		return;
	}
	__sync_fetch_and_add(&drop_crowded[slot(k->reason)], 1);
	count(STAT_MAP_FULL);
}

static __always_inline void count_drop(u64 cgroup_id, u32 reason, bool ingress, struct packet *p)
{
	struct drop_key k = { .cgroup_id = cgroup_id, .reason = reason };

	if (!cgroup_id) {
		k.src = p->src;
		k.dst = p->dst;
		k.ingress = ingress;
	}
	if (active)
		add(&drop_counts_b, &k);
	else
		add(&drop_counts_a, &k);
}

/* Whether this second has room for an event. */
static __always_inline bool may_tell(u64 now)
{
	struct window *w;
	u32 zero = 0;

	if (!events_per_second)
		return false;
	w = bpf_map_lookup_elem(&drop_windows, &zero);
	if (!w)
		return false;
	if (now - w->start_ns >= SECOND) {
		w->start_ns = now;
		w->told = 0;
	}
	if (w->told >= events_per_second) {
		count(STAT_LIMITED);
		return false;
	}
	w->told++;
	return true;
}

/* The inode of a namespace; 0 if net is none. */
static __always_inline u32 net_inum(struct net *net)
{
	u32 inum = BPF_CORE_READ(net, ns.inum);

	return inum >= FIRST_INUM ? inum : 0;
}

/* Sockets keep other things in the place of dev: only what leads to a namespace is a
 * device. */
static __always_inline struct net_device *device(struct sk_buff *skb, u32 *netns)
{
	struct net_device *dev = skb->dev;

	*netns = net_inum(BPF_CORE_READ(dev, nd_net.net));
	return *netns ? dev : 0;
}

static __always_inline void place(struct drop_event *e, struct sk_buff *skb, struct sock *sk)
{
	struct net_device *dev = device(skb, &e->netns);

	if (!dev && sk)
		e->netns = net_inum(BPF_CORE_READ(sk, __sk_common.skc_net.net));
	if (skb->skb_iif)
		e->ifindex = skb->skb_iif;
	else if (dev)
		e->ifindex = BPF_CORE_READ(dev, ifindex);
	if (e->ifindex == LOOPBACK_IFINDEX)
		e->flags |= FLAG_LOOPBACK;
}

static __always_inline void tell(struct drop_event *from)
{
	struct drop_event *e = bpf_ringbuf_reserve(&drop_ring, sizeof(*e), 0);

	if (!e) {
		count(STAT_RING_FULL);
		return;
	}
	__builtin_memcpy(e, from, sizeof(*e));
	bpf_ringbuf_submit(e, wake_flags(&drop_ring, wake_bytes, WAKE_WINDOW));
}

/* Whether a packet that came in was to leave again. Before it has a route that is not
 * known, and not so. */
static __always_inline bool is_forwarded(struct sk_buff *skb)
{
	struct rtable *rt = (void *)(BPF_CORE_READ(skb, _skb_refdst) & DST_POINTER);
	u16 type;

	if (!rt || (BPF_CORE_READ(rt, dst.flags) & DST_METADATA))
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		/* The type is not there where IPv6 is a module. */
		return bpf_core_field_exists(struct rt6_info, rt6i_flags) &&
			!(BPF_CORE_READ((struct rt6_info *)rt, rt6i_flags) & (RTF_LOCAL | RTF_ANYCAST));
	}
	type = BPF_CORE_READ(rt, rt_type);
	return type != RTN_LOCAL && type != RTN_BROADCAST && type != RTN_MULTICAST;
}

static __always_inline bool is_ingress(struct sk_buff *skb, struct sock *sk, struct sock *rx_sk)
{
	if (rx_sk)
		return true;
	if (skb->skb_iif)
		return !is_forwarded(skb);
	return !sk && BPF_CORE_READ_BITFIELD(skb, pkt_type) != PACKET_OUTGOING;
}

/* Whether nobody here has asked for a packet: it was for many or for another host, or
 * it is the answer of a ping, of which the sockets have got copies. */
static __always_inline bool is_unasked(struct sk_buff *skb, struct packet *p)
{
	u8 type = BPF_CORE_READ_BITFIELD(skb, pkt_type);

	return p->echo_reply || (type > PACKET_HOST && type <= PACKET_OTHERHOST);
}

/* Whether a packet had reached its end before: sockets have use for the place of dev;
 * TCP ends what comes after a close, or without data for a socket that waits for some,
 * like what is lost; older kernels do so with every ICMPv6 message. */
static __always_inline bool is_taken(struct sk_buff *skb, struct packet *p)
{
	u32 netns;

	if (!skb->skb_iif)
		return false;
	if (p->protocol == IPPROTO_ICMPV6 || !device(skb, &netns))
		return true;
	/* IP has pulled its header off when it hands a packet over. */
	return p->protocol == IPPROTO_TCP && skb->data > skb->head + skb->network_header;
}

static __always_inline bool is_no_loss(struct sk_buff *skb, u64 reason, u64 cgroup_id, struct packet *p)
{
	u8 known = reasons[slot(reason)];

	if ((known & REASON_UNASKED) && !cgroup_id && is_unasked(skb, p))
		return true;
	return (known & REASON_UNSAID) && is_taken(skb, p);
}

static __always_inline int on_drop(struct sk_buff *skb, u64 location, u32 reason, struct sock *rx_sk)
{
	struct drop_event e = { .location = location, .reason = reason };
	struct packet p = {};
	struct sock *sk;
	bool ingress, told;

	/* Read like this, it is no pointer that the verifier knows: it may be of any of
	 * several types. */
	sk = rx_sk ? rx_sk : BPF_CORE_READ(skb, sk);
	if (has_cgroup(sk)) {
		struct cgroup *cg = sk_cgroup(sk);

		if (!in_part(cg))
			return 0;
		e.cgroup_id = cgroup_id(cg);
	}
	if (!e.cgroup_id || events_per_second)
		read_headers(skb, &p);
	if (is_no_loss(skb, reason, e.cgroup_id, &p))
		return 0;
	if (events_per_second)
		e.now_ns = bpf_ktime_get_boot_ns();
	told = may_tell(e.now_ns);
	ingress = is_ingress(skb, sk, rx_sk);
	count_drop(e.cgroup_id, reason, ingress, &p);
	if (!told)
		return 0;
	e.src = p.src;
	e.dst = p.dst;
	e.bytes = p.bytes;
	e.src_port = p.src_port;
	e.dst_port = p.dst_port;
	e.protocol = p.protocol;
	e.tcp_flags = p.tcp_flags;
	if (ingress)
		e.flags |= FLAG_INGRESS;
	place(&e, skb, sk);
	tell(&e);
	return 0;
}

/* The arguments: the packet, the location, since 5.17 the reason, since 6.11 the
 * socket that it was for. */
SEC("tp_btf/kfree_skb")
int drop_skb(u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];
	struct sock *rx_sk = 0;
	u32 reason = 0;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;
	if (has_reason) {
		reason = ctx[2];
		if (reasons[slot(reason)] & REASON_CONSUMED)
			return 0;
	}
	/* Not from ctx itself: kernels before 6.13 take it for a pointer that is never
	 * NULL and would leave out the check for that. */
	if (has_rx_sk)
		bpf_probe_read_kernel(&rx_sk, sizeof(rx_sk), ctx + 3);
	return on_drop(skb, ctx[1], reason, rx_sk);
}
