// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"testing"

	"github.com/Ignoramuss/orb8/internal/process"
)

func TestCount(t *testing.T) {
	for name, want := range map[string]int{
		"chroot": 1, "setns": 2, "umount2": 2, "clone3": 2, "mknod": 3, "bpf": 3, "socket": 3, "mknodat": 4,
		"mount": 5, "process_vm_readv": 6,
	} {
		nr, ok := Number(process.AMD64, name)
		if got := Count(process.AMD64, nr); !ok || got != want {
			t.Errorf("%s has %d arguments, want %d", name, got, want)
		}
	}
	if got := Count(process.AMD64, 100000); got != MaxArgs {
		t.Errorf("a call that is not known has %d arguments", got)
	}
}
