// SPDX-License-Identifier: Apache-2.0

package exec

//go:generate go tool bpf2go -go-package exec -output-stem exec -target bpfel -cc clang-16 -strip llvm-strip-16 -type exec_head -type exec_start -type exec_exit -type exec_moved -type exec_call -type exec_io_uring -type exec_module -type what -type start_flag -type call_flag -type exec_stat bpf exec.bpf.c -- -I../../../bpf -O2 -Wall -Werror -mcpu=v2
