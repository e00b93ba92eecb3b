// SPDX-License-Identifier: Apache-2.0

package tcp

//go:generate go tool bpf2go -go-package tcp -output-stem tcp -target bpfel -cc clang-16 -strip llvm-strip-16 -type tcp_record -type tcp_sum_key -type tcp_sum -type tcp_stat -type role -type tcp_flag bpf tcp.bpf.c -- -I../../../bpf -O2 -Wall -Werror -mcpu=v2
