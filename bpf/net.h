/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Headers of packets, and how far the extensions of IPv6 reach.
 */
#ifndef ORB8_NET_H
#define ORB8_NET_H

#include "core.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define LOOPBACK_IFINDEX 1

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

#define NEXTHDR_HOP 0
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_AUTH 51
#define NEXTHDR_DEST 60
#define NEXTHDR_MOBILITY 135

/* So many are looked through. */
#define MAX_EXTENSION_HEADERS 6

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

/* What all extension headers begin with. */
struct ipv6_ext {
	u8 next_header;
	u8 length;
	__be16 fragment; /* of a fragment header: its offset, and three bits of flags */
};

static __always_inline u32 ipv4_header_len(u8 version_ihl)
{
	return (version_ihl & 0xf) * 4;
}

/* Later fragments carry no ports. */
static __always_inline bool ipv4_is_later_fragment(const struct ipv4 *ip)
{
	return ip->frag_off & bpf_htons(0x1fff);
}

static __always_inline bool ipv6_is_ext(u8 next)
{
	return next == NEXTHDR_HOP || next == NEXTHDR_ROUTING || next == NEXTHDR_FRAGMENT ||
	       next == NEXTHDR_AUTH || next == NEXTHDR_DEST || next == NEXTHDR_MOBILITY;
}

/* Bytes of the extension header of this kind. */
static __always_inline u32 ipv6_ext_len(u8 kind, const struct ipv6_ext *ext)
{
	if (kind == NEXTHDR_FRAGMENT)
		return 8;
	if (kind == NEXTHDR_AUTH)
		return (ext->length + 2) * 4;
	return (ext->length + 1) * 8;
}

static __always_inline bool ipv6_is_later_fragment(u8 kind, const struct ipv6_ext *ext)
{
	return kind == NEXTHDR_FRAGMENT && (ext->fragment & bpf_htons(0xfff8));
}

#endif
