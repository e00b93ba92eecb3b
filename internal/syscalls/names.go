// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"

	"github.com/Ignoramuss/orb8/internal/process"
)

// Name returns the Linux name of a system call, such as newfstatat; syscall_N for a
// number without one.
func Name(abi process.ABI, nr int32) string {
	if name := known(abi, nr); name != "" {
		return name
	}
	return "syscall_" + strconv.Itoa(int(nr))
}

// known returns a call's name, empty if there is none.
func known(abi process.ABI, nr int32) string {
	if int(abi) >= len(names) || nr < 0 || nr >= MaxNumber {
		return ""
	}
	return names[abi][nr]
}

// Number returns the number of the system call with a name, false if the ABI does
// not have it.
func Number(abi process.ABI, name string) (int32, bool) {
	if int(abi) >= len(names) || name == "" {
		return 0, false
	}
	nr := slices.Index(names[abi][:], name)
	return int32(nr), nr >= 0
}

// Numbers returns the numbers of those of the calls that the ABI has, in the order
// of names.
func Numbers(abi process.ABI, names ...string) []int32 {
	nrs := make([]int32, 0, len(names))
	for _, name := range names {
		if nr, ok := Number(abi, name); ok {
			nrs = append(nrs, nr)
		}
	}
	return nrs
}

// Names returns the names of the system calls of all ABIs, sorted.
func Names() []string {
	var all []string
	for abi := range names {
		for nr := range names[abi] {
			if name := names[abi][nr]; name != "" {
				all = append(all, name)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// CheckName returns an error for what is no system call, with the name that may be
// meant.
func CheckName(name string) error {
	if _, ok := slices.BinarySearch(Names(), name); ok {
		return nil
	}
	if near := Similar(name); near != "" {
		return fmt.Errorf("no such system call: is it %s?", near)
	}
	return errors.New("no such system call")
}

// Similar returns the name of a system call that a mistyped one may stand for, empty
// if none is near.
func Similar(name string) string {
	best, least := "", 3
	for _, n := range Names() {
		if d := distance(name, n); d < least && d < len(n) {
			best, least = n, d
		}
	}
	return best
}

// distance is how many characters must be put in, left out or replaced to make b of
// a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			changed := before
			if a[i] != b[j] {
				changed++
			}
			before = row[j+1]
			row[j+1] = min(changed, before+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// Native is the ABI of 64-bit programs on the architecture that this was built for.
func Native() process.ABI {
	if runtime.GOARCH == "arm64" {
		return process.ARM64
	}
	return process.AMD64
}

// Compat is the ABI of 32-bit programs there.
func Compat() process.ABI {
	if runtime.GOARCH == "arm64" {
		return process.ARM
	}
	return process.I386
}
