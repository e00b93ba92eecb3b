/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* So that the programs compile alike on every architecture. */
#include <asm-generic/bitsperlong.h>
