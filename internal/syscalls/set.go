// SPDX-License-Identifier: Apache-2.0

package syscalls

// Set is a set of system calls by their numbers: a bit for each, as BPF programs look
// them up.
type Set [MaxNumber / 64]uint64

// SetOf makes a set; numbers that have no bit are left out.
func SetOf(numbers ...int32) (s Set) {
	for _, nr := range numbers {
		s.Add(nr)
	}
	return s
}

// Add adds a number, and reports whether it has a bit.
func (s *Set) Add(nr int32) bool {
	if nr < 0 || nr >= MaxNumber {
		return false
	}
	s[nr/64] |= 1 << (nr % 64)
	return true
}
