// SPDX-License-Identifier: Apache-2.0

package drop

//go:generate go tool bpf2go -go-package drop -output-stem drop -target bpfel -cc clang-16 -strip llvm-strip-16 -type drop_key -type drop_event -type drop_flag -type reason_flag -type drop_stat bpf drop.bpf.c -- -I../../../bpf -O2 -Wall -Werror -mcpu=v2
