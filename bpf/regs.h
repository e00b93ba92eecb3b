/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The registers with which a task has entered the kernel, on both architectures.
 */
#ifndef ORB8_REGS_H
#define ORB8_REGS_H

#include "core.h"

#define TS_COMPAT 0x0002 /* thread_info.status on x86 */
#define TIF_32BIT 22 /* thread_info.flags on arm64 */

#define CALL_ARGS 6

struct pt_regs___x86 {
	unsigned long r10, r9, r8, bp, bx, cx, dx, si, di, orig_ax;
} __core;

struct pt_regs___arm64 {
	u64 regs[31];
	u64 orig_x0;
	int syscallno;
} __core;

struct thread_info {
	unsigned long flags;
	u32 status; /* x86 only */
} __core;

struct task_struct___info {
	struct thread_info thread_info;
} __core;

static __always_inline bool on_x86(void)
{
	return bpf_core_field_exists(struct pt_regs___x86, orig_ax);
}

/* Whether the current task is in a 32-bit call. */
static __always_inline bool in_compat(void)
{
	struct task_struct___info *task = (void *)bpf_get_current_task();

	if (on_x86())
		return BPF_CORE_READ(task, thread_info.status) & TS_COMPAT;
	return BPF_CORE_READ(task, thread_info.flags) >> TIF_32BIT & 1;
}

/* How a field of the registers is read: of a pointer that the verifier knows, and of any
 * other. */
#define READ_KNOWN(regs, field) ((regs)->field)
#define READ_ANY(regs, field) BPF_CORE_READ(regs, field)

/* The number of the system call, -1 for none. */
#define CALL_NUMBER(ptr, READ)                                                                     \
	(on_x86() ? (int)READ((struct pt_regs___x86 *)(ptr), orig_ax) :                            \
		    READ((struct pt_regs___arm64 *)(ptr), syscallno))

/* Fills the arguments of a call. */
#define READ_CALL_ARGS(args, ptr, compat, READ)                                                    \
	do {                                                                                       \
		struct pt_regs___x86 *x86 = (void *)(ptr);                                         \
		struct pt_regs___arm64 *arm64 = (void *)(ptr);                                     \
                                                                                                   \
		if (!on_x86()) {                                                                   \
			(args)[0] = READ(arm64, orig_x0); /* regs[0] is the result, once there is one */ \
			(args)[1] = READ(arm64, regs[1]);                                          \
			(args)[2] = READ(arm64, regs[2]);                                          \
			(args)[3] = READ(arm64, regs[3]);                                          \
			(args)[4] = READ(arm64, regs[4]);                                          \
			(args)[5] = READ(arm64, regs[5]);                                          \
		} else if (compat) {                                                               \
			(args)[0] = READ(x86, bx);                                                 \
			(args)[1] = READ(x86, cx);                                                 \
			(args)[2] = READ(x86, dx);                                                 \
			(args)[3] = READ(x86, si);                                                 \
			(args)[4] = READ(x86, di);                                                 \
			(args)[5] = READ(x86, bp);                                                 \
		} else {                                                                           \
			(args)[0] = READ(x86, di);                                                 \
			(args)[1] = READ(x86, si);                                                 \
			(args)[2] = READ(x86, dx);                                                 \
			(args)[3] = READ(x86, r10);                                                \
			(args)[4] = READ(x86, r8);                                                 \
			(args)[5] = READ(x86, r9);                                                 \
		}                                                                                  \
		if (compat)                                                                        \
			for (int i = 0; i < CALL_ARGS; i++)                                        \
				(args)[i] = (u32)(args)[i];                                        \
	} while (0)

#endif
