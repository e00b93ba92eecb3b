// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/Ignoramuss/orb8/internal/process"
)

func TestName(t *testing.T) {
	for _, c := range []struct {
		abi  process.ABI
		nr   int32
		name string
	}{
		{process.AMD64, 0, "read"},
		{process.AMD64, 262, "newfstatat"},
		{process.AMD64, 437, "openat2"},
		{process.ARM64, 56, "openat"},
		{process.ARM64, 79, "newfstatat"},
		{process.I386, 5, "open"},
		{process.I386, 102, "socketcall"},
		{process.ARM, 0, "restart_syscall"},
		{process.ARM, 322, "openat"},
	} {
		if got := Name(c.abi, c.nr); got != c.name {
			t.Errorf("Name(%s, %d) = %s, want %s", c.abi, c.nr, got, c.name)
		}
		if nr, ok := Number(c.abi, c.name); !ok || nr != c.nr {
			t.Errorf("Number(%s, %s) = %d, %t", c.abi, c.name, nr, ok)
		}
	}
}

func TestNoName(t *testing.T) {
	for nr, want := range map[int32]string{
		500: "syscall_500", 511: "syscall_511", 512: "syscall_512", -1: "syscall_-1",
	} {
		if got := Name(process.AMD64, nr); got != want {
			t.Errorf("Name(amd64, %d) = %s, want %s", nr, got, want)
		}
	}
	if got := Name(process.ABI(9), 0); got != "syscall_0" {
		t.Errorf("of an unknown ABI: %s", got)
	}
	// arm64 never had open; its first 244 is a mark, no call.
	for _, name := range []string{"open", "arch_specific_syscall", ""} {
		if nr, ok := Number(process.ARM64, name); ok {
			t.Errorf("Number(arm64, %q) = %d", name, nr)
		}
	}
	if _, ok := Number(process.ABI(9), "read"); ok {
		t.Error("an unknown ABI has read")
	}
}

func TestNames(t *testing.T) {
	all := Names()
	if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Error("Names are not sorted or not distinct")
	}
	for _, name := range []string{"openat", "socketcall", "arm_fadvise64_64", "mmap2", "renameat"} {
		if _, ok := slices.BinarySearch(all, name); !ok {
			t.Errorf("Names lacks %s", name)
		}
	}
	if slices.Contains(all, "") || slices.Contains(all, "syscall_mask") {
		t.Error("Names has what is no call")
	}
}

func TestSimilar(t *testing.T) {
	for name, want := range map[string]string{
		"opennat": "openat", "exceve": "execve", "mout": "mount", "OPENAT": "", "nothing_like_it": "", "": "",
	} {
		if got := Similar(name); got != want {
			t.Errorf("Similar(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	got := Numbers(process.ARM64, "mount", "open", "ptrace")
	if want := []int32{40, 117}; !slices.Equal(got, want) {
		t.Errorf("Numbers = %d, want %d", got, want)
	}
}

func TestPrivileged(t *testing.T) {
	all := Names()
	for _, name := range Privileged() {
		if _, ok := slices.BinarySearch(all, name); !ok {
			t.Errorf("%s is no system call", name)
		}
	}
	for abi, least := range map[process.ABI]int{process.AMD64: 55, process.ARM64: 53, process.I386: 62, process.ARM: 60} {
		if n := len(Numbers(abi, Privileged()...)); n < least {
			t.Errorf("%s has %d of the privileged calls, want %d or more", abi, n, least)
		}
	}
}

// The kernel's headers say the same, as far as they go.
func TestHeaders(t *testing.T) {
	define := regexp.MustCompile(`(?m)^#define __NR_(\w+) (\d+)$`)
	for abi, file := range map[process.ABI]string{process.AMD64: "unistd_64.h", process.I386: "unistd_32.h"} {
		t.Run(abi.String(), func(t *testing.T) {
			text, err := header(file)
			if err != nil {
				t.Skipf("the kernel's headers for amd64 are not here: %v", err)
			}
			all := define.FindAllStringSubmatch(text, -1)
			if len(all) < 300 {
				t.Fatalf("%s has only %d system calls", file, len(all))
			}
			for _, m := range all {
				nr, err := strconv.Atoi(m[2])
				if err != nil {
					t.Fatal(err)
				}
				if got := Name(abi, int32(nr)); got != m[1] {
					t.Errorf("Name(%s, %d) = %s, the header has %s", abi, nr, got, m[1])
				}
			}
		})
	}
}

// header returns a file of the kernel's, which lies elsewhere on Debian.
func header(name string) (string, error) {
	text, err := os.ReadFile("/usr/include/asm/" + name)
	if err != nil {
		text, err = os.ReadFile("/usr/include/x86_64-linux-gnu/asm/" + name)
	}
	return string(text), err
}
