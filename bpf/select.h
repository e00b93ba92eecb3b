/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which cgroups somebody wants more of than all the others. User space owns the map,
 * see probe.Selection, and hands it to each probe in place of the probe's own, which
 * is empty.
 */
#ifndef ORB8_SELECT_H
#define ORB8_SELECT_H

#include "core.h"

/* The same as in probe.Selection: the kernel takes no other map in its place. */
#define SELECTED_MAX 8192

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SELECTED_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64); /* cgroup id */
	__type(value, u64); /* a bit for each that wants it */
} selected_cgroups SEC(".maps");

/* Who wants the cgroup. */
static __always_inline u64 selected(u64 cgroup_id)
{
	u64 *who = bpf_map_lookup_elem(&selected_cgroups, &cgroup_id);

	return who ? *who : 0;
}

#endif
