/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * When the reader of a ring buffer is woken. It looks every 100 ms by itself, and a
 * wake-up costs more than the record.
 */
#ifndef ORB8_RING_H
#define ORB8_RING_H

#include "core.h"

/* The flags to hand a record over with: the reader is woken by the few that cross the
 * mark, in bytes that wait, and is already on its way for the rest. The window is as
 * large as a few records. */
static __always_inline u64 wake_flags(void *ring, u64 mark, u64 window)
{
	u64 waiting = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA);

	return waiting > mark && waiting - mark < window ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

#endif
