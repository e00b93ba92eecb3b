// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"testing"

	"github.com/Ignoramuss/orb8/internal/process"
)

func TestErrno(t *testing.T) {
	for ret, want := range map[int64]string{
		0: "", 1: "", -1: "EPERM", -11: "EAGAIN", -13: "EACCES", -35: "EDEADLK", -95: "EOPNOTSUPP",
		-133: "EHWPOISON", -512: "ERESTARTSYS", -513: "ERESTARTNOINTR", -514: "ERESTARTNOHAND",
		-515: "ENOIOCTLCMD", -516: "ERESTART_RESTARTBLOCK", -4095: "errno_4095", -4096: "", -1 << 63: "",
		-41: "errno_41",
	} {
		if got := Errno(ret); got != want {
			t.Errorf("Errno(%d) = %q, want %q", ret, got, want)
		}
	}
}

func TestReturn(t *testing.T) {
	for _, c := range []struct {
		name string
		abi  process.ABI
		ret  int64
		want string
	}{
		{"openat", process.AMD64, 3, "3"},
		{"openat", process.AMD64, -13, "-EACCES"},
		{"read", process.AMD64, -512, "-ERESTARTSYS"},
		{"lseek", process.AMD64, -5000, "-5000"},
		{"mmap", process.AMD64, 0x7f0000001000, "0x7f0000001000"},
		{"mmap", process.AMD64, -12, "-ENOMEM"},
		{"mmap2", process.I386, -0x8000000, "0xf8000000"},
		{"brk", process.ARM64, 0xaaaa0000, "0xaaaa0000"},
	} {
		nr, ok := Number(c.abi, c.name)
		if !ok {
			t.Fatalf("%s has no %s", c.abi, c.name)
		}
		if got := Return(&Call{ABI: c.abi, Number: nr, Return: c.ret, Returned: true}); got != c.want {
			t.Errorf("%s: %d reads %s, want %s", c.name, c.ret, got, c.want)
		}
	}
	if got := Return(&Call{}); got != "?" {
		t.Errorf("a call that has not returned reads %s", got)
	}
}

func TestCapability(t *testing.T) {
	for n, want := range map[uint8]string{0: "CAP_CHOWN", 21: "CAP_SYS_ADMIN", 39: "CAP_BPF", 40: "CAP_CHECKPOINT_RESTORE", 63: "CAP_63"} {
		if got := Capability(n); got != want {
			t.Errorf("Capability(%d) = %s, want %s", n, got, want)
		}
	}
}
