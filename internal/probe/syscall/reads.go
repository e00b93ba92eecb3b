// SPDX-License-Identifier: Apache-2.0

//go:build linux

package syscall

import (
	"slices"

	"github.com/Ignoramuss/orb8/internal/process"
	"github.com/Ignoramuss/orb8/internal/syscalls"
)

// abis are this host's, native and compat.
func abis() [2]process.ABI { return [2]process.ABI{syscalls.Native(), syscalls.Compat()} }

// readsTable is what the programs read of each call, native and compat.
func readsTable() (table [2][syscalls.MaxNumber]bpfCallReads) {
	for i, abi := range abis() {
		exits := syscalls.Numbers(abi, "exit", "exit_group")
		execs := syscalls.Numbers(abi, "execve", "execveat")
		for nr := range int32(syscalls.MaxNumber) {
			r := syscalls.ReadsOf(abi, nr)
			t := bpfCallReads{Strings: r.Strings, Files: r.Files, Addr: uint8(r.Addr), AddrLen: uint8(r.AddrLen), How: uint8(r.How)}
			if r.Addr >= 0 && r.AddrAtEnd {
				t.Flags |= uint8(bpfReadsFlagREADS_ADDR_AT_END)
			}
			if slices.Contains(exits, nr) {
				t.Flags |= uint8(bpfReadsFlagREADS_NO_RETURN)
			}
			if slices.Contains(execs, nr) {
				t.Flags |= uint8(bpfReadsFlagREADS_EXEC)
			}
			table[i][nr] = t
		}
	}
	return table
}
