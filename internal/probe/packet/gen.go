// SPDX-License-Identifier: Apache-2.0

package packet

//go:generate go tool bpf2go -go-package packet -output-stem packet -target bpfel -cc clang-16 -strip llvm-strip-16 -type packet_key -type packet_flow -type dns_message -type packet_stat -type packet_flag -type role bpf packet.bpf.c -- -I../../../bpf -O2 -Wall -Werror -mcpu=v2
