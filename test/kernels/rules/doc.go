// SPDX-License-Identifier: Apache-2.0

// Package rules tries every rule of internal/anomaly on the running kernel: a container
// does what the rule is about, and what looks like it. It has no code. Its test binary
// is the container runtime as well, so that none has to be installed.
package rules
