/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether a cgroup is one of this node's. */
#ifndef ORB8_PART_H
#define ORB8_PART_H

#include "cgroup.h"

/* The root of this node's part of the cgroups, where it has not all of them. */
volatile const u64 part_root = 0;
#define MAX_LEVELS 16

/* Whether a cgroup is in this node's part. */
static __always_inline bool in_part(struct cgroup *cg)
{
	int level;

	if (!part_root)
		return true;
	if (!cg)
		return false;
	level = BPF_CORE_READ(cg, level);
	for (int i = 0; i < MAX_LEVELS; i++) {
		if (i > level)
			break;
		if (ancestor_id(cg, i) == part_root)
			return true;
	}
	return false;
}

#endif
