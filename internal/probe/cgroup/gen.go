// SPDX-License-Identifier: Apache-2.0

package cgroup

//go:generate go tool bpf2go -go-package cgroup -output-stem cgroup -target bpfel -cc clang-16 -strip llvm-strip-16 -type cgroup_made -type cgroup_stat bpf cgroup.bpf.c -- -I../../../bpf -O2 -Wall -Werror -mcpu=v2
