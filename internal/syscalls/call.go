// SPDX-License-Identifier: Apache-2.0

// Package syscalls knows the names of Linux system calls and what their arguments
// mean. It knows nothing of BPF.
package syscalls

import "github.com/Ignoramuss/orb8/internal/process"

// MaxArgs is how many arguments a system call has at most.
const MaxArgs = 6

// MaxNumber bounds the numbers of system calls that are told apart by number; those
// above, of which there are none yet, have no name.
const MaxNumber = 512

// Call is one system call as the kernel shows it.
type Call struct {
	ABI    process.ABI
	Number int32
	Args   [MaxArgs]uint64
	// Return is what the call returned: from -4095 to -1 the negative errno. Only if
	// Returned.
	Return   int64
	Returned bool
	// Refused: the kernel did not begin it, since seccomp or a tracer refused it.
	Refused bool
	// Strings has the texts that arguments point at, by argument. Read has a bit for
	// each that could be read, Cut for each that was longer.
	Strings   [MaxArgs]string
	Read, Cut uint8
	// Files says what the arguments that are file descriptors stand for, by argument:
	// a path, or TCP 10.0.0.1:80->10.0.0.2:4242. Empty if not known.
	Files [MaxArgs]string
	// Addr is the socket address that an argument points at: 10.0.0.1:80,
	// unix:/run/x.sock. Empty if not known.
	Addr string
	// How is what openat2's argument points at.
	How OpenHow
}

// OpenHow is a struct open_how: how openat2 opens. It is Given if it could be read.
type OpenHow struct {
	Given                bool
	Flags, Mode, Resolve uint64
}

// Reads says what is to be read of a call's arguments, for those that do so. Bit i is
// argument i.
type Reads struct {
	// Strings point at text that ends with a zero byte. Files are file descriptors.
	Strings, Files uint8
	// Addr is the argument that points at a struct sockaddr, and AddrLen the one that
	// has its length (or points at it, if AddrAtEnd); -1 for none. AddrAtEnd: the kernel
	// fills it.
	Addr, AddrLen int8
	AddrAtEnd     bool
	// How is the argument that points at a struct open_how, and the next one has its
	// length; 0 for none.
	How int8
}

// Arg is an argument with its meaning.
type Arg struct {
	Name  string
	Value uint64
	Text  string
}
