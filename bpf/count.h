/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counters of a probe's programs: of what is lost, and the like. A probe has one map
 * of them, with the values of an enum that ends with STAT_MAX.
 */
#ifndef ORB8_COUNT_H
#define ORB8_COUNT_H

#include "core.h"

/* Atomic, because a program may interrupt another one on the same CPU. */
static __always_inline void count_in(void *stats, u32 stat, u64 n)
{
	u64 *v = bpf_map_lookup_elem(stats, &stat);

	if (v)
		__sync_fetch_and_add(v, n);
}

/* Defines the map, after the enum, and count(stat), which adds one. */
#define DEFINE_STATS(name)                                                                         \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, STAT_MAX);                                                     \
		__type(key, u32);                                                                  \
		__type(value, u64);                                                                \
	} name SEC(".maps");                                                                       \
	static __always_inline void count(u32 stat)                                                \
	{                                                                                          \
		count_in(&name, stat, 1);                                                          \
	}

#endif
