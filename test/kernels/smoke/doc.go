// SPDX-License-Identifier: Apache-2.0

// Package smoke holds tests of the kernel matrix itself: that run.sh makes the
// machine which the tests of the probes expect, and which of the kernel's BPF
// facilities are there. It has no code and knows nothing of the probes.
package smoke
