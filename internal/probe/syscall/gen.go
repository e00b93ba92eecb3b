// SPDX-License-Identifier: Apache-2.0

package syscall

//go:generate go tool bpf2go -go-package syscall -output-stem syscall -target bpfel -cc clang-16 -strip llvm-strip-16 -type call -type thread -type inode_text -type inet_text -type socket_text -type count_key -type call_counts -type trace_wish -type call_flag -type kind -type reads_flag -type syscall_stat bpf syscall.bpf.c -- -I../../../bpf -O2 -Wall -Werror -mcpu=v2
